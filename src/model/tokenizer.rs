//! Text to token ids and back, from a folder's `tokenizer.json` and `tokenizer_config.json`.

use std::path::Path;

use crate::Result;

/// The tokenizer of one model.
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Reads `tokenizer.json` (truncation and padding switched off) and the special tokens of `tokenizer_config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        let _ = folder;
        todo!()
    }

    /// Token ids of `text`; `special` adds what the tokenizer puts around a text (for example a begin token).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let _ = (text, special);
        todo!()
    }

    /// The text of `ids`; special tokens are left out when `skip_special`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let _ = (ids, skip_special);
        todo!()
    }

    /// Number of ids, added tokens included.
    pub fn vocabulary_size(&self) -> usize {
        todo!()
    }

    /// The id of `tokenizer_config.json`'s `eos_token`.
    pub fn end_token(&self) -> Option<u32> {
        todo!()
    }
}
