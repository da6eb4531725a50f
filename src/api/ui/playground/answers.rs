//! Answers of the API to what the playground asked: read here, for pages without JavaScript; `playground.js` reads the
//! same from events.

use std::time::{Duration, Instant};

use axum::body::to_bytes;
use axum::response::Response;
use serde_json::Value;

use crate::api::http::error::{Problem, Result};
use crate::config::Price;

/// Longest answer that is read.
const MAX_ANSWER: usize = 32 << 20;

/// What came of a request to one model.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// The model has answered.
    Answered(Answer),
    /// The API has refused, or failed; in its own words.
    Failed(String),
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Answer {
    pub text: String,
    /// The tokens with their probabilities, where they were asked for.
    pub tokens: Vec<Token>,
    /// `stop` or `length`.
    pub end: String,
    pub usage: Usage,
    /// From the question to the end.
    pub took: Duration,
}

/// A token with its log probability and the most probable ones at its place.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Token {
    pub text: String,
    pub logprob: f64,
    pub top: Vec<(String, f64)>,
}

/// Tokens used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub prompt: u64,
    /// Those of the prompt that were found in the cache.
    pub cached: u64,
    pub completion: u64,
}

impl Usage {
    /// Reads the field `usage` of an answer.
    pub(super) fn read(usage: &Value) -> Self {
        let count = |value: &Value| value.as_u64().unwrap_or_default();
        Self {
            prompt: count(&usage["prompt_tokens"]),
            cached: count(&usage["prompt_tokens_details"]["cached_tokens"]),
            completion: count(&usage["completion_tokens"]),
        }
    }

    /// Returns what the tokens cost.
    pub(super) fn cost(&self, price: &Price) -> f64 {
        price.of_request(self.prompt, self.cached, self.completion)
    }
}

impl Outcome {
    /// Reads the answer to a request that was sent at `begun`.
    pub(super) async fn read(response: Result<Response, Problem>, begun: Instant) -> Self {
        match body(response).await {
            Ok(body) => Self::Answered(Answer::read(&body, begun.elapsed())),
            Err(message) => Self::Failed(message),
        }
    }
}

/// Returns the body of an answer, or the message of the error object that came instead.
pub(super) async fn body(response: Result<Response, Problem>) -> Result<Value, String> {
    let response = response.map_err(|problem| problem.error.message)?;
    let status = response.status();
    let bytes = to_bytes(response.into_body(), MAX_ANSWER).await;
    let bytes = bytes.map_err(|_| "The answer broke off, or is too long for this page.".to_owned())?;
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if status.is_success() {
        return Ok(body);
    }
    let message = body["error"]["message"].as_str().unwrap_or("The server gave no reason.");
    Err(message.to_owned())
}

impl Answer {
    /// Reads the body of an answer of either route.
    fn read(body: &Value, took: Duration) -> Self {
        let choice = &body["choices"][0];
        let text = choice["message"]["content"].as_str().or_else(|| choice["text"].as_str());
        let logprobs = &choice["logprobs"];
        Self {
            text: text.unwrap_or_default().to_owned(),
            tokens: if logprobs["content"].is_array() { of_chat(logprobs) } else { of_text(logprobs) },
            end: choice["finish_reason"].as_str().unwrap_or_default().to_owned(),
            usage: Usage::read(&body["usage"]),
            took,
        }
    }
}

fn of_chat(logprobs: &Value) -> Vec<Token> {
    let one = |token: &Value| (text(&token["token"]), number(&token["logprob"]));
    let tokens = logprobs["content"].as_array().into_iter().flatten().map(|token| {
        let (text, logprob) = one(token);
        Token { text, logprob, top: token["top_logprobs"].as_array().into_iter().flatten().map(one).collect() }
    });
    tokens.collect()
}

fn of_text(logprobs: &Value) -> Vec<Token> {
    let tokens = logprobs["tokens"].as_array().into_iter().flatten().enumerate().map(|(index, token)| {
        let top = logprobs["top_logprobs"][index].as_object().into_iter().flatten();
        Token {
            text: text(token),
            logprob: number(&logprobs["token_logprobs"][index]),
            top: top.map(|(token, logprob)| (token.clone(), number(logprob))).collect(),
        }
    });
    tokens.collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NEG_INFINITY)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_of_both_routes_are_read() {
        let usage = json!({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}});
        let top = vec![("a".to_owned(), -0.5), ("b".to_owned(), -1.5)];
        let expected = Answer {
            text: "a".into(),
            tokens: vec![Token { text: "a".into(), logprob: -0.5, top }],
            end: "stop".into(),
            usage: Usage { prompt: 9, cached: 4, completion: 2 },
            took: Duration::from_secs(1),
        };
        let token = |token: &str, logprob: f64| json!({"token": token, "logprob": logprob});
        let mut first = token("a", -0.5);
        first["top_logprobs"] = json!([token("a", -0.5), token("b", -1.5)]);
        let chat = json!({"message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"content": [first]}});
        let logprobs = json!({"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -1.5}]});
        let text = json!({"text": "a", "finish_reason": "stop", "logprobs": logprobs});
        for choice in [chat, text] {
            let body = json!({"choices": [choice], "usage": usage});
            assert_eq!(Answer::read(&body, Duration::from_secs(1)), expected, "{body}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_words_of_the_api() {
        use axum::response::IntoResponse as _;
        let refusal = Problem::bad_request("No <b>.").into_response();
        assert_eq!(Outcome::read(Ok(refusal), Instant::now()).await, Outcome::Failed("No <b>.".into()));
        assert_eq!(
            Outcome::read(Err(Problem::bad_request("No.")), Instant::now()).await,
            Outcome::Failed("No.".into())
        );
    }

    #[test]
    fn tokens_from_the_cache_have_a_price_of_their_own() {
        let usage = Usage { prompt: 1_000_000, cached: 500_000, completion: 100_000 };
        let price = Price { prompt: 2.0, cached_prompt: Some(1.0), completion: 10.0, training: 5.0, batch: None };
        assert!((usage.cost(&price) - 2.5).abs() < 1e-9);
        assert!((usage.cost(&Price { cached_prompt: None, ..price }) - 3.0).abs() < 1e-9);
    }
}
