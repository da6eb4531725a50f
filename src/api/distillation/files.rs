//! The files that a collection makes: the lines to train on, and a report of what was asked, kept and paid.

use std::io::Write as _;

use serde_json::{Value, json};

use super::collecting::{Collection, Halt};
use super::filters::{Selection, UNANSWERED, select};
use crate::api::http::error::Problem;
use crate::datasets::MIN_EXAMPLES;
use crate::jobs::collections::{CollectedFile, TeacherAnswer};
use crate::jobs::{self, JobFault};
use crate::off_thread::off_thread;
use crate::teachers::money::Money;

const WRITE: &str = "write the answers of a teacher";

/// Makes the files and lets the job go to the workers; a fault if there is too little to train on.
pub(super) async fn make(collection: &Collection) -> Result<Result<(), JobFault>, Halt> {
    let Collection { state, job, plan, source, .. } = collection;
    let answers = collection.answers();
    let samples = if plan.teacher.is_some() {
        plan.samples
    } else {
        source.prompts.iter().map(|prompt| prompt.given.len()).max().unwrap_or(0) as u32
    };
    let mut selection = select(&source.prompts, &answers, samples, plan.keep);
    if plan.teacher.is_none() {
        // Prompts have as many answers as they were given.
        selection.left_out.remove("not_asked");
    }
    let report = report(collection, &selection, answers.values());
    let name = |what: &str, end: &str| format!("{}_{what}.{end}", job.id);
    let unanswered = answers.values().filter(|answer| answer.verdict.as_deref() == Some(UNANSWERED));
    let why = unanswered.min_by_key(|answer| answer.place()).and_then(|answer| answer.finish_reason.clone());
    let fault = too_few(&selection, why.as_deref());
    let mut files = Vec::new();
    if fault.is_none() {
        let lines = selection.lines.iter().fold(String::new(), |text, line| text + line + "\n");
        files.push(store(collection, &job.spec.training_file, name("distilled", "jsonl"), "fine-tune", lines).await?);
    }
    let text = format!("{report:#}\n");
    files.push(store(collection, &plan.report_file, name("distillation", "json"), "fine-tune-results", text).await?);
    let (words, data) = collection.progress();
    let words = format!("{words}. {}", left_out_words(&selection));
    state.queue.add_event(job, "info", "message", words.trim(), Some(data)).await?;
    if !state.queue.end_collection(job, &files, fault.is_none()).await? {
        for file in &files {
            state.store.remove_content(&file.id).await.map_err(jobs::Error::from)?;
        }
        return Err(Halt::Lost);
    }
    Ok(fault.map_or(Ok(()), Err))
}

async fn store(
    collection: &Collection,
    id: &str,
    filename: String,
    purpose: &'static str,
    content: String,
) -> Result<CollectedFile, Halt> {
    let store = &collection.state.store;
    let bytes = content.len() as i64;
    let made = store.new_content().map_err(jobs::Error::io(WRITE))?;
    let write = move || {
        let (mut file, path) = made.into_parts();
        file.write_all(content.as_bytes()).map_err(jobs::Error::io(WRITE))?;
        Ok::<_, jobs::Error>(path)
    };
    let path = off_thread(WRITE, write).await?;
    store.put_file(id, path.to_path_buf()).await.map_err(jobs::Error::from)?;
    Ok(CollectedFile { id: id.to_owned(), filename, purpose, bytes })
}

/// Returns the fault of a job with too little to train on; `why` is what the teacher said to one of the prompts that it
/// did not answer.
fn too_few(selection: &Selection, why: Option<&str>) -> Option<JobFault> {
    let kept = selection.lines.len();
    if kept >= MIN_EXAMPLES {
        return None;
    }
    let left_out = left_out_words(selection);
    let message =
        format!("Of the answers {kept} can be trained on, and training needs {MIN_EXAMPLES} at least. {left_out}");
    let message = why.map_or_else(|| message.clone(), |why| format!("{message} {why}")).trim_end().to_owned();
    let param = Some("method.distillation".into());
    Some(JobFault { code: "too_few_answers".into(), message, param })
}

/// Says what is left out, by reason.
fn left_out_words(selection: &Selection) -> String {
    let words = |(reason, number): (&String, &usize)| {
        let reason = match reason.as_str() {
            "unanswered" => "unanswered",
            "cut" => "cut off by their length",
            "empty" => "empty",
            "refusal" => "refusals",
            "low_score" => "with too low a score",
            "grader_failed" => "that the graders could not judge",
            "duplicate" => "that another answer to the prompt repeats",
            "not_best" => "with a better answer beside them",
            "not_asked" => "not asked for, as the budget is used",
            "not_judged" => "not judged, as the budget is used",
            _ => "unfit for training",
        };
        format!("{number} {reason}")
    };
    let all: Vec<String> = selection.left_out.iter().map(words).collect();
    if all.is_empty() { String::new() } else { format!("Left out: {}.", all.join(", ")) }
}

fn report<'a>(
    collection: &Collection,
    selection: &Selection,
    answers: impl Iterator<Item = &'a TeacherAnswer>,
) -> Value {
    let Collection { state, job, plan, source, purse, .. } = collection;
    let (mut cost, mut answered, mut prompt_tokens, mut completion_tokens) = (Money::NONE, 0, 0, 0);
    for answer in answers {
        cost = cost + Money::of_millionths(answer.cost);
        answered += usize::from(answer.answer.is_some());
        prompt_tokens += answer.prompt_tokens;
        completion_tokens += answer.completion_tokens;
    }
    json!({
        "object": "fine_tuning.job.distillation_report",
        "job": job.id,
        "teacher": plan.teacher,
        "prompts": source.prompts.len(),
        "duplicate_prompts": source.duplicates,
        "unusable_prompts": source.unusable,
        "answers_wanted": collection.total(),
        "answered": answered,
        "kept": selection.lines.len(),
        "left_out": selection.left_out,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cost": cost.units(),
        "max_teacher_cost": plan.max_teacher_cost.map(Money::units),
        "currency": state.config.currency,
        "ended_by": if purse.is_used() { "budget" } else { "prompts" },
    })
}

impl From<Problem> for Halt {
    fn from(problem: Problem) -> Self {
        Self::Store(jobs::Error::Internal(problem.to_string()))
    }
}
