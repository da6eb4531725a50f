//! Fine-tunes. This file holds the section and the list; [`job`] is the page of one job, [`comparison`] several over one
//! another, [`points`] every figure and event as tables, [`new_job`] begins a new one.
//!
//! [`charts`] puts a job's figures into charts, [`thinning`] leaves out what no eye sees, [`spark`] draws lines on the
//! server, [`collection`] shows how far the answers of a teacher are. [`stream`] tells an open page what happens, from the [`feed`] of the job, which all its readers share.

mod charts;
mod collection;
mod comparison;
pub(super) mod feed;
mod job;
mod new_job;
mod parts;
mod points;
mod settings;
mod spark;
mod stream;
mod thinning;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use maud::{Markup, html};

use crate::api::http::error::Result;
use crate::api::http::list::Cursor;
use crate::api::http::query::Query;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::page;
use crate::api::ui::section::Section;
use crate::api::ui::visitor::Visitor;
use crate::api::ui::words::{self, moment};
use crate::jobs::Job;
use crate::jobs::progress::Progress;

pub(super) const SECTION: Section = Section { path: "/ui/fine-tunes", label: "Fine-tunes", admin: false, routes };

/// Jobs of a page, at first and at the most.
const DEFAULT_PAGE: i64 = 20;
const MAX_PAGE: i64 = 100;
/// Seconds between looks of an open list at jobs that have not ended.
const REFRESH: u32 = 30;
/// Losses of a job's line in the list.
const LOSSES: i32 = 32;

fn routes() -> Router<Pages> {
    Router::new()
        .merge(new_job::routes())
        .route("/ui/fine-tunes", get(list))
        .route("/ui/fine-tunes/compare", get(comparison::show))
        .route("/ui/fine-tunes/{id}", get(job::show))
        .route("/ui/fine-tunes/{id}/curves", get(job::curves))
        .route("/ui/fine-tunes/{id}/stream", get(stream::follow))
        .route("/ui/fine-tunes/{id}/points", get(points::points))
        .route("/ui/fine-tunes/{id}/events", get(points::events))
        .route("/ui/fine-tunes/{id}/adapter", get(job::adapter))
        .route("/ui/fine-tunes/{id}/result", get(job::result))
        .route("/ui/fine-tunes/{id}/report", get(job::report))
        .route("/ui/fine-tunes/{id}/pause", post(job::pause))
        .route("/ui/fine-tunes/{id}/resume", post(job::resume))
        .route("/ui/fine-tunes/{id}/cancel", post(job::cancel))
}

/// Shows the organisation's jobs, newest first.
async fn list(State(pages): State<Pages>, visitor: Visitor, Query(cursor): Query<Cursor>) -> Result<Markup, Fault> {
    let queue = &pages.api.queue;
    let is_first = cursor.after.is_none();
    let (jobs, more) = queue.all_jobs(&visitor.caller.organization, cursor.page(DEFAULT_PAGE, MAX_PAGE)).await?;
    let progress = queue.progress(&jobs, LOSSES).await?;
    let nothing = Progress::default();
    let refresh = jobs.iter().any(|job| !job.status.is_final()).then_some(REFRESH);
    let body = html! {
        h1 { "Fine-tunes" }
        p { a.button href=(new_job::PATH) { "New fine-tune" } }
        @if jobs.is_empty() && is_first { (empty()) } @else {
            // The form compares the jobs that are marked.
            form id="jobs" method="get" action="/ui/fine-tunes/compare" data-refresh=[refresh] {
                table.stack {
                    caption.hidden { "Fine-tune jobs, newest first" }
                    thead {
                        tr {
                            th scope="col" { span.hidden { "Compare" } }
                            th scope="col" { "Job" } th scope="col" { "State" } th scope="col" { "Progress" }
                            th scope="col" { "Loss" } th scope="col" { "Cost so far" } th scope="col" { "Created" }
                        }
                    }
                    tbody {
                        @for job in &jobs { (row(&pages, job, progress.get(&job.key).unwrap_or(&nothing))) }
                    }
                }
                div.row {
                    button.quiet type="submit" { "Compare the marked jobs" }
                    @if !is_first { a href="/ui/fine-tunes" { "Newest jobs" } }
                    @if more {
                        @if let Some(last) = jobs.last() {
                            a href={ "/ui/fine-tunes?after=" (last.id) } { "Older jobs" }
                        }
                    }
                }
            }
        }
    };
    Ok(page(&visitor.frame("Fine-tunes", SECTION.path), body))
}

fn empty() -> Markup {
    html! {
        div.card.empty {
            p { "No fine-tune yet. " a href=(new_job::PATH) { "Drop a file of examples here" } ", or start a job by the API:" }
            pre { code {
                "curl $SERVER/v1/files -F purpose=fine-tune -F file=@examples.jsonl\n"
                "curl $SERVER/v1/fine_tuning/jobs -H 'Content-Type: application/json' \\\n"
                "  -d '{\"model\": \"MODEL\", \"training_file\": \"file-…\"}'"
            } }
        }
    }
}

fn row(pages: &Pages, job: &Job, progress: &Progress) -> Markup {
    let title = words::title(job);
    html! {
        tr {
            td data-label="Compare" { input type="checkbox" name="job" value=(job.id) aria-label={ "Compare " (title) ", " (job.id) }; }
            th scope="row" {
                a href={ "/ui/fine-tunes/" (job.id) } { bdi { (title) } }
                div.hint { span.mono { (job.id) } }
            }
            td data-label="State" { (words::state(job)) }
            td data-label="Progress" { (words::steps(job, progress)) }
            td data-label="Loss" {
                @if let Some(loss) = progress.train_loss {
                    (spark::line(&progress.losses))
                    (words::figure(loss))
                }
            }
            td data-label="Cost so far" { (words::cost_so_far(&pages.api.config, job, progress).unwrap_or_default()) }
            td data-label="Created" { (moment(job.created_at)) }
        }
    }
}
