//! `/conversations`: items that the server keeps in their order, for responses that go on from them and add to them.
//!
//! This file has the conversations themselves, [`items`] what is in them. The items are those of `responses`, which
//! reads a conversation for a request that names it.

pub(crate) mod items;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use self::items::read_new;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::responses::conversation::new_items;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::share::Share;
use crate::api::operations::checks::check_metadata;
use crate::store::conversations::Conversation;
use crate::store::new_id;

/// A conversation to be made.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct CreateConversation {
    /// Its first items, as in the `input` of a response.
    #[schema(value_type = Option<Vec<Object>>)]
    pub items: Option<Vec<Value>>,
    /// Notes of the client: at most 16.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

/// What to change.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct UpdateConversation {
    /// The new notes, which replace the old ones; without them nothing changes.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

/// A conversation, without its items.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConversationObject {
    /// `conv_…`
    pub id: String,
    /// Always `conversation`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    /// The client's own notes.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
}

/// A conversation that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedConversation {
    /// `conv_…`
    pub id: String,
    /// Always `conversation.deleted`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// Create a conversation
#[utoipa::path(
    post, path = "/conversations", operation_id = "createConversation", tag = "Conversations",
    request_body = CreateConversation,
    responses((status = 200, body = ConversationObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    Body(request): Body<CreateConversation>,
) -> Result<Json<ConversationObject>, Problem> {
    check_metadata(request.metadata.as_ref())?;
    let items = read_new(&state, &caller, &share, request.items.unwrap_or_default()).await?;
    let metadata = request.metadata.unwrap_or_default();
    let (id, new) = (new_id("conv_"), new_items(&items));
    Ok(Json(state.store.add_conversation(&caller.organization, &id, &metadata, &new).await?.into()))
}

/// Read a conversation
#[utoipa::path(
    get, path = "/conversations/{conversation_id}", operation_id = "getConversation", tag = "Conversations",
    params(("conversation_id" = String, Path)),
    responses((status = 200, body = ConversationObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<ConversationObject>, Problem> {
    find(&state, &caller, &id).await.map(Json)
}

/// Change a conversation's notes
#[utoipa::path(
    post, path = "/conversations/{conversation_id}", operation_id = "updateConversation", tag = "Conversations",
    params(("conversation_id" = String, Path)), request_body = UpdateConversation,
    responses((status = 200, body = ConversationObject), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn update(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<UpdateConversation>,
) -> Result<Json<ConversationObject>, Problem> {
    check_metadata(request.metadata.as_ref())?;
    let Some(metadata) = request.metadata else { return find(&state, &caller, &id).await.map(Json) };
    let changed = state.store.set_conversation_metadata(&caller.organization, &id, &metadata).await?;
    Ok(Json(changed.ok_or_else(|| Problem::no_conversation(&id))?.into()))
}

/// Delete a conversation
///
/// Its items are removed with it; responses that went on from it stay.
#[utoipa::path(
    delete, path = "/conversations/{conversation_id}", operation_id = "deleteConversation", tag = "Conversations",
    params(("conversation_id" = String, Path)),
    responses((status = 200, body = DeletedConversation), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeletedConversation>, Problem> {
    if !state.store.delete_conversation(&caller.organization, &id).await? {
        return Err(Problem::no_conversation(&id));
    }
    Ok(Json(DeletedConversation { id, object: "conversation.deleted", deleted: true }))
}

async fn find(state: &ApiState, caller: &Caller, id: &str) -> Result<ConversationObject> {
    let found = state.store.conversation(&caller.organization, id).await?;
    Ok(found.ok_or_else(|| Problem::no_conversation(id))?.into())
}

impl From<Conversation> for ConversationObject {
    fn from(found: Conversation) -> Self {
        let Conversation { id, metadata, created_at } = found;
        Self { id, object: "conversation", created_at, metadata: metadata.0 }
    }
}
