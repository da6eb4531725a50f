//! `GET /models`: every model that the caller may use, in pages: base models, fine-tuned ones, then aliases of both.
//! `generation::engines` shows the same list in another form.

use axum::Json;
use axum::extract::State;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::list::{BoundedPageOf, Cursor};
use crate::api::http::query::Query;
use crate::api::models::model_resource::{self, Model};
use crate::api::models::names::maker_of;
use crate::store::files::Page;
use crate::store::models::FineTunedModel;

/// Default and largest number of models in a page: clients of the list's first form know no pages.
const MAX_PAGE: i64 = 10_000;

/// List models
///
/// Without `limit` all models, if there are no more than 10,000; `has_more` says whether there are, and `after` asks
/// for them.
#[utoipa::path(
    get, path = "/models", operation_id = "listModels", tag = "Models", params(Cursor),
    responses((status = 200, body = BoundedPageOf<Model>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Query(cursor): Query<Cursor>,
) -> Result<Json<BoundedPageOf<Model>>, Problem> {
    Ok(Json(page(&state, &caller, cursor).await?))
}

/// Where a page begins in the three parts of the list.
struct Start<'a> {
    /// Number of base models before it.
    base: usize,
    /// The fine-tuned model before it, if it begins among those.
    fine_tuned: Option<&'a str>,
    /// Number of aliases before it, if it begins among those: behind all other models.
    alias: Option<usize>,
}

/// Returns a page of the models that the caller may use.
pub(crate) async fn page(state: &ApiState, caller: &Caller, cursor: Cursor) -> Result<BoundedPageOf<Model>> {
    let Page { after, limit, .. } = cursor.page(MAX_PAGE, MAX_PAGE);
    let mut models = match start(state, caller, after.as_deref()).await? {
        Some(start) => models_from(state, caller, start, limit + 1).await?,
        None => Vec::new(),
    };
    let has_more = models.len() as i64 > limit;
    models.truncate(limit as usize);
    Ok(BoundedPageOf::new(models, has_more, |model| model.id.clone()))
}

/// Finds the place after the model `after`; `None` if the caller has no such model.
async fn start<'a>(state: &ApiState, caller: &Caller, after: Option<&'a str>) -> Result<Option<Start<'a>>> {
    let mut start = Start { base: 0, fine_tuned: None, alias: None };
    let Some(after) = after else { return Ok(Some(start)) };
    let bases = state.catalog.entries();
    if let Some(before) = bases.iter().position(|entry| entry.model.id == after) {
        start.base = before + 1;
        return Ok(Some(start));
    }
    start.base = bases.len();
    let aliases = aliases(state, caller).await?;
    if let Some(before) = aliases.iter().position(|(alias, _)| alias == after) {
        start.alias = Some(before + 1);
        return Ok(Some(start));
    }
    start.fine_tuned = Some(after);
    match model_resource::find(state, caller, after).await {
        Ok(_) => Ok(Some(start)),
        Err(problem) if problem.is_model_not_found() => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// Returns up to `limit` models.
async fn models_from(state: &ApiState, caller: &Caller, start: Start<'_>, limit: i64) -> Result<Vec<Model>> {
    let room = |models: &Vec<Model>| limit - models.len() as i64;
    let bases = state.catalog.entries().iter().skip(start.base).take(limit as usize);
    let mut models: Vec<Model> = bases.map(|entry| Model::from(&*entry.model)).collect();
    if start.alias.is_none() && room(&models) > 0 {
        // A name that has become an alias hides the fine-tuned model that had it before.
        let hidden: Vec<&str> = state.catalog.aliases().map(|(alias, _)| alias).collect();
        let organization = &caller.organization;
        let mut after = start.fine_tuned.map(str::to_owned);
        loop {
            let found = state.store.usable_models(organization, &hidden, after.as_deref(), room(&models)).await?;
            let (rows, more) = found;
            after = rows.last().map(|row| row.name.clone());
            models.extend(rows.into_iter().map(|row| Model::of(row, state)));
            if !more || room(&models) <= 0 {
                break;
            }
        }
    }
    if room(&models) > 0 {
        let aliases = usable_aliases(state, caller, start.alias.unwrap_or(0), room(&models) as usize).await?;
        models.extend(aliases);
    }
    Ok(models)
}

/// Returns the aliases with what they stand for: those of the configuration, then those of the caller's organisation,
/// which hide no other name.
async fn aliases(state: &ApiState, caller: &Caller) -> Result<Vec<(String, String)>> {
    let configured = state.catalog.aliases().map(|(alias, name)| (alias.to_owned(), name.to_owned()));
    let own = state.store.aliases(&caller.organization).await?;
    let hides =
        |name: &str| state.catalog.is_alias(name) || state.catalog.get(name).is_ok() || maker_of(state, name).is_some();
    let own = own.into_iter().filter(|alias| !hides(&alias.name)).map(|alias| (alias.name, alias.model));
    Ok(configured.chain(own).collect())
}

/// Returns up to `limit` aliases of models that the caller may use, without the first `skipped`. An alias of a
/// fine-tuned model exists for those alone who may use that model.
async fn usable_aliases(state: &ApiState, caller: &Caller, skipped: usize, limit: usize) -> Result<Vec<Model>> {
    let aliases: Vec<(String, String)> = aliases(state, caller).await?.into_iter().skip(skipped).collect();
    let tuned = aliases.iter().map(|(_, name)| name.as_str()).filter(|name| state.catalog.get(name).is_err());
    let tuned: Vec<&str> = tuned.collect();
    let rows: Vec<FineTunedModel> = if tuned.is_empty() {
        Vec::new()
    } else {
        state.store.usable_models_named(&caller.organization, &tuned).await?
    };
    let usable = aliases.into_iter().filter_map(|(alias, name)| {
        if let Ok(entry) = state.catalog.get(&name) {
            return Some(Model::from(&*entry.model).called(&alias));
        }
        let row = rows.iter().find(|row| row.name == name)?;
        Some(Model::of(row.clone(), state).called(&alias))
    });
    Ok(usable.take(limit).collect())
}
