//! Conversations: items in their order, to which clients and responses add. Called by
//! `api::generation::conversations`, and by `api::generation::responses` for what a response goes on from.
//!
//! An organisation finds its own alone. Items are JSON that only `api` reads.

use std::collections::HashSet;

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::store::files::{Page, cut_page};
use crate::store::{Result, Store};

/// Conversations that one lookup of items reads.
const MAX_HOLDERS: i64 = 100;
/// Conversations that one statement removes: each may take many items with it.
const PRUNED: i64 = 100;

/// A conversation without its items.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Conversation {
    /// `conv_…`
    pub id: String,
    /// The client's own notes.
    pub metadata: Json<Map<String, Value>>,
    /// Unix seconds.
    pub created_at: i64,
}

/// Items that are to be added: of each its id and its JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewItems {
    /// The ids.
    pub ids: Vec<String>,
    /// The items, in the same order.
    pub items: Vec<String>,
}

/// A conversation up to an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationPlace {
    /// `conv_…`
    pub id: String,
    /// Number of its last item then.
    pub end: i64,
}

/// What a conversation has.
#[derive(sqlx::FromRow)]
struct Room {
    items: i64,
    bytes: i64,
    /// Those of the ids that were asked for.
    present: Vec<String>,
}

/// What came of adding items to a conversation that may have each id once, and no more than so much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It has them.
    All,
    /// There is no such conversation.
    Gone,
    /// It has an item with the id of the one at this place already; nothing was added.
    Present(usize),
    /// It would have too many items or bytes; nothing was added.
    TooMuch,
}

/// The items of a conversation, as somebody read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum History {
    /// All of them, and where they end.
    Whole {
        /// A JSON array.
        items: String,
        /// How many they are.
        count: i64,
        /// The place behind them.
        place: ConversationPlace,
    },
    /// There is no such conversation, or no longer.
    Gone,
    /// They have more bytes than was asked for.
    TooLong,
}

/// The columns of [`Conversation`].
macro_rules! conversation_query {
    ($before:literal, $after:literal) => {
        concat!($before, " id, metadata, extract(epoch from created_at)::bigint as created_at ", $after)
    };
}

impl Store {
    /// Makes a conversation with its first items.
    pub async fn add_conversation(
        &self,
        organization: &str,
        id: &str,
        metadata: &Map<String, Value>,
        new: &NewItems,
    ) -> Result<Conversation> {
        Ok(sqlx::query_as(conversation_query!(
            "with made as (
                 insert into conversations (id, organization, metadata) values ($1, $2, $3) returning *
             ), added as (
                 insert into conversation_items (conversation, id, item)
                 select made.id, new.id, new.item
                   from made, unnest($4::text[], $5::text[]) with ordinality as new (id, item, place) order by new.place
             )
             select",
            "from made"
        ))
        .bind(id)
        .bind(organization)
        .bind(Json(metadata))
        .bind(&new.ids)
        .bind(&new.items)
        .fetch_one(&self.pool)
        .await?)
    }

    /// Finds a conversation of `organization`.
    pub async fn conversation(&self, organization: &str, id: &str) -> Result<Option<Conversation>> {
        let query = conversation_query!("select", "from conversations where id = $1 and organization = $2");
        Ok(sqlx::query_as(query).bind(id).bind(organization).fetch_optional(&self.pool).await?)
    }

    /// Replaces the notes on a conversation of `organization`; `None` if there is none.
    pub async fn set_conversation_metadata(
        &self,
        organization: &str,
        id: &str,
        metadata: &Map<String, Value>,
    ) -> Result<Option<Conversation>> {
        let query = conversation_query!(
            "update conversations set metadata = $3 where id = $1 and organization = $2 returning",
            ""
        );
        let update = sqlx::query_as(query).bind(id).bind(organization).bind(Json(metadata));
        Ok(update.fetch_optional(&self.pool).await?)
    }

    /// Deletes a conversation of `organization` with its items; false if there is none.
    pub async fn delete_conversation(&self, organization: &str, id: &str) -> Result<bool> {
        let query = sqlx::query("delete from conversations where id = $1 and organization = $2");
        Ok(query.bind(id).bind(organization).execute(&self.pool).await?.rows_affected() > 0)
    }

    /// Adds items to a conversation of `organization`, but for those whose ids it has; false if there is none.
    pub async fn add_to_conversation(&self, organization: &str, id: &str, new: &NewItems) -> Result<bool> {
        let add = sqlx::query_scalar("select add_to_conversation($1, $2, $3, $4)");
        Ok(add.bind(organization).bind(id).bind(&new.ids).bind(&new.items).fetch_one(&self.pool).await?)
    }

    /// Adds items to a conversation of `organization` if all of them are new to it and it then has at most `items` of
    /// them and `bytes`. Those who add to it at the same time wait for each other.
    pub async fn add_new_to_conversation(
        &self,
        organization: &str,
        id: &str,
        new: &NewItems,
        items: i64,
        bytes: i64,
    ) -> Result<Added> {
        let mut transaction = self.pool.begin().await?;
        let lock = sqlx::query("select from conversations where id = $1 and organization = $2 for update");
        if lock.bind(id).bind(organization).fetch_optional(&mut *transaction).await?.is_none() {
            return Ok(Added::Gone);
        }
        let room = room(&mut transaction, id, &new.ids).await?;
        let present: HashSet<String> = room.present.into_iter().collect();
        if let Some(place) = new.ids.iter().position(|id| present.contains(id)) {
            return Ok(Added::Present(place));
        }
        let added: usize = new.items.iter().map(String::len).sum();
        if room.items + new.items.len() as i64 > items || room.bytes + added as i64 > bytes {
            return Ok(Added::TooMuch);
        }
        let add = sqlx::query("select add_to_conversation($1, $2, $3, $4)");
        add.bind(organization).bind(id).bind(&new.ids).bind(&new.items).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Added::All)
    }

    /// Lists a page of the items of a conversation: their ids and their JSON, and whether there are more.
    pub async fn conversation_items(
        &self,
        organization: &str,
        id: &str,
        page: Page,
    ) -> Result<(Vec<(String, String)>, bool)> {
        let query = if page.ascending {
            "select entry.id, item from conversation_items entry join conversations on conversations.id = conversation
              where conversation = $1 and organization = $2
                and seq > (select seq from conversation_items where conversation = $1 and id = $3
                           union all select -1 where $3::text is null)
              order by seq limit $4"
        } else {
            "select entry.id, item from conversation_items entry join conversations on conversations.id = conversation
              where conversation = $1 and organization = $2
                and seq < (select seq from conversation_items where conversation = $1 and id = $3
                           union all select 9223372036854775807 where $3::text is null)
              order by seq desc limit $4"
        };
        let limit = page.bounded_limit();
        let found = sqlx::query_as(query).bind(id).bind(organization).bind(page.after).bind(limit + 1);
        Ok(cut_page(found.fetch_all(&self.pool).await?, limit))
    }

    /// Finds an item of a conversation of `organization`.
    pub async fn conversation_item(&self, organization: &str, id: &str, item: &str) -> Result<Option<String>> {
        let query = sqlx::query_scalar(
            "select item from conversation_items join conversations on conversations.id = conversation
              where conversation = $1 and organization = $2 and conversation_items.id = $3",
        );
        Ok(query.bind(id).bind(organization).bind(item).fetch_optional(&self.pool).await?)
    }

    /// Deletes an item of a conversation of `organization`; false if there is none.
    pub async fn delete_conversation_item(&self, organization: &str, id: &str, item: &str) -> Result<bool> {
        let query = sqlx::query(
            "delete from conversation_items using conversations
              where conversations.id = conversation and conversation = $1 and organization = $2
                and conversation_items.id = $3",
        );
        Ok(query.bind(id).bind(organization).bind(item).execute(&self.pool).await?.rows_affected() > 0)
    }

    /// Reads the items of a conversation of `organization`, up to number `end` if there is one, if they have at most
    /// `limit` bytes.
    pub async fn conversation_history(
        &self,
        organization: &str,
        id: &str,
        end: Option<i64>,
        limit: usize,
    ) -> Result<History> {
        // The items are read only where they are not too much: the sum comes first.
        let read = "with found as (
                        select id from conversations where id = $1 and organization = $2
                    ), size as (
                        select count(*) as items, coalesce(sum(octet_length(item)), 0)::bigint as bytes,
                               coalesce(max(seq), 0) as last
                          from conversation_items
                         where conversation = (select id from found) and ($3::bigint is null or seq <= $3)
                    )
                    select size.items, size.bytes, size.last,
                           case when size.bytes <= $4 then
                               (select coalesce(string_agg(item, ',' order by seq), '') from conversation_items
                                 where conversation = (select id from found) and seq <= size.last) end
                      from size where exists (select from found)";
        let found: Option<(i64, i64, i64, Option<String>)> = sqlx::query_as(read)
            .bind(id)
            .bind(organization)
            .bind(end)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_optional(&self.pool)
            .await?;
        Ok(match found {
            None => History::Gone,
            Some((.., None)) => History::TooLong,
            Some((count, _, last, Some(items))) => {
                let place = ConversationPlace { id: id.to_owned(), end: last };
                History::Whole { items: format!("[{items}]"), count, place }
            }
        })
    }

    /// Finds items with any of these ids in the conversations of `organization`, those of the newest first.
    pub async fn items_of_conversations(&self, organization: &str, ids: &[&str]) -> Result<Vec<String>> {
        let query = sqlx::query_scalar(
            "select item from conversation_items join conversations on conversations.id = conversation
              where organization = $1 and conversation_items.id = any($2) order by used_at desc, seq desc limit $3",
        );
        Ok(query.bind(organization).bind(ids).bind(MAX_HOLDERS).fetch_all(&self.pool).await?)
    }

    /// Removes some of the conversations to which nothing was added for `days`; returns how many.
    pub(crate) async fn prune_conversations(&self, days: i32) -> Result<u64> {
        let prune = sqlx::query(
            "with old as materialized (
                 select id from conversations where used_at < now() - make_interval(days => $1)
                  order by used_at limit $2 for update skip locked
             )
             delete from conversations using old where conversations.id = old.id",
        );
        Ok(prune.bind(days).bind(PRUNED).execute(&self.pool).await?.rows_affected())
    }
}

/// Tells what a conversation has, and which of `ids`.
async fn room(connection: &mut PgConnection, id: &str, ids: &[String]) -> Result<Room> {
    let query = sqlx::query_as(
        "select count(*) as items, coalesce(sum(octet_length(item)), 0)::bigint as bytes,
                coalesce(array_agg(id) filter (where id = any($2)), '{}') as present
           from conversation_items where conversation = $1",
    );
    Ok(query.bind(id).bind(ids).fetch_one(connection).await?)
}
