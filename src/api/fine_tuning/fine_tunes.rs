//! `/fine_tunes` (and `/fine-tunes`): the older fine-tuning resource, with its event stream.
//!
//! This file holds the handlers; [`request`] is the body that creates a fine-tune, [`response`] the bodies of answers.

mod event_stream;
mod request;
pub(super) mod response;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use self::request::CreateFineTune;
use self::response::{Files, FineTune, FineTuneEvent, MAX_EVENTS, read_events, with_events};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::fine_tuning::fields::JobBody;
use crate::api::fine_tuning::job_rules::enqueue;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Path;
use crate::api::http::list::{BoundedPageOf, Cursor, PageOf};
use crate::api::http::query::Query;
use crate::api::http::sse;
use crate::api::models::model_resource::{self, DeletedModel};
use crate::jobs;
use crate::jobs::queue::StopRequest;
use crate::jobs::{JobApi, MetadataFilter};

/// Largest number of jobs in a list, and the default: the resource's first form has no pages.
const MAX_JOBS: i64 = 1000;

/// Which events to send, and how.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// As a stream that ends with the fine-tune.
    pub stream: Option<bool>,
    /// Id of the last event of the page before; not with a stream.
    pub after: Option<String>,
    /// Events at the most, 10,000 by default; not with a stream.
    pub limit: Option<i64>,
}

/// Create a fine-tune
#[utoipa::path(
    post, path = "/fine_tunes", operation_id = "createFineTune", tag = "Fine-tunes",
    request_body = CreateFineTune,
    responses((status = 200, body = FineTune), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    JobBody(request): JobBody<CreateFineTune>,
) -> Result<Json<FineTune>, Problem> {
    let job = enqueue(&state, &caller, JobApi::FineTunes, request.spec(&state)?).await?;
    Ok(Json(with_events(&state, job).await?))
}

/// List fine-tunes
#[utoipa::path(
    get, path = "/fine_tunes", operation_id = "listFineTunes", tag = "Fine-tunes", params(Cursor),
    responses((status = 200, body = PageOf<FineTune>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Query(cursor): Query<Cursor>,
) -> Result<Json<PageOf<FineTune>>, Problem> {
    let page = cursor.page(MAX_JOBS, MAX_JOBS);
    let (jobs, has_more) = state.queue.jobs(&caller.organization, JobApi::FineTunes, MetadataFilter::Any, page).await?;
    let files = Files::of(&state, &caller.organization, &jobs).await?;
    Ok(Json(PageOf::new(jobs.into_iter().map(|job| files.describe(job)).collect(), has_more)))
}

/// Read a fine-tune
#[utoipa::path(
    get, path = "/fine_tunes/{fine_tune_id}", operation_id = "retrieveFineTune", tag = "Fine-tunes",
    params(("fine_tune_id" = String, Path)),
    responses((status = 200, body = FineTune), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<FineTune>, Problem> {
    let job = state.queue.job(&caller.organization, JobApi::FineTunes, &id).await?;
    Ok(Json(with_events(&state, job).await?))
}

/// Cancel a fine-tune
#[utoipa::path(
    post, path = "/fine_tunes/{fine_tune_id}/cancel", operation_id = "cancelFineTune", tag = "Fine-tunes",
    params(("fine_tune_id" = String, Path)),
    responses((status = 200, body = FineTune), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<FineTune>, Problem> {
    let job = state.queue.job(&caller.organization, JobApi::FineTunes, &id).await?;
    let job = state.queue.stop(&job, StopRequest::Cancel).await?;
    Ok(Json(with_events(&state, job).await?))
}

/// Read or stream a fine-tune's events
///
/// With `stream=true` the answer is `text/event-stream`: all events so far, then new ones as they happen, then
/// `[DONE]`.
#[utoipa::path(
    get, path = "/fine_tunes/{fine_tune_id}/events", operation_id = "listFineTuneEvents", tag = "Fine-tunes",
    params(("fine_tune_id" = String, Path), EventQuery),
    responses(
        (status = 200, content((BoundedPageOf<FineTuneEvent> = "application/json"), (FineTuneEvent = "text/event-stream"))),
        (status = "4XX", body = ErrorBody),
    ),
)]
pub(crate) async fn events(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<EventQuery>,
) -> Result<Response, Problem> {
    let job = state.queue.job(&caller.organization, JobApi::FineTunes, &id).await?;
    if query.stream == Some(true) {
        return Ok(sse::respond(event_stream::follow(state, job)));
    }
    let page = Cursor { after: query.after, limit: query.limit }.page(MAX_EVENTS, MAX_EVENTS);
    let (events, has_more) = read_events(&state, &job, page.after.as_deref().map_or(0, event_seq), page.limit).await?;
    Ok(Json(BoundedPageOf::new(events, has_more, |event| event.id.clone())).into_response())
}

/// Returns the number in an event's id. Any other text gives a number behind all events, after which nothing follows.
fn event_seq(id: &str) -> i64 {
    id.strip_prefix("ftevent-").and_then(|seq| seq.parse().ok()).unwrap_or(i64::MAX)
}

/// Delete a fine-tune's model
///
/// Takes the id of a fine-tune or the name of its model.
#[utoipa::path(
    delete, path = "/fine_tunes/{fine_tune_id}", operation_id = "deleteFineTuneModel", tag = "Fine-tunes",
    params(("fine_tune_id" = String, Path)),
    responses((status = 200, body = DeletedModel), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeletedModel>, Problem> {
    let name = match state.queue.job(&caller.organization, JobApi::FineTunes, &id).await {
        Ok(job) => job.fine_tuned_model.ok_or_else(|| Problem::model_not_found(&id))?,
        Err(jobs::Error::NotFound { .. }) => id,
        Err(error) => return Err(error.into()),
    };
    Box::pin(model_resource::delete(State(state), caller, Path(name))).await
}
