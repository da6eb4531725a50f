//! A new fine-tune. This file holds its routes and the first step: a file is dropped or chosen, and checked at once.
//!
//! [`form`] is the page of the file that was taken: what was understood of it ([`findings`]), the settings ([`draft`]),
//! what the job would take ([`expectation`]), and the start; [`distillation`] is its like for prompts that a teacher
//! answers. A table or a JSON array goes by [`columns`], where a person says what its columns are ([`tables`] and
//! [`arrays`] read it, [`conversion`] makes lines of it in one of the forms of [`targets`]); a text of prompts by
//! [`texts`]. What is uploaded and started, the API's own routes take ([`deposit`]). Every step is a page with an address
//! that holds all that was chosen, so that it works without JavaScript, survives a reload, and needs nothing kept on the
//! server but files.

mod arrays;
mod columns;
mod conversion;
mod deposit;
mod distillation;
mod draft;
mod expectation;
mod findings;
mod form;
mod kinds;
mod table_reader;
mod tables;
mod targets;
mod texts;

use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use maud::{Markup, html};

use self::deposit::Refusal;
use self::draft::url_pairs::encode;
use self::draft::{DISTILLATION, Draft};
use self::kinds::Kind;
use self::texts::Text;
use super::SECTION;
use crate::api::http::error::{Problem, Result};
use crate::api::http::form::Form;
use crate::api::http::pace::Pace;
use crate::api::http::query::QueryPairs;
use crate::api::http::upload::{self, Upload};
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::{Frame, page};
use crate::api::ui::security::see;
use crate::api::ui::visitor::Visitor;
use crate::datasets::faults::Faults;
use crate::datasets::json;
use crate::datasets::lines::Lines;
use crate::off_thread::off_thread;

/// The path of the first step.
pub(super) const PATH: &str = "/ui/fine-tunes/new";
/// The purpose of a file that waits to be converted: training takes only those of `fine-tune`.
const RAW: &str = "user_data";
const TRAINING: &str = "fine-tune";

pub(super) fn routes() -> Router<Pages> {
    Router::new()
        .route("/ui/fine-tunes/new", get(show).post(receive).layer(DefaultBodyLimit::disable()))
        .route("/ui/fine-tunes/new/columns", get(columns::show).post(columns::convert))
        .route("/ui/fine-tunes/new/discard", post(columns::discard))
        .route("/ui/fine-tunes/new/settings", get(form::show))
        .route("/ui/fine-tunes/new/start", post(form::start))
        .route("/ui/fine-tunes/new/distillation", get(distillation::show))
        .route("/ui/fine-tunes/new/distillation/start", post(distillation::start))
}

/// Shows the form for a file.
async fn show(visitor: Visitor, QueryPairs(pairs): QueryPairs) -> Markup {
    first_step(&visitor, &Draft::of(&pairs), None)
}

fn first_step(visitor: &Visitor, draft: &Draft, fault: Option<Markup>) -> Markup {
    let is_distillation = draft.method() == DISTILLATION;
    let is_validation = !is_distillation && !draft.get("training_file").is_empty();
    let title = match (is_distillation, is_validation) {
        (true, _) => "A file of prompts",
        (false, true) => "A validation file",
        (false, false) => "New fine-tune",
    };
    let body = html! {
        p.hint { a href=(SECTION.path) { "All fine-tunes" } }
        h1 { (title) }
        @if let Some(fault) = fault { section.card aria-label="What is wrong with the file" { (fault) } }
        (file_form(if is_distillation { "A file of prompts" } else { "A file of examples" }, draft))
        @if is_distillation {
            p { a href={ (PATH) "/" (DISTILLATION) "?" (draft.query()) } { "Back without it" } }
        } @else if is_validation {
            p { a href={ (PATH) "/settings?" (draft.query()) } { "Back without it" } }
        } @else {
            section aria-labelledby="forms-title" {
                h2 id="forms-title" { "What the file holds" }
                p { "One example on each line (JSON Lines): a question and the answer that the model shall learn to give. For example:" }
                pre tabindex="0" { code {
                    "{\"messages\": [{\"role\": \"user\", \"content\": \"The lamp is broken\"}, {\"role\": \"assistant\", \"content\": \"repair\"}]}\n"
                    "{\"prompt\": \"The lamp is broken ->\", \"completion\": \" repair\"}"
                } }
                p { "A table, saved as CSV (UTF-8) from a spreadsheet, or a JSON array is fine, too: you then choose which column is which." }
                p.hint { "Ten examples are the least; some hundred good ones teach a task." }
            }
            section aria-labelledby="teacher-title" {
                h2 id="teacher-title" { "Questions without answers" }
                p { "If you have prompts alone, a larger model can answer them: " a href={ (PATH) "/" (DISTILLATION) } { "learn from a teacher" } "." }
            }
        }
    };
    page(&Frame { scripts: &["new-job.js"], ..visitor.frame(title, SECTION.path) }, body)
}

/// The form that uploads a file; `draft` has what was chosen before.
fn file_form(label: &str, draft: &Draft) -> Markup {
    html! {
        form.card.drop method="post" enctype="multipart/form-data" action={ (PATH) "?" (draft.query()) } data-drop {
            p { label for="file" { (label) } }
            // As the API's own form has it.
            input type="hidden" name="purpose" value=(TRAINING);
            div.row {
                input type="file" id="file" name="file" required accept=".jsonl,.json,.csv,.tsv,.tab,.txt,.ndjson" aria-describedby="file-hint";
                button type="submit" { "Check the file" }
            }
            p.hint id="file-hint" { "Or drop it here. JSON Lines, CSV, or a JSON array, in UTF-8." }
            p role="status" data-told {}
        }
    }
}

/// Takes a file: leads to the page of its settings, to that of its columns, or says what is wrong with it.
async fn receive(
    State(pages): State<Pages>,
    visitor: Visitor,
    QueryPairs(pairs): QueryPairs,
    request: Request,
) -> Result<Response, Fault> {
    let draft = Draft::of(&pairs);
    let limits = &pages.api.config.limits;
    let (head, body) = request.into_parts();
    let pace = Pace::new(limits.upload_bytes_per_second, Duration::from_secs(limits.max_upload_seconds));
    let form = Form::new(&head.headers, body, pace)?;
    let upload = upload::receive(form, &pages.api.store.scratch, limits.max_file_bytes).await?;
    let (path, name) = (upload.path.to_path_buf(), upload.filename.clone());
    let kind = off_thread("look at an upload", move || {
        let context = format!("read the upload {}", path.display());
        let kind = std::fs::File::open(&path).and_then(|mut file| kinds::kind(&mut file, &name));
        kind.map_err(Problem::io(context))
    });
    let purpose = match kind.await? {
        Kind::Lines if draft.method() == DISTILLATION && is_text(&upload.filename) => {
            return plain(&pages, &visitor, draft, upload).await;
        }
        Kind::Lines => TRAINING,
        Kind::Convertible(_) => RAW,
        Kind::Refused(why) => {
            let fault = html! { (heading(&upload.filename)) p.fault role="alert" { (why) } };
            return Ok((StatusCode::BAD_REQUEST, first_step(&visitor, &draft, Some(fault))).into_response());
        }
    };
    match deposit::upload(&pages, &visitor, &upload.path, &upload.filename, purpose).await? {
        Ok(id) if purpose == TRAINING => Ok(see(&settings_of(draft, &id, 0))),
        Ok(id) => {
            let query = encode([("file", id.as_str())].into_iter().chain(draft.pairs()));
            Ok(see(&format!("{PATH}/columns?{query}")))
        }
        Err(refusal) => refused(&visitor, &draft, upload, refusal).await,
    }
}

/// Returns true if a file is one of plain text, by its name.
fn is_text(filename: &str) -> bool {
    Path::new(filename).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"))
}

/// Takes a text with a prompt on each line, or with JSON Lines after all.
async fn plain(pages: &Pages, visitor: &Visitor, draft: Draft, upload: Upload) -> Result<Response, Fault> {
    let (source, folder) = (upload.path.to_path_buf(), pages.api.store.scratch.to_path_buf());
    let text = off_thread("read a text", move || texts::prompts(&source, &folder)).await?;
    let (path, filename) = match &text {
        Text::Prompts(path) => (&**path, format!("{}.jsonl", upload.filename)),
        Text::Lines => (&*upload.path, upload.filename.clone()),
        Text::Refused(why) => {
            let fault = html! { (heading(&upload.filename)) p.fault role="alert" { (why) } };
            return Ok((StatusCode::BAD_REQUEST, first_step(visitor, &draft, Some(fault))).into_response());
        }
    };
    match deposit::upload(pages, visitor, path, &filename, TRAINING).await? {
        Ok(id) => Ok(see(&settings_of(draft, &id, 0))),
        Err(refusal) => refused(visitor, &draft, upload, refusal).await,
    }
}

/// Returns the address of the next step once the file `id` is one of training lines.
fn settings_of(mut draft: Draft, id: &str, left_out: usize) -> String {
    let is_distillation = draft.method() == DISTILLATION;
    let name = match draft.get("training_file") {
        _ if is_distillation => "prompts",
        "" => "training_file",
        _ => "validation_file",
    };
    draft.set(name, id);
    if is_distillation {
        draft.set("from", "file");
    }
    let left_out = (left_out > 0).then(|| left_out.to_string());
    let query = encode(draft.pairs().chain(left_out.as_deref().map(|count| ("left_out", count))));
    format!("{PATH}/{}?{query}", if is_distillation { DISTILLATION } else { "settings" })
}

/// Says why the API does not take a file: by its lines, where it is for them.
async fn refused(visitor: &Visitor, draft: &Draft, upload: Upload, refusal: Refusal) -> Result<Response, Fault> {
    let found = match refusal.status {
        StatusCode::BAD_REQUEST => off_thread("check an upload", move || {
            let faults = line_faults(&upload.path);
            faults.map(|faults| (faults, upload.filename.clone()))
        })
        .await
        .map(Some)?,
        _ => None,
    };
    let Some((faults, filename)) = found.filter(|(faults, _)| !faults.is_empty()) else {
        return Err(refusal.into());
    };
    let fault = html! { (heading(&filename)) (findings::faults(&faults, "It has", "Line")) };
    Ok((refusal.status, first_step(visitor, draft, Some(fault))).into_response())
}

fn heading(filename: &str) -> Markup {
    html! { h2 { bdi { (filename) } " was not taken" } }
}

/// Finds the lines that are no JSON objects, as the API does when a file is uploaded.
fn line_faults(path: &Path) -> Result<Faults> {
    let file = std::fs::File::open(path).map_err(Problem::io(format!("read the upload {}", path.display())))?;
    let mut lines = Lines::new(BufReader::with_capacity(1 << 20, file));
    let mut faults = Faults::default();
    while let Some((number, line)) = lines.next_line()? {
        if let Err(fault) = line.and_then(json::check) {
            faults.push_shown(number, &fault, Some(lines.shown()));
        }
    }
    Ok(faults)
}
