//! `/evals/{eval_id}/runs`: runs of an eval, with their counts. [`source`] reads what a run is about, [`shown`] is how it is
//! shown.

pub(super) mod shown;
pub(super) mod source;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use self::shown::{EvalRun, show};
use self::source::{Source, models_of};
use super::data_source::SOURCE;
use super::{Direction, name_of, notes, page};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::graders::check::{Task, model_of};
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::list::BoundedPageOf;
use crate::api::http::query::Query;
use crate::store::evals::runs::NewEvalRun;

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
    /// Extension: several models that answer the same items, in place of the data source's `model`.
    #[schema(min_items = 1, max_items = 8)]
    pub models: Option<Vec<String>>,
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
    let eval = state.store.eval(&caller.organization, &eval_id).await?;
    let (name, metadata) = (name_of(request.name)?, notes(request.metadata)?);
    let models = models_of(request.models)?;
    let source = Source::read(&state, &caller.organization, &eval, &request.data_source, &models).await?;
    if source.models.is_empty() && !models.is_empty() {
        let message = "The items come with their answers: no model is asked.";
        return Err(Problem::invalid_code("models", "invalid_value", message));
    }
    for (index, model) in source.models.iter().enumerate() {
        let param = if models.is_empty() { format!("{SOURCE}.model") } else { format!("models[{index}]") };
        model_of(&state, &caller, model, Task::Texts, param).await?;
    }
    let new = NewEvalRun {
        eval: eval_id,
        organization: caller.organization.to_string(),
        key: caller.key.to_string(),
        name: name.unwrap_or_default(),
        models: source.models,
        data_source: request.data_source,
        inputs: source.inputs,
        file: source.file,
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
