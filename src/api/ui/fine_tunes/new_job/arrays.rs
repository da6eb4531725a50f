//! Splits a JSON array into its elements as it is read, with a bound on the memory of each. Used by [`super::tables`] and
//! [`super::conversion`]. Each element is then parsed by itself.

use std::io::{self, BufRead as _, BufReader, Read};

use crate::datasets::lines::MAX_LINE_BYTES;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads the elements of an array.
pub(super) struct Elements<R> {
    reader: BufReader<R>,
    element: Vec<u8>,
    number: usize,
    place: Place,
}

/// Where the reader stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    First,
    AfterComma,
    Behind,
    Ended,
}

/// What ended an element.
enum End {
    Comma,
    Bracket,
    File,
    TooLong,
}

impl<R: Read> Elements<R> {
    /// Begins to read `reader`.
    pub(super) fn new(reader: R) -> Self {
        let (reader, element) = (BufReader::with_capacity(1 << 16, reader), Vec::new());
        Self { reader, element, number: 0, place: Place::Before }
    }

    /// Returns the next element on one line, with its number from 1, or its fault; `None` at the end, which a fault of the
    /// array itself is, too.
    pub(super) fn next_element(&mut self) -> io::Result<Option<(usize, Result<&str, String>)>> {
        if self.place == Place::Before {
            if self.reader.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
                self.reader.consume(BYTE_ORDER_MARK.len());
            }
            if self.skip_blanks()? != Some(b'[') {
                return Ok(Some(self.end("is not reached: the file does not begin with an array")));
            }
            self.reader.consume(1);
            self.place = Place::First;
        }
        if self.place == Place::Ended {
            return Ok(None);
        }
        if self.place == Place::Behind {
            return match self.skip_blanks()? {
                None => {
                    self.place = Place::Ended;
                    Ok(None)
                }
                Some(_) => Ok(Some(
                    self.end("would stand behind the end of the array: a file holds one array and nothing else"),
                )),
            };
        }
        let end = self.read()?;
        let is_empty = self.element.trim_ascii().is_empty();
        match end {
            End::TooLong => {
                let limit = MAX_LINE_BYTES >> 20;
                return Ok(Some(self.end(&format!("is longer than {limit} MiB: split it"))));
            }
            End::File => return Ok(Some(self.end("is not complete: the file ends before its array does"))),
            End::Bracket if is_empty && self.place == Place::First => {
                self.place = Place::Behind;
                return self.next_element();
            }
            End::Comma | End::Bracket if is_empty => {
                return Ok(Some(self.end("is missing: there is a comma without an element on both of its sides")));
            }
            End::Comma => self.place = Place::AfterComma,
            End::Bracket => self.place = Place::Behind,
        }
        self.number += 1;
        let text = std::str::from_utf8(&self.element).map(str::trim);
        Ok(Some((self.number, text.map_err(|_| "is not UTF-8: save the file as UTF-8".into()))))
    }

    /// Ends the reading with a fault of the element that would come next.
    fn end(&mut self, fault: &str) -> (usize, Result<&str, String>) {
        self.place = Place::Ended;
        (self.number + 1, Err(fault.to_owned()))
    }

    /// Skips blanks and returns the byte behind them.
    fn skip_blanks(&mut self) -> io::Result<Option<u8>> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let blanks = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let next = buffer.get(blanks).copied();
            self.reader.consume(blanks);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    /// Reads an element up to the comma or the bracket behind it. Line breaks outside of texts become blanks: none is
    /// left out, so that what is no JSON stays none.
    fn read(&mut self) -> io::Result<End> {
        self.element.clear();
        let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(End::File);
            }
            let mut end = None;
            let mut used = 0;
            for byte in buffer {
                used += 1;
                if in_text {
                    in_text = escaped || *byte != b'"';
                    escaped = !escaped && *byte == b'\\';
                    self.element.push(*byte);
                    continue;
                }
                match byte {
                    b',' if depth == 0 => end = Some(End::Comma),
                    b']' if depth == 0 => end = Some(End::Bracket),
                    b'\n' | b'\r' | b'\t' => self.element.push(b' '),
                    byte => {
                        in_text = *byte == b'"';
                        match byte {
                            b'{' | b'[' => depth += 1,
                            b'}' | b']' => depth = depth.saturating_sub(1),
                            _ => {}
                        }
                        self.element.push(*byte);
                    }
                }
                if end.is_some() {
                    break;
                }
            }
            self.reader.consume(used);
            if let Some(end) = end {
                return Ok(end);
            }
            if self.element.len() as u64 > MAX_LINE_BYTES {
                return Ok(End::TooLong);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(content: &[u8]) -> Vec<(usize, Result<String, String>)> {
        let mut elements = Elements::new(content);
        let mut read = Vec::new();
        while let Some((number, element)) = elements.next_element().expect("read") {
            read.push((number, element.map(str::to_owned)));
        }
        read
    }

    #[test]
    fn elements_are_split_at_the_commas_between_them_alone() {
        let content = "\u{feff} [ {\"a\": \"x,]\\\"}\",\r\n \"b\": [1, {\"c\": 2}]} ,\n\"t\\\\\", 3\n]\n\n";
        let read = elements(content.as_bytes());
        let texts: Vec<&str> = read.iter().map(|(_, element)| element.as_deref().expect("fine")).collect();
        assert_eq!(texts, ["{\"a\": \"x,]\\\"}\",   \"b\": [1, {\"c\": 2}]}", "\"t\\\\\"", "3"]);
        assert!(elements(b"[]").is_empty() && elements(b"[ \n ]").is_empty());
    }

    #[test]
    fn what_is_no_array_says_where() {
        for (content, number, why) in [
            (&b"[1,,2]"[..], 2, "comma"),
            (b"[1,]", 2, "comma"),
            (b"[1, {\"a\":", 2, "ends before"),
            (b"[1] [2]", 2, "behind the end"),
            (b"{\"a\":1}", 1, "does not begin with an array"),
            (b"[\"caf\xe9\"]", 1, "UTF-8"),
        ] {
            let read = elements(content);
            let (found, fault) = read.last().expect("a fault");
            assert_eq!(*found, number, "{}", content.escape_ascii());
            assert!(fault.as_ref().is_err_and(|fault| fault.contains(why)), "{fault:?}");
        }
        let mut long = b"[\"".to_vec();
        long.resize(MAX_LINE_BYTES as usize + (1 << 18), b'x');
        assert!(elements(&long)[0].1.as_ref().is_err_and(|fault| fault.contains("8 MiB")));
    }

    #[test]
    fn blanks_between_values_stay_so_that_broken_json_stays_broken() {
        let read = elements(b"[{\"a\": 1\n2}]");
        assert_eq!(read[0].1.as_deref(), Ok("{\"a\": 1 2}"));
    }
}
