//! Responses that are kept: found by their id, by the ids of their items, and as the chain of those that one goes on
//! from. Those that wait or are being written in the background are in `background_responses`. Called by
//! `api::generation::responses`.
//!
//! An organisation finds its own alone. Items and objects are JSON that only `api` reads.

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
    /// Unix seconds.
    pub created_at: i64,
    /// The response that it goes on from.
    pub previous: Option<String>,
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

impl Store {
    /// Keeps a response that has ended.
    pub async fn keep_response(&self, new: &NewResponse) -> Result<()> {
        sqlx::query(
            "insert into responses (id, organization, key, created_at, status, background, streamed, previous, input,
                                    output, item_ids, response)
             values ($1, $2, $3, to_timestamp($4), $5, false, false, $6, $7, $8, $9, $10)",
        )
        .bind(&new.id)
        .bind(&new.organization)
        .bind(&new.key)
        .bind(new.created_at as f64)
        .bind(new.answer.status)
        .bind(&new.previous)
        .bind(&new.input)
        .bind(&new.answer.output)
        .bind(&new.answer.item_ids)
        .bind(&new.answer.response)
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
        let walk = "with recursive chain (id, previous, depth, bytes) as (
                        select id, previous, 1, (octet_length(input) + octet_length(output))::bigint
                          from responses where id = $1 and organization = $2
                        union all
                        select r.id, r.previous, chain.depth + 1,
                               chain.bytes + octet_length(r.input) + octet_length(r.output)
                          from chain join responses r on r.id = chain.previous and r.organization = $2
                         where chain.bytes <= $3 and chain.depth <= $4
                    )
                    select id, previous, depth, bytes from chain order by depth";
        let found: Vec<(String, Option<String>, i32, i64)> =
            sqlx::query_as(walk).bind(id).bind(organization).bind(limit).bind(MAX_CHAIN).fetch_all(&self.pool).await?;
        let Some((_, previous, depth, bytes)) = found.last() else { return Ok(Chain::Broken) };
        if *bytes > limit || *depth > MAX_CHAIN {
            return Ok(Chain::TooLong);
        }
        if previous.is_some() {
            return Ok(Chain::Broken);
        }
        let ids: Vec<&str> = found.iter().rev().map(|(id, ..)| id.as_str()).collect();
        let read = "select status, input, output from unnest($1::text[]) with ordinality wanted (id, place)
                      join responses using (id) where organization = $2 order by place";
        let turns: Vec<Turn> = sqlx::query_as(read).bind(&ids).bind(organization).fetch_all(&self.pool).await?;
        // One may have been deleted between the two.
        Ok(if turns.len() == ids.len() { Chain::Whole(turns) } else { Chain::Broken })
    }

    /// Finds responses of `organization` that hold items with any of these ids, the newest first.
    pub async fn responses_with_items(&self, organization: &str, ids: &[&str]) -> Result<Vec<Turn>> {
        let query = "select status, input, output from responses
                      where organization = $1 and item_ids && $2::text[] order by created_at desc, id limit $3";
        Ok(sqlx::query_as(query).bind(organization).bind(ids).bind(MAX_HOLDERS).fetch_all(&self.pool).await?)
    }
}
