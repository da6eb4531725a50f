//! The tokenizer of a GGUF file, made from its keys so that texts become the same tokens as with the model's original
//! `tokenizer.json`. A file's keys name a family and leave the family's rules to the reader: `families.rs` has them.
//! What cannot be told exactly is refused.
//!
//! Called where a model is loaded, and by the export of a model that was served from such a file.

mod document;
mod families;
mod pair_merges;
mod roles;
mod rules;
mod score_merges;
mod tokens;
mod unigram;
mod word_pieces;
mod writing;

use self::document::Document;
use super::Metadata;
use crate::Result;
use crate::tokenizer::{Tokenizer, TokenizerSource};

pub use self::roles::end_tokens;
pub(crate) use self::roles::special_tokens;
pub(crate) use self::writing::keys;

/// What else can be done about a tokenizer that is not read.
const REMEDY: &str = "give the folder of the original model instead, with its tokenizer.json";

/// Reads the tokenizer of the file with these keys.
pub fn read(metadata: &Metadata) -> Result<Tokenizer> {
    Tokenizer::new(&source(metadata)?)
}

/// Key with the whole `tokenizer.json`, which few files have.
const HUGGING_FACE: &str = "tokenizer.huggingface.json";

/// Makes what the tokenizer of the file with these keys is made of, in the form of `tokenizer.json`.
pub fn source(metadata: &Metadata) -> Result<TokenizerSource> {
    let json = match metadata.text(HUGGING_FACE)? {
        Some(json) => json.as_bytes().to_vec(),
        None => document(metadata)?.to_json().map_err(|error| metadata.fault(&error.to_string()))?,
    };
    let special_tokens = special_tokens(metadata)?;
    Ok(TokenizerSource { json, special_tokens, origin: metadata.origin().to_owned() })
}

/// Reads the keys in the manner of the file's kind of tokenizer.
fn document(metadata: &Metadata) -> Result<Document> {
    let kind = metadata.require("tokenizer.ggml.model", metadata.text("tokenizer.ggml.model")?)?;
    match kind {
        "gpt2" => pair_merges::document(metadata, families::of(metadata)?),
        "gemma4" => pair_merges::document(metadata, families::GEMMA_4),
        "llama" => score_merges::document(metadata),
        "bert" => word_pieces::document(metadata),
        "t5" => unigram::document(metadata),
        _ => Err(metadata.fault(&format!(
            "tokenizers of the kind `{kind}` (key tokenizer.ggml.model) are not read from GGUF files: {REMEDY}"
        ))),
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
