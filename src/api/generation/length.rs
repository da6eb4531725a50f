//! How many tokens a text may have, and whether a longer one is cut or refused. Used by `embeddings` and `ranking`, whose
//! models read a text as a whole.

use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::generation::input::Place;
use crate::api::http::error::{Problem, Result};
use crate::model::tokenizer::{self, TextTokens};

/// Cut texts that are too long: `true` or `END`; `false` and `NONE` refuse them.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected true, false, \"END\" or \"NONE\"")]
pub(crate) enum Truncate {
    /// As a flag.
    Flag(bool),
    /// As NVIDIA's servers name it.
    Word(String),
}

/// How many tokens a text may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    /// This many.
    pub limit: usize,
    /// True if longer ones are cut.
    pub is_cut: bool,
    /// What to send so that they are.
    pub advice: &'static str,
}

impl Truncate {
    fn is_cut(&self) -> Result<bool> {
        let word = match self {
            Self::Flag(is_cut) => return Ok(*is_cut),
            Self::Word(word) => word.as_str(),
        };
        match word.to_ascii_uppercase().as_str() {
            "END" => Ok(true),
            "NONE" => Ok(false),
            "START" => {
                let message = "'truncate' START is not supported: texts are cut at their end, by END or true.";
                Err(Problem::invalid_code("truncate", "unsupported_value", message))
            }
            _ => {
                let message = "Invalid 'truncate': expected true, false, 'END' or 'NONE'.";
                Err(Problem::invalid_code("truncate", "invalid_value", message))
            }
        }
    }
}

impl Length {
    /// Reads the fields `truncate` and `truncate_prompt_tokens` of a request to a model that reads `limit` tokens.
    pub(crate) fn of(limit: usize, truncate: Option<&Truncate>, tokens: Option<i64>) -> Result<Self> {
        let asked = truncate.map(Truncate::is_cut).transpose()?;
        let advice = "set 'truncate' to true";
        match (asked, Self::shorter(limit, tokens)?) {
            (asked, None) => Ok(Self { limit, is_cut: asked == Some(true), advice }),
            (Some(false), Some(_)) => {
                let message = "'truncate_prompt_tokens' cuts texts, which 'truncate' forbids: leave one of them out.";
                Err(Problem::invalid_code("truncate_prompt_tokens", "invalid_value", message))
            }
            (_, Some(limit)) => Ok(Self { limit, is_cut: true, advice }),
        }
    }

    /// Reads the field `truncate_prompt_tokens` of a request for pairs of texts, which are cut without it, too, if
    /// `is_cut`.
    pub(crate) fn of_pairs(limit: usize, is_cut: bool, tokens: Option<i64>, advice: &'static str) -> Result<Self> {
        Ok(match Self::shorter(limit, tokens)? {
            Some(limit) => Self { limit, is_cut: true, advice },
            None => Self { limit, is_cut, advice },
        })
    }

    /// Returns the number of tokens that `truncate_prompt_tokens` cuts at, if it does: -1 is the most that there are.
    fn shorter(limit: usize, tokens: Option<i64>) -> Result<Option<usize>> {
        match tokens {
            None => Ok(None),
            Some(-1) => Ok(Some(limit)),
            Some(tokens) => match usize::try_from(tokens) {
                Ok(tokens) if (1..=limit).contains(&tokens) => Ok(Some(tokens)),
                _ => {
                    let message = format!(
                        "Invalid 'truncate_prompt_tokens': {tokens} is not between 1 and {limit}, the most that this \
                         model reads; -1 stands for that."
                    );
                    Err(Problem::invalid_code("truncate_prompt_tokens", "invalid_value", message))
                }
            },
        }
    }

    /// Returns the `tokens` of a text, cut if they are too many and may be cut. Those that end with `end`, which the
    /// tokenizer puts behind a text, still do then.
    pub(crate) fn fit(self, tokens: Vec<u32>, end: &[u32], place: Place) -> Result<Vec<u32>> {
        if tokens.len() > self.limit && !self.is_cut {
            return Err(self.too_long(tokens.len(), place));
        }
        Ok(tokenizer::cut(tokens, self.limit, end))
    }

    /// Returns the tokens of a text that was `read` up to this limit, if they are all or may be cut.
    pub(crate) fn check(self, read: TextTokens, place: Place) -> Result<Vec<u32>> {
        match read.characters {
            _ if self.is_cut => Ok(read.ids),
            _ if read.length > self.limit => Err(self.too_long(read.length, place)),
            None => Ok(read.ids),
            Some([most, characters]) => {
                let message = format!(
                    "This model reads {most} characters of a text. However, '{place}' has {characters} characters. Please \
                     shorten it, or {} to have what is too long cut off.",
                    self.advice
                );
                Err(Problem::invalid_code(place.param, "context_length_exceeded", message))
            }
        }
    }

    /// Makes the refusal of a text of so many `tokens`.
    pub(crate) fn too_long(self, tokens: usize, place: Place) -> Problem {
        let message = format!(
            "This model's maximum context length is {} tokens. However, '{place}' has {tokens} tokens. Please shorten \
             it, or {} to have what is too long cut off.",
            self.limit, self.advice
        );
        Problem::invalid_code(place.param, "context_length_exceeded", message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLACE: Place = Place { param: "input", index: Some(3) };

    fn of(truncate: serde_json::Value, tokens: Option<i64>) -> Result<Length> {
        let truncate: Option<Truncate> = serde_json::from_value(truncate).expect("a value of the field");
        Length::of(8, truncate.as_ref(), tokens)
    }

    #[test]
    fn long_texts_are_refused_unless_the_request_cuts_them() {
        for (truncate, tokens, limit, is_cut) in [
            (json!(null), None, 8, false),
            (json!(false), None, 8, false),
            (json!("NONE"), None, 8, false),
            (json!(true), None, 8, true),
            (json!("end"), None, 8, true),
            (json!(null), Some(-1), 8, true),
            (json!(true), Some(5), 5, true),
        ] {
            let length = of(truncate.clone(), tokens).expect("fine");
            assert_eq!((length.limit, length.is_cut), (limit, is_cut), "{truncate} {tokens:?}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (truncate, tokens, param) in [
            (json!("START"), None, "truncate"),
            (json!("middle"), None, "truncate"),
            (json!(null), Some(0), "truncate_prompt_tokens"),
            (json!(null), Some(9), "truncate_prompt_tokens"),
            (json!(null), Some(-2), "truncate_prompt_tokens"),
            (json!(false), Some(5), "truncate_prompt_tokens"),
        ] {
            let problem = of(truncate.clone(), tokens).expect_err("a fault");
            assert_eq!(problem.error.param.as_deref(), Some(param), "{truncate} {tokens:?}");
        }
    }

    #[test]
    fn a_cut_text_keeps_what_the_tokenizer_puts_behind_it() {
        let length = Length::of(4, Some(&Truncate::Flag(true)), None).expect("a length");
        let fit = |tokens: &[u32], end: &[u32]| length.fit(tokens.to_vec(), end, PLACE).expect("cut");
        assert_eq!(fit(&[1, 2, 3, 9], &[9]), [1, 2, 3, 9]);
        assert_eq!(fit(&[1, 2, 3, 4, 5, 9], &[9]), [1, 2, 3, 9]);
        assert_eq!(fit(&[1, 2, 3, 4, 8, 9], &[8, 9]), [1, 2, 8, 9]);
        assert_eq!(fit(&[1, 2, 3, 4, 5], &[]), [1, 2, 3, 4]);
        // Ids that the client made without it.
        assert_eq!(fit(&[1, 2, 3, 4, 5], &[9]), [1, 2, 3, 4]);
    }

    #[test]
    fn a_text_that_is_cut_by_characters_is_refused_unless_the_request_cuts_it() {
        let read = TextTokens { ids: vec![1, 2], length: 2, characters: Some([12, 20]) };
        let of = |truncate| Length::of(4, Some(&Truncate::Flag(truncate)), None).expect("a length");
        assert_eq!(of(true).check(read.clone(), PLACE).expect("cut"), [1, 2]);
        let problem = of(false).check(read, PLACE).expect_err("20 characters where 12 are read");
        for part in ["12 characters", "20 characters", "input[3]"] {
            assert!(problem.error.message.contains(part), "{part}: {problem}");
        }
    }

    #[test]
    fn a_refusal_names_the_text_and_both_lengths() {
        let length = Length::of(4, None, None).expect("a length");
        let problem = length.fit(vec![1; 6], &[], PLACE).expect_err("six tokens where four fit");
        assert!(problem.is_context_length() && problem.error.param.as_deref() == Some("input"), "{problem:?}");
        for part in ["4 tokens", "input[3]", "6 tokens", "'truncate'"] {
            assert!(problem.error.message.contains(part), "{part}: {problem}");
        }
    }
}
