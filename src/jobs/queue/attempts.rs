//! An attempt at a job, from its claim to its end: the operations of `jobs::worker`.
//!
//! Every write carries the attempt's number, so that a worker that lost its lease changes nothing.

use std::time::Duration;

use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Queue, StopRequest};
use crate::jobs::rows::JobRow;
use crate::jobs::{Job, JobFault, Result, sql};
use crate::train::hyperparameters::Hyperparameters;

/// Lost or failed attempts in a row, none of them with a new checkpoint, after which a job fails: a job that kills
/// every worker must not be tried for ever.
const MAX_FAILURES: i32 = 3;
/// Jobs taken back in one statement at most.
const REAP_BATCH: i64 = 100;
/// Time that a job waits for storage that refuses its files, over all its attempts and without one that got further;
/// then it fails, and can be resumed.
pub const STORAGE_WAIT: Duration = Duration::from_hours(24);

/// Model that a job made, whose files are stored.
#[derive(Debug, Clone)]
pub struct TrainedModel {
    /// Name of the model.
    pub model: String,
    /// Id of its base model.
    pub base: String,
    /// SHA-256 of its adapter.
    pub adapter: String,
    /// Tokens trained on, repeats counted.
    pub trained_tokens: i64,
    /// Result files; they become the organisation's with the model.
    pub result_files: Vec<ResultFile>,
}

/// A result file whose content is stored and whose row is yet to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultFile {
    /// `file-…`, the attempt's own.
    pub id: String,
    /// Its name.
    pub filename: String,
    /// Size of the content.
    pub bytes: i64,
}

/// End of an attempt.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Training is done: publish the model and finish the job, in one statement.
    Succeeded(TrainedModel),
    /// The request's fault; not tried again.
    Failed(JobFault),
    /// The server's fault; not tried again, but its client may resume it.
    Broken(JobFault),
    /// Not the request's fault; tried again while attempts are left, then as [`Self::Broken`].
    Retry(JobFault),
    /// Storage refuses the job's files; tried again for [`STORAGE_WAIT`], then as [`Self::Broken`].
    Storage(JobFault),
    /// Stopped because the client asked; the row knows whether to cancel or pause.
    Stopped,
    /// The worker shuts down; the attempt does not count.
    Released,
}

/// Answer to a worker's heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// Stop that the client asked for.
    pub stop: Option<StopRequest>,
    /// Key of the state that the job's row named before this heartbeat's, and that no row will name again.
    pub replaced: Option<String>,
}

impl Queue {
    /// Claims the next job for `worker`, with a lease; `None` if no job waits.
    pub async fn claim(&self, worker: &str, lease: Duration) -> Result<Option<Job>> {
        let row: Option<JobRow> =
            sqlx::query_as(sql::CLAIM).bind(worker).bind(lease.as_secs_f64()).fetch_optional(&self.store.pool).await?;
        Ok(row.map(Job::from))
    }

    /// Renews the lease and saves the checkpoint, if there is a new one; `None` if the lease is lost.
    pub async fn heartbeat(
        &self,
        job: &Job,
        lease: Duration,
        checkpoint: Option<Value>,
    ) -> Result<Option<HeartbeatAnswer>> {
        let answer: Option<(Option<String>, Option<String>)> = sqlx::query_as(sql::HEARTBEAT)
            .bind(job.key)
            .bind(job.attempt)
            .bind(lease.as_secs_f64())
            .bind(checkpoint)
            .fetch_optional(&self.store.pool)
            .await?;
        Ok(answer.map(|(stop, replaced)| {
            let stop = stop.as_deref().and_then(StopRequest::from_word);
            HeartbeatAnswer { stop, replaced }
        }))
    }

    /// Keeps the adapter's files from being removed until the attempt has ended or named them: called before they are
    /// stored. `false` if the lease is lost.
    pub async fn hold_adapter(&self, job: &Job, adapter: &str) -> Result<bool> {
        let held: Option<Uuid> = sqlx::query_scalar(sql::HOLD_ADAPTER)
            .bind(job.key)
            .bind(job.attempt)
            .bind(adapter)
            .fetch_optional(&self.store.pool)
            .await?;
        Ok(held.is_some())
    }

    /// Notes that the attempt waits for storage, and returns for how long the job has; `None` if the lease is lost.
    pub async fn wait_for_storage(&self, job: &Job) -> Result<Option<Duration>> {
        let waiting = sqlx::query_scalar(sql::WAIT_FOR_STORAGE).bind(job.key).bind(job.attempt);
        let seconds: Option<f64> = waiting.fetch_optional(&self.store.pool).await?;
        Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()))
    }

    /// Removes the states of the job unless it may still go on from one, which is asked at once before: what this finds
    /// to be of no use will never be of any, so that no late process can remove what a running one needs.
    pub async fn remove_useless_states(&self, job: &Job) -> Result<()> {
        let needed: bool = sqlx::query_scalar(sql::NEEDS_STATES).bind(job.key).fetch_one(&self.store.pool).await?;
        if !needed {
            self.store.remove_states(&job.id).await?;
        }
        Ok(())
    }

    /// Stores the settings that training uses and the expected end in unix seconds. Writes nothing if the lease is
    /// lost.
    pub async fn record_plan(
        &self,
        job: &Job,
        resolved: &Hyperparameters,
        estimated_finish: Option<i64>,
    ) -> Result<()> {
        sqlx::query(sql::RECORD_PLAN)
            .bind(job.key)
            .bind(job.attempt)
            .bind(Json(resolved))
            .bind(estimated_finish)
            .execute(&self.store.pool)
            .await?;
        Ok(())
    }

    /// Ends the attempt and returns the changed job; `None` if the lease was lost and nothing was written.
    pub async fn finish(&self, job: &Job, outcome: Outcome) -> Result<Option<Job>> {
        let row = match outcome {
            Outcome::Succeeded(TrainedModel { model, base, adapter, trained_tokens, result_files }) => {
                let column = |part: fn(&ResultFile) -> &str| {
                    result_files.iter().map(|file| part(file).to_owned()).collect::<Vec<_>>()
                };
                sqlx::query_as(sql::SUCCEED)
                    .bind(job.key)
                    .bind(job.attempt)
                    .bind(model)
                    .bind(base)
                    .bind(adapter)
                    .bind(trained_tokens)
                    .bind(column(|file| &file.id))
                    .bind(column(|file| &file.filename))
                    .bind(result_files.iter().map(|file| file.bytes).collect::<Vec<_>>())
                    .fetch_optional(&self.store.pool)
                    .await?
            }
            Outcome::Failed(fault) => self.end_attempt(job, "failed", Some(fault)).await?,
            Outcome::Broken(fault) => self.end_attempt(job, "broken", Some(fault)).await?,
            Outcome::Retry(fault) => self.end_attempt(job, "retry", Some(fault)).await?,
            Outcome::Storage(fault) => self.end_attempt(job, "storage", Some(fault)).await?,
            Outcome::Stopped => self.end_attempt(job, "stopped", None).await?,
            Outcome::Released => self.end_attempt(job, "released", None).await?,
        };
        Ok(row.map(Job::from))
    }

    /// Ends the attempt without a model.
    async fn end_attempt(&self, job: &Job, outcome: &'static str, fault: Option<JobFault>) -> Result<Option<JobRow>> {
        Ok(sqlx::query_as(sql::END_ATTEMPT)
            .bind(job.key)
            .bind(job.attempt)
            .bind(outcome)
            .bind(fault.map(Json))
            .bind(MAX_FAILURES)
            .bind(STORAGE_WAIT.as_secs_f64())
            .fetch_optional(&self.store.pool)
            .await?)
    }

    /// Takes back jobs whose lease has run out and returns how many. Any process may call it at any time.
    pub async fn reap(&self) -> Result<usize> {
        self.take_back(false).await
    }

    /// Takes back all running jobs, to be tried again at once, and returns how many: for the start of a process that
    /// has the database to itself, so that their workers are gone.
    pub async fn reap_all(&self) -> Result<usize> {
        let mut taken = 0;
        loop {
            match self.take_back(true).await? {
                0 => return Ok(taken),
                some => taken += some,
            }
        }
    }

    async fn take_back(&self, all: bool) -> Result<usize> {
        let lost =
            JobFault { code: "worker_lost".into(), message: "The worker stopped answering.".into(), param: None };
        let taken: Vec<Uuid> = sqlx::query_scalar(sql::REAP)
            .bind(REAP_BATCH)
            .bind(Json(lost))
            .bind(MAX_FAILURES)
            .bind(all)
            .fetch_all(&self.store.pool)
            .await?;
        Ok(taken.len())
    }
}
