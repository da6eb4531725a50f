//! `/fine_tunes` (and `/fine-tunes`): the older fine-tuning resource, with its event stream.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::auth::Caller;
use crate::api::error::{ErrorBody, Problem};
use crate::api::extract::{Body, Path, Query};
use crate::api::files::FileObject;
use crate::api::generate::not_supported;
use crate::api::job_rules::{AutoOr, check_file, check_model, normal_suffix, positive, seed, within};
use crate::api::list::{Cursor, List, PageOf};
use crate::api::models::{self, DeletedModel};
use crate::api::{ApiState, event_stream, sse};
use crate::jobs::events::JobEvent;
use crate::jobs::queue::StopRequest;
use crate::jobs::{Hyperparameters, Job, JobApi, JobSpec, JobStatus};
use crate::{Error, Result};

/// The resource's settings where the client gives none.
const DEFAULT_EPOCHS: u32 = 4;
const DEFAULT_PROMPT_LOSS_WEIGHT: f64 = 0.01;
/// Jobs of a list at the most: the resource's first form has no pages.
const MAX_JOBS: i64 = 1000;
/// Events of a job in one body at the most.
const MAX_EVENTS: i64 = 10_000;

/// A request for a fine-tune.
#[derive(Debug, Deserialize, ToSchema)]
pub struct CreateFineTune {
    /// Id of a file with the purpose `fine-tune`.
    pub training_file: String,
    /// Id of a file to measure on.
    pub validation_file: Option<String>,
    /// A base model or an earlier fine-tuned one; by default the first base model.
    pub model: Option<String>,
    /// Passes over the training file.
    #[schema(minimum = 1, maximum = 50, default = 4)]
    pub n_epochs: Option<u32>,
    /// Examples per step; by default chosen from the size of the file.
    #[schema(maximum = 256)]
    pub batch_size: Option<u32>,
    /// Factor on the learning rate.
    pub learning_rate_multiplier: Option<f64>,
    /// Weight of the prompt's tokens in the loss.
    #[schema(minimum = 0, maximum = 1, default = 0.01)]
    pub prompt_loss_weight: Option<f64>,
    /// Part of the new model's name.
    #[schema(min_length = 1, max_length = 40)]
    pub suffix: Option<String>,
    /// Not supported yet.
    pub compute_classification_metrics: Option<bool>,
    /// Another place for `n_epochs`.
    pub hyperparameters: Option<NestedSettings>,
}

/// Settings that some clients send in an object of their own.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct NestedSettings {
    /// Passes over the training file.
    pub n_epochs: Option<AutoOr<u32>>,
}

/// A fine-tune.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTune {
    /// `ft-…`
    pub id: String,
    /// Always `fine-tune`.
    pub object: &'static str,
    /// The model that is trained.
    pub model: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds of the last change of status.
    pub updated_at: i64,
    /// The new model, once there is one.
    pub fine_tuned_model: Option<String>,
    /// The owner.
    pub organization_id: String,
    /// `pending`, `running`, `succeeded`, `failed` or `cancelled`.
    pub status: &'static str,
    /// The settings, always numbers.
    pub hyperparams: FineTuneSettings,
    /// The files to train on.
    pub training_files: Vec<FileObject>,
    /// The files to measure on.
    pub validation_files: Vec<FileObject>,
    /// What training wrote.
    pub result_files: Vec<FileObject>,
    /// What happened, oldest first; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<FineTuneEvent>>,
}

/// The settings of a fine-tune.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuneSettings {
    /// Passes over the training file.
    pub n_epochs: u32,
    /// Examples per step; 1 until training has chosen it.
    pub batch_size: u32,
    /// Factor on the learning rate.
    pub learning_rate_multiplier: f64,
    /// Weight of the prompt's tokens in the loss.
    pub prompt_loss_weight: f64,
}

/// Something that happened to a fine-tune.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FineTuneEvent {
    /// Always `fine-tune-event`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// What happened.
    pub message: String,
}

/// How to send events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// As a stream that ends with the fine-tune.
    pub stream: Option<bool>,
}

/// Create a fine-tune
#[utoipa::path(
    post, path = "/fine_tunes", operation_id = "createFineTune", tag = "Fine-tunes",
    request_body = CreateFineTune,
    responses((status = 200, body = FineTune), (status = "4XX", body = ErrorBody)),
)]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<CreateFineTune>,
) -> Result<Json<FineTune>, Problem> {
    let spec = request.spec(&state)?;
    check_model(&state, &caller, &spec.model).await.map_err(|error| Problem::from(error).param("model"))?;
    check_file(&state, &caller, "training_file", &spec.training_file).await?;
    if let Some(file) = &spec.validation_file {
        check_file(&state, &caller, "validation_file", file).await?;
    }
    let job = state.queue.enqueue(&caller.organization, JobApi::FineTunes, spec).await?;
    Ok(Json(with_events(&state, job).await?))
}

/// List fine-tunes
#[utoipa::path(
    get, path = "/fine_tunes", operation_id = "listFineTunes", tag = "Fine-tunes", params(Cursor),
    responses((status = 200, body = PageOf<FineTune>), (status = "4XX", body = ErrorBody)),
)]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Query(cursor): Query<Cursor>,
) -> Result<Json<PageOf<FineTune>>, Problem> {
    let page = cursor.page(MAX_JOBS, MAX_JOBS);
    let (jobs, has_more) = state.queue.jobs(&caller.organization, JobApi::FineTunes, page).await?;
    let mut files = Files::default();
    let mut data = Vec::with_capacity(jobs.len());
    for job in jobs {
        data.push(files.describe(&state, job).await?);
    }
    Ok(Json(PageOf::new(data, has_more)))
}

/// Read a fine-tune
#[utoipa::path(
    get, path = "/fine_tunes/{fine_tune_id}", operation_id = "retrieveFineTune", tag = "Fine-tunes",
    params(("fine_tune_id" = String, Path)),
    responses((status = 200, body = FineTune), (status = "4XX", body = ErrorBody)),
)]
pub async fn retrieve(
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
pub async fn cancel(
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
/// With `stream=true` the answer is `text/event-stream`: all events so far, then new ones as they happen, then `[DONE]`.
#[utoipa::path(
    get, path = "/fine_tunes/{fine_tune_id}/events", operation_id = "listFineTuneEvents", tag = "Fine-tunes",
    params(("fine_tune_id" = String, Path), EventQuery),
    responses((status = 200, body = List<FineTuneEvent>), (status = "4XX", body = ErrorBody)),
)]
pub async fn events(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<EventQuery>,
) -> Result<Response, Problem> {
    let job = state.queue.job(&caller.organization, JobApi::FineTunes, &id).await?;
    if query.stream == Some(true) {
        return Ok(sse::respond(event_stream::follow(state, job)));
    }
    Ok(Json(List::new(read_events(&state, &job).await?)).into_response())
}

/// Delete a fine-tune's model
///
/// Takes the id of a fine-tune or the name of its model.
#[utoipa::path(
    delete, path = "/fine_tunes/{fine_tune_id}", operation_id = "deleteFineTuneModel", tag = "Fine-tunes",
    params(("fine_tune_id" = String, Path)),
    responses((status = 200, body = DeletedModel), (status = "4XX", body = ErrorBody)),
)]
pub async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeletedModel>, Problem> {
    let name = match state.queue.job(&caller.organization, JobApi::FineTunes, &id).await {
        Ok(job) => job.fine_tuned_model.ok_or(Error::ModelNotFound(id))?,
        Err(Error::NotFound { .. }) => id,
        Err(error) => return Err(error.into()),
    };
    models::delete(State(state), caller, Path(name)).await
}

impl CreateFineTune {
    fn spec(self, state: &ApiState) -> Result<JobSpec> {
        if self.compute_classification_metrics == Some(true) {
            return Err(not_supported("compute_classification_metrics"));
        }
        let hyperparameters = self.settings()?;
        let suffix = normal_suffix(self.suffix.as_deref(), 40)?;
        let first = || state.catalog.entries().first().map(|entry| entry.model.id.clone());
        let model =
            self.model.or_else(first).ok_or_else(|| Error::invalid("model", "'model' must name a base model."))?;
        Ok(JobSpec {
            model,
            training_file: self.training_file,
            validation_file: self.validation_file,
            suffix,
            seed: seed(None)?,
            hyperparameters,
            metadata: None,
        })
    }

    /// Old clients send 0 for what the server shall choose.
    fn settings(&self) -> Result<Hyperparameters> {
        let chosen = |number: Option<u32>| number.filter(|number| *number > 0);
        let nested = self.hyperparameters.as_ref().and_then(|nested| nested.n_epochs?.number());
        let n_epochs = within("n_epochs", chosen(self.n_epochs).or(nested), 1, 50)?;
        let multiplier = self.learning_rate_multiplier.filter(|multiplier| *multiplier != 0.0);
        let weight = within("prompt_loss_weight", self.prompt_loss_weight, 0.0, 1.0)?;
        Ok(Hyperparameters {
            n_epochs: n_epochs.or(Some(DEFAULT_EPOCHS)),
            batch_size: within("batch_size", chosen(self.batch_size), 1, 256)?,
            learning_rate_multiplier: positive("learning_rate_multiplier", multiplier)?,
            prompt_loss_weight: weight.or(Some(DEFAULT_PROMPT_LOSS_WEIGHT)),
            ..Hyperparameters::default()
        })
    }
}

/// File descriptions that were read already: the jobs of a list often share their files.
#[derive(Default)]
struct Files(HashMap<String, Option<FileObject>>);

impl Files {
    /// The description of a file, unless it has been deleted.
    async fn get(&mut self, state: &ApiState, organization: &str, id: &str) -> Result<Option<FileObject>> {
        if let Some(known) = self.0.get(id) {
            return Ok(known.clone());
        }
        let file = match state.store.file(organization, id).await {
            Ok(file) => Some(FileObject::from(file)),
            Err(Error::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        self.0.insert(id.to_owned(), file.clone());
        Ok(file)
    }

    async fn all(&mut self, state: &ApiState, organization: &str, ids: &[String]) -> Result<Vec<FileObject>> {
        let mut files = Vec::with_capacity(ids.len());
        for id in ids {
            files.extend(self.get(state, organization, id).await?);
        }
        Ok(files)
    }

    async fn describe(&mut self, state: &ApiState, job: Job) -> Result<FineTune> {
        let owner = job.organization.as_str();
        let training_files = self.all(state, owner, std::slice::from_ref(&job.spec.training_file)).await?;
        let validation_files = self.all(state, owner, job.spec.validation_file.as_slice()).await?;
        let result_files = self.all(state, owner, &job.result_files).await?;
        Ok(FineTune {
            hyperparams: FineTuneSettings::of(&job),
            id: job.id,
            object: "fine-tune",
            model: job.spec.model,
            created_at: job.created_at,
            updated_at: job.updated_at,
            fine_tuned_model: job.fine_tuned_model,
            organization_id: job.organization,
            status: status_name(job.status),
            training_files,
            validation_files,
            result_files,
            events: None,
        })
    }
}

impl FineTuneSettings {
    fn of(job: &Job) -> Self {
        let settings = job.resolved.as_ref().unwrap_or(&job.spec.hyperparameters);
        Self {
            n_epochs: settings.n_epochs.unwrap_or(DEFAULT_EPOCHS),
            batch_size: settings.batch_size.unwrap_or(1),
            learning_rate_multiplier: settings.learning_rate_multiplier.unwrap_or(0.1),
            prompt_loss_weight: settings.prompt_loss_weight.unwrap_or(DEFAULT_PROMPT_LOSS_WEIGHT),
        }
    }
}

async fn with_events(state: &ApiState, job: Job) -> Result<FineTune> {
    let events = read_events(state, &job).await?;
    let mut fine_tune = Files::default().describe(state, job).await?;
    fine_tune.events = Some(events);
    Ok(fine_tune)
}

async fn read_events(state: &ApiState, job: &Job) -> Result<Vec<FineTuneEvent>> {
    let events = state.queue.events_after(job, 0, MAX_EVENTS).await?;
    Ok(events.into_iter().map(FineTuneEvent::from).collect())
}

const fn status_name(status: JobStatus) -> &'static str {
    match status {
        // The older resource has no word for a job that rests.
        JobStatus::Queued | JobStatus::Paused => "pending",
        JobStatus::Running => "running",
        JobStatus::Succeeded => "succeeded",
        JobStatus::Failed => "failed",
        JobStatus::Cancelled => "cancelled",
    }
}

impl From<JobEvent> for FineTuneEvent {
    fn from(event: JobEvent) -> Self {
        let JobEvent { created_at, level, message, .. } = event;
        Self { object: "fine-tune-event", created_at, level, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::parse;

    fn settings(extra: &str) -> Result<Hyperparameters> {
        let request: CreateFineTune =
            parse(format!(r#"{{"training_file":"file-1"{extra}}}"#).as_bytes()).expect("a request");
        request.settings()
    }

    #[test]
    fn settings_have_the_resources_own_defaults() {
        let defaults = settings("").expect("defaults");
        assert_eq!((defaults.n_epochs, defaults.prompt_loss_weight), (Some(4), Some(0.01)));
        assert_eq!((defaults.batch_size, defaults.learning_rate_multiplier), (None, None));
        let zeros = settings(r#","n_epochs":0,"batch_size":0,"learning_rate_multiplier":0,"suffix":null"#);
        assert_eq!(zeros.expect("zero lets the server choose"), defaults);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for extra in [
            r#","n_epochs":51"#,
            r#","batch_size":257"#,
            r#","learning_rate_multiplier":-1"#,
            r#","prompt_loss_weight":2"#,
        ] {
            assert!(settings(extra).is_err(), "{extra}");
        }
    }

    #[test]
    fn epochs_may_stand_in_an_object_of_their_own() {
        assert_eq!(settings(r#","hyperparameters":{"n_epochs":7}"#).expect("fine").n_epochs, Some(7));
        assert_eq!(settings(r#","hyperparameters":{"n_epochs":"auto"}"#).expect("fine").n_epochs, Some(4));
    }
}
