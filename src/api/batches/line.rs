//! One line of a batch: asks the route for the answer, as often as it takes, and words the result as a line of the output
//! or the error file.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::input::Line;
use crate::api::access::auth::Caller;
use crate::api::access::inside::Inside;
use crate::api::http::error::Problem;
use crate::jobs::batches::LineResult;
use crate::store::with_random_letters;

/// Waits before a line is tried again: as long as it was told to, between these.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(30);
const RETRY_AFTER_MS: &str = "retry-after-ms";

/// What a route answered: the result, or the time to wait before it is asked again.
pub(super) enum Outcome {
    /// The result of the line.
    Result(LineResult),
    /// The key has used up what it may use for now, or a part of the server does not answer.
    Wait(Duration),
}

/// Asks `endpoint` once for the answer to `line`.
pub(super) async fn ask(inside: &Inside, caller: &Caller, endpoint: &str, line: &Line) -> Outcome {
    let response = match request(inside, caller, endpoint, line).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    };
    let status = response.status();
    let may_pass = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    if let (true, Some(wait)) = (may_pass, told_to_wait(response.headers())) {
        return Outcome::Wait(wait.clamp(*PAUSES.start(), *PAUSES.end()));
    }
    let Ok(body) = to_bytes(response.into_body(), usize::MAX).await else {
        return Outcome::Wait(*PAUSES.start());
    };
    Outcome::Result(result(line, status, &String::from_utf8_lossy(&body)))
}

async fn request(inside: &Inside, caller: &Caller, endpoint: &str, line: &Line) -> Result<Response, Problem> {
    let unfit = ["stream", "background"].into_iter().find(|name| line.body.get(*name) == Some(&Value::Bool(true)));
    if let Some(name) = unfit {
        let message = format!("A line of a batch has its answer as a whole: leave '{name}' out.");
        return Err(Problem::invalid_code(name, "unsupported_value", message));
    }
    let body = serde_json::to_vec(&line.body).map_err(Problem::defect)?;
    let kind = HeaderValue::from_static("application/json");
    let call = inside.call(caller, Method::POST, endpoint, Some(&kind), body);
    // No layer around these routes catches panics; one line's must not end the batch.
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|_| Err(Problem::defect("a line of a batch panicked")))
}

/// Returns the time after which the same request may be let in; `None` if it will not be.
fn told_to_wait(headers: &HeaderMap) -> Option<Duration> {
    let number = |name| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let seconds = || number(header::RETRY_AFTER.as_str()).map(Duration::from_secs);
    number(RETRY_AFTER_MS).map(Duration::from_millis).or_else(seconds)
}

/// Words the answer `body`, which is JSON already and may be large.
fn result(line: &Line, status: StatusCode, body: &str) -> LineResult {
    let answer = serde_json::from_str::<Answer>(body);
    // Anything else would break the file.
    let body = if answer.is_ok() && !body.contains(['\n', '\r']) { body } else { "null" };
    let content = format!(
        r#"{{"id":"{}","custom_id":{},"response":{{"status_code":{},"request_id":"req_{}","body":{body}}},"error":null}}"#,
        new_id(),
        Value::from(line.custom_id.as_str()),
        status.as_u16(),
        uuid::Uuid::new_v4().simple(),
    );
    let used = answer.unwrap_or_default().usage.unwrap_or_default();
    LineResult {
        line: line.number,
        succeeded: status.is_success(),
        content,
        input_tokens: used.prompt_tokens.unwrap_or(0),
        cached_tokens: used.prompt_tokens_details.cached_tokens,
        output_tokens: used.completion_tokens.unwrap_or(0),
    }
}

/// Words a line that was not executed, as the error file has it.
pub(super) fn not_executed(line: &Line, code: &str, message: &str) -> String {
    json!({
        "id": new_id(),
        "custom_id": line.custom_id,
        "response": null,
        "error": {"code": code, "message": message},
    })
    .to_string()
}

fn new_id() -> String {
    with_random_letters("batch_req_", 24)
}

/// What is read of an answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    usage: Option<UsedTokens>,
}

/// Tokens that an answer says it used; the second names are those of responses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UsedTokens {
    #[serde(alias = "input_tokens")]
    prompt_tokens: Option<i64>,
    #[serde(alias = "output_tokens")]
    completion_tokens: Option<i64>,
    #[serde(alias = "input_tokens_details")]
    prompt_tokens_details: Details,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line { number: 7, custom_id: "mine\n".into(), body: serde_json::Map::new() }
    }

    #[test]
    fn a_result_is_one_line_with_the_answer_and_its_tokens() {
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}});
        let answered = result(&line(), StatusCode::OK, &json!({"text": "a\nb", "usage": usage}).to_string());
        assert!(answered.succeeded && !answered.content.contains('\n'), "{}", answered.content);
        assert_eq!((answered.input_tokens, answered.cached_tokens, answered.output_tokens), (3, 1, 2));
        let content: Value = serde_json::from_str(&answered.content).expect("JSON");
        assert_eq!(content["custom_id"], "mine\n");
        assert_eq!(content["response"]["body"]["text"], "a\nb");
        assert_eq!(content["response"]["status_code"], 200);
        assert!(content["error"].is_null());
    }

    #[test]
    fn a_refusal_is_a_result_without_an_error_of_its_own() {
        let refused = result(&line(), StatusCode::NOT_FOUND, &json!({"error": {"message": "no"}}).to_string());
        let content: Value = serde_json::from_str(&refused.content).expect("JSON");
        assert!(!refused.succeeded && content["error"].is_null());
        assert_eq!(content["response"]["body"]["error"]["message"], "no");
    }

    #[test]
    fn a_line_waits_as_long_as_it_is_told_to() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
            pairs.collect::<HeaderMap>()
        };
        let wait = told_to_wait(&headers(&[("retry-after", "2"), ("retry-after-ms", "1500")]));
        assert_eq!(wait, Some(Duration::from_millis(1500)));
        assert_eq!(told_to_wait(&headers(&[("retry-after", "2")])), Some(Duration::from_secs(2)));
        assert_eq!(told_to_wait(&headers(&[("x-should-retry", "false")])), None);
    }
}
