//! Errors as pages. Handlers of pages return [`Fault`]; `?` turns every error of the layers below into one, in the words
//! that the API has for it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::html;

use crate::api::http::error::{ErrorBody, Problem};
use crate::api::ui::layout::{Frame, page};

/// A failed page.
#[derive(Debug)]
pub(crate) struct Fault(Problem);

impl Fault {
    /// There is no page at `path`.
    pub(crate) fn no_page(path: &str) -> Self {
        Self(Problem::unknown_url("GET", path))
    }

    /// The page at `path` is read, or only written, and the request did the other.
    pub(crate) fn wrong_method(path: &str) -> Self {
        let message = format!("The page {path} cannot be asked for in this way.");
        Self::told(StatusCode::METHOD_NOT_ALLOWED, &message)
    }

    /// A route of the API has refused what a page asked of it.
    pub(crate) fn told(status: StatusCode, message: &str) -> Self {
        let mut problem = Problem::bad_request(message);
        problem.status = status;
        Self(problem)
    }

    /// Returns the same failure as an error object, for scripts of the page.
    pub(crate) fn into_json(self) -> Response {
        let Self(problem) = self;
        (problem.status, Json(ErrorBody { error: problem.error })).into_response()
    }
}

impl<E> From<E> for Fault
where
    Problem: From<E>,
{
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let Self(problem) = self;
        let status = problem.status;
        let title = title(status);
        let message = problem.error.message.clone();
        let body = html! {
            h1 { (title) }
            p.message { bdi { (message) } }
            p { a href="/ui" { "To the first page" } }
        };
        // The error object's headers, such as when to come back, without its body.
        let (mut parts, _) = problem.into_response().into_parts();
        parts.headers.remove(axum::http::header::CONTENT_TYPE);
        parts.headers.remove(axum::http::header::CONTENT_LENGTH);
        (status, parts.headers, page(&Frame { title, ..Frame::default() }, body)).into_response()
    }
}

fn title(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "Please sign in",
        403 => "Not allowed",
        404 => "Not found",
        429 => "Too many requests",
        500.. => "Something went wrong on the server",
        _ => "This did not work",
    }
}
