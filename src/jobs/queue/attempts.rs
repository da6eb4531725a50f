//! An attempt at a job, from its claim to its end: the operations of `jobs::worker`.
//!
//! Every write carries the attempt's number, so that a worker that lost its lease changes nothing.

use std::time::Duration;

use serde_json::Value;
use sqlx::types::Json;

use super::{Queue, StopRequest};
use crate::jobs::Result;
use crate::jobs::rows::{JobRow, job_change, job_columns};
use crate::jobs::{Job, JobApi, JobFault};
use crate::train::hyperparameters::Hyperparameters;

/// A job whose attempts were lost or failed this often, none of them with a new checkpoint, fails: what kills every worker must
/// not be tried for ever.
const MAX_FAILURES: i32 = 3;
/// Jobs taken back in one statement.
const REAP_BATCH: i64 = 100;

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

/// What the queue says to a worker that reports itself alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// The client asked to stop.
    pub stop: Option<StopRequest>,
}

impl Queue {
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
            // An attempt that got further is no sign of a job that kills its workers.
            "update jobs set lease_expires_at = now() + make_interval(secs => $3), checkpoint = coalesce($4, checkpoint),
                    failures = case when $4 is null then failures else 0 end
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
                let told = match job.api {
                    JobApi::FineTunes => {
                        let files = result_files.iter().map(|file| format!("Uploaded result file: {file}"));
                        let uploaded = std::iter::once(format!("Uploaded model: {model}")).chain(files);
                        uploaded.chain(["Fine-tune succeeded".into()]).collect::<Vec<_>>()
                    }
                    JobApi::FineTuningJobs => vec![
                        format!("New fine-tuned model created: {model}"),
                        "The job has successfully completed".into(),
                    ],
                };
                sqlx::query_as(SUCCEED)
                    .bind(job.key)
                    .bind(job.attempt)
                    .bind(model)
                    .bind(base)
                    .bind(adapter)
                    .bind(trained_tokens)
                    .bind(result_files)
                    .bind(told)
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
        self.take_back(false).await
    }

    /// Takes back all running jobs, to be tried again at once: for the start of a process that has the database to itself, so
    /// that whoever ran them is gone.
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
        let rows: Vec<JobRow> = sqlx::query_as(REAP)
            .bind(REAP_BATCH)
            .bind(Json(lost))
            .bind(MAX_FAILURES)
            .bind(all)
            .fetch_all(&self.store.pool)
            .await?;
        Ok(rows.len())
    }
}

/// Success: the row, the model, the tokens that its key is charged with and its events, or nothing.
const SUCCEED: &str = concat!(
    "with changed as (
         update jobs set status = 'succeeded', lease_owner = null, lease_expires_at = null, stop_request = null,
                fine_tuned_model = $3, trained_tokens = $6, result_files = $7, finished_at = now(), updated_at = now()
          where key = $1 and attempt = $2 and status = 'running'
         returning *
     ), published as (
         insert into fine_tuned_models (organization, name, base, adapter, job)
         select organization, $3, $4, $5, id from changed
     ), charged as (
         insert into usage_daily as used (organization, day, key, model, base, trained_tokens)
         select organization, (now() at time zone 'utc')::date, coalesce(api_key, ''),
                coalesce(spec->>'alias', spec->>'model'), $4, $6
           from changed
         on conflict (organization, day, key, model, base)
         do update set trained_tokens = used.trained_tokens + excluded.trained_tokens
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
           from jobs where status = 'running' and (lease_expires_at < now() or $4)
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
                run_after = now() + case when $4 then interval '0'
                                         else make_interval(secs => 5 * 2 ^ least(failed_attempts, 6)) end,
                finished_at = case when next in ('failed', 'cancelled') then now() end, updated_at = now()
           from decided where key = held_key
         returning jobs.*
     )",
    "$2::jsonb->>'message'"
);
