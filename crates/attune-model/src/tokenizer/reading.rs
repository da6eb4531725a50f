//! Makes the library's tokenizer of a `tokenizer.json`.
//!
//! The library itself reads a model through three intermediate forms. Byte pairs, which nearly all models of language
//! have, are read directly here, and held as `byte_pairs.rs` does; whatever looks otherwise is left to the library, and so
//! are its messages about what is wrong.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokenizers::models::bpe::{BpeBuilder, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use super::byte_pairs::{BytePairs, Rules};
use super::library::{Library, SharedModel};

/// The file, with a model of byte pairs. Truncation and padding are settings of the tokenizer's training; here they
/// would silently cut or lengthen a prompt.
#[derive(Deserialize)]
struct Document {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    _kind: Kind,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Vocab,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
enum Kind {
    #[serde(rename = "BPE")]
    BytePairs,
}

/// Two tokens that become one, written as a list of two, or as a text with a blank between them.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("two tokens")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge, E> {
        match text.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok(Merge(left.to_owned(), right.to_owned())),
            _ => Err(E::custom("not two tokens with one blank between them")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut tokens: A) -> Result<Merge, A::Error> {
        let mut next = || -> Result<String, A::Error> {
            tokens.next_element()?.ok_or_else(|| de::Error::custom("fewer than two tokens"))
        };
        let merge = Merge(next()?, next()?);
        match tokens.next_element::<String>()? {
            None => Ok(merge),
            Some(_) => Err(de::Error::custom("more than two tokens")),
        }
    }
}

/// Makes the tokenizer of the text of a `tokenizer.json`, without truncation and padding.
pub(super) fn read(json: &[u8]) -> tokenizers::Result<Library> {
    if let Some(tokenizer) = serde_json::from_slice::<Document>(json).ok().and_then(Document::build) {
        return Ok(tokenizer);
    }
    let read = Tokenizer::from_bytes(json)?;
    let mut tokenizer = Library::new(SharedModel::other(read.get_model().clone()));
    tokenizer.with_normalizer(read.get_normalizer().cloned());
    tokenizer.with_pre_tokenizer(read.get_pre_tokenizer().cloned());
    tokenizer.with_post_processor(read.get_post_processor().cloned());
    tokenizer.with_decoder(read.get_decoder().cloned());
    tokenizer.with_added_vocabulary(read.get_added_vocabulary().clone());
    Ok(tokenizer)
}

impl Document {
    /// Puts the parts together; `None` if the library would refuse them.
    fn build(self) -> Option<Library> {
        if self.version.is_some_and(|version| version != "1.0") {
            return None;
        }
        let mut tokenizer = Library::new(self.model.build()?);
        tokenizer.with_normalizer(self.normalizer);
        tokenizer.with_pre_tokenizer(self.pre_tokenizer);
        tokenizer.with_post_processor(self.post_processor);
        tokenizer.with_decoder(self.decoder);
        tokenizer.add_tokens(&self.added_tokens);
        Some(tokenizer)
    }
}

impl Model {
    fn build(self) -> Option<SharedModel> {
        let merges = self.merges.into_iter().map(|Merge(left, right)| (left, right)).collect();
        let rules = Rules {
            unk_token: self.unk_token,
            fuse_unk: self.fuse_unk.unwrap_or(false),
            byte_fallback: self.byte_fallback.unwrap_or(false),
            ignore_merges: self.ignore_merges.unwrap_or(false),
        };
        let marks = [&self.continuing_subword_prefix, &self.end_of_word_suffix];
        let is_plain = self.dropout.is_none() && marks.into_iter().flatten().all(String::is_empty);
        let own = if is_plain { BytePairs::new(&self.vocab, &merges, &rules) } else { None };
        if let Some(model) = own {
            return Some(SharedModel::byte_pairs(model));
        }
        let mut builder = BpeBuilder::new()
            .vocab_and_merges(self.vocab, merges)
            .fuse_unk(rules.fuse_unk)
            .byte_fallback(rules.byte_fallback)
            .ignore_merges(rules.ignore_merges);
        if let Some(dropout) = self.dropout {
            builder = builder.dropout(dropout);
        }
        if let Some(token) = rules.unk_token {
            builder = builder.unk_token(token);
        }
        if let Some(prefix) = self.continuing_subword_prefix {
            builder = builder.continuing_subword_prefix(prefix);
        }
        if let Some(suffix) = self.end_of_word_suffix {
            builder = builder.end_of_word_suffix(suffix);
        }
        builder.build().ok().map(SharedModel::other)
    }
}
