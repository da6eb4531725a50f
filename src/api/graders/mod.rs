//! Graders, run: `/fine_tuning/alpha/graders/run` and `…/validate`. [`judge`] runs a grader on an answer, and asks
//! models by [`ask`] and runs code by [`python`]; [`check`] refuses a grader that could not be run; [`outcome`] is what comes of it. `evals` judges
//! the items of its runs by the same [`judge`].

pub(super) mod ask;
pub(super) mod check;
pub(super) mod judge;
pub(super) mod outcome;
pub(super) mod python;

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use self::ask::Asker;
use self::judge::Judge;
use self::outcome::GraderErrors;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::access::inside::Inside;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Body;
use crate::api::operations::checks::not_supported;
use crate::graders::spec::{Purpose, normalized};
use crate::graders::template::Sample;

/// An answer to be graded.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct RunGrader {
    /// The grader: `string_check`, `text_similarity`, `score_model`, `label_model`, `python` or `multi`.
    #[schema(value_type = Object)]
    pub grader: Value,
    /// The answer of a model; `{{sample.output_text}}` in the grader.
    pub model_sample: String,
    /// What the answer belongs to; `{{item.…}}` in the grader.
    #[schema(value_type = Option<Object>)]
    pub item: Option<Value>,
    /// Not supported: write it into `item`.
    pub reference_answer: Option<Value>,
}

/// A grader to be checked.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ValidateGrader {
    /// The grader.
    #[schema(value_type = Object)]
    pub grader: Value,
}

/// A grader that can be run.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ValidatedGrader {
    /// The grader.
    #[schema(value_type = Object)]
    pub grader: Value,
}

/// What a grader says of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GraderRun {
    /// The score; 0 if the grader failed.
    pub reward: f64,
    /// How it came about.
    pub metadata: GraderRunMetadata,
    /// The scores of the parts of a `multi` grader.
    #[schema(value_type = Object)]
    pub sub_rewards: Map<String, Value>,
    /// Tokens that models used, by their names.
    #[schema(value_type = Object)]
    pub model_grader_token_usage_per_model: Map<String, Value>,
}

/// How a score came about.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GraderRunMetadata {
    /// Name of the grader.
    pub name: String,
    /// Type of the grader.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What went wrong, if anything did.
    pub errors: GraderErrors,
    /// Seconds.
    pub execution_time: f64,
    /// The scores of the parts of a `multi` grader.
    #[schema(value_type = Object)]
    pub scores: Map<String, Value>,
    /// Tokens that models used; null if none was asked.
    pub token_usage: Option<u64>,
    /// The model that was asked; null if none was, or several.
    pub sampled_model_name: Option<String>,
}

/// Run a grader
///
/// A grader that fails while it runs is no error of the request: the reward is 0, and `metadata.errors` says what
/// happened.
#[utoipa::path(
    post, path = "/fine_tuning/alpha/graders/run", operation_id = "runGrader", tag = "Fine-tuning",
    request_body = RunGrader,
    responses((status = 200, body = GraderRun), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn run(
    State(state): State<ApiState>,
    caller: Caller,
    inside: Inside,
    Body(request): Body<RunGrader>,
) -> Result<Json<GraderRun>, Problem> {
    if request.reference_answer.is_some() {
        return Err(not_supported("reference_answer"));
    }
    let item = request.item.unwrap_or_else(|| json!({}));
    if !item.is_object() {
        return Err(Problem::wrong_type("item", "expected an object"));
    }
    let grader = check::grader(&state, &caller, &request.grader, "grader", Purpose::Reward).await?;
    let sample = Sample { text: Some(request.model_sample), ..Sample::default() };
    let judge = Judge::new(&state, Asker::new(inside, state.teachers.clone(), caller));
    let begun = Instant::now();
    let judged = judge.judge(&grader, &item, &sample).await;
    let usage = judged.tokens_by_model();
    let metadata = GraderRunMetadata {
        name: grader.name.clone(),
        kind: grader.type_name(),
        errors: GraderErrors::of(&judged.failures),
        execution_time: begun.elapsed().as_secs_f64(),
        scores: judged.parts.clone(),
        token_usage: (!usage.is_empty()).then(|| usage.values().filter_map(Value::as_u64).sum()),
        sampled_model_name: if usage.len() == 1 { usage.keys().next().cloned() } else { None },
    };
    Ok(Json(GraderRun {
        reward: judged.score,
        metadata,
        sub_rewards: judged.parts,
        model_grader_token_usage_per_model: usage,
    }))
}

/// Check a grader
#[utoipa::path(
    post, path = "/fine_tuning/alpha/graders/validate", operation_id = "validateGrader", tag = "Fine-tuning",
    request_body = ValidateGrader,
    responses((status = 200, body = ValidatedGrader), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn validate(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<ValidateGrader>,
) -> Result<Json<ValidatedGrader>, Problem> {
    check::whole(&state, &caller, &request.grader, "grader", Purpose::Reward).await?;
    Ok(Json(ValidatedGrader { grader: normalized(&request.grader) }))
}
