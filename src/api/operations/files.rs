//! `/files`: upload, list, read and delete the files that fine-tunes read and write.

use std::path::PathBuf;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Path;
use crate::api::http::form::Form;
use crate::api::http::list::{BoundedPageOf, Cursor};
use crate::api::http::pace::Pace;
use crate::api::http::query::Query;
use crate::api::http::upload;
use crate::api::operations::checks::{check_metadata, no_longer_than};
use crate::api::operations::lifetimes;
use crate::datasets::parse::shorten;
use crate::off_thread::off_thread;
use crate::store::files::{File, NewFile};

/// Largest length of a name, in bytes.
const MAX_NAME: usize = 1024;
/// Purposes that a file may be uploaded for.
const PURPOSES: [&str; 6] = ["fine-tune", "assistants", "batch", "vision", "user_data", "evals"];
/// Largest number of items in a page, and the default.
const MAX_PAGE: i64 = 10_000;

/// A stored file.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct FileObject {
    /// `file-…`
    pub id: String,
    /// Always `file`.
    pub object: &'static str,
    /// Size of the content.
    pub bytes: i64,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds, from which on the file is removed unless an unfinished job needs it; null for files that stay until
    /// they are deleted.
    pub expires_at: Option<i64>,
    /// The name that the uploader gave.
    pub filename: String,
    /// `fine-tune`, `fine-tune-results`, …
    pub purpose: String,
    /// Always `processed`.
    pub status: &'static str,
    /// Always null.
    pub status_details: Option<String>,
    /// The uploader's own notes; left out if there are none.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}

/// The form of an upload.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the form, which is read part by part")]
pub(crate) struct UploadForm {
    /// The content; for the purpose `fine-tune` one JSON object on each line. The name of a file for `batch` ends with
    /// `.jsonl`.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// `fine-tune`, `assistants`, `batch`, `vision`, `user_data` or `evals`.
    purpose: String,
    /// When to remove the file: `created_at`, with `expires_after[seconds]`. Without both it stays until it is deleted.
    #[schema(rename = "expires_after[anchor]")]
    expires_after_anchor: Option<String>,
    /// Seconds from its creation, an hour to 30 days.
    #[schema(rename = "expires_after[seconds]", minimum = 3600, maximum = 2_592_000)]
    expires_after_seconds: Option<i64>,
    /// A note of the uploader's own, under a name of its choice; up to 16.
    #[schema(rename = "metadata[name]")]
    metadata: Option<String>,
}

/// A file that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedFile {
    /// `file-…`
    pub id: String,
    /// Always `file`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// Which files to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct FileQuery {
    /// Only files with this purpose.
    pub purpose: Option<String>,
    /// Id of the last file of the page before.
    pub after: Option<String>,
    /// Files at the most, 1 to 10000.
    pub limit: Option<i64>,
    /// `asc` or `desc` (newest first, the default).
    #[param(inline)]
    pub order: Option<Order>,
}

/// By the time of creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}

/// Upload a file
#[utoipa::path(
    post, path = "/files", operation_id = "createFile", tag = "Files",
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 200, body = FileObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    request: Request,
) -> Result<Json<FileObject>, Problem> {
    let limits = &state.config.limits;
    let (head, body) = request.into_parts();
    let pace = Pace::new(limits.upload_bytes_per_second, Duration::from_secs(limits.max_upload_seconds));
    let form = Form::new(&head.headers, body, pace)?;
    let upload = upload::receive(form, &state.store.scratch, limits.max_file_bytes).await?;
    check_name(&upload.filename, "file")?;
    check_purpose(&upload.purpose, &upload.filename, "file")?;
    let lifetime = lifetime(&upload.expires_after)?;
    check_metadata(Some(&upload.metadata))?;
    check_content(&upload.purpose, upload.path.to_path_buf()).await?;
    let organization = caller.organization.to_string();
    let new = NewFile { organization, filename: upload.filename, purpose: upload.purpose };
    let metadata = Some(upload.metadata).filter(|metadata| !metadata.is_empty()).map(Value::Object);
    let file = state.store.add_uploaded_file(new, upload.path.to_path_buf(), lifetime, metadata).await?;
    Ok(Json(file.into()))
}

/// List files
#[utoipa::path(
    get, path = "/files", operation_id = "listFiles", tag = "Files", params(FileQuery),
    responses((status = 200, body = BoundedPageOf<FileObject>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Query(query): Query<FileQuery>,
) -> Result<Json<BoundedPageOf<FileObject>>, Problem> {
    let mut page = Cursor { after: query.after, limit: query.limit }.page(MAX_PAGE, MAX_PAGE);
    page.ascending = query.order == Some(Order::Asc);
    let (files, has_more) = state.store.files(&caller.organization, query.purpose.as_deref(), page).await?;
    let files: Vec<FileObject> = files.into_iter().map(FileObject::from).collect();
    Ok(Json(BoundedPageOf::new(files, has_more, |file| file.id.clone())))
}

/// Read a file's description
#[utoipa::path(
    get, path = "/files/{file_id}", operation_id = "retrieveFile", tag = "Files", params(("file_id" = String, Path)),
    responses((status = 200, body = FileObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<FileObject>, Problem> {
    Ok(Json(state.store.file(&caller.organization, &id).await?.into()))
}

/// Download a file
#[utoipa::path(
    get, path = "/files/{file_id}/content", operation_id = "downloadFile", tag = "Files",
    params(("file_id" = String, Path)),
    responses(
        (status = 200, description = "The content.", content_type = "application/octet-stream", body = Vec<u8>),
        (status = "4XX", body = ErrorBody),
    ),
)]
pub(crate) async fn content(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let file = state.store.file(&caller.organization, &id).await?;
    let content = state.store.file_content(&file).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, file.bytes.to_string()),
        (header::CONTENT_DISPOSITION, disposition(&file.filename)),
    ];
    Ok((headers, Body::from_stream(content)).into_response())
}

/// Delete a file
#[utoipa::path(
    delete, path = "/files/{file_id}", operation_id = "deleteFile", tag = "Files", params(("file_id" = String, Path)),
    responses((status = 200, body = DeletedFile), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeletedFile>, Problem> {
    state.store.delete_file(&caller.organization, &id).await?;
    Ok(Json(DeletedFile { id, object: "file", deleted: true }))
}

/// Checks the name of a file, which the `field` of a body holds.
pub(crate) fn check_name(filename: &str, field: &'static str) -> Result<()> {
    if filename.contains('\0') {
        let message = "The file's name must not contain the NUL character.";
        return Err(Problem::invalid_code(field, "invalid_value", message));
    }
    no_longer_than(field, Some(filename), MAX_NAME)
}

/// Checks that a file may be uploaded for the purpose, under its name, which the `field` holds.
pub(super) fn check_purpose(purpose: &str, filename: &str, field: &'static str) -> Result<()> {
    let is_jsonl =
        std::path::Path::new(filename).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"));
    if purpose == "batch" && !is_jsonl {
        let message = "Invalid file format for Batch API. Must be .jsonl";
        return Err(Problem::invalid_code(field, "invalid_value", message));
    }
    if PURPOSES.contains(&purpose) {
        return Ok(());
    }
    let message = format!("'{purpose}' is not one of the purposes: {}.", PURPOSES.join(", "));
    Err(Problem::invalid_code("purpose", "invalid_value", message))
}

/// Reads the fields `expires_after[anchor]` and `expires_after[seconds]`: after how many seconds the file is removed;
/// `None` if neither is sent.
fn lifetime([anchor, seconds]: &[Option<String>; 2]) -> Result<Option<i64>> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (anchor, seconds) = match (given(anchor), given(seconds)) {
        (None, None) => return Ok(None),
        (None, _) => return Err(Problem::missing("expires_after[anchor]")),
        (_, None) => return Err(Problem::missing("expires_after[seconds]")),
        (Some(anchor), Some(seconds)) => (anchor, seconds),
    };
    let Ok(seconds) = seconds.trim().parse::<i64>() else {
        let reason = format!("expected a whole number, got \"{}\"", shorten(&seconds));
        return Err(Problem::wrong_type("expires_after[seconds]", &reason));
    };
    lifetimes::lifetime(&anchor, seconds, ["expires_after[anchor]", "expires_after[seconds]"]).map(Some)
}

/// Checks what a file of the purpose holds. The lines of a batch are checked when it is created, which tells more.
pub(super) async fn check_content(purpose: &str, path: PathBuf) -> Result<()> {
    if purpose != "fine-tune" {
        return Ok(());
    }
    off_thread("check an upload", move || upload::check_lines(&path)).await
}

/// Writes the header `Content-Disposition`: the file name in plain ASCII for old clients, and in full for others (RFC
/// 6266).
fn disposition(filename: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ') { c } else { '_' };
    let ascii: String = filename.chars().map(plain).collect();
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{}", utf8_percent_encode(filename, NON_ALPHANUMERIC))
}

impl From<File> for FileObject {
    fn from(file: File) -> Self {
        Self {
            id: file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at,
            expires_at: file.expires_at,
            filename: file.filename,
            purpose: file.purpose,
            status: "processed",
            status_details: None,
            metadata: file.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_file_name_cannot_leave_its_header() {
        let header = disposition("a\"\r\nX: y/é.jsonl");
        assert_eq!(
            header,
            "attachment; filename=\"a___X_ y__.jsonl\"; filename*=UTF-8''a%22%0D%0AX%3A%20y%2F%C3%A9%2Ejsonl"
        );
    }

    #[test]
    fn a_file_expires_an_hour_to_thirty_days_after_its_creation() {
        let read = |anchor: &str, seconds: &str| {
            lifetime(&[anchor, seconds].map(|text| (text != "-").then(|| text.to_owned())))
        };
        for (anchor, seconds, expected) in [
            ("-", "-", None),
            ("", "", None),
            ("created_at", "3600", Some(3_600)),
            ("created_at", "2592000", Some(2_592_000)),
        ] {
            assert_eq!(read(anchor, seconds).expect("fine"), expected, "{anchor} {seconds}");
        }
        for (anchor, seconds, param) in [
            ("-", "3600", "expires_after[anchor]"),
            ("created_at", "-", "expires_after[seconds]"),
            ("last_active_at", "3600", "expires_after[anchor]"),
            ("created_at", "3599", "expires_after[seconds]"),
            ("created_at", "2592001", "expires_after[seconds]"),
            ("created_at", "soon", "expires_after[seconds]"),
        ] {
            let error = read(anchor, seconds).expect_err(param).error;
            assert_eq!(error.param.as_deref(), Some(param), "{anchor} {seconds}");
        }
    }

    #[test]
    fn only_known_purposes_pass() {
        let passes = |purpose, filename| check_purpose(purpose, filename, "file");
        assert!(passes("fine-tune", "a").is_ok() && passes("user_data", "a").is_ok());
        assert!(passes("fine-tune-results", "a").is_err() && passes("", "a").is_err());
        assert!(passes("batch", "a.jsonl").is_ok() && passes("batch", "a.json").is_err());
        let is_taken = |name: &str| check_name(name, "file").is_ok();
        assert!(is_taken("a.jsonl") && is_taken(&"a".repeat(MAX_NAME)));
        assert!(!is_taken("a\0.jsonl") && !is_taken(&"a".repeat(MAX_NAME + 1)));
    }
}
