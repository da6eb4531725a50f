//! Usage and cost: what was used by day, model and key, as the API sums it up. This file holds the section and that
//! page; [`calculator`] compares the machine with prices per token, of which [`hosted`] knows some; [`bars`] draws.

mod bars;
mod calculator;
mod curves;
mod hosted;

use std::collections::{BTreeMap, HashMap};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use jiff::ToSpan as _;
use jiff::civil::Date;
use maud::{Markup, html};
use serde::Deserialize;

use crate::api::http::error::{Problem, Result};
use crate::api::http::query::Query;
use crate::api::operations::usage::{UsageParams, UsageReport, UsageSums, report};
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::page;
use crate::api::ui::section::Section;
use crate::api::ui::visitor::Visitor;
use crate::format;

pub(super) const SECTION: Section = Section { path: "/ui/usage", label: "Usage and cost", admin: false, routes };

/// Days of the chart at the most.
const MOST_DAYS: usize = 400;
/// Rows of a table at the most.
const ROWS: usize = 200;

fn routes() -> Router<Pages> {
    Router::new().route("/ui/usage", get(show)).route("/ui/usage/costs", get(calculator::show))
}

/// Which days, and whose.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Period {
    start_date: Option<String>,
    end_date: Option<String>,
    organization: Option<String>,
}

/// Shows sums by day, model and key.
async fn show(State(pages): State<Pages>, visitor: Visitor, Query(period): Query<Period>) -> Result<Markup, Fault> {
    let [all, by_day, by_model, by_key] = [
        sums(&pages, &visitor, &period, "").await?,
        sums(&pages, &visitor, &period, "day").await?,
        sums(&pages, &visitor, &period, "model").await?,
        sums(&pages, &visitor, &period, "key").await?,
    ];
    let organization = period.organization.as_deref().unwrap_or(&visitor.caller.organization);
    let is_every = organization == "*";
    let names = key_names(&pages, &by_key).await?;
    let body = html! {
        h1 { "Usage and cost" }
        p { a href="/ui/usage/costs" { "What would it cost elsewhere? The calculator" } }
        (form(&visitor, &all, organization))
        @if all.data.is_empty() { div.card.empty { p { "Nothing was used in these days." } } } @else {
            section.card aria-label="Together" { (total(&all)) }
            (days(&by_day))
            (table("models", "By model", "Model", &by_model, is_every, |sums| html! {
                @if let Some(model) = &sums.model { bdi { (model) } }
            }))
            (table("keys", "By key", "Key", &by_key, is_every, |sums| key(sums, &names)))
        }
    };
    Ok(page(&visitor.frame("Usage and cost", SECTION.path), body))
}

/// Reads the sums of a period by `group`, as the API groups them.
async fn sums(pages: &Pages, visitor: &Visitor, period: &Period, group: &str) -> Result<UsageReport, Problem> {
    let params = UsageParams {
        start_date: period.start_date.clone(),
        end_date: period.end_date.clone(),
        organization: period.organization.clone(),
        group_by: Some(group.into()),
        ..UsageParams::default()
    };
    report(&pages.api, &visitor.caller, params).await
}

fn form(visitor: &Visitor, all: &UsageReport, organization: &str) -> Markup {
    html! {
        form.row method="get" action=(SECTION.path) {
            label for="start" { "From" }
            input type="date" id="start" name="start_date" value=(all.start_date);
            label for="end" { "to" }
            input type="date" id="end" name="end_date" value=(all.end_date);
            @if visitor.caller.admin {
                label for="whose" { "of" }
                span {
                    input type="text" id="whose" name="organization" value=(organization) aria-describedby="whose-hint";
                }
            }
            button.quiet type="submit" { "Show" }
        }
        p.hint {
            "Days are those of UTC."
            @if visitor.caller.admin { span id="whose-hint" { " An organisation, or * for each one." } }
        }
    }
}

fn total(all: &UsageReport) -> Markup {
    let sum = |count: fn(&UsageSums) -> i64| format::count(all.data.iter().map(count).sum::<i64>() as f64);
    let cost: Option<f64> = all.data.iter().map(|sums| sums.cost).sum();
    html! {
        dl.facts {
            dt { "Requests" } dd { (sum(|sums| sums.requests)) }
            dt { "Tokens of prompts" } dd {
                (sum(|sums| sums.prompt_tokens)) ", of which found in the cache " (sum(|sums| sums.cached_tokens))
            }
            dt { "Tokens of answers" } dd { (sum(|sums| sums.completion_tokens)) }
            dt { "Tokens trained on" } dd { (sum(|sums| sums.trained_tokens)) }
            dt { "Cost by the token" } dd { (money(cost, &all.currency)) }
        }
    }
}

fn money(cost: Option<f64>, currency: &str) -> String {
    cost.map_or_else(|| "a base model has no price".into(), |cost| format::money(cost, currency))
}

/// Shows the days as bars, with their table.
fn days(report: &UsageReport) -> Markup {
    let mut by_day: BTreeMap<&str, [i64; 3]> = BTreeMap::new();
    for sums in &report.data {
        let tokens = by_day.entry(sums.day.as_deref().unwrap_or_default()).or_default();
        for (sum, more) in tokens.iter_mut().zip([sums.prompt_tokens, sums.completion_tokens, sums.trained_tokens]) {
            *sum += more;
        }
    }
    let bars: Vec<(String, [f64; 3])> = all_days(&report.start_date, &report.end_date)
        .map(|day| {
            let tokens = by_day.get(day.as_str()).copied().unwrap_or_default();
            (day, tokens.map(|count| count as f64))
        })
        .collect();
    let is_every = report.data.iter().any(|sums| has_another(sums, report));
    html! {
        section aria-labelledby="days-title" {
            h2 id="days-title" { "By day" }
            figure.card {
                figcaption { "Tokens by day" }
                (bars::columns(&bars, ["prompts", "answers", "training"]))
                (table("days", "As a table", "Day", report, is_every, |sums| html! {
                    @if let Some(day) = &sums.day { (day) }
                }))
            }
        }
    }
}

/// True if the report has rows of more than one organisation.
fn has_another(sums: &UsageSums, report: &UsageReport) -> bool {
    report.data.first().is_some_and(|first| first.organization != sums.organization)
}

/// Returns the days from `start` to `end`, the last ones if there are too many.
fn all_days(start: &str, end: &str) -> impl Iterator<Item = String> {
    let days = start.parse::<Date>().ok().zip(end.parse::<Date>().ok()).map(|(start, end)| {
        let first = end.saturating_sub((MOST_DAYS as i64 - 1).days()).max(start);
        first.series(1.day()).take_while(move |day| *day <= end)
    });
    days.into_iter().flatten().map(|day| day.to_string())
}

/// Shows sums as a table, the most used first unless it is of days, each with a bar of its share.
fn table(
    id: &str,
    title: &str,
    head: &str,
    report: &UsageReport,
    is_every: bool,
    name: impl Fn(&UsageSums) -> Markup,
) -> Markup {
    let tokens = |sums: &UsageSums| sums.prompt_tokens + sums.completion_tokens + sums.trained_tokens;
    let mut rows: Vec<&UsageSums> = report.data.iter().collect();
    let is_of_days = rows.iter().any(|sums| sums.day.is_some());
    if is_of_days {
        rows.reverse();
    } else {
        rows.sort_by_key(|sums| std::cmp::Reverse(tokens(sums)));
    }
    let most = rows.iter().map(|sums| tokens(sums)).max().unwrap_or(0);
    let inner = html! {
        div.scroll tabindex="0" role="region" aria-label=(title) {
            table.stack {
                caption.hidden { (title) }
                thead {
                    tr {
                        th scope="col" { (head) }
                        @if is_every { th scope="col" { "Organisation" } }
                        th.number scope="col" { "Requests" } th.number scope="col" { "Prompt tokens" }
                        th.number scope="col" { "Cached" } th.number scope="col" { "Answer tokens" }
                        th.number scope="col" { "Trained tokens" } th.number scope="col" { "Cost" }
                        @if !is_of_days { td {} }
                    }
                }
                tbody {
                    @for sums in rows.iter().take(ROWS) {
                        tr {
                            th scope="row" { (name(sums)) }
                            @if is_every { td data-label="Organisation" { bdi { (sums.organization) } } }
                            td.number data-label="Requests" { (count(sums.requests)) }
                            td.number data-label="Prompt tokens" { (count(sums.prompt_tokens)) }
                            td.number data-label="Cached" { (count(sums.cached_tokens)) }
                            td.number data-label="Answer tokens" { (count(sums.completion_tokens)) }
                            td.number data-label="Trained tokens" { (count(sums.trained_tokens)) }
                            td.number data-label="Cost" { (money(sums.cost, &report.currency)) }
                            @if !is_of_days { td { (bars::share(tokens(sums) as f64, most as f64)) } }
                        }
                    }
                }
            }
        }
        @if rows.len() > ROWS || report.has_more {
            p.hint { "The first " (ROWS.min(rows.len())) " rows; the API has all, at " code { "/v1/usage" } "." }
        }
    };
    html! {
        @if is_of_days { details id=(id) { summary { (title) } (inner) } }
        @else { section id=(id) { h2 { (title) } (inner) } }
    }
}

fn count(count: i64) -> String {
    format::count(count as f64)
}

/// Returns the names of the keys in the report that have one.
async fn key_names(pages: &Pages, report: &UsageReport) -> Result<HashMap<String, String>, Problem> {
    let ids: Vec<&str> = report.data.iter().filter_map(|sums| sums.key.as_deref()).collect();
    let keys = pages.api.store.keys_named(&ids).await?;
    Ok(keys.into_iter().filter_map(|key| Some((key.id, key.name?))).collect())
}

fn key(sums: &UsageSums, names: &HashMap<String, String>) -> Markup {
    html! {
        @match &sums.key {
            Some(key) => {
                @if let Some(name) = names.get(key) { bdi { (name) } " " }
                span.hint.mono { (key) }
            },
            None => "not known",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_without_use_are_days_too() {
        let days: Vec<String> = all_days("2026-02-27", "2026-03-02").collect();
        assert_eq!(days, ["2026-02-27", "2026-02-28", "2026-03-01", "2026-03-02"]);
        let many: Vec<String> = all_days("1990-01-01", "2026-03-02").collect();
        assert_eq!((many.len(), many.last().map(String::as_str)), (MOST_DAYS, Some("2026-03-02")));
        assert_eq!(all_days("x", "2026-03-02").count(), 0);
    }
}
