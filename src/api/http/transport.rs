//! The layers around all routes: request id, timing, metrics, a line in the log, CORS, the charset of texts, what is
//! left of a body, and an error object instead of plain text for unknown routes, wrong methods and panics. Called by
//! `api::router`.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tracing::Instrument as _;

use crate::api::http::error::Problem;
use crate::api::http::headers::{self, is_local_origin};
use crate::api::http::lingering::care_for_the_rest;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING: HeaderName = HeaderName::from_static("openai-processing-ms");
const VERSION: HeaderName = HeaderName::from_static("openai-version");
/// Routes that machines ask all the time.
pub(super) const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];
const RETRY: [HeaderName; 2] = [RETRY_AFTER, HeaderName::from_static("retry-after-ms")];

/// Puts the layers around all routes. While `open` returns true, since no key is needed, browsers may not show answers
/// to pages of other sites.
pub(crate) fn dress(routes: Router, open: impl Fn() -> bool + Clone + Send + Sync + 'static) -> Router {
    routes
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cors(open))
        .layer(from_fn(observe))
        .layer(from_fn(care_for_the_rest))
}

async fn unknown_url(method: Method, uri: Uri) -> Problem {
    Problem::unknown_url(method.as_str(), uri.path())
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::method_not_allowed(method.as_str(), uri.path())
}

#[expect(clippy::needless_pass_by_value, reason = "the layer hands the payload over by value")]
fn panicked(payload: Box<dyn Any + Send + 'static>) -> Response {
    let message = payload.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
    tracing::error!("a handler panicked: {message}");
    Problem::internal().into_response()
}

fn cors(open: impl Fn() -> bool + Clone + Send + Sync + 'static) -> CorsLayer {
    let limits = headers::RATE_LIMITS.into_iter().chain([headers::ORGANIZATION, headers::LOOSENED, headers::SKIPPED]);
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, _| !open() || is_local_origin(origin)))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, PROCESSING, VERSION].into_iter().chain(RETRY).chain(limits).collect::<Vec<_>>())
        .max_age(Duration::from_hours(1))
}

/// The id of a request, an extension of every one that came from outside.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub Arc<str>);

/// Names the request, times it, counts it and writes its line in the log.
async fn observe(mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = format!("req_{}", uuid::Uuid::new_v4().simple());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    request.extensions_mut().insert(RequestId(id.as_str().into()));
    let span = tracing::info_span!("request", %id, %method, route = route.as_str());

    let mut response = next.run(request).instrument(span.clone()).await;

    let elapsed = began.elapsed();
    let status = response.status();
    let (code, ms) = (status.as_u16(), elapsed.as_millis() as u64);
    span.in_scope(|| {
        // Probes and scrapes come every few seconds.
        if status.is_success() && PROBES.contains(&route.as_str()) {
            tracing::debug!(status = code, ms, "answered");
        } else {
            tracing::info!(status = code, ms, "answered");
        }
    });
    let labels = [("route", route), ("method", method_label(&method).into()), ("status", status.as_u16().to_string())];
    metrics::counter!("attune_http_requests_total", &labels).increment(1);
    metrics::histogram!("attune_http_request_duration_seconds", &labels).record(elapsed.as_secs_f64());

    let headers = response.headers_mut();
    name_charset(headers);
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(PROCESSING, HeaderValue::from(elapsed.as_millis() as u64));
    headers.insert(VERSION, HeaderValue::from_static("2020-10-01"));
    response
}

/// Names the charset of a text that names none: clients take it for Latin-1 otherwise. JSON is always UTF-8.
fn name_charset(headers: &mut HeaderMap) {
    let Some(kind) = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else { return };
    let lower = kind.to_ascii_lowercase();
    let is_text = lower.starts_with("text/") || lower.starts_with("application/javascript");
    if is_text
        && !lower.contains("charset=")
        && let Ok(full) = HeaderValue::from_str(&format!("{kind}; charset=utf-8"))
    {
        headers.insert(CONTENT_TYPE, full);
    }
}

/// Returns the label of a method in metrics. Unknown methods share one, since clients may invent any number of them.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    async fn panics() -> &'static str {
        panic!("on purpose")
    }

    async fn answer(open: bool, request: Request) -> (Response<()>, serde_json::Value) {
        let routes = Router::new().route("/fine", get(async || "fine")).route("/panics", get(panics));
        let response = dress(routes, move || open).oneshot(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
        (Response::from_parts(parts, ()), serde_json::from_slice(&bytes).unwrap_or_default())
    }

    fn request(method: &str, path: &str) -> Request {
        Request::builder().method(method).uri(path).body(Body::empty()).expect("a request")
    }

    #[tokio::test]
    async fn every_answer_has_a_request_id_a_time_and_a_version() {
        for path in ["/fine", "/nowhere", "/panics"] {
            let (response, _) = answer(true, request("GET", path)).await;
            let headers = response.headers();
            assert!(headers["x-request-id"].to_str().expect("text").starts_with("req_"), "{path}");
            assert!(headers["openai-processing-ms"].to_str().expect("text").parse::<u64>().is_ok(), "{path}");
            assert!(headers.contains_key("openai-version"), "{path}");
        }
    }

    #[tokio::test]
    async fn every_text_names_its_charset() {
        let full = |kind: &'static str| {
            let mut headers: HeaderMap = [(CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect();
            name_charset(&mut headers);
            headers[CONTENT_TYPE].to_str().expect("text").to_owned()
        };
        assert_eq!(full("text/event-stream"), "text/event-stream; charset=utf-8");
        assert_eq!(full("text/plain; version=0.0.4"), "text/plain; version=0.0.4; charset=utf-8");
        for complete in ["text/plain; Charset=UTF-8", "application/json", "application/octet-stream"] {
            assert_eq!(full(complete), complete);
        }
        let (response, _) = answer(true, request("GET", "/fine")).await;
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
    }

    #[tokio::test]
    async fn unknown_routes_wrong_methods_and_panics_answer_with_error_objects() {
        for (method, path, status, code) in [
            ("GET", "/nowhere", 404, "unknown_url".into()),
            ("POST", "/fine", 405, "method_not_supported".into()),
            ("GET", "/panics", 500, serde_json::Value::Null),
        ] {
            let (response, body) = answer(true, request(method, path)).await;
            assert_eq!(response.status(), status, "{method} {path}");
            assert_eq!(body["error"]["code"], code, "{method} {path}: {body}");
            assert!(body["error"]["message"].is_string(), "{method} {path}: {body}");
        }
    }

    #[tokio::test]
    async fn browsers_may_ask_first_and_an_open_server_answers_pages_of_this_machine_only() {
        for (open, origin, allowed) in [
            (false, "https://example.com", true),
            (true, "https://example.com", false),
            (true, "http://localhost:3000", true),
        ] {
            let mut request = request("OPTIONS", "/fine");
            let headers = request.headers_mut();
            headers.insert("origin", HeaderValue::from_static(origin));
            headers.insert("access-control-request-method", HeaderValue::from_static("GET"));
            headers.insert("access-control-request-headers", HeaderValue::from_static("authorization"));
            let (response, _) = answer(open, request).await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers().contains_key("access-control-allow-origin"), allowed, "{open} {origin}");
        }
    }
}
