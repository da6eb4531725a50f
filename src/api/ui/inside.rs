//! Calls to the API's own routes on behalf of a visitor: what the page does, the API does, under the same rights and
//! limits. Used by every page that changes something or asks a model.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Method, header};
use axum::response::Response;
use tower::ServiceExt as _;

use crate::api::access::auth::Caller;
use crate::api::http::error::{Problem, Result};
use crate::api::ui::fault::Fault;

/// Longest error object that is read.
const MAX_FAULT: usize = 64 << 10;

/// The API's routes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inside {
    routes: Router,
}

impl Inside {
    /// Wraps routes that take the caller from the request's extensions.
    pub(crate) fn new(routes: Router) -> Self {
        Self { routes }
    }

    /// Sends a request to the route at `path`, such as `/v1/fine_tuning/jobs`, as `caller`; the answer is the one that
    /// the caller would get from outside, an error object included. `kind` is the type of `body`, if it has one.
    pub(crate) async fn call(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        kind: Option<&HeaderValue>,
        body: impl Into<Body>,
    ) -> Result<Response, Problem> {
        let request = Request::builder().method(method).uri(path).body(body.into());
        let mut request =
            request.map_err(|error| Problem::bad_request(format!("The path {path} is not one: {error}")))?;
        if let Some(kind) = kind {
            request.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
        }
        request.extensions_mut().insert(caller.clone());
        let Ok(response) = self.routes.clone().oneshot(request).await;
        Ok(response)
    }

    /// Does as [`Inside::call`], for pages that only go on if it worked: an error object becomes a [`Fault`].
    pub(crate) async fn ask(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        kind: Option<&HeaderValue>,
        body: impl Into<Body>,
    ) -> Result<Response, Fault> {
        let response = self.call(caller, method, path, kind, body).await?;
        let status = response.status();
        if !status.is_client_error() && !status.is_server_error() {
            return Ok(response);
        }
        let bytes = to_bytes(response.into_body(), MAX_FAULT).await.unwrap_or_default();
        let object: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        Err(Fault::told(status, object["error"]["message"].as_str().unwrap_or("The server gave no reason.")))
    }
}
