//! A job's row as Rust, and the SQL that every statement on jobs shares.

use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::jobs::{Job, JobApi, JobFault, JobSpec, JobStatus};

use crate::train::hyperparameters::Hyperparameters;

/// A row of `jobs`, as [`job_columns`] selects it.
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

/// The columns of [`JobRow`].
macro_rules! job_columns {
    () => {
        " key, id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error, fine_tuned_model,
          trained_tokens, result_files, estimated_finish, extract(epoch from created_at)::bigint as created_at,
          extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at "
    };
}

/// A change of jobs: the given CTEs, of which one is named `changed` and holds the changed rows, then the events that tell
/// clients of the change, all in one statement. `changed` locks the row before an event takes its number, so the events
/// of one job become visible in the order of their numbers and a reader's cursor misses none.
macro_rules! job_change {
    ($ctes:literal) => {
        job_change!($ctes, "null::text")
    };
    // `$why` is an SQL expression: what to tell the client beside the change itself.
    ($ctes:literal, $why:literal) => {
        concat!(
            "with ",
            $ctes,
            ", said as (
                insert into job_events (job, attempt, level, message)
                select key, attempt, case when status = 'failed' then 'error' when why is null then 'info' else 'warn' end,
                       case api when 'fine_tunes' then 'Fine-tune' else 'Fine-tuning job' end
                       || case
                            when status = 'running' and stop_request = 'cancel' then ' is being cancelled'
                            when status = 'running' and stop_request = 'pause' then ' is being paused'
                            when status = 'running' and attempt > 1 then ' continues'
                            when status = 'running' then ' started'
                            when status = 'queued' then ' waits for a worker'
                            else ' ' || status::text
                          end
                       || coalesce(': ' || why, '')
                  from (select changed.*, ",
            $why,
            " as why from changed) told
                 where status <> 'succeeded'
            ) select",
            job_columns!(),
            "from changed"
        )
    };
}

pub(super) use {job_change, job_columns};
