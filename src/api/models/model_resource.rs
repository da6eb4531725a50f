//! `/models/{model}`: reads models, and deletes fine-tuned ones.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Path;
use crate::api::models::names::real_name;
use crate::model::BaseModel;
use crate::model::generation::GenerationDefaults;
use crate::store::models::FineTunedModel;

/// A model that requests can name.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    /// The name.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// `attune` for base models, else the organisation that trained it.
    pub owned_by: String,
    /// The base model of a fine-tuned one; what an alias stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The base model of a fine-tuned one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Extension: `mistralrs` if the second engine runs the base model, which then does not train; absent for Attune's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<&'static str>,
    /// Extension: what requests get for fields that they leave out; absent if the base model is not served, or writes no
    /// text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defaults: Option<ModelDefaults>,
}

/// What a request gets for the fields that it leaves out or sends as null: from the server's configuration, else from
/// the model's `generation_config.json`, else as in OpenAI's API.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct ModelDefaults {
    /// As the request's field.
    pub temperature: f32,
    /// As the request's field.
    pub top_p: f32,
    /// As the request's field; 0 keeps all tokens.
    pub top_k: usize,
    /// As the request's field.
    pub min_p: f32,
    /// As the request's field.
    pub presence_penalty: f32,
    /// As the request's field.
    pub frequency_penalty: f32,
    /// As the request's field.
    pub repetition_penalty: f32,
    /// Tokens of a chat's answer at the most, fewer if the context has no room; completions have 16 if that is less.
    pub max_tokens: usize,
    /// Most tokens that a request may ask for; null: as many as the context has room for.
    pub max_answer_tokens: Option<usize>,
}

/// A model that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedModel {
    /// The name.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// Read a model
#[utoipa::path(
    get, path = "/models/{model}", operation_id = "retrieveModel", tag = "Models",
    params(("model" = String, Path, description = "The name; slashes may be raw or encoded.")),
    responses((status = 200, body = Model), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Model>, Problem> {
    Ok(Json(find(&state, &caller, &name).await.map_err(blame_model)?))
}

/// Returns the model of this name that the caller may use: a base model, a fine-tuned one, or an alias of either.
pub(crate) async fn find(state: &ApiState, caller: &Caller, name: &str) -> Result<Model> {
    let real = real_name(state, &caller.organization, name).await?;
    let model = if let Ok(entry) = state.catalog.get(&real) {
        Model::from(&*entry.model)
    } else {
        let row = state.store.usable_model(&caller.organization, &real).await;
        Model::of(row.map_err(|error| Problem::from(error).about_model(name))?, state)
    };
    Ok(if real == name { model } else { model.called(name) })
}

/// Delete a fine-tuned model
///
/// Requests in flight end undisturbed. Base models and aliases cannot be deleted, nor can a model that an alias of
/// its owner stands for.
#[utoipa::path(
    delete, path = "/models/{model}", operation_id = "deleteModel", tag = "Models",
    params(("model" = String, Path, description = "The name; slashes may be raw or encoded.")),
    responses((status = 200, body = DeletedModel), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<DeletedModel>, Problem> {
    if state.catalog.get(&name).is_ok() {
        let message = format!("The model `{name}` is a base model; only fine-tuned models can be deleted.");
        return Err(Problem::forbidden(message));
    }
    if state.catalog.is_alias(&name) {
        let real = state.catalog.real_name(&name);
        let message = format!("`{name}` is an alias of the model `{real}`; the server's configuration holds it.");
        return Err(Problem::forbidden(message));
    }
    if let Some(real) = state.store.alias_target(&caller.organization, &name).await? {
        let message = format!("`{name}` is an alias of the model `{real}`: delete it with DELETE /v1/aliases.");
        return Err(Problem::forbidden(message));
    }
    let deleted = state.store.delete_fine_tuned_model(&caller.organization, &name).await;
    let model = deleted.map_err(|error| blame_model(error.into()))?;
    state.registry.forget(&caller.organization, &model.name);
    Ok(Json(DeletedModel { id: model.name, object: "model", deleted: true }))
}

/// Names the field `model` in an error about a model that does not exist.
pub(crate) fn blame_model(problem: Problem) -> Problem {
    if problem.is_model_not_found() { problem.param("model") } else { problem }
}

impl Model {
    /// Returns the entry of an alias of this model.
    pub(super) fn called(&self, alias: &str) -> Self {
        Self {
            id: alias.into(),
            object: self.object,
            created: self.created,
            owned_by: self.owned_by.clone(),
            root: Some(self.id.clone()),
            parent: self.parent.clone(),
            engine: self.engine,
            defaults: self.defaults,
        }
    }

    /// Returns the entry of a fine-tuned model, whose defaults are those of its base.
    pub(super) fn of(model: FineTunedModel, state: &ApiState) -> Self {
        Self {
            id: model.name,
            object: "model",
            created: model.created_at,
            owned_by: model.organization,
            root: Some(model.base.clone()),
            engine: None,
            defaults: state.catalog.get(&model.base).ok().and_then(|entry| ModelDefaults::of(&entry.model)),
            parent: Some(model.base),
        }
    }
}

impl From<&BaseModel> for Model {
    fn from(model: &BaseModel) -> Self {
        let (id, created) = (model.id.clone(), model.created);
        let defaults = ModelDefaults::of(model);
        let engine = model.runs_elsewhere.then_some("mistralrs");
        Self { id, object: "model", created, owned_by: "attune".into(), root: None, parent: None, engine, defaults }
    }
}

impl ModelDefaults {
    /// Returns the defaults of answers; `None` if the model writes none.
    fn of(model: &BaseModel) -> Option<Self> {
        (!model.config.is_encoder).then(|| (&model.generation).into())
    }
}

impl From<&GenerationDefaults> for ModelDefaults {
    fn from(defaults: &GenerationDefaults) -> Self {
        Self {
            temperature: defaults.temperature,
            top_p: defaults.top_p,
            top_k: defaults.top_k,
            min_p: defaults.min_p,
            presence_penalty: defaults.presence_penalty,
            frequency_penalty: defaults.frequency_penalty,
            repetition_penalty: defaults.repetition_penalty,
            max_tokens: defaults.max_tokens,
            max_answer_tokens: defaults.max_answer_tokens,
        }
    }
}
