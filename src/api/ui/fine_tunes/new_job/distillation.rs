//! A new distillation: prompts, a teacher who answers them, a budget, and the model that learns the answers. [`request`]
//! makes the body of the API's request, [`parts`] shows its fields, [`cost`] what the API estimates.

mod cost;
mod parts;
mod request;

use std::io::BufReader;

use axum::Form;
use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use maud::{Markup, html};
use serde_json::Value;

use self::parts::{Fields, filter_fields, options, prompts_fields, teachers};
use self::request::{FieldFault, body, is_stored};
use super::deposit::{self, Refusal};
use super::draft::{DISTILLATION, Draft, SETTINGS};
use super::form::{ESTIMATE, JOBS, input};
use super::{PATH, SECTION, TRAINING, columns, expectation, file_form};
use crate::api::http::error::{Problem, Result};
use crate::api::http::query::QueryPairs;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::{Frame, page};
use crate::api::ui::playground::models::{Use, offered};
use crate::api::ui::security::see;
use crate::api::ui::visitor::Visitor;
use crate::datasets::json;
use crate::datasets::lines::Lines;
use crate::format;
use crate::off_thread::off_thread;
use crate::store::files::{File, Page};

/// Files of prompts that can be chosen from.
const FILES: i64 = 100;

/// Shows the form, or the part of it that the script asks for.
pub(super) async fn show(
    State(pages): State<Pages>,
    visitor: Visitor,
    QueryPairs(pairs): QueryPairs,
) -> Result<Response, Fault> {
    let mut draft = Draft::of(&pairs);
    let asked = |name: &str| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value);
    draft.set("method", DISTILLATION);
    if let Some(file) = prompts(&pages, &visitor, &draft).await?
        && file.purpose == super::RAW
    {
        draft.set("prompts", "");
        return Ok(see(&columns::address(&file.id, &draft)));
    }
    complete(&pages, &mut draft);
    let is_part = asked("part") == expectation::ID;
    // Scripts ask as soon as something changes, so that nothing is wrong yet with what is still to be chosen.
    let estimate = if asked("estimate") == "yes" || (is_part && has_prompts(&draft)) {
        Some(send(&pages, &visitor, ESTIMATE, &draft).await?)
    } else {
        None
    };
    if is_part {
        return Ok(cost::section(estimate.as_ref(), has_prompts(&draft)).into_response());
    }
    let left_out = asked("left_out").parse().unwrap_or(0);
    Ok(whole(&pages, &visitor, &draft, estimate.as_ref(), None, left_out).await?.into_response())
}

/// Starts the job, and shows it; or shows the form again with the reason why not.
pub(super) async fn start(
    State(pages): State<Pages>,
    visitor: Visitor,
    form: Result<Form<Vec<(String, String)>>, FormRejection>,
) -> Result<Response, Fault> {
    let Form(pairs) = form.map_err(|fault| Problem::bad_request(fault.body_text()))?;
    let mut draft = Draft::of(&pairs);
    draft.set("method", DISTILLATION);
    let refusal = match send(&pages, &visitor, JOBS, &draft).await? {
        Ok(job) => return Ok(see(&format!("{}/{}", SECTION.path, job["id"].as_str().unwrap_or_default()))),
        Err(refusal) => refusal,
    };
    Ok((refusal.status, whole(&pages, &visitor, &draft, None, Some(&refusal), 0).await?).into_response())
}

/// Sends what was chosen to a route of the API.
async fn send(pages: &Pages, visitor: &Visitor, path: &str, draft: &Draft) -> Result<Result<Value, Refusal>> {
    let question = match question(pages, visitor, draft).await? {
        Ok(question) => question,
        Err(fault) => return Ok(Err(fault.into())),
    };
    match body(draft, question) {
        Ok(body) => deposit::post(pages, visitor, path, &body).await,
        Err(fault) => Ok(Err(fault.into())),
    }
}

impl From<FieldFault> for Refusal {
    fn from(FieldFault { field, message }: FieldFault) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message, param: Some(field.into()), code: None }
    }
}

/// Finds the visitor's file of prompts, if one was chosen.
async fn prompts(pages: &Pages, visitor: &Visitor, draft: &Draft) -> Result<Option<File>> {
    let id = draft.get("prompts");
    if id.is_empty() || is_stored(draft) {
        return Ok(None);
    }
    Ok(Some(pages.api.store.file(&visitor.caller.organization, id).await?))
}

/// Returns the place of the prompt in what a judge is told of it: lines have either a `prompt` or `messages`.
async fn question(pages: &Pages, visitor: &Visitor, draft: &Draft) -> Result<Result<&'static str, FieldFault>> {
    const PROMPT: &str = "item.prompt";
    const MESSAGES: &str = "item.messages";
    if draft.get("filter") != "judge" || is_stored(draft) {
        return Ok(Ok(MESSAGES));
    }
    let Some(file) = prompts(pages, visitor, draft).await? else { return Ok(Ok(PROMPT)) };
    let content = pages.api.store.open_file(&file).await?;
    off_thread("look at a file of prompts", move || {
        let mut lines = Lines::new(BufReader::new(content));
        let (mut with_prompt, mut with_messages) = (false, false);
        while let Some((_, line)) = lines.next_line()? {
            // What is no object the API names with its line.
            let line = line.ok().and_then(|line| json::object(line).ok()).unwrap_or_default();
            with_prompt |= line.contains_key("prompt");
            with_messages |= line.contains_key("messages");
            if with_prompt && with_messages {
                let message = "Some lines of the file have a prompt and others messages: a model that judges needs one of \
                               both throughout.";
                return Ok(Err(FieldFault { field: "filter", message: message.into() }));
            }
        }
        Ok(Ok(if with_messages { MESSAGES } else { PROMPT }))
    })
    .await
}

/// Returns true if it was chosen where the prompts come from.
fn has_prompts(draft: &Draft) -> bool {
    is_stored(draft) || !draft.get("prompts").is_empty()
}

/// Chooses a model to train where nobody has chosen.
fn complete(pages: &Pages, draft: &mut Draft) {
    if draft.get("model").is_empty() {
        let answers = |entry: &&crate::engine::catalog::CatalogEntry| {
            entry.model.trains() && !entry.model.config.is_encoder && entry.model.classifier.is_none()
        };
        if let Some(entry) = pages.api.catalog.entries().iter().find(answers) {
            draft.set("model", &entry.model.id);
        }
    }
}

async fn whole(
    pages: &Pages,
    visitor: &Visitor,
    draft: &Draft,
    estimate: Option<&Result<Value, Refusal>>,
    refusal: Option<&Refusal>,
    left_out: usize,
) -> Result<Markup> {
    let organization = &visitor.caller.organization;
    let newest = Page { after: None, limit: FILES, ascending: false };
    let (files, _) = pages.api.store.files(organization, Some(TRAINING), newest).await?;
    let models = offered(&pages.api, &visitor.caller, Use::Answers).await?;
    let fields = Fields { draft, param: refusal.and_then(|refusal| refusal.param.as_deref()) };
    let currency = &pages.api.config.currency;
    let title = "Learn from a teacher";
    let body = html! {
        p.hint { a href=(SECTION.path) { "All fine-tunes" } }
        h1 { (title) }
        p { "A larger model, the teacher, answers your prompts. What is fit of its answers becomes the examples that your model learns from. You say how much the answers may cost, and no more is spent." }
        @if let Some(refusal) = refusal {
            p.fault role="alert" data-param=[refusal.param.as_deref()] { "The job was not started. " bdi { (refusal.message) } }
        }
        @if left_out > 0 { p.event-warning { (format::count(left_out as f64)) " rows were left out, as they lacked a text." } }
        form id="new-job" method="get" action={ (PATH) "/" (DISTILLATION) } data-new-job {
            input type="hidden" name="method" value=(DISTILLATION);
            (prompts_fields(&fields, &files, &models))
            h2 { "Teacher" }
            div.fields {
                div {
                    label for="teacher" { "Who answers" }
                    select id="teacher" name="teacher" aria-describedby="teacher-hint" aria-invalid=[fields.invalid("teacher")] {
                        option value="" selected[draft.get("teacher").is_empty()] { "Nobody: the stored answers are learned" }
                        (teachers(pages, draft.get("teacher"), &models))
                    }
                    p.hint id="teacher-hint" {
                        @if pages.api.config.teachers.is_empty() {
                            "The server's operator can name models of other servers here. " span.mono { "[teachers.NAME]" }
                        } @else {
                            "A model of another server that the operator has named, or one of this server."
                        }
                    }
                }
                (fields.number("max_teacher_cost", &format!("Budget in {currency}"), ("0", "", "any"), "What teacher and judge may cost together; needed if they have a price."))
                (fields.number("max_tokens", "Longest answer in tokens", ("1", "", "1"), "A shorter one leaves less of the budget unspent."))
            }
            (filter_fields(&fields, pages, &models))
            h2 { "Model" }
            div.fields {
                div {
                    label for="model" { "Model to train" }
                    select id="model" name="model" required aria-invalid=[fields.invalid("model")] { (options(&models, draft.get("model"))) }
                }
                (fields.text("suffix", "Name of the new model", "A part of it, such as tickets."))
            }
            details open[["samples", "temperature", "keep", "min_score", "seed"].into_iter().chain(SETTINGS.iter().map(|field| field.name)).any(|name| !draft.get(name).is_empty())] {
                summary { "More settings" }
                div.fields {
                    (fields.number("samples", "Answers to each prompt", ("1", "16", "1"), "More cost more; the best of them is kept."))
                    (fields.number("temperature", "Temperature of the answers", ("0", "2", "any"), "Left empty, it is the teacher's own."))
                    div {
                        label for="keep" { "Of several answers" }
                        select id="keep" name="keep" {
                            option value="" selected[draft.get("keep") != "all"] { "Keep the best one" }
                            option value="all" selected[draft.get("keep") == "all"] { "Keep all that pass" }
                        }
                    }
                    (fields.number("min_score", "Least score", ("", "", "any"), "That an answer must have from each grader; 1 if left empty."))
                    @for field in SETTINGS.iter().filter(|field| field.is_usual) { (input(field, draft, refusal)) }
                    (fields.number("seed", "Seed", ("0", "2147483647", "1"), "The same seed and answers give the same model."))
                }
            }
            (cost::section(estimate, has_prompts(draft)))
            div.row {
                button.quiet type="submit" name="estimate" value="yes" { "Estimate" }
                button type="submit" formmethod="post" formaction={ (PATH) "/" (DISTILLATION) "/start" } data-start { "Ask the teacher, then train" }
            }
        }
        section aria-labelledby="upload-title" {
            h2 id="upload-title" { "A new file of prompts" }
            p { "One prompt on each line of a text, a table of which you then choose the column, or JSON Lines with " span.mono { "prompt" } " or " span.mono { "messages" } "." }
            (file_form("A file of prompts", draft))
        }
    };
    Ok(page(&Frame { scripts: &["new-job.js"], ..visitor.frame(title, SECTION.path) }, body))
}
