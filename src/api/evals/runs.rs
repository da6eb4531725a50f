//! `/evals/{eval_id}/runs`: runs of an eval, with their counts.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use super::data_source::{DataSource, Items, MAX_FILE};
use super::form::{item_schema, stored_criteria};
use super::{Direction, name_of, notes, page};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::graders::check::{model_of, refusal};
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::list::BoundedPageOf;
use crate::api::http::query::Query;
use crate::api::operations::checks::not_supported;
use crate::graders::statistics::wilson;
use crate::store;
use crate::store::evals::runs::NewEvalRun;

const SOURCE: &str = "data_source";

/// A run to be made.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CreateRun {
    /// A name for people.
    pub name: Option<String>,
    /// Up to 16 notes of the client's own.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Where the items come from, and who answers: of type `jsonl`, `completions` or `responses`.
    #[schema(value_type = Object)]
    pub data_source: Value,
    /// Not supported: make a run for each model.
    #[schema(ignore)]
    pub models: Option<Value>,
}

/// A run of an eval.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EvalRun {
    /// `evalrun_…`
    pub id: String,
    /// Always `eval.run`.
    pub object: &'static str,
    /// `eval_…`
    pub eval_id: String,
    /// `queued`, `in_progress`, `completed`, `canceled` or `failed`.
    pub status: String,
    /// The model that answers; null where the answers are given.
    pub model: Option<String>,
    /// A name for people.
    pub name: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Always null: there is no page of a run.
    pub report_url: Option<String>,
    /// Items by what came of them, so far.
    pub result_counts: ResultCounts,
    /// Tokens by model; null until an item is done.
    pub per_model_usage: Option<Vec<ModelUsage>>,
    /// Results by criterion; null until an item is done.
    pub per_testing_criteria_results: Option<Vec<CriterionResults>>,
    /// Extension: the share of items that passed, of those with a result; null without any.
    pub pass_rate: Option<PassRate>,
    /// Where the items come from.
    #[schema(value_type = Object)]
    pub data_source: Value,
    /// The client's own notes.
    #[schema(value_type = Object)]
    pub metadata: Value,
    /// Why it failed.
    pub error: Option<RunError>,
}

/// Items by what came of them.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResultCounts {
    /// All that are done.
    pub total: i64,
    /// That could not be answered or graded.
    pub errored: i64,
    /// That did not pass every criterion.
    pub failed: i64,
    /// That did.
    pub passed: i64,
}

/// Tokens that were used of a model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelUsage {
    /// Its name.
    pub model_name: String,
    /// Requests.
    pub invocation_count: i64,
    /// Of prompts.
    pub prompt_tokens: i64,
    /// Of answers.
    pub completion_tokens: i64,
    /// Of both.
    pub total_tokens: i64,
    /// Of prompts that were found in the cache.
    pub cached_tokens: i64,
}

/// Results of one criterion.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CriterionResults {
    /// Its id.
    pub testing_criteria: String,
    /// Items that passed.
    pub passed: i64,
    /// Items that did not.
    pub failed: i64,
    /// Extension: the share that passed; null without results.
    pub pass_rate: Option<PassRate>,
}

/// A share with its 95 % interval.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct PassRate {
    /// The share of items that passed.
    pub value: f64,
    /// Lower end of Wilson's interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Why a run failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunError {
    /// A stable word for programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A run that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedRun {
    /// Always `eval.run.deleted`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
    /// `evalrun_…`
    pub run_id: String,
}

/// Which runs to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RunQuery {
    /// Id of the last run of the page before.
    pub after: Option<String>,
    /// Runs at the most, 1 to 100.
    pub limit: Option<i64>,
    /// `asc` (oldest first, the default) or `desc`.
    #[param(inline)]
    pub order: Option<Direction>,
    /// Only runs with this status.
    #[param(inline)]
    pub status: Option<RunStatus>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RunStatus {
    /// Nothing was done yet.
    Queued,
    /// Items are being done.
    InProgress,
    /// All items are done.
    Completed,
    /// It was cancelled.
    Canceled,
    /// It could not be done.
    Failed,
}

impl RunStatus {
    fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Canceled => "canceled",
            Self::Failed => "failed",
        }
    }
}

/// Run an eval
///
/// The run is worked on in the background; its requests to models count for the key that created it.
#[utoipa::path(
    post, path = "/evals/{eval_id}/runs", operation_id = "createEvalRun", tag = "Evals",
    params(("eval_id" = String, Path)), request_body = CreateRun,
    responses((status = 201, body = EvalRun), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Path(eval_id): Path<String>,
    Body(request): Body<CreateRun>,
) -> Result<(StatusCode, Json<EvalRun>), Problem> {
    if request.models.is_some() {
        return Err(not_supported("models"));
    }
    let eval = state.store.eval(&caller.organization, &eval_id).await?;
    let (name, metadata) = (name_of(request.name)?, notes(request.metadata)?);
    let source = DataSource::parse(&request.data_source).map_err(|fault| refusal(SOURCE, &fault))?;
    check_items(&state, &caller, &source.items, item_schema(&eval.config)).await?;
    if let Some(question) = &source.question {
        model_of(&state, &caller, &question.model, format!("{SOURCE}.model")).await?;
    }
    let new = NewEvalRun {
        eval: eval_id,
        organization: caller.organization.to_string(),
        key: caller.key.to_string(),
        name: name.unwrap_or_default(),
        model: source.question.map(|question| question.model),
        data_source: request.data_source,
        metadata: metadata.unwrap_or_else(|| json!({})),
    };
    let run = state.store.create_eval_run(new).await?;
    Ok((StatusCode::CREATED, Json(show(&state, &eval, run).await?)))
}

/// List an eval's runs
#[utoipa::path(
    get, path = "/evals/{eval_id}/runs", operation_id = "getEvalRuns", tag = "Evals",
    params(("eval_id" = String, Path), RunQuery),
    responses((status = 200, body = BoundedPageOf<EvalRun>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Path(eval_id): Path<String>,
    Query(query): Query<RunQuery>,
) -> Result<Json<BoundedPageOf<EvalRun>>, Problem> {
    let eval = state.store.eval(&caller.organization, &eval_id).await?;
    let page = page(query.after, query.limit, query.order);
    let status = query.status.map(RunStatus::word);
    let (runs, has_more) = state.store.eval_runs(&caller.organization, &eval_id, status, page).await?;
    let mut shown = Vec::new();
    for run in runs {
        shown.push(show(&state, &eval, run).await?);
    }
    Ok(Json(BoundedPageOf::new(shown, has_more, |run| run.id.clone())))
}

/// Read a run
#[utoipa::path(
    get, path = "/evals/{eval_id}/runs/{run_id}", operation_id = "getEvalRun", tag = "Evals",
    params(("eval_id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = EvalRun), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path((eval_id, id)): Path<(String, String)>,
) -> Result<Json<EvalRun>, Problem> {
    let eval = state.store.eval(&caller.organization, &eval_id).await?;
    let run = state.store.eval_run(&caller.organization, &eval_id, &id).await?;
    Ok(Json(show(&state, &eval, run).await?))
}

/// Cancel a run
///
/// What came of the items that are done stays. A run that has ended stays as it is.
#[utoipa::path(
    post, path = "/evals/{eval_id}/runs/{run_id}", operation_id = "cancelEvalRun", tag = "Evals",
    params(("eval_id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = EvalRun), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    Path((eval_id, id)): Path<(String, String)>,
) -> Result<Json<EvalRun>, Problem> {
    let eval = state.store.eval(&caller.organization, &eval_id).await?;
    let run = state.store.cancel_eval_run(&caller.organization, &eval_id, &id).await?;
    Ok(Json(show(&state, &eval, run).await?))
}

/// Delete a run
#[utoipa::path(
    delete, path = "/evals/{eval_id}/runs/{run_id}", operation_id = "deleteEvalRun", tag = "Evals",
    params(("eval_id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = DeletedRun), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path((eval_id, id)): Path<(String, String)>,
) -> Result<Json<DeletedRun>, Problem> {
    state.store.delete_eval_run(&caller.organization, &eval_id, &id).await?;
    Ok(Json(DeletedRun { object: "eval.run.deleted", deleted: true, run_id: id }))
}

/// Checks that given items follow the eval's schema, or that the file is there.
async fn check_items(state: &ApiState, caller: &Caller, items: &Items, schema: &Value) -> Result<()> {
    match items {
        Items::Given(lines) => {
            for (index, line) in lines.iter().enumerate() {
                line.check(schema).map_err(|message| {
                    Problem::invalid_code(format!("{SOURCE}.source.content[{index}].item"), "invalid_value", message)
                })?;
            }
            Ok(())
        }
        Items::File(id) => {
            let param = format!("{SOURCE}.source.id");
            match state.store.file(&caller.organization, id).await {
                Ok(file) if u64::try_from(file.bytes).is_ok_and(|bytes| bytes <= MAX_FILE) => Ok(()),
                Ok(_) => {
                    let message = format!("A file of items has {MAX_FILE} bytes at the most.");
                    Err(Problem::invalid_code(param, "invalid_value", message))
                }
                // The route exists: what is missing is a part of the body.
                Err(error @ store::Error::NotFound { .. }) => Err(Problem::invalid(param, error.to_string())),
                Err(error) => Err(error.into()),
            }
        }
    }
}

/// Returns the run with its counts.
async fn show(state: &ApiState, eval: &store::evals::Eval, run: store::evals::runs::EvalRun) -> Result<EvalRun> {
    let counts = state.store.item_counts(&run).await?;
    let total = counts.passed + counts.failed + counts.errored;
    let (usage, criteria) = if total > 0 {
        let usage = state.store.run_usage(&run).await?.into_iter().map(ModelUsage::from).collect();
        (Some(usage), Some(by_criterion(state, eval, &run).await?))
    } else {
        (None, None)
    };
    let error = run.error_code.zip(run.error).map(|(code, message)| RunError { code, message });
    Ok(EvalRun {
        id: run.id,
        object: "eval.run",
        eval_id: run.eval,
        status: run.status,
        model: run.model,
        name: run.name,
        created_at: run.created_at,
        report_url: None,
        result_counts: ResultCounts { total, errored: counts.errored, failed: counts.failed, passed: counts.passed },
        per_model_usage: usage,
        per_testing_criteria_results: criteria,
        pass_rate: PassRate::of(counts.passed, counts.failed),
        data_source: run.data_source.0,
        metadata: run.metadata.0,
        error,
    })
}

/// Returns the counts of every criterion, also of those without results.
async fn by_criterion(
    state: &ApiState,
    eval: &store::evals::Eval,
    run: &store::evals::runs::EvalRun,
) -> Result<Vec<CriterionResults>> {
    let counts = state.store.criterion_counts(run).await?;
    let criteria = stored_criteria(&eval.criteria).map_err(Problem::defect)?;
    let results = criteria.into_iter().zip(1..).map(|(criterion, place)| {
        let found = counts.iter().find(|counts| counts.place == place);
        let (passed, failed) = found.map_or((0, 0), |counts| (counts.passed, counts.failed));
        CriterionResults { testing_criteria: criterion.id, passed, failed, pass_rate: PassRate::of(passed, failed) }
    });
    Ok(results.collect())
}

impl PassRate {
    fn of(passed: i64, failed: i64) -> Option<Self> {
        let (passed, all) = (u64::try_from(passed).ok()?, u64::try_from(passed + failed).ok()?);
        let (low, high) = wilson(passed, all)?;
        Some(Self { value: passed as f64 / all as f64, low, high })
    }
}

impl From<store::evals::items::ModelUsage> for ModelUsage {
    fn from(usage: store::evals::items::ModelUsage) -> Self {
        Self {
            model_name: usage.model,
            invocation_count: usage.requests,
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            total_tokens: usage.prompt + usage.completion,
            cached_tokens: usage.cached,
        }
    }
}
