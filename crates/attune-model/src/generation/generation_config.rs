//! `generation_config.json` of a model's folder: the defaults that the model's authors suggest, as transformers writes
//! them and vLLM reads them.

use std::path::Path;

use serde_json::{Map, Value};

use crate::sampling_settings::{PART, REPETITION_PENALTY, Range, SamplingSettings, TOP_K, kept_tokens};
use crate::{Error, Result, python_json};

/// Name of the file.
const NAME: &str = "generation_config.json";
/// What to do about a value that cannot be meant.
const REMEDY: &str =
    "correct the file, or set generation_config = false for this model, which then does without its defaults";

/// What the file says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct GenerationConfig {
    /// How tokens are drawn. The file has no presence and frequency penalties.
    pub sampling: SamplingSettings,
    /// Tokens of an answer.
    pub max_new_tokens: Option<usize>,
    /// What changes answers elsewhere and is not done here, by name.
    pub not_applied: Vec<&'static str>,
}

/// The value with which a setting changes nothing; null, false and what is empty always change nothing.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    Nothing,
    Number(f64),
    True,
}

/// Settings that change answers in transformers, or are meant to, and are not done here. Left out are those that only act
/// together with beams, and those that change nothing but the speed.
const NOT_APPLIED: &[(Neutral, &[&str])] = &[
    (Neutral::True, &["do_sample"]),
    (
        Neutral::Number(1.0),
        &[
            "num_beams",
            "num_beam_groups",
            "num_return_sequences",
            "typical_p",
            "encoder_repetition_penalty",
            "guidance_scale",
        ],
    ),
    (
        Neutral::Number(0.0),
        &[
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "min_length",
            "min_new_tokens",
            "epsilon_cutoff",
            "eta_cutoff",
            "penalty_alpha",
            "presence_penalty",
            "frequency_penalty",
            "xtc_probability",
            "mirostat",
        ],
    ),
    (
        Neutral::Nothing,
        &[
            "bad_words_ids",
            "force_words_ids",
            "constraints",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "forced_decoder_ids",
            "suppress_tokens",
            "begin_suppress_tokens",
            "sequence_bias",
            "exponential_decay_length_penalty",
            "max_time",
            "stop_strings",
            "watermarking_config",
            "token_healing",
            "dola_layers",
            "top_h",
            "sequence",
            "penalty_last_n",
        ],
    ),
];

impl GenerationConfig {
    /// Reads the file in `folder`, of a model with `context` positions; nothing is said if there is none.
    pub(super) fn read(folder: &Path, context: usize) -> Result<Self> {
        let Some(value) = python_json::read(&folder.join(NAME))? else { return Ok(Self::default()) };
        let fault = |what: String| Error::Setup(format!("{}: {what}: {REMEDY}", folder.join(NAME).display()));
        match &value {
            Value::Object(fields) => Self::of(fields, context).map_err(fault),
            _ => Err(fault("it holds no object".into())),
        }
    }

    /// Reads settings by their names in the file; an error names one that cannot be meant.
    pub(super) fn of(fields: &Map<String, Value>, context: usize) -> Result<Self, String> {
        let sampling = SamplingSettings {
            temperature: number(fields, "temperature", Range::AtLeast(0.0))?,
            top_p: number(fields, "top_p", PART)?,
            top_k: whole(fields, "top_k", TOP_K, |count| kept_tokens(count).is_some())?,
            min_p: number(fields, "min_p", PART)?,
            repetition_penalty: number(fields, "repetition_penalty", REPETITION_PENALTY)?,
            ..SamplingSettings::default()
        };
        let max_new_tokens = whole(fields, "max_new_tokens", "a whole number of at least 1", |count| count >= 1)?;
        let mut not_applied = Vec::new();
        for (neutral, names) in NOT_APPLIED {
            let acts = |name: &&&str| fields.get(**name).is_some_and(|value| !neutral.is(value));
            not_applied.extend(names.iter().filter(acts).copied());
        }
        // In transformers it counts prompt and answer, where `max_new_tokens` does not say more.
        let longest = fields.get("max_length").and_then(Value::as_f64);
        if max_new_tokens.is_none() && longest.is_some_and(|longest| longest < context as f64) {
            not_applied.push("max_length");
        }
        let max_new_tokens = max_new_tokens.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        Ok(Self { sampling, max_new_tokens, not_applied })
    }
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Self::True, value) => *value == true,
            (_, Value::Bool(on)) => !on,
            (_, Value::Array(items)) => items.is_empty(),
            (_, Value::Object(fields)) => fields.is_empty(),
            (_, Value::String(text)) => text.is_empty(),
            (Self::Number(neutral), Value::Number(number)) => {
                number.as_f64().is_some_and(|number| (number - neutral).abs() < f64::EPSILON)
            }
            (Self::Nothing, Value::Number(_)) => false,
        }
    }
}

/// Returns the number under `key`; `None` if it is absent or null.
fn number(fields: &Map<String, Value>, key: &str, range: Range) -> Result<Option<f32>, String> {
    let Some(value) = fields.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let number = value.as_f64().map(|number| number as f32).filter(|number| range.holds(*number));
    number.map(Some).ok_or_else(|| refuse(key, value, &range.to_string()))
}

/// Returns the whole number under `key`, which may be written as `50.0`; `None` if it is absent or null.
fn whole(
    fields: &Map<String, Value>,
    key: &str,
    range: &str,
    holds: impl Fn(i64) -> bool,
) -> Result<Option<i64>, String> {
    let Some(value) = fields.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let is_whole = |number: &f64| number.fract() == 0.0 && number.abs() < 9e15;
    let from_float = || value.as_f64().filter(is_whole).map(|number| number as i64);
    let number = value.as_i64().or_else(from_float).filter(|number| holds(*number));
    number.map(Some).ok_or_else(|| refuse(key, value, range))
}

fn refuse(key: &str, value: &Value, range: &str) -> String {
    let text = python_json::shown(value);
    let mut shown: String = text.chars().take(40).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("`{key}` is {shown}, and must be {range}")
}
