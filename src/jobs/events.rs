//! Events of a job: what happened, in order, for clients to read and stream. `api` reads them, the worker and the queue
//! write them.

use serde_json::Value;

use crate::jobs::Job;
use crate::jobs::Result;
use crate::jobs::queue::Queue;
use crate::store::MAX_PAGE;
use crate::store::files::cut_page;

/// One event.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct JobEvent {
    /// Ascending; the cursor of streams and pages. Public id: `ftevent-{seq}`.
    pub seq: i64,
    /// Unix seconds.
    pub created_at: i64,
    /// `info`, `warn` or `error`
    pub level: String,
    /// `message` or `metrics`
    pub kind: String,
    /// For people.
    pub message: String,
    /// For programs.
    pub data: Option<Value>,
}

/// A query's text around its condition.
macro_rules! event_query {
    ($after:literal) => {
        concat!(
            "select seq, extract(epoch from at)::bigint as created_at, level, kind, message, data from job_events where ",
            $after
        )
    };
}

impl Queue {
    /// The job's events after `seq`, oldest first, at most `limit`.
    pub async fn events_after(&self, job: &Job, seq: i64, limit: i64) -> Result<Vec<JobEvent>> {
        let events = sqlx::query_as(event_query!("job = $1 and seq > $2 order by seq limit $3"));
        Ok(events.bind(job.key).bind(seq).bind(limit.clamp(0, MAX_PAGE)).fetch_all(&self.store.pool).await?)
    }

    /// A page of the job's events, newest first, older than `before` where given, and whether there are more.
    pub async fn events_page(&self, job: &Job, before: Option<i64>, limit: i64) -> Result<(Vec<JobEvent>, bool)> {
        let limit = limit.clamp(0, MAX_PAGE);
        let events =
            sqlx::query_as(event_query!("job = $1 and ($2::bigint is null or seq < $2) order by seq desc limit $3"));
        let events = events.bind(job.key).bind(before).bind(limit + 1).fetch_all(&self.store.pool).await?;
        Ok(cut_page(events, limit))
    }

    /// Appends an event, fenced by the job's attempt: nothing is written where another attempt has begun, or where `job`
    /// says that it runs and it does not any more. So a worker adds what it has to say before it calls
    /// [`Queue::finish`], or with the job that this returned.
    pub async fn add_event(
        &self,
        job: &Job,
        level: &str,
        kind: &str,
        message: &str,
        data: Option<Value>,
    ) -> Result<()> {
        // The row's lock comes before the event's number; see `job_change`.
        sqlx::query(
            "with held as materialized (
                 select key from jobs
                  where key = $1 and attempt = $2 and ($3::job_status <> 'running' or status = 'running')
                    for no key update
             )
             insert into job_events (job, attempt, level, kind, message, data)
             select key, $2, $4, $5, $6, $7 from held",
        )
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
