//! Reads a training file line by line, with a bound on the memory of each. Called by [`super::read`], and by `api` for
//! uploads.

use std::io::{BufRead, Read as _};

use super::file_kinds;
use crate::{Error, Result};

/// Bytes that one line may have. A line is held in memory as a whole; no model's context holds more text.
pub const MAX_LINE_BYTES: u64 = 8 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads the lines of a file with their numbers from 1, without byte order mark, line ends and blank lines at the end.
pub struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    number: usize,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    /// Creates a reader of the lines of `reader`.
    pub fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), number: 0, ended: false }
    }

    /// Returns the next line with its number, or its fault; `None` at the end of the file. A file that is no JSON Lines
    /// ends with the fault of its first line that says so.
    pub fn next_line(&mut self) -> Result<Option<(usize, Result<&str, String>)>> {
        let mut blank = None;
        loop {
            if self.ended || !self.advance()? {
                self.ended = true;
                return Ok(None);
            }
            if self.number == 1
                && let Some(fault) = file_kinds::other_kind(self.content())
            {
                return Ok(Some(self.end(self.number, fault)));
            }
            if self.buffer.len() as u64 > MAX_LINE_BYTES && self.buffer.last() != Some(&b'\n') {
                // The rest of an overlong line would be read as another line; an exact count of faults matters less
                // than the first one.
                let limit = MAX_LINE_BYTES >> 20;
                return Ok(Some(self.end(self.number, format!("is longer than {limit} MiB: split the example"))));
            }
            if !self.content().is_empty() {
                break;
            }
            blank.get_or_insert(self.number);
        }
        if let Some(blank) = blank {
            let fault = "is empty: remove it; only the end of the file may have empty lines";
            return Ok(Some(self.end(blank, fault.into())));
        }
        let number = self.number;
        let line = std::str::from_utf8(self.content())
            .map(str::trim)
            .map_err(|error| format!("byte {}: is not UTF-8: save the file as UTF-8", error.valid_up_to() + 1));
        Ok(Some((number, line)))
    }

    /// Returns the line that was returned last as it stands in the file, whether or not it is text; empty for one that is
    /// blank.
    pub fn shown(&self) -> &[u8] {
        self.content()
    }

    /// Ends the reading with a fault.
    fn end(&mut self, number: usize, fault: String) -> (usize, Result<&str, String>) {
        self.ended = true;
        if number != self.number {
            // The buffer holds a later line than the one at fault, which is blank.
            self.buffer.clear();
        }
        (number, Err(fault))
    }

    /// Reads the next line; returns false at the end of the file. An overlong line is cut one byte after the limit.
    fn advance(&mut self) -> Result<bool> {
        self.buffer.clear();
        let read = (&mut self.reader).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut self.buffer);
        let read = read.map_err(Error::io("read the training file"))?;
        self.number += usize::from(read > 0);
        Ok(read > 0)
    }

    /// Returns the line that was read last, without the blanks around it and the file's byte order mark.
    fn content(&self) -> &[u8] {
        let bytes = if self.number == 1 {
            self.buffer.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.buffer)
        } else {
            &self.buffer
        };
        bytes.trim_ascii()
    }
}
