//! `tokenizer.json`, written from what the keys of a GGUF file tell.

use serde::Serialize;
use serde::ser::Serializer;
use serde_json::{Value, json};

use super::tokens::{INSIDE, Token, Tokens};

/// Characters of a word that is cut into pieces at the most.
const LONGEST_WORD: usize = 100;

/// What the kinds of tokenizers write differently.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) normalizer: Option<Value>,
    pub(super) pre_tokenizer: Option<Value>,
    pub(super) post_processor: Option<Value>,
    pub(super) decoder: Value,
    /// How words become tokens.
    pub(super) model: Model,
    /// Tells the marks that swallow the blanks before them.
    pub(super) swallows_before: Option<u32>,
    /// Tells the marks that swallow the blanks behind them.
    pub(super) swallows_blanks: fn(&Token<'_>) -> bool,
}

/// How words become tokens.
#[derive(Debug)]
pub(super) enum Model {
    /// By merging pairs.
    Pairs(Pairs),
    /// By the longest piece that a word begins with, the rest by those that go on inside of words.
    WordPieces {
        /// What stands for a word that cannot be cut into pieces.
        unknown: String,
    },
    /// By the most probable pieces, whose probabilities are in nats.
    Unigram {
        /// Number of the token for a character without one.
        unknown: u32,
        scores: Vec<f64>,
    },
}

/// How pairs are merged.
#[derive(Debug)]
pub(super) struct Pairs {
    /// Pairs of tokens that become one, the most urgent first.
    pub(super) merges: Vec<(String, String)>,
    /// Take a word that is a token without merging.
    pub(super) ignore_merges: bool,
    /// Write a character without a token as the tokens of its bytes.
    pub(super) byte_fallback: bool,
    /// What stands for a character without a token otherwise.
    pub(super) unk_token: Option<String>,
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
    model: Written,
}

/// The model as it is written.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Written {
    Pairs(WrittenPairs),
    WordPieces(WrittenPieces),
    Unigram(Value),
}

#[derive(Debug, Serialize)]
struct WrittenPieces {
    #[serde(rename = "type")]
    kind: &'static str,
    unk_token: String,
    continuing_subword_prefix: &'static str,
    max_input_chars_per_word: usize,
    #[serde(serialize_with = "as_map")]
    vocab: Vec<(String, u32)>,
}

#[derive(Debug, Serialize)]
struct WrittenPairs {
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
            json!({"id": id, "content": token.text, "single_word": false, "lstrip": parts.swallows_before == Some(id),
                   "rstrip": (parts.swallows_blanks)(token), "normalized": false, "special": token.kind.is_special()})
        });
        let added_tokens = added_tokens.collect();
        Self {
            version: "1.0",
            added_tokens,
            normalizer: parts.normalizer,
            pre_tokenizer: parts.pre_tokenizer,
            post_processor: parts.post_processor,
            decoder: parts.decoder,
            model: parts.model.written(tokens),
        }
    }

    /// Returns the text of the document.
    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

impl Model {
    fn written(self, tokens: &Tokens<'_>) -> Written {
        let vocab = |end: u32| {
            let known = tokens.iter().filter(move |(id, _)| *id < end);
            known.map(|(id, token)| (token.text.clone().into_owned(), id)).collect()
        };
        match self {
            Self::Pairs(Pairs { merges, ignore_merges, byte_fallback, unk_token }) => Written::Pairs(WrittenPairs {
                kind: "BPE",
                fuse_unk: unk_token.is_some(),
                unk_token,
                byte_fallback,
                ignore_merges,
                vocab: vocab(tokens.end_of_vocabulary()),
                merges,
            }),
            Self::WordPieces { unknown } => Written::WordPieces(WrittenPieces {
                kind: "WordPiece",
                unk_token: unknown,
                continuing_subword_prefix: INSIDE,
                max_input_chars_per_word: LONGEST_WORD,
                vocab: vocab(u32::MAX),
            }),
            Self::Unigram { unknown, scores } => Written::Unigram(unigram(tokens, unknown, &scores)),
        }
    }
}

/// Returns a model of pieces with probabilities, which are counted from 0 without gaps.
fn unigram(tokens: &Tokens<'_>, unknown: u32, scores: &[f64]) -> Value {
    let scored = tokens.iter().filter_map(|(id, _)| scores.get(id as usize).copied());
    let lowest = scored.fold(0.0, f64::min);
    let known = tokens.iter().map(|(id, _)| id + 1).max().unwrap_or(0);
    let piece = |id: u32| match tokens.get(id) {
        Some(token) => json!([token.text, scores.get(id as usize).copied().unwrap_or(lowest)]),
        // A gap in the numbers: not more probable than any other piece, so that the penalty of unknown characters stays.
        None => json!([format!("[PAD{id}]"), lowest]),
    };
    let vocab: Vec<Value> = (0..known).map(piece).collect();
    json!({"type": "Unigram", "unk_id": unknown, "byte_fallback": false, "vocab": vocab})
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
