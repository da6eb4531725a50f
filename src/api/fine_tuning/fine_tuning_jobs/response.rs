//! The bodies of answers of `fine_tuning_jobs`, made from jobs and their events.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::attached_eval::AttachedEval;
use super::distillation::DistillationSettings;
use super::request::MethodSettings;
use super::settings::Settings;
use crate::api::fine_tuning::event_text::event_text;
use crate::jobs::checkpoints::ModelCheckpoint;
use crate::jobs::events::JobEvent;
use crate::jobs::{Job, JobFault, JobStatus};
use crate::train::hyperparameters::Method;

/// A fine-tuning job.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FineTuningJob {
    /// Always `fine_tuning.job`.
    pub object: &'static str,
    /// `ftjob-…`
    pub id: String,
    /// The model that is trained.
    pub model: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub finished_at: Option<i64>,
    /// The new model, once there is one.
    pub fine_tuned_model: Option<String>,
    /// The owner.
    pub organization_id: String,
    /// Ids of the files that training wrote.
    pub result_files: Vec<String>,
    /// Where the job stands.
    #[schema(value_type = String)]
    pub status: JobStatus,
    /// Id of the file to train on. One that is made of a teacher's answers is there once they are.
    pub training_file: String,
    /// Id of the file to measure on.
    pub validation_file: Option<String>,
    /// The settings; numbers once training has chosen them.
    pub hyperparameters: Settings,
    /// Tokens trained on, repeats counted.
    pub trained_tokens: Option<i64>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// Part of the new model's name.
    pub user_provided_suffix: Option<String>,
    /// The seed, chosen or asked for.
    pub seed: u64,
    /// Unix seconds when it should end.
    pub estimated_finish: Option<i64>,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub integrations: [(); 0],
    /// How it trains.
    pub method: JobMethod,
    /// The client's own notes.
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    pub metadata: Option<Map<String, Value>>,
    /// Always null.
    #[schema(value_type = Option<Object>)]
    pub usage_metrics: Option<()>,
    /// Always false: nothing leaves this server.
    pub shared_with_openai: bool,
    /// The eval that is run once the job has succeeded.
    pub eval_id: Option<String>,
    /// Extension: that eval, with its items and what follows from it; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<AttachedEval>,
}

/// How a job trains.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobMethod {
    /// `supervised`, `dpo` or `distillation`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The settings of `supervised`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervised: Option<MethodSettings>,
    /// The settings of `dpo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dpo: Option<MethodSettings>,
    /// The settings of `distillation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distillation: Option<DistillationSettings>,
}

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobError {
    /// A stable word for programs.
    pub code: String,
    /// What to change.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
}

/// Something that happened to a job.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FineTuningEvent {
    /// Always `fine_tuning.job.event`.
    pub object: &'static str,
    /// `ftevent-…`
    pub id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// What happened.
    pub message: String,
    /// `message` or `metrics`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The numbers of a `metrics` event.
    #[schema(value_type = Option<Object>)]
    pub data: Option<Value>,
}

/// A state of a job at the end of an epoch, which can be used as a model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Checkpoint {
    /// Always `fine_tuning.job.checkpoint`.
    pub object: &'static str,
    /// `ftckpt_…`
    pub id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// The job that made it.
    pub fine_tuning_job_id: String,
    /// Steps that it was trained for.
    pub step_number: i64,
    /// The name to use as a model.
    #[serde(rename = "fine_tuned_model_checkpoint")]
    pub model: String,
    /// Figures of its last step, and of the validation file where there is one.
    #[schema(value_type = Object)]
    pub metrics: Value,
}

impl Checkpoint {
    /// Makes the body for a checkpoint of the job with the id `job`.
    pub(crate) fn new(job: &str, checkpoint: ModelCheckpoint) -> Self {
        let ModelCheckpoint { id, model, step, metrics, created_at } = checkpoint;
        Self {
            object: "fine_tuning.job.checkpoint",
            id,
            created_at,
            fine_tuning_job_id: job.into(),
            step_number: step,
            model,
            metrics,
        }
    }
}

impl From<Job> for FineTuningJob {
    fn from(job: Job) -> Self {
        let settings = Settings::of(&job);
        let own = || Some(MethodSettings { hyperparameters: Some(settings.clone()) });
        let none = JobMethod { kind: "", supervised: None, dpo: None, distillation: None };
        let method = match (&job.spec.distillation, job.spec.method) {
            (Some(plan), _) => {
                let distillation = Some(DistillationSettings::of(plan, settings.clone()));
                JobMethod { kind: "distillation", distillation, ..none }
            }
            (None, Method::Supervised) => JobMethod { kind: "supervised", supervised: own(), ..none },
            (None, Method::Dpo) => JobMethod { kind: "dpo", dpo: own(), ..none },
        };
        Self {
            object: "fine_tuning.job",
            id: job.id,
            model: job.spec.asked_model().to_owned(),
            created_at: job.created_at,
            finished_at: job.finished_at,
            fine_tuned_model: job.fine_tuned_model,
            organization_id: job.organization,
            result_files: job.result_files,
            status: job.status,
            training_file: job.spec.training_file,
            validation_file: job.spec.validation_file,
            hyperparameters: settings,
            trained_tokens: job.trained_tokens,
            error: job.error.map(JobError::from),
            user_provided_suffix: job.spec.suffix,
            seed: job.spec.seed,
            estimated_finish: job.estimated_finish,
            integrations: [],
            method,
            metadata: job.spec.metadata,
            usage_metrics: None,
            shared_with_openai: false,
            eval_id: job.spec.eval.as_ref().map(|eval| eval.id.clone()),
            eval: job.spec.eval.map(AttachedEval::of),
        }
    }
}

impl From<JobFault> for JobError {
    fn from(fault: JobFault) -> Self {
        let JobFault { code, message, param } = fault;
        Self { code, message, param }
    }
}

impl FineTuningEvent {
    /// Returns the body for an event of `job`.
    pub(crate) fn new(job: &Job, event: JobEvent) -> Self {
        Self {
            object: "fine_tuning.job.event",
            id: format!("ftevent-{}", event.seq),
            created_at: event.created_at,
            message: event_text(job, &event),
            level: event.level,
            kind: event.kind,
            data: event.data,
        }
    }
}
