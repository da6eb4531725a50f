//! The bodies of answers of `fine_tunes`, made from jobs, their files and their events.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use utoipa::ToSchema;

use super::request::{DEFAULT_EPOCHS, DEFAULT_PROMPT_LOSS_WEIGHT};
use crate::api::ApiState;
use crate::api::fine_tuning::event_text::event_text;
use crate::api::http::error::Result;
use crate::api::operations::files::FileObject;
use crate::jobs::events::JobEvent;
use crate::jobs::{Job, JobStatus};
use crate::train::hyperparameters::Classification;

/// Largest number of events in one body.
pub(super) const MAX_EVENTS: i64 = 10_000;

/// A fine-tune.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FineTune {
    /// `ft-…`
    pub id: String,
    /// Always `fine-tune`.
    pub object: &'static str,
    /// The model that is trained.
    pub model: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds of the last change of status.
    pub updated_at: i64,
    /// The new model, once there is one.
    pub fine_tuned_model: Option<String>,
    /// The owner.
    pub organization_id: String,
    /// `pending`, `running`, `succeeded`, `failed` or `cancelled`.
    pub status: &'static str,
    /// The settings, always numbers.
    pub hyperparams: FineTuneSettings,
    /// The files to train on.
    pub training_files: Vec<FileObject>,
    /// The files to measure on.
    pub validation_files: Vec<FileObject>,
    /// What training wrote.
    pub result_files: Vec<FileObject>,
    /// What happened, oldest first, 10,000 events at the most; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<FineTuneEvent>>,
    /// Extension: true where there are more events than these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_more_events: Option<bool>,
}

/// The settings of a fine-tune.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FineTuneSettings {
    /// Passes over the training file.
    pub n_epochs: u32,
    /// Examples per step; 1 until training has chosen it.
    pub batch_size: u32,
    /// Factor on the learning rate.
    pub learning_rate_multiplier: f64,
    /// Weight of the prompt's tokens in the loss.
    pub prompt_loss_weight: f64,
    /// As it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_classification_metrics: Option<bool>,
    /// As it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classification_n_classes: Option<u32>,
    /// As it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classification_positive_class: Option<String>,
    /// As they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classification_betas: Option<Vec<f64>>,
}

/// Something that happened to a fine-tune.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct FineTuneEvent {
    /// Extension: `ftevent-…`, for pages.
    pub id: String,
    /// Always `fine-tune-event`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// What happened.
    pub message: String,
}

/// The descriptions of the files of some jobs, by id. Deleted files are not among them.
pub(crate) struct Files(HashMap<String, FileObject>);

impl Files {
    /// Reads the files of `jobs`, which are one organisation's, all at once.
    pub(crate) async fn of(state: &ApiState, organization: &str, jobs: &[Job]) -> Result<Self> {
        let ids: HashSet<&String> = jobs.iter().flat_map(ids).collect();
        let ids: Vec<String> = ids.into_iter().cloned().collect();
        let files = state.store.files_of(organization, &ids).await?;
        Ok(Self(files.into_iter().map(|file| (file.id.clone(), FileObject::from(file))).collect()))
    }

    fn all(&self, ids: &[String]) -> Vec<FileObject> {
        ids.iter().filter_map(|id| self.0.get(id).cloned()).collect()
    }

    /// Makes the body for a job, without its events.
    pub(crate) fn describe(&self, job: Job) -> FineTune {
        FineTune {
            training_files: self.all(std::slice::from_ref(&job.spec.training_file)),
            validation_files: self.all(job.spec.validation_file.as_slice()),
            result_files: self.all(&job.result_files),
            hyperparams: FineTuneSettings::of(&job),
            id: job.id,
            object: "fine-tune",
            model: job.spec.asked_model().to_owned(),
            created_at: job.created_at,
            updated_at: job.updated_at,
            fine_tuned_model: job.fine_tuned_model,
            organization_id: job.organization,
            status: status_name(job.status),
            events: None,
            has_more_events: None,
        }
    }
}

fn ids(job: &Job) -> impl Iterator<Item = &String> {
    [&job.spec.training_file].into_iter().chain(&job.spec.validation_file).chain(&job.result_files)
}

impl FineTuneSettings {
    fn of(job: &Job) -> Self {
        let settings = job.resolved.as_ref().unwrap_or(&job.spec.hyperparameters);
        let Classification { compute, n_classes, positive_class, betas } =
            job.spec.classification.clone().unwrap_or_default();
        Self {
            n_epochs: settings.n_epochs.unwrap_or(DEFAULT_EPOCHS),
            batch_size: settings.batch_size.unwrap_or(1),
            learning_rate_multiplier: settings.learning_rate_multiplier.unwrap_or(0.1),
            prompt_loss_weight: settings.prompt_loss_weight.unwrap_or(DEFAULT_PROMPT_LOSS_WEIGHT),
            compute_classification_metrics: compute,
            classification_n_classes: n_classes,
            classification_positive_class: positive_class,
            classification_betas: betas,
        }
    }
}

/// Makes the body for a job, with its events.
pub(crate) async fn with_events(state: &ApiState, job: Job) -> Result<FineTune> {
    let (events, has_more) = read_events(state, &job, 0, MAX_EVENTS).await?;
    let files = Files::of(state, &job.organization, std::slice::from_ref(&job)).await?;
    let mut fine_tune = files.describe(job);
    fine_tune.events = Some(events);
    fine_tune.has_more_events = has_more.then_some(true);
    Ok(fine_tune)
}

/// Reads up to `limit` events of a job after the one numbered `seq`, oldest first, and tells whether there are more.
pub(crate) async fn read_events(
    state: &ApiState,
    job: &Job,
    seq: i64,
    limit: i64,
) -> Result<(Vec<FineTuneEvent>, bool)> {
    let events = state.queue.events_after(job, seq, limit).await?;
    let more = match events.last() {
        Some(last) if events.len() as i64 == limit => !state.queue.events_after(job, last.seq, 1).await?.is_empty(),
        _ => false,
    };
    Ok((events.into_iter().map(|event| FineTuneEvent::new(job, event)).collect(), more))
}

const fn status_name(status: JobStatus) -> &'static str {
    match status {
        // The older resource has no word for a paused job.
        JobStatus::Queued | JobStatus::Paused => "pending",
        JobStatus::Running => "running",
        JobStatus::Succeeded => "succeeded",
        JobStatus::Failed => "failed",
        JobStatus::Cancelled => "cancelled",
    }
}

impl FineTuneEvent {
    /// Returns the body for an event of `job`.
    pub(crate) fn new(job: &Job, event: JobEvent) -> Self {
        let message = event_text(job, &event);
        let id = format!("ftevent-{}", event.seq);
        Self { id, object: "fine-tune-event", created_at: event.created_at, level: event.level, message }
    }
}
