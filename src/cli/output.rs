//! Lines on standard output and standard error, which may be closed, full, or a pipe whose reader has gone: `println!`
//! would panic. Called by the commands.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _, stderr, stdout};

use crate::{Error, Result};

/// Names the action in the error of [`line`].
const CONTEXT: &str = "write to standard output";

/// Writes a line to standard output; an error if it cannot be written, so that no script takes half a list for a whole.
pub(super) fn line(text: impl Display) -> Result<()> {
    writeln!(stdout(), "{text}").map_err(Error::io(CONTEXT))
}

/// Writes a line for people to standard error. Nothing depends on it: an error is ignored.
pub(super) fn note(text: impl Display) {
    let _ = writeln!(stderr(), "{text}");
}

/// Returns `true` if the reader of standard output has gone, as `head` does after its lines: it wants no message.
pub(super) fn is_reader_gone(error: &Error) -> bool {
    matches!(error, Error::Io { context, source } if context == CONTEXT && source.kind() == ErrorKind::BrokenPipe)
}
