//! Makes a local job of each old one and waits for its model. A run that was killed finds its jobs again by their
//! notes, and a model that is there is not trained twice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::examples::{Examples, as_file, describe};
use super::settings::{Setting, Settings};
use super::{method_of, place, specialists};
use crate::cli::client::Failure;
use crate::cli::move_in::Move;
use crate::cli::move_in::folder::{Content, OldJob};
use crate::cli::move_in::ledger::{OLD_ID, Specialist};
use crate::cli::output::note;
use crate::train::hyperparameters::Method;
use crate::{Error, Result};

/// The notes of a job beside the old id: the old model, the factor that is not applied, the share that was held back.
const OLD_MODEL: &str = "openai_model";
const MULTIPLIER: &str = "openai_learning_rate_multiplier";
const HELD_OUT: &str = "held_out_percent";
/// Time between two looks at a job, and between two lines that say how far it is.
const EVERY: Duration = Duration::from_secs(1);
const TELL: Duration = Duration::from_secs(10);

/// What was trained, for the report.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Plan {
    /// The local model that was trained.
    pub base: String,
    /// Settings before and now.
    pub settings: Vec<Setting>,
    /// Lines that were trained on.
    pub training_lines: usize,
    /// Lines that were not.
    pub validation_lines: usize,
    /// The share of the training file's prompts that was held back, in percent; 0 where the job has a validation file.
    pub held_out: u32,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// The files of a job as they are trained on.
struct Prepared {
    plan: Plan,
    hyperparameters: Map<String, Value>,
    seed: Option<u64>,
    training: Source,
    validation: Option<Source>,
}

/// A file on the local server, or one to be uploaded.
enum Source {
    Carried(String),
    Own(Vec<u8>),
}

/// Why a job is not trained anew.
enum Skip {
    Reason(String),
    Fault(Error),
}

impl From<Error> for Skip {
    fn from(error: Error) -> Self {
        Self::Fault(error)
    }
}

impl From<Failure> for Skip {
    fn from(failure: Failure) -> Self {
        Self::Fault(failure.into())
    }
}

/// Trains every job that made a model anew, on the local base that was chosen for it.
pub(in crate::cli::move_in) async fn retrain(work: &mut Move<'_>) -> Result<()> {
    let jobs = specialists(work.folder)?;
    if let Some(job) = jobs.first().filter(|_| jobs.iter().all(|job| work.bases.of(job).is_none())) {
        return Err(Error::Setup(format!(
            "say which local model is trained: --base LOCAL, or --base {}=LOCAL",
            job.base
        )));
    }
    let mut running: BTreeMap<String, (&OldJob, String)> = BTreeMap::new();
    for job in &jobs {
        // A job that trained another one's model further needs that model first.
        if let Some((before, local)) =
            jobs.iter().find(|other| is_made_by(&job.base, other)).and_then(|other| running.remove(&other.id))
        {
            finish(work, before, &local).await?;
        }
        match start(work, &jobs, job).await {
            Ok(Some(local)) => {
                running.insert(job.id.clone(), (job, local));
            }
            Ok(None) => {}
            Err(Skip::Reason(reason)) => {
                note(format_args!("{} is not trained anew: {reason}", name(job)));
                work.ledger.problem(&job.id, reason)?;
            }
            Err(Skip::Fault(error)) => return Err(error),
        }
    }
    for (job, local) in running.into_values() {
        finish(work, job, &local).await?;
    }
    Ok(())
}

/// Returns what a job is called in messages: the model that it made.
pub(super) fn name(job: &OldJob) -> &str {
    job.model.as_deref().unwrap_or(&job.id)
}

/// Returns true if `model` is what `job` made, or one of its checkpoints.
fn is_made_by(model: &str, job: &OldJob) -> bool {
    let made = job.model.as_deref().and_then(|made| model.strip_prefix(made));
    made.is_some_and(|rest| rest.is_empty() || rest.starts_with(":ckpt-step-"))
}

/// Returns the local job for an old one, which is made if there is none; `None` if its model is there already.
async fn start(work: &mut Move<'_>, jobs: &[OldJob], job: &OldJob) -> Result<Option<String>, Skip> {
    let Some(chosen) = work.bases.of(job) else {
        return Err(Skip::Reason(format!("no local base is chosen for {}: --base {}=LOCAL", job.base, job.base)));
    };
    let Some(method) = method_of(job) else {
        return Err(Skip::Reason(format!("the method {} is not one of this server", job.method)));
    };
    let before = jobs.iter().find(|other| is_made_by(&job.base, other));
    let further = before.and_then(|before| work.ledger.carried().specialists.get(&before.id)?.new_model.clone());
    let base = further.clone().unwrap_or_else(|| chosen.to_owned());
    if let Some(done) = work.ledger.carried().specialists.get(&job.id)
        && let (true, Some(model)) = (done.base == base, &done.new_model)
        && exists(work, model).await?
    {
        return Ok(None);
    }
    let found = find(work, job, &base).await?;
    let percent = found.as_ref().map_or(work.options.hold_out, |job| {
        job["metadata"][HELD_OUT].as_str().and_then(|percent| percent.parse().ok()).unwrap_or(0)
    });
    let mut prepared = prepare(work, job, method, percent)?;
    prepared.plan.base.clone_from(&base);
    if let Some(before) = before {
        let from = match &further {
            None => "which is not here: the plain base takes its place".to_owned(),
            Some(_) if before.model.as_ref() == Some(&job.base) => "which is here".to_owned(),
            Some(_) => "a checkpoint: the whole model takes its place".to_owned(),
        };
        prepared.plan.notes.push(format!("It was trained from {}, {from}.", job.base));
    }
    let plan =
        serde_json::to_value(&prepared.plan).map_err(|error| Error::Internal(format!("write a plan: {error}")))?;
    let local = match found {
        Some(found) => found,
        None => create(work, job, method, &base, &prepared).await?,
    };
    let id = local["id"].as_str().ok_or_else(|| Error::Setup("the server made a job without an id".into()))?.to_owned();
    work.folder.write(&place(work.folder, job, "", "json"), &plan)?;
    let entry =
        Specialist { old_model: name(job).to_owned(), base, new_job: Some(id.clone()), new_model: None, report: None };
    work.ledger.change(|carried| {
        carried.specialists.insert(job.id.clone(), entry);
    })?;
    Ok(Some(id))
}

/// Returns true if the local server has the model.
async fn exists(work: &Move<'_>, model: &str) -> Result<bool> {
    match work.local.get(&["models", model], &[]).await {
        Ok(_) => Ok(true),
        Err(Failure::Refused { .. }) => Ok(false),
        Err(away) => Err(away.into()),
    }
}

/// Returns the local job that trains an old one anew on `base`, unless it failed or was cancelled.
async fn find(work: &Move<'_>, job: &OldJob, base: &str) -> Result<Option<Value>, Failure> {
    let filter = format!("metadata[{OLD_ID}]");
    let page =
        work.local.get(&["fine_tuning", "jobs"], &[("limit", "100"), (filter.as_str(), job.id.as_str())]).await?;
    let is_same = |found: &&Value| {
        let ended = matches!(found["status"].as_str(), Some("failed" | "cancelled"));
        // The server is asked for the note, and the note is looked at: an older server knows no filter.
        found["model"] == base && found["metadata"][OLD_ID] == job.id.as_str() && !ended
    };
    Ok(page["data"].as_array().and_then(|jobs| jobs.iter().find(is_same)).cloned())
}

/// Reads the files of a job, and splits the training file where there is no other to compare on.
fn prepare(work: &Move<'_>, job: &OldJob, method: Method, percent: u32) -> Result<Prepared, Skip> {
    let carried = |id: &str| work.ledger.carried().files.get(id).cloned();
    let missing = |what: &str, id: &str| Skip::Reason(format!("its {what} file {id} was not carried over"));
    let training_id = job.training_file.as_deref().ok_or_else(|| Skip::Reason("it has no training file".into()))?;
    let read = |id: &str| -> Result<Option<Examples>, Skip> {
        match work.folder.content_of(id)? {
            Content::Here(path) => Ok(Some(Examples::read(&path, method)?)),
            Content::Missing(_) | Content::NotFetched => Ok(None),
        }
    };
    let training = match work.folder.content_of(training_id)? {
        Content::Here(_) => read(training_id)?.unwrap_or_default(),
        Content::Missing(reason) => {
            return Err(Skip::Reason(format!("its training file {training_id} is missing: {reason}")));
        }
        Content::NotFetched => return Err(Skip::Reason(format!("its training file {training_id} was not fetched"))),
    };
    if !training.faults.is_empty() {
        let lines = describe(&training.faults);
        return Err(Skip::Reason(format!(
            "its training file {training_id} has lines that cannot be learned here: {lines}"
        )));
    }
    let mut notes = Vec::new();
    let given = match &job.validation_file {
        Some(id) => read(id)?.map(|examples| (id, examples)),
        None => None,
    };
    if let (Some(id), None) = (&job.validation_file, &given) {
        notes.push(format!("The validation file {id} is missing."));
    }
    let mut plan = Plan::default();
    let (training_source, validation_source) =
        if let Some((id, validation)) = given.filter(|(_, validation)| !validation.lines.is_empty()) {
            plan.validation_lines = validation.lines.len();
            let source = if validation.faults.is_empty() {
                Source::Carried(carried(id).ok_or_else(|| missing("validation", id))?)
            } else {
                let lines = describe(&validation.faults);
                notes.push(format!(
                    "Lines of the validation file {id} were left out, since no model here can read them: {lines}"
                ));
                keep(work, job, ".validation", as_file(&validation.lines))?
            };
            plan.training_lines = training.lines.len();
            (Source::Carried(carried(training_id).ok_or_else(|| missing("training", training_id))?), Some(source))
        } else if let Some((kept, held_out)) = training.hold_out(percent, method) {
            notes.push(format!(
            "There is no validation file: {percent} % of the prompts of the training file, {} of {} lines, were held \
             back from training here, and the models are compared on them. The old model was trained on these \
             lines, which flatters it.",
            held_out.len(),
            training.lines.len()
        ));
            (plan.training_lines, plan.validation_lines, plan.held_out) = (kept.len(), held_out.len(), percent);
            let validation = keep(work, job, ".validation", as_file(held_out))?;
            (keep(work, job, ".training", as_file(kept))?, Some(validation))
        } else {
            notes.push("There is no validation file, and nothing was held back: the models cannot be compared.".into());
            plan.training_lines = training.lines.len();
            (Source::Carried(carried(training_id).ok_or_else(|| missing("training", training_id))?), None)
        };
    let Settings { hyperparameters, seed, rows } = Settings::of(job, plan.training_lines, &work.options.settings);
    (plan.settings, plan.notes) = (rows, notes);
    Ok(Prepared { plan, hyperparameters, seed, training: training_source, validation: validation_source })
}

/// Writes a file of lines into the folder.
fn keep(work: &Move<'_>, job: &OldJob, part: &str, lines: Vec<u8>) -> Result<Source> {
    work.folder.write_bytes(&place(work.folder, job, part, "jsonl"), &lines)?;
    Ok(Source::Own(lines))
}

/// Makes the local job.
async fn create(work: &Move<'_>, job: &OldJob, method: Method, base: &str, prepared: &Prepared) -> Result<Value, Skip> {
    let training = uploaded(work, job, "training", &prepared.training).await?;
    let validation = match &prepared.validation {
        Some(source) => Some(uploaded(work, job, "validation", source).await?),
        None => None,
    };
    let kind = match method {
        Method::Supervised => "supervised",
        Method::Dpo => "dpo",
    };
    let mut notes = Map::new();
    notes.insert(OLD_ID.into(), job.id.as_str().into());
    notes.insert(OLD_MODEL.into(), name(job).into());
    notes.insert(HELD_OUT.into(), prepared.plan.held_out.to_string().into());
    if let Some(multiplier) = job.hyperparameters.get("learning_rate_multiplier") {
        notes.insert(
            MULTIPLIER.into(),
            multiplier.as_str().map_or_else(|| multiplier.to_string(), str::to_owned).into(),
        );
    }
    let body = json!({
        "model": base,
        "training_file": training,
        "validation_file": validation,
        "suffix": job.suffix,
        "seed": prepared.seed,
        "method": {"type": kind, kind: {"hyperparameters": prepared.hyperparameters}},
        "metadata": notes,
    });
    let made = work.local.create(&["fine_tuning", "jobs"], &body, async || find(work, job, base).await).await;
    let made = made.map_err(refused)?;
    note(format_args!("{} is trained anew on {base}: {}", name(job), made["id"].as_str().unwrap_or_default()));
    Ok(made)
}

/// Returns the id of a file on the server; an own one is uploaded, unless it is there.
async fn uploaded(work: &Move<'_>, job: &OldJob, part: &str, source: &Source) -> Result<String, Skip> {
    let lines = match source {
        Source::Carried(id) => return Ok(id.clone()),
        Source::Own(lines) => lines,
    };
    let file = format!("{}.{part}.jsonl", job.id);
    let find = async || {
        let files = work.local.list(&["files"]).await?;
        let is_same = |found: &Value| found["filename"] == file.as_str() && found["bytes"] == lines.len();
        Ok::<_, Failure>(files.into_iter().find(is_same))
    };
    let made = work.local.upload((&file, lines), "fine-tune", &Map::new(), find).await.map_err(refused)?;
    Ok(made["id"].as_str().unwrap_or_default().to_owned())
}

/// Lets what the server refuses be a fault of this job alone.
fn refused(failure: Failure) -> Skip {
    match failure {
        Failure::Refused { message, is_at_fault: true, .. } => Skip::Reason(message),
        failure => Skip::Fault(failure.into()),
    }
}

/// Waits for the end of a local job.
async fn finish(work: &mut Move<'_>, job: &OldJob, local: &str) -> Result<()> {
    let (mut told, mut said) = (Instant::now(), String::new());
    loop {
        let now = work.local.get(&["fine_tuning", "jobs", local], &[]).await?;
        let reason = match now["status"].as_str().unwrap_or_default() {
            "succeeded" => {
                let model = now["fine_tuned_model"].as_str().unwrap_or_default().to_owned();
                note(format_args!("{} is here as {model}", name(job)));
                return work.ledger.change(|carried| {
                    if let Some(entry) = carried.specialists.get_mut(&job.id) {
                        entry.new_model = Some(model);
                    }
                });
            }
            "failed" => now["error"]["message"].as_str().unwrap_or("no reason was given").to_owned(),
            "cancelled" => "the job was cancelled here".to_owned(),
            status => {
                if told.elapsed() >= TELL {
                    told = Instant::now();
                    let line = progress(work, local, status).await?;
                    if line != said {
                        note(format_args!("{}: {line}", name(job)));
                        said = line;
                    }
                }
                tokio::time::sleep(EVERY).await;
                continue;
            }
        };
        note(format_args!("{} could not be trained anew: {reason}", name(job)));
        return work.ledger.problem(&job.id, format!("{local} failed: {reason}"));
    }
}

/// Returns the newest event of a job in words.
async fn progress(work: &Move<'_>, local: &str, status: &str) -> Result<String> {
    if status != "running" {
        return Ok(status.to_owned());
    }
    let events = work.local.get(&["fine_tuning", "jobs", local, "events"], &[("limit", "1")]).await?;
    let message = events["data"][0]["message"].as_str().unwrap_or(status);
    Ok(message.replace(char::is_control, " "))
}

/// Returns where the prompts to compare on are: what was held back or left of the validation file, else that file
/// itself.
pub(super) fn prompts(work: &Move<'_>, job: &OldJob) -> Result<Option<PathBuf>> {
    let own = place(work.folder, job, ".validation", "jsonl");
    if own.is_file() {
        return Ok(Some(own));
    }
    let Some(id) = &job.validation_file else { return Ok(None) };
    Ok(match work.folder.content_of(id)? {
        Content::Here(path) => Some(path),
        Content::Missing(_) | Content::NotFetched => None,
    })
}

/// Returns what was trained; `None` if nothing was.
pub(super) fn plan(work: &Move<'_>, job: &OldJob) -> Result<Option<Plan>> {
    let value = work.folder.read(&place(work.folder, job, "", "json"))?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}
