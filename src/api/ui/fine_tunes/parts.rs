//! The parts of a job's page that change while it runs. Each has an id and `data-part`, by which the script puts the
//! new one in the place of the old one.

use maud::{Markup, html};
use serde_json::Value;

use super::charts::{CLASSES, label};
use crate::api::fine_tuning::event_text::event_text;
use crate::api::ui::playground;
use crate::api::ui::words::{self, figure, moment};
use crate::config::Config;
use crate::format;
use crate::jobs::checkpoints::ModelCheckpoint;
use crate::jobs::events::JobEvent;
use crate::jobs::progress::Progress;
use crate::jobs::{Job, JobApi, JobStatus};
use crate::train::hyperparameters::TextLoss;

/// A job with everything about it that changes but its curves.
pub(super) struct Standing {
    pub job: Job,
    pub progress: Progress,
    /// Events other than steps, newest first, and whether there are more.
    pub messages: Vec<JobEvent>,
    pub more_messages: bool,
    pub checkpoints: Vec<ModelCheckpoint>,
    /// How far the answers of a teacher were when that was last told.
    pub collected: Option<Value>,
}

/// Where the job stands, why, what came of it, and what can be done.
pub(super) fn standing(config: &Config, standing: &Standing) -> Markup {
    let Standing { job, progress, .. } = standing;
    html! {
        section.card id="standing" data-part aria-label="State" {
            div.row {
                (words::state(job))
                span id="steps" { (words::steps(job, progress)) }
                @if let Some(cost) = words::cost_so_far(config, job, progress) { span { "Cost so far: " (cost) } }
            }
            @if let Some(error) = &job.error {
                p.fault role="alert" { bdi { (error.message) } }
                p.hint { "Code: " span.mono { (error.code) } @if let Some(param) = &error.param { ", field " span.mono { bdi { (param) } } } }
            }
            @if let Some(model) = &job.fine_tuned_model { p { "Model: " span.mono { bdi { (model) } } } }
            p.hint {
                span.mono { (job.id) } ", created " (moment(job.created_at))
                @if let Some(finished) = job.finished_at { ", ended " (moment(finished)) }
                @else if let Some(finish) = job.estimated_finish.filter(|_| job.status == JobStatus::Running) {
                    ", expected to end " (moment(finish))
                }
            }
            (actions(job))
        }
    }
}

/// What the visitor can do with the job.
fn actions(job: &Job) -> Markup {
    let can_stop = !job.status.is_final() && job.stop_request.is_none();
    let is_current = job.api == JobApi::FineTuningJobs;
    let can_pause = can_stop && job.status != JobStatus::Paused && is_current;
    let is_pausing = job.stop_request.as_deref() == Some("pause");
    // What is paid for is kept, too.
    let lost_its_teacher = job.error.as_ref().is_some_and(|error| error.code == "teacher_unavailable");
    let can_go_on = job.status == JobStatus::Failed && (job.checkpoint.is_some() || lost_its_teacher);
    let can_resume = is_current && (job.status == JobStatus::Paused || is_pausing || can_go_on);
    let path = format!("/ui/fine-tunes/{}", job.id);
    let question =
        "Cancel this fine-tune? What it has learned since its last checkpoint is lost, and it cannot be resumed.";
    html! {
        div.row {
            @if can_pause { form method="post" action={ (path) "/pause" } { button.quiet { "Pause" } } }
            @if can_resume { form method="post" action={ (path) "/resume" } { button { "Resume" } } }
            @if can_stop || is_pausing {
                form method="post" action={ (path) "/cancel" } data-confirm=(question) { button.danger { "Cancel" } }
            }
            @if let Some(path) = job.fine_tuned_model.as_ref().and_then(|model| trial(job, model)) { a.button href=(path) { "Try it beside its base" } }
            @if job.fine_tuned_model.is_some() { a.button.quiet href={ (path) "/adapter" } download { "Download the adapter" } }
            @if result_file(job).is_some() {
                a.button.quiet href={ (path) "/result" } download={ (job.id) ".csv" } { "Download the result file" }
            }
        }
    }
}

/// Returns the file with the figures of all steps, once it is there; that of the answers of a teacher is another one.
pub(super) fn result_file(job: &Job) -> Option<&str> {
    let report = job.spec.distillation.as_ref().map(|plan| &plan.report_file);
    job.result_files.iter().find(|file| Some(*file) != report).map(String::as_str)
}

/// Returns the path of the page that tries `model`, which the job has made, beside the one that it was trained from;
/// `None` for models that score pairs.
fn trial(job: &Job, model: &str) -> Option<String> {
    let page = match job.resolved.as_ref().and_then(|settings| settings.loss) {
        None => playground::ANSWERS,
        Some(TextLoss::Ranking | TextLoss::CosineSimilarity) => playground::TEXTS,
        Some(TextLoss::BinaryCrossEntropy) => return None,
    };
    Some(playground::path_with(page, &[job.spec.asked_model(), model]))
}

/// What was expected beside what it took.
pub(super) fn account(config: &Config, standing: &Standing) -> Markup {
    let rows = account_rows(config, standing);
    html! {
        section id="account" data-part aria-labelledby="account-title" {
            @if !rows.is_empty() {
                h2 id="account-title" { "Estimate and actual" }
                table {
                    thead {
                        tr {
                            td {} th scope="col" { "Expected" }
                            th scope="col" { @if standing.progress.account.is_some() { "Took" } @else { "So far" } }
                        }
                    }
                    tbody {
                        @for [name, expected, actual] in &rows {
                            tr { th scope="row" { (name) } td { (expected) } td { (actual) } }
                        }
                    }
                }
            }
        }
    }
}

fn account_rows(config: &Config, standing: &Standing) -> Vec<[String; 3]> {
    let Standing { job, progress, .. } = standing;
    let Some(estimate) = &progress.estimate else { return Vec::new() };
    // The account repeats what its own attempt expected.
    let expected = progress.account.as_ref().map_or(estimate, |account| &account["estimated"]);
    let actual = progress.account.as_ref().map(|account| &account["actual"]);
    let bounds = [&expected["duration_low_seconds"], &expected["duration_high_seconds"]].map(Value::as_f64);
    let time = match bounds {
        [Some(low), Some(high)] => format::duration_range(low, high),
        _ => String::new(),
    };
    let spent = match actual {
        Some(actual) => actual["duration_seconds"].as_f64(),
        None => progress.elapsed_seconds,
    };
    let peak = |value: &Value| value.as_u64().map(format::bytes).unwrap_or_default();
    let speed = |value: &Value| value.as_f64().map(format::count).unwrap_or_default();
    let cost = match actual {
        Some(actual) => money(&actual["cost"]),
        None => words::cost_so_far(config, job, progress).unwrap_or_default(),
    };
    let rate = |own: &Value| speed(&own["tokens_per_second"]);
    let inner = &estimate["estimate"];
    let rows = [
        ["Time".into(), time, spent.map(format::duration).unwrap_or_default()],
        [
            "Memory at the peak".into(),
            peak(&inner["memory_bytes"]["peak"]),
            actual.map(|actual| peak(&actual["peak_resident_bytes"])).unwrap_or_default(),
        ],
        ["Tokens per second".into(), rate(inner), actual.map(rate).unwrap_or_default()],
        ["Cost".into(), money(&expected["cost"]), cost],
    ];
    rows.into_iter().filter(|[_, expected, actual]| !expected.is_empty() || !actual.is_empty()).collect()
}

/// Words a cost as events hold it.
fn money(cost: &Value) -> String {
    let currency = cost["currency"].as_str().unwrap_or_default();
    let part = |name: &str, what: &str| Some(format!("{} for {what}", format::money(cost[name].as_f64()?, currency)));
    [part("machine", "machine time"), part("tokens", "tokens")].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The answers of the base and of the new model to prompts of the validation file.
pub(super) fn answers(standing: &Standing) -> Markup {
    let answers = standing.messages.iter().find_map(|event| event.data.as_ref()?["answers"].as_array());
    let text = |answer: &Value, name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    html! {
        section id="answers" data-part aria-labelledby="answers-title" {
            @if let Some(answers) = answers {
                h2 id="answers-title" { "Answers to validation prompts" }
                table.stack {
                    caption.hidden { "Answers of the base model and of the new one beside the expected ones" }
                    thead {
                        tr {
                            th scope="col" { "Prompt" } th scope="col" { "Expected" }
                            th scope="col" { "Base" } th scope="col" { "Fine-tuned" }
                        }
                    }
                    tbody {
                        @for answer in answers {
                            tr {
                                td.text data-label="Prompt" dir="auto" { (text(answer, "prompt")) }
                                td.text data-label="Expected" dir="auto" { (text(answer, "expected")) }
                                td.text data-label="Base" dir="auto" { (text(answer, "base")) }
                                td.text data-label="Fine-tuned" dir="auto" { (text(answer, "fine_tuned")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// How well the model sorts validation prompts into classes, as last measured.
pub(super) fn classes(standing: &Standing) -> Markup {
    let measured = standing.messages.iter().find_map(|event| {
        let data = event.data.as_ref()?.as_object()?;
        data.keys().any(|name| name.starts_with(CLASSES)).then_some(data)
    });
    html! {
        section id="classes" data-part aria-labelledby="classes-title" {
            @if let Some(data) = measured {
                h2 id="classes-title" { "Validation prompts sorted into classes" }
                @if let Some(step) = data.get("step").and_then(Value::as_i64) { p.hint { "After step " (step) "." } }
                dl.facts {
                    @for (name, value) in data.iter().filter(|(name, _)| name.starts_with(CLASSES)) {
                        dt { (label(name)) }
                        dd { @match value.as_f64() { Some(value) => (figure(value)), None => "not defined" } }
                    }
                }
            }
        }
    }
}

/// The states that can be used as models.
pub(super) fn checkpoints(standing: &Standing) -> Markup {
    let number = |metrics: &Value, name: &str| metrics[name].as_f64().map(figure).unwrap_or_default();
    html! {
        section id="checkpoints" data-part aria-labelledby="checkpoints-title" {
            @if !standing.checkpoints.is_empty() {
                h2 id="checkpoints-title" { "Checkpoints" }
                table.stack {
                    caption { "Each can be used as a model at once." }
                    thead {
                        tr {
                            th scope="col" { "Model" } th.number scope="col" { "Step" }
                            th.number scope="col" { "Training loss" } th.number scope="col" { "Validation loss" }
                            th scope="col" { "Created" }
                        }
                    }
                    tbody {
                        @for checkpoint in &standing.checkpoints {
                            @let full = number(&checkpoint.metrics, "full_valid_loss");
                            tr {
                                th scope="row" {
                                    span.mono { bdi { (checkpoint.model) } }
                                    @if let Some(path) = trial(&standing.job, &checkpoint.model) { " " a href=(path) { "Try it" } }
                                }
                                td.number data-label="Step" { (checkpoint.step) }
                                td.number data-label="Training loss" { (number(&checkpoint.metrics, "train_loss")) }
                                td.number data-label="Validation loss" {
                                    @if full.is_empty() { (number(&checkpoint.metrics, "valid_loss")) } @else { (full) }
                                }
                                td data-label="Created" { (moment(checkpoint.created_at)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What happened, newest first.
pub(super) fn events(standing: &Standing) -> Markup {
    let Standing { job, messages, more_messages, .. } = standing;
    html! {
        section id="events" data-part aria-labelledby="events-title" {
            h2 id="events-title" { "Events" }
            (event_list(job, messages))
            p {
                @if *more_messages { "Older ones, and the figures of every step: " }
                a href={ "/ui/fine-tunes/" (job.id) "/events" } { "Every event" }
            }
        }
    }
}

/// Lists events.
pub(super) fn event_list(job: &Job, events: &[JobEvent]) -> Markup {
    html! {
        table.events.stack {
            caption.hidden { "Events, newest first" }
            thead { tr { th scope="col" { "Time" } th scope="col" { "What happened" } } }
            tbody {
                @for event in events {
                    tr {
                        td { (moment(event.created_at)) }
                        td class={ "event-" (level(&event.level)) } dir="auto" {
                            @if event.level != "info" { strong { (level(&event.level)) ": " } }
                            (event_text(job, event))
                        }
                    }
                }
            }
        }
    }
}

fn level(level: &str) -> &'static str {
    match level {
        "warn" => "warning",
        "error" => "error",
        _ => "info",
    }
}
