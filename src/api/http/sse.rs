//! Server-sent events as OpenAI frames them: `data: JSON`, a blank line, `data: [DONE]` at the end; comments keep a
//! quiet connection open. Used by completions, chat and the events of fine-tunes; responses give their events names.

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream, StreamExt as _};
use serde::Serialize;

use crate::api::http::error::{ErrorBody, Problem};

/// Time between comments: well below the 60 s after which common proxies close a quiet connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Sends each JSON document as an event. A stream that ends is followed by `[DONE]`; a failure is sent as an error
/// object and ends the stream without it.
pub(crate) fn respond(documents: impl Stream<Item = Result<String, Problem>> + Send + 'static) -> Response {
    send(frames(documents.map(|document| Ok(Event::default().data(document?)))))
}

/// An event with a name.
#[derive(Debug)]
pub(crate) struct Named {
    /// Its type.
    pub name: Cow<'static, str>,
    /// JSON.
    pub data: String,
}

/// Sends each event under its name, and ends as [`respond`] does.
pub(crate) fn respond_named(events: impl Stream<Item = Result<Named, Problem>> + Send + 'static) -> Response {
    send(frames(events.map(|event| event.map(|Named { name, data }| Event::default().event(name).data(data)))))
}

fn send(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keepalive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // nginx would collect the events otherwise.
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response.headers_mut().extend([unbuffered]);
    response
}

/// Writes a document as the text of an event.
pub(crate) fn json(document: &impl Serialize) -> Result<String, Problem> {
    serde_json::to_string(document).map_err(|error| Problem::defect(format_args!("write JSON: {error}")))
}

/// The state of a stream of events.
enum Stage<S> {
    Open(S),
    Closed,
}

fn frames(
    events: impl Stream<Item = Result<Event, Problem>> + Send + 'static,
) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
    stream::unfold(Stage::Open(Box::pin(events)), |state| async move {
        let Stage::Open(mut events) = state else { return None };
        let (event, next) = match events.next().await {
            Some(Ok(event)) => (event, Stage::Open(events)),
            Some(Err(problem)) => (Event::default().data(error_document(problem)), Stage::Closed),
            None => (Event::default().data("[DONE]"), Stage::Closed),
        };
        Some((Ok(event), next))
    })
}

fn error_document(problem: Problem) -> String {
    let body = ErrorBody { error: problem.error };
    serde_json::to_string(&body).unwrap_or_else(|_| r#"{"error":{"message":"","type":"server_error"}}"#.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(documents: Vec<Result<String, Problem>>) -> String {
        let response = respond(stream::iter(documents));
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("a body");
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    #[tokio::test]
    async fn events_are_data_lines_and_end_with_done() {
        let text = body(vec![Ok(r#"{"a":1}"#.into()), Ok(r#"{"a":2}"#.into())]).await;
        assert_eq!(text, "data: {\"a\":1}\n\ndata: {\"a\":2}\n\ndata: [DONE]\n\n");
    }

    #[tokio::test]
    async fn a_failure_ends_the_stream_with_an_error_object_and_no_done() {
        let text = body(vec![Ok("{}".into()), Err(Problem::internal()), Ok("{}".into())]).await;
        assert!(text.starts_with("data: {}\n\ndata: {\"error\":{\"message\":"), "{text}");
        assert!(!text.contains("[DONE]") && text.matches("data:").count() == 2, "{text}");
    }
}
