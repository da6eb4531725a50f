//! The queue's operations: enqueue, claim, heartbeat, finish, reap, stop, resume. The only writer of a job's status.
//!
//! Each operation is one statement, so that a caller who goes away leaves nothing half done, and each that changes a
//! job's status appends the event that tells clients of it. Only the database's clock decides about leases.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sqlx::types::Json;
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::jobs::rows::{JobRow, job_change, job_columns};
use crate::jobs::{Hyperparameters, Job, JobApi, JobFault, JobSpec, JobStatus, changes};
use crate::store::files::{Page, cut_page};
use crate::store::{Store, new_id};
use crate::{Error, Result};

/// A job whose attempts were lost or failed this often fails: what kills every worker must not be tried for ever.
const MAX_FAILURES: i32 = 3;
/// Jobs taken back in one statement.
const REAP_BATCH: i64 = 100;

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

/// How a claimed job ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Publish the model and finish, in one transaction.
    Succeeded {
        /// The new model's name.
        model: String,
        /// Id of the base model it runs on.
        base: String,
        /// SHA-256 of its adapter.
        adapter: String,
        /// Tokens trained on.
        trained_tokens: i64,
        /// Ids of result files.
        result_files: Vec<String>,
    },
    /// The request's fault; not tried again.
    Failed(JobFault),
    /// Not the request's fault; tried again while attempts are left.
    Retry(JobFault),
    /// Stopped because the client asked; the row knows whether to cancel or pause.
    Stopped,
    /// The worker shuts down; the attempt does not count.
    Released,
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

    /// Writes a new job and its first event.
    pub async fn enqueue(&self, organization: &str, api: JobApi, spec: JobSpec) -> Result<Job> {
        let id = new_id(api.id_prefix());
        let created = match api {
            JobApi::FineTunes => format!("Created fine-tune: {id}"),
            JobApi::FineTuningJobs => format!("Created fine-tuning job: {id}"),
        };
        let row: JobRow = sqlx::query_as(concat!(
            "with created as (insert into jobs (id, api, organization, spec) values ($1, $2, $3, $4) returning *),
             said as (insert into job_events (job, attempt, message) select key, attempt, $5 from created)
             select",
            job_columns!(),
            "from created"
        ))
        .bind(id)
        .bind(api)
        .bind(organization)
        .bind(Json(spec))
        .bind(created)
        .fetch_one(&self.store.pool)
        .await?;
        Ok(row.into())
    }

    /// The organisation's job, or [`crate::Error::NotFound`].
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
    pub async fn jobs(&self, organization: &str, api: JobApi, page: Page) -> Result<(Vec<Job>, bool)> {
        if let Some(after) = &page.after {
            self.job(organization, api, after).await.map_err(|error| match error {
                Error::NotFound { .. } => page.unknown_cursor(),
                error => error,
            })?;
        }
        let query = if page.ascending {
            concat!(
                "select",
                job_columns!(),
                "from jobs where organization = $1 and api = $2 and ($3::text is null
                 or (created_at, id) > (select created_at, id from jobs where organization = $1 and id = $3))
                 order by jobs.created_at, id limit $4"
            )
        } else {
            concat!(
                "select",
                job_columns!(),
                "from jobs where organization = $1 and api = $2 and ($3::text is null
                 or (created_at, id) < (select created_at, id from jobs where organization = $1 and id = $3))
                 order by jobs.created_at desc, id desc limit $4"
            )
        };
        let limit = page.bounded_limit();
        let rows: Vec<JobRow> = sqlx::query_as(query)
            .bind(organization)
            .bind(api)
            .bind(page.after)
            .bind(limit + 1)
            .fetch_all(&self.store.pool)
            .await?;
        let (rows, more) = cut_page(rows, limit);
        Ok((rows.into_iter().map(Job::from).collect(), more))
    }

    /// Cancels or pauses; [`crate::Error::Conflict`] where the job is past it. A running job stops at its worker's next
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

    /// Claims the next job for `worker`, with a lease.
    pub async fn claim(&self, worker: &str, lease: Duration) -> Result<Option<Job>> {
        let row: Option<JobRow> =
            sqlx::query_as(job_change!("changed as (select * from claim_job($1, make_interval(secs => $2)))"))
                .bind(worker)
                .bind(lease.as_secs_f64())
                .fetch_optional(&self.store.pool)
                .await?;
        Ok(row.map(Job::from))
    }

    /// Renews the lease and saves the checkpoint; the answer carries a stop request. `None`: the lease is lost.
    pub async fn heartbeat(
        &self,
        job: &Job,
        lease: Duration,
        checkpoint: Option<Value>,
    ) -> Result<Option<HeartbeatAnswer>> {
        let answer: Option<Option<String>> = sqlx::query_scalar(
            "update jobs set lease_expires_at = now() + make_interval(secs => $3), checkpoint = coalesce($4, checkpoint)
              where key = $1 and attempt = $2 and status = 'running' returning stop_request",
        )
        .bind(job.key)
        .bind(job.attempt)
        .bind(lease.as_secs_f64())
        .bind(checkpoint)
        .fetch_optional(&self.store.pool)
        .await?;
        Ok(answer.map(|stop| HeartbeatAnswer { stop: stop.as_deref().and_then(StopRequest::from_word) }))
    }

    /// Stores the settings that training uses and the expected end. Nothing is written where the lease is lost.
    pub async fn record_plan(
        &self,
        job: &Job,
        resolved: &Hyperparameters,
        estimated_finish: Option<i64>,
    ) -> Result<()> {
        sqlx::query(
            "update jobs set resolved = $3, estimated_finish = $4
              where key = $1 and attempt = $2 and status = 'running'",
        )
        .bind(job.key)
        .bind(job.attempt)
        .bind(Json(resolved))
        .bind(estimated_finish)
        .execute(&self.store.pool)
        .await?;
        Ok(())
    }

    /// Ends the attempt. `None`: the lease was lost, nothing was written.
    pub async fn finish(&self, job: &Job, outcome: Outcome) -> Result<Option<Job>> {
        let row = match outcome {
            Outcome::Succeeded { model, base, adapter, trained_tokens, result_files } => {
                let (uploaded, succeeded) = match job.api {
                    JobApi::FineTunes => (format!("Uploaded model: {model}"), "Fine-tune succeeded"),
                    JobApi::FineTuningJobs => {
                        (format!("New fine-tuned model created: {model}"), "The job has successfully completed")
                    }
                };
                sqlx::query_as(SUCCEED)
                    .bind(job.key)
                    .bind(job.attempt)
                    .bind(model)
                    .bind(base)
                    .bind(adapter)
                    .bind(trained_tokens)
                    .bind(result_files)
                    .bind([uploaded, succeeded.into()])
                    .fetch_optional(&self.store.pool)
                    .await?
            }
            Outcome::Failed(fault) => self.end_attempt(job, "failed", Some(fault)).await?,
            Outcome::Retry(fault) => self.end_attempt(job, "retry", Some(fault)).await?,
            Outcome::Stopped => self.end_attempt(job, "stopped", None).await?,
            Outcome::Released => self.end_attempt(job, "released", None).await?,
        };
        Ok(row.map(Job::from))
    }

    /// Ends the attempt without a model.
    async fn end_attempt(&self, job: &Job, outcome: &'static str, fault: Option<JobFault>) -> Result<Option<JobRow>> {
        Ok(sqlx::query_as(END_ATTEMPT)
            .bind(job.key)
            .bind(job.attempt)
            .bind(outcome)
            .bind(fault.map(Json))
            .bind(MAX_FAILURES)
            .fetch_optional(&self.store.pool)
            .await?)
    }

    /// Takes back jobs whose lease has run out; returns how many. Any process may call it at any time.
    pub async fn reap(&self) -> Result<usize> {
        let lost =
            JobFault { code: "worker_lost".into(), message: "The worker stopped answering.".into(), param: None };
        let rows: Vec<JobRow> = sqlx::query_as(REAP)
            .bind(REAP_BATCH)
            .bind(Json(lost))
            .bind(MAX_FAILURES)
            .fetch_all(&self.store.pool)
            .await?;
        Ok(rows.len())
    }

    /// Keys of jobs that changed or got an event, as hints: always read the row again. The nil key means that hints may
    /// have been lost and any job may have changed; so does a lagging receiver.
    pub fn changes(&self) -> broadcast::Receiver<Uuid> {
        self.changes.subscribe()
    }
}

/// Success: the row, the model and both events, or nothing.
const SUCCEED: &str = concat!(
    "with changed as (
         update jobs set status = 'succeeded', lease_owner = null, lease_expires_at = null, stop_request = null,
                fine_tuned_model = $3, trained_tokens = $6, result_files = $7, finished_at = now(), updated_at = now()
          where key = $1 and attempt = $2 and status = 'running'
         returning *
     ), published as (
         insert into fine_tuned_models (organization, name, base, adapter, job)
         select organization, $3, $4, $5, id from changed
     ), said as (
         insert into job_events (job, attempt, message)
         select key, attempt, message from changed, unnest($8::text[]) with ordinality as told (message, position)
          order by position
     ) select",
    job_columns!(),
    "from changed"
);

/// A stop that the client asked for wins over trying again, also where the worker was lost. The row is locked first: the
/// decision must rest on its newest version, where a request to stop may just have been written.
const END_ATTEMPT: &str = job_change!(
    "held as materialized (
         select key as held_key, stop_request as stop, failures + ($3 in ('failed', 'retry'))::int as failed_attempts
           from jobs where key = $1 and attempt = $2 and status = 'running' for update
     ), decided as (
         select held.*, (case when stop = 'cancel' then 'cancelled'
                              when $3 = 'failed' then 'failed'
                              when stop = 'pause' then 'paused'
                              when $3 = 'retry' and failed_attempts >= $5 then 'failed'
                              else 'queued' end)::job_status as next
           from held
     ), changed as (
         update jobs set
                status = next, lease_owner = null, lease_expires_at = null, stop_request = null,
                failures = failed_attempts, error = case when next = 'failed' then $4::jsonb end,
                run_after = now() + case when $3 = 'retry' then make_interval(secs => 5 * 2 ^ least(failed_attempts, 6))
                                         else interval '0' end,
                finished_at = case when next in ('failed', 'cancelled') then now() end, updated_at = now()
           from decided where key = held_key
         returning jobs.*
     )",
    "$4::jsonb->>'message'"
);

/// The same for workers that were lost. Rows that another process is taking back, or that a worker is just writing, are
/// left to it.
const REAP: &str = job_change!(
    "held as materialized (
         select key as held_key, stop_request as stop, failures + 1 as failed_attempts
           from jobs where status = 'running' and lease_expires_at < now()
          order by lease_expires_at limit $1 for update skip locked
     ), decided as (
         select held.*, (case when stop = 'cancel' then 'cancelled'
                              when stop = 'pause' then 'paused'
                              when failed_attempts >= $3 then 'failed'
                              else 'queued' end)::job_status as next
           from held
     ), changed as (
         update jobs set
                status = next, lease_owner = null, lease_expires_at = null, stop_request = null,
                failures = failed_attempts, error = case when next = 'failed' then $2::jsonb end,
                run_after = now() + make_interval(secs => 5 * 2 ^ least(failed_attempts, 6)),
                finished_at = case when next in ('failed', 'cancelled') then now() end, updated_at = now()
           from decided where key = held_key
         returning jobs.*
     )",
    "$2::jsonb->>'message'"
);

/// The refusal of an action that the job's status does not allow.
fn conflict(job: &Job, action: &str) -> Error {
    let status = match (job.status, job.stop_request.as_deref()) {
        (JobStatus::Running, Some("cancel")) => "being cancelled",
        (JobStatus::Queued, _) => "queued",
        (JobStatus::Running, _) => "running",
        (JobStatus::Paused, _) => "paused",
        (JobStatus::Succeeded, _) => "succeeded",
        (JobStatus::Failed, _) => "failed",
        (JobStatus::Cancelled, _) => "cancelled",
    };
    Error::Conflict(format!("Cannot {action} job {}: its status is {status}.", job.id))
}

/// What the queue says to a worker that reports itself alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// The client asked to stop.
    pub stop: Option<StopRequest>,
}
