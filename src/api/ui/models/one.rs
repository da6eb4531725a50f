//! The page of one model: what it is, where it came from, where it is, how it is used, its checkpoints; and, for its
//! owner, who else may use it, and deleting it.

use axum::extract::State;
use maud::{Markup, html};

use super::{SECTION, elsewhere, kind, link, made_by, memory, place, traffic};
use crate::api::http::error::{Problem, Result};
use crate::api::http::extract::Path;
use crate::api::models::names::real_name;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::page;
use crate::api::ui::visitor::Visitor;
use crate::api::ui::words::{figure, moment};
use crate::engine::catalog::CatalogEntry;
use crate::format;
use crate::jobs::checkpoints::ModelCheckpoint;
use crate::jobs::{self, Job};
use crate::store::files::Page;
use crate::store::models::FineTunedModel;
use crate::store::permissions::Permission;
use crate::store::recent_use::RecentUse;

/// Checkpoints and permissions on the page.
const CHECKPOINTS: i64 = 100;
const PERMISSIONS: i64 = 100;

/// Shows the page of the model, or of the one that it is an alias of.
pub(super) async fn show(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(name): Path<String>,
) -> Result<Markup, Fault> {
    let catalog = &pages.api.catalog;
    let real = real_name(&pages.api, &visitor.caller.organization, &name).await?;
    let uses = uses(&pages, &visitor, &real).await?;
    let body = match catalog.get(&real) {
        Ok(entry) => base(&pages, entry, uses),
        Err(_) => tuned(&pages, &visitor, &find(&pages, &visitor, &real).await?, uses).await?,
    };
    Ok(page(&visitor.frame(&real, SECTION.path), body))
}

/// Finds a fine-tuned model that the visitor may use. Unlike a request to the model, a look accepts no permission: a
/// link on another site must not put a name into the visitor's list.
pub(super) async fn find(pages: &Pages, visitor: &Visitor, name: &str) -> Result<FineTunedModel, Problem> {
    let found = pages.api.store.usable_models_named(&visitor.caller.organization, &[name]).await?;
    found.into_iter().next().ok_or_else(|| Problem::model_not_found(name))
}

/// Sums up the use of a model under its own name and its aliases.
async fn uses(pages: &Pages, visitor: &Visitor, real: &str) -> Result<RecentUse, Problem> {
    let aliases = pages.api.catalog.aliases().filter(|(_, name)| *name == real).map(|(alias, _)| alias);
    let own = pages.api.store.aliases(&visitor.caller.organization).await?;
    let own = own.iter().filter(|alias| alias.model == real).map(|alias| alias.name.as_str());
    let names: Vec<&str> = aliases.chain(own).chain([real]).collect();
    let uses = pages.api.store.recent_use(&visitor.caller.organization, &names).await?;
    Ok(uses.into_values().fold(RecentUse::default(), |mut sum, one| {
        sum.add(one);
        sum
    }))
}

fn head(name: &str) -> Markup {
    html! {
        p.hint { a href=(SECTION.path) { "All models" } }
        h1 { bdi { (name) } }
    }
}

fn used(uses: RecentUse) -> Markup {
    html! {
        dt { "Last hour" } dd { (traffic(uses.hour)) }
        dt { "Last day" } dd { (traffic(uses.day)) span.hint { " (of your organisation, aliases included)" } }
    }
}

fn base(pages: &Pages, entry: &CatalogEntry, uses: RecentUse) -> Markup {
    let model = &entry.model;
    let config = &model.config;
    let aliases: Vec<&str> =
        pages.api.catalog.aliases().filter(|(_, name)| *name == model.id).map(|(alias, _)| alias).collect();
    let price = pages.api.config.prices.get(&model.id);
    let currency = &pages.api.config.currency;
    html! {
        (head(&model.id))
        section.card aria-label="What it is" {
            dl.facts {
                dt { "Kind" } dd { "base model, " @if config.is_encoder { "makes vectors" } @else { "writes text" } }
                dt { "Family" } dd { (config.family) }
                @if model.runs_elsewhere {
                    dt { "Engine" } dd { "mistralrs, in a process of its own: it cannot be fine-tuned" }
                } @else {
                    dt { "Size" } dd {
                        (config.num_hidden_layers) " blocks, " (config.hidden_size) " wide, "
                        (format::count(config.vocab_size as f64)) " tokens known"
                    }
                }
                dt { "Context" } dd { (format::count(config.max_position_embeddings as f64)) " tokens" }
                @if !aliases.is_empty() {
                    dt { "Aliases" } dd { @for alias in &aliases { bdi { (alias) } " " } }
                }
                @match entry.backend.standing() {
                    None => { dt { "Memory" } dd { "always ready" } }
                    Some(standing) => (elsewhere::facts(&standing)),
                }
                (used(uses))
                @if let Some(price) = price {
                    dt { "Price" } dd {
                        "a million tokens of prompts " (format::money(price.prompt, currency)) ", of answers "
                        (format::money(price.completion, currency)) ", of training "
                        (format::money(price.training, currency))
                    }
                }
                dt { "Changed" } dd { (moment(model.created)) }
            }
        }
    }
}

async fn tuned(pages: &Pages, visitor: &Visitor, model: &FineTunedModel, uses: RecentUse) -> Result<Markup, Problem> {
    let organization = &*visitor.caller.organization;
    let is_own = model.organization == organization;
    let job = if is_own { job(pages, model).await? } else { None };
    let checkpoints = match &job {
        Some(job) => {
            let newest = Page { after: None, limit: CHECKPOINTS, ascending: false };
            pages.api.queue.checkpoints(job, newest).await?.0
        }
        None => Vec::new(),
    };
    let status = pages.api.registry.status();
    let held = memory::of(&status, model);
    let continued = job.as_ref().map(|job| job.spec.model.as_str()).filter(|parent| *parent != model.base);
    let mut body = html! {
        (head(&model.name))
        section.card aria-label="What it is" {
            dl.facts {
                dt { "Kind" } dd { (kind(model, organization)) }
                dt { "Base" } dd { (link(&model.base)) }
                @if let Some(parent) = continued { dt { "Continues" } dd { (link(parent)) } }
                @if is_own && model.job.is_some() {
                    dt { "Made by" } dd {
                        @if job.is_some() { (made_by(model, organization)) } @else { "a job that is no longer kept" }
                    }
                }
                dt { "Memory" } dd { (memory::words(held)) }
                @if let Some(held) = held { dt { "Rank" } dd { (held.rank) } }
                dt { "Leases" } dd {
                    (held.map_or(0, |held| held.leases))
                    span.hint { " (holders of the adapter now: requests and their sequences)" }
                }
                (used(uses))
                dt { "Adapter" } dd.mono { (model.adapter) }
                dt { "Created" } dd { (moment(model.created_at)) }
            }
        }
    };
    if !checkpoints.is_empty() {
        body = html! { (body) (checkpoint_table(model, &checkpoints)) };
    }
    if is_own {
        let newest = Page { after: None, limit: PERMISSIONS, ascending: false };
        let (granted, more) = pages.api.store.permissions(organization, &model.name, None, newest).await?;
        body = html! { (body) (permissions(model, &granted, more)) (delete(model)) };
    }
    Ok(body)
}

/// Finds the job that made the model, if it is still kept.
async fn job(pages: &Pages, model: &FineTunedModel) -> Result<Option<Job>, Problem> {
    let Some(id) = &model.job else { return Ok(None) };
    match pages.api.queue.any_job(&model.organization, id).await {
        Ok(job) => Ok(Some(job)),
        Err(jobs::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn checkpoint_table(model: &FineTunedModel, checkpoints: &[ModelCheckpoint]) -> Markup {
    let loss = |checkpoint: &ModelCheckpoint, names: &[&str]| {
        names.iter().find_map(|name| checkpoint.metrics[*name].as_f64()).map(figure).unwrap_or_default()
    };
    html! {
        section aria-labelledby="checkpoints-title" {
            h2 id="checkpoints-title" { "Checkpoints of its job" }
            div.scroll tabindex="0" role="region" aria-label="Checkpoints" {
                table {
                    thead {
                        tr {
                            th scope="col" { "Model" } th.number scope="col" { "Step" }
                            th.number scope="col" { "Training loss" } th.number scope="col" { "Validation loss" }
                            th scope="col" { "Made" }
                        }
                    }
                    tbody {
                        @for checkpoint in checkpoints {
                            tr {
                                th scope="row" {
                                    @if checkpoint.model == model.name { bdi { (checkpoint.model) } " (this one)" }
                                    @else { (link(&checkpoint.model)) }
                                }
                                td.number { (checkpoint.step) }
                                td.number { (loss(checkpoint, &["train_loss"])) }
                                td.number { (loss(checkpoint, &["full_valid_loss", "valid_loss"])) }
                                td { (moment(checkpoint.created_at)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn permissions(model: &FineTunedModel, granted: &[Permission], more: bool) -> Markup {
    let path = place(&model.name);
    html! {
        section aria-labelledby="permissions-title" {
            h2 id="permissions-title" { "Who else may use it" }
            @if granted.is_empty() { p.hint { "Nobody: only your organisation." } } @else {
                table {
                    caption.hidden { "Organisations that may use the model" }
                    thead {
                        tr {
                            th scope="col" { "Organisation" } th scope="col" { "Since" }
                            th scope="col" { span.hidden { "Take back" } }
                        }
                    }
                    tbody {
                        @for permission in granted {
                            @let whose = &permission.project_id;
                            tr {
                                th scope="row" { bdi { (whose) } }
                                td { (moment(permission.created_at)) }
                                td {
                                    form method="post" action=(path) {
                                        input type="hidden" name="action" value="revoke";
                                        input type="hidden" name="permission" value=(permission.id);
                                        button.danger type="submit" aria-label={ "Take it back from " (whose) } { "Take back" }
                                    }
                                }
                            }
                        }
                    }
                }
                @if more { p.hint { "The newest " (PERMISSIONS) "; the API lists all." } }
            }
            form.row method="post" action=(path) {
                input type="hidden" name="action" value="grant";
                label for="organization" { "Organisation" }
                input type="text" id="organization" name="organization" required maxlength="255"
                    autocomplete="off" spellcheck="false";
                button.quiet type="submit" { "Let it use the model" }
            }
            p.hint {
                "It stands in their list once they have asked for it by its name. They can neither download nor delete it."
            }
        }
    }
}

fn delete(model: &FineTunedModel) -> Markup {
    html! {
        section aria-labelledby="delete-title" {
            h2 id="delete-title" { "Delete" }
            details {
                summary { "Delete this model" }
                form method="post" action=(place(&model.name)) {
                    input type="hidden" name="action" value="delete";
                    p {
                        input type="checkbox" id="sure" name="sure" value="yes" required; " "
                        label for="sure" { "Delete it for good, for everyone who uses it" }
                    }
                    p { button.danger type="submit" { "Delete" } }
                }
                p.hint { "Requests that run on it end undisturbed. Its checkpoints are models of their own and stay." }
            }
        }
    }
}
