//! The queue's operations, the only writers of a job's status: here what clients cause, which `api` calls: enqueue, read,
//! stop, resume. [`attempts`] holds what workers do: claim, heartbeat, finish, reap.
//!
//! Each operation is one statement, so that a caller who goes away leaves nothing half done, and each that changes a
//! job's status appends the event that tells clients of it. Only the database's clock decides about leases.

mod attempts;

use std::sync::Arc;

use sqlx::types::Json;
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub use self::attempts::{HeartbeatAnswer, Outcome};
use crate::jobs::rows::{JobRow, job_change, job_columns};
use crate::jobs::{Error, Result};
use crate::jobs::{Job, JobApi, JobSpec, JobStatus, MetadataFilter, changes};
use crate::store::files::{Page, cut_page};
use crate::store::{Store, new_id};

/// What a client may ask of a job that is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRequest {
    /// End it for good.
    Cancel,
    /// Stop it until resumed.
    Pause,
}

impl StopRequest {
    /// The word in the row.
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

    /// Writes a new job and its first events; no key is charged with its tokens.
    pub async fn enqueue(&self, organization: &str, api: JobApi, spec: JobSpec) -> Result<Job> {
        self.enqueue_for(organization, None, api, spec).await
    }

    /// Writes a new job, whose trained tokens the API key `key` is charged with, and its first event.
    pub async fn enqueue_for(&self, organization: &str, key: Option<&str>, api: JobApi, spec: JobSpec) -> Result<Job> {
        let id = new_id(api.id_prefix());
        // The older resource's clients show people where they stand in the queue.
        let (created, enqueued) = match api {
            JobApi::FineTunes => (format!("Created fine-tune: {id}"), Some("Fine-tune enqueued. Queue number: ")),
            JobApi::FineTuningJobs => (format!("Created fine-tuning job: {id}"), None),
        };
        let row: JobRow = sqlx::query_as(concat!(
            "with created as (
                 insert into jobs (id, api, organization, spec, api_key) values ($1, $2, $3, $4, $7) returning *
             ),
             said as (
                 insert into job_events (job, attempt, message)
                 select key, attempt, message from created, (
                     select 1 as position, $5 as message
                     union all
                     select 2, $6 || (select count(*) from jobs where status = 'queued') where $6 is not null
                 ) told order by position
             )
             select",
            job_columns!(),
            "from created"
        ))
        .bind(id)
        .bind(api)
        .bind(organization)
        .bind(Json(spec))
        .bind(created)
        .bind(enqueued)
        .bind(key)
        .fetch_one(&self.store.pool)
        .await?;
        Ok(row.into())
    }

    /// The organisation's job, or [`Error::NotFound`].
    pub async fn job(&self, organization: &str, api: JobApi, id: &str) -> Result<Job> {
        let row: Option<JobRow> = sqlx::query_as(concat!(
            "select",
            job_columns!(),
            "from jobs where organization = $1 and api = $2 and id = $3"
        ))
        .bind(organization)
        .bind(api)
        .bind(id)
        .fetch_optional(&self.store.pool)
        .await?;
        row.map(Job::from).ok_or_else(|| Error::NotFound { kind: api.kind(), id: id.into() })
    }

    /// A page of the organisation's jobs of one resource, newest first unless asked otherwise, and whether there are more.
    pub async fn jobs(
        &self,
        organization: &str,
        api: JobApi,
        filter: MetadataFilter,
        page: Page,
    ) -> Result<(Vec<Job>, bool)> {
        /// The query with `$cursor` comparing a job with the one that the page begins after.
        macro_rules! jobs_query {
            ($cursor:literal, $order:literal) => {
                concat!(
                    "select",
                    job_columns!(),
                    "from jobs where organization = $1 and api = $2
                        and ($5::jsonb is null or spec->'metadata' @> $5)
                        and (not $6 or coalesce(spec->'metadata', 'null') in ('null', '{}'))
                        and ($3::text is null or (created_at, id) ",
                    $cursor,
                    " (select created_at, id from jobs where organization = $1 and api = $2 and id = $3)) order by ",
                    $order,
                    " limit $4"
                )
            };
        }
        let query = if page.ascending {
            jobs_query!(">", "jobs.created_at, id")
        } else {
            jobs_query!("<", "jobs.created_at desc, id desc")
        };
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

    /// Cancels or pauses; [`Error::Conflict`] where the job is past it. A running job stops at its worker's next
    /// heartbeat. Asking again for what is already asked changes nothing; a cancellation is never turned into a pause.
    pub async fn stop(&self, job: &Job, what: StopRequest) -> Result<Job> {
        let row: Option<JobRow> = sqlx::query_as(job_change!(
            "changed as (
                 update jobs set
                     status = case when status = 'running' then status
                                   when $3 = 'cancel' then 'cancelled'::job_status
                                   else 'paused'::job_status end,
                     stop_request = case when status = 'running' then $3 end,
                     finished_at = case when status <> 'running' and $3 = 'cancel' then now() end,
                     updated_at = case when status = 'running' then updated_at else now() end
                  where key = $1 and organization = $2
                    and (status in ('queued', 'running') or (status = 'paused' and $3 = 'cancel'))
                    and stop_request is distinct from $3 and stop_request is distinct from 'cancel'
                 returning *
             )"
        ))
        .bind(job.key)
        .bind(&job.organization)
        .bind(what.word())
        .fetch_optional(&self.store.pool)
        .await?;
        if let Some(row) = row {
            return Ok(row.into());
        }
        let current = self.job(&job.organization, job.api, &job.id).await?;
        if current.stop_request.as_deref() == Some(what.word()) {
            return Ok(current);
        }
        Err(conflict(&current, what.word()))
    }

    /// Puts a paused job back into the queue; withdraws a pause that its worker has not carried out yet.
    pub async fn resume(&self, job: &Job) -> Result<Job> {
        let row: Option<JobRow> = sqlx::query_as(job_change!(
            "changed as (
                 update jobs set
                     status = case when status = 'paused' then 'queued'::job_status else status end,
                     run_after = now(), stop_request = null, updated_at = now()
                  where key = $1 and organization = $2
                    and (status = 'paused' or (status = 'running' and stop_request = 'pause'))
                 returning *
             )",
            "null::text"
        ))
        .bind(job.key)
        .bind(&job.organization)
        .fetch_optional(&self.store.pool)
        .await?;
        match row {
            Some(row) => Ok(row.into()),
            None => Err(conflict(&self.job(&job.organization, job.api, &job.id).await?, "resume")),
        }
    }

    /// Keys of jobs that changed or got an event, as hints: always read the row again. The nil key means that hints may
    /// have been lost and any job may have changed; so does a lagging receiver.
    pub fn changes(&self) -> broadcast::Receiver<Uuid> {
        self.changes.subscribe()
    }
}

/// The refusal of an action that the job's status does not allow.
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
