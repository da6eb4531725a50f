//! How a model answers where a request does not say: as the configuration says, else as `generation_config.json` in the
//! model's folder says, else as OpenAI's API does. Read when a model is loaded, used by `api` for every answer.
//!
//! [`generation_config`] reads the file.

mod generation_config;

use serde::{Deserialize, Serialize};

use self::generation_config::GenerationConfig;
pub(crate) use self::generation_config::read_json;
use crate::Result;
use crate::entry::ModelEntry;

/// Part of the context that an answer may take where nothing limits it: what runs on for longer is lost in most cases.
const CONTEXT_PARTS: usize = 4;
/// Tokens that such an answer may have however small the context is.
const SHORTEST_LIMIT: usize = 1024;

/// How tokens are drawn, as far as someone has said so; `None`: not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingSettings {
    /// 0 takes the most probable token; 0 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Keeps the most probable tokens whose probabilities sum to this; 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keeps this many of the most probable tokens; 0 and -1 keep all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    /// Keeps tokens at least this probable, relative to the most probable one; 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Subtracted once from tokens already drawn; -2 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Subtracted from tokens already drawn for each time; -2 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Makes tokens of prompt and answer less probable if it is above 1; above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
}

/// What a request gets for the fields that it leaves out.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationDefaults {
    /// 0 takes the most probable token.
    pub temperature: f32,
    /// Keeps the most probable tokens whose probabilities sum to this.
    pub top_p: f32,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps tokens at least this probable, relative to the most probable one.
    pub min_p: f32,
    /// Subtracted once from tokens already drawn.
    pub presence_penalty: f32,
    /// Subtracted from tokens already drawn for each time.
    pub frequency_penalty: f32,
    /// Makes tokens of prompt and answer less probable if it is above 1.
    pub repetition_penalty: f32,
    /// Tokens of an answer whose request names no limit; fewer if the context has no room for them.
    pub max_tokens: usize,
    /// Most tokens that a request may ask for; `None`: as many as the context has room for.
    pub max_answer_tokens: Option<usize>,
    /// What was taken from the file, by its names there.
    pub from_file: Vec<&'static str>,
    /// What the file asks for and this program does not do, by its names there.
    pub not_applied: Vec<&'static str>,
}

/// The numbers that a setting may have.
#[derive(Debug, Clone, Copy)]
enum Range {
    /// From one to another, both included.
    Between(f32, f32),
    /// Any from this one on.
    AtLeast(f32),
    /// Any above this one.
    Above(f32),
}

impl Range {
    fn holds(self, value: f32) -> bool {
        value.is_finite()
            && match self {
                Self::Between(low, high) => (low..=high).contains(&value),
                Self::AtLeast(low) => value >= low,
                Self::Above(low) => value > low,
            }
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Between(low, high) => write!(formatter, "a number from {low} to {high}"),
            Self::AtLeast(low) => write!(formatter, "a number of at least {low}"),
            Self::Above(low) => write!(formatter, "a number above {low}"),
        }
    }
}

/// Range of the part of probability that `top_p` and `min_p` keep.
const PART: Range = Range::Between(0.0, 1.0);
/// Range of the penalties that are subtracted, as in requests.
const PENALTY: Range = Range::Between(-2.0, 2.0);
const REPETITION_PENALTY: Range = Range::Above(0.0);
/// What `top_k` may be, for messages.
const TOP_K: &str = "a whole number: how many tokens to keep, or 0 or -1 for all";

impl SamplingSettings {
    /// Returns `true` if nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses values that no request may have; the message names setting, value and range.
    pub fn check(&self) -> Result<(), String> {
        let numbers = [
            ("temperature", self.temperature, Range::Between(0.0, 2.0)),
            ("top_p", self.top_p, PART),
            ("min_p", self.min_p, PART),
            ("presence_penalty", self.presence_penalty, PENALTY),
            ("frequency_penalty", self.frequency_penalty, PENALTY),
            ("repetition_penalty", self.repetition_penalty, REPETITION_PENALTY),
        ];
        for (name, value, range) in numbers {
            if let Some(value) = value.filter(|value| !range.holds(*value)) {
                return Err(format!("sampling.{name} is {value}, and must be {range}"));
            }
        }
        match self.top_k {
            Some(count) if kept_tokens(count).is_none() => {
                Err(format!("sampling.top_k is {count}, and must be {TOP_K}"))
            }
            _ => Ok(()),
        }
    }
}

/// Returns the number of tokens that a `top_k` keeps, 0 for all, which is also written as -1; `None` if it is none.
pub fn kept_tokens(top_k: i64) -> Option<usize> {
    if top_k == -1 { Some(0) } else { usize::try_from(top_k).ok() }
}

impl GenerationDefaults {
    /// Reads what the model of `entry`, which has `context` positions, gives to requests. Refuses a file with values
    /// that cannot be meant.
    pub fn read(entry: &ModelEntry, context: usize) -> Result<Self> {
        let mut file = GenerationConfig::default();
        if entry.generation_config {
            file = GenerationConfig::read(&entry.path, context)?;
        }
        let mut from_file = Vec::new();
        let (said, other) = (&entry.sampling, &file.sampling);
        let mut choose = |name, said: Option<f32>, other: Option<f32>, neutral| {
            from_file.extend((said.is_none() && other.is_some()).then_some(name));
            said.or(other).unwrap_or(neutral)
        };
        let temperature = choose("temperature", said.temperature, other.temperature, 1.0);
        let top_p = choose("top_p", said.top_p, other.top_p, 1.0);
        let min_p = choose("min_p", said.min_p, other.min_p, 0.0);
        let presence_penalty = choose("presence_penalty", said.presence_penalty, other.presence_penalty, 0.0);
        let frequency_penalty = choose("frequency_penalty", said.frequency_penalty, other.frequency_penalty, 0.0);
        let repetition_penalty = choose("repetition_penalty", said.repetition_penalty, other.repetition_penalty, 1.0);
        from_file.extend((said.top_k.is_none() && other.top_k.is_some()).then_some("top_k"));
        let from_context = (context / CONTEXT_PARTS).max(SHORTEST_LIMIT);
        let suggested = file.max_new_tokens.filter(|_| entry.max_answer_tokens.is_none());
        from_file.extend(suggested.map(|_| "max_new_tokens"));
        Ok(Self {
            temperature,
            top_p,
            top_k: said.top_k.or(other.top_k).and_then(kept_tokens).unwrap_or(0),
            min_p,
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
            max_tokens: entry.max_answer_tokens.or(suggested).unwrap_or(from_context),
            max_answer_tokens: entry.max_answer_tokens,
            from_file,
            not_applied: file.not_applied,
        })
    }
}

#[cfg(test)]
#[path = "generation_tests.rs"]
mod tests;
