//! Finds stop texts in a stream, independent of how it is cut, and holds back text that may become one. Used by
//! `text.rs`; the API makes the tables, once for all answers of a request.
//!
//! The stop text that is complete first ends the answer; if several are complete at the same character, the longest is
//! cut away. Knuth-Morris-Pratt keeps the cost at a constant per byte, however long a stop text a client sends.

use std::sync::Arc;

/// Text that may now be shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TextPiece {
    /// Whole characters, without any that may still become part of a stop text.
    pub text: String,
    /// Whether a stop text was met: `text` is then the last piece.
    pub stopped: bool,
}

/// Texts that end an answer, ready to be found. Cheap to clone; the answers of a request share it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopTexts {
    tables: Arc<[StopTable]>,
}

#[derive(Debug, PartialEq, Eq)]
struct StopTable {
    bytes: Vec<u8>,
    /// Length of the longest proper prefix that is also a suffix, for each length of a matched prefix.
    fallback: Vec<u32>,
}

/// The stop texts of one answer, and how much of each the answer ends with.
#[derive(Debug)]
pub(super) struct StopFilter {
    texts: StopTexts,
    /// Number of bytes of each stop text that the stream now ends with.
    matched: Vec<u32>,
    held: String,
}

impl StopTexts {
    /// Reads the stop texts; empty ones end nothing.
    pub fn new(texts: &[String]) -> Self {
        Self { tables: texts.iter().filter(|text| !text.is_empty()).map(|text| StopTable::new(text)).collect() }
    }
}

impl StopFilter {
    pub(super) fn new(texts: &StopTexts) -> Self {
        Self { texts: texts.clone(), matched: vec![0; texts.tables.len()], held: String::new() }
    }

    /// Adds text, and returns what may be shown.
    pub(super) fn push(&mut self, text: &str) -> TextPiece {
        for (index, byte) in text.bytes().enumerate() {
            let stops = self.texts.tables.iter().zip(&mut self.matched);
            let complete = stops.filter_map(|(table, matched)| table.advance(matched, byte)).max();
            if let Some(length) = complete {
                self.held.push_str(&text[..=index]);
                self.held.truncate(self.held.len() - length);
                return TextPiece { text: self.take(), stopped: true };
            }
        }
        self.held.push_str(text);
        // A stop text begins at a character's first byte, so this cut falls between characters.
        let open = self.matched.iter().max().map_or(0, |matched| *matched as usize);
        let rest = self.held.split_off(self.held.len() - open);
        TextPiece { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// Returns the held-back text; stop texts begin anew after it.
    pub(super) fn take(&mut self) -> String {
        self.matched.fill(0);
        std::mem::take(&mut self.held)
    }
}

impl StopTable {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut fallback = vec![0_u32; bytes.len() + 1];
        let mut length = 0;
        for index in 1..bytes.len() {
            while length > 0 && bytes[index] != bytes[length] {
                length = fallback[length] as usize;
            }
            length += usize::from(bytes[index] == bytes[length]);
            fallback[index + 1] = length as u32;
        }
        Self { bytes, fallback }
    }

    /// Moves `matched` on; returns the stop text's length if `byte` completes it.
    fn advance(&self, matched: &mut u32, byte: u8) -> Option<usize> {
        while *matched > 0 && self.bytes[*matched as usize] != byte {
            *matched = self.fallback[*matched as usize];
        }
        *matched += u32::from(self.bytes[*matched as usize] == byte);
        (*matched as usize == self.bytes.len()).then(|| {
            *matched = self.fallback[*matched as usize];
            self.bytes.len()
        })
    }
}
