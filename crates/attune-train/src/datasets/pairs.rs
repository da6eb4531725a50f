//! Checks one line of a file of texts: two texts that belong together, with texts that do not belong to the first one, or
//! two texts with a number. Called by [`super::read`]; embeddings and cross-encoders are trained on them.
//!
//! The formats are those of sentence-transformers: `{"anchor": …, "positive": …}` with an optional `negative`, a text or
//! a list of a few; `{"sentence1": …, "sentence2": …, "score": …}`, where the score is the cosine that the vectors shall
//! have; `{"query": …, "document": …, "label": …}`, where the label is the probability that the document answers the
//! query. The two texts have the same names in each: `anchor`, `query` or `sentence1`, and `positive`, `document` or
//! `sentence2`.

use serde_json::{Map, Value};

use super::foreign_keys::has_answer;
use super::parse::Format;
use super::spelling::plain;
use super::words::{kind, shorten};

/// Most negatives in one line.
const MAX_NEGATIVES: usize = 16;

const ANCHOR: [&str; 3] = ["anchor", "query", "sentence1"];
const POSITIVE: [&str; 3] = ["positive", "document", "sentence2"];
const NEGATIVE: [&str; 2] = ["negative", "negatives"];
const SCORE: &str = "score";
const LABEL: &str = "label";

/// Texts of a line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TextLine {
    /// The anchor, its positive, its negatives; all different unless there is a number.
    pub texts: Vec<String>,
    /// What is learned of them.
    pub goal: Goal,
}

/// What is learned of the texts of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Goal {
    /// The anchor belongs to its positive.
    Pair,
    /// The cosine of two texts.
    Score(f32),
    /// The probability that the second text answers the first one.
    Label(f32),
}

impl Goal {
    pub(super) const fn format(self) -> Format {
        match self {
            Self::Pair => Format::Pair,
            Self::Score(_) => Format::ScoredPair,
            Self::Label(_) => Format::LabelledPair,
        }
    }

    /// Returns the number of a line; `None` if it has none.
    pub(super) const fn number(self) -> Option<f32> {
        match self {
            Self::Pair => None,
            Self::Score(number) | Self::Label(number) => Some(number),
        }
    }
}

/// Returns true if an object is meant as a line of texts.
pub fn is_of_texts(object: &Map<String, Value>) -> bool {
    let has = |keys: &[&str]| keys.iter().any(|key| object.contains_key(*key));
    // A query or a document alone, with an answer or a class beside it, is a prompt by another name.
    let meant = (has(&ANCHOR) && has(&POSITIVE)) || ((has(&ANCHOR) || has(&POSITIVE)) && !has_answer(object));
    meant && !has(&["messages", "prompt", "completion"])
}

impl TextLine {
    /// Checks a line's object.
    pub(super) fn read(mut object: Map<String, Value>) -> Result<Self, String> {
        let mut texts = vec![required(&mut object, &ANCHOR)?, required(&mut object, &POSITIVE)?];
        let goal = goal(&mut object)?;
        if let Some((key, value)) = take(&mut object, &NEGATIVE)? {
            let negatives = negatives(key, value)?;
            if goal != Goal::Pair && !negatives.is_empty() {
                return Err(format!(
                    "has a `{key}` beside a number: write it with the first text on a line of its own"
                ));
            }
            texts.extend(negatives.into_iter().map(|text| (key, text)));
        }
        if let Some(key) = object.keys().next() {
            return Err(unknown_key(key));
        }
        for (index, (key, text)) in texts.iter().enumerate().filter(|_| goal == Goal::Pair) {
            if let Some((first, _)) = texts[..index].iter().find(|(_, earlier)| earlier == text) {
                return Err(format!("has the same text as `{first}` and `{key}`: there is nothing to tell apart"));
            }
        }
        Ok(Self { texts: texts.into_iter().map(|(_, text)| text).collect(), goal })
    }
}

/// Takes the number of a line.
fn goal(object: &mut Map<String, Value>) -> Result<Goal, String> {
    match (object.remove(SCORE), object.remove(LABEL)) {
        (None, None) => Ok(Goal::Pair),
        (Some(_), Some(_)) => {
            Err("has both `score` and `label`: keep `score` to train vectors, `label` for a cross-encoder".into())
        }
        (Some(score), None) => number(SCORE, &score, -1.0).map(Goal::Score),
        (None, Some(label)) => number(LABEL, &label, 0.0).map(Goal::Label),
    }
}

/// Checks a number from `least` to 1.
fn number(key: &str, value: &Value, least: f64) -> Result<f32, String> {
    let number = match value {
        // Some tools write labels of two classes as booleans.
        Value::Bool(label) if key == LABEL => f64::from(u8::from(*label)),
        value => {
            value.as_f64().ok_or_else(|| format!("has {} as `{key}`: give a number from {least} to 1", kind(value)))?
        }
    };
    if (least..=1.0).contains(&number) {
        return Ok(number as f32);
    }
    let remedy = if (1.0..=5.0).contains(&number) {
        "divide scores of 0 to 5 by 5 in every line"
    } else {
        "divide it by the largest that it could be, in every line"
    };
    Err(format!("has {value} as `{key}`, which goes from {least} to 1: {remedy}"))
}

/// Words the fault of a key that lines of texts do not have.
fn unknown_key(key: &str) -> String {
    let remedy = match plain(key).as_str() {
        "scores" | "similarity" => "rename it to `score` if it says how alike the texts are, from -1 to 1",
        "labels" | "relevance" => "rename it to `label` if it says whether the document answers the query, from 0 to 1",
        "distance" => "write 1 less the distance as `score`, if it goes from 0 to 1",
        _ => "remove it",
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
