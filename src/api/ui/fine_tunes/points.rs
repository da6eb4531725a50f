//! Every figure and every event of a job as tables, page by page.

use axum::extract::State;
use maud::{Markup, html};
use serde::Deserialize;

use super::job::find;
use super::{SECTION, parts};
use crate::api::http::error::Result;
use crate::api::http::extract::Path;
use crate::api::http::query::Query;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::page;
use crate::api::ui::visitor::Visitor;
use crate::api::ui::words::{self, figure};

/// Rows of a page.
const ROWS: i64 = 100;

/// Which page.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct From {
    /// Number of the event that the page begins before.
    before: Option<i64>,
    /// Step that the page begins after.
    after: Option<i64>,
}

/// Shows the figures of all steps.
pub(super) async fn points(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
    Query(from): Query<From>,
) -> Result<Markup, Fault> {
    let job = find(&pages, &visitor, &id).await?;
    // One more than is shown tells whether others follow.
    let curves = pages.api.queue.points(&job, from.after.unwrap_or(-1), ROWS + 1).await?;
    let end = curves.steps.len().min(ROWS as usize);
    let path = format!("/ui/fine-tunes/{}", job.id);
    // Those of training first, which every step has.
    let mut columns: Vec<(&String, &Vec<f64>)> = curves.figures.iter().collect();
    columns.sort_by_key(|(name, _)| !name.starts_with("train_"));
    let body = html! {
        p.hint { a href=(path) { bdi { (words::title(&job)) } } }
        h1 { "Figures of every step" }
        div.scroll tabindex="0" role="region" aria-label="Figures" {
            table {
                caption { "A step that was not measured has no figure." }
                thead {
                    tr {
                        th scope="col" { "Step" }
                        @for (name, _) in &columns { th.number scope="col" { (name) } }
                    }
                }
                tbody {
                    @for place in 0..end {
                        tr {
                            th scope="row" { (curves.steps[place]) }
                            @for (_, column) in &columns {
                                td.number { @if column[place].is_finite() { (figure(column[place])) } }
                            }
                        }
                    }
                }
            }
        }
        @if end < curves.steps.len() {
            p { a.button.quiet href={ (path) "/points?after=" (curves.steps[end - 1]) } { "Later steps" } }
        }
    };
    Ok(page(&visitor.frame("Figures", SECTION.path), body))
}

/// Shows every event, newest first.
pub(super) async fn events(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
    Query(from): Query<From>,
) -> Result<Markup, Fault> {
    let job = find(&pages, &visitor, &id).await?;
    let (events, more) = pages.api.queue.events_page(&job, from.before, ROWS).await?;
    let path = format!("/ui/fine-tunes/{}", job.id);
    let body = html! {
        p.hint { a href=(path) { bdi { (words::title(&job)) } } }
        h1 { "Every event" }
        (parts::event_list(&job, &events))
        @if more {
            @if let Some(last) = events.last() {
                p { a.button.quiet href={ (path) "/events?before=" (last.seq) } { "Older events" } }
            }
        }
    };
    Ok(page(&visitor.frame("Events", SECTION.path), body))
}
