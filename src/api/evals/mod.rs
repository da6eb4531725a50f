//! `/evals`: what is measured. An eval has the form of its items and the criteria, which are graders; a run ([`runs`])
//! judges a model's answers, or given ones, by them, and [`output_items`] shows what came of each item.
//!
//! [`form`] reads the form and the criteria, [`data_source`] where the items of a run come from, [`data_source::selection`] which
//! stored answers are chosen. [`runner`] works on runs in the background: [`answering`] asks the model, [`stored`]
//! reads what was answered before, `graders` judges. [`comparison`] sets two runs side by side. [`attached`] runs an
//! eval at the end of a fine-tune job, and moves an alias to the new model if that is found better.

mod answering;
pub(super) mod attached;
pub(super) mod comparison;
mod data_source;
mod form;
pub(super) mod output_items;
pub(super) mod runner;
pub(super) mod runs;
mod stored;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::list::{BoundedPageOf, Cursor};
use crate::api::http::query::Query;
use crate::api::operations::checks::check_metadata;
use crate::store;
use crate::store::evals::EvalOrder;
use crate::store::files::Page;

/// Default and largest number of items in a page.
const DEFAULT_PAGE: i64 = 20;
const MAX_PAGE: i64 = 100;
/// Longest name of an eval or a run, in characters.
const MAX_NAME: usize = 512;

/// What shall be measured.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CreateEval {
    /// A name for people.
    pub name: Option<String>,
    /// Up to 16 notes of the client's own.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// The form of the items: of type `custom` with `item_schema`, a JSON schema, and `include_sample_schema`; or of
    /// type `logs` or `stored_completions`, with `metadata` that stored answers must have.
    #[schema(value_type = Object)]
    pub data_source_config: Value,
    /// Graders: an item passes if all of them say so.
    #[schema(value_type = Vec<Object>)]
    pub testing_criteria: Vec<Value>,
}

/// What shall change of an eval.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct UpdateEval {
    /// Its name.
    pub name: Option<String>,
    /// The client's own notes, in place of those before.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

/// What is measured.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Eval {
    /// `eval_…`
    pub id: String,
    /// Always `eval`.
    pub object: &'static str,
    /// A name for people.
    pub name: String,
    /// Unix seconds.
    pub created_at: i64,
    /// The form of the items, with `schema`: the JSON schema of an object with `item` and `sample`.
    #[schema(value_type = Object)]
    pub data_source_config: Value,
    /// Graders with an `id` each.
    #[schema(value_type = Vec<Object>)]
    pub testing_criteria: Value,
    /// The client's own notes.
    #[schema(value_type = Object)]
    pub metadata: Value,
}

/// An eval that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedEval {
    /// Always `eval.deleted`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
    /// `eval_…`
    pub eval_id: String,
}

/// Which evals to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EvalQuery {
    /// Id of the last eval of the page before.
    pub after: Option<String>,
    /// Evals at the most, 1 to 100.
    pub limit: Option<i64>,
    /// `asc` (oldest first, the default) or `desc`.
    #[param(inline)]
    pub order: Option<Direction>,
    /// `created_at` (the default) or `updated_at`.
    #[param(inline)]
    pub order_by: Option<OrderBy>,
}

/// From the first, or from the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// First ones first.
    Asc,
    /// Last ones first.
    Desc,
}

/// What evals are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OrderBy {
    /// The time of creation.
    CreatedAt,
    /// The time of the last change.
    UpdatedAt,
}

/// Create an eval
#[utoipa::path(
    post, path = "/evals", operation_id = "createEval", tag = "Evals", request_body = CreateEval,
    responses((status = 201, body = Eval), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<CreateEval>,
) -> Result<(StatusCode, Json<Eval>), Problem> {
    let (name, metadata) = (name_of(request.name)?, notes(request.metadata)?);
    let config = form::config(&request.data_source_config)?;
    let criteria = form::criteria(&state, &caller, request.testing_criteria).await?;
    let (organization, name) = (&caller.organization, name.unwrap_or_default());
    let metadata = metadata.unwrap_or_else(|| json!({}));
    let eval = state.store.create_eval(organization, &name, &config, &criteria, &metadata).await?;
    Ok((StatusCode::CREATED, Json(eval.into())))
}

/// List evals
#[utoipa::path(
    get, path = "/evals", operation_id = "listEvals", tag = "Evals", params(EvalQuery),
    responses((status = 200, body = BoundedPageOf<Eval>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Query(query): Query<EvalQuery>,
) -> Result<Json<BoundedPageOf<Eval>>, Problem> {
    let page = page(query.after, query.limit, query.order);
    let order = if query.order_by == Some(OrderBy::UpdatedAt) { EvalOrder::Updated } else { EvalOrder::Created };
    let (evals, has_more) = state.store.evals(&caller.organization, order, page).await?;
    Ok(Json(BoundedPageOf::new(evals.into_iter().map(Eval::from).collect(), has_more, |eval| eval.id.clone())))
}

/// Read an eval
#[utoipa::path(
    get, path = "/evals/{eval_id}", operation_id = "getEval", tag = "Evals", params(("eval_id" = String, Path)),
    responses((status = 200, body = Eval), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Eval>, Problem> {
    Ok(Json(state.store.eval(&caller.organization, &id).await?.into()))
}

/// Change an eval's name and notes
#[utoipa::path(
    post, path = "/evals/{eval_id}", operation_id = "updateEval", tag = "Evals", params(("eval_id" = String, Path)),
    request_body = UpdateEval,
    responses((status = 200, body = Eval), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn update(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<UpdateEval>,
) -> Result<Json<Eval>, Problem> {
    let (name, metadata) = (name_of(request.name)?, notes(request.metadata)?);
    let eval = state.store.update_eval(&caller.organization, &id, name.as_deref(), metadata.as_ref()).await?;
    Ok(Json(eval.into()))
}

/// Delete an eval
///
/// Its runs and what came of them are gone as well.
#[utoipa::path(
    delete, path = "/evals/{eval_id}", operation_id = "deleteEval", tag = "Evals", params(("eval_id" = String, Path)),
    responses((status = 200, body = DeletedEval), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeletedEval>, Problem> {
    state.store.delete_eval(&caller.organization, &id).await?;
    Ok(Json(DeletedEval { object: "eval.deleted", deleted: true, eval_id: id }))
}

impl From<store::evals::Eval> for Eval {
    fn from(eval: store::evals::Eval) -> Self {
        Self {
            id: eval.id,
            object: "eval",
            name: eval.name,
            created_at: eval.created_at,
            data_source_config: eval.config.0,
            testing_criteria: eval.criteria.0,
            metadata: eval.metadata.0,
        }
    }
}

/// Returns the page that a query asks for, first ones first unless it says otherwise.
fn page(after: Option<String>, limit: Option<i64>, order: Option<Direction>) -> Page {
    let mut page = Cursor { after, limit }.page(DEFAULT_PAGE, MAX_PAGE);
    page.ascending = order != Some(Direction::Desc);
    page
}

/// Checks a name.
fn name_of(name: Option<String>) -> Result<Option<String>> {
    match name {
        Some(name) if name.contains('\0') => {
            Err(Problem::invalid_code("name", "invalid_value", "'name' must not contain the NUL character."))
        }
        Some(name) if name.chars().count() > MAX_NAME => {
            let message = format!("'name' has {MAX_NAME} characters at the most.");
            Err(Problem::invalid_code("name", "string_above_max_length", message))
        }
        name => Ok(name),
    }
}

/// Checks notes: at most 16, with names of up to 64 characters and texts of up to 512.
fn notes(metadata: Option<Map<String, Value>>) -> Result<Option<Value>> {
    check_metadata(metadata.as_ref())?;
    Ok(metadata.map(Value::from))
}
