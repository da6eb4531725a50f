//! The words for events of jobs, the same in lists and streams. The queue stores what changed, the worker its own
//! texts.

use crate::jobs::events::{JobChange, JobEvent};
use crate::jobs::{Job, JobApi};

/// Returns the text of an event of `job`, as clients of the job's resource read it.
pub fn event_text(job: &Job, event: &JobEvent) -> String {
    let Some(change) = event.change else {
        return event.message.clone();
    };
    let detail = event.detail.as_deref();
    let named = detail.unwrap_or_default();
    match (change, job.api) {
        (JobChange::Created, JobApi::FineTunes) => format!("Created fine-tune: {}", job.id),
        (JobChange::Created, JobApi::FineTuningJobs) => format!("Created fine-tuning job: {}", job.id),
        (JobChange::Enqueued, _) => format!("{} enqueued. Queue number: {named}", subject(job.api)),
        (JobChange::ModelCreated, JobApi::FineTunes) => format!("Uploaded model: {named}"),
        (JobChange::ModelCreated, JobApi::FineTuningJobs) => format!("New fine-tuned model created: {named}"),
        (JobChange::ResultFileUploaded, _) => format!("Uploaded result file: {named}"),
        (JobChange::Succeeded, JobApi::FineTunes) => "Fine-tune succeeded".into(),
        (JobChange::Succeeded, JobApi::FineTuningJobs) => "The job has successfully completed".into(),
        (JobChange::Queued, api) => sentence(api, "waits for a worker", detail),
        (JobChange::Running, api) if event.attempt > 1 => sentence(api, "continues", detail),
        (JobChange::Running, api) => sentence(api, "started", detail),
        (JobChange::Paused, api) => sentence(api, "paused", detail),
        (JobChange::Failed, api) => sentence(api, "failed", detail),
        (JobChange::Cancelled, api) => sentence(api, "cancelled", detail),
        (JobChange::CancelRequested, api) => sentence(api, "is being cancelled", detail),
        (JobChange::PauseRequested, api) => sentence(api, "is being paused", detail),
    }
}

const fn subject(api: JobApi) -> &'static str {
    match api {
        JobApi::FineTunes => "Fine-tune",
        JobApi::FineTuningJobs => "Fine-tuning job",
    }
}

fn sentence(api: JobApi, predicate: &str, why: Option<&str>) -> String {
    let subject = subject(api);
    why.map_or_else(|| format!("{subject} {predicate}"), |why| format!("{subject} {predicate}: {why}"))
}
