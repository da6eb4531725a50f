//! Checkpoints of a job that serve as models: one at the end of each epoch, of which the last few and the best are
//! kept. The worker adds them, `api` lists them. The state that a job resumes from is another thing: the `checkpoint`
//! in its row.

use serde_json::Value;

use crate::jobs::queue::Queue;
use crate::jobs::{Job, Result, sql};
use crate::store::files::{Page, cut_page};
use crate::store::new_id;

/// Newest checkpoints of a job that are kept; the best ones are besides.
const KEPT: i64 = 3;

/// A checkpoint as clients see it.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct ModelCheckpoint {
    /// `ftckpt_…`
    pub id: String,
    /// The model's name.
    pub model: String,
    /// Optimizer steps that it was trained for.
    pub step: i64,
    /// Metrics of that step, by `OpenAI`'s names.
    pub metrics: Value,
    /// Unix seconds.
    pub created_at: i64,
}

/// A checkpoint whose files the worker has stored and whose row is yet to be added.
#[derive(Debug, Clone)]
pub struct NewCheckpoint {
    /// The model's name.
    pub model: String,
    /// Id of the base model.
    pub base: String,
    /// SHA-256 of the adapter.
    pub adapter: String,
    /// Optimizer steps that it was trained for.
    pub step: i64,
    /// Metrics of that step.
    pub metrics: Value,
}

impl Queue {
    /// Makes a stored adapter a model of the job's organisation and drops the oldest checkpoints beyond the last three,
    /// except for the best by full validation loss and by right answers, with their blobs unless another model uses
    /// them. Returns the names of the dropped ones; `None` if the lease is lost and nothing was written. If an earlier
    /// attempt has made a checkpoint of the same name, that one stays.
    pub async fn add_checkpoint(&self, job: &Job, new: &NewCheckpoint) -> Result<Option<Vec<String>>> {
        let rows: Vec<(Option<String>, Option<String>)> = sqlx::query_as(sql::ADD_CHECKPOINT)
            .bind(job.key)
            .bind(job.attempt)
            .bind(&new.model)
            .bind(&new.base)
            .bind(&new.adapter)
            .bind(new_id("ftckpt_"))
            .bind(new.step)
            .bind(&new.metrics)
            .bind(KEPT)
            .fetch_all(&self.store.pool)
            .await?;
        // A job that is still this attempt's has one row at least, without a name if nothing was dropped.
        if rows.is_empty() {
            return Ok(None);
        }
        let mut dropped = Vec::new();
        for (model, adapter) in rows.into_iter().filter_map(|(model, adapter)| model.zip(adapter)) {
            // The sweep removes files that stay behind; the checkpoint is made in any case.
            if let Err(error) = self.store.remove_unused_adapter(&adapter).await {
                tracing::warn!(job = job.id, model, "cannot delete the files of a checkpoint: {error}");
            }
            dropped.push(model);
        }
        Ok(Some(dropped))
    }

    /// Returns a page of the job's checkpoints, newest first, and whether there are more.
    pub async fn checkpoints(&self, job: &Job, page: Page) -> Result<(Vec<ModelCheckpoint>, bool)> {
        let limit = page.bounded_limit();
        let checkpoints = sqlx::query_as(sql::CHECKPOINTS)
            .bind(&job.organization)
            .bind(&job.id)
            .bind(page.after)
            .bind(limit + 1)
            .fetch_all(&self.store.pool)
            .await?;
        Ok(cut_page(checkpoints, limit))
    }
}
