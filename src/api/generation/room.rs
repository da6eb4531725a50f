//! How many tokens the texts of a request may have. Texts with more are refused by the measure of the vocabulary,
//! before they are tokenized. Called by `target`.

use std::fmt;

use crate::api::generation::input::Item;
use crate::api::http::error::{Problem, Result};
use crate::model::BaseModel;

/// Numbers of tokens that texts may have; more are refused before they are tokenized.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Of each text.
    pub each: usize,
    /// Of all texts of the request.
    pub all: usize,
}

impl Room {
    /// Any number of tokens.
    pub(crate) const ANY: Self = Self { each: usize::MAX, all: usize::MAX };

    /// Returns the room for texts that must fit a context of `tokens` tokens.
    pub(crate) fn of(tokens: usize) -> Self {
        Self { each: tokens, ..Self::ANY }
    }

    /// Refuses texts that have more tokens than there is room for, however they are tokenized.
    pub(crate) fn check(self, model: &BaseModel, param: &'static str, items: &[Item]) -> Result<()> {
        let Some(vocabulary) = &model.vocabulary else { return Ok(()) };
        let mut all = 0_usize;
        for (index, item) in items.iter().enumerate() {
            let fewest = match item {
                Item::Text(_) if self.each == usize::MAX => continue,
                Item::Text(text) => vocabulary.fewest_tokens(text, self.each),
                // Long lists of ids take nothing more, and are told their exact length later.
                Item::Tokens(tokens) if tokens.len() > self.each => continue,
                Item::Tokens(tokens) => tokens.len(),
            };
            if fewest > self.each {
                let number = (items.len() > 1).then_some(index);
                return Err(too_long(self.each, (number, item.text_bytes()), vocabulary.longest_token()));
            }
            all += fewest;
            if all > self.all {
                return Err(too_many_tokens(param, format_args!("at least {all}"), self.all));
            }
        }
        Ok(())
    }
}

/// The refusal of a text, by its number if there are several and its bytes, that does not fit the `limit` tokens of the
/// context, whose longest has `longest` bytes.
fn too_long(limit: usize, (number, bytes): (Option<usize>, usize), longest: usize) -> Problem {
    let number = number.map(|number| format!(" number {number} (from 0)")).unwrap_or_default();
    let message = format!(
        "This model's maximum context length is {limit} tokens. However, you requested more than {limit} tokens: your \
         text{number} of {bytes} bytes has no fewer, and none of more than {} bytes fits, since the longest token has {longest} bytes. \
         Please reduce the length of the messages or completion.",
        limit.saturating_mul(longest)
    );
    Problem::bad_request(message).code("context_length_exceeded")
}

/// The refusal of texts in the field `param` that have more than `limit` tokens together; `tokens` says how many.
pub(crate) fn too_many_tokens(param: &'static str, tokens: impl fmt::Display, limit: usize) -> Problem {
    let message = format!("Requested {tokens} tokens, max {limit} tokens per request.");
    Problem::invalid_code(param, "max_tokens_per_request", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_cannot_fit_is_told_the_limits() {
        let problem = too_long(10, (None, 99), 3);
        assert!(problem.is_context_length());
        for part in ["10 tokens", "text of 99 bytes", "30 bytes", "3 bytes"] {
            assert!(problem.error.message.contains(part), "{part}: {problem}");
        }
        let problem = too_long(10, (Some(4), 99), 3);
        assert!(problem.error.message.contains("text number 4 (from 0) of 99 bytes"), "{problem}");
    }
}
