//! `/batches`: files of requests that are answered in the background.
//!
//! This file holds the handlers, [`request`] the body that creates a batch, [`response`] the bodies of answers. The work
//! is done by [`run`], which `background` starts: [`input`] reads and checks the file, [`line`] asks the route for one
//! line's answer, [`files`] makes the files of the answers.

mod files;
mod input;
mod line;
mod request;
mod response;
mod run;

use axum::Json;
use axum::extract::State;

use self::request::CreateBatch;
use self::response::BatchObject;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, RateLimit, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::list::{BoundedPageOf, Cursor};
use crate::api::http::query::Query;
use crate::jobs::batches::{Created, MAX_UNFINISHED};

pub(crate) use self::run::run;

/// Default and largest number of items in a page.
const DEFAULT_PAGE: i64 = 20;
const MAX_PAGE: i64 = 100;

/// Create a batch
///
/// The lines of the input file are checked afterwards: the batch fails if one is wrong.
#[utoipa::path(
    post, path = "/batches", operation_id = "createBatch", tag = "Batches", request_body = CreateBatch,
    responses((status = 200, body = BatchObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<CreateBatch>,
) -> Result<Json<BatchObject>, Problem> {
    request.check()?;
    let file = state.store.file(&caller.organization, &request.input_file_id).await;
    let input_file = request.input_file_id.clone();
    if file.is_ok_and(|file| file.purpose != "batch") {
        let message = format!("The file '{input_file}' was not uploaded with the purpose 'batch'.");
        return Err(Problem::invalid_code("input_file_id", "invalid_value", message));
    }
    match state.batches.create(request.into_batch(&caller)?).await? {
        Created::Batch(batch) => Ok(Json((*batch).into())),
        Created::NoFile => {
            let message = format!("The file '{input_file}' does not exist: upload it with the purpose 'batch' first.");
            Err(Problem::invalid_code("input_file_id", "invalid_value", message))
        }
        Created::TooMany(unfinished) => {
            let message = format!(
                "Your organization has {unfinished} batches that have not ended, and may have {MAX_UNFINISHED}: wait \
                 until one has ended, or cancel one."
            );
            Err(Problem::rate_limited(RateLimit::Requests, message, None))
        }
    }
}

/// List batches
#[utoipa::path(
    get, path = "/batches", operation_id = "listBatches", tag = "Batches", params(Cursor),
    responses((status = 200, body = BoundedPageOf<BatchObject>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Query(cursor): Query<Cursor>,
) -> Result<Json<BoundedPageOf<BatchObject>>, Problem> {
    let (batches, has_more) = state.batches.list(&caller.organization, cursor.page(DEFAULT_PAGE, MAX_PAGE)).await?;
    let batches: Vec<BatchObject> = batches.into_iter().map(BatchObject::from).collect();
    Ok(Json(BoundedPageOf::new(batches, has_more, |batch| batch.id.clone())))
}

/// Read a batch
#[utoipa::path(
    get, path = "/batches/{batch_id}", operation_id = "retrieveBatch", tag = "Batches",
    params(("batch_id" = String, Path)),
    responses((status = 200, body = BatchObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<BatchObject>, Problem> {
    Ok(Json(state.batches.batch(&caller.organization, &id).await?.into()))
}

/// Cancel a batch
///
/// The answers that are there stay; the other lines go to the error file.
#[utoipa::path(
    post, path = "/batches/{batch_id}/cancel", operation_id = "cancelBatch", tag = "Batches",
    params(("batch_id" = String, Path)),
    responses((status = 200, body = BatchObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<BatchObject>, Problem> {
    let batch = state.batches.cancel(&caller.organization, &id).await?;
    if matches!(batch.status.as_str(), "cancelling" | "cancelled") {
        return Ok(Json(batch.into()));
    }
    Err(Problem::bad_request(format!("Cannot cancel batch {id}: its status is {}.", batch.status)))
}
