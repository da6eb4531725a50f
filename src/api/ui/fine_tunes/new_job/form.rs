//! The page of a training file before its job is started: what was understood, the settings, what the job would take.
//! The form works by its address alone; the script asks for the two sections anew as fields change.

use std::io::BufReader;

use axum::Form;
use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::response::{IntoResponse as _, Response};
use maud::{Markup, html};

use super::deposit::{self, Refusal};
use super::draft::{Draft, Field, FieldKind, SETTINGS};
use super::{PATH, RAW, SECTION, TRAINING, columns, expectation, file_form, findings};
use crate::api::fine_tuning::fine_tuning_jobs::read_spec;
use crate::api::fine_tuning::job_rules::admitted;
use crate::api::http::error::{Problem, Result};
use crate::api::http::list::Cursor;
use crate::api::http::query::QueryPairs;
use crate::api::models::model_list;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::{Frame, page};
use crate::api::ui::security::see;
use crate::api::ui::visitor::Visitor;
use crate::api::ui::words::isolated;
use crate::datasets::json;
use crate::datasets::lines::Lines;
use crate::datasets::pairs::is_of_texts;
use crate::datasets::parse::is_preference;
use crate::format;
use crate::jobs::worker::examination::Examination;
use crate::off_thread::off_thread;
use crate::store::files::{File, Page};

/// Larger files are read once somebody asks for it, so that the page comes at once.
const SMALL_FILE: i64 = 2 << 20;
/// Models and files that can be chosen from.
const MODELS: i64 = 500;
const FILES: i64 = 100;
/// Settings that change how a file is read.
const OF_READING: [&str; 8] = [
    "training_file",
    "validation_file",
    "model",
    "method",
    "max_seq_length",
    "prompt_loss_weight",
    "query_prompt",
    "document_prompt",
];

pub(super) const ESTIMATE: &str = "/v1/fine_tuning/jobs/estimate";
pub(super) const JOBS: &str = "/v1/fine_tuning/jobs";

/// Shows the page, or the part of it that the script asks for.
pub(super) async fn show(
    State(pages): State<Pages>,
    visitor: Visitor,
    QueryPairs(pairs): QueryPairs,
) -> Result<Response, Fault> {
    let mut draft = Draft::of(&pairs);
    let asked = |name: &str| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value);
    if draft.get("training_file").is_empty() {
        return Ok(see(&format!("{PATH}?{}", draft.query())));
    }
    let file = pages.api.store.file(&visitor.caller.organization, draft.get("training_file")).await?;
    if file.purpose == RAW {
        let id = file.id;
        draft.set("training_file", "");
        return Ok(see(&columns::address(&id, &draft)));
    }
    if file.purpose != TRAINING {
        let message = format!("The file '{}' has the purpose '{}': choose one of examples.", file.id, file.purpose);
        return Err(Problem::bad_request(message).into());
    }
    complete(&pages, &file, &mut draft).await?;
    match asked("part") {
        expectation::ID => {
            let estimate = deposit::post(&pages, &visitor, ESTIMATE, &draft.body()).await?;
            return Ok(expectation::section(Some(&estimate)).into_response());
        }
        findings::ID => {
            let found = examine(&pages, &visitor, &draft).await;
            return Ok(findings::section(Some(&found), "", &again(&draft)).into_response());
        }
        _ => {}
    }
    let found = if file.bytes <= SMALL_FILE || asked("check") == "yes" {
        Some(examine(&pages, &visitor, &draft).await)
    } else {
        None
    };
    let estimate = match asked("estimate") {
        "yes" => Some(deposit::post(&pages, &visitor, ESTIMATE, &draft.body()).await?),
        _ => None,
    };
    let left_out = asked("left_out").parse().unwrap_or(0);
    let shown = Shown { file: &file, draft: &draft, found, estimate, refusal: None, left_out };
    Ok(whole(&pages, &visitor, &shown).await?.into_response())
}

/// Starts the job, and shows it; or shows the form again with the reason why not.
pub(super) async fn start(
    State(pages): State<Pages>,
    visitor: Visitor,
    form: Result<Form<Vec<(String, String)>>, FormRejection>,
) -> Result<Response, Fault> {
    let Form(pairs) = form.map_err(|fault| Problem::bad_request(fault.body_text()))?;
    let mut draft = Draft::of(&pairs);
    let file = pages.api.store.file(&visitor.caller.organization, draft.get("training_file")).await?;
    complete(&pages, &file, &mut draft).await?;
    let refusal = match deposit::post(&pages, &visitor, JOBS, &draft.body()).await? {
        Ok(job) => return Ok(see(&format!("{}/{}", SECTION.path, job["id"].as_str().unwrap_or_default()))),
        Err(refusal) => refusal,
    };
    let status = refusal.status;
    let shown = Shown { file: &file, draft: &draft, found: None, estimate: None, refusal: Some(refusal), left_out: 0 };
    Ok((status, whole(&pages, &visitor, &shown).await?).into_response())
}

/// Chooses a model and a method by the first line of the file where nobody has chosen.
async fn complete(pages: &Pages, file: &File, draft: &mut Draft) -> Result<()> {
    if !draft.get("model").is_empty() && !draft.get("method").is_empty() {
        return Ok(());
    }
    let content = pages.api.store.open_file(file).await?;
    let object = off_thread("look at a file", move || -> Result<_> {
        let mut lines = Lines::new(BufReader::new(content));
        let line = lines.next_line()?.and_then(|(_, line)| line.ok());
        Ok(line.and_then(|line| json::object(line).ok()).unwrap_or_default())
    })
    .await?;
    if draft.get("method").is_empty() {
        draft.set("method", if is_preference(&object) { "dpo" } else { "supervised" });
    }
    if draft.get("model").is_empty() {
        let of_labels = object.contains_key("label") && is_of_texts(&object);
        let fits = |entry: &&crate::engine::catalog::CatalogEntry| {
            let model = &entry.model;
            model.trains()
                && if of_labels {
                    model.classifier.is_some()
                } else {
                    model.classifier.is_none() && model.config.is_encoder == is_of_texts(&object)
                }
        };
        let entries = pages.api.catalog.entries();
        let best = entries.iter().find(fits).or_else(|| entries.iter().find(|entry| entry.model.trains()));
        if let Some(entry) = best {
            draft.set("model", &entry.model.id);
        }
    }
    Ok(())
}

/// Reads the files as training would.
async fn examine(pages: &Pages, visitor: &Visitor, draft: &Draft) -> Result<Examination> {
    let pairs: Vec<(String, String)> = draft
        .pairs()
        .filter(|(name, _)| OF_READING.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let spec = read_spec(Draft::of(&pairs).body().to_string().as_bytes())?;
    let spec = admitted(&pages.api, &visitor.caller, spec).await?;
    let found = pages.api.estimator.examine(&visitor.caller.organization, &spec, &pages.api.shutdown).await;
    found.map_err(|error| Problem::from(error).about_model(spec.asked_model()))
}

/// What the page shows.
struct Shown<'a> {
    file: &'a File,
    draft: &'a Draft,
    /// What was found in the files, if they were read.
    found: Option<Result<Examination, Problem>>,
    estimate: Option<Result<serde_json::Value, Refusal>>,
    /// Why the job was not started.
    refusal: Option<Refusal>,
    /// Rows of a table that are not among the lines.
    left_out: usize,
}

/// The address of the form for another training file, with all else that was chosen.
fn again(draft: &Draft) -> String {
    let mut others = draft.clone();
    others.set("training_file", "");
    format!("{PATH}?{}", others.query())
}

async fn whole(pages: &Pages, visitor: &Visitor, shown: &Shown<'_>) -> Result<Markup> {
    let Shown { file, draft, found, estimate, refusal, left_out } = shown;
    let choices = Choices::of(pages, visitor).await?;
    let check = format!("{PATH}/settings?{}&check=yes", draft.query());
    let title = "New fine-tune";
    let mut without = (*draft).clone();
    without.set("validation_file", "");
    let body = html! {
        p.hint { a href=(SECTION.path) { "All fine-tunes" } }
        h1 { (title) }
        @if let Some(refusal) = refusal {
            p.fault role="alert" data-param=[refusal.param.as_deref()] { "The job was not started. " bdi { (refusal.message) } }
        }
        p { bdi { strong { (file.filename) } } ", " (format::bytes(file.bytes.unsigned_abs())) ". "
            a href=(again(draft)) { "Choose another file" } }
        @if *left_out > 0 { p.event-warning { (format::count(*left_out as f64)) " rows were left out, as they lacked a text." } }
        (findings::section(found.as_ref(), &check, &again(draft)))
        form id="new-job" method="get" action={ (PATH) "/settings" } data-new-job {
            input type="hidden" name="training_file" value=(file.id);
            h2 { "Settings" }
            (choices.fields(draft))
            p.hint { "What is left empty, the server chooses by the file and the model." }
            div.fields { @for field in SETTINGS.iter().filter(|field| field.is_usual) { (input(field, draft, refusal.as_ref())) } }
            details open[SETTINGS.iter().any(|field| !field.is_usual && !draft.get(field.name).is_empty())] {
                summary { "More settings" }
                div.fields {
                    @for field in SETTINGS.iter().filter(|field| !field.is_usual) { (input(field, draft, refusal.as_ref())) }
                    div {
                        label for="seed" { "Seed" }
                        input type="number" id="seed" name="seed" min="0" max="2147483647" step="1" value=(draft.get("seed")) placeholder="random" aria-describedby="seed-hint";
                        p.hint id="seed-hint" { "The same seed and file give the same model." }
                    }
                }
            }
            (expectation::section(estimate.as_ref()))
            div.row {
                button.quiet type="submit" name="estimate" value="yes" { "Estimate" }
                button type="submit" formmethod="post" formaction={ (PATH) "/start" } data-start { "Start the fine-tune" }
            }
        }
        section aria-labelledby="validation-title" {
            h2 id="validation-title" { "A validation file of your own" }
            p { "Examples that are not trained on show whether the model learns the task or only the file. Upload one here, or choose it above." }
            (file_form("A file of further examples", &without))
        }
    };
    Ok(page(&Frame { scripts: &["new-job.js"], ..visitor.frame(title, SECTION.path) }, body))
}

/// What the visitor can choose from.
struct Choices {
    models: Vec<(String, Option<String>)>,
    files: Vec<File>,
}

impl Choices {
    async fn of(pages: &Pages, visitor: &Visitor) -> Result<Self> {
        let all = Cursor { after: None, limit: Some(MODELS) };
        let models = model_list::page(&pages.api, &visitor.caller, all).await?.data;
        let newest = Page { after: None, limit: FILES, ascending: false };
        let (files, _) = pages.api.store.files(&visitor.caller.organization, Some(TRAINING), newest).await?;
        // Those of the second engine do not train.
        let models = models.into_iter().filter(|model| model.engine.is_none());
        Ok(Self { models: models.map(|model| (model.id, model.root)).collect(), files })
    }

    /// The fields for what is trained on what.
    fn fields(&self, draft: &Draft) -> Markup {
        let model = draft.get("model");
        let is_listed = self.models.iter().any(|(id, _)| id == model);
        let validation = draft.get("validation_file");
        let files = self.files.iter().filter(|file| file.id != draft.get("training_file"));
        html! {
            div.fields {
                div {
                    label for="model" { "Model to train" }
                    select id="model" name="model" required data-reads {
                        @if !is_listed && !model.is_empty() { option value=(model) selected { (model) } }
                        @for (id, root) in &self.models {
                            option value=(id) selected[id == model] { (id) @if let Some(root) = root.as_ref().filter(|root| *root != id) { " (of " (root) ")" } }
                        }
                    }
                }
                div {
                    label for="method" { "Method" }
                    select id="method" name="method" data-reads {
                        option value="supervised" selected[draft.method() == "supervised"] { "Learn answers or pairs of texts (supervised)" }
                        option value="dpo" selected[draft.method() == "dpo"] { "Prefer one answer to another (dpo)" }
                    }
                }
                div {
                    label for="validation_file" { "Validation file" }
                    select id="validation_file" name="validation_file" data-reads {
                        option value="" { "None" }
                        @if !validation.is_empty() && !self.files.iter().any(|file| file.id == validation) {
                            option value=(validation) selected { (validation) }
                        }
                        @for file in files {
                            option value=(file.id) selected[file.id == validation] { (isolated(&file.filename)) " (" (file.id) ")" }
                        }
                    }
                }
                div {
                    label for="suffix" { "Name of the new model" }
                    input type="text" id="suffix" name="suffix" maxlength="64" value=(draft.get("suffix")) dir="auto" aria-describedby="suffix-hint";
                    p.hint id="suffix-hint" { "A part of it, such as tickets." }
                }
            }
        }
    }
}

pub(super) fn input(field: &Field, draft: &Draft, refusal: Option<&Refusal>) -> Markup {
    let (id, value) = (field.name, draft.get(field.name));
    let hint = format!("{id}-hint");
    let reads = OF_READING.contains(&id);
    let is_blamed = refusal.and_then(|refusal| refusal.param.as_deref()).is_some_and(|param| param.ends_with(id));
    let invalid = is_blamed.then_some("true");
    html! {
        div {
            label for=(id) { (field.label) }
            @match &field.kind {
                FieldKind::Number { least, most, step } => {
                    input type="number" id=(id) name=(id) value=(value) min=(least) max=[(!most.is_empty()).then_some(most)]
                        step=(step) placeholder="auto" aria-describedby=(hint) aria-invalid=[invalid] data-reads[reads];
                }
                FieldKind::Text | FieldKind::Words(_) => {
                    input type="text" id=(id) name=(id) value=(value) placeholder="auto" aria-describedby=(hint)
                        aria-invalid=[invalid] data-reads[reads];
                }
                FieldKind::Word(words) => (choice(id, value, words, &hint, invalid)),
                FieldKind::Switch => (choice(id, value, &["yes", "no"], &hint, invalid)),
            }
            p.hint id=(hint) { (field.hint) " " span.mono { (id) } }
        }
    }
}

fn choice(id: &str, value: &str, words: &[&str], hint: &str, invalid: Option<&str>) -> Markup {
    html! {
        select id=(id) name=(id) aria-describedby=(hint) aria-invalid=[invalid] {
            option value="" { "auto" }
            @for word in words { option value=(word) selected[value == *word] { (word) } }
        }
    }
}
