//! `/chat/completions` by GET, and `/chat/completions/{id}`: the answers that chats with `store` asked to keep. `chat`
//! records them; [`training_file`] makes a training file of them.

pub(in crate::api) mod training_file;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::chat::ChatCompletion;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::list::{BoundedPageOf, Cursor};
use crate::api::http::query::{Query, QueryPairs};
use crate::api::operations::checks::{check_metadata, wanted_metadata};
use crate::api::operations::files::Order;
use crate::store::stored_completions::{CompletionFilter, StoredCompletion};

/// Items of a page at the most, and by default.
const MAX_PAGE: i64 = 100;
const PAGE: i64 = 20;

/// Which stored answers to list. `metadata[name]=value` asks for those with this note.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct CompletionQuery {
    /// Only answers of this model, as it was asked for.
    pub model: Option<String>,
    /// Id of the last item of the page before.
    pub after: Option<String>,
    /// Items at the most, 1 to 100; 20 by default.
    pub limit: Option<i64>,
    /// `asc` (oldest first, the default) or `desc`.
    #[param(inline)]
    pub order: Option<Order>,
}

/// Which messages to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct MessageQuery {
    /// Id of the last item of the page before.
    pub after: Option<String>,
    /// Items at the most, 1 to 100; 20 by default.
    pub limit: Option<i64>,
    /// `asc` (as they were sent, the default) or `desc`.
    #[param(inline)]
    pub order: Option<Order>,
}

/// New notes on a stored answer.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct UpdateCompletion {
    /// Replaces the notes: at most 16, with names of 64 and values of 512 characters.
    #[schema(value_type = std::collections::HashMap<String, String>)]
    pub metadata: Map<String, Value>,
}

/// A stored answer that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedCompletion {
    /// Always `chat.completion.deleted`.
    pub object: &'static str,
    /// `chatcmpl-…`
    pub id: String,
    /// Always true.
    pub deleted: bool,
}

/// A message that a stored answer answers, with the request's other fields of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoredMessage {
    /// The answer's id and the message's number.
    pub id: String,
    /// Who said it.
    pub role: String,
    /// The text; null for calls alone, and for content that was sent in parts.
    pub content: Option<String>,
    /// The parts, if the content was sent in parts.
    #[schema(value_type = Option<Vec<Object>>)]
    pub content_parts: Option<Value>,
    /// The name, of a function's message.
    pub name: Option<String>,
    /// Its other fields, such as `tool_calls`.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub rest: Map<String, Value>,
}

/// List stored answers
///
/// Answers to chats with `store`. Each object also has the request's `tools`, `tool_choice`, `response_format`, `seed`,
/// `temperature`, `top_p`, penalties, its `request_id`, `input_user` and `metadata`.
#[utoipa::path(
    get, path = "/chat/completions", operation_id = "listChatCompletions", tag = "Chat", params(CompletionQuery),
    responses((status = 200, body = BoundedPageOf<ChatCompletion>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Query(query): Query<CompletionQuery>,
    QueryPairs(pairs): QueryPairs,
) -> Result<Json<BoundedPageOf<Value>>, Problem> {
    state.completions.flush().await?;
    let filter =
        CompletionFilter { model: query.model, metadata: wanted_metadata(&pairs)?, ..CompletionFilter::default() };
    let mut page = Cursor { after: query.after, limit: query.limit }.page(PAGE, MAX_PAGE);
    page.ascending = query.order != Some(Order::Desc);
    let (found, more) = state.store.stored_completions(&caller.organization, &filter, page, false).await?;
    let id = |completion: &StoredCompletion| completion.id.clone();
    let page = BoundedPageOf::new(found, more, id);
    Ok(Json(page.map(|completion| completion.completion)))
}

/// Read a stored answer
#[utoipa::path(
    get, path = "/chat/completions/{completion_id}", operation_id = "getChatCompletion", tag = "Chat",
    params(("completion_id" = String, Path)),
    responses((status = 200, body = ChatCompletion), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    state.completions.flush().await?;
    Ok(Json(state.store.stored_completion(&caller.organization, &id).await?.completion))
}

/// Change the notes on a stored answer
#[utoipa::path(
    post, path = "/chat/completions/{completion_id}", operation_id = "updateChatCompletion", tag = "Chat",
    params(("completion_id" = String, Path)), request_body = UpdateCompletion,
    responses((status = 200, body = ChatCompletion), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn update(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<UpdateCompletion>,
) -> Result<Json<Value>, Problem> {
    check_metadata(Some(&request.metadata))?;
    state.completions.flush().await?;
    let changed = state.store.set_completion_metadata(&caller.organization, &id, &request.metadata).await?;
    Ok(Json(changed.completion))
}

/// Delete a stored answer
#[utoipa::path(
    delete, path = "/chat/completions/{completion_id}", operation_id = "deleteChatCompletion", tag = "Chat",
    params(("completion_id" = String, Path)),
    responses((status = 200, body = DeletedCompletion), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeletedCompletion>, Problem> {
    state.completions.flush().await?;
    state.store.delete_stored_completion(&caller.organization, &id).await?;
    Ok(Json(DeletedCompletion { object: "chat.completion.deleted", id, deleted: true }))
}

/// List the messages of a stored answer's request
#[utoipa::path(
    get, path = "/chat/completions/{completion_id}/messages", operation_id = "getChatCompletionMessages", tag = "Chat",
    params(("completion_id" = String, Path), MessageQuery),
    responses((status = 200, body = BoundedPageOf<StoredMessage>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn messages(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<MessageQuery>,
) -> Result<Json<BoundedPageOf<StoredMessage>>, Problem> {
    state.completions.flush().await?;
    let stored = state.store.stored_completion(&caller.organization, &id).await?;
    let page = Cursor { after: query.after, limit: query.limit }.page(PAGE, MAX_PAGE);
    let mut messages: Vec<StoredMessage> =
        stored.messages.into_iter().enumerate().map(|(index, message)| shown(&id, index, message)).collect();
    if query.order == Some(Order::Desc) {
        messages.reverse();
    }
    let first = match &page.after {
        None => 0,
        // Nothing follows a message that is not there.
        Some(after) => messages.iter().position(|message| message.id == *after).map_or(messages.len(), |at| at + 1),
    };
    let mut rest = messages.split_off(first);
    let limit = usize::try_from(page.limit).unwrap_or_default();
    let more = rest.len() > limit;
    rest.truncate(limit);
    Ok(Json(BoundedPageOf::new(rest, more, |message| message.id.clone())))
}

/// Returns the message as clients read it.
fn shown(id: &str, index: usize, mut message: Value) -> StoredMessage {
    let mut rest = message.as_object_mut().map(std::mem::take).unwrap_or_default();
    let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_owned));
    let (content, content_parts) = match rest.shift_remove("content") {
        Some(Value::Array(parts)) => (None, Some(json!(parts))),
        content => (text(content), None),
    };
    let role = text(rest.shift_remove("role")).unwrap_or_default();
    let name = text(rest.shift_remove("name"));
    StoredMessage { id: format!("{id}-{index}"), role, content, content_parts, name, rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_shows_its_text_or_its_parts_and_all_of_its_other_fields() {
        let shown = |message: Value| serde_json::to_value(shown("chatcmpl-1", 3, message)).expect("JSON");
        assert_eq!(
            shown(json!({"role": "user", "content": "a"})),
            json!({"id": "chatcmpl-1-3", "role": "user", "content": "a", "content_parts": null, "name": null})
        );
        let parts = json!([{"type": "text", "text": "a"}]);
        let said = shown(json!({"role": "user", "content": parts, "name": "x"}));
        assert_eq!((&said["content"], &said["content_parts"], &said["name"]), (&Value::Null, &parts, &json!("x")));
        let call = json!([{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
        assert_eq!(shown(json!({"role": "assistant", "tool_calls": call}))["tool_calls"], call);
    }
}
