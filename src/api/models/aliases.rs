//! `/aliases`: names that an organisation gives models, and moves from one to another while clients go on asking for
//! the same name. An extension. Those of the configuration are read-only and not listed here.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::list::PageOf;
use crate::api::models::names::{check_alias, real_name};
use crate::api::operations::checks::no_longer_than;
use crate::store;
use crate::store::aliases::Alias;

/// Bytes of the name of a model that exists.
const MAX_TEXT: usize = 4096;

/// What an alias shall stand for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetAlias {
    /// A base model, or a fine-tuned one that the caller may use.
    pub model: String,
}

/// An alias.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelAlias {
    /// The name that requests give as their `model`.
    pub id: String,
    /// Always `model.alias`.
    pub object: &'static str,
    /// The model that it stands for.
    pub model: String,
    /// The model that it stood for before it was last moved.
    pub previous_model: Option<String>,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds: when it was last moved.
    pub updated_at: i64,
}

/// An alias that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedAlias {
    /// The name.
    pub id: String,
    /// Always `model.alias`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// List aliases
///
/// All of the caller's organisation, by their names. An extension of this server.
#[utoipa::path(
    get, path = "/aliases", operation_id = "listAliases", tag = "Models",
    responses((status = 200, body = PageOf<ModelAlias>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(State(state): State<ApiState>, caller: Caller) -> Result<Json<PageOf<ModelAlias>>, Problem> {
    let aliases = state.store.aliases(&caller.organization).await?;
    Ok(Json(PageOf::new(aliases.into_iter().map(ModelAlias::from).collect(), false)))
}

/// Read an alias
#[utoipa::path(
    get, path = "/aliases/{alias}", operation_id = "retrieveAlias", tag = "Models",
    params(("alias" = String, Path, description = "The name; slashes may be raw or encoded.")),
    responses((status = 200, body = ModelAlias), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<ModelAlias>, Problem> {
    Ok(Json(state.store.alias(&caller.organization, &name).await.map_err(blame_alias)?.into()))
}

/// Set or move an alias
///
/// Requests in flight end on the model that they began with; the next one gets the new model. An extension of this
/// server.
#[utoipa::path(
    put, path = "/aliases/{alias}", operation_id = "setAlias", tag = "Models",
    params(("alias" = String, Path, description = "The name; slashes may be raw or encoded.")),
    request_body = SetAlias,
    responses((status = 200, body = ModelAlias), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn set(
    State(state): State<ApiState>,
    caller: Caller,
    Path(name): Path<String>,
    Body(request): Body<SetAlias>,
) -> Result<Json<ModelAlias>, Problem> {
    check_name(&state, &caller, "alias", &name).await?;
    let model = request.model;
    no_longer_than("model", Some(&model), MAX_TEXT)?;
    let organization = &caller.organization;
    let stands_for = real_name(&state, organization, &model).await?;
    if stands_for != model {
        let message = format!("`{model}` is an alias itself: name the model that it stands for, `{stands_for}`.");
        return Err(Problem::invalid_code("model", "invalid_value", message));
    }
    let not_found = |error| Problem::from(error).about_model(&model).param("model");
    let owned = if state.catalog.get(&model).is_ok() {
        false
    } else {
        let found = state.store.usable_model(organization, &model).await.map_err(not_found)?;
        found.organization == **organization
    };
    let alias = state.store.set_alias(organization, &name, &model, owned).await.map_err(|error| match error {
        store::Error::ModelNotFound(_) => not_found(error),
        error => error.into(),
    })?;
    let previous = alias.previous.as_deref();
    tracing::info!(alias = name, %organization, key = %caller.key, model, previous, "an alias was set");
    Ok(Json(alias.into()))
}

/// Delete an alias
///
/// The model stays. An extension of this server.
#[utoipa::path(
    delete, path = "/aliases/{alias}", operation_id = "deleteAlias", tag = "Models",
    params(("alias" = String, Path, description = "The name; slashes may be raw or encoded.")),
    responses((status = 200, body = DeletedAlias), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<DeletedAlias>, Problem> {
    let alias = state.store.delete_alias(&caller.organization, &name).await.map_err(blame_alias)?;
    let organization = &caller.organization;
    tracing::info!(alias = name, %organization, key = %caller.key, model = alias.model, "an alias was deleted");
    Ok(Json(DeletedAlias { id: alias.name, object: "model.alias", deleted: true }))
}

/// Checks that the name in the field `param` may be an alias of the caller's organisation: it must hide no model.
pub(crate) async fn check_name(state: &ApiState, caller: &Caller, param: &'static str, name: &str) -> Result<()> {
    check_alias(state, &caller.organization, param, name).await?;
    if state.store.has_model(&caller.organization, name).await? {
        let message = format!("'{name}' is a model of yours: choose another name for the alias.");
        return Err(Problem::invalid_code(param, "invalid_value", message));
    }
    Ok(())
}

fn blame_alias(error: store::Error) -> Problem {
    match error {
        store::Error::NotFound { .. } => Problem::from(error).param("alias"),
        error => error.into(),
    }
}

impl From<Alias> for ModelAlias {
    fn from(alias: Alias) -> Self {
        let Alias { name, model, previous, created_at, updated_at } = alias;
        Self { id: name, object: "model.alias", model, previous_model: previous, created_at, updated_at }
    }
}
