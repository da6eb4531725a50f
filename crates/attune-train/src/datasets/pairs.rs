//! Checks one line of a file of text pairs: two texts that belong together, and texts that do not belong to the first
//! one. Called by [`super::read`]; embeddings are trained on them.
//!
//! The format is that of sentence-transformers, `{"anchor": …, "positive": …}` with an optional `negative`, a text or a
//! list of a few; `query` or `sentence1` may replace `anchor`, and `document` or `sentence2` may replace `positive`.

use serde_json::{Map, Value};

use super::codec::TextCodec;
use super::foreign_keys::has_answer;
use super::spelling::plain;
use super::words::{kind, shorten};
use crate::Result;

/// Most negatives in one line.
const MAX_NEGATIVES: usize = 16;

const ANCHOR: [&str; 3] = ["anchor", "query", "sentence1"];
const POSITIVE: [&str; 3] = ["positive", "document", "sentence2"];
const NEGATIVE: [&str; 2] = ["negative", "negatives"];

/// Texts of a line, all different: the anchor, its positive, its negatives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextPair(Vec<String>);

/// Returns true if an object is meant as a pair of texts.
pub(super) fn is_pair(object: &Map<String, Value>) -> bool {
    let has = |keys: &[&str]| keys.iter().any(|key| object.contains_key(*key));
    // A query or a document alone, with an answer or a class beside it, is a prompt by another name.
    let meant = (has(&ANCHOR) && has(&POSITIVE)) || ((has(&ANCHOR) || has(&POSITIVE)) && !has_answer(object));
    meant && !has(&["messages", "prompt", "completion"])
}

impl TextPair {
    /// Checks a line's object.
    pub(super) fn read(mut object: Map<String, Value>) -> Result<Self, String> {
        let mut texts = vec![required(&mut object, &ANCHOR)?, required(&mut object, &POSITIVE)?];
        if let Some((key, value)) = take(&mut object, &NEGATIVE)? {
            texts.extend(negatives(key, value)?.into_iter().map(|text| (key, text)));
        }
        if let Some(key) = object.keys().next() {
            return Err(unknown_key(key));
        }
        for (index, (key, text)) in texts.iter().enumerate() {
            if let Some((first, _)) = texts[..index].iter().find(|(_, earlier)| earlier == text) {
                return Err(format!("has the same text as `{first}` and `{key}`: there is nothing to tell apart"));
            }
        }
        Ok(Self(texts.into_iter().map(|(_, text)| text).collect()))
    }

    /// Tokenizes each text as `/embeddings` does.
    pub(super) fn tokens(&self, codec: &impl TextCodec) -> Result<Vec<Vec<u32>>> {
        self.0.iter().map(|text| Ok(codec.encode(text, true)?)).collect()
    }
}

/// Words the fault of a key that pairs do not have. Without its score a pair of unlike texts would be learned as alike.
fn unknown_key(key: &str) -> String {
    let scores = ["score", "scores", "label", "labels", "similarity", "relevance", "distance"];
    let remedy = if scores.contains(&plain(key).as_str()) {
        "every pair is learned as two texts that belong together: leave out the lines whose texts do not, and remove it"
    } else {
        "remove it"
    };
    format!("has the unknown key `{}`: {remedy}", shorten(key))
}

/// Takes the text under one of `keys`, with its key; an error if there is none.
fn required(object: &mut Map<String, Value>, keys: &[&'static str; 3]) -> Result<(&'static str, String), String> {
    match take(object, keys)? {
        Some((key, value)) => Ok((key, text(key, value)?)),
        None => Err(format!("has no `{}` (nor `{}` or `{}`)", keys[0], keys[1], keys[2])),
    }
}

/// Takes the value under one of `keys`; `None` if none is there, an error if two are.
fn take(object: &mut Map<String, Value>, keys: &[&'static str]) -> Result<Option<(&'static str, Value)>, String> {
    let mut found = None;
    for key in keys {
        match (object.remove(*key), found) {
            (Some(_), Some((first, _))) => return Err(format!("has both `{first}` and `{key}`: keep one")),
            (Some(value), None) => found = Some((*key, value)),
            (None, before) => found = before,
        }
    }
    Ok(found)
}

fn text(key: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) if text.trim().is_empty() => Err(format!("has an empty `{key}`: give a text")),
        Value::String(text) => Ok(text),
        other => Err(format!("has {} as `{key}`: give a string", kind(&other))),
    }
}

fn negatives(key: &str, value: Value) -> Result<Vec<String>, String> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(texts) if texts.len() > MAX_NEGATIVES => {
            Err(format!("has {} texts in `{key}`: give {MAX_NEGATIVES} at the most", texts.len()))
        }
        Value::Array(texts) => texts.into_iter().map(|value| text(key, value)).collect(),
        one @ Value::String(_) => Ok(vec![text(key, one)?]),
        other => Err(format!("has {} as `{key}`: give a string or an array of strings", kind(&other))),
    }
}
