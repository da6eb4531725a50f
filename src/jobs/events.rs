//! Events of a job: what happened, in order, for clients to read and stream.

use serde_json::Value;

use crate::Result;
use crate::jobs::Job;
use crate::jobs::queue::Queue;

/// One event.
#[derive(Debug, Clone, sqlx::FromRow)]
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

impl Queue {
    /// The job's events after `seq`, oldest first, at most `limit`.
    pub async fn events_after(&self, job: &Job, seq: i64, limit: i64) -> Result<Vec<JobEvent>> {
        let _ = (job, seq, limit);
        todo!()
    }

    /// A page of the job's events, newest first, older than `before` where given, and whether there are more.
    pub async fn events_page(&self, job: &Job, before: Option<i64>, limit: i64) -> Result<(Vec<JobEvent>, bool)> {
        let _ = (job, before, limit);
        todo!()
    }

    /// Appends an event (fenced by the job's attempt while it runs).
    pub async fn add_event(
        &self,
        job: &Job,
        level: &str,
        kind: &str,
        message: &str,
        data: Option<Value>,
    ) -> Result<()> {
        let _ = (job, level, kind, message, data);
        todo!()
    }
}
