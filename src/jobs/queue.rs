//! The queue's operations, the only writers of a job's status. This file has those of clients, which `api` calls:
//! enqueue, read, stop, resume. [`attempts`] has those of workers: claim, heartbeat, finish, reap.
//!
//! Each operation is one statement (`jobs/sql/`), so that a caller who goes away leaves nothing half done, and each
//! that changes a job's status appends the event of the change. Only the database's clock decides about leases.

mod attempts;

use std::sync::Arc;

use sqlx::types::Json;
use sqlx::{FromRow as _, Row as _};
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub use self::attempts::{HeartbeatAnswer, Outcome, ResultFile, STORAGE_WAIT, TrainedModel};
use crate::jobs::rows::JobRow;
use crate::jobs::{Error, Job, JobApi, JobSpec, JobStatus, MetadataFilter, Result, changes, sql};
use crate::store::files::{Page, cut_page};
use crate::store::{Store, new_id};

/// Stop that a client may ask for until a job has finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRequest {
    /// End it for good.
    Cancel,
    /// Stop it until resumed.
    Pause,
}

impl StopRequest {
    /// Returns the word in the row.
    const fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Cancel, Self::Pause].into_iter().find(|request| request.word() == word)
    }
}

/// What must hold for a job to be added. By default nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Admission<'a> {
    /// API key that is charged with the job's trained tokens.
    pub key: Option<&'a str>,
    /// The organisation must have the files that the job names.
    pub files: bool,
    /// The job's model is a fine-tuned one of the organisation, which must be there.
    pub fine_tuned: bool,
    /// Most unfinished jobs of the organisation, this one among them.
    pub max_unfinished: Option<u32>,
}

impl Admission<'_> {
    /// Returns the ids of the files that must be there, each once.
    fn files(&self, spec: &JobSpec) -> Vec<String> {
        let mut files = Vec::new();
        if self.files {
            files.extend(spec.input_file().map(|(_, file)| file.to_owned()));
            for file in [spec.validation_file.as_deref(), spec.eval_file()].into_iter().flatten() {
                if !files.iter().any(|named| named == file) {
                    files.push(file.to_owned());
                }
            }
        }
        files
    }
}

/// The queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Queue {
    pub(crate) store: Store,
    changes: broadcast::Sender<Uuid>,
    _listener: Arc<AbortOnDropHandle<()>>,
}

impl Queue {
    /// Opens the queue and begins to listen for changes.
    pub async fn open(store: Store) -> Result<Self> {
        let (changes, listener) = changes::listen(&store).await?;
        Ok(Self { store, changes, _listener: Arc::new(listener) })
    }

    /// Writes a new job and its first events, whatever files and model it names; no key is charged with its tokens.
    pub async fn enqueue(&self, organization: &str, api: JobApi, spec: JobSpec) -> Result<Job> {
        self.admit(organization, api, spec, Admission::default()).await
    }

    /// Writes a new job and its first events if the conditions of `admission` hold at that moment. One of these errors
    /// otherwise: [`Error::TooManyJobs`], [`Error::FileGone`], [`Error::ModelGone`].
    pub async fn admit(&self, organization: &str, api: JobApi, spec: JobSpec, admission: Admission<'_>) -> Result<Job> {
        let files = admission.files(&spec);
        let most = admission.max_unfinished.map_or(i64::MAX, i64::from);
        let row = sqlx::query(sql::ENQUEUE)
            .bind(new_id(api.id_prefix()))
            .bind(api)
            .bind(organization)
            .bind(Json(&spec))
            .bind(admission.key)
            .bind(&files)
            .bind(admission.fine_tuned.then_some(&spec.model))
            .bind(most)
            .fetch_one(&self.store.pool)
            .await?;
        if row.try_get::<Option<Uuid>, _>("key")?.is_some() {
            return Ok(JobRow::from_row(&row)?.into());
        }
        let held: Vec<String> = row.try_get("files_held")?;
        if let Some(file) = files.iter().find(|file| !held.contains(file)) {
            let id = file.clone();
            if let Some((param, _)) = spec.input_file().filter(|(_, input)| input == file) {
                return Err(Error::FileGone { param, id });
            }
            if spec.validation_file.as_ref() == Some(file) {
                return Err(Error::FileGone { param: "validation_file", id });
            }
            return Err(Error::FileGone { param: "eval.data_source.source.id", id });
        }
        if admission.fine_tuned && !row.try_get::<bool, _>("model_held")? {
            return Err(Error::ModelGone(spec.asked_model().into()));
        }
        Err(Error::TooManyJobs { unfinished: row.try_get("unfinished")?, most })
    }

    /// Returns the organisation's job, or [`Error::NotFound`].
    pub async fn job(&self, organization: &str, api: JobApi, id: &str) -> Result<Job> {
        let row: Option<JobRow> =
            sqlx::query_as(sql::FIND).bind(organization).bind(api).bind(id).fetch_optional(&self.store.pool).await?;
        row.map(Job::from).ok_or_else(|| Error::NotFound { kind: api.kind(), id: id.into() })
    }

    /// Returns a page of the organisation's jobs of one resource, newest first unless asked otherwise, and whether
    /// there are more.
    pub async fn jobs(
        &self,
        organization: &str,
        api: JobApi,
        filter: MetadataFilter,
        page: Page,
    ) -> Result<(Vec<Job>, bool)> {
        let query = if page.ascending { sql::LIST_ASCENDING } else { sql::LIST_DESCENDING };
        let (wanted, without) = match filter {
            MetadataFilter::Any => (None, false),
            MetadataFilter::None => (None, true),
            MetadataFilter::All(pairs) => (Some(Json(pairs)), false),
        };
        let limit = page.bounded_limit();
        let rows: Vec<JobRow> = sqlx::query_as(query)
            .bind(organization)
            .bind(api)
            .bind(page.after)
            .bind(limit + 1)
            .bind(wanted)
            .bind(without)
            .fetch_all(&self.store.pool)
            .await?;
        let (rows, more) = cut_page(rows, limit);
        Ok((rows.into_iter().map(Job::from).collect(), more))
    }

    /// Cancels or pauses the job, or answers [`Error::Conflict`] if its status does not allow that. A running
    /// job stops at its worker's next heartbeat. Asking again for the same stop changes nothing; a cancellation is
    /// never turned into a pause.
    pub async fn stop(&self, job: &Job, what: StopRequest) -> Result<Job> {
        let row: Option<JobRow> = sqlx::query_as(sql::STOP)
            .bind(job.key)
            .bind(&job.organization)
            .bind(what.word())
            .fetch_optional(&self.store.pool)
            .await?;
        if let Some(row) = row {
            let stopped = Job::from(row);
            if stopped.status.is_final() {
                self.forget_states(stopped.clone());
            }
            return Ok(stopped);
        }
        let current = self.job(&job.organization, job.api, &job.id).await?;
        if current.stop_request.as_deref() == Some(what.word()) {
            return Ok(current);
        }
        Err(conflict(&current, what.word()))
    }

    /// Removes the states of a job that ended without a worker, beside the request that ended it.
    fn forget_states(&self, job: Job) {
        let queue = self.clone();
        tokio::spawn(async move {
            if let Err(error) = queue.remove_useless_states(&job).await {
                // The sweep finds them.
                tracing::warn!(job = job.id, "cannot remove the states of a cancelled job: {error}");
            }
        });
    }

    /// Puts a job back into the queue that is paused, or that failed through the server's fault and still has its
    /// state; or withdraws a pause that its worker has not carried out yet.
    pub async fn resume(&self, job: &Job) -> Result<Job> {
        let row: Option<JobRow> =
            sqlx::query_as(sql::RESUME).bind(job.key).bind(&job.organization).fetch_optional(&self.store.pool).await?;
        match row {
            Some(row) => Ok(row.into()),
            None => Err(conflict(&self.job(&job.organization, job.api, &job.id).await?, "resume")),
        }
    }

    /// Receives the keys of jobs that changed or got an event. They are hints: always read the row again. The nil key,
    /// or a receiver that lags, means that hints may be lost and any job may have changed.
    pub fn changes(&self) -> broadcast::Receiver<Uuid> {
        self.changes.subscribe()
    }
}

/// Returns the error for an action that the job's status does not allow.
fn conflict(job: &Job, action: &'static str) -> Error {
    let status = match (job.status, job.stop_request.as_deref()) {
        (JobStatus::Running, Some("cancel")) => "being cancelled",
        (JobStatus::Queued, _) => "queued",
        (JobStatus::Running, _) => "running",
        (JobStatus::Paused, _) => "paused",
        (JobStatus::Succeeded, _) => "succeeded",
        (JobStatus::Failed, _) => "failed",
        (JobStatus::Cancelled, _) => "cancelled",
    };
    Error::Conflict { action, id: job.id.clone(), status }
}
