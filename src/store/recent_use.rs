//! The use of models in the last hour and day, for people who look at a model. [`Store::add_usage`] writes it in slots
//! of five minutes beside the daily sums, and forgets it after a day.

use std::collections::HashMap;

use crate::store::{MAX_PAGE, Result, Store};

/// Sums of one model, to five minutes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecentUse {
    /// The last hour.
    pub hour: RecentCounts,
    /// The last 24 hours.
    pub day: RecentCounts,
}

/// Sums of a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecentCounts {
    /// Requests that ran the model.
    pub requests: i64,
    /// Tokens of prompts and answers.
    pub tokens: i64,
}

#[derive(sqlx::FromRow)]
struct Row {
    model: String,
    hour_requests: i64,
    hour_tokens: i64,
    day_requests: i64,
    day_tokens: i64,
}

impl RecentUse {
    /// Adds `other` to the sums.
    pub fn add(&mut self, other: Self) {
        for (own, more) in [(&mut self.hour, other.hour), (&mut self.day, other.day)] {
            own.requests += more.requests;
            own.tokens += more.tokens;
        }
    }
}

impl Store {
    /// Returns how the organisation used `models`, by the names that it asked for, in the last hour and day; a model
    /// that it did not use is not there.
    pub async fn recent_use(&self, organization: &str, models: &[&str]) -> Result<HashMap<String, RecentUse>> {
        let rows: Vec<Row> = sqlx::query_as(
            "with slots as (
                 select model, requests, prompt_tokens + completion_tokens as tokens,
                        slot > now() - interval '1 hour' as is_new
                   from usage_recent
                  where organization = $1 and model = any($2) and slot > now() - interval '1 day'
             )
             select model, coalesce(sum(requests) filter (where is_new), 0)::bigint as hour_requests,
                    coalesce(sum(tokens) filter (where is_new), 0)::bigint as hour_tokens,
                    sum(requests)::bigint as day_requests, sum(tokens)::bigint as day_tokens
               from slots group by model limit $3",
        )
        .bind(organization)
        .bind(models)
        .bind(MAX_PAGE)
        .fetch_all(&self.pool)
        .await?;
        let counts = |requests, tokens| RecentCounts { requests, tokens };
        let entry = |row: Row| {
            let hour = counts(row.hour_requests, row.hour_tokens);
            (row.model, RecentUse { hour, day: counts(row.day_requests, row.day_tokens) })
        };
        Ok(rows.into_iter().map(entry).collect())
    }
}
