//! Several jobs over one another: their figures by epoch, and the settings in which they differ.

use std::collections::{BTreeSet, HashMap};

use axum::extract::State;
use maud::{Markup, html};
use uuid::Uuid;

use super::charts::{CLASSES, label};
use super::job::{epochs, find};
use super::{SECTION, settings};
use crate::api::http::error::{Problem, Result};
use crate::api::http::query::QueryPairs;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::{Frame, page};
use crate::api::ui::visitor::Visitor;
use crate::api::ui::words::{self, figure};
use crate::jobs::Job;
use crate::jobs::curves::Curves;
use crate::jobs::progress::Progress;

/// Jobs at a time: more colours nobody tells apart.
const MOST: usize = 6;

/// Shows the jobs that the query names, `?job=…&job=…`.
pub(super) async fn show(
    State(pages): State<Pages>,
    visitor: Visitor,
    QueryPairs(pairs): QueryPairs,
) -> Result<Markup, Fault> {
    let mut ids: Vec<&String> = pairs.iter().filter(|(name, _)| name == "job").map(|(_, id)| id).collect();
    let mut seen = BTreeSet::new();
    ids.retain(|id| seen.insert(id.as_str()));
    if ids.len() > MOST {
        let message = format!("{MOST} jobs can be compared at a time; {} are marked.", ids.len());
        return Err(Problem::bad_request(message).into());
    }
    let queue = &pages.api.queue;
    let mut jobs = Vec::new();
    let mut validations = Vec::new();
    for id in ids {
        let job = find(&pages, &visitor, id).await?;
        validations.push(queue.validations(&job).await?);
        jobs.push(job);
    }
    let progress = queue.progress(&jobs, 0).await?;
    let body = html! {
        p.hint { a href=(SECTION.path) { "All fine-tunes" } }
        h1 { "Compare" }
        @if jobs.len() < 2 { p { "Mark two jobs or more in the list." } }
        @else {
            section.card id="comparison" aria-labelledby="comparison-title" {
                h2 id="comparison-title" { "Curves" }
                // The script puts a chart and its controls here.
                div.row.controls id="controls" hidden {}
                figure.chart {
                    div.plot id="plot" {}
                    figcaption.hint { "The lowest and the last losses are in the table." }
                }
            }
            (losses(&jobs, &progress, &validations))
            (classes(&jobs, &validations))
            section { h2 { "Settings" } (settings::differences(&jobs, link)) }
        }
    };
    let frame = visitor.frame("Compare", SECTION.path);
    Ok(page(&Frame { scripts: &["uplot.js", "compare.js"], styles: &["uplot.css"], ..frame }, body))
}

fn link(job: &Job) -> Markup {
    html! { a href={ "/ui/fine-tunes/" (job.id) } { bdi { (words::title(job)) } } div.hint.mono { (job.id) } }
}

fn losses(jobs: &[Job], progress: &HashMap<Uuid, Progress>, validations: &[Curves]) -> Markup {
    let nothing = Progress::default();
    html! {
        div.scroll tabindex="0" role="region" aria-label="Losses" {
            table {
                caption { "Losses" }
                thead {
                    tr {
                        th scope="col" { "Job" } th scope="col" { "State" }
                        th.number scope="col" { "Epochs" } th.number scope="col" { "Steps" }
                        th.number scope="col" { "Last training loss" }
                        th.number scope="col" { "Last validation loss" } th.number scope="col" { "Lowest" }
                    }
                }
                tbody {
                    @for (job, curves) in jobs.iter().zip(validations) {
                        @let progress = progress.get(&job.key).unwrap_or(&nothing);
                        @let validation = numbers(curves, "full_valid_loss").or_else(|| numbers(curves, "valid_loss"));
                        tr data-job=(job.id) data-title=(words::title(job)) {
                            th scope="row" { (link(job)) }
                            td { (words::state(job)) }
                            td.number { @if let Some(epochs) = epochs(job) { (epochs) } }
                            td.number { @if let Some(steps) = progress.total_steps { (steps) } }
                            td.number { @if let Some(loss) = progress.train_loss { (figure(loss)) } }
                            td.number { @if let Some(losses) = validation { (figure(losses.0)) } }
                            td.number { @if let Some(losses) = validation { (figure(losses.1)) } }
                        }
                    }
                }
            }
        }
    }
}

/// Shows how well the models sort their validation files into classes, if any of them was asked to.
fn classes(jobs: &[Job], validations: &[Curves]) -> Markup {
    let names = validations.iter().flat_map(|curves| curves.figures.keys());
    let names: BTreeSet<&String> = names.filter(|name| name.starts_with(CLASSES)).collect();
    html! {
        @if !names.is_empty() {
            div.scroll tabindex="0" role="region" aria-label="Classification" {
                table {
                    caption { "Classification of the validation files, as last measured" }
                    thead { tr { th scope="col" { "Job" } @for name in &names { th.number scope="col" { (label(name)) } } } }
                    tbody {
                        @for (job, curves) in jobs.iter().zip(validations) {
                            tr {
                                th scope="row" { (link(job)) }
                                @for name in &names {
                                    td.number { @if let Some((last, _)) = numbers(curves, name) { (figure(last)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the last and the lowest number of a column.
fn numbers(curves: &Curves, name: &str) -> Option<(f64, f64)> {
    let numbers = || curves.figures.get(name).into_iter().flatten().copied().filter(|number| number.is_finite());
    Some((numbers().next_back()?, numbers().min_by(f64::total_cmp)?))
}
