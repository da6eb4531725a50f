//! Small tokenizers, written as files and loaded like those of models.

use attune::model::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// Returns the character that byte-level tokenizers write for a byte (GPT-2's table).
fn byte_character(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if printable(byte) {
        return char::from(byte);
    }
    let index = (0..byte).filter(|other| !printable(*other)).count() as u32;
    char::from_u32(256 + index).unwrap()
}

/// Creates a byte-level tokenizer: ids 0 to 255 are the bytes, then one id per piece, then `<end>`, which is special.
pub(crate) fn byte_level(pieces: &[&[u8]]) -> Tokenizer {
    let mut vocabulary = Map::new();
    for byte in 0..=255 {
        vocabulary.insert(byte_character(byte).to_string(), json!(byte));
    }
    for (index, piece) in pieces.iter().enumerate() {
        let text: String = piece.iter().map(|byte| byte_character(*byte)).collect();
        assert!(vocabulary.insert(text, json!(256 + index)).is_none(), "a piece is given twice or a single byte");
    }
    let end = 256 + pieces.len();
    read(&json!({
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
                    "pad_to_multiple_of": null},
        "added_tokens": [{"id": end, "content": "<end>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }))
}

/// Creates a tokenizer like Llama 2's: words with `▁`, bytes as `<0x…>` if a character is missing, a leading blank
/// removed. Ids 0 to 255 are the bytes, then the words.
#[allow(dead_code, reason = "not every test program uses it")]
pub(crate) fn byte_fallback(words: &[&str]) -> Tokenizer {
    let mut vocabulary = Map::new();
    for byte in 0..=255_u32 {
        vocabulary.insert(format!("<0x{byte:02X}>"), json!(byte));
    }
    for (index, word) in words.iter().enumerate() {
        vocabulary.insert((*word).to_owned(), json!(256 + index));
    }
    read(&json!({
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "byte_fallback": true, "vocab": vocabulary, "merges": []},
    }))
}

fn read(tokenizer: &Value) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let has_end = tokenizer["added_tokens"].as_array().is_some_and(|tokens| !tokens.is_empty());
    let config = if has_end { json!({"eos_token": {"content": "<end>"}}) } else { json!({}) };
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::read(folder.path()).unwrap()
}
