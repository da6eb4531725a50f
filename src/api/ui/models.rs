//! Models. This file holds the section and the list of those that the visitor may use; [`one`] is the page of one
//! model, [`actions`] what its owner can do with it, [`memory`] where its adapter is, [`elsewhere`] the process that runs a
//! model of the second engine.

mod actions;
pub(super) mod elsewhere;
mod memory;
mod one;

use std::collections::HashMap;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use maud::{Markup, html};

use crate::adapters::status::Status;
use crate::api::http::error::Result;
use crate::api::http::list::Cursor;
use crate::api::http::query::Query;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::page;
use crate::api::ui::section::Section;
use crate::api::ui::visitor::Visitor;
use crate::api::ui::words::{in_path, moment};
use crate::engine::catalog::CatalogEntry;
use crate::format;
use crate::store::models::FineTunedModel;
use crate::store::recent_use::{RecentCounts, RecentUse};

pub(super) const SECTION: Section = Section { path: "/ui/models", label: "Models", admin: false, routes };

/// Fine-tuned models of a page, at first and at the most.
const DEFAULT_PAGE: i64 = 50;
const MAX_PAGE: i64 = 200;

fn routes() -> Router<Pages> {
    // Names have slashes, so one route takes everything below.
    Router::new().route("/ui/models", get(list)).route("/ui/models/{*name}", get(one::show).post(actions::act))
}

/// What the rows of the list have in common.
struct Rows<'a> {
    organization: &'a str,
    memory: Status,
    uses: HashMap<String, RecentUse>,
}

/// Shows base models and aliases first, then a page of the fine-tuned models, oldest first.
async fn list(State(pages): State<Pages>, visitor: Visitor, Query(cursor): Query<Cursor>) -> Result<Markup, Fault> {
    let catalog = &pages.api.catalog;
    let organization = &visitor.caller.organization;
    let asked = cursor.page(DEFAULT_PAGE, MAX_PAGE);
    let is_first = asked.after.is_none();
    // A name that has become an alias hides the fine-tuned model that had it before.
    let hidden: Vec<&str> = catalog.aliases().map(|(alias, _)| alias).collect();
    let after = asked.after.as_deref();
    let (tuned, more) = pages.api.store.usable_models(organization, &hidden, after, asked.limit).await?;
    let bases = catalog.entries();
    let names: Vec<&str> = bases.iter().map(|base| base.model.id.as_str()).chain(hidden.iter().copied()).collect();
    let names: Vec<&str> = names.into_iter().chain(tuned.iter().map(|model| model.name.as_str())).collect();
    let uses = pages.api.store.recent_use(organization, &names).await?;
    let rows = Rows { organization, memory: pages.api.registry.status(), uses };
    let of_bases: Vec<(&str, &str)> = catalog.aliases().filter(|(_, name)| catalog.get(name).is_ok()).collect();
    let own = if is_first { pages.api.store.aliases(organization).await? } else { Vec::new() };
    let body = html! {
        h1 { "Models" }
        div.scroll tabindex="0" role="region" aria-label="Models" {
            table.stack {
                caption { "Requests and tokens are those of your organisation, to five minutes." }
                thead {
                    tr {
                        th scope="col" { "Model" } th scope="col" { "Kind" } th scope="col" { "Made by" }
                        th scope="col" { "Memory" } th.number scope="col" { "Leases" }
                        th scope="col" { "Last hour" } th scope="col" { "Last day" } th scope="col" { "Created" }
                    }
                }
                tbody {
                    @if is_first {
                        @for base in bases { (rows.base(base)) }
                        @for (alias, name) in &of_bases { (rows.alias(alias, name, "the configuration")) }
                        @for alias in &own { (rows.alias(&alias.name, &alias.model, "your organisation")) }
                    }
                    @for model in &tuned { (rows.tuned(model)) }
                }
            }
        }
        @if tuned.is_empty() && is_first {
            p.hint { "No fine-tuned model yet. A " a href="/ui/fine-tunes" { "fine-tune" } " makes one." }
        }
        div.row {
            @if !is_first { a href=(SECTION.path) { "First models" } }
            @if more {
                @if let Some(last) = tuned.last() {
                    @let after = in_query(&last.name);
                    a href={ (SECTION.path) "?limit=" (asked.limit) "&after=" (after) } { "Newer models" }
                }
            }
        }
    };
    Ok(page(&visitor.frame("Models", SECTION.path), body))
}

impl Rows<'_> {
    fn base(&self, entry: &CatalogEntry) -> Markup {
        let base = &entry.model;
        html! {
            tr {
                th scope="row" { (link(&base.id)) }
                td data-label="Kind" { "base model" }
                td {}
                td data-label="Memory" {
                    @match entry.backend.standing() {
                        None => "always ready",
                        Some(standing) => { (elsewhere::state(&standing)) ", " (elsewhere::memory(&standing)) }
                    }
                }
                td {}
                (self.traffic(&base.id))
                td data-label="Created" { (moment(base.created)) }
            }
        }
    }

    fn alias(&self, alias: &str, name: &str, maker: &str) -> Markup {
        html! {
            tr {
                th scope="row" { bdi { (alias) } }
                td data-label="Kind" { "alias of " (link(name)) }
                td data-label="Made by" { (maker) }
                td {}
                td {}
                (self.traffic(alias))
                td {}
            }
        }
    }

    fn tuned(&self, model: &FineTunedModel) -> Markup {
        let place = memory::of(&self.memory, model);
        html! {
            tr {
                th scope="row" { (link(&model.name)) }
                td data-label="Kind" { (kind(model, self.organization)) " on " (link(&model.base)) }
                td data-label="Made by" { (made_by(model, self.organization)) }
                td data-label="Memory" { (memory::words(place)) }
                td.number data-label="Leases" { @if let Some(place) = place { (place.leases) } @else { "0" } }
                (self.traffic(&model.name))
                td data-label="Created" { (moment(model.created_at)) }
            }
        }
    }

    fn traffic(&self, name: &str) -> Markup {
        let uses = self.uses.get(name).copied().unwrap_or_default();
        html! {
            td data-label="Last hour" { (traffic(uses.hour)) }
            td data-label="Last day" { (traffic(uses.day)) }
        }
    }
}

/// Returns a link to the page of a model.
fn link(name: &str) -> Markup {
    html! { a href=(place(name)) { bdi { (name) } } }
}

/// Returns the path of a model's page.
fn place(name: &str) -> String {
    format!("{}/{}", SECTION.path, in_path(name))
}

fn in_query(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Returns what a fine-tuned model is to `organization`, in words.
fn kind(model: &FineTunedModel, organization: &str) -> Markup {
    let word = match (&model.job, model.name.contains(":ckpt-step-")) {
        (Some(_), true) => "checkpoint",
        (Some(_), false) => "fine-tuned",
        (None, _) => "adapter from elsewhere",
    };
    html! {
        (word)
        @if model.organization != organization { " of " bdi { (model.organization) } ", who shares it," }
    }
}

/// Returns a link to the job that made the model; those of others nobody may see.
fn made_by(model: &FineTunedModel, organization: &str) -> Markup {
    html! {
        @if let Some(job) = model.job.as_ref().filter(|_| model.organization == organization) {
            a.mono href={ "/ui/fine-tunes/" (in_path(job)) } { (job) }
        }
    }
}

/// Returns requests and tokens in words.
fn traffic(counts: RecentCounts) -> String {
    if counts == RecentCounts::default() {
        return "–".into();
    }
    let requests = if counts.requests == 1 { "request" } else { "requests" };
    let RecentCounts { requests: number, tokens } = counts;
    format!("{} {requests}, {} tokens", format::count(number as f64), format::count(tokens as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, job: Option<&str>) -> FineTunedModel {
        FineTunedModel {
            name: name.into(),
            organization: "acme".into(),
            base: "demo".into(),
            adapter: "a".into(),
            job: job.map(str::to_owned),
            created_at: 0,
        }
    }

    #[test]
    fn a_shared_model_says_whose_it_is_and_not_which_job_made_it() {
        let shared = model("ft:demo:acme::x", Some("ftjob-1"));
        assert!(kind(&shared, "rival").into_string().contains("acme"));
        assert_eq!(made_by(&shared, "rival").into_string(), "");
        assert!(made_by(&shared, "acme").into_string().contains("ftjob-1"));
        assert_eq!(kind(&model("ft:demo:acme::x:ckpt-step-3", Some("ftjob-1")), "acme").into_string(), "checkpoint");
        assert_eq!(kind(&model("mine", None), "acme").into_string(), "adapter from elsewhere");
    }

    #[test]
    fn names_stay_texts_in_links() {
        let text = link("<script>alert(1)</script>\"&x").into_string();
        assert!(!text.contains("<script>") && text.contains("&lt;script&gt;"), "{text}");
        assert!(text.contains("/ui/models/%3Cscript%3Ealert%281%29%3C/script%3E%22%26x"), "{text}");
    }

    #[test]
    fn traffic_is_counted_in_words() {
        assert_eq!(traffic(RecentCounts::default()), "–");
        assert_eq!(traffic(RecentCounts { requests: 1, tokens: 1234 }), "1 request, 1,234 tokens");
    }
}
