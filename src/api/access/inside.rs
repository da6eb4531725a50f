//! Calls to the API's own routes on behalf of a caller: what the page does, the API does, under the same rights and
//! limits. Used by every page that changes something or asks a model, by handlers that ask models on the way to their
//! answer, and by what works when no request waits for it.

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, header};
use axum::response::Response;
use tower::ServiceExt as _;

use crate::api::access::auth::Caller;
use crate::api::http::error::Problem;

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
        request.extensions_mut().insert(self.clone());
        let Ok(response) = self.routes.clone().oneshot(request).await;
        Ok(response)
    }
}

/// The layer of [`router`](crate::api::router) and [`Inside::call`] put it there.
impl<S: Send + Sync> FromRequestParts<S> for Inside {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let inside = parts.extensions.get::<Self>().cloned();
        inside.ok_or_else(|| Problem::defect("a route that calls others stands outside of the layer that lets it"))
    }
}
