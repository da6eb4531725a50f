//! The use of each key, by model and UTC day: the sums that `GET /v1/usage` shows. The
//! [recorder](super::usage_recorder) writes the use of requests; a job's tokens are written by the statement that
//! finishes it, in `jobs::queue`. What [`recent_use`](super::recent_use) shows is written along.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::store::Result;
use crate::store::{MAX_PAGE, Store};

/// The key of a row: whose sums, and of which model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UsageEntry {
    /// The owner of the key.
    pub organization: Arc<str>,
    /// Id of the key.
    pub key: Arc<str>,
    /// The model, as asked for.
    pub model: Arc<str>,
    /// Id of the base model that it runs on.
    pub base: Arc<str>,
    /// Whether it was used by lines of batches.
    pub batch: bool,
}

/// Sums of one entry and day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that ran a model.
    pub requests: i64,
    /// Tokens of prompts and of inputs to embed, cached ones included.
    pub prompt_tokens: i64,
    /// Those of them that need not be computed.
    pub cached_tokens: i64,
    /// Tokens drawn.
    pub completion_tokens: i64,
}

impl Counts {
    /// Adds `other` to the sums.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}

/// Sums that go to the database together, by UTC day (`2026-01-31`) and entry.
pub type UsageRows = BTreeMap<(Arc<str>, UsageEntry), Counts>;

/// Which rows to select, and how to sum them up. Days are UTC, `2026-01-31`.
#[derive(Debug, Clone, Default)]
pub struct UsageQuery {
    /// Only this organisation's; `None` sums all of them, with a row for each.
    pub organization: Option<String>,
    /// The first day.
    pub start: String,
    /// The last day.
    pub end: String,
    /// A row for each day.
    pub by_day: bool,
    /// A row for each model.
    pub by_model: bool,
    /// A row for each key.
    pub by_key: bool,
    /// Prices of tokens.
    pub prices: Vec<BasePrice>,
    /// Rows at the most.
    pub limit: i64,
    /// Rows to leave out at the beginning.
    pub offset: i64,
}

/// What a base model's tokens cost, and those of all models on it: money per million tokens.
#[derive(Debug, Clone)]
pub struct BasePrice {
    /// Id of the base model.
    pub base: String,
    /// Prompt tokens that are not cached.
    pub prompt: f64,
    /// Prompt tokens that are.
    pub cached_prompt: f64,
    /// Tokens drawn.
    pub completion: f64,
    /// Tokens trained on.
    pub training: f64,
    /// Factor of the first three for lines of batches.
    pub batch: f64,
}

/// One row of the answer. Columns that the query does not group by are `None`.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct UsageRow {
    /// UTC day.
    pub day: Option<String>,
    /// The owner of the key.
    pub organization: Option<String>,
    /// The model, as asked for.
    pub model: Option<String>,
    /// Id of the key; empty if it is not known.
    pub key: Option<String>,
    /// Requests that ran a model.
    pub requests: i64,
    /// Tokens of prompts and of inputs to embed.
    pub prompt_tokens: i64,
    /// Those of them that need not be computed.
    pub cached_tokens: i64,
    /// Tokens drawn.
    pub completion_tokens: i64,
    /// Tokens trained on.
    pub trained_tokens: i64,
    /// Of the requests those that were lines of batches.
    pub batch_requests: i64,
    /// Their tokens of prompts.
    pub batch_prompt_tokens: i64,
    /// Those of them that need not be computed.
    pub batch_cached_tokens: i64,
    /// Their tokens drawn.
    pub batch_completion_tokens: i64,
    /// Money; `None` if a base model in the sum has no price.
    pub cost: Option<f64>,
}

impl Store {
    /// Adds the sums of a process's batch. Batches are numbered upwards; one that is there already is not added again,
    /// so that a batch can be sent once more if it is not known whether it arrived.
    pub async fn add_usage(&self, writer: Uuid, batch: i64, rows: &UsageRows) -> Result<()> {
        let column = |value: fn(&Counts) -> i64| rows.values().map(value).collect::<Vec<i64>>();
        let texts = |value: fn(&UsageEntry) -> &str| rows.keys().map(|(_, entry)| value(entry)).collect::<Vec<&str>>();
        // The order keeps two processes that write the same rows from waiting for each other in a circle.
        sqlx::query(
            "with turn as (
                 insert into usage_writers (id, batch) values ($1, $2)
                 on conflict (id) do update set batch = excluded.batch, written_at = now()
                  where usage_writers.batch < excluded.batch
                 returning batch
             ), forgotten as (
                 delete from usage_writers where written_at < now() - interval '7 days' and id <> $1
             ), passed as (
                 delete from usage_recent where ctid in (
                     select ctid from usage_recent where slot < now() - interval '25 hours'
                      limit 1000 for update skip locked)
             ), recent as (
                 insert into usage_recent (organization, model, slot, requests, prompt_tokens, completion_tokens)
                 select organization, model, date_bin('5 minutes', now(), '2000-01-01'), sum(requests),
                        sum(prompt_tokens), sum(completion_tokens)
                   from turn, unnest($4::text[], $6::text[], $8::bigint[], $9::bigint[], $11::bigint[])
                     as added (organization, model, requests, prompt_tokens, completion_tokens)
                  group by organization, model order by organization, model
                 on conflict (organization, model, slot) do update set
                     requests = usage_recent.requests + excluded.requests,
                     prompt_tokens = usage_recent.prompt_tokens + excluded.prompt_tokens,
                     completion_tokens = usage_recent.completion_tokens + excluded.completion_tokens
             )
             insert into usage_daily (day, organization, key, model, base, requests, prompt_tokens, cached_tokens,
                                      completion_tokens, batch_requests, batch_prompt_tokens, batch_cached_tokens,
                                      batch_completion_tokens)
             select day::date, organization, key, model, base, sum(requests), sum(prompt_tokens), sum(cached_tokens),
                    sum(completion_tokens), coalesce(sum(requests) filter (where of_batch), 0),
                    coalesce(sum(prompt_tokens) filter (where of_batch), 0),
                    coalesce(sum(cached_tokens) filter (where of_batch), 0),
                    coalesce(sum(completion_tokens) filter (where of_batch), 0)
               from turn, unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                                 $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bool[])
                 as added (day, organization, key, model, base, requests, prompt_tokens, cached_tokens, completion_tokens,
                           of_batch)
              group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4, 5
             on conflict (organization, day, key, model, base) do update set
                 requests = usage_daily.requests + excluded.requests,
                 prompt_tokens = usage_daily.prompt_tokens + excluded.prompt_tokens,
                 cached_tokens = usage_daily.cached_tokens + excluded.cached_tokens,
                 completion_tokens = usage_daily.completion_tokens + excluded.completion_tokens,
                 batch_requests = usage_daily.batch_requests + excluded.batch_requests,
                 batch_prompt_tokens = usage_daily.batch_prompt_tokens + excluded.batch_prompt_tokens,
                 batch_cached_tokens = usage_daily.batch_cached_tokens + excluded.batch_cached_tokens,
                 batch_completion_tokens = usage_daily.batch_completion_tokens + excluded.batch_completion_tokens",
        )
        .bind(writer)
        .bind(batch)
        .bind(rows.keys().map(|(day, _)| &**day).collect::<Vec<&str>>())
        .bind(texts(|entry| &entry.organization))
        .bind(texts(|entry| &entry.key))
        .bind(texts(|entry| &entry.model))
        .bind(texts(|entry| &entry.base))
        .bind(column(|counts| counts.requests))
        .bind(column(|counts| counts.prompt_tokens))
        .bind(column(|counts| counts.cached_tokens))
        .bind(column(|counts| counts.completion_tokens))
        .bind(rows.keys().map(|(_, entry)| entry.batch).collect::<Vec<bool>>())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The sums, and whether there are more rows.
    pub async fn usage(&self, query: &UsageQuery) -> Result<(Vec<UsageRow>, bool)> {
        let limit = query.limit.clamp(0, MAX_PAGE);
        let prices = |value: fn(&BasePrice) -> f64| query.prices.iter().map(value).collect::<Vec<f64>>();
        // A constant in the place of a column that is not grouped by puts all its values into one group.
        let rows = sqlx::query_as(
            "with picked as (
                 select case when $4 then to_char(day, 'YYYY-MM-DD') end as day,
                        case when $1::text is null then organization end as organization,
                        case when $5 then model end as model, case when $6 then key end as key,
                        u.requests, u.prompt_tokens, u.cached_tokens, u.completion_tokens, u.trained_tokens,
                        u.batch_requests, u.batch_prompt_tokens, u.batch_cached_tokens, u.batch_completion_tokens,
                        ((u.prompt_tokens - u.cached_tokens) * p.prompt + u.cached_tokens * p.cached
                         + u.completion_tokens * p.completion + u.trained_tokens * p.training
                         - (1 - p.batch) * ((u.batch_prompt_tokens - u.batch_cached_tokens) * p.prompt
                            + u.batch_cached_tokens * p.cached + u.batch_completion_tokens * p.completion)) / 1e6 as cost
                   from usage_daily u
                   left join unnest($7::text[], $8::float8[], $9::float8[], $10::float8[], $11::float8[], $14::float8[])
                     as p (base, prompt, cached, completion, training, batch) using (base)
                  where ($1::text is null or organization = $1) and day between $2::text::date and $3::text::date
             )
             select day, organization, model, key, sum(requests)::bigint as requests,
                    sum(prompt_tokens)::bigint as prompt_tokens, sum(cached_tokens)::bigint as cached_tokens,
                    sum(completion_tokens)::bigint as completion_tokens, sum(trained_tokens)::bigint as trained_tokens,
                    sum(batch_requests)::bigint as batch_requests,
                    sum(batch_prompt_tokens)::bigint as batch_prompt_tokens,
                    sum(batch_cached_tokens)::bigint as batch_cached_tokens,
                    sum(batch_completion_tokens)::bigint as batch_completion_tokens,
                    case when bool_and(cost is not null) then sum(cost) end as cost
               from picked group by day, organization, model, key
              order by day, organization, model, key limit $12 offset $13",
        )
        .bind(&query.organization)
        .bind(&query.start)
        .bind(&query.end)
        .bind(query.by_day)
        .bind(query.by_model)
        .bind(query.by_key)
        .bind(query.prices.iter().map(|price| price.base.as_str()).collect::<Vec<&str>>())
        .bind(prices(|price| price.prompt))
        .bind(prices(|price| price.cached_prompt))
        .bind(prices(|price| price.completion))
        .bind(prices(|price| price.training))
        .bind(limit + 1)
        .bind(query.offset.max(0))
        .bind(prices(|price| price.batch))
        .fetch_all(&self.pool)
        .await?;
        Ok(crate::store::files::cut_page(rows, limit))
    }
}
