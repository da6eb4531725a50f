//! `POST /fine_tuning/jobs/estimate`: the time, memory and cost of a job before it is created. An extension of this
//! server.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::distillation;
use super::request::CreateJob;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::access::inside::Inside;
use crate::api::distillation::forecast::{Forecast, forecast};
use crate::api::fine_tuning::fields::JobBody;
use crate::api::fine_tuning::job_rules::admitted;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::jobs::JobSpec;
use crate::jobs::worker::estimate::JobEstimate;
use crate::teachers::money::Money;

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

/// What a job would take: training, or the answers that a distillation trains on.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Estimated {
    /// On this server's machine.
    Training(Box<FineTuningJobEstimate>),
    /// Of the teacher; nobody knows before how many of its answers there will be to train on.
    Distillation(DistillationEstimate),
}

/// What the answers of a teacher may cost.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DistillationEstimate {
    /// Always `fine_tuning.job.distillation_estimate`.
    pub object: &'static str,
    /// The model that would be trained.
    pub model: String,
    /// Who would answer.
    pub teacher: Option<String>,
    /// Prompts, each counted once.
    pub prompts: usize,
    /// Prompts that stand there again, and are not asked again.
    pub duplicate_prompts: usize,
    /// Requests to the teacher.
    pub requests: usize,
    /// Tokens of all prompts at the most.
    pub prompt_tokens_at_most: u64,
    /// Tokens of all answers at the most.
    pub completion_tokens_at_most: u64,
    /// The most that teacher and graders can cost, if every answer is as long as it may be.
    pub cost_at_most: f64,
    /// The budget of the request.
    pub max_teacher_cost: Option<f64>,
    /// Whether every prompt can be asked within the budget, however long the answers are.
    pub fits: bool,
    /// The money.
    pub currency: String,
}

impl DistillationEstimate {
    fn new(spec: JobSpec, forecast: &Forecast, currency: &str) -> Self {
        let model = spec.asked_model().to_owned();
        let plan = spec.distillation;
        let budget = plan.as_ref().and_then(|plan| plan.max_teacher_cost);
        Self {
            object: "fine_tuning.job.distillation_estimate",
            model,
            teacher: plan.and_then(|plan| plan.teacher),
            prompts: forecast.prompts,
            duplicate_prompts: forecast.duplicate_prompts,
            requests: forecast.requests,
            prompt_tokens_at_most: forecast.prompt_tokens,
            completion_tokens_at_most: forecast.completion_tokens,
            cost_at_most: forecast.cost.units(),
            max_teacher_cost: budget.map(Money::units),
            fits: budget.is_none_or(|budget| forecast.cost <= budget),
            currency: currency.to_owned(),
        }
    }
}

/// Estimate a job
///
/// Takes the body that creates a job and tells what the job would take; nothing is created. Of a distillation it tells
/// the most that the teacher may cost. The first estimate of a model measures the machine for some seconds, while
/// requests go first.
#[utoipa::path(
    post, path = "/fine_tuning/jobs/estimate", operation_id = "estimateFineTuningJob", tag = "Fine-tuning",
    request_body = CreateJob,
    responses((status = 200, body = Estimated), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    inside: Inside,
    JobBody(request): JobBody<CreateJob>,
) -> Result<Json<Estimated>, Problem> {
    let spec = request.spec()?;
    distillation::admit(&state, &caller, &spec).await?;
    let spec = admitted(&state, &caller, spec).await?;
    if spec.distillation.is_some() {
        state.completions.flush().await?;
        let forecast = forecast(&state, &caller, inside, &spec).await?;
        return Ok(Json(Estimated::Distillation(DistillationEstimate::new(spec, &forecast, &state.config.currency))));
    }
    match state.estimator.estimate(&caller.organization, &spec, &state.shutdown).await {
        Ok(estimate) => Ok(Json(Estimated::Training(Box::new(FineTuningJobEstimate::new(spec, estimate)?)))),
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
