//! Sets up the log, on standard error. Called once by each command that may log.
//!
//! The server must not depend on whoever reads its log. A thread of its own writes the lines, so that a pipe that
//! nobody empties holds up no request; lines beyond its queue are dropped, and errors of writing are ignored.

use std::io::{IsTerminal as _, stderr};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::{Error, Result};

/// Lines that wait for whoever reads the log; each has a place of 32 bytes from the beginning.
const QUEUED_LINES: usize = 16_384;

/// Sends the log to standard error, as JSON if `json`; standard output is for scripts. Lines are written until the
/// guard is dropped, which waits for those in the queue, a second at most.
pub(super) fn start(filter: &str, json: bool) -> Result<WorkerGuard> {
    // Each start brings the schema up to date, and Postgres notices each time that there is one. `filter` may name
    // sqlx, too.
    let filter = EnvFilter::try_new(format!("sqlx=warn,{filter}"))
        .map_err(|error| Error::Setup(format!("--log {filter}: {error}")))?;
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(QUEUED_LINES).finish(stderr());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        // It would tell errors of writing by `eprintln!`, which panics where standard error cannot be written.
        .log_internal_errors(false)
        .with_writer(writer);
    if json {
        log.json().init();
    } else {
        log.init();
    }
    // The default hook writes to standard error itself, and waits there for a reader.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(guard)
}
