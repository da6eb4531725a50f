//! Responses that are kept: found by their id, by the ids of their items, and as the chain of those that one goes on
//! from. Those that wait or are being written in the background are in `background_responses`. Called by
//! `api::generation::responses`.
//!
//! An organisation finds its own alone. Items and objects are JSON that only `api` reads.

use sqlx::types::Json;

use crate::store::conversations::{ConversationPlace, History, NewItems};
use crate::store::stored_completions::CompletionFilter;
use crate::store::{Result, Store};

/// Longest chain of responses that go on from each other.
const MAX_CHAIN: i32 = 10_000;
/// Responses that one lookup of items reads.
const MAX_HOLDERS: i64 = 100;

/// A response to keep.
#[derive(Debug, Clone)]
pub struct NewResponse {
    /// `resp_…`
    pub id: String,
    /// The owner.
    pub organization: String,
    /// Id of the key that asked for it.
    pub key: String,
    /// Unix microseconds: clients are shown whole seconds.
    pub created_micros: i64,
    /// The response that it goes on from.
    pub previous: Option<String>,
    /// The conversation that it goes on from, as it was then.
    pub conversation: Option<ConversationPlace>,
    /// Items of the request, a JSON array.
    pub input: String,
    /// What came of it.
    pub answer: Answer,
}

/// What came of a request so far.
#[derive(Debug, Clone)]
pub struct Answer {
    /// `completed`, `incomplete`, `failed`, `cancelled`, `queued` or `in_progress`.
    pub status: &'static str,
    /// Items of the answer, a JSON array.
    pub output: String,
    /// Ids of the items of the request and the answer.
    pub item_ids: Vec<String>,
    /// The object as clients read it.
    pub response: String,
    /// What its conversation gets, if it has one.
    pub added: NewItems,
}

/// A kept response.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct StoredResponse {
    /// `resp_…`
    pub id: String,
    /// As in [`Answer`].
    pub status: String,
    /// True if nobody waited for it.
    pub background: bool,
    /// True if its events are kept.
    pub streamed: bool,
    /// Items of the request, a JSON array.
    pub input: String,
    /// Items of the answer, a JSON array.
    pub output: String,
    /// The object as clients read it.
    pub response: String,
}

/// One response of a chain.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Turn {
    /// As in [`Answer`].
    pub status: String,
    /// Items of the request, a JSON array.
    pub input: String,
    /// Items of the answer, a JSON array.
    pub output: String,
}

/// The responses that a request goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// All of them, the first one first.
    Whole(Vec<Turn>),
    /// One of them is not kept, or no longer.
    Broken,
    /// Together they have more bytes than was asked for.
    TooLong,
}

/// A response on the walk along a chain.
#[derive(sqlx::FromRow)]
struct Link {
    id: String,
    previous: Option<String>,
    depth: i32,
    /// Of all responses so far.
    bytes: i64,
    conversation: Option<String>,
    conversation_end: Option<i64>,
}

/// Which kept responses to read; by default all that have an answer.
#[derive(Debug, Clone, Default)]
pub struct ResponseFilter {
    /// What chats are chosen by, too.
    pub common: CompletionFilter,
    /// A text that the instructions hold, whatever the case.
    pub instructions: Option<String>,
    /// How much the model was to think.
    pub effort: Option<String>,
    /// As the answer was drawn.
    pub temperature: Option<f64>,
    /// As the answer was drawn.
    pub top_p: Option<f64>,
    /// One of these users.
    pub users: Vec<String>,
    /// One of these tools was there.
    pub tools: Vec<String>,
}

impl Store {
    /// Returns the ids of the newest `limit` answered responses of the organisation that pass the filter, the oldest of
    /// them first.
    pub async fn response_ids(&self, organization: &str, filter: &ResponseFilter, limit: i64) -> Result<Vec<String>> {
        // `jsonb` takes no NUL, which a model may write; what stands for it has the same length, so that the text stays
        // JSON even where a backslash stands before it.
        let ids = sqlx::query_scalar(
            r"with made as (
                 select id, created_at, seq, replace(response, '\u0000', '\ufffd')::jsonb as shown from responses
                  where organization = $1 and status in ('completed', 'incomplete')
                    and ($2::bigint is null or created_at >= to_timestamp($2))
                    and ($3::bigint is null or created_at < to_timestamp($3::float8 + 1))
             ), newest as (
                 select id, created_at, seq from made
                  where ($4::text is null or shown->>'model' = $4)
                    and ($5::text is null or strpos(lower(shown->>'instructions'), lower($5)) > 0)
                    and coalesce(shown->'metadata', '{}') @> $6
                    and ($7::text is null or shown#>>'{reasoning,effort}' = $7)
                    and ($8::float8 is null or (shown->>'temperature')::float4 = $8::float4)
                    and ($9::float8 is null or (shown->>'top_p')::float4 = $9::float4)
                    and (cardinality($10::text[]) = 0 or shown->>'user' = any($10))
                    and (cardinality($11::text[]) = 0 or exists (
                        select from jsonb_array_elements(shown->'tools') tool where tool->>'name' = any($11)))
                  order by created_at desc, seq desc limit $12
             )
             select id from newest order by created_at, seq",
        );
        Ok(ids
            .bind(organization)
            .bind(filter.common.created_after)
            .bind(filter.common.created_before)
            .bind(&filter.common.model)
            .bind(&filter.instructions)
            .bind(Json(&filter.common.metadata))
            .bind(&filter.effort)
            .bind(filter.temperature)
            .bind(filter.top_p)
            .bind(&filter.users)
            .bind(&filter.tools)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?)
    }

    /// Keeps a response that has ended, and adds to its conversation.
    pub async fn keep_response(&self, new: &NewResponse) -> Result<()> {
        sqlx::query(
            "with kept as (
                 insert into responses (id, organization, key, created_at, status, background, streamed, previous,
                                        input, output, item_ids, response, conversation, conversation_end)
                 values ($1, $2, $3, to_timestamp(0) + $4 * interval '1 microsecond', $5, false, false, $6, $7, $8, $9, $10, $11, $12)
                 returning organization, conversation
             )
             select add_to_conversation(organization, conversation, $13, $14) from kept",
        )
        .bind(&new.id)
        .bind(&new.organization)
        .bind(&new.key)
        .bind(new.created_micros)
        .bind(new.answer.status)
        .bind(&new.previous)
        .bind(&new.input)
        .bind(&new.answer.output)
        .bind(&new.answer.item_ids)
        .bind(&new.answer.response)
        .bind(new.conversation.as_ref().map(|place| &place.id))
        .bind(new.conversation.as_ref().map(|place| place.end))
        .bind(&new.answer.added.ids)
        .bind(&new.answer.added.items)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Finds a response of `organization`.
    pub async fn response(&self, organization: &str, id: &str) -> Result<Option<StoredResponse>> {
        let query = "select id, status, background, streamed, input, output, response from responses
                      where id = $1 and organization = $2";
        Ok(sqlx::query_as(query).bind(id).bind(organization).fetch_optional(&self.pool).await?)
    }

    /// Returns the status of a response of `organization`.
    pub async fn response_status(&self, organization: &str, id: &str) -> Result<Option<String>> {
        let query = sqlx::query_scalar("select status from responses where id = $1 and organization = $2");
        Ok(query.bind(id).bind(organization).fetch_optional(&self.pool).await?)
    }

    /// Deletes a response of `organization` with its events; false if there is none. One that is being written is not
    /// written on.
    pub async fn delete_response(&self, organization: &str, id: &str) -> Result<bool> {
        let query = sqlx::query("delete from responses where id = $1 and organization = $2");
        Ok(query.bind(id).bind(organization).execute(&self.pool).await?.rows_affected() > 0)
    }

    /// Finds the response `id` of `organization` and all that it goes on from, if they have at most `limit` bytes.
    pub async fn response_chain(&self, organization: &str, id: &str, limit: usize) -> Result<Chain> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // The walk reads lengths alone, and ends where they are too much.
        let walk = "with recursive chain (id, previous, depth, bytes, conversation, conversation_end) as (
                        select id, previous, 1, (octet_length(input) + octet_length(output))::bigint, conversation,
                               conversation_end
                          from responses where id = $1 and organization = $2
                        union all
                        select r.id, r.previous, chain.depth + 1,
                               chain.bytes + octet_length(r.input) + octet_length(r.output), r.conversation,
                               r.conversation_end
                          from chain join responses r on r.id = chain.previous and r.organization = $2
                         where chain.bytes <= $3 and chain.depth <= $4
                    )
                    select * from chain order by depth";
        let found: Vec<Link> =
            sqlx::query_as(walk).bind(id).bind(organization).bind(limit).bind(MAX_CHAIN).fetch_all(&self.pool).await?;
        let Some(Link { previous, depth, bytes, conversation, conversation_end, .. }) = found.last() else {
            return Ok(Chain::Broken);
        };
        if *bytes > limit || *depth > MAX_CHAIN {
            return Ok(Chain::TooLong);
        }
        if previous.is_some() {
            return Ok(Chain::Broken);
        }
        // The first one may go on from a conversation.
        let mut before = Vec::new();
        if let (Some(conversation), Some(end)) = (conversation, conversation_end) {
            let rest = usize::try_from(limit - bytes).unwrap_or_default();
            match self.conversation_history(organization, conversation, Some(*end), rest).await? {
                History::Gone => return Ok(Chain::Broken),
                History::TooLong => return Ok(Chain::TooLong),
                History::Whole { items, .. } => {
                    before.push(Turn { status: "completed".into(), input: items, output: "[]".into() });
                }
            }
        }
        let ids: Vec<&str> = found.iter().rev().map(|link| link.id.as_str()).collect();
        let read = "select status, input, output from unnest($1::text[]) with ordinality wanted (id, place)
                      join responses using (id) where organization = $2 order by place";
        let turns: Vec<Turn> = sqlx::query_as(read).bind(&ids).bind(organization).fetch_all(&self.pool).await?;
        // One may have been deleted between the two.
        let is_whole = turns.len() == ids.len();
        before.extend(turns);
        Ok(if is_whole { Chain::Whole(before) } else { Chain::Broken })
    }

    /// Finds responses of `organization` that hold items with any of these ids, the newest first.
    pub async fn responses_with_items(&self, organization: &str, ids: &[&str]) -> Result<Vec<Turn>> {
        let query = "select status, input, output from responses
                      where organization = $1 and item_ids && $2::text[] order by created_at desc, seq desc limit $3";
        Ok(sqlx::query_as(query).bind(organization).bind(ids).bind(MAX_HOLDERS).fetch_all(&self.pool).await?)
    }
}
