//! What a job page shows of a distillation: how far the teacher's answers are, what they cost, and the report.

use maud::{Markup, html};
use serde_json::Value;

use super::parts::Standing;
use crate::config::Config;
use crate::format;
use crate::jobs::Job;
use crate::jobs::collections::{Distillation, Keep, Prompts};
use crate::teachers::money::Money;

/// The part of the page; empty for a job that collects nothing.
pub(super) fn section(config: &Config, standing: &Standing) -> Markup {
    let Standing { job, collected, .. } = standing;
    let Some(plan) = &job.spec.distillation else { return html! {} };
    html! {
        section id="collection" data-part aria-labelledby="collection-title" {
            h2 id="collection-title" { "Answers of the teacher" }
            dl.facts {
                dt { "Teacher" }
                dd { @match &plan.teacher { Some(teacher) => bdi { (teacher) }, None => "none: stored answers are learned" } }
                dt { "Collected" } dd { (collected_words(collected.as_ref())) }
                dt { "Spent" } dd { (spent(config, plan, collected.as_ref())) }
            }
            @if has_report(job, plan) {
                p { a href={ "/ui/fine-tunes/" (job.id) "/report" } download={ (job.id) "-answers.json" } { "Download the report" } ", with what was left out and why" }
            }
        }
    }
}

fn collected_words(collected: Option<&Value>) -> Markup {
    let number = |data: &Value, name: &str| data[name].as_f64().map(format::count).unwrap_or_default();
    html! {
        @match collected {
            None => "nothing yet",
            Some(data) => {
                @if let (Some(done), Some(all)) = (data["collected"].as_u64(), data["of"].as_u64()) {
                    progress max=(all.max(1)) value=(done) aria-label="Answers" { (done) " of " (all) }
                    " "
                }
                (number(data, "collected")) " of " (number(data, "of")) ", " (number(data, "kept")) " fit to learn from"
            }
        }
    }
}

fn spent(config: &Config, plan: &Distillation, collected: Option<&Value>) -> String {
    let currency = collected.and_then(|data| data["currency"].as_str()).unwrap_or(&config.currency);
    let spent = collected.and_then(|data| Money::of_units(data["cost"].as_f64()?)).unwrap_or(Money::NONE);
    match plan.max_teacher_cost {
        Some(most) => format!("{spent} of {most} {currency}"),
        None => format!("{spent} {currency}"),
    }
}

/// Returns true once the report is there.
fn has_report(job: &Job, plan: &Distillation) -> bool {
    job.result_files.contains(&plan.report_file)
}

/// What was asked for, beside the settings of training.
pub(super) fn settings(plan: &Distillation, file: impl Fn(&str) -> Markup) -> Markup {
    html! {
        dt { "Prompts" }
        dd {
            @match &plan.prompts {
                Prompts::File(id) => (file(id)),
                Prompts::StoredCompletions(choice) => {
                    "stored chats, " (format::count(choice.limit as f64)) " at the most"
                    @if let Some(model) = &choice.filter.model { ", answered by " bdi { (model) } }
                    @for (name, note) in &choice.filter.metadata { ", with the note " bdi { (name) ": " (note.as_str().unwrap_or_default()) } }
                }
            }
        }
        dt { "Answers to each prompt" }
        dd { (plan.samples) @if plan.samples > 1 { @match plan.keep { Keep::Best => ", of which the best is kept", Keep::All => ", of which all that pass are kept" } } }
        @if !plan.graders.is_empty() {
            dt { "Graders" }
            dd {
                @for (index, grader) in plan.graders.iter().enumerate() {
                    @if index > 0 { ", " }
                    bdi { (grader["name"].as_str().or_else(|| grader["type"].as_str()).unwrap_or_default()) }
                }
                " (at least " (plan.min_score) " from each)"
            }
        }
    }
}
