//! Requests to models of this server on behalf of a caller, by the API's own routes: answers of chat and embeddings.

use std::time::Duration;

use axum::body::to_bytes;
use axum::http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use crate::api::access::auth::Caller;
use crate::api::access::inside::Inside;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Longest answer that is read.
const MAX_ANSWER: usize = 32 << 20;
/// Longest time between two attempts, and how many times a patient caller asks a server that has no room.
const MAX_WAIT: Duration = Duration::from_secs(30);
const MAX_ATTEMPTS: usize = 240;

/// Asks models as a caller.
#[derive(Clone)]
pub(crate) struct Asker {
    inside: Inside,
    caller: Caller,
    /// Waits where the server has no room, or the caller's limits are used up.
    patient: bool,
}

/// Tokens that a request used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub prompt: u64,
    pub completion: u64,
    /// Those of the prompt that were found in the cache.
    pub cached: u64,
}

/// An answer in a conversation.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The model as it was asked for.
    pub model: String,
    /// The text; empty if there is none.
    pub text: String,
    /// The calls of tools; an empty list without any.
    pub tools: Value,
    /// The choices as the API gives them.
    pub choices: Value,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: String,
    pub tokens: Tokens,
}

impl Tokens {
    /// Reads the usage of an answer.
    pub(crate) fn read(usage: &Value) -> Self {
        let count = |value: &Value| value.as_u64().unwrap_or_default();
        Self {
            prompt: count(&usage["prompt_tokens"]),
            completion: count(&usage["completion_tokens"]),
            cached: count(&usage["prompt_tokens_details"]["cached_tokens"]),
        }
    }

    /// Returns those of the prompt and the answer.
    pub(crate) fn total(self) -> u64 {
        self.prompt + self.completion
    }
}

impl Asker {
    /// Asks once: a refusal is an error.
    pub(crate) fn new(inside: Inside, caller: Caller) -> Self {
        Self { inside, caller, patient: false }
    }

    /// Asks again where the server has no room: nobody waits for the answer.
    pub(crate) fn patient(inside: Inside, caller: Caller) -> Self {
        Self { inside, caller, patient: true }
    }

    /// Sends a request for chat; an error is the API's own message.
    pub(crate) async fn chat(&self, body: &Value) -> Result<Answer, String> {
        let answer = self.post("/v1/chat/completions", body).await?;
        let choice = &answer["choices"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Answer {
            model: text(&answer["model"]),
            text: text(&choice["message"]["content"]),
            tools: choice["message"].get("tool_calls").cloned().unwrap_or_else(|| json!([])),
            choices: answer["choices"].clone(),
            finish_reason: text(&choice["finish_reason"]),
            tokens: Tokens::read(&answer["usage"]),
        })
    }

    /// Returns the cosine of the embeddings of two texts, and the tokens that they took.
    pub(crate) async fn cosine(&self, model: &str, texts: [&str; 2]) -> Result<(f64, Tokens), String> {
        let body = json!({"model": model, "input": texts, "encoding_format": "float"});
        let answer = self.post("/v1/embeddings", &body).await?;
        let vector = |index: usize| -> Vec<f64> {
            let vector = answer["data"][index]["embedding"].as_array();
            vector.into_iter().flatten().filter_map(Value::as_f64).collect()
        };
        let (one, other) = (vector(0), vector(1));
        let product = |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
        let lengths = (product(&one, &one) * product(&other, &other)).sqrt();
        if one.len() != other.len() || lengths == 0.0 {
            return Err("The model's embeddings cannot be compared.".into());
        }
        Ok((product(&one, &other) / lengths, Tokens::read(&answer["usage"])))
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let body = body.to_string();
        let mut attempts = 0;
        loop {
            let response = self.inside.call(&self.caller, Method::POST, path, Some(&JSON), body.clone()).await;
            let response = response.map_err(|problem| problem.error.message)?;
            let (status, headers) = (response.status(), response.headers().clone());
            let bytes = to_bytes(response.into_body(), MAX_ANSWER).await;
            let bytes = bytes.map_err(|_| "The answer broke off.".to_owned())?;
            let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            if status.is_success() {
                return Ok(answer);
            }
            attempts += 1;
            let wait = headers.get("retry-after-ms").and_then(|wait| wait.to_str().ok()?.parse().ok());
            match wait.map(Duration::from_millis) {
                Some(wait) if self.patient && may_pass(status) && attempts < MAX_ATTEMPTS => {
                    tokio::time::sleep(wait.min(MAX_WAIT)).await;
                }
                _ => {
                    return Err(answer["error"]["message"].as_str().unwrap_or("The server gave no reason.").to_owned());
                }
            }
        }
    }
}

/// True if the same request can be answered later.
fn may_pass(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}
