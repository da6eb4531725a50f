//! Requests to models on behalf of a caller: to those of this server by the API's own routes, for answers of chat and
//! embeddings, and to the operator's teachers for answers of chat.

use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::{HeaderValue, Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::api::access::auth::Caller;
use crate::api::access::inside::Inside;
use crate::teachers::{self, Asked, Teacher, Teachers};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Longest answer that is read.
const MAX_ANSWER: usize = 32 << 20;
/// Longest time between two attempts, and how many times a patient caller asks a server that has no room.
const MAX_WAIT: Duration = Duration::from_secs(30);
const MAX_ATTEMPTS: usize = 240;
/// First time between two attempts at a teacher that does not say how long to wait; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Asks models as a caller.
#[derive(Clone)]
pub(crate) struct Asker {
    inside: Inside,
    teachers: Teachers,
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

impl Answer {
    /// Reads the first choice of an answer's object.
    pub(crate) fn read(answer: &Value) -> Self {
        let choice = &answer["choices"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            model: text(&answer["model"]),
            text: text(&choice["message"]["content"]),
            tools: choice["message"].get("tool_calls").cloned().unwrap_or_else(|| json!([])),
            choices: answer["choices"].clone(),
            finish_reason: text(&choice["finish_reason"]),
            tokens: Tokens::read(&answer["usage"]),
        }
    }
}

impl Asker {
    /// Asks once: a refusal is an error.
    pub(crate) fn new(inside: Inside, teachers: Teachers, caller: Caller) -> Self {
        Self { inside, teachers, caller, patient: false }
    }

    /// Asks again where the server has no room: nobody waits for the answer.
    pub(crate) fn patient(inside: Inside, teachers: Teachers, caller: Caller) -> Self {
        Self { inside, teachers, caller, patient: true }
    }

    /// Returns the organisation of the caller.
    pub(crate) fn organization(&self) -> &Arc<str> {
        &self.caller.organization
    }

    /// Sends a request for chat; an error is the API's own message.
    pub(crate) async fn chat(&self, body: &Value) -> Result<Answer, String> {
        if let (Some(name), Some(fields)) = (body["model"].as_str().and_then(teachers::named), body.as_object()) {
            return self.chat_with(self.teachers.get(name)?, fields).await;
        }
        Ok(Answer::read(&self.post("/v1/chat/completions", body).await?))
    }

    /// Asks a teacher. What may have been paid for is not asked again.
    async fn chat_with(&self, teacher: &Teacher, fields: &Map<String, Value>) -> Result<Answer, String> {
        let mut pause = FIRST_WAIT;
        for attempt in 1.. {
            teacher.turn().await;
            match teacher.chat(fields.clone(), None).await {
                Asked::Answered(answer) => {
                    let mut read = Answer::read(&answer.body);
                    fields["model"].as_str().unwrap_or_default().clone_into(&mut read.model);
                    if answer.tokens.is_none() {
                        read.tokens = at_most(teacher, fields);
                    }
                    return Ok(read);
                }
                Asked::Busy(wait, _) if self.patient && attempt < MAX_ATTEMPTS => {
                    tokio::time::sleep(wait.unwrap_or(pause)).await;
                    pause = (pause * 2).min(MAX_WAIT);
                }
                Asked::Busy(_, why) | Asked::Refused(why) | Asked::Denied(why) | Asked::Lost(why) => return Err(why),
            }
        }
        Err("The teacher was not asked.".into())
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

/// Returns the most tokens that a request can take, for a teacher that does not say how many it took.
fn at_most(teacher: &Teacher, fields: &Map<String, Value>) -> Tokens {
    let messages = fields.get("messages").and_then(Value::as_array);
    let beside = fields.get("response_format").map_or(0, |format| format.to_string().len());
    let bound = fields.get("max_completion_tokens").and_then(Value::as_u64);
    Tokens {
        prompt: teacher.prompt_tokens_at_most(messages.map_or(&[], Vec::as_slice), beside),
        completion: bound.unwrap_or_else(|| teacher.max_tokens().into()),
        cached: 0,
    }
}

/// True if the same request can be answered later.
fn may_pass(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}
