//! Files of a new fine-tune through the API's own routes: what the page uploads, the API takes, or refuses in its words.

use std::path::Path;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use futures::StreamExt as _;
use futures::stream::once;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio_util::io::ReaderStream;

use crate::api::http::error::{Problem, Result};
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::visitor::Visitor;

/// Longest answer of the API that is read.
const MAX_ANSWER: usize = 1 << 20;
/// Bytes of a file that are read at a time.
const PIECE: usize = 1 << 18;

/// What the API said to a request that it did not do.
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    pub code: Option<String>,
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::told(refusal.status, &refusal.message)
    }
}

/// Reads an answer of the API.
pub(super) async fn answer(response: Response) -> Result<Result<Value, Refusal>> {
    let status = response.status();
    let bytes = to_bytes(response.into_body(), MAX_ANSWER).await;
    let bytes = bytes.map_err(|error| Problem::defect(format!("an answer of the API: {error}")))?;
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if status.is_success() {
        return Ok(Ok(value));
    }
    let text = |name: &str| value["error"][name].as_str().map(str::to_owned);
    let message = text("message").unwrap_or_else(|| "The server gave no reason.".into());
    Ok(Err(Refusal { status, message, param: text("param"), code: text("code") }))
}

/// Sends a JSON body to a route of the API.
pub(super) async fn post(pages: &Pages, visitor: &Visitor, path: &str, body: &Value) -> Result<Result<Value, Refusal>> {
    let kind = HeaderValue::from_static("application/json");
    answer(pages.inside.call(&visitor.caller, Method::POST, path, Some(&kind), body.to_string()).await?).await
}

/// Uploads the file at `path`, called `filename`; returns its id.
pub(super) async fn upload(
    pages: &Pages,
    visitor: &Visitor,
    path: &Path,
    filename: &str,
    purpose: &str,
) -> Result<Result<String, Refusal>> {
    let file = tokio::fs::File::open(path).await;
    let file = file.map_err(Problem::io(format!("read the upload {}", path.display())))?;
    // A boundary that stands in no file.
    let boundary = uuid::Uuid::new_v4().simple().to_string();
    let name = utf8_percent_encode(filename, NON_ALPHANUMERIC);
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"; filename*=UTF-8''{name}\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    let end = format!("\r\n--{boundary}--\r\n");
    let piece = |text: String| once(async move { Ok::<_, std::io::Error>(Bytes::from(text)) });
    let body = piece(head).chain(ReaderStream::with_capacity(file, PIECE)).chain(piece(end));
    let kind = HeaderValue::from_str(&format!("multipart/form-data; boundary={boundary}"));
    let kind = kind.map_err(|error| Problem::defect(format!("a boundary: {error}")))?;
    let body = Body::from_stream(body);
    let sent = pages.inside.call(&visitor.caller, Method::POST, "/v1/files", Some(&kind), body).await?;
    Ok(answer(sent).await?.map(|file| file["id"].as_str().unwrap_or_default().to_owned()))
}

/// Deletes a file that was only kept until it was converted. It is the visitor's own to delete if that fails.
pub(super) async fn discard(pages: &Pages, visitor: &Visitor, id: &str) -> Result<Result<Value, Refusal>> {
    answer(pages.inside.call(&visitor.caller, Method::DELETE, &format!("/v1/files/{id}"), None, ()).await?).await
}
