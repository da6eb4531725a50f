//! Extractors of handlers: the JSON body and the path of a request; `query` has that of the query. A refusal is an
//! error object that names the field at fault.

use std::time::Duration;

use axum::RequestExt as _;
use axum::extract::{FromRequest, FromRequestParts, Request};
use futures::StreamExt as _;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::api::ApiState;
use crate::api::http::error::Problem;
use crate::api::http::faults::{OUT_OF_RANGE, fault};
use crate::api::http::parsed_size::parsed_size;
use crate::api::http::share::{Held, Share};
use crate::datasets::json::without_position;

/// Time after which a client that sends nothing is given up.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_mins(1);
/// Largest body in bytes that is read on an async thread.
const INLINE_BYTES: usize = 64 << 10;
/// What serde says of a value that is none of the words that it expects.
const NO_WORD: &str = "expected value";
/// Smallest room for a body.
const FIRST_BYTES: usize = 4 << 10;

/// A JSON body. The content type is not asked for, unknown fields are ignored, and `null` for an optional field is as
/// if it were absent.
#[derive(Debug)]
pub(crate) struct Body<T>(pub T);

/// Percent-decoded parts of the path.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub(crate) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<ApiState> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Problem> {
        read(request, state, &[], parse).await.map(Self)
    }
}

/// Reads the whole body, within the limits of size and time, and lets `parse` make something of it, away from the async
/// threads if it is large. Numbers in the `token_fields` of the body are priced as token ids. What body and values take
/// is drawn from the request's share before they are there.
pub(crate) async fn read<T: Send + 'static>(
    mut request: Request,
    state: &ApiState,
    token_fields: &'static [&'static [u8]],
    parse: impl FnOnce(&[u8]) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let share = request.extract_parts::<Share>().await?;
    let limit = state.config.limits.max_body_bytes;
    let (bytes, held) = in_time(BODY_TIMEOUT, collect(request, &share, limit)).await??;
    share.set_body_bytes(bytes.len());
    if bytes.len() <= INLINE_BYTES {
        share.keep(parsed_size(&bytes, token_fields)).await?;
        return parse(&bytes);
    }
    let measure = move || Ok((parsed_size(&bytes, token_fields), bytes));
    let (size, bytes) = share.run("measure a body", measure).await?;
    share.keep(size).await?;
    let parse = move || {
        let _held = held;
        parse(&bytes)
    };
    share.run("read a body", parse).await
}

/// Collects the bytes of the body; what they take is held with them.
async fn collect(request: Request, share: &Share, limit: usize) -> Result<(Vec<u8>, Held), Problem> {
    let too_large = || Problem::too_large("The request's body", limit);
    let body = request.into_body();
    if http_body::Body::size_hint(&body).lower() > limit as u64 {
        return Err(too_large());
    }
    let mut chunks = body.into_data_stream();
    let mut held = share.hold(0).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|error| Problem::bad_request(format!("The request's body could not be read: {error}")))?;
        let length = bytes.len() + chunk.len();
        if length > limit {
            return Err(too_large());
        }
        if length > bytes.capacity() {
            let capacity = length.max(2 * bytes.capacity()).clamp(FIRST_BYTES.min(limit), limit);
            held.grow(capacity - bytes.capacity()).await?;
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, held))
}

/// Waits for what the client sends, or answers 408 after `limit`.
pub(crate) async fn in_time<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Problem> {
    tokio::time::timeout(limit, work).await.map_err(|_| Problem::slow_body())
}

/// A field that a structure does not have, although it denies unknown ones.
#[derive(Debug)]
pub(crate) struct UnknownField {
    /// Path of the object that has the field; empty for the body.
    pub parent: String,
    /// Name of the field.
    pub name: String,
    /// Names that the object may have.
    pub known: Vec<String>,
}

impl UnknownField {
    /// Reads serde's words: ``unknown field `x`, expected one of `a`, `b` ``; `None` if they are others.
    fn read(reason: &str, path: &str) -> Option<Self> {
        let (name, known) = reason.strip_prefix("unknown field `")?.rsplit_once("`, expected ")?;
        let known = known.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let parent = path.strip_suffix(name).unwrap_or(path).trim_end_matches('.').to_owned();
        Some(Self { parent, name: name.to_owned(), known })
    }
}

/// Reads `T` from JSON; an error names the field at fault.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    parse_or(bytes, |field| {
        let param =
            if field.parent.is_empty() { field.name.clone() } else { format!("{}.{}", field.parent, field.name) };
        let message = format!("Unknown parameter: '{param}'.");
        Problem::invalid_code(param, "unknown_parameter", message)
    })
}

/// Reads `T` from JSON, as [`parse`] does; `unknown` words the error for a field that `T` denies.
pub(crate) fn parse_or<T: DeserializeOwned>(
    bytes: &[u8],
    unknown: impl FnOnce(&UnknownField) -> Problem,
) -> Result<T, Problem> {
    // serde would read an array as the fields of a struct in their order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::wrong_type("body", "expected an object, got an array"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut json);
    // Where one of some words is expected, serde takes any other value for a slip of syntax.
    let is_json = || serde_json::from_slice::<IgnoredAny>(bytes).is_ok();
    let value = read.map_err(|error| {
        if without_position(error.inner()) == NO_WORD && is_json() {
            return fault(&error.path().to_string(), "expected a string");
        }
        told(error, unknown)
    })?;
    json.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

/// Reads `T` from a part of a body, as [`parse_or`] does from the whole.
pub(crate) fn parse_part<T: DeserializeOwned>(
    part: Value,
    unknown: impl FnOnce(&UnknownField) -> Problem,
) -> Result<T, Problem> {
    serde_path_to_error::deserialize(part).map_err(|error| told(error, unknown))
}

/// Reads `T` from the value at `place` in a body; an error names the field at fault, which stands there or below.
pub(crate) fn parse_at<T: DeserializeOwned>(value: Value, place: &str) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
        let path = match error.path().to_string().as_str() {
            "." => place.to_owned(),
            below if below.starts_with('[') => format!("{place}{below}"),
            below => format!("{place}.{below}"),
        };
        fault(&path, &without_position(error.inner()))
    })
}

fn told(
    error: serde_path_to_error::Error<serde_json::Error>,
    unknown: impl FnOnce(&UnknownField) -> Problem,
) -> Problem {
    let path = error.path().to_string();
    let inner = error.into_inner();
    let reason = without_position(&inner);
    // A number that its field cannot hold is JSON all the same.
    if !inner.is_data() && reason != OUT_OF_RANGE {
        return not_json(&inner);
    }
    match UnknownField::read(&reason, &path) {
        Some(field) => unknown(&field),
        None => fault(&path, &reason),
    }
}

/// Makes the error for a body that is not JSON.
pub(crate) fn not_json(error: &serde_json::Error) -> Problem {
    Problem::bad_request(format!("We could not parse the JSON body of your request: {error}."))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Wanted {
        model: String,
        temperature: Option<f32>,
        #[serde(default)]
        nested: Vec<Inner>,
        word: Option<Word>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Word {
        One,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        role: String,
    }

    fn fault(json: &str) -> (Option<String>, Option<&'static str>) {
        let problem = parse::<Wanted>(json.as_bytes()).expect_err("the body is wrong");
        assert_eq!(problem.status, 400);
        (problem.error.param.map(Cow::into_owned), problem.error.code)
    }

    #[test]
    fn null_and_unknown_fields_are_as_if_absent() {
        let wanted: Wanted = parse(br#"{"model":"m","temperature":null,"extra":[1]}"#).expect("fine");
        assert_eq!((wanted.model.as_str(), wanted.temperature, wanted.nested.len()), ("m", None, 0));
    }

    #[test]
    fn a_fault_names_its_field() {
        assert_eq!(fault("{}"), (Some("model".into()), Some("missing_required_parameter")));
        assert_eq!(fault(r#"{"model":1}"#), (Some("model".into()), Some("invalid_type")));
        for number in ["1e300", "-1e999"] {
            let body = format!(r#"{{"model":"m","temperature":{number}}}"#);
            assert_eq!(fault(&body), (Some("temperature".into()), Some("invalid_value")), "{number}");
        }
        assert_eq!(
            fault(r#"{"model":"m","nested":[{"role":3}]}"#),
            (Some("nested[0].role".into()), Some("invalid_type"))
        );
        let (param, code) = fault(r#"{"model":"m","nested":[{}]}"#);
        assert_eq!((param.as_deref(), code), (Some("nested[0].role"), Some("missing_required_parameter")));
        assert_eq!(parse::<Wanted>(br#"{"model":"m","nested":[{"role":"x"}]}"#).expect("fine").nested[0].role, "x");
    }

    #[test]
    fn a_number_in_quotation_marks_is_told_so() {
        let said = |json: &str| parse::<Wanted>(json.as_bytes()).expect_err(json).error.message;
        let message = said(r#"{"model":"m","temperature":"0.5"}"#);
        assert_eq!(message, "Invalid type for 'temperature': \"0.5\" is a text: write 0.5 without quotation marks.");
        assert!(!said(r#"{"model":"m","temperature":"hot"}"#).contains("quotation"));
        assert!(!said(r#"{"model":["3"]}"#).contains("quotation"));
    }

    #[tokio::test]
    async fn a_body_that_never_comes_is_given_up() {
        let problem = in_time(Duration::ZERO, std::future::pending::<()>()).await.expect_err("nothing comes");
        assert_eq!((problem.status.as_u16(), problem.error.code), (408, None));
        assert_eq!(in_time(BODY_TIMEOUT, std::future::ready(1)).await.expect("it is there"), 1);
    }

    #[test]
    fn another_value_than_a_word_is_a_fault_of_its_field() {
        for value in ["7", "true", "[]", "[\"one\"]", "{}"] {
            let (param, code) = fault(&format!(r#"{{"model":"m","word":{value}}}"#));
            assert_eq!((param.as_deref(), code.is_some()), (Some("word"), true), "{value}");
        }
        assert_eq!(fault(r#"{"model":"m","word":"two"}"#), (Some("word".into()), Some("invalid_value")));
        assert!(parse::<Wanted>(br#"{"model":"m","word":"one"}"#).expect("fine").word.is_some());
        // What is no JSON stays so.
        assert_eq!(fault(r#"{"model":"\ud83d","word":"one"}"#), (None, None));
        assert_eq!(fault(r#"{"model":"m","word":}"#), (None, None));
    }

    #[test]
    fn a_fault_of_a_value_is_told_by_its_place() {
        let param = |json: &str| {
            let value = serde_json::from_str(json).expect("JSON");
            parse_at::<Wanted>(value, "part[0]").expect_err("a fault").error.param.map(Cow::into_owned)
        };
        assert_eq!(param("7").as_deref(), Some("part[0]"));
        assert_eq!(param("{}").as_deref(), Some("part[0].model"));
        assert_eq!(param(r#"{"model":"m","nested":[{"role":1}]}"#).as_deref(), Some("part[0].nested[0].role"));
    }

    #[test]
    fn what_is_not_json_is_a_400() {
        assert_eq!(fault(""), (None, None));
        assert_eq!(fault("{"), (None, None));
        assert_eq!(fault(r#"{"model":"m"} x"#), (None, None));
        assert_eq!(fault("[1]"), (Some("body".into()), Some("invalid_type")));
    }
}
