//! A job's row as Rust.

use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::jobs::{Job, JobApi, JobFault, JobSpec, JobStatus};
use crate::train::hyperparameters::Hyperparameters;

/// A row of `jobs`, as the statements in `sql/` select it.
#[derive(sqlx::FromRow)]
pub(super) struct JobRow {
    key: Uuid,
    id: String,
    api: JobApi,
    organization: String,
    status: JobStatus,
    spec: Json<JobSpec>,
    resolved: Option<Json<Hyperparameters>>,
    stop_request: Option<String>,
    checkpoint: Option<Value>,
    attempt: i32,
    error: Option<Json<JobFault>>,
    fine_tuned_model: Option<String>,
    trained_tokens: Option<i64>,
    result_files: Vec<String>,
    estimated_finish: Option<i64>,
    created_at: i64,
    updated_at: i64,
    finished_at: Option<i64>,
}

impl From<JobRow> for Job {
    fn from(row: JobRow) -> Self {
        Self {
            key: row.key,
            id: row.id,
            api: row.api,
            organization: row.organization,
            status: row.status,
            spec: row.spec.0,
            resolved: row.resolved.map(|resolved| resolved.0),
            stop_request: row.stop_request,
            checkpoint: row.checkpoint,
            attempt: row.attempt,
            error: row.error.map(|error| error.0),
            fine_tuned_model: row.fine_tuned_model,
            trained_tokens: row.trained_tokens,
            result_files: row.result_files,
            estimated_finish: row.estimated_finish,
            created_at: row.created_at,
            updated_at: row.updated_at,
            finished_at: row.finished_at,
        }
    }
}
