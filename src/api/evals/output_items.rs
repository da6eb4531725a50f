//! `/evals/{eval_id}/runs/{run_id}/output_items`: what came of each item of a run.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{Direction, page};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Path;
use crate::api::http::list::BoundedPageOf;
use crate::api::http::query::Query;
use crate::store;
use crate::store::evals::runs::EvalRun;

/// What came of an item.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OutputItem {
    /// `outputitem_…`
    pub id: String,
    /// Always `eval.run.output_item`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    /// `evalrun_…`
    pub run_id: String,
    /// `eval_…`
    pub eval_id: String,
    /// `pass`, `fail`, or `error` if it could not be answered or graded.
    pub status: String,
    /// Its place among the items, from 0.
    pub datasource_item_id: i32,
    /// The item.
    #[schema(value_type = Object)]
    pub datasource_item: Value,
    /// What each criterion says.
    #[schema(value_type = Vec<Object>)]
    pub results: Value,
    /// The answer, with the `model` that gave it.
    #[schema(value_type = Object)]
    pub sample: Value,
}

/// Which items to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ItemQuery {
    /// Id of the last item of the page before.
    pub after: Option<String>,
    /// Items at the most, 1 to 100.
    pub limit: Option<i64>,
    /// `asc` (in the order of the data source, the default) or `desc`.
    #[param(inline)]
    pub order: Option<Direction>,
    /// Only items of which this came.
    #[param(inline)]
    pub status: Option<ItemStatus>,
}

/// What came of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ItemStatus {
    /// It passed every criterion.
    Pass,
    /// It did not.
    Fail,
    /// Extension: it could not be answered or graded.
    Error,
}

/// List what came of a run's items
#[utoipa::path(
    get, path = "/evals/{eval_id}/runs/{run_id}/output_items", operation_id = "getEvalRunOutputItems", tag = "Evals",
    params(("eval_id" = String, Path), ("run_id" = String, Path), ItemQuery),
    responses((status = 200, body = BoundedPageOf<OutputItem>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Path((eval_id, run_id)): Path<(String, String)>,
    Query(query): Query<ItemQuery>,
) -> Result<Json<BoundedPageOf<OutputItem>>, Problem> {
    let run = state.store.eval_run(&caller.organization, &eval_id, &run_id).await?;
    let status = query.status.map(|status| match status {
        ItemStatus::Pass => "pass",
        ItemStatus::Fail => "fail",
        ItemStatus::Error => "error",
    });
    let page = page(query.after, query.limit, query.order);
    let (items, has_more) = state.store.output_items(&run, status, page).await?;
    let items = items.into_iter().map(|item| OutputItem::new(&run, item)).collect();
    Ok(Json(BoundedPageOf::new(items, has_more, |item: &OutputItem| item.id.clone())))
}

/// Read what came of an item
#[utoipa::path(
    get, path = "/evals/{eval_id}/runs/{run_id}/output_items/{output_item_id}", operation_id = "getEvalRunOutputItem",
    tag = "Evals", params(("eval_id" = String, Path), ("run_id" = String, Path), ("output_item_id" = String, Path)),
    responses((status = 200, body = OutputItem), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path((eval_id, run_id, id)): Path<(String, String, String)>,
) -> Result<Json<OutputItem>, Problem> {
    let run = state.store.eval_run(&caller.organization, &eval_id, &run_id).await?;
    let item = state.store.output_item(&run, &id).await?;
    Ok(Json(OutputItem::new(&run, item)))
}

impl OutputItem {
    fn new(run: &EvalRun, item: store::evals::items::OutputItem) -> Self {
        Self {
            id: item.id,
            object: "eval.run.output_item",
            created_at: item.created_at,
            run_id: run.id.clone(),
            eval_id: run.eval.clone(),
            status: item.status,
            datasource_item_id: item.number / run.answers(),
            datasource_item: item.item.0,
            results: item.results.0,
            sample: item.sample.0,
        }
    }
}
