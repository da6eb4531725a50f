//! `/fine_tuning/jobs`: the current fine-tuning resource.
//!
//! This file holds the handlers; [`request`] is the body that creates a job, [`settings`], [`attached_eval`] and
//! [`distillation`] parts of it, [`response`] the bodies of answers, [`metadata`] the client's own notes, and [`estimate`] the
//! time, memory and cost of a job before it is created.

mod attached_eval;
mod distillation;
pub(crate) mod estimate;
mod metadata;
mod request;
mod response;
mod settings;

use axum::Json;
use axum::extract::State;

use self::metadata::read_filter;
use self::request::CreateJob;
use self::response::{Checkpoint, FineTuningEvent, FineTuningJob};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::evals;
use crate::api::fine_tuning::fields::{JobBody, parse};
use crate::api::fine_tuning::job_rules::enqueue;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Path;
use crate::api::http::list::{BoundedPageOf, Cursor, PageOf};
use crate::api::http::query::{Query, QueryPairs};
use crate::jobs::queue::StopRequest;
use crate::jobs::{Job, JobApi, JobSpec};

/// Default and largest number of items in a page; [`DEFAULT_CHECKPOINTS`] is the default for checkpoints.
const DEFAULT_PAGE: i64 = 20;
const DEFAULT_CHECKPOINTS: i64 = 10;
const MAX_PAGE: i64 = 100;

/// Create a job
#[utoipa::path(
    post, path = "/fine_tuning/jobs", operation_id = "createFineTuningJob", tag = "Fine-tuning",
    request_body = CreateJob,
    responses((status = 200, body = FineTuningJob), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    JobBody(mut request): JobBody<CreateJob>,
) -> Result<Json<FineTuningJob>, Problem> {
    let attached = request.take_eval()?;
    let mut spec = request.spec()?;
    if let Some(attached) = attached {
        spec.eval = Some(evals::attached::check(&state, &caller, attached).await?);
    }
    distillation::admit(&state, &caller, &spec).await?;
    if spec.distillation.is_some() {
        // Chats that were just stored are among its prompts.
        state.completions.flush().await?;
    }
    let job = enqueue(&state, &caller, JobApi::FineTuningJobs, spec).await?;
    Ok(Json(job.into()))
}

/// List jobs
///
/// `metadata[name]=value` keeps the jobs with that note, `metadata=null` those without any.
#[utoipa::path(
    get, path = "/fine_tuning/jobs", operation_id = "listPaginatedFineTuningJobs", tag = "Fine-tuning",
    params(Cursor, ("metadata" = Option<String>, Query, description = "Notes that the jobs must have.")),
    responses((status = 200, body = PageOf<FineTuningJob>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Query(cursor): Query<Cursor>,
    QueryPairs(pairs): QueryPairs,
) -> Result<Json<PageOf<FineTuningJob>>, Problem> {
    let (filter, page) = (read_filter(&pairs)?, cursor.page(DEFAULT_PAGE, MAX_PAGE));
    let (jobs, has_more) = state.queue.jobs(&caller.organization, JobApi::FineTuningJobs, filter, page).await?;
    Ok(Json(PageOf::new(jobs.into_iter().map(FineTuningJob::from).collect(), has_more)))
}

/// Read a job
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}", operation_id = "retrieveFineTuningJob", tag = "Fine-tuning",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = FineTuningJob), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<FineTuningJob>, Problem> {
    Ok(Json(find(&state, &caller, &id).await?.into()))
}

/// Cancel a job
#[utoipa::path(
    post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/cancel", operation_id = "cancelFineTuningJob",
    tag = "Fine-tuning", params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = FineTuningJob), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<FineTuningJob>, Problem> {
    let job = find(&state, &caller, &id).await?;
    Ok(Json(state.queue.stop(&job, StopRequest::Cancel).await?.into()))
}

/// Pause a job
///
/// Training stops after the step that it is in, and goes on from there when resumed.
#[utoipa::path(
    post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/pause", operation_id = "pauseFineTuningJob",
    tag = "Fine-tuning", params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = FineTuningJob), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn pause(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<FineTuningJob>, Problem> {
    let job = find(&state, &caller, &id).await?;
    Ok(Json(state.queue.stop(&job, StopRequest::Pause).await?.into()))
}

/// Resume a job
///
/// It is paused, or it failed through no fault of its request: then its state is kept for 7 days. Training goes on from
/// the state.
#[utoipa::path(
    post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/resume", operation_id = "resumeFineTuningJob",
    tag = "Fine-tuning", params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = FineTuningJob), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn resume(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<FineTuningJob>, Problem> {
    let job = find(&state, &caller, &id).await?;
    Ok(Json(state.queue.resume(&job).await?.into()))
}

/// List a job's events
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/events", operation_id = "listFineTuningEvents",
    tag = "Fine-tuning", params(("fine_tuning_job_id" = String, Path), Cursor),
    responses((status = 200, body = PageOf<FineTuningEvent>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn events(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Query(cursor): Query<Cursor>,
) -> Result<Json<PageOf<FineTuningEvent>>, Problem> {
    let job = find(&state, &caller, &id).await?;
    let page = cursor.page(DEFAULT_PAGE, MAX_PAGE);
    let before = page.after.as_deref().map(event_seq);
    let (events, has_more) = state.queue.events_page(&job, before, page.limit).await?;
    Ok(Json(PageOf::new(events.into_iter().map(|event| FineTuningEvent::new(&job, event)).collect(), has_more)))
}

/// List a job's checkpoints
///
/// One is made at the end of each epoch and can be used as a model at once; the last three are kept, and the best
/// by the validation file.
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints", operation_id = "listFineTuningJobCheckpoints",
    tag = "Fine-tuning", params(("fine_tuning_job_id" = String, Path), Cursor),
    responses((status = 200, body = BoundedPageOf<Checkpoint>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn checkpoints(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Query(cursor): Query<Cursor>,
) -> Result<Json<BoundedPageOf<Checkpoint>>, Problem> {
    let job = find(&state, &caller, &id).await?;
    let (checkpoints, has_more) = state.queue.checkpoints(&job, cursor.page(DEFAULT_CHECKPOINTS, MAX_PAGE)).await?;
    let checkpoints: Vec<_> = checkpoints.into_iter().map(|checkpoint| Checkpoint::new(&job.id, checkpoint)).collect();
    Ok(Json(BoundedPageOf::new(checkpoints, has_more, |checkpoint| checkpoint.id.clone())))
}

/// Reads a JSON body by the rules of [`create`] and returns the job that it asks for. For the command line, which has
/// files and models of its own.
pub fn read_spec(body: &[u8]) -> Result<JobSpec> {
    let request: CreateJob = parse(body)?;
    let spec = request.spec()?;
    if spec.distillation.is_some() {
        let message = "What a distillation costs is told by the server that asks the teacher: POST its body to \
                       /v1/fine_tuning/jobs/estimate.";
        return Err(Problem::invalid("method", message));
    }
    Ok(spec)
}

async fn find(state: &ApiState, caller: &Caller, id: &str) -> Result<Job> {
    Ok(state.queue.job(&caller.organization, JobApi::FineTuningJobs, id).await?)
}

/// Returns the number in an event's id. Any other text gives a number before all events, after which nothing follows.
fn event_seq(id: &str) -> i64 {
    id.strip_prefix("ftevent-").and_then(|seq| seq.parse().ok()).unwrap_or(i64::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_of_events_is_an_events_id() {
        assert_eq!(event_seq("ftevent-12"), 12);
        assert_eq!(event_seq("string"), i64::MIN);
    }
}
