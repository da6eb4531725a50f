//! Fine-tune jobs: the queue in Postgres (the only writer of a job's status), its events, and the worker. `api` enqueues,
//! stops and reads; the worker claims, reports and finishes.
//!
//! The row *is* the queue entry and the API's resource. A worker claims it with a lease and an attempt number; every write
//! of the worker carries that number (the fence), so a worker that lost its lease changes nothing.

mod changes;
pub mod checkpoints;
pub mod cost;
pub mod events;
pub mod queue;
mod rows;
mod sql;
mod training_rates;
pub mod worker;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::train::hyperparameters::{Classification, Hyperparameters, Method};
use crate::train::settings::Defaults;

/// The life of a job; the diagram is in `docs/architecture.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type, Serialize, Deserialize)]
#[sqlx(type_name = "job_status", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Waits for a worker.
    Queued,
    /// A worker holds the lease.
    Running,
    /// Stopped on request; resumes from its checkpoint.
    Paused,
    /// The model is published.
    Succeeded,
    /// `error` says why.
    Failed,
    /// Stopped on request for good.
    Cancelled,
}

impl JobStatus {
    /// True for the states that nothing leaves.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Which of `OpenAI`'s two resources a job was created through; it decides the id's form and the model's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type, Serialize, Deserialize)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum JobApi {
    /// `/v1/fine_tunes`, ids `ft-…`
    FineTunes,
    /// `/v1/fine_tuning/jobs`, ids `ftjob-…`
    FineTuningJobs,
}

impl JobApi {
    /// Where public ids begin.
    pub const fn id_prefix(self) -> &'static str {
        match self {
            Self::FineTunes => "ft-",
            Self::FineTuningJobs => "ftjob-",
        }
    }

    /// Whose defaults replace `auto`.
    pub const fn defaults(self) -> Defaults {
        match self {
            Self::FineTunes => Defaults::Legacy,
            Self::FineTuningJobs => Defaults::Current,
        }
    }

    /// The object's kind in errors.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::FineTunes => "FineTune",
            Self::FineTuningJobs => "FineTuningJob",
        }
    }
}

/// What the client asked for, with every `auto` already turned into a number where that needs no file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobSpec {
    /// The base model, or an earlier fine-tuned one to continue.
    pub model: String,
    /// The alias of that model that the client asked for; what the client is told, and where the new model's name begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// File id.
    pub training_file: String,
    /// File id.
    pub validation_file: Option<String>,
    /// Part of the new model's name.
    pub suffix: Option<String>,
    /// Seed of initialisation and data order.
    pub seed: u64,
    /// What it trains on.
    #[serde(default)]
    pub method: Method,
    /// Settings as asked for; `None` means `auto`.
    pub hyperparameters: Hyperparameters,
    /// The client's own notes.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// How well the model sorts texts into classes is measured, where the client asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
}

/// The metadata that listed jobs must have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MetadataFilter {
    /// Whatever they have.
    #[default]
    Any,
    /// None at all.
    None,
    /// These pairs, among others.
    All(serde_json::Map<String, serde_json::Value>),
}

impl JobSpec {
    /// The model as the client named it.
    pub fn asked_model(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.model)
    }
}

/// Why a job failed, for the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFault {
    /// A stable word, such as `invalid_training_file`.
    pub code: String,
    /// What to change.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
}

/// One job as stored. Times are unix seconds.
#[derive(Debug, Clone)]
pub struct Job {
    /// Key inside the database.
    pub key: Uuid,
    /// `ft-…` or `ftjob-…`
    pub id: String,
    /// The resource it was created through.
    pub api: JobApi,
    /// The owner.
    pub organization: String,
    /// Where it stands.
    pub status: JobStatus,
    /// The request.
    pub spec: JobSpec,
    /// The settings that training uses, once known: every field a number.
    pub resolved: Option<Hyperparameters>,
    /// `cancel` or `pause`, while running.
    pub stop_request: Option<String>,
    /// The resumable state's place, `{step, key}`.
    pub checkpoint: Option<serde_json::Value>,
    /// The fencing token.
    pub attempt: i32,
    /// Why it failed.
    pub error: Option<JobFault>,
    /// The published model.
    pub fine_tuned_model: Option<String>,
    /// Tokens trained on, repeats counted.
    pub trained_tokens: Option<i64>,
    /// Ids of result files.
    pub result_files: Vec<String>,
    /// When the worker expects to finish.
    pub estimated_finish: Option<i64>,
    /// When it was asked for.
    pub created_at: i64,
    /// Last change of status.
    pub updated_at: i64,
    /// When it reached a final state.
    pub finished_at: Option<i64>,
}
