//! `tokenizer.json`, written from what the keys of a GGUF file tell.

use serde::Serialize;
use serde::ser::Serializer;
use serde_json::{Value, json};

use super::tokens::{Token, Tokens};

/// What the kinds of tokenizers write differently.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) normalizer: Option<Value>,
    pub(super) pre_tokenizer: Option<Value>,
    pub(super) post_processor: Option<Value>,
    pub(super) decoder: Value,
    /// Pairs of tokens that become one, the most urgent first.
    pub(super) merges: Vec<(String, String)>,
    /// Take a word that is a token without merging.
    pub(super) ignore_merges: bool,
    /// Write a character without a token as the tokens of its bytes.
    pub(super) byte_fallback: bool,
    /// What stands for a character without a token otherwise.
    pub(super) unk_token: Option<String>,
    /// Tells the marks that swallow the blanks behind them.
    pub(super) swallows_blanks: fn(&Token<'_>) -> bool,
}

/// A tokenizer in the form of `tokenizer.json`.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    version: &'static str,
    added_tokens: Vec<Value>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Value,
    model: Model,
}

#[derive(Debug, Serialize)]
struct Model {
    #[serde(rename = "type")]
    kind: &'static str,
    unk_token: Option<String>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "as_map")]
    vocab: Vec<(String, u32)>,
    merges: Vec<(String, String)>,
}

impl Document {
    /// Puts the document together. Added tokens that stand behind all others belong to no vocabulary, as in the
    /// original; earlier ones must be in it to keep their numbers, which the reader gives to the rest by counting.
    pub(super) fn new(tokens: &Tokens<'_>, parts: Parts) -> Self {
        let added = tokens.iter().filter(|(_, token)| token.kind.is_added());
        let added_tokens = added.map(|(id, token)| {
            json!({"id": id, "content": token.text, "single_word": false, "lstrip": false,
                   "rstrip": (parts.swallows_blanks)(token), "normalized": false, "special": token.kind.is_special()})
        });
        let end = tokens.end_of_vocabulary();
        let vocab = tokens.iter().filter(|(id, _)| *id < end).map(|(id, token)| (token.text.clone().into_owned(), id));
        Self {
            version: "1.0",
            added_tokens: added_tokens.collect(),
            normalizer: parts.normalizer,
            pre_tokenizer: parts.pre_tokenizer,
            post_processor: parts.post_processor,
            decoder: parts.decoder,
            model: Model {
                kind: "BPE",
                fuse_unk: parts.unk_token.is_some(),
                unk_token: parts.unk_token,
                byte_fallback: parts.byte_fallback,
                ignore_merges: parts.ignore_merges,
                vocab: vocab.collect(),
                merges: parts.merges,
            },
        }
    }

    /// Returns the text of the document.
    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

fn as_map<S: Serializer>(vocab: &[(String, u32)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(vocab.iter().map(|(text, id)| (text, id)))
}

/// Returns the part that puts `begin` before each text and `end` behind it; `None` if it would do nothing.
pub(super) fn around_texts(begin: Option<(u32, &str)>, end: Option<(u32, &str)>) -> Option<Value> {
    let mark = |token: Option<(u32, &str)>, type_id: u8| {
        token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": type_id}}))
    };
    let text = |name: &str, type_id: u8| Some(json!({"Sequence": {"id": name, "type_id": type_id}}));
    let around = |name: &str, type_id| [mark(begin, type_id), text(name, type_id), mark(end, type_id)];
    let marks = [begin, end].into_iter().flatten();
    let special_tokens: serde_json::Map<String, Value> =
        marks.map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}))).collect();
    let single: Vec<Value> = around("A", 0).into_iter().flatten().collect();
    let pair: Vec<Value> = around("A", 0).into_iter().chain(around("B", 1)).flatten().collect();
    (!special_tokens.is_empty()).then(
        || json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special_tokens}),
    )
}
