//! Chats that clients asked to store: the answer's object, the messages that it answers, and the client's notes on it.
//! `completion_recorder` writes them, `api` reads, changes and deletes them, `jobs::retention` removes what is old.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::types::Json;

use crate::store::files::{Page, cut_page};
use crate::store::{Error, Result, Store};

/// Bytes of the objects on one page at the most, if it has more than one: an object may hold hundreds of answers.
const PAGE_BYTES: i64 = 8 << 20;
/// Answers of a choice that are read at a time.
const CHOSEN: i64 = 200;
/// Rows that one statement removes.
const PRUNED: i64 = 500;

/// An answer to be stored.
#[derive(Debug, Clone)]
pub struct NewCompletion {
    /// `chatcmpl-…`
    pub id: String,
    /// The owner.
    pub organization: String,
    /// The model as asked for.
    pub model: String,
    /// Unix microseconds: clients are shown whole seconds.
    pub created_micros: i64,
    /// The client's notes.
    pub metadata: Map<String, Value>,
    /// JSON of the answer's object, without the notes.
    pub completion: String,
    /// JSON of the request's messages.
    pub messages: String,
}

impl NewCompletion {
    /// Returns the bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.completion.len() + self.messages.len()
    }
}

/// A stored answer.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredCompletion {
    /// `chatcmpl-…`
    pub id: String,
    /// The answer's object, its notes included.
    pub completion: Value,
    /// The messages that it answers; empty in lists of answers alone.
    pub messages: Vec<Value>,
}

/// Which stored answers to read; by default all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionFilter {
    /// The model, as it was asked for.
    pub model: Option<String>,
    /// Notes that they have among theirs.
    pub metadata: Map<String, Value>,
    /// Unix seconds: not before.
    pub created_after: Option<i64>,
    /// Unix seconds: not after.
    pub created_before: Option<i64>,
}

/// A choice of stored answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// What they have in common.
    #[serde(flatten)]
    pub filter: CompletionFilter,
    /// Answers at the most, the newest.
    pub limit: i64,
}

/// Reads the answers of a choice, some at a time, the newest first.
#[derive(Debug)]
pub struct ChosenCompletions<'a> {
    store: &'a Store,
    organization: &'a str,
    filter: &'a CompletionFilter,
    /// How many may still be read.
    left: i64,
    /// The last one that was read.
    after: Option<String>,
}

/// The condition of a [`CompletionFilter`], for the organisation `$1` and the values `$2` to `$5`, which `matching` binds.
macro_rules! matches_filter {
    () => {
        "organization = $1 and ($2::text is null or model = $2) and metadata @> $3
           and ($4::bigint is null or created_at >= to_timestamp($4))
           and ($5::bigint is null or created_at < to_timestamp($5::float8 + 1))"
    };
}

/// Binds what `matches_filter` needs.
macro_rules! matching {
    ($query:expr, $organization:expr, $filter:expr) => {
        $query
            .bind($organization)
            .bind(&$filter.model)
            .bind(Json(&$filter.metadata))
            .bind($filter.created_after)
            .bind($filter.created_before)
    };
}

/// The ids and sizes of a page. Two statements, so that the answers themselves are read only as far as they fit.
macro_rules! page_query {
    ($than:literal, $first:literal, $order:literal) => {
        concat!(
            "select id, bytes from stored_completions where ",
            matches_filter!(),
            " and (created_at, seq) ",
            $than,
            " (select created_at, seq from stored_completions where organization = $1 and id = $6
                union all select ",
            $first,
            ", 0 where $6::text is null)
              order by created_at ",
            $order,
            ", seq ",
            $order,
            " limit $7"
        )
    };
}

/// A row as it is read.
type Row = (String, String, Json<Map<String, Value>>, String);

impl Store {
    /// Writes the row; one that is there already is left as it is, so that it can be sent again.
    pub async fn add_stored_completion(&self, new: &NewCompletion) -> Result<()> {
        sqlx::query(
            "insert into stored_completions
                 (id, organization, model, created_at, metadata, completion, messages, bytes)
             values ($1, $2, $3, to_timestamp(0) + $4 * interval '1 microsecond', $5, $6::text::json, $7::text::json, $8)
             on conflict (id) do nothing",
        )
        .bind(&new.id)
        .bind(&new.organization)
        .bind(&new.model)
        .bind(new.created_micros)
        .bind(Json(&new.metadata))
        .bind(&new.completion)
        .bind(&new.messages)
        .bind(new.bytes() as i64)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Reads the organisation's stored answer with its messages, or [`Error::NotFound`].
    pub async fn stored_completion(&self, organization: &str, id: &str) -> Result<StoredCompletion> {
        let mut found = self.completions_of(organization, &[id.to_owned()], true).await?;
        found.pop().ok_or_else(|| no_such_completion(id))
    }

    /// Lists a page of the organisation's stored answers, and tells whether there are more. A page may have fewer than
    /// its limit: it ends where it would become too large.
    pub async fn stored_completions(
        &self,
        organization: &str,
        filter: &CompletionFilter,
        page: Page,
        with_messages: bool,
    ) -> Result<(Vec<StoredCompletion>, bool)> {
        let query = if page.ascending {
            page_query!(">", "'-infinity'::timestamptz", "asc")
        } else {
            page_query!("<", "'infinity'::timestamptz", "desc")
        };
        let limit = page.bounded_limit();
        let sizes = matching!(sqlx::query_as(query), organization, filter).bind(page.after).bind(limit + 1);
        let sizes: Vec<(String, i64)> = sizes.fetch_all(&self.pool).await?;
        let (sizes, more) = cut_page(sizes, limit);
        let fitting = fitting(&sizes, PAGE_BYTES);
        let ids: Vec<String> = sizes[..fitting].iter().map(|(id, _)| id.clone()).collect();
        let found = self.completions_of(organization, &ids, with_messages).await?;
        Ok((found, more || fitting < sizes.len()))
    }

    /// Returns the ids of the newest `limit` stored answers of the organisation that pass the filter, the oldest of
    /// them first.
    pub async fn completion_ids(
        &self,
        organization: &str,
        filter: &CompletionFilter,
        limit: i64,
    ) -> Result<Vec<String>> {
        let ids = sqlx::query_scalar(concat!(
            "select id from (select id, created_at, seq from stored_completions where ",
            matches_filter!(),
            " order by created_at desc, seq desc limit $6) newest order by created_at, seq"
        ));
        let ids = matching!(ids, organization, filter).bind(limit);
        Ok(ids.fetch_all(&self.pool).await?)
    }

    /// Begins to read the answers of a choice.
    pub fn chosen_completions<'a>(
        &'a self,
        organization: &'a str,
        CompletionChoice { filter, limit }: &'a CompletionChoice,
    ) -> ChosenCompletions<'a> {
        ChosenCompletions { store: self, organization, filter, left: *limit, after: None }
    }

    /// Reads those of the organisation's stored answers that have the `ids`, in this order.
    async fn completions_of(
        &self,
        organization: &str,
        ids: &[String],
        messages: bool,
    ) -> Result<Vec<StoredCompletion>> {
        let rows: Vec<Row> = sqlx::query_as(
            "select id, completion::text, metadata, case when $3 then messages::text else '[]' end
               from stored_completions where organization = $1 and id = any($2) order by array_position($2, id)",
        )
        .bind(organization)
        .bind(ids)
        .bind(messages)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(StoredCompletion::read).collect()
    }

    /// Replaces the client's notes, and returns the object with the new ones.
    pub async fn set_completion_metadata(
        &self,
        organization: &str,
        id: &str,
        metadata: &Map<String, Value>,
    ) -> Result<StoredCompletion> {
        let row: Option<Row> = sqlx::query_as(
            "update stored_completions set metadata = $3 where organization = $1 and id = $2
             returning id, completion::text, metadata, '[]'",
        )
        .bind(organization)
        .bind(id)
        .bind(Json(metadata))
        .fetch_optional(&self.pool)
        .await?;
        row.map(StoredCompletion::read).transpose()?.ok_or_else(|| no_such_completion(id))
    }

    /// Deletes the stored answer, or [`Error::NotFound`].
    pub async fn delete_stored_completion(&self, organization: &str, id: &str) -> Result<()> {
        let deleted = sqlx::query("delete from stored_completions where organization = $1 and id = $2")
            .bind(organization)
            .bind(id)
            .execute(&self.pool)
            .await?;
        if deleted.rows_affected() == 0 { Err(no_such_completion(id)) } else { Ok(()) }
    }

    /// Removes some of the answers that are more than `days` old; returns how many. 0 means that none is left, or that
    /// another process removes them.
    pub(crate) async fn prune_stored_completions(&self, days: i32) -> Result<u64> {
        let removed = sqlx::query(
            "with old as materialized (
                 select id from stored_completions where created_at < now() - make_interval(days => $1)
                  order by created_at limit $2 for update skip locked
             )
             delete from stored_completions using old where stored_completions.id = old.id",
        )
        .bind(days)
        .bind(PRUNED)
        .execute(&self.pool)
        .await?;
        Ok(removed.rows_affected())
    }
}

impl ChosenCompletions<'_> {
    /// Reads the next ones with their messages; none at the end.
    pub async fn next(&mut self) -> Result<Vec<StoredCompletion>> {
        if self.left <= 0 {
            return Ok(Vec::new());
        }
        let page = Page { after: self.after.take(), limit: self.left.min(CHOSEN), ascending: false };
        let (found, more) = self.store.stored_completions(self.organization, self.filter, page, true).await?;
        self.left = if more { self.left - found.len() as i64 } else { 0 };
        self.after = found.last().map(|last| last.id.clone());
        Ok(found)
    }
}

impl StoredCompletion {
    fn read((id, completion, Json(metadata), messages): Row) -> Result<Self> {
        let fault = |error| Error::Internal(format!("read the stored completion {id}: {error}"));
        let mut completion: Value = serde_json::from_str(&completion).map_err(fault)?;
        completion["metadata"] = metadata.into();
        let messages = serde_json::from_str(&messages).map_err(fault)?;
        Ok(Self { id, completion, messages })
    }
}

/// Returns how many of the first objects have at most `bytes` together; one is always among them.
fn fitting(sizes: &[(String, i64)], bytes: i64) -> usize {
    let mut sum = 0_i64;
    let fits = |(_, size): &&(String, i64)| {
        sum = sum.saturating_add(*size);
        sum <= bytes
    };
    sizes.iter().take_while(fits).count().max(1).min(sizes.len())
}

fn no_such_completion(id: &str) -> Error {
    Error::NotFound { kind: "Completion", id: id.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_before_it_becomes_too_large_and_is_never_empty() {
        let sizes = |bytes: &[i64]| bytes.iter().map(|bytes| (String::new(), *bytes)).collect::<Vec<_>>();
        assert_eq!(fitting(&sizes(&[4, 3, 3, 1]), 10), 3);
        assert_eq!(fitting(&sizes(&[40, 3]), 10), 1);
        assert_eq!(fitting(&sizes(&[1, 2]), 10), 2);
        assert_eq!(fitting(&[], 10), 0);
    }
}
