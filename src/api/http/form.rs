//! Reads a form (`multipart/form-data`, RFC 7578 and RFC 2046) part by part as it arrives. Everything but the content
//! of parts is bounded, and no byte is searched twice, so a form costs what its content costs. Called by `upload`.
//!
//! Own code, since multer keeps what stands before the first part and the heads of parts whole, however long they are,
//! and searches them again with each piece that arrives.

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};
use bytes::{Buf as _, BytesMut};
use memchr::{memchr, memmem};

use crate::api::http::disposition::{Disposition, parameters_of};
use crate::api::http::error::{Problem, Result};
use crate::api::http::pace::Pace;
use crate::datasets::parse::shorten;

/// Bytes before the first part.
const MAX_PREAMBLE: usize = 4096;
/// Bytes and headers of a part's head.
const MAX_HEAD: usize = 8192;
const MAX_HEADERS: usize = 16;
/// Parts of a form.
const MAX_PARTS: usize = 32;
/// Characters of a boundary (RFC 2046, section 5.1.1), beside letters and digits, and their number.
const BOUNDARY_MARKS: &[u8] = b"'()+_,-./:=? ";
const MAX_BOUNDARY: usize = 70;

/// A form that is being read.
#[derive(Debug)]
pub(crate) struct Form {
    body: BodyDataStream,
    pace: Pace,
    /// What has come and was not given out.
    buffer: BytesMut,
    /// The line that begins with it ends a part.
    delimiter: Vec<u8>,
    place: Place,
    parts: usize,
}

/// Where the buffer begins.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Preamble,
    Content,
    /// After a delimiter.
    Head,
    /// After the last part. What follows means nothing (RFC 2046).
    End,
}

impl Form {
    /// Begins to read `body`, the form that `headers` announce.
    pub(crate) fn new(headers: &HeaderMap, body: Body, pace: Pace) -> Result<Self> {
        let delimiter = format!("\r\n--{}", boundary(headers)?).into_bytes();
        // The first delimiter may stand at the very beginning, where no line ends.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        Ok(Self { body: body.into_data_stream(), pace, buffer, delimiter, place: Place::Preamble, parts: 0 })
    }

    /// Returns the names of the next part, after what is left of the one before; `None` after the last part.
    pub(super) async fn next_part(&mut self) -> Result<Option<Disposition>> {
        while self.piece().await?.is_some() {}
        if self.place == Place::Preamble {
            self.skip_preamble().await?;
        }
        if self.place == Place::End || self.is_last_delimiter().await? {
            self.place = Place::End;
            return Ok(None);
        }
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(Problem::bad_request(format!("The form has more than {MAX_PARTS} parts.")));
        }
        let too_long =
            || Problem::bad_request(format!("The head of a part of the form is longer than {MAX_HEAD} bytes."));
        let end = self.find(b"\r\n\r\n", MAX_HEAD, too_long).await?;
        let head = self.buffer.split_to(end);
        self.buffer.advance(b"\r\n\r\n".len());
        self.place = Place::Content;
        disposition(&head).map(Some)
    }

    /// Returns the next piece of the part's content; `None` at its end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>> {
        while self.place == Place::Content {
            match content(&self.buffer, &self.delimiter) {
                (0, true) => {
                    self.buffer.advance(self.delimiter.len());
                    self.place = Place::Head;
                }
                (0, false) => self.more().await?,
                (length, _) => return Ok(Some(self.buffer.split_to(length).freeze())),
            }
        }
        Ok(None)
    }

    async fn skip_preamble(&mut self) -> Result<()> {
        let delimiter = self.delimiter.clone();
        let fault = || {
            let boundary = String::from_utf8_lossy(&delimiter[2..]);
            Problem::bad_request(format!(
                "The form does not begin with its boundary: the line '{boundary}' must come within the first \
                 {MAX_PREAMBLE} bytes."
            ))
        };
        let at = self.find(&delimiter, MAX_PREAMBLE, fault).await?;
        self.buffer.advance(at + delimiter.len());
        self.place = Place::Head;
        Ok(())
    }

    async fn is_last_delimiter(&mut self) -> Result<bool> {
        while self.buffer.len() < 2 {
            self.more().await?;
        }
        Ok(self.buffer.starts_with(b"--"))
    }

    /// Reads until the buffer has `end` after at most `most` bytes, and returns after how many.
    async fn find(&mut self, end: &[u8], most: usize, fault: impl Fn() -> Problem) -> Result<usize> {
        let (most, mut searched) = (most + end.len(), 0);
        loop {
            let known = self.buffer.len().min(most);
            if let Some(at) = memmem::find(&self.buffer[searched..known], end) {
                return Ok(searched + at);
            }
            if known == most {
                return Err(fault());
            }
            searched = known.saturating_sub(end.len() - 1);
            self.more().await?;
        }
    }

    /// Waits for more of the body.
    async fn more(&mut self) -> Result<()> {
        let Some(piece) = self.pace.next(&mut self.body).await? else {
            let end = String::from_utf8_lossy(&self.delimiter[2..]);
            return Err(Problem::bad_request(format!("The form breaks off: its last line, '{end}--', did not come.")));
        };
        self.buffer.extend_from_slice(&piece);
        Ok(())
    }
}

/// Returns how many bytes of `buffer` are content for sure, and whether the whole delimiter follows them.
fn content(buffer: &[u8], delimiter: &[u8]) -> (usize, bool) {
    let mut from = 0;
    // A delimiter holds no other carriage return than its first byte, so nothing is compared twice.
    while let Some(at) = memchr(b'\r', &buffer[from..]).map(|at| from + at) {
        let common = delimiter.len().min(buffer.len() - at);
        if buffer[at..at + common] == delimiter[..common] {
            return (at, common == delimiter.len());
        }
        from = at + 1;
    }
    (buffer.len(), false)
}

/// Reads the boundary from the type of a form.
fn boundary(headers: &HeaderMap) -> Result<String> {
    let kind = headers.get(CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes())).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("multipart/form-data") {
        return Err(Problem::unsupported_media_type(format!(
            "Send a form (multipart/form-data) with the file in one of its parts, not '{}'.",
            shorten(&kind)
        )));
    }
    let parameters = parameters_of(&kind);
    let boundary = parameters.into_iter().find(|(name, _)| name == "boundary").map(|(_, value)| value);
    let fault = |message: String| Err(Problem::bad_request(message));
    let Some(boundary) = boundary.filter(|boundary| !boundary.is_empty()) else {
        return fault("The Content-Type 'multipart/form-data' of the form names no boundary.".into());
    };
    if boundary.len() > MAX_BOUNDARY {
        return fault(format!("The boundary of the form is longer than {MAX_BOUNDARY} characters."));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || BOUNDARY_MARKS.contains(&byte);
    if !boundary.bytes().all(allowed) || boundary.ends_with(' ') {
        return fault(
            "The boundary of the form may have letters, digits, spaces inside, and the characters '()+_,-./:=? only."
                .into(),
        );
    }
    Ok(boundary)
}

/// Reads the head of a part: the rest of the delimiter's line, then headers.
fn disposition(head: &[u8]) -> Result<Disposition> {
    let fault = |message: String| Err(Problem::bad_request(message));
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    if !lines.next().unwrap_or_default().iter().all(|byte| matches!(byte, b' ' | b'\t')) {
        return fault("A line of the form begins with the boundary and goes on: choose another boundary.".into());
    }
    let mut found = None;
    for (number, line) in lines.enumerate() {
        if number >= MAX_HEADERS {
            return fault(format!("A part of the form has more than {MAX_HEADERS} headers."));
        }
        let (name, value) = line.split_at(memchr(b':', line).unwrap_or(line.len()));
        let (Ok(name), [b':', value @ ..]) = (HeaderName::from_bytes(name), value) else {
            let line = String::from_utf8_lossy(line);
            return fault(format!("A part of the form has the line '{}', which is no header.", shorten(&line)));
        };
        if name == CONTENT_DISPOSITION && found.replace(Disposition::parse(value)).is_some() {
            return fault("A part of the form has two headers 'Content-Disposition'.".into());
        }
        let plain = |word: &str| value.trim_ascii().eq_ignore_ascii_case(word.as_bytes());
        if name == "content-transfer-encoding" && !["7bit", "8bit", "binary"].into_iter().any(plain) {
            let value = String::from_utf8_lossy(value);
            return fault(format!(
                "A part of the form has the Content-Transfer-Encoding '{}': send it as it is ('binary').",
                shorten(value.trim())
            ));
        }
    }
    Ok(found.unwrap_or_default())
}

#[cfg(test)]
mod tests;
