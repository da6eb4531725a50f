//! The page of one job: where it stands and what can be done, its curves, estimate beside actual, answers, checkpoints,
//! settings and events. [`parts`] has those that change while it runs; [`stream`](super::stream) says when.

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::charts::JobCharts;
use super::parts::Standing;
use super::{SECTION, collection, parts, settings};
use crate::api::http::error::{Problem, Result};
use crate::api::http::extract::Path;
use crate::api::http::query::Query;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::{Frame, page};
use crate::api::ui::security::see;
use crate::api::ui::visitor::Visitor;
use crate::api::ui::words;
use crate::jobs::curves::Curves;
use crate::jobs::{Job, JobApi};
use crate::store;
use crate::store::files::Page;

/// Events and checkpoints on the page.
const EVENTS: i64 = 50;
const CHECKPOINTS: i64 = 100;
/// The smoothest line that may be asked for, and the one at first.
const SMOOTHEST: f64 = 0.999;
pub(super) const SMOOTHING: f64 = 0.8;

/// What of the page is asked for.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct View {
    /// `live`: the parts that change, without the curves, for the script.
    part: Option<String>,
}

/// How curves are asked for.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Smoothing {
    smoothing: Option<f64>,
}

/// Reads what the parts show.
async fn standing(pages: &Pages, job: Job) -> Result<Standing, Problem> {
    let queue = &pages.api.queue;
    let progress = queue.progress(std::slice::from_ref(&job), 1).await?.remove(&job.key).unwrap_or_default();
    let (messages, more_messages) = queue.messages(&job, EVENTS).await?;
    let newest = Page { after: None, limit: CHECKPOINTS, ascending: false };
    let (checkpoints, _) = queue.checkpoints(&job, newest).await?;
    let collected = if job.spec.distillation.is_some() { queue.collected(&job).await? } else { None };
    Ok(Standing { job, progress, messages, more_messages, checkpoints, collected })
}

/// Finds the visitor's job.
pub(super) async fn find(pages: &Pages, visitor: &Visitor, id: &str) -> Result<Job, Problem> {
    Ok(pages.api.queue.any_job(&visitor.caller.organization, id).await?)
}

/// Shows the page.
pub(super) async fn show(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
    Query(view): Query<View>,
) -> Result<Markup, Fault> {
    let job = find(&pages, &visitor, &id).await?;
    let is_live = view.part.as_deref() == Some("live");
    // The curves come first: what happens after them, the stream tells.
    let curves = if is_live { Curves::default() } else { pages.api.queue.curves(&job).await? };
    let standing = standing(&pages, job).await?;
    let Standing { job, .. } = &standing;
    let title = words::title(job);
    let body = html! {
        p.hint { a href=(SECTION.path) { "All fine-tunes" } }
        h1 { bdi { (title) } }
        p.hidden id="told" role="status" aria-live="polite" {}
        (parts::standing(&pages.api.config, &standing))
        (collection::section(&pages.api.config, &standing))
        @if !is_live { (charts(job, &curves)) }
        (parts::account(&pages.api.config, &standing))
        (parts::answers(&standing))
        (parts::classes(&standing))
        (parts::checkpoints(&standing))
        @if !is_live { (settings(&pages, job).await?) }
        (parts::events(&standing))
    };
    let frame = visitor.frame(&title, SECTION.path);
    Ok(page(&Frame { scripts: &["uplot.js", "fine-tune.js"], styles: &["uplot.css"], ..frame }, body))
}

fn charts(job: &Job, curves: &Curves) -> Markup {
    let charts = JobCharts::of(curves, epochs(job), 0.0);
    let without = curves.steps_without_loss();
    html! {
        section id="curves" aria-labelledby="curves-title" data-job=(job.id) data-last=(curves.last_event)
            data-live[!job.status.is_final()] data-smoothing=(SMOOTHING) {
            h2 id="curves-title" { "Curves" }
            @if let Some(first) = without.first() {
                p.fault { "The loss of " (without.len()) " of the steps is no number, the first of them step " (first) "." }
            }
            // The script shows its controls here.
            div.row.controls id="controls" hidden {}
            @if charts.charts.is_empty() {
                p.hint { @if job.status.is_final() { "It took no step." } @else { "They begin with the first step." } }
            }
            div.grid { @for chart in &charts.charts { (chart.show()) } }
            @if !charts.charts.is_empty() {
                p { a href={ "/ui/fine-tunes/" (job.id) "/points" } { "All points as a table" } }
            }
        }
    }
}

async fn settings(pages: &Pages, job: &Job) -> Result<Markup, Problem> {
    let prompts = job.spec.input_file().map(|(_, file)| file);
    let ids = [Some(job.spec.training_file.as_str()), job.spec.validation_file.as_deref(), prompts];
    let ids: Vec<String> = ids.into_iter().flatten().map(str::to_owned).collect();
    let files = pages.api.store.files_of(&job.organization, &ids).await?;
    let name = |id: &str| files.iter().find(|file| file.id == id).map(|file| file.filename.clone());
    Ok(html! {
        section aria-labelledby="settings-title" {
            h2 id="settings-title" { "Settings as used" }
            (settings::table(job, name))
        }
    })
}

/// Returns the job's passes over its file, once they are known.
pub(super) fn epochs(job: &Job) -> Option<u32> {
    job.resolved.as_ref().and_then(|settings| settings.n_epochs)
}

/// Sends the curves of a job, thinned and smoothed, as JSON.
pub(super) async fn curves(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
    Query(smoothing): Query<Smoothing>,
) -> Result<Json<JobCharts>, Fault> {
    let job = find(&pages, &visitor, &id).await?;
    let smoothing = smoothing.smoothing.filter(|factor| factor.is_finite()).unwrap_or(SMOOTHING);
    let curves = pages.api.queue.curves(&job).await?;
    let newest = Page { after: None, limit: CHECKPOINTS, ascending: false };
    let (checkpoints, _) = pages.api.queue.checkpoints(&job, newest).await?;
    let charts = JobCharts::of(&curves, epochs(&job), smoothing.clamp(0.0, SMOOTHEST));
    Ok(Json(JobCharts { checkpoints: checkpoints.iter().map(|checkpoint| checkpoint.step).collect(), ..charts }))
}

/// Downloads the adapter of the job's model.
pub(super) async fn adapter(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let job = find(&pages, &visitor, &id).await?;
    let kind = "model of the fine-tune";
    let model = job.fine_tuned_model.ok_or(Problem::from(store::Error::NotFound { kind, id }))?;
    let path = format!("/v1/models/{}/adapter", words::in_path(&model));
    pages.ask(&visitor.caller, Method::GET, &path, None, ()).await
}

/// Downloads the file with the figures of all steps.
pub(super) async fn result(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let job = find(&pages, &visitor, &id).await?;
    let kind = "result file of the fine-tune";
    let file = parts::result_file(&job).ok_or(Problem::from(store::Error::NotFound { kind, id }))?;
    pages.ask(&visitor.caller, Method::GET, &format!("/v1/files/{file}/content"), None, ()).await
}

/// Downloads the report on the answers of a teacher.
pub(super) async fn report(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let job = find(&pages, &visitor, &id).await?;
    let kind = "report of the fine-tune";
    let report = job.spec.distillation.as_ref().map(|plan| &plan.report_file);
    let report = report.filter(|file| job.result_files.contains(file));
    let file = report.ok_or(Problem::from(store::Error::NotFound { kind, id }))?;
    pages.ask(&visitor.caller, Method::GET, &format!("/v1/files/{file}/content"), None, ()).await
}

pub(super) async fn pause(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    act(&pages, &visitor, &id, "pause").await
}

pub(super) async fn resume(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    act(&pages, &visitor, &id, "resume").await
}

pub(super) async fn cancel(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    act(&pages, &visitor, &id, "cancel").await
}

/// Does what the job's route of this name does, and shows the job.
async fn act(pages: &Pages, visitor: &Visitor, id: &str, action: &str) -> Result<Response, Fault> {
    // Found first: only ids of jobs become part of a path.
    let job = find(pages, visitor, id).await?;
    let resource = match job.api {
        JobApi::FineTuningJobs => "/v1/fine_tuning/jobs",
        JobApi::FineTunes => "/v1/fine_tunes",
    };
    pages.ask(&visitor.caller, Method::POST, &format!("{resource}/{}/{action}", job.id), None, ()).await?;
    Ok(see(&format!("/ui/fine-tunes/{}", job.id)))
}
