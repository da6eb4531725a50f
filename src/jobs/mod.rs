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
pub mod worker;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::adapters::Site;
use crate::train::schedule::Schedule;

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

    /// The object's kind in errors.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::FineTunes => "FineTune",
            Self::FineTuningJobs => "FineTuningJob",
        }
    }
}

/// What a job trains on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Answers to learn.
    #[default]
    Supervised,
    /// Pairs of answers, of which one is preferred: direct preference optimisation.
    Dpo,
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

/// What the older resource's `classification_…` fields asked for; a field is `None` where the client gave none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Classification {
    /// Measure at the end of each epoch.
    pub compute: Option<bool>,
    /// How many classes the training file has.
    pub n_classes: Option<u32>,
    /// The completion that is the positive class, of two.
    pub positive_class: Option<String>,
    /// The betas of the F-beta scores, of two classes.
    pub betas: Option<Vec<f64>>,
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

/// Settings of a fine-tune; `None` is `auto`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hyperparameters {
    /// Passes over the training file.
    pub n_epochs: Option<u32>,
    /// Examples per optimizer step.
    pub batch_size: Option<u32>,
    /// Factor on the base learning rate.
    pub learning_rate_multiplier: Option<f64>,
    /// Weight of the prompt's tokens in the loss (0 trains on completions only).
    pub prompt_loss_weight: Option<f64>,
    /// How strongly the adapter is held to the model that it began as, where training is on preferences.
    pub beta: Option<f64>,
    /// Own extension: factor on the similarities, where training is on pairs of texts.
    pub scale: Option<f64>,
    /// Own extension: rank of the adapter.
    pub rank: Option<u32>,
    /// Own extension: alpha of the adapter.
    pub alpha: Option<f64>,
    /// Own extension: the learning rate itself, before the multiplier.
    pub learning_rate: Option<f64>,
    /// Own extension: the linear layers that the adapter changes.
    pub target_modules: Option<Vec<Site>>,
    /// Own extension: how the learning rate falls.
    pub lr_scheduler: Option<Schedule>,
    /// Own extension: share of the steps in which the learning rate rises.
    pub warmup_ratio: Option<f64>,
    /// Own extension: the optimizer's weight decay.
    pub weight_decay: Option<f64>,
    /// Own extension: largest norm of a step's gradient; 0 leaves it as it is.
    pub max_grad_norm: Option<f64>,
    /// Own extension: share of the adapter's inputs that a training step leaves out.
    pub lora_dropout: Option<f64>,
    /// Own extension: scale the adapter by alpha / √rank in place of alpha / rank.
    pub use_rslora: Option<bool>,
    /// Own extension: tokens of a training sequence at the most.
    pub max_seq_length: Option<u32>,
    /// Own extension: evaluations without a lower validation loss after which training ends; 0 goes on to the end.
    pub early_stopping_patience: Option<u32>,
    /// Own extension: publish the adapter of the lowest validation loss in place of the last one.
    pub keep_best: Option<bool>,
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
