//! `/fine_tuning/jobs`: the current fine-tuning resource.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::error::{ErrorBody, Problem};
use crate::api::extract::{Body, Path, Query};
use crate::api::job_rules::{AutoOr, check_file, check_model, normal_suffix, positive, seed, within};
use crate::api::list::{BoundedPageOf, Cursor, PageOf};
use crate::jobs::events::JobEvent;
use crate::jobs::queue::StopRequest;
use crate::jobs::{Hyperparameters, Job, JobApi, JobFault, JobSpec, JobStatus};
use crate::store::files::Page;
use crate::{Error, Result};

/// Items of a page by default, and at the most.
const DEFAULT_PAGE: i64 = 20;
const MAX_PAGE: i64 = 100;
/// Jobs that a list with a metadata filter looks at; the rest follow on the next page.
const MAX_SCANNED: usize = 2000;

/// A request for a fine-tuning job.
#[derive(Debug, Deserialize, ToSchema)]
pub struct CreateJob {
    /// A base model or an earlier fine-tuned one.
    pub model: String,
    /// Id of a file with the purpose `fine-tune`.
    pub training_file: String,
    /// Id of a file to measure on.
    pub validation_file: Option<String>,
    /// Part of the new model's name.
    #[schema(min_length = 1, max_length = 64)]
    pub suffix: Option<String>,
    /// The same seed and file give the same model.
    #[schema(minimum = 0, maximum = 2_147_483_647)]
    pub seed: Option<i64>,
    /// How to train.
    pub method: Option<Method>,
    /// The older place of `method.supervised.hyperparameters`.
    pub hyperparameters: Option<Settings>,
    /// At most 16 of the client's own notes, texts by name.
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    pub metadata: Option<Map<String, Value>>,
}

/// How to train.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Method {
    /// Only `supervised` is supported.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its settings.
    pub supervised: Option<Supervised>,
}

/// Training on examples.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct Supervised {
    /// The settings.
    pub hyperparameters: Option<Settings>,
}

/// Settings of training, each a number or `"auto"`. The last four are extensions of this server.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct Settings {
    /// Passes over the training file, 1 to 50.
    pub n_epochs: Option<AutoOr<u32>>,
    /// Examples per step, 1 to 256.
    pub batch_size: Option<AutoOr<u32>>,
    /// Factor on the learning rate, above 0.
    pub learning_rate_multiplier: Option<AutoOr<f64>>,
    /// Weight of the prompt's tokens in the loss, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_loss_weight: Option<AutoOr<f64>>,
    /// Rank of the adapter, 1 to 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<AutoOr<u32>>,
    /// Alpha of the adapter, above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<AutoOr<f64>>,
    /// The learning rate before the factor, above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<AutoOr<f64>>,
}

/// A fine-tuning job.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuningJob {
    /// Always `fine_tuning.job`.
    pub object: &'static str,
    /// `ftjob-…`
    pub id: String,
    /// The model that is trained.
    pub model: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub finished_at: Option<i64>,
    /// The new model, once there is one.
    pub fine_tuned_model: Option<String>,
    /// The owner.
    pub organization_id: String,
    /// Ids of the files that training wrote.
    pub result_files: Vec<String>,
    /// Where the job stands.
    #[schema(value_type = String)]
    pub status: JobStatus,
    /// Id of the file to train on.
    pub training_file: String,
    /// Id of the file to measure on.
    pub validation_file: Option<String>,
    /// The settings; numbers once training has chosen them.
    pub hyperparameters: Settings,
    /// Tokens trained on, repeats counted.
    pub trained_tokens: Option<i64>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// Part of the new model's name.
    pub user_provided_suffix: Option<String>,
    /// The seed, chosen or asked for.
    pub seed: u64,
    /// Unix seconds when it should end.
    pub estimated_finish: Option<i64>,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub integrations: [(); 0],
    /// How it trains.
    pub method: JobMethod,
    /// The client's own notes.
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    pub metadata: Option<Map<String, Value>>,
}

/// How a job trains.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobMethod {
    /// Always `supervised`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its settings.
    pub supervised: Supervised,
}

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobError {
    /// A stable word for programs.
    pub code: String,
    /// What to change.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
}

/// Something that happened to a job.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuningEvent {
    /// Always `fine_tuning.job.event`.
    pub object: &'static str,
    /// `ftevent-…`
    pub id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// What happened.
    pub message: String,
    /// `message` or `metrics`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The numbers of a `metrics` event.
    #[schema(value_type = Option<Object>)]
    pub data: Option<Value>,
}

/// A saved state of a job that can be used as a model.
#[derive(Debug, Serialize, ToSchema)]
pub struct Checkpoint {
    /// `ftckpt_…`
    pub id: String,
}

/// Create a job
#[utoipa::path(
    post, path = "/fine_tuning/jobs", operation_id = "createFineTuningJob", tag = "Fine-tuning",
    request_body = CreateJob,
    responses((status = 200, body = FineTuningJob), (status = "4XX", body = ErrorBody)),
)]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<CreateJob>,
) -> Result<Json<FineTuningJob>, Problem> {
    let spec = request.spec()?;
    check_model(&state, &caller, &spec.model).await.map_err(|error| Problem::from(error).param("model"))?;
    check_file(&state, &caller, "training_file", &spec.training_file).await?;
    if let Some(file) = &spec.validation_file {
        check_file(&state, &caller, "validation_file", file).await?;
    }
    let job = state.queue.enqueue(&caller.organization, JobApi::FineTuningJobs, spec).await?;
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
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Query(cursor): Query<Cursor>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Json<PageOf<FineTuningJob>>, Problem> {
    let filter = MetadataFilter::read(&pairs);
    let page = cursor.page(DEFAULT_PAGE, MAX_PAGE);
    let (jobs, has_more) = filter.jobs(&state, &caller, page).await?;
    Ok(Json(PageOf::new(jobs.into_iter().map(FineTuningJob::from).collect(), has_more)))
}

/// Read a job
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}", operation_id = "retrieveFineTuningJob", tag = "Fine-tuning",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = FineTuningJob), (status = "4XX", body = ErrorBody)),
)]
pub async fn retrieve(
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
pub async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<FineTuningJob>, Problem> {
    let job = find(&state, &caller, &id).await?;
    Ok(Json(state.queue.stop(&job, StopRequest::Cancel).await?.into()))
}

/// Pause a job
///
/// Training stops at its next checkpoint and goes on from there when resumed.
#[utoipa::path(
    post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/pause", operation_id = "pauseFineTuningJob",
    tag = "Fine-tuning", params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = FineTuningJob), (status = "4XX", body = ErrorBody)),
)]
pub async fn pause(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<FineTuningJob>, Problem> {
    let job = find(&state, &caller, &id).await?;
    Ok(Json(state.queue.stop(&job, StopRequest::Pause).await?.into()))
}

/// Resume a paused job
#[utoipa::path(
    post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/resume", operation_id = "resumeFineTuningJob",
    tag = "Fine-tuning", params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = FineTuningJob), (status = "4XX", body = ErrorBody)),
)]
pub async fn resume(
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
pub async fn events(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Query(cursor): Query<Cursor>,
) -> Result<Json<PageOf<FineTuningEvent>>, Problem> {
    let job = find(&state, &caller, &id).await?;
    let page = cursor.page(DEFAULT_PAGE, MAX_PAGE);
    let before = page.after.as_deref().map(event_seq).transpose()?;
    let (events, has_more) = state.queue.events_page(&job, before, page.limit).await?;
    Ok(Json(PageOf::new(events.into_iter().map(FineTuningEvent::from).collect(), has_more)))
}

/// List a job's checkpoints
///
/// Always empty: checkpoints serve to resume a job and are not models yet.
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints", operation_id = "listFineTuningJobCheckpoints",
    tag = "Fine-tuning", params(("fine_tuning_job_id" = String, Path), Cursor),
    responses((status = 200, body = BoundedPageOf<Checkpoint>), (status = "4XX", body = ErrorBody)),
)]
pub async fn checkpoints(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<BoundedPageOf<Checkpoint>>, Problem> {
    find(&state, &caller, &id).await?;
    Ok(Json(BoundedPageOf::new(Vec::new(), false, |checkpoint: &Checkpoint| checkpoint.id.clone())))
}

async fn find(state: &ApiState, caller: &Caller, id: &str) -> Result<Job> {
    state.queue.job(&caller.organization, JobApi::FineTuningJobs, id).await
}

fn event_seq(id: &str) -> Result<i64> {
    let seq = id.strip_prefix("ftevent-").and_then(|seq| seq.parse().ok());
    seq.ok_or_else(|| {
        Error::invalid("after", format!("'{id}' is not the id of an event: send the last one of the page."))
    })
}

impl CreateJob {
    fn spec(self) -> Result<JobSpec> {
        let method = self.method;
        if let Some(other) = method.as_ref().map(|method| method.kind.as_str()).filter(|kind| *kind != "supervised") {
            let message = format!("The method '{other}' is not supported yet: use 'supervised'.");
            return Err(Error::invalid_code("method", "unsupported_value", message));
        }
        let supervised = method.and_then(|method| method.supervised?.hyperparameters);
        let settings = supervised.or(self.hyperparameters).unwrap_or_default();
        check_metadata(self.metadata.as_ref())?;
        Ok(JobSpec {
            model: self.model,
            training_file: self.training_file,
            validation_file: self.validation_file,
            suffix: normal_suffix(self.suffix.as_deref(), 64)?,
            seed: seed(self.seed)?,
            hyperparameters: settings.check()?,
            metadata: self.metadata,
        })
    }
}

impl Settings {
    fn check(self) -> Result<Hyperparameters> {
        fn number<T>(setting: Option<AutoOr<T>>) -> Option<T> {
            setting.and_then(AutoOr::number)
        }
        Ok(Hyperparameters {
            n_epochs: within("n_epochs", number(self.n_epochs), 1, 50)?,
            batch_size: within("batch_size", number(self.batch_size), 1, 256)?,
            learning_rate_multiplier: positive("learning_rate_multiplier", number(self.learning_rate_multiplier))?,
            prompt_loss_weight: within("prompt_loss_weight", number(self.prompt_loss_weight), 0.0, 1.0)?,
            rank: within("rank", number(self.rank), 1, 256)?,
            alpha: positive("alpha", number(self.alpha))?,
            learning_rate: positive("learning_rate", number(self.learning_rate))?,
        })
    }

    /// What a job uses, or what was asked for until that is known.
    fn of(job: &Job) -> Self {
        let Hyperparameters {
            n_epochs,
            batch_size,
            learning_rate_multiplier,
            prompt_loss_weight,
            rank,
            alpha,
            learning_rate,
        } = job.resolved.as_ref().unwrap_or(&job.spec.hyperparameters).clone();
        Self {
            n_epochs: Some(n_epochs.into()),
            batch_size: Some(batch_size.into()),
            learning_rate_multiplier: Some(learning_rate_multiplier.into()),
            prompt_loss_weight: prompt_loss_weight.map(AutoOr::Number),
            rank: rank.map(AutoOr::Number),
            alpha: alpha.map(AutoOr::Number),
            learning_rate: learning_rate.map(AutoOr::Number),
        }
    }
}

fn check_metadata(metadata: Option<&Map<String, Value>>) -> Result<()> {
    let Some(metadata) = metadata else { return Ok(()) };
    let fault = |message: &str| Err(Error::invalid_code("metadata", "invalid_value", message));
    if metadata.len() > 16 {
        return fault("'metadata' has more than 16 entries.");
    }
    for (name, value) in metadata {
        match value.as_str() {
            None => return fault("Every value of 'metadata' must be a string."),
            Some(value) if name.chars().count() > 64 || value.chars().count() > 512 => {
                return fault("'metadata' takes names of 64 and values of 512 characters at the most.");
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The notes that listed jobs must have.
#[derive(Debug, PartialEq, Eq)]
enum MetadataFilter<'a> {
    Any,
    None,
    All(Vec<(&'a str, &'a str)>),
}

impl<'a> MetadataFilter<'a> {
    fn read(pairs: &'a [(String, String)]) -> Self {
        if pairs.iter().any(|(name, value)| name == "metadata" && value == "null") {
            return Self::None;
        }
        let note = |(name, value): &'a (String, String)| {
            Some((name.strip_prefix("metadata[")?.strip_suffix(']')?, value.as_str()))
        };
        let notes: Vec<_> = pairs.iter().filter_map(note).collect();
        if notes.is_empty() { Self::Any } else { Self::All(notes) }
    }

    fn keeps(&self, metadata: Option<&Map<String, Value>>) -> bool {
        match self {
            Self::Any => true,
            Self::None => metadata.is_none_or(Map::is_empty),
            Self::All(notes) => notes.iter().all(|(name, value)| {
                metadata.and_then(|metadata| metadata.get(*name)).and_then(Value::as_str) == Some(*value)
            }),
        }
    }

    /// A page of the jobs that it keeps, and whether there may be more.
    async fn jobs(&self, state: &ApiState, caller: &Caller, page: Page) -> Result<(Vec<Job>, bool)> {
        let read = |page| state.queue.jobs(&caller.organization, JobApi::FineTuningJobs, page);
        if *self == Self::Any {
            return read(page).await;
        }
        let (mut kept, mut scanned, mut after) = (Vec::new(), 0, page.after.clone());
        loop {
            let (jobs, has_more) = read(Page { after, limit: MAX_PAGE, ascending: false }).await?;
            scanned += jobs.len();
            after = jobs.last().map(|job| job.id.clone());
            kept.extend(jobs.into_iter().filter(|job| self.keeps(job.spec.metadata.as_ref())));
            let full = kept.len() > page.limit as usize;
            kept.truncate(page.limit as usize);
            if full || !has_more || scanned >= MAX_SCANNED {
                return Ok((kept, full));
            }
        }
    }
}

impl From<Job> for FineTuningJob {
    fn from(job: Job) -> Self {
        let settings = Settings::of(&job);
        let supervised = Supervised { hyperparameters: Some(settings.clone()) };
        Self {
            object: "fine_tuning.job",
            id: job.id,
            model: job.spec.model,
            created_at: job.created_at,
            finished_at: job.finished_at,
            fine_tuned_model: job.fine_tuned_model,
            organization_id: job.organization,
            result_files: job.result_files,
            status: job.status,
            training_file: job.spec.training_file,
            validation_file: job.spec.validation_file,
            hyperparameters: settings,
            trained_tokens: job.trained_tokens,
            error: job.error.map(JobError::from),
            user_provided_suffix: job.spec.suffix,
            seed: job.spec.seed,
            estimated_finish: job.estimated_finish,
            integrations: [],
            method: JobMethod { kind: "supervised", supervised },
            metadata: job.spec.metadata,
        }
    }
}

impl From<JobFault> for JobError {
    fn from(fault: JobFault) -> Self {
        let JobFault { code, message, param } = fault;
        Self { code, message, param }
    }
}

impl From<JobEvent> for FineTuningEvent {
    fn from(event: JobEvent) -> Self {
        Self {
            object: "fine_tuning.job.event",
            id: format!("ftevent-{}", event.seq),
            created_at: event.created_at,
            level: event.level,
            message: event.message,
            kind: event.kind,
            data: event.data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::parse;

    fn spec(extra: &str) -> Result<JobSpec> {
        let json = format!(r#"{{"model":"m","training_file":"file-1"{extra}}}"#);
        parse::<CreateJob>(json.as_bytes()).expect("a request").spec()
    }

    #[test]
    fn settings_are_read_from_the_method_or_the_older_place() {
        let method =
            r#","method":{"type":"supervised","dpo":{"x":1},"supervised":{"hyperparameters":{"n_epochs":2,"rank":8}}}"#;
        let settings = spec(method).expect("fine").hyperparameters;
        assert_eq!((settings.n_epochs, settings.batch_size, settings.rank), (Some(2), None, Some(8)));
        let older = r#","hyperparameters":{"n_epochs":"auto","batch_size":4}"#;
        let settings = spec(older).expect("fine").hyperparameters;
        assert_eq!((settings.n_epochs, settings.batch_size), (None, Some(4)));
    }

    #[test]
    fn what_is_out_of_range_or_not_supported_is_refused() {
        for extra in [
            r#","hyperparameters":{"n_epochs":0}"#,
            r#","hyperparameters":{"batch_size":257}"#,
            r#","hyperparameters":{"learning_rate_multiplier":0}"#,
            r#","method":{"type":"dpo","dpo":{}}"#,
            r#","method":{"type":"reinforcement"}"#,
            r#","seed":-1"#,
            r#","suffix":"""#,
            r#","metadata":{"a":1}"#,
        ] {
            assert!(spec(extra).is_err(), "{extra}");
        }
        assert!(spec(r#","integrations":[{"type":"wandb"}],"metadata":{"a":"b"},"validation_file":null"#).is_ok());
    }

    #[test]
    fn jobs_are_filtered_by_their_notes() {
        let notes = |json: &str| serde_json::from_str::<Map<String, Value>>(json).expect("notes");
        let pairs = [("metadata[team]".to_owned(), "a b".to_owned()), ("limit".to_owned(), "3".to_owned())];
        let filter = MetadataFilter::read(&pairs);
        assert!(filter.keeps(Some(&notes(r#"{"team":"a b","x":"y"}"#))));
        assert!(!filter.keeps(Some(&notes(r#"{"team":"c"}"#))) && !filter.keeps(None));
        let pairs = [("metadata".to_owned(), "null".to_owned())];
        let filter = MetadataFilter::read(&pairs);
        assert!(filter.keeps(None) && !filter.keeps(Some(&notes(r#"{"team":"c"}"#))));
        assert_eq!(MetadataFilter::read(&[]), MetadataFilter::Any);
    }

    #[test]
    fn the_cursor_of_events_is_an_events_id() {
        assert_eq!(event_seq("ftevent-12").expect("an id"), 12);
        assert!(event_seq("string").is_err());
    }
}
