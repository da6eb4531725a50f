//! [`Problem`], the failure of a request: its status, and the error object that the client gets.
//!
//! Handlers return it; `?` turns each layer's error into it by the rules of [`table`]. Failures that only HTTP knows (a
//! wrong field, no key, no such route, too large) are made here by name.

mod machine;
mod table;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The result of everything in `api` that can fail.
pub(crate) type Result<T, E = Problem> = std::result::Result<T, E>;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER_ERROR: &str = "server_error";
/// Longest message in bytes, and name of a field. Both may repeat what a client wrote, of any length.
const MAX_MESSAGE: usize = 8 << 10;
const MAX_PARAM: usize = 512;

/// What a key may use a bounded amount of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimit {
    /// Requests, per minute or at a time.
    Requests,
    /// Tokens per minute.
    Tokens,
}

/// The body of every answer with a status of 400 and above.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What went wrong.
    pub error: ErrorObject,
}

/// What went wrong; all four keys are always there.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorObject {
    /// For people: what is wrong and what to send instead.
    pub message: String,
    /// The kind of failure, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field at fault.
    pub param: Option<Cow<'static, str>>,
    /// A stable word for programs.
    pub code: Option<&'static str>,
}

/// A failed request: the status and the error object.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The status of the answer.
    pub status: StatusCode,
    /// The body.
    pub error: ErrorObject,
    /// A sound time to wait before trying again.
    pub retry_after: Option<Duration>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let error = ErrorObject { message: message.into(), kind, param: None, code: None };
        Self { status, error, retry_after: None }
    }

    /// The same failure with `code`, a stable word for programs.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.error.code = Some(code);
        self
    }

    /// The same failure, blamed on the field `param`.
    pub fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.error.param = Some(param.into());
        self
    }

    /// The caller sent something that is not understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message)
    }

    /// A required field is absent.
    pub fn missing(param: impl Into<Cow<'static, str>>) -> Self {
        let param = param.into();
        Self::bad_request(format!("Missing required parameter: '{param}'."))
            .code("missing_required_parameter")
            .param(param)
    }

    /// A field has the wrong type.
    pub fn wrong_type(param: impl Into<Cow<'static, str>>, reason: &str) -> Self {
        let param = param.into();
        Self::bad_request(format!("Invalid type for '{param}': {reason}.")).code("invalid_type").param(param)
    }

    /// No key was sent.
    pub fn missing_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            INVALID_REQUEST,
            "You didn't provide an API key. Send it in the header `Authorization: Bearer KEY`.",
        )
    }

    /// The key is none of ours; only its ends are shown.
    pub fn wrong_key(key: &str) -> Self {
        let message = format!("Incorrect API key provided: {}.", masked(key));
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, message).code("invalid_api_key")
    }

    /// The key is good, but not for this.
    pub fn not_admin() -> Self {
        let message = "You have insufficient permissions for this operation: it needs an admin key.";
        Self::new(StatusCode::FORBIDDEN, INVALID_REQUEST, message).code("insufficient_permissions")
    }

    /// A request to a server without keys has an `Origin` or a `Host` that a web page of another site may have.
    pub fn foreign(header: &str, value: &str) -> Self {
        let message = format!(
            "This server has no API keys, so it does not answer under the {header} '{value}', which a web page of \
             another site could use as well: it takes localhost and, as Host, any IP address. Send the request to \
             http://localhost or http://127.0.0.1, or give the server a key with `attune keys create` or `api_keys` \
             and send it: then it answers under every name."
        );
        Self::new(StatusCode::FORBIDDEN, INVALID_REQUEST, message)
    }

    /// The body is larger than `limit` bytes.
    pub fn too_large(what: &str, limit: usize) -> Self {
        let message = format!("{what} is too large: the limit is {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message)
    }

    /// The body did not arrive in time.
    pub fn slow_body() -> Self {
        Self::too_slow("The request's body did not arrive in time.")
    }

    /// The body did not arrive in time; `message` says what is asked of it.
    pub fn too_slow(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID_REQUEST, message)
    }

    /// The body has the wrong media type.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, message)
    }

    /// No route has this path.
    pub fn unknown_url(method: &str, path: &str) -> Self {
        let message = format!("Invalid URL ({method} {path}). The routes are listed at /docs.");
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).code("unknown_url")
    }

    /// The route exists, for other methods.
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("{path} does not support {method}. The routes are listed at /docs.");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID_REQUEST, message).code("method_not_supported")
    }

    /// The field `param` must change.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad_request(message).param(param.into())
    }

    /// The field `param` must change; `code` is a stable word for programs.
    pub fn invalid_code(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self::invalid(param, message).code(code)
    }

    /// The caller may not do this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, INVALID_REQUEST, message)
    }

    /// The caller has no object with the id.
    fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).param("id")
    }

    /// The caller has no response with the id.
    pub fn no_response(id: &str) -> Self {
        Self::not_found(format!("Response with id '{id}' not found.")).code("response_not_found").param("response_id")
    }

    /// The caller has no conversation with the id.
    pub fn no_conversation(id: &str) -> Self {
        Self::not_found(format!("Conversation with id '{id}' not found."))
            .code("conversation_not_found")
            .param("conversation")
    }

    /// No item with the id is kept for the caller.
    pub fn no_item(id: &str) -> Self {
        let message = format!("Item with id '{id}' not found. Items are not kept when `store` is false.");
        Self::not_found(message).code("item_not_found").param("input")
    }

    /// No base model and no fine-tuned model of the caller has the name.
    pub fn model_not_found(name: &str) -> Self {
        let message = format!("The model `{name}` does not exist or you do not have access to it.");
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).code("model_not_found")
    }

    /// The same failure; a model that was not found is called by the `name` that was asked for.
    #[must_use]
    pub fn about_model(self, name: &str) -> Self {
        if self.is_model_not_found() { Self::model_not_found(name) } else { self }
    }

    /// The same failure; one about a model that was not found names the models that every caller may use.
    #[must_use]
    pub fn offering(mut self, models: &[&str]) -> Self {
        const SHOWN: usize = 10;
        if self.is_model_not_found() && !models.is_empty() {
            let more = if models.len() > SHOWN { ", …" } else { "" };
            let names = models.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let own = std::mem::take(&mut self.error.message);
            self.error.message = format!("{own} This server has {names}{more}; GET /v1/models also lists your own.");
        }
        self
    }

    /// True if there is no such model.
    pub fn is_model_not_found(&self) -> bool {
        self.error.code == Some("model_not_found")
    }

    /// The same failure; one of what the caller sent is blamed on the field `param`.
    #[must_use]
    pub fn blamed_on(self, param: &'static str) -> Self {
        if self.is_bad_request() { self.param(param) } else { self }
    }

    /// True if the caller sent something that must change.
    pub fn is_bad_request(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST
    }

    /// True if prompt and answer do not fit the model's context.
    pub fn is_context_length(&self) -> bool {
        self.error.code == Some("context_length_exceeded")
    }

    /// Every queue is full.
    fn overloaded(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::rate_limited(RateLimit::Requests, message, Some(retry_after))
    }

    /// The key has used up what it may use; `retry_after` is when the same request is let in, `None` if never.
    pub fn rate_limited(what: RateLimit, message: impl Into<String>, retry_after: Option<Duration>) -> Self {
        let kind = match what {
            RateLimit::Requests => "requests",
            RateLimit::Tokens => "tokens",
        };
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, kind, message).code("rate_limit_exceeded");
        Self { retry_after, ..problem }
    }

    /// The server ends before the answer does.
    pub fn stopping() -> Self {
        Self::unavailable("The server is stopping. Please try again.")
    }

    /// A part that the server needs does not answer; the same request can be sent again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, message);
        problem.retry_after = Some(Duration::from_secs(1));
        problem
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.error.message)
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request(format!("The path of the request is not valid: {}", rejection.body_text()))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut error = self.error;
        cut(&mut error.message, MAX_MESSAGE);
        if let Some(param) = error.param.as_mut().filter(|param| param.len() > MAX_PARAM) {
            cut(param.to_mut(), MAX_PARAM);
        }
        let mut response = (self.status, Json(ErrorBody { error })).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            // Rounded up: who comes back too early is refused again.
            let milliseconds = wait.as_nanos().div_ceil(1_000_000).clamp(1, u64::MAX.into()) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(milliseconds.div_ceil(1_000)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(milliseconds));
        } else if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::GATEWAY_TIMEOUT
                | StatusCode::INSUFFICIENT_STORAGE
                | StatusCode::SERVICE_UNAVAILABLE
        ) {
            // Clients try these again on their own; here that is no use.
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

/// Cuts a text that is longer than `limit` bytes.
fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        text.push('…');
    }
}

/// A key that may be shown: its ends, where they are a small part of it.
fn masked(key: &str) -> String {
    let characters: Vec<char> = key.chars().collect();
    if characters.len() < 16 {
        return "***".into();
    }
    let (head, tail) = (&characters[..3], &characters[characters.len() - 4..]);
    format!("{}***{}", head.iter().collect::<String>(), tail.iter().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine, jobs, store};

    fn object(error: impl Into<Problem>) -> (u16, serde_json::Value) {
        let problem = error.into();
        (problem.status.as_u16(), serde_json::to_value(problem.error).expect("an error object is JSON"))
    }

    #[test]
    fn every_error_object_has_all_four_keys() {
        let (_, object) = object(jobs::Error::Conflict { action: "resume", id: "ft-x".into(), status: "failed" });
        let keys: Vec<_> = object.as_object().expect("an object").keys().cloned().collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
    }

    #[test]
    fn the_clients_mistakes_are_4xx_with_the_field_at_fault() {
        let (status, body) = object(Problem::invalid("temperature", "too hot"));
        assert_eq!((status, &body["param"]), (400, &"temperature".into()));
        let (status, body) = object(engine::Error::ContextLength { limit: 4, prompt: 4, completion: 1 });
        assert_eq!((status, &body["code"]), (400, &"context_length_exceeded".into()));
        let (status, body) = object(store::Error::ModelNotFound("x".into()));
        assert_eq!((status, &body["code"], &body["param"]), (404, &"model_not_found".into(), &serde_json::Value::Null));
        let (status, body) = object(store::Error::NotFound { kind: "File", id: "file-x".into() });
        assert_eq!(
            (status, &body["message"], &body["param"]),
            (404, &"No such File object: file-x".into(), &"id".into())
        );
        let (status, _) = object(jobs::Error::Conflict { action: "resume", id: "ft-x".into(), status: "failed" });
        assert_eq!(status, 400, "409 would be retried by clients");
    }

    #[test]
    fn what_happens_inside_the_server_stays_in_the_log() {
        let (status, body) = object(jobs::Error::Internal("secret".into()));
        assert_eq!((status, &body["type"]), (500, &"server_error".into()));
        assert!(!body["message"].as_str().expect("a message").contains("secret"));
    }

    #[test]
    fn a_full_server_says_when_to_come_back() {
        let problem = Problem::from(engine::Error::Overloaded { what: "queue", retry_after: Duration::from_secs(3) });
        let response = problem.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "3");
        assert_eq!(response.headers()["retry-after-ms"], "3000");
    }

    #[test]
    fn an_answer_that_takes_too_long_is_not_to_be_tried_again() {
        let response = Problem::from(engine::Error::TimedOut { limit: Duration::from_mins(1) }).into_response();
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()["x-should-retry"], "false");
    }

    #[test]
    fn what_a_client_wrote_is_repeated_in_part() {
        let mut text = "é".repeat(9);
        cut(&mut text, 5);
        assert_eq!(text, "éé…");
        cut(&mut text, 7);
        assert_eq!(text, "éé…");
    }

    #[test]
    fn a_wrong_key_is_shown_masked() {
        assert_eq!(masked("sk-0123456789abcdef"), "sk-***cdef");
        assert_eq!(masked("short"), "***");
    }
}
