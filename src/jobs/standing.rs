//! The queue as a whole, of all organisations, for those who run the server. Read by the page of operations.

use crate::jobs::queue::Queue;
use crate::jobs::{JobStatus, Result, sql};
use crate::store::files::cut_page;

/// A job that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Unfinished {
    /// `ft-…` or `ftjob-…`
    pub id: String,
    /// Organisation that owns it.
    pub organization: String,
    /// Its state.
    pub status: JobStatus,
    /// `cancel` or `pause` if it is to stop.
    pub stop_request: Option<String>,
    /// Number of the attempt.
    pub attempt: i32,
    /// The worker that has it.
    pub worker: Option<String>,
    /// Time of the request.
    pub created_at: i64,
    /// Time of the last change of status.
    pub updated_at: i64,
}

impl Queue {
    /// Returns jobs that have not ended, those that run first, at most `limit`, and whether there are more.
    pub async fn unfinished(&self, limit: i64) -> Result<(Vec<Unfinished>, bool)> {
        let jobs: Vec<Unfinished> = sqlx::query_as(sql::STANDING).bind(limit + 1).fetch_all(&self.store.pool).await?;
        Ok(cut_page(jobs, limit))
    }
}
