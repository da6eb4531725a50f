//! Fields of a request that say where an answer ends before it has all its tokens: stop texts, stop tokens and
//! `ignore_eos`. Completions and chat share them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::http::error::{Problem, Result};
use crate::engine;
use crate::model::tokenizer::Tokenizer;

/// Largest number of stop texts.
const MAX_TEXTS: usize = 4;
/// Largest size of one of them, in bytes.
const TEXT_BYTES: usize = 4 << 10;
/// Largest number of stop tokens.
const MAX_TOKENS: usize = 128;

/// One text or up to four.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub(crate) enum StopTexts {
    /// One text.
    One(String),
    /// Up to four texts.
    Many(Vec<String>),
}

/// The fields of a request that say where an answer ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopFields {
    pub stop: Option<StopTexts>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub ignore_eos: bool,
}

/// What ends an answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Stops {
    /// Texts; none is empty.
    pub texts: Vec<String>,
    /// Token ids.
    pub tokens: Vec<u32>,
}

impl Stops {
    /// Returns the texts, ready to be found, once for all answers.
    pub(crate) fn tables(&self) -> engine::stops::StopTexts {
        engine::stops::StopTexts::new(&self.texts)
    }
}

impl StopFields {
    /// Returns what ends an answer of a model with the end tokens `ends` and `vocabulary` tokens. The name of a special
    /// token is a stop token, since the text of an answer never shows it.
    pub(crate) fn check(self, tokenizer: &Tokenizer, ends: &[u32], vocabulary: usize) -> Result<Stops> {
        let mut tokens = if self.ignore_eos { Vec::new() } else { ends.to_vec() };
        let texts = texts(self.stop)?;
        for text in &texts {
            tokens.extend(stop_token(text, tokenizer, &tokens)?);
        }
        let ids = self.stop_token_ids.unwrap_or_default();
        if ids.len() > MAX_TOKENS {
            let message = format!("'stop_token_ids' has {} items; at most {MAX_TOKENS} are allowed.", ids.len());
            return Err(Problem::invalid_code("stop_token_ids", "array_above_max_length", message));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            let last = vocabulary.saturating_sub(1);
            let message = format!("'stop_token_ids' holds the token id {id}; this model has the ids 0 to {last}.");
            return Err(Problem::invalid_code("stop_token_ids", "invalid_value", message));
        }
        tokens.extend(ids);
        Ok(Stops { texts, tokens })
    }
}

/// Returns the stop texts: at most four, of a bounded size. Empty ones, which clients send for none, are left out.
fn texts(stop: Option<StopTexts>) -> Result<Vec<String>> {
    let mut texts = match stop {
        None => Vec::new(),
        Some(StopTexts::One(text)) => vec![text],
        Some(StopTexts::Many(texts)) => texts,
    };
    texts.retain(|text| !text.is_empty());
    if texts.len() > MAX_TEXTS {
        let message = format!("'stop' has {} texts; at most {MAX_TEXTS} are allowed.", texts.len());
        return Err(Problem::invalid_code("stop", "array_above_max_length", message));
    }
    if let Some(text) = texts.iter().find(|text| text.len() > TEXT_BYTES) {
        let message = format!("'stop' has a text of {} bytes; at most {TEXT_BYTES} are allowed.", text.len());
        return Err(Problem::invalid_code("stop", "string_above_max_length", message));
    }
    Ok(texts)
}

/// Returns the special token that is the whole stop `text`; `None` for an ordinary text, and for one that begins with a
/// token of `ends`, which ends the answer by itself. Any other text with a special token in it is refused: no answer
/// shows it.
fn stop_token(text: &str, tokenizer: &Tokenizer, ends: &[u32]) -> Result<Option<u32>> {
    if let Some(id) = tokenizer.special_token(text) {
        return Ok(Some(id));
    }
    let within = tokenizer.special_tokens_within(text);
    if within.is_empty() || within.iter().any(|(id, name)| ends.contains(id) && text.starts_with(name)) {
        return Ok(None);
    }
    let name = &within[0].1;
    let message = format!(
        "'stop' holds the special token '{name}' amid other text, which no answer shows: send '{name}' alone, or the \
         other text."
    );
    Err(Problem::invalid_code("stop", "invalid_value", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Tokenizer {
        Tokenizer::read(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo"))).expect("a tokenizer")
    }

    fn stops(json: &str, ignore_eos: bool) -> Result<Stops> {
        let stop = serde_json::from_str(json).expect("a stop");
        // The end token of the demo model is 2, `<|im_end|>`.
        StopFields { stop, ignore_eos, ..StopFields::default() }.check(&demo(), &[2], 100)
    }

    #[test]
    fn up_to_four_texts_end_an_answer_and_empty_ones_do_not_count() {
        let texts = |json: &str| stops(json, false).map(|stops| stops.texts);
        assert_eq!(texts("null").expect("none"), Vec::<String>::new());
        assert_eq!(texts(r#""a""#).expect("one"), ["a"]);
        assert_eq!(texts(r#"["a","b","c","d",""]"#).expect("four").len(), 4);
        assert!(texts(r#"["a","b","c","d","e"]"#).is_err());
        let (long, longer) = ("x".repeat(TEXT_BYTES), "x".repeat(TEXT_BYTES + 1));
        assert!(texts(&format!(r#""{long}""#)).is_ok() && texts(&format!(r#"["a", "{longer}"]"#)).is_err());
        assert_eq!(texts(r#"[""]"#).expect("none"), texts(r#""""#).expect("none"));
    }

    #[test]
    fn the_name_of_a_special_token_ends_an_answer_at_the_token() {
        let tokens = |json: &str| stops(json, false).map(|stops| stops.tokens);
        assert_eq!(tokens(r#""<|im_start|>""#).expect("a token"), [2, 1]);
        assert_eq!(tokens(r#"["<|pad|>","x","<|endoftext|>"]"#).expect("tokens"), [2, 3, 0]);
        assert_eq!(tokens(r#""<|im""#).expect("a text"), [2]);
        // The end token ends the answer whatever follows it.
        assert_eq!(tokens(r#""<|im_end|>\n""#).expect("a text"), [2]);
        for hidden in [r#""<|im_start|>user""#, r#""x<|im_end|>""#, r#"["a","\n<|pad|>"]"#] {
            let error = tokens(hidden).expect_err("it is never shown").error;
            assert_eq!(error.param.as_deref(), Some("stop"), "{hidden}");
        }
        assert!(stops(r#""<|im_end|>\n""#, true).is_err(), "nothing ends there");
    }

    #[test]
    fn stop_tokens_are_of_the_model_and_the_end_token_can_be_ignored() {
        let check = |ids: Vec<u32>, ignore_eos| {
            StopFields { stop_token_ids: Some(ids), ignore_eos, stop: None }.check(&demo(), &[2], 100)
        };
        assert_eq!(check(vec![7, 99], false).expect("fine").tokens, [2, 7, 99]);
        assert_eq!(check(vec![], true).expect("fine").tokens, Vec::<u32>::new());
        assert!(check(vec![100], false).is_err() && check(vec![1; 129], false).is_err());
    }
}
