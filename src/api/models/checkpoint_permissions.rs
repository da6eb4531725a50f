//! `/fine_tuning/checkpoints/{checkpoint}/permissions`: which other organisations of this server may use a fine-tuned
//! model.
//!
//! The owner of a model or checkpoint names the organisations that may use it. They may send requests to it; their list
//! of models has it once they have asked for it by its name, so that nobody puts names into the lists of others. Only
//! the owner may delete it, download its adapter and continue its training.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::list::{BoundedPageOf, Cursor};
use crate::api::http::query::Query;
use crate::store;
use crate::store::names::{VISIBLE, is_visible};
use crate::store::permissions::Permission;

/// Default and largest number of items in a page.
const DEFAULT_PAGE: i64 = 10;
const MAX_PAGE: i64 = 100;
/// Largest number of organisations that one request may name, and of characters of a name.
const MAX_PROJECTS: usize = 50;
const MAX_PROJECT_CHARACTERS: usize = 255;

/// Who shall be allowed to use the model.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct GrantPermissions {
    /// Names of other organisations of this server, 1 to 50.
    #[schema(min_items = 1, max_items = 50)]
    pub project_ids: Vec<String>,
}

/// One organisation's permission to use a model of another one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CheckpointPermission {
    /// Always `checkpoint.permission`.
    pub object: &'static str,
    /// `cp_…`
    pub id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// The organisation that may use the model.
    pub project_id: String,
}

/// A permission that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedPermission {
    /// `cp_…`
    pub id: String,
    /// Always `checkpoint.permission`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// Which permissions to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PermissionQuery {
    /// Only that of this organisation.
    pub project_id: Option<String>,
    /// Id of the last permission of the page before.
    pub after: Option<String>,
    /// Permissions at the most, 1 to 100.
    pub limit: Option<i64>,
    /// `ascending` or `descending` (newest first, the default).
    #[param(inline)]
    pub order: Option<Direction>,
}

/// By the time of creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// Let other organisations use a model
///
/// Those that already may keep the permission that they have. The model is in an organisation's list of models once
/// that has asked for it by its name.
#[utoipa::path(
    post, path = "/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions",
    operation_id = "createFineTuningCheckpointPermission", tag = "Fine-tuning",
    params(("fine_tuned_model_checkpoint" = String, Path, description = "The name of a fine-tuned model or a checkpoint.")),
    request_body = GrantPermissions,
    responses((status = 200, body = BoundedPageOf<CheckpointPermission>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Path(model): Path<String>,
    Body(request): Body<GrantPermissions>,
) -> Result<Json<BoundedPageOf<CheckpointPermission>>, Problem> {
    request.check()?;
    let real = state.catalog.real_name(&model);
    let granted = state.store.grant(&caller.organization, real, &request.project_ids).await.map_err(blame_model)?;
    Ok(Json(page(granted, false)))
}

/// List who may use a model
#[utoipa::path(
    get, path = "/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions",
    operation_id = "listFineTuningCheckpointPermissions", tag = "Fine-tuning",
    params(
        ("fine_tuned_model_checkpoint" = String, Path, description = "The name of a fine-tuned model or a checkpoint."),
        PermissionQuery,
    ),
    responses((status = 200, body = BoundedPageOf<CheckpointPermission>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Path(model): Path<String>,
    Query(query): Query<PermissionQuery>,
) -> Result<Json<BoundedPageOf<CheckpointPermission>>, Problem> {
    let mut cursor = Cursor { after: query.after, limit: query.limit }.page(DEFAULT_PAGE, MAX_PAGE);
    cursor.ascending = query.order == Some(Direction::Ascending);
    let project = query.project_id.as_deref();
    let listed = state.store.permissions(&caller.organization, state.catalog.real_name(&model), project, cursor).await;
    let (permissions, has_more) = listed.map_err(blame_model)?;
    Ok(Json(page(permissions, has_more)))
}

/// Take a permission back
///
/// The next request of the other organisation finds no such model.
#[utoipa::path(
    delete, path = "/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions/{permission_id}",
    operation_id = "deleteFineTuningCheckpointPermission", tag = "Fine-tuning",
    params(
        ("fine_tuned_model_checkpoint" = String, Path, description = "The name of a fine-tuned model or a checkpoint."),
        ("permission_id" = String, Path),
    ),
    responses((status = 200, body = DeletedPermission), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path((model, id)): Path<(String, String)>,
) -> Result<Json<DeletedPermission>, Problem> {
    state.store.revoke(&caller.organization, state.catalog.real_name(&model), &id).await.map_err(blame_model)?;
    Ok(Json(DeletedPermission { id, object: "checkpoint.permission", deleted: true }))
}

/// Does [`list`] for any name: model names may contain slashes, so one route takes everything after `/checkpoints/`.
pub(crate) async fn get(
    uri: Uri,
    state: State<ApiState>,
    caller: Caller,
    Path(path): Path<String>,
    query: Query<PermissionQuery>,
) -> Result<Json<BoundedPageOf<CheckpointPermission>>, Problem> {
    match place(&path) {
        Some((model, None)) => list(state, caller, Path(model.into()), query).await,
        _ => Err(Problem::unknown_url("GET", uri.path())),
    }
}

/// Does [`create`] for any name.
pub(crate) async fn post(
    uri: Uri,
    state: State<ApiState>,
    caller: Caller,
    Path(path): Path<String>,
    body: Body<GrantPermissions>,
) -> Result<Json<BoundedPageOf<CheckpointPermission>>, Problem> {
    match place(&path) {
        Some((model, None)) => create(state, caller, Path(model.into()), body).await,
        _ => Err(Problem::unknown_url("POST", uri.path())),
    }
}

/// Does [`delete`] for any name.
pub(crate) async fn remove(
    uri: Uri,
    state: State<ApiState>,
    caller: Caller,
    Path(path): Path<String>,
) -> Result<Json<DeletedPermission>, Problem> {
    match place(&path) {
        Some((model, Some(id))) => delete(state, caller, Path((model.into(), id.into()))).await,
        _ => Err(Problem::unknown_url("DELETE", uri.path())),
    }
}

/// Splits a path into the name of the model and the id of the permission, if it has one; `None` for any other path.
fn place(path: &str) -> Option<(&str, Option<&str>)> {
    let (model, id) = if let Some(model) = path.strip_suffix("/permissions") {
        (model, None)
    } else {
        let (before, id) = path.rsplit_once('/')?;
        (before.strip_suffix("/permissions")?, Some(id))
    };
    (!model.is_empty() && id != Some("")).then_some((model, id))
}

impl GrantPermissions {
    fn check(&self) -> Result<()> {
        let fault = |code, message: String| Err(Problem::invalid_code("project_ids", code, message));
        if self.project_ids.is_empty() {
            return fault("invalid_value", "'project_ids' must name at least one organisation.".into());
        }
        if self.project_ids.len() > MAX_PROJECTS {
            return fault("array_above_max_length", format!("'project_ids' has more than {MAX_PROJECTS} items."));
        }
        if self.project_ids.iter().any(|id| !(1..=MAX_PROJECT_CHARACTERS).contains(&id.chars().count())) {
            let message = format!("Every item of 'project_ids' must have 1 to {MAX_PROJECT_CHARACTERS} characters.");
            return fault("invalid_value", message);
        }
        if !self.project_ids.iter().all(|id| is_visible(id)) {
            return fault("invalid_value", format!("Every item of 'project_ids' must have {VISIBLE}."));
        }
        Ok(())
    }
}

fn page(permissions: Vec<Permission>, has_more: bool) -> BoundedPageOf<CheckpointPermission> {
    let permissions = permissions.into_iter().map(CheckpointPermission::from).collect();
    BoundedPageOf::new(permissions, has_more, |permission: &CheckpointPermission| permission.id.clone())
}

/// Turns an error into the answer that blames the part of the path at fault.
fn blame_model(error: store::Error) -> Problem {
    let param = match error {
        store::Error::ModelNotFound(_) => "fine_tuned_model_checkpoint",
        store::Error::NotFound { .. } => "permission_id",
        error => return error.into(),
    };
    Problem::from(error).param(param)
}

impl From<Permission> for CheckpointPermission {
    fn from(permission: Permission) -> Self {
        let Permission { id, project_id, created_at } = permission;
        Self { object: "checkpoint.permission", id, created_at, project_id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_name_may_hold_colons_and_slashes() {
        assert_eq!(place("ft:a/b:org::x:ckpt-step-3/permissions"), Some(("ft:a/b:org::x:ckpt-step-3", None)));
        assert_eq!(place("ft:a:org::x/permissions/cp_1"), Some(("ft:a:org::x", Some("cp_1"))));
        assert_eq!(place("a/permissions/permissions"), Some(("a/permissions", None)));
        for nothing in
            ["ft:a", "permissions", "/permissions", "a/permissions/", "a/permissions/b/c", "permissions/cp_1"]
        {
            assert_eq!(place(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn organisations_are_named_in_reason() {
        let check = |ids: Vec<String>| GrantPermissions { project_ids: ids }.check();
        assert!(check(vec!["a".into(); 50]).is_ok() && check(vec!["ä".repeat(255)]).is_ok());
        for ids in [vec![], vec!["a".into(); 51], vec![String::new()], vec!["a".repeat(256)]] {
            assert!(check(ids).is_err());
        }
    }
}
