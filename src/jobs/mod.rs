//! Fine-tune jobs: the queue in Postgres (the only writer of a job's status), its events, and the worker. `api`
//! enqueues, stops and reads; the worker claims, reports and finishes.
//!
//! The row *is* the queue entry and the API's resource. A worker claims it with a lease and an attempt number; every
//! write of the worker carries that number (the fence), so a worker that lost its lease changes nothing.

pub mod batches;
mod changes;
pub mod checkpoints;
pub mod collections;
pub mod cost;
pub mod curves;
mod error;
pub mod evals;
pub mod events;
pub mod progress;
pub mod queue;
pub mod retention;
mod rows;
mod sql;
pub mod standing;
mod training_rates;
pub mod worker;

pub use error::{Error, Result};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::collections::{Distillation, Prompts};
use crate::train::hyperparameters::{Classification, Hyperparameters, Method};
use crate::train::settings::Defaults;

/// State of a job; the diagram of the changes is in `docs/architecture.md`.
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
    /// Returns true for the states that a job never leaves, but for one that failed through the server's fault and is
    /// resumed.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Returns the word in the row.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The one of `OpenAI`'s two resources that a job was created through; it decides the id's form and the model's name.
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
    /// Returns the beginning of public ids.
    pub(crate) const fn id_prefix(self) -> &'static str {
        match self {
            Self::FineTunes => "ft-",
            Self::FineTuningJobs => "ftjob-",
        }
    }

    /// Returns which resource's defaults replace `auto`.
    pub(crate) const fn defaults(self) -> Defaults {
        match self {
            Self::FineTunes => Defaults::Legacy,
            Self::FineTuningJobs => Defaults::Current,
        }
    }

    /// Returns the object's kind, as errors name it.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::FineTunes => "FineTune",
            Self::FineTuningJobs => "FineTuningJob",
        }
    }
}

/// The client's request, with `auto` already turned into a number unless that needs the files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobSpec {
    /// Name of the base model, or of an earlier fine-tuned one to continue.
    pub model: String,
    /// Alias by which the client asked for that model, if it did; answers name it, and the new model's name begins with
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Id of the file to train on.
    pub training_file: String,
    /// Id of the file to measure on.
    pub validation_file: Option<String>,
    /// Text in the new model's name, chosen by the client.
    pub suffix: Option<String>,
    /// Seed of the adapter's initialisation and of the data order.
    pub seed: u64,
    /// Training method.
    #[serde(default)]
    pub method: Method,
    /// Settings as asked for; `None` means `auto`.
    pub hyperparameters: Hyperparameters,
    /// The client's own notes.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// Classification metrics to compute; `None` if the client did not ask for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// Eval to run once the job has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<evals::JobEval>,
    /// How the training file is made, which has its id already; `None` if it is the client's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillation: Option<Distillation>,
}

/// Metadata that listed jobs must have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MetadataFilter {
    /// Any or none.
    #[default]
    Any,
    /// No metadata.
    None,
    /// These pairs, among others.
    All(serde_json::Map<String, serde_json::Value>),
}

impl JobSpec {
    /// Returns the file that the client gave to learn from, with the field that names it: the training file, or that of
    /// the prompts that a teacher answers. `None` if what is learned is stored already.
    pub(crate) fn input_file(&self) -> Option<(&'static str, &str)> {
        match self.distillation.as_ref().map(|distillation| &distillation.prompts) {
            None => Some(("training_file", &self.training_file)),
            Some(Prompts::File(file)) => Some(("method.distillation.prompts", file)),
            Some(Prompts::StoredCompletions(_)) => None,
        }
    }

    /// Returns the model as the client named it.
    pub(crate) fn asked_model(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.model)
    }

    /// Returns the file with the items of the eval, if they stand in one.
    pub(crate) fn eval_file(&self) -> Option<&str> {
        self.eval.as_ref()?.data_source["source"]["id"].as_str()
    }
}

/// Reason for which a job failed, for the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFault {
    /// Stable word, such as `invalid_training_file`.
    pub code: String,
    /// Text that says what to change.
    pub message: String,
    /// Field of the request at fault.
    pub param: Option<String>,
}

/// Who is to blame for what ended an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The request, which would fail again.
    Request,
    /// The server: the job can be resumed.
    Server,
}

/// One job as stored. Times are unix seconds.
#[derive(Debug, Clone)]
pub struct Job {
    /// Key inside the database.
    pub key: Uuid,
    /// `ft-…` or `ftjob-…`
    pub id: String,
    /// Resource it was created through.
    pub api: JobApi,
    /// Organisation that owns it.
    pub organization: String,
    /// Its state.
    pub status: JobStatus,
    /// The client's request.
    pub spec: JobSpec,
    /// Settings that training uses, every field a number; `None` until training has chosen them.
    pub resolved: Option<Hyperparameters>,
    /// `cancel` or `pause` if the client asked for it and the worker has yet to stop.
    pub stop_request: Option<String>,
    /// Where the state to resume from is stored: `{step, key}`.
    pub checkpoint: Option<serde_json::Value>,
    /// Number of the attempt; the fence of the worker's writes.
    pub attempt: i32,
    /// Reason of the failure; `None` unless it failed.
    pub error: Option<JobFault>,
    /// Name of the published model.
    pub fine_tuned_model: Option<String>,
    /// Tokens trained on, those of every epoch counted.
    pub trained_tokens: Option<i64>,
    /// Ids of result files.
    pub result_files: Vec<String>,
    /// Time at which the worker expects to finish.
    pub estimated_finish: Option<i64>,
    /// Time of the request.
    pub created_at: i64,
    /// Time of the last change of status.
    pub updated_at: i64,
    /// Time at which it reached a final state.
    pub finished_at: Option<i64>,
}
