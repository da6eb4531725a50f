//! The models that the playground offers, and the prices of their tokens.

use std::sync::Arc;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{Problem, Result};
use crate::api::http::list::Cursor;
use crate::api::models::model_list;
use crate::api::models::model_resource::{self, Model};
use crate::config::Price;
use crate::model::BaseModel;

/// Models that are looked at, and names that are offered; any other can be typed.
const LOOKED_AT: i64 = 5_000;
const OFFERED: usize = 500;

/// What a model is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api::ui) enum Use {
    /// Writing answers.
    Answers,
    /// Making vectors.
    Vectors,
}

/// Returns the names of models that the caller may use for this: bases, then the newest of the others.
pub(in crate::api::ui) async fn offered(
    state: &ApiState,
    caller: &Caller,
    wanted: Use,
) -> Result<Vec<String>, Problem> {
    let cursor = Cursor { after: None, limit: Some(LOOKED_AT) };
    let models = model_list::page(state, caller, cursor).await?.data;
    let can = |model: &Model| base(state, model).is_some_and(|base| serves(base, wanted));
    let (mut bases, tuned): (Vec<Model>, Vec<Model>) =
        models.into_iter().filter(can).partition(|model| model.parent.is_none());
    bases.extend(tuned.into_iter().rev());
    Ok(bases.into_iter().take(OFFERED).map(|model| model.id).collect())
}

/// Returns the price of a model's tokens; `None` if there is none, or no such model.
pub(super) async fn price(state: &ApiState, caller: &Caller, name: &str) -> Option<Price> {
    let model = model_resource::find(state, caller, name).await.ok()?;
    state.config.prices.get(&base(state, &model)?.id).copied()
}

fn base<'a>(state: &'a ApiState, model: &Model) -> Option<&'a Arc<BaseModel>> {
    let name = model.parent.as_deref().or(model.root.as_deref()).unwrap_or(&model.id);
    state.catalog.get(name).ok().map(|entry| &entry.model)
}

fn serves(base: &BaseModel, wanted: Use) -> bool {
    match wanted {
        Use::Answers => !base.config.is_encoder && !base.is_static(),
        Use::Vectors => base.classifier.is_none() && !base.runs_elsewhere,
    }
}
