//! How a model answers where a request does not say: as the configuration says, else as `generation_config.json` in the
//! model's folder says, else as OpenAI's API does. Read when a model is loaded, used by `api` for every answer.
//!
//! [`generation_config`] reads the file.

mod generation_config;

use self::generation_config::GenerationConfig;
use crate::Result;
use crate::entry::ModelEntry;
use crate::gguf::{self, Metadata};
use crate::sampling_settings::kept_tokens;

/// Part of the context that an answer may take where nothing limits it: what runs on for longer is lost in most cases.
const CONTEXT_PARTS: usize = 4;
/// Tokens that such an answer may have however small the context is.
const SHORTEST_LIMIT: usize = 1024;

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

impl GenerationDefaults {
    /// Reads what the model of `entry`, which has `context` positions, gives to requests. Refuses a file with values
    /// that cannot be meant.
    pub fn read(entry: &ModelEntry, context: usize) -> Result<Self> {
        let mut file = GenerationConfig::default();
        if entry.generation_config {
            file = GenerationConfig::read(&entry.path, context)?;
        }
        Ok(Self::choose(entry, context, file))
    }

    /// As [`GenerationDefaults::read`], for a model in a GGUF file with these keys.
    pub fn read_gguf(entry: &ModelEntry, context: usize, metadata: &Metadata) -> Result<Self> {
        let mut file = GenerationConfig::default();
        if entry.generation_config {
            let settings = gguf::sampling::settings(metadata)?;
            file = GenerationConfig::of(&settings, context).map_err(|what| {
                metadata.fault(&format!(
                    "general.sampling: {what}: set generation_config = false for this model, which then does without its defaults"
                ))
            })?;
        }
        Ok(Self::choose(entry, context, file))
    }

    fn choose(entry: &ModelEntry, context: usize, file: GenerationConfig) -> Self {
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
        Self {
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
        }
    }
}

#[cfg(test)]
#[path = "generation_tests.rs"]
mod tests;
