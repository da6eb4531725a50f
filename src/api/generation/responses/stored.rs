//! Responses that are kept: read, deleted, cancelled, and the items of their requests.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::conversation::items_of;
use super::object::ResponseObject;
use super::watching::watch;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Path;
use crate::api::http::list::BoundedPageOf;
use crate::api::http::query::Query;
use crate::api::http::sse;
use crate::api::operations::files::Order;
use crate::store::responses::StoredResponse;

/// Largest number of items in a page, and the default.
const MAX_PAGE: i64 = 100;
const PAGE: i64 = 20;
/// Type of the event that ends the stream of a cancelled response: there is none of its own.
const CANCELLED: &str = "response.incomplete";

/// How to read a response.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RetrieveQuery {
    /// Stream the events of a response that was created with `background` and `stream`.
    pub stream: Option<bool>,
    /// Only events with a greater number.
    pub starting_after: Option<i64>,
}

/// Which items to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ItemsQuery {
    /// Id of the last item of the page before.
    pub after: Option<String>,
    /// Items at the most, 1 to 100.
    pub limit: Option<i64>,
    /// `asc` (in the order of the request) or `desc` (the last one first, the default).
    #[param(inline)]
    pub order: Option<Order>,
}

/// A response that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedResponse {
    /// `resp_…`
    pub id: String,
    /// Always `response`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// Retrieve a response
#[utoipa::path(
    get, path = "/responses/{response_id}", operation_id = "getResponse", tag = "Responses",
    params(("response_id" = String, Path), RetrieveQuery),
    responses((status = 200, body = ResponseObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<RetrieveQuery>,
) -> Result<Response, Problem> {
    let found = find(&state, &caller, &id).await?;
    if query.stream != Some(true) {
        return Ok(json(found.response));
    }
    if !found.streamed {
        let message = "Only a response that was created with 'background' and 'stream' can be streamed afterwards.";
        return Err(Problem::invalid_code("stream", "invalid_value", message));
    }
    let after = i32::try_from(query.starting_after.unwrap_or(-1)).unwrap_or(i32::MAX);
    Ok(sse::respond_named(watch(state, caller.organization, id, after)))
}

/// Delete a response
#[utoipa::path(
    delete, path = "/responses/{response_id}", operation_id = "deleteResponse", tag = "Responses",
    params(("response_id" = String, Path)),
    responses((status = 200, body = DeletedResponse), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeletedResponse>, Problem> {
    if !state.store.delete_response(&caller.organization, &id).await? {
        return Err(Problem::no_response(&id));
    }
    Ok(Json(DeletedResponse { id, object: "response", deleted: true }))
}

/// Cancel a response that is written in the background
#[utoipa::path(
    post, path = "/responses/{response_id}/cancel", operation_id = "cancelResponse", tag = "Responses",
    params(("response_id" = String, Path)),
    responses((status = 200, body = ResponseObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let mut found = find(&state, &caller, &id).await?;
    if !found.background {
        let message = "Only a response that was created with 'background' can be cancelled.";
        return Err(Problem::invalid_code("response_id", "invalid_value", message));
    }
    let response = with_status(&found.response, "cancelled")?;
    if state.store.cancel_response(&caller.organization, &id, &response, CANCELLED).await? {
        return Ok(json(response));
    }
    found = find(&state, &caller, &id).await?;
    if found.status != "cancelled" {
        let message = format!("The response '{id}' cannot be cancelled: its status is {}.", found.status);
        return Err(Problem::invalid_code("response_id", "invalid_value", message));
    }
    Ok(json(found.response))
}

/// List the items of a request
#[utoipa::path(
    get, path = "/responses/{response_id}/input_items", operation_id = "listInputItems", tag = "Responses",
    params(("response_id" = String, Path), ItemsQuery),
    responses((status = 200, body = BoundedPageOf<Value>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn input_items(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<ItemsQuery>,
) -> Result<Json<BoundedPageOf<Value>>, Problem> {
    let mut items = items_of(&find(&state, &caller, &id).await?.input)?;
    if query.order != Some(Order::Asc) {
        items.reverse();
    }
    Ok(Json(page(items, query.after.as_deref(), query.limit.unwrap_or(PAGE))))
}

/// Returns the page behind the item `after`; nothing follows an item that is not there.
fn page(mut items: Vec<Value>, after: Option<&str>, limit: i64) -> BoundedPageOf<Value> {
    let id = |item: &Value| item["id"].as_str().unwrap_or_default().to_owned();
    if let Some(after) = after {
        let start = items.iter().position(|item| item["id"] == after).map_or(items.len(), |place| place + 1);
        items.drain(..start);
    }
    let limit = limit.clamp(1, MAX_PAGE) as usize;
    let has_more = items.len() > limit;
    items.truncate(limit);
    BoundedPageOf::new(items, has_more, id)
}

async fn find(state: &ApiState, caller: &Caller, id: &str) -> Result<StoredResponse> {
    let found = state.store.response(&caller.organization, id).await?;
    found.ok_or_else(|| Problem::no_response(id))
}

/// Returns a kept response with another status.
pub(super) fn with_status(response: &str, status: &'static str) -> Result<String> {
    let mut response: Value = serde_json::from_str(response)
        .map_err(|error| Problem::defect(format_args!("a response that is kept: {error}")))?;
    response["status"] = status.into();
    sse::json(&response)
}

/// Answers with JSON that is written already.
pub(crate) fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_begins_behind_the_item_that_it_names() {
        let items: Vec<Value> = ["a", "b", "c"].map(|id| json!({"id": id})).into();
        for (after, limit, ids, has_more) in [
            (None, 20, vec!["a", "b", "c"], false),
            (None, 2, vec!["a", "b"], true),
            (None, 0, vec!["a"], true),
            (Some("a"), 1, vec!["b"], true),
            (Some("b"), 1, vec!["c"], false),
            (Some("c"), 1, vec![], false),
            (Some("x"), 1, vec![], false),
        ] {
            let page = page(items.clone(), after, limit);
            let found: Vec<_> = page.data.iter().map(|item| item["id"].as_str().expect("an id")).collect();
            assert_eq!((&found, page.has_more), (&ids, has_more), "{after:?} {limit}");
            assert_eq!(page.first_id.as_deref(), ids.first().copied());
            assert_eq!(page.last_id.as_deref(), ids.last().copied());
        }
    }
}
