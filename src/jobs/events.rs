//! Events of a job in their order, for clients to read and stream. `api` reads and words them, the worker and the queue
//! write them.

use serde_json::Value;

use crate::jobs::queue::Queue;
use crate::jobs::{Job, Result, sql};
use crate::store::MAX_PAGE;
use crate::store::files::cut_page;

/// One event.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct JobEvent {
    /// Ascending number; the cursor of streams and pages. Public id: `ftevent-{seq}`.
    pub seq: i64,
    /// Unix seconds.
    pub created_at: i64,
    /// `info`, `warn` or `error`
    pub level: String,
    /// `message` or `metrics`
    pub kind: String,
    /// Text for people; empty if there is a `change`, which `api` words.
    pub message: String,
    /// Change of the job's state; `None` if the event is a text. Older versions stored changes as texts.
    pub change: Option<JobChange>,
    /// Reason, number or name that belongs to the change; see [`JobChange`].
    pub detail: Option<String>,
    /// Number of the job's attempt.
    pub attempt: i32,
    /// Data for programs.
    pub data: Option<Value>,
}

/// A change of a job's state, as its event tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum JobChange {
    /// The client created it.
    Created,
    /// It stands in the queue of the older resource; the detail is its number there.
    Enqueued,
    /// It waits for a worker; the detail is why the last attempt ended, if something went wrong.
    Queued,
    /// A worker runs it: for the first time, or again.
    Running,
    /// It was paused; the detail as for [`Self::Queued`].
    Paused,
    /// It failed; the detail is why.
    Failed,
    /// It was cancelled; the detail as for [`Self::Queued`].
    Cancelled,
    /// Its worker is asked to end it for good.
    CancelRequested,
    /// Its worker is asked to stop it until it is resumed.
    PauseRequested,
    /// Its model was published; the detail is the model's name.
    ModelCreated,
    /// A result file was stored, which only the older resource tells; the detail is the file's id.
    ResultFileUploaded,
    /// It ended with a model.
    Succeeded,
}

impl Queue {
    /// Returns the job's events after `seq`, oldest first, at most `limit`.
    pub async fn events_after(&self, job: &Job, seq: i64, limit: i64) -> Result<Vec<JobEvent>> {
        let events = sqlx::query_as(sql::EVENTS_AFTER);
        Ok(events.bind(job.key).bind(seq).bind(limit.clamp(0, MAX_PAGE)).fetch_all(&self.store.pool).await?)
    }

    /// Returns a page of the job's events, newest first, and whether there are more; only events older than `before` if
    /// it is given.
    pub async fn events_page(&self, job: &Job, before: Option<i64>, limit: i64) -> Result<(Vec<JobEvent>, bool)> {
        let limit = limit.clamp(0, MAX_PAGE);
        let events = sqlx::query_as(sql::EVENTS_BEFORE);
        let events =
            events.bind(job.key).bind(before.unwrap_or(i64::MAX)).bind(limit + 1).fetch_all(&self.store.pool).await?;
        Ok(cut_page(events, limit))
    }

    /// Returns the job's newest events but for the figures of steps, newest first, at most `limit`, and whether there
    /// are more.
    pub async fn messages(&self, job: &Job, limit: i64) -> Result<(Vec<JobEvent>, bool)> {
        let limit = limit.clamp(0, MAX_PAGE);
        let events = sqlx::query_as(sql::MESSAGES);
        Ok(cut_page(events.bind(job.key).bind(limit + 1).fetch_all(&self.store.pool).await?, limit))
    }

    /// Appends an event, fenced by the job's attempt: nothing is written if another attempt has begun, or if `job` says
    /// that it runs and it does not any more. So a worker adds its events before it calls [`Queue::finish`], or with
    /// the job that this returned.
    pub async fn add_event(
        &self,
        job: &Job,
        level: &str,
        kind: &str,
        message: &str,
        data: Option<Value>,
    ) -> Result<()> {
        sqlx::query(sql::ADD_EVENT)
            .bind(job.key)
            .bind(job.attempt)
            .bind(job.status)
            .bind(level)
            .bind(kind)
            .bind(message)
            .bind(data)
            .execute(&self.store.pool)
            .await?;
        Ok(())
    }
}
