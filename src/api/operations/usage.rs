//! `GET /usage`: the tokens that the caller's organisation used, by day, model and key, and their cost. An extension of
//! this server.

use axum::Json;
use axum::extract::State;
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::query::{Query, QueryPairs};
use crate::api::operations::checks::within;
use crate::config::Config;
use crate::store::usage::{BasePrice, UsageQuery, UsageRow};

/// Days that are shown if no first day is given, the last day included.
const DEFAULT_DAYS: i64 = 30;
/// Default and largest number of rows in a page.
const DEFAULT_PAGE: i64 = 1_000;
const MAX_PAGE: i64 = 10_000;
/// The value of `organization` that means every organisation.
const EVERY: &str = "*";

/// What to sum up.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct UsageParams {
    /// The first UTC day, `2026-01-31`; 29 days before the last one by default.
    pub start_date: Option<String>,
    /// The last UTC day; today by default.
    pub end_date: Option<String>,
    /// A row for each of these, with commas between them: `day`, `model`, `key`; `day,model` by default.
    pub group_by: Option<String>,
    /// Another organisation, or `*` for each one: for admin keys.
    pub organization: Option<String>,
    /// Rows at the most, 1 to 10000.
    pub limit: Option<i64>,
    /// `next_page` of the page before.
    pub page: Option<String>,
}

/// What was used.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UsageReport {
    /// Always `list`.
    pub object: &'static str,
    /// The first UTC day.
    pub start_date: String,
    /// The last UTC day.
    pub end_date: String,
    /// The money of `cost`.
    pub currency: String,
    /// The sums; days, organisations, models and keys ascend.
    pub data: Vec<UsageSums>,
    /// True where there are more rows.
    pub has_more: bool,
    /// Asks for them, as `page`.
    pub next_page: Option<String>,
}

/// The sums of one group; what is not grouped by is null.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UsageSums {
    /// Always `usage`.
    pub object: &'static str,
    /// UTC day.
    pub day: Option<String>,
    /// The organisation that used it.
    pub organization: String,
    /// The model, as asked for.
    pub model: Option<String>,
    /// Id of the key; `config-1` is the first one of the configuration, `local` stands for requests that needed none.
    pub key: Option<String>,
    /// Requests that ran a model.
    pub requests: i64,
    /// Tokens of prompts and of inputs to embed.
    pub prompt_tokens: i64,
    /// Those of them that need not be computed.
    pub cached_tokens: i64,
    /// Tokens drawn.
    pub completion_tokens: i64,
    /// Tokens that fine-tune jobs were trained on.
    pub trained_tokens: i64,
    /// Of the requests those that were lines of batches.
    pub batch_requests: i64,
    /// Their tokens of prompts.
    pub batch_prompt_tokens: i64,
    /// Those of them that need not be computed.
    pub batch_cached_tokens: i64,
    /// Their tokens drawn.
    pub batch_completion_tokens: i64,
    /// Money; null where the base model of any token in the sum has no price.
    pub cost: Option<f64>,
}

/// Read the usage
///
/// Sums of tokens by UTC day, model and key, and their cost where prices are set. An extension of this server.
#[utoipa::path(
    get, path = "/usage", operation_id = "readUsage", tag = "Usage", params(UsageParams),
    responses((status = 200, body = UsageReport), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    Query(mut params): Query<UsageParams>,
    QueryPairs(pairs): QueryPairs,
) -> Result<Json<UsageReport>, Problem> {
    // Empty, it asks for one sum, and is not as if absent.
    if pairs.iter().any(|(name, value)| name == "group_by" && value.is_empty()) {
        params.group_by.get_or_insert_default();
    }
    report(&state, &caller, params).await.map(Json)
}

/// Sums up what `caller` asks for and may see.
pub(crate) async fn report(state: &ApiState, caller: &Caller, params: UsageParams) -> Result<UsageReport> {
    if params.organization.as_ref().is_some_and(|asked| **asked != *caller.organization) && !caller.admin {
        return Err(Problem::not_admin().param("organization"));
    }
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let query = params.query(&caller.organization, today, prices(&state.config))?;
    // Writes what this process still holds; others write within a second. If it fails, the sums are a little behind.
    if let Err(error) = state.usage.flush().await {
        tracing::warn!("cannot write usage yet: {error}");
    }
    let (rows, has_more) = state.store.usage(&query).await?;
    let next_page = has_more.then(|| (query.offset + query.limit).to_string());
    let own = query.organization.as_deref().unwrap_or_default();
    Ok(UsageReport {
        object: "list",
        start_date: query.start.clone(),
        end_date: query.end.clone(),
        currency: state.config.currency.clone(),
        data: rows.into_iter().map(|row| UsageSums::new(row, own)).collect(),
        has_more,
        next_page,
    })
}

impl UsageParams {
    fn query(self, own: &str, today: Date, prices: Vec<BasePrice>) -> Result<UsageQuery> {
        let end = date("end_date", self.end_date.as_deref())?.unwrap_or(today);
        let before = end.saturating_sub((DEFAULT_DAYS - 1).days());
        let start = date("start_date", self.start_date.as_deref())?.unwrap_or(before);
        if start > end {
            return Err(Problem::invalid("start_date", format!("'start_date' {start} is after 'end_date' {end}.")));
        }
        let mut query = UsageQuery {
            organization: Some(self.organization.unwrap_or_else(|| own.to_owned())).filter(|asked| asked != EVERY),
            start: start.to_string(),
            end: end.to_string(),
            prices,
            limit: within("limit", self.limit, 1, MAX_PAGE)?.unwrap_or(DEFAULT_PAGE),
            offset: offset(self.page.as_deref())?,
            ..UsageQuery::default()
        };
        for word in self.group_by.as_deref().unwrap_or("day,model").split(',').map(str::trim) {
            match word {
                "day" => query.by_day = true,
                "model" => query.by_model = true,
                "key" => query.by_key = true,
                // One sum of everything.
                "" => {}
                word => {
                    let message = format!("Invalid 'group_by': '{word}' is none of day, model and key.");
                    return Err(Problem::invalid_code("group_by", "invalid_value", message));
                }
            }
        }
        Ok(query)
    }
}

fn date(param: &str, text: Option<&str>) -> Result<Option<Date>> {
    let Some(text) = text else { return Ok(None) };
    // Only the plain form: the parser takes times and zones too, and years that the database does not.
    let plain = text.len() == "2026-01-31".len() && !text.starts_with(['-', '0']);
    let date = text.parse().ok().filter(|_| plain).ok_or_else(|| {
        let message = format!("Invalid '{param}': '{text}' is not a day such as 2026-01-31.");
        Problem::invalid_code(param, "invalid_value", message)
    })?;
    Ok(Some(date))
}

fn offset(page: Option<&str>) -> Result<i64> {
    let Some(page) = page else { return Ok(0) };
    page.parse().ok().filter(|offset| (0..=1 << 40).contains(offset)).ok_or_else(|| {
        Problem::invalid_code(
            "page",
            "invalid_value",
            format!("Invalid 'page': '{page}' is not a 'next_page' of this list."),
        )
    })
}

fn prices(config: &Config) -> Vec<BasePrice> {
    let price = |(base, price): (&String, &crate::config::Price)| BasePrice {
        base: base.clone(),
        prompt: price.prompt,
        cached_prompt: price.cached_prompt.unwrap_or(price.prompt),
        completion: price.completion,
        training: price.training,
        batch: price.batch.unwrap_or(1.0),
    };
    config.prices.iter().map(price).collect()
}

impl UsageSums {
    fn new(row: UsageRow, own: &str) -> Self {
        Self {
            object: "usage",
            day: row.day,
            organization: row.organization.unwrap_or_else(|| own.to_owned()),
            model: row.model,
            key: row.key.filter(|key| !key.is_empty()),
            requests: row.requests,
            prompt_tokens: row.prompt_tokens,
            cached_tokens: row.cached_tokens,
            completion_tokens: row.completion_tokens,
            trained_tokens: row.trained_tokens,
            batch_requests: row.batch_requests,
            batch_prompt_tokens: row.batch_prompt_tokens,
            batch_cached_tokens: row.batch_cached_tokens,
            batch_completion_tokens: row.batch_completion_tokens,
            cost: row.cost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(params: UsageParams) -> Result<UsageQuery> {
        params.query("acme", "2026-11-23".parse().expect("a day"), Vec::new())
    }

    #[test]
    fn without_parameters_the_last_thirty_days_are_shown_by_day_and_model() {
        let query = query(UsageParams::default()).expect("defaults");
        assert_eq!((query.start.as_str(), query.end.as_str()), ("2026-10-25", "2026-11-23"));
        assert!(query.by_day && query.by_model && !query.by_key);
        assert_eq!(query.organization.as_deref(), Some("acme"));
    }

    #[test]
    fn groups_days_and_pages_are_checked() {
        let group = |text: &str| query(UsageParams { group_by: Some(text.into()), ..UsageParams::default() });
        let by_key = group("key, day").expect("fine");
        assert!(by_key.by_key && by_key.by_day && !by_key.by_model);
        assert!(group("").is_ok_and(|query| !query.by_day) && group("hour").is_err());
        let days = |start: &str, end: &str| {
            query(UsageParams { start_date: Some(start.into()), end_date: Some(end.into()), ..UsageParams::default() })
        };
        assert!(days("2026-11-01", "2026-11-01").is_ok());
        for (start, end) in [("2026-11-02", "2026-11-01"), ("yesterday", "2026-11-01"), ("2026-11-01", "2026-02-30")] {
            assert!(days(start, end).is_err(), "{start} {end}");
        }
        let page = |text: &str| query(UsageParams { page: Some(text.into()), ..UsageParams::default() });
        assert!(page("1000").is_ok_and(|query| query.offset == 1000) && page("-1").is_err() && page("x").is_err());
    }
}
