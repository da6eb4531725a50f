//! The items of a conversation: added, listed, read and deleted.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{ConversationObject, find};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::responses::conversation::{MAX_ITEMS, check_new, new_items, resolve};
use crate::api::generation::responses::items::kept;
use crate::api::generation::responses::stored::{ItemsQuery, json};
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::list::{BoundedPageOf, Cursor};
use crate::api::http::query::Query;
use crate::api::http::share::Share;
use crate::api::operations::files::Order;
use crate::store::conversations::{Added, NewItems};

/// The field that holds items.
const ITEMS: &str = "items";
/// Largest number of items in a page, and the default.
const MAX_PAGE: i64 = 100;
const PAGE: i64 = 20;

/// Items to add.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct AddItems {
    /// As in the `input` of a response.
    #[schema(value_type = Vec<Object>)]
    pub items: Vec<Value>,
}

/// Add items to a conversation
#[utoipa::path(
    post, path = "/conversations/{conversation_id}/items", operation_id = "createConversationItems",
    tag = "Conversations", params(("conversation_id" = String, Path)), request_body = AddItems,
    responses((status = 200, body = BoundedPageOf<Value>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn add(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    Path(id): Path<String>,
    Body(request): Body<AddItems>,
) -> Result<Response, Problem> {
    let items = read_new(&state, &caller, &share, request.items).await?;
    let new = new_items(&items);
    let limit = state.config.limits.max_body_bytes as i64;
    match state.store.add_new_to_conversation(&caller.organization, &id, &new, MAX_ITEMS, limit).await? {
        Added::All => {}
        Added::Gone => return Err(Problem::no_conversation(&id)),
        Added::Present(index) => {
            let message = format!("The conversation has an item with the id '{}' already.", new.ids[index]);
            return Err(Problem::invalid_code(format!("{ITEMS}[{index}].id"), "invalid_value", message));
        }
        Added::TooMuch => {
            let message = format!("A conversation may have {MAX_ITEMS} items and {limit} bytes.");
            return Err(Problem::invalid_code(ITEMS, "array_above_max_length", message));
        }
    }
    let NewItems { ids, items } = new;
    Ok(page(&ids.into_iter().zip(items).collect::<Vec<_>>(), false))
}

/// List the items of a conversation
#[utoipa::path(
    get, path = "/conversations/{conversation_id}/items", operation_id = "listConversationItems", tag = "Conversations",
    params(("conversation_id" = String, Path), ItemsQuery),
    responses((status = 200, body = BoundedPageOf<Value>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    Path(id): Path<String>,
    Query(query): Query<ItemsQuery>,
) -> Result<Response, Problem> {
    find(&state, &caller, &id).await?;
    let mut wanted = Cursor { after: query.after, limit: query.limit }.page(PAGE, MAX_PAGE);
    wanted.ascending = query.order == Some(Order::Asc);
    let (items, has_more) = state.store.conversation_items(&caller.organization, &id, wanted).await?;
    share.keep(2 * items.iter().map(|(_, item)| item.len()).sum::<usize>()).await?;
    Ok(page(&items, has_more))
}

/// Read an item of a conversation
#[utoipa::path(
    get, path = "/conversations/{conversation_id}/items/{item_id}", operation_id = "getConversationItem",
    tag = "Conversations", params(("conversation_id" = String, Path), ("item_id" = String, Path)),
    responses((status = 200, body = Value), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path((id, item)): Path<(String, String)>,
) -> Result<Response, Problem> {
    find(&state, &caller, &id).await?;
    let found = state.store.conversation_item(&caller.organization, &id, &item).await?;
    Ok(json(found.ok_or_else(|| no_item(&item))?))
}

/// Delete an item of a conversation
#[utoipa::path(
    delete, path = "/conversations/{conversation_id}/items/{item_id}", operation_id = "deleteConversationItem",
    tag = "Conversations", params(("conversation_id" = String, Path), ("item_id" = String, Path)),
    responses((status = 200, body = ConversationObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path((id, item)): Path<(String, String)>,
) -> Result<Json<ConversationObject>, Problem> {
    let conversation = find(&state, &caller, &id).await?;
    if !state.store.delete_conversation_item(&caller.organization, &id, &item).await? {
        return Err(no_item(&item));
    }
    Ok(Json(conversation))
}

/// Reads items that a client adds, and brings them into the form in which they are kept.
pub(super) async fn read_new(
    state: &ApiState,
    caller: &Caller,
    share: &Share,
    items: Vec<Value>,
) -> Result<Vec<Value>> {
    if items.len() as i64 > MAX_ITEMS {
        let message = format!("A conversation may have {MAX_ITEMS} items.");
        return Err(Problem::invalid_code(ITEMS, "array_above_max_length", message));
    }
    let items = resolve(state, caller, share, items, &[], ITEMS).await?;
    check_new(&items, &[], ITEMS)?;
    Ok(items.into_iter().map(kept).collect())
}

fn no_item(id: &str) -> Problem {
    Problem::no_item(id).param("item_id")
}

/// Writes a page of items, which are JSON already.
fn page(items: &[(String, String)], has_more: bool) -> Response {
    let id = |item: Option<&(String, String)>| Value::from(item.map(|(id, _)| id.as_str()));
    let (first, last) = (id(items.first()), id(items.last()));
    let data = items.iter().map(|(_, item)| item.as_str()).collect::<Vec<_>>().join(",");
    json(format!(
        "{{\"object\":\"list\",\"data\":[{data}],\"first_id\":{first},\"last_id\":{last},\"has_more\":{has_more}}}"
    ))
}
