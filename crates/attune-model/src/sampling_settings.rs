//! How tokens are drawn, as far as someone has said so, and what may be said. The configuration says it of a model in
//! [`entry`](crate::entry), the model's folder in [`generation`](crate::generation).

use serde::{Deserialize, Serialize};

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

/// The numbers that a setting may have.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Range {
    /// From one to another, both included.
    Between(f32, f32),
    /// Any from this one on.
    AtLeast(f32),
    /// Any above this one.
    Above(f32),
}

impl Range {
    pub(crate) fn holds(self, value: f32) -> bool {
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
pub(crate) const PART: Range = Range::Between(0.0, 1.0);
/// Range of the penalties that are subtracted, as in requests.
const PENALTY: Range = Range::Between(-2.0, 2.0);
pub(crate) const REPETITION_PENALTY: Range = Range::Above(0.0);
/// What `top_k` may be, for messages.
pub(crate) const TOP_K: &str = "a whole number: how many tokens to keep, or 0 or -1 for all";

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
