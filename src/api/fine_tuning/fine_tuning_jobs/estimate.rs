//! `POST /fine_tuning/jobs/estimate`: the time, memory and cost of a job before it is created. An extension of this
//! server.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::request::CreateJob;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::fine_tuning::fields::JobBody;
use crate::api::fine_tuning::job_rules::admitted;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::jobs::JobSpec;
use crate::jobs::worker::estimate::JobEstimate;

/// What a job would take on this server's machine.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FineTuningJobEstimate {
    /// Always `fine_tuning.job.estimate`.
    pub object: &'static str,
    /// The model that would be trained.
    pub model: String,
    /// Id of the file to train on.
    pub training_file: String,
    /// Id of the file to measure on.
    pub validation_file: Option<String>,
    /// The settings, each as training would use it.
    #[schema(value_type = Object)]
    pub hyperparameters: Value,
    /// Examples in the training file.
    pub examples: usize,
    /// Tokens that an epoch reads.
    pub tokens_per_epoch: usize,
    /// Those of them that an epoch learns.
    pub target_tokens_per_epoch: usize,
    /// Passes over the file.
    pub epochs: usize,
    /// Optimizer steps in all.
    pub steps: usize,
    /// Tokens read in all, repeats counted: what a finished job's `trained_tokens` says.
    pub trained_tokens: u64,
    /// Those of them that are learned.
    pub target_tokens: u64,
    /// Tokens that one evaluation of the validation file reads.
    pub validation_tokens: usize,
    /// How fast this machine trains with nothing else to do, as measured.
    pub tokens_per_second: f64,
    /// From the first step to the last on a machine with nothing else to do, evaluations included.
    pub duration_seconds: f64,
    /// The fewest seconds that this should take.
    pub duration_low_seconds: f64,
    /// The most seconds that this should take at the present load of the machine.
    pub duration_high_seconds: f64,
    /// Why the duration is uncertain: `the machine is busy`, `the speed was measured for a few seconds only` or `the
    /// speed of the machine changes a little`.
    pub uncertainty: &'static str,
    /// What the backward pass computes again, to need less memory: `none`, `selective` or `full`.
    pub recomputation: &'static str,
    /// The most memory of the process.
    pub memory_bytes: EstimatedMemory,
    /// In money, where the server knows prices.
    pub cost: EstimatedCost,
    /// What is worth a look in the training file.
    pub warnings: Vec<String>,
}

/// The most memory that the server's process would have, in bytes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EstimatedMemory {
    /// All of it.
    pub peak: u64,
    /// What the process holds without the job.
    pub process: u64,
    /// The base model's weights, a part of that.
    pub weights: u64,
    /// The adapter, its gradients and the optimizer's moments.
    pub adapter: u64,
    /// Activations of the largest batch.
    pub activations: u64,
    /// Logits of a chunk of targets with their gradient.
    pub loss: u64,
    /// What the allocator holds beside that.
    pub allocator: u64,
    /// What the job may add to the process; null where nobody knows.
    pub available: Option<u64>,
}

/// What a job would cost. A part is null where the server's configuration has no price for it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EstimatedCost {
    /// The money.
    pub currency: String,
    /// The hours of the machine, at `training.price_per_hour`, for `duration_seconds`.
    pub machine: Option<f64>,
    /// The same for `duration_low_seconds`.
    pub machine_low: Option<f64>,
    /// The same for `duration_high_seconds`.
    pub machine_high: Option<f64>,
    /// The tokens, at the base model's price for training.
    pub tokens: Option<f64>,
}

/// Estimate a job
///
/// Takes the body that creates a job and tells what the job would take; nothing is created. The first estimate of a model
/// measures the machine for some seconds, while requests go first.
#[utoipa::path(
    post, path = "/fine_tuning/jobs/estimate", operation_id = "estimateFineTuningJob", tag = "Fine-tuning",
    request_body = CreateJob,
    responses((status = 200, body = FineTuningJobEstimate), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    JobBody(request): JobBody<CreateJob>,
) -> Result<Json<FineTuningJobEstimate>, Problem> {
    let spec = admitted(&state, &caller, request.spec()?).await?;
    match state.estimator.estimate(&caller.organization, &spec, &state.shutdown).await {
        Ok(estimate) => Ok(Json(FineTuningJobEstimate::new(spec, estimate)?)),
        Err(error) => Err(Problem::from(error).about_model(spec.asked_model())),
    }
}

/// Returns the estimate as this route answers it, for the command line.
pub fn show(spec: JobSpec, estimate: JobEstimate) -> Result<Value> {
    let answer = FineTuningJobEstimate::new(spec, estimate)?;
    serde_json::to_value(answer).map_err(|error| Problem::defect(format!("an estimate as JSON: {error}")))
}

impl FineTuningJobEstimate {
    fn new(spec: JobSpec, made: JobEstimate) -> Result<Self> {
        let JobEstimate { resolved, estimate, cost, cost_bounds: [cheapest, dearest], warnings, .. } = made;
        let hyperparameters =
            serde_json::to_value(resolved).map_err(|error| Problem::defect(format!("settings as JSON: {error}")))?;
        let memory = estimate.memory;
        Ok(Self {
            object: "fine_tuning.job.estimate",
            model: spec.asked_model().to_owned(),
            training_file: spec.training_file,
            validation_file: spec.validation_file,
            hyperparameters,
            examples: estimate.examples,
            tokens_per_epoch: estimate.tokens_per_epoch,
            target_tokens_per_epoch: estimate.target_tokens_per_epoch,
            epochs: estimate.epochs,
            steps: estimate.steps,
            trained_tokens: estimate.trained_tokens,
            target_tokens: estimate.target_tokens,
            validation_tokens: estimate.validation_tokens,
            tokens_per_second: estimate.tokens_per_second,
            duration_seconds: estimate.seconds,
            duration_low_seconds: estimate.low,
            duration_high_seconds: estimate.high,
            uncertainty: estimate.uncertainty.in_words(),
            recomputation: estimate.recomputation.name(),
            memory_bytes: EstimatedMemory {
                peak: memory.peak,
                process: memory.process,
                weights: memory.weights,
                adapter: memory.adapter,
                activations: memory.activations,
                loss: memory.loss,
                allocator: memory.allocator,
                available: memory.available,
            },
            cost: EstimatedCost {
                currency: cost.currency,
                machine: cost.machine,
                machine_low: cheapest.machine,
                machine_high: dearest.machine,
                tokens: cost.tokens,
            },
            warnings,
        })
    }
}
