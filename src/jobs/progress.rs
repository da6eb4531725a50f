//! How far jobs are, for people who look at many of them: figures of the last step, what was expected and what it took,
//! and a few losses to draw. Read by `api::ui`;.

use std::collections::HashMap;

use serde_json::Value;
use uuid::Uuid;

use crate::jobs::queue::Queue;
use crate::jobs::rows::JobRow;
use crate::jobs::{Job, JobApi, Result, sql};
use crate::store::files::{Page, cut_page};

/// How far one job is.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct Progress {
    key: Uuid,
    /// The last step that was told.
    pub step: Option<i64>,
    /// Steps of the whole run.
    pub total_steps: Option<i64>,
    /// Loss of that step.
    pub train_loss: Option<f64>,
    /// Time since the attempt began, in seconds.
    pub elapsed_seconds: Option<f64>,
    /// Expected time to the last step, in seconds.
    pub remaining_seconds: Option<f64>,
    /// Data of the event with the first estimate.
    pub estimate: Option<Value>,
    /// Data of the event that has what the run took beside what was expected.
    pub account: Option<Value>,
    /// Losses from the first step to the last, evenly picked.
    pub losses: Vec<f64>,
}

impl Queue {
    /// Returns a page of the organisation's jobs of both resources, newest first, and whether there are more.
    pub async fn all_jobs(&self, organization: &str, page: Page) -> Result<(Vec<Job>, bool)> {
        let limit = page.bounded_limit();
        let rows: Vec<JobRow> = sqlx::query_as(sql::LIST_ALL)
            .bind(organization)
            .bind(page.after)
            .bind(limit + 1)
            .fetch_all(&self.store.pool)
            .await?;
        let (rows, more) = cut_page(rows, limit);
        Ok((rows.into_iter().map(Job::from).collect(), more))
    }

    /// Returns the organisation's job, whichever resource it was created through, or [`Error::NotFound`](crate::jobs::Error::NotFound).
    pub async fn any_job(&self, organization: &str, id: &str) -> Result<Job> {
        let api = JobApi::of_id(id);
        self.job(organization, api.unwrap_or(JobApi::FineTuningJobs), id).await
    }

    /// Returns how far `jobs` are, by their keys, with `losses` losses of each at the most.
    pub async fn progress(&self, jobs: &[Job], losses: i32) -> Result<HashMap<Uuid, Progress>> {
        let keys: Vec<Uuid> = jobs.iter().map(|job| job.key).collect();
        let rows: Vec<Progress> =
            sqlx::query_as(sql::PROGRESS).bind(keys).bind(losses).fetch_all(&self.store.pool).await?;
        Ok(rows.into_iter().map(|progress| (progress.key, progress)).collect())
    }
}

impl JobApi {
    /// Returns the resource that ids of this form belong to.
    pub fn of_id(id: &str) -> Option<Self> {
        [Self::FineTuningJobs, Self::FineTunes].into_iter().find(|api| id.starts_with(api.id_prefix()))
    }
}
