//! `/uploads`: files that arrive in parts, for files that are too large for one request, or connections that break.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::form::Form;
use crate::api::http::pace::Pace;
use crate::api::http::upload;
use crate::api::http::values;
use crate::api::operations::checks::no_longer_than;
use crate::api::operations::files::{FileObject, check_content, check_name, check_purpose};
use crate::api::operations::lifetimes::ExpiresAfter;
use crate::store::files::NewFile;
use crate::store::uploads::Upload;

/// Bytes of a part.
const MAX_PART_BYTES: usize = 64 << 20;
/// Bytes of a media type.
const MAX_TYPE: usize = 255;

/// The file that will arrive.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CreateUpload {
    /// Name of the file.
    pub filename: String,
    /// `fine-tune`, `assistants`, `batch`, `vision`, `user_data` or `evals`.
    pub purpose: String,
    /// Size of the whole file.
    #[schema(minimum = 1)]
    #[serde(deserialize_with = "values::number")]
    pub bytes: i64,
    /// Media type of the file; any is taken.
    pub mime_type: String,
    /// When to remove the file; without this it stays until it is deleted.
    pub expires_after: Option<ExpiresAfter>,
}

/// The form of a part.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the form, which is read part by part")]
pub(crate) struct PartForm {
    /// The content, 64 MiB at the most.
    #[schema(value_type = String, format = Binary)]
    data: Vec<u8>,
}

/// The parts that make the file.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CompleteUpload {
    /// Ids of the parts, in the order of the file.
    pub part_ids: Vec<String>,
    /// MD5 of the whole file, as hexadecimal digits, to be checked.
    #[serde(default, deserialize_with = "values::text")]
    pub md5: Option<String>,
}

/// An upload.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UploadObject {
    /// `upload_…`
    pub id: String,
    /// Always `upload`.
    pub object: &'static str,
    /// Size of the whole file.
    pub bytes: i64,
    /// Unix seconds.
    pub created_at: i64,
    /// Name of the file.
    pub filename: String,
    /// Purpose of the file.
    pub purpose: String,
    /// `pending`, `completed`, `cancelled` or `expired`.
    pub status: String,
    /// Unix seconds; an upload that is still pending then has expired.
    pub expires_at: i64,
    /// The file, once the upload is completed.
    pub file: Option<FileObject>,
}

/// A part of an upload.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UploadPartObject {
    /// `part_…`
    pub id: String,
    /// Always `upload.part`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    /// `upload_…`
    pub upload_id: String,
}

/// Begin an upload
///
/// It takes parts for an hour.
#[utoipa::path(
    post, path = "/uploads", operation_id = "createUpload", tag = "Uploads", request_body = CreateUpload,
    responses((status = 200, body = UploadObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<CreateUpload>,
) -> Result<Json<UploadObject>, Problem> {
    let lifetime = request.expires_after.map(|given| given.lifetime("expires_after")).transpose()?;
    check_name(&request.filename, "filename")?;
    check_purpose(&request.purpose, &request.filename, "filename")?;
    no_longer_than("mime_type", Some(&request.mime_type), MAX_TYPE)?;
    let most = state.config.limits.max_file_bytes as i64;
    if request.bytes < 1 {
        return Err(Problem::invalid_code("bytes", "invalid_value", "'bytes' must be at least 1."));
    }
    if request.bytes > most {
        let message = format!("'bytes' is {}: a file may have {most} bytes (limits.max_file_bytes).", request.bytes);
        return Err(Problem::invalid_code("bytes", "invalid_value", message));
    }
    let CreateUpload { filename, purpose, .. } = request;
    let new = NewFile { organization: caller.organization.to_string(), filename, purpose };
    let upload = state.store.add_upload(new, request.bytes, lifetime).await?;
    Ok(Json(UploadObject::new(upload, None)))
}

/// Add a part
///
/// Parts may arrive at the same time and in any order.
#[utoipa::path(
    post, path = "/uploads/{upload_id}/parts", operation_id = "addUploadPart", tag = "Uploads",
    params(("upload_id" = String, Path)),
    request_body(content = PartForm, content_type = "multipart/form-data"),
    responses((status = 200, body = UploadPartObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn add_part(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<UploadPartObject>, Problem> {
    let upload = pending(&state, &caller, &id, "add a part to").await?;
    let limits = &state.config.limits;
    let (head, body) = request.into_parts();
    let pace = Pace::new(limits.upload_bytes_per_second, Duration::from_secs(limits.max_upload_seconds));
    let form = Form::new(&head.headers, body, pace)?;
    let (path, bytes) = upload::receive_part(form, &state.store.scratch, MAX_PART_BYTES).await?;
    if bytes == 0 {
        return Err(Problem::invalid_code("data", "invalid_value", "The part is empty."));
    }
    if let Some(part) = state.store.add_upload_part(&upload, path.to_path_buf(), bytes as i64).await? {
        return Ok(Json(UploadPartObject {
            id: part.id,
            object: "upload.part",
            created_at: part.created_at,
            upload_id: upload.id,
        }));
    }
    pending(&state, &caller, &id, "add a part to").await?;
    let message = format!(
        "The parts of {id} are too large or too many: all together may have twice the {} bytes of the file.",
        upload.bytes
    );
    Err(Problem::invalid_code("data", "invalid_value", message))
}

/// Complete an upload
///
/// Its parts become a file, whose size must be the one that was announced.
#[utoipa::path(
    post, path = "/uploads/{upload_id}/complete", operation_id = "completeUpload", tag = "Uploads",
    params(("upload_id" = String, Path)), request_body = CompleteUpload,
    responses((status = 200, body = UploadObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn complete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<CompleteUpload>,
) -> Result<Json<UploadObject>, Problem> {
    let upload = pending(&state, &caller, &id, "complete").await?;
    let sizes =
        state.store.upload_parts(&upload, &request.part_ids).await?.map_err(|part| {
            Problem::invalid_code("part_ids", "invalid_value", format!("{id} has no part '{part}'."))
        })?;
    // Before the parts are read: ids may stand there any number of times.
    let bytes = sizes.into_iter().fold(0_i64, i64::saturating_add);
    if bytes != upload.bytes {
        let message = format!("The parts have {bytes} bytes, but 'bytes' of {id} is {}.", upload.bytes);
        return Err(Problem::invalid_code("part_ids", "invalid_value", message));
    }
    let assembled = state.store.assemble(&upload, &request.part_ids).await?;
    if let Some(md5) = request.md5.filter(|md5| !md5.eq_ignore_ascii_case(&assembled.md5)) {
        let message = format!("The parts have the MD5 {}, not '{}'.", assembled.md5, md5.escape_debug());
        return Err(Problem::invalid_code("md5", "invalid_value", message));
    }
    check_content(&upload.purpose, assembled.path.to_path_buf()).await?;
    match state.store.complete_upload(&upload, assembled).await? {
        Some((upload, file)) => Ok(Json(UploadObject::new(upload, Some(file.into())))),
        None => Err(ended(&state.store.upload(&caller.organization, &id).await?, "complete")),
    }
}

/// Cancel an upload
///
/// Its parts are removed.
#[utoipa::path(
    post, path = "/uploads/{upload_id}/cancel", operation_id = "cancelUpload", tag = "Uploads",
    params(("upload_id" = String, Path)),
    responses((status = 200, body = UploadObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<UploadObject>, Problem> {
    let upload = state.store.upload(&caller.organization, &id).await?;
    if upload.status == "cancelled" {
        return Ok(Json(UploadObject::new(upload, None)));
    }
    match state.store.cancel_upload(&upload).await? {
        Some(upload) => Ok(Json(UploadObject::new(upload, None))),
        None => Err(ended(&state.store.upload(&caller.organization, &id).await?, "cancel")),
    }
}

/// Returns the caller's upload if it still takes parts; else the error says what cannot be done with it.
async fn pending(state: &ApiState, caller: &Caller, id: &str, action: &str) -> Result<Upload> {
    let upload = state.store.upload(&caller.organization, id).await?;
    if upload.status == "pending" { Ok(upload) } else { Err(ended(&upload, action)) }
}

fn ended(upload: &Upload, action: &str) -> Problem {
    let Upload { id, status, .. } = upload;
    Problem::invalid_code("upload_id", "invalid_value", format!("Cannot {action} {id}: its status is {status}."))
}

impl UploadObject {
    fn new(upload: Upload, file: Option<FileObject>) -> Self {
        Self {
            id: upload.id,
            object: "upload",
            bytes: upload.bytes,
            created_at: upload.created_at,
            filename: upload.filename,
            purpose: upload.purpose,
            status: upload.status,
            expires_at: upload.expires_at,
            file,
        }
    }
}
