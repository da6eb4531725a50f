//! The calculator: the machine beside prices per token, over requests per day. Everything stands in the query, so a
//! link is a calculation; nothing is stored. What the query does not say is filled from the use of the last days, the
//! busiest minute of this process, and the configuration. [`crate::costs`] computes.

use axum::extract::State;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use maud::{Markup, html};

use super::hosted::{Hosted, known};
use super::{SECTION, curves};
use crate::api::http::error::{Problem, Result};
use crate::api::http::query::QueryPairs;
use crate::api::operations::figures::busiest_tokens_per_second;
use crate::api::operations::usage::{UsageParams, UsageSums, report};
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::{Frame, page};
use crate::api::ui::visitor::Visitor;
use crate::config::Price;
use crate::costs::{Comparison, DAYS_PER_MONTH, Plan};
use crate::format;

/// Days whose use fills the form, and those of a month.
const DAYS: i64 = 7;
const MONTH: i64 = 30;
/// Hosted models at the most.
const MOST_MODELS: usize = 20;
/// Largest number of the form: beyond it nothing is meant.
const LARGEST: f64 = 1e12;

/// A number of the form.
struct Field {
    name: &'static str,
    label: &'static str,
    unit: &'static str,
    /// True if it must be above 0.
    positive: bool,
    /// True if it may be empty.
    optional: bool,
    most: f64,
}

const fn field(name: &'static str, label: &'static str, unit: &'static str) -> Field {
    Field { name, label, unit, positive: false, optional: false, most: LARGEST }
}

/// The numbers in the order of [`Plan`].
const FIELDS: [Field; 7] = [
    Field { positive: true, ..field("requests_per_day", "Requests", "a day") },
    field("prompt_tokens", "Prompt", "tokens"),
    field("completion_tokens", "Answer", "tokens"),
    field("price_per_hour", "Machine", "an hour"),
    Field { positive: true, most: 24.0, ..field("hours_per_day", "Paid for", "hours a day") },
    Field { positive: true, optional: true, ..field("tokens_per_second", "Speed", "tokens of answers a second") },
    field("training_tokens_per_month", "Fine-tunes", "tokens trained on a month"),
];

/// What the form begins with, by [`FIELDS`], and in words where it comes from.
struct Defaults {
    texts: [String; 7],
    origin: String,
}

/// Shows the form and what comes of it.
pub(super) async fn show(
    State(pages): State<Pages>,
    visitor: Visitor,
    QueryPairs(pairs): QueryPairs,
) -> Result<Markup, Fault> {
    let defaults = defaults(&pages, &visitor).await?;
    let texts: Vec<String> = FIELDS
        .iter()
        .zip(&defaults.texts)
        .map(|(field, default)| values(&pairs, field.name).next().unwrap_or(default).to_owned())
        .collect();
    let read: Vec<Result<Option<f64>, String>> =
        FIELDS.iter().zip(&texts).map(|(field, text)| field.read(text)).collect();
    let hosted = hosted(&pairs).unwrap_or_else(|| known(&pages.api.config));
    if hosted.len() > MOST_MODELS {
        return Err(Problem::bad_request(format!("The table has more than {MOST_MODELS} models.")).into());
    }
    let currency = &pages.api.config.currency;
    let prices: Vec<(&Hosted, Result<Price, &'static str>)> =
        hosted.iter().filter(|row| !row.is_empty()).map(|row| (row, row.price())).collect();
    let body = html! {
        p.hint { a href=(SECTION.path) { "Usage and cost" } }
        h1 { "What it costs, and what it would cost by the token" }
        form method="get" action="/ui/usage/costs" {
            section aria-labelledby="plan-title" {
                h2 id="plan-title" { "What you ask for" }
                p.hint { (defaults.origin) }
                div.grid {
                    @for ((field, text), read) in FIELDS.iter().zip(&texts).zip(&read) {
                        (field.input(text, read, currency))
                    }
                }
            }
            (price_table(&hosted, &prices, currency))
            p { button type="submit" { "Compare" } " " a href="/ui/usage/costs" { "Begin anew" } }
        }
        @match plan(&read) {
            Some(plan) => (result(&plan, &prices, currency)),
            None => p.fault role="alert" { "A number above is missing or wrong, so nothing is compared." },
        }
        p.hint { "The formula and what it leaves out are in the documentation, page " code { "docs/costs.md" } "." }
    };
    let frame = visitor.frame("Costs", SECTION.path);
    Ok(page(&Frame { scripts: &["uplot.js", "costs.js"], styles: &["uplot.css"], ..frame }, body))
}

/// Iterates over the values of the query by this name.
fn values<'a>(pairs: &'a [(String, String)], name: &'a str) -> impl Iterator<Item = &'a str> {
    pairs.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_str())
}

/// Reads the table of the query; `None` if it has none.
fn hosted(pairs: &[(String, String)]) -> Option<Vec<Hosted>> {
    let column = |name| values(pairs, name).map(str::to_owned).collect::<Vec<String>>();
    let [models, prompts, answers] = ["model", "prompt", "completion"].map(column);
    let [trainings, days, sources] = ["training", "seen", "source"].map(column);
    let cell = |column: &[String], row: usize| column.get(row).cloned().unwrap_or_default();
    let row = |row: usize| Hosted {
        model: cell(&models, row),
        prompt: cell(&prompts, row),
        completion: cell(&answers, row),
        training: cell(&trainings, row),
        seen: cell(&days, row),
        source: cell(&sources, row),
    };
    let rows = models.len().max(prompts.len()).max(answers.len());
    (rows > 0).then(|| (0..rows).map(row).filter(|row| !row.is_empty()).collect())
}

impl Field {
    fn read(&self, text: &str) -> Result<Option<f64>, String> {
        let text = text.trim();
        if text.is_empty() && self.optional {
            return Ok(None);
        }
        let fits = |number: &f64| (0.0..=self.most).contains(number) && (!self.positive || *number > 0.0);
        let found = text.parse().ok().filter(fits).map(Some);
        found.ok_or_else(|| {
            let least = if self.positive { "above 0" } else { "of at least 0" };
            let most = if self.most < LARGEST { format!(", at most {}", self.most) } else { String::new() };
            format!("Use a number {least}{most}.")
        })
    }

    fn input(&self, text: &str, read: &Result<Option<f64>, String>, currency: &str) -> Markup {
        let fault = read.as_ref().err();
        let (unit_id, fault_id) = (format!("{}-unit", self.name), format!("{}-fault", self.name));
        html! {
            div {
                label for=(self.name) { (self.label) }
                div.row {
                    input id=(self.name) name=(self.name) value=(text) inputmode="decimal" size="10" autocomplete="off"
                        aria-invalid=[fault.map(|_| "true")]
                        aria-describedby={ (unit_id) @if fault.is_some() { " " (fault_id) } };
                    span id=(unit_id) { @if self.name == "price_per_hour" { (currency) " " } (self.unit) }
                }
                @if let Some(fault) = fault { p.fault id=(fault_id) { (fault) } }
            }
        }
    }
}

/// Returns the plan if every number is one.
fn plan(read: &[Result<Option<f64>, String>]) -> Option<Plan> {
    let number = |index: usize| read.get(index)?.as_ref().ok().copied();
    Some(Plan {
        requests_per_day: number(0)??,
        prompt_tokens: number(1)??,
        completion_tokens: number(2)??,
        price_per_hour: number(3)??,
        hours_per_day: number(4)??,
        tokens_per_second: number(5)?,
        training_tokens_per_month: number(6)??,
    })
}

/// Fills the form from what was used and measured: by everybody for admins, who pay for the machine, else by the
/// visitor's organisation.
async fn defaults(pages: &Pages, visitor: &Visitor) -> Result<Defaults, Problem> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let week = since(pages, visitor, today, DAYS, "day").await?;
    let trained: i64 = since(pages, visitor, today, MONTH, "").await?.iter().map(|sums| sums.trained_tokens).sum();
    let used: Vec<_> = week.iter().filter(|sums| sums.requests > 0).collect();
    let requests: i64 = used.iter().map(|sums| sums.requests).sum();
    let first = used.iter().filter_map(|sums| sums.day.as_deref()).min();
    let speed = busiest_tokens_per_second().map(|speed| round(speed, 1.0));
    let hour = pages.api.config.training.price_per_hour.map_or_else(String::new, |price| price.to_string());
    let speed_words = match speed {
        Some(_) => "the speed is that of the busiest minute since this server started, and so the least that it can",
        None => "no speed was measured since this server started: empty, one machine serves everything",
    };
    let whose = if visitor.caller.admin { "all organisations" } else { "your organisation" };
    let (mix, origin) = if let Some(first) = first {
        let days = days_since(first, today);
        let mean = |sum: i64, per: i64| round(sum as f64 / per as f64, 1.0);
        let prompts = used.iter().map(|sums| sums.prompt_tokens).sum();
        let answers = used.iter().map(|sums| sums.completion_tokens).sum();
        let number = format::count(requests as f64);
        let origin = format!("Filled from the {number} requests of {whose} since {first}; {speed_words}.");
        ([mean(requests, days).max(1.0), mean(prompts, requests), mean(answers, requests)], origin)
    } else {
        let origin = format!("Nothing was asked in the last {DAYS} days, so this is an example; {speed_words}.");
        ([10_000.0, 400.0, 100.0], origin)
    };
    let [requests, prompts, answers] = mix.map(|number| number.to_string());
    let speed = speed.map_or_else(String::new, |speed| speed.to_string());
    Ok(Defaults { texts: [requests, prompts, answers, hour, "24".into(), speed, trained.to_string()], origin })
}

/// Reads the sums of the last days until `today` by `group`.
async fn since(
    pages: &Pages,
    visitor: &Visitor,
    today: Date,
    days: i64,
    group: &str,
) -> Result<Vec<UsageSums>, Problem> {
    let params = UsageParams {
        start_date: Some(today.saturating_sub((days - 1).days()).to_string()),
        end_date: Some(today.to_string()),
        group_by: Some(group.into()),
        organization: visitor.caller.admin.then(|| "*".into()),
        ..UsageParams::default()
    };
    Ok(report(&pages.api, &visitor.caller, params).await?.data)
}

/// Returns the days from `first` to `today`, both counted.
fn days_since(first: &str, today: Date) -> i64 {
    let first = first.parse::<Date>().unwrap_or(today);
    (0..DAYS).find(|days| today.saturating_sub(days.days()) <= first).unwrap_or(DAYS - 1) + 1
}

/// Rounds to `step`, and what is below it not to nothing.
fn round(number: f64, step: f64) -> f64 {
    if number >= step { (number / step).round() * step } else { (number * 100.0).round() / 100.0 }
}

fn price_table(hosted: &[Hosted], prices: &[(&Hosted, Result<Price, &'static str>)], currency: &str) -> Markup {
    let blank = Hosted::default();
    let shown = hosted.iter().chain([&blank]).take(MOST_MODELS);
    html! {
        section aria-labelledby="prices-title" {
            h2 id="prices-title" { "Prices of hosted models" }
            p.hint {
                "In " (currency) ", for a million tokens. They change: compare them with your provider's list and \
                 correct them here. They stay in the address of the page; an empty row is left out."
            }
            div.scroll tabindex="0" role="region" aria-label="Prices" {
                table.prices {
                    thead {
                        tr {
                            th scope="col" { "Model" } th scope="col" { "Prompts" } th scope="col" { "Answers" }
                            th scope="col" { "Training" } th scope="col" { "Seen on" } th scope="col" { "Source" }
                        }
                    }
                    tbody {
                        @for (index, row) in shown.enumerate() {
                            @let number = index + 1;
                            tr {
                                td { (cell("model", "Model", number, &row.model)) }
                                td { (cell("prompt", "Price of prompts", number, &row.prompt)) }
                                td { (cell("completion", "Price of answers", number, &row.completion)) }
                                td { (cell("training", "Price of training", number, &row.training)) }
                                td { (cell("seen", "Day of the price", number, &row.seen)) }
                                td { (cell("source", "Source", number, &row.source)) }
                            }
                        }
                    }
                }
            }
            @for (row, price) in prices {
                @if let Err(field) = price {
                    p.fault role="alert" {
                        bdi { (row.model) } ": the price of " (field) " is no number of at least 0."
                    }
                }
            }
        }
    }
}

fn cell(name: &str, label: &str, number: usize, value: &str) -> Markup {
    html! { input name=(name) value=(value) aria-label={ (label) ", row " (number) } autocomplete="off"; }
}

fn result(plan: &Plan, prices: &[(&Hosted, Result<Price, &'static str>)], currency: &str) -> Markup {
    let compared: Vec<(&str, Price, Comparison)> = prices
        .iter()
        .filter_map(|(row, price)| price.as_ref().ok().map(|price| (&*row.model, *price, plan.compare(price))))
        .collect();
    let Some((_, _, first)) = compared.first() else {
        return html! { p { "Give a price in the table to compare with." } };
    };
    let money = |amount: f64| format::money(amount, currency);
    html! {
        section aria-labelledby="result-title" {
            h2 id="result-title" { "Compared" }
            div.card {
                p id="own" {
                    "Own machine: " strong { (money(first.own())) " a day" } ", "
                    (format::count(first.machines)) " × " (money(plan.price_per_hour)) " an hour for "
                    (plan.hours_per_day) " hours, fine-tunes included."
                }
                @if let Some(capacity) = first.capacity {
                    p { "One machine answers " (format::count(capacity.floor())) " requests a day, evenly spread." }
                }
            }
            div.scroll tabindex="0" role="region" aria-label="Comparison" {
                table.stack {
                    caption { "Beside each price, at " (format::count(plan.requests_per_day)) " requests a day" }
                    thead {
                        tr {
                            th scope="col" { "Model" } th.number scope="col" { "A request" }
                            th.number scope="col" { "Fine-tunes a day" } th.number scope="col" { "A day" }
                            th scope="col" { "Break-even" } th scope="col" { "Cheaper" }
                        }
                    }
                    tbody {
                        @for (model, price, costs) in &compared {
                            tr {
                                th scope="row" { bdi { (model) } }
                                td.number data-label="A request" { (money(costs.request)) }
                                td.number data-label="Fine-tunes a day" {
                                    @if price.training > 0.0 { (money(costs.training)) } @else { "–" }
                                }
                                td.number data-label="A day" { (money(costs.by_token)) }
                                td data-label="Break-even" { (break_even(costs)) }
                                td data-label="Cheaper" { (cheaper(costs, currency)) }
                            }
                        }
                    }
                }
            }
        }
        @if compared.iter().any(|(_, price, _)| price.training <= 0.0) {
            p.hint { "Where no price of training is given, fine-tunes are left out of what is paid by the token." }
        }
        (curves::show(plan, &compared, currency))
    }
}

fn break_even(costs: &Comparison) -> String {
    match (costs.break_even, costs.capacity) {
        (Some(requests), _) => format!("{} requests a day", format::count(requests)),
        (None, Some(_)) => "none: what a machine answers in a day costs less by the token".into(),
        (None, None) => "none: the tokens cost nothing".into(),
    }
}

fn cheaper(costs: &Comparison, currency: &str) -> String {
    let (own, by_token) = (costs.own(), costs.by_token);
    let who = if own < by_token { "own machine" } else { "by the token" };
    let less = (own - by_token).abs();
    if less == 0.0 {
        return "neither".into();
    }
    format!("{who}, by {} a month", format::money(less * DAYS_PER_MONTH, currency))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(query: &[(&str, &str)]) -> Vec<(String, String)> {
        query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn rows_of_the_table_are_read_in_their_order_and_empty_ones_are_left_out() {
        let query = pairs(&[
            ("model", "a"),
            ("prompt", "1"),
            ("completion", "2"),
            ("training", ""),
            ("seen", "2026-01-01"),
            ("source", "x"),
            ("model", ""),
            ("prompt", ""),
            ("completion", ""),
            ("training", ""),
            ("seen", ""),
            ("source", ""),
            ("model", "<b>"),
            ("prompt", "3"),
            ("completion", "4"),
            ("training", "5"),
            ("seen", ""),
            ("source", ""),
        ]);
        let rows = hosted(&query).expect("a table");
        assert_eq!(rows.iter().map(|row| row.model.as_str()).collect::<Vec<_>>(), ["a", "<b>"]);
        assert_eq!((rows[1].prompt.as_str(), rows[1].training.as_str()), ("3", "5"));
        assert_eq!(hosted(&pairs(&[("requests_per_day", "3")])), None);
        assert_eq!(hosted(&pairs(&[("model", "")])), Some(Vec::new()), "an emptied table stays empty");
    }

    #[test]
    fn numbers_have_bounds_and_only_the_speed_may_be_missing() {
        for (index, field) in FIELDS.iter().enumerate() {
            assert_eq!(field.read("").is_ok(), index == 5, "{}", field.name);
            assert_eq!(field.read("0").is_ok(), !field.positive, "{}", field.name);
            for wrong in ["-1", "NaN", "inf", "x", "1e300"] {
                assert!(field.read(wrong).is_err(), "{} {wrong}", field.name);
            }
        }
        assert!(FIELDS[4].read("25").is_err() && FIELDS[4].read("24").is_ok());
        let read = |speed: &str| {
            let texts = ["10000", "400", "100", "0.2", "24", speed, "3000000"];
            let read: Vec<_> = FIELDS.iter().zip(texts).map(|(field, text)| field.read(text)).collect();
            plan(&read)
        };
        let price = Price { prompt: 1.0, completion: 4.0, training: 3.0, ..Price::default() };
        // The worked example of the documentation.
        let costs = read("60").expect("a plan").compare(&price);
        assert_eq!((costs.break_even, costs.capacity.map(f64::floor)), (Some(5625.0), Some(51_840.0)));
        assert_eq!(read("").expect("a plan").tokens_per_second, None);
        assert_eq!(read("x"), None);
    }

    #[test]
    fn the_days_of_use_are_counted_from_the_first_one() {
        let today: Date = "2026-03-02".parse().expect("a day");
        for (first, days) in [("2026-03-02", 1), ("2026-03-01", 2), ("2026-02-24", 7), ("2026-01-01", 7)] {
            assert_eq!(days_since(first, today), days, "{first}");
        }
    }
}
