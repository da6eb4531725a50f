//! Stores the checkpoints of a running job: the state that another attempt goes on from, and a model at the end of each
//! epoch. Called by [`super::job_run`].

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::lease::{Control, Interrupt};
use super::progress::StepFigures;
use super::report::checkpoint_metrics;
use super::storage::AdapterFiles;
use super::{LEASE, Worker};
use crate::adapters::peft::PeftFiles;
use crate::jobs::checkpoints::NewCheckpoint;
use crate::jobs::{Error, Job, JobApi, Result};
use crate::store;
use crate::store::names::base_in_job_name;

/// Attempts to publish a checkpoint while the database does not answer, a second apart. The next state waits for it, so
/// that the checkpoint is not lost with this attempt.
const PUBLISH_ATTEMPTS: u32 = 10;
/// Time after which a statement whose answer was lost can no longer take effect; the database ends it long before.
const ANSWER_IS_FINAL: Duration = Duration::from_mins(10);

/// States of the running attempt.
#[derive(Debug, Default)]
pub(super) struct KeptStates {
    /// Stored ones that the row may name or not, since no answer came, with the time of the question.
    unsure: Vec<(Instant, String)>,
    /// The client knows that they cannot be stored.
    told: bool,
}

impl KeptStates {
    /// Takes out those that are of no use now that the row names `newest`.
    fn settled(&mut self, newest: &str) -> Vec<String> {
        let is_settled = |(asked, key): &mut (Instant, String)| asked.elapsed() > ANSWER_IS_FINAL && key != newest;
        self.unsure.extract_if(.., is_settled).map(|(_, key)| key).collect()
    }
}

impl Worker {
    /// Reads the state that an earlier attempt stored; `None` if there is none any more.
    pub(super) async fn last_checkpoint(&self, job: &Job) -> Result<Option<Bytes>> {
        let Some(key) = job.checkpoint.as_ref().and_then(|checkpoint| checkpoint["key"].as_str()) else {
            return Ok(None);
        };
        match self.store.blobs.get(key).await {
            Ok(state) => Ok(Some(state)),
            Err(store::Error::BlobNotFound(_)) => {
                self.say(job, "warn", "The checkpoint is gone; training starts over", None).await;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Stores a state, makes it the one that a next attempt goes on from, and removes the one before. Nothing is
    /// removed unless the row has just named the new one for this very attempt: a worker that stood still for so long
    /// that another one has the job leaves all states to it. A failure costs some steps only, since the row still names
    /// the state before.
    pub(super) async fn keep_state(
        &self,
        job: &Job,
        (step, state): (usize, Vec<u8>),
        kept: &mut KeptStates,
        control: &Control,
    ) {
        let key = format!("{}/attempt-{}/step-{step}.safetensors", states(job), job.attempt);
        if let Err(error) = self.store.blobs.put_new(&key, state.into()).await {
            tracing::warn!(job = job.id, step, "cannot keep a state: {error}");
            if let Some(trouble) = Error::from(error).storage_trouble().filter(|_| !kept.told) {
                let message = format!(
                    "The server cannot store the state of step {step}: {trouble}. After an interruption training begins \
                     again at the state before"
                );
                self.say(job, "warn", &message, None).await;
                kept.told = true;
            }
            return;
        }
        kept.told = false;
        let checkpoint = json!({"step": step, "key": key});
        match self.queue.heartbeat(job, LEASE, Some(checkpoint)).await {
            Ok(answer) => {
                control.hear(answer.as_ref());
                let Some(answer) = answer else { return };
                for useless in answer.replaced.into_iter().chain(kept.settled(&key)) {
                    if let Err(error) = self.store.blobs.remove(&useless).await {
                        tracing::warn!(job = job.id, useless, "cannot remove a state: {error}");
                    }
                }
            }
            Err(error) => {
                tracing::warn!(job = job.id, step, "cannot name a state: {error}");
                kept.unsure.push((Instant::now(), key));
            }
        }
    }

    /// Publishes the adapter at the end of an epoch as the model `{fine_tuned_model}:ckpt-step-{step}`; waits for
    /// storage. Returns `false` if the job must stop before that: then another attempt has to make the same model.
    /// After another failure, and some more tries, training goes on without the model, and an event says so.
    pub(super) async fn publish_checkpoint(
        &self,
        job: &Job,
        base: &str,
        figures: &StepFigures,
        files: PeftFiles,
        control: &Control,
    ) -> bool {
        let (step, files) = (&figures.step, AdapterFiles::from(files));
        let new = NewCheckpoint {
            model: format!("{}:ckpt-step-{}", model_name(job, base), step.step),
            base: base.into(),
            adapter: files.id.clone(),
            step: step.step as i64,
            metrics: checkpoint_metrics(figures),
        };
        let mut attempt = 1;
        loop {
            match self.add_checkpoint(job, &new, &files, control).await {
                Ok(()) => return true,
                Err(Error::Cancelled) => return false,
                Err(_) if control.raised() == Some(Interrupt::Lost) => return false,
                Err(error) if error.storage_trouble().is_none() && attempt < PUBLISH_ATTEMPTS => {
                    tracing::warn!(job = job.id, step = step.step, "cannot publish a checkpoint yet: {error}");
                    attempt += 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => {
                    tracing::error!(job = job.id, step = step.step, "cannot publish a checkpoint: {error}");
                    let message = format!("The checkpoint of step {} could not be stored", step.step);
                    self.say(job, "warn", &message, None).await;
                    return error.storage_trouble().is_none();
                }
            }
        }
    }

    /// Stores the blobs, then the row: a row whose blobs are missing would be a model that cannot be used, and blobs
    /// without a row are swept up.
    async fn add_checkpoint(
        &self,
        job: &Job,
        new: &NewCheckpoint,
        files: &AdapterFiles,
        control: &Control,
    ) -> Result<()> {
        self.store_adapter(job, files, control).await?;
        let Some(dropped) = self.queue.add_checkpoint(job, new).await? else {
            control.raise(Interrupt::Lost);
            return Err(Error::Cancelled);
        };
        for model in dropped {
            self.registry.forget(&job.organization, &model);
        }
        Ok(())
    }
}

/// Returns the prefix of the blobs that hold the states of a job.
pub(super) fn states(job: &Job) -> String {
    format!("checkpoints/{}", job.id)
}

/// Names the job's model: `ft:{base}:{organization}:{suffix}:{8 characters}`, or for the older resource
/// `{base}:ft-{organization}:{suffix}-{time of creation}-{8 characters}`. The alias that the client asked for replaces
/// the base, and where it is a fine-tuned model's name itself, the base in it does. The name follows from the job alone, so that every attempt makes the same one.
pub(super) fn model_name(job: &Job, base: &str) -> String {
    let alias = job.spec.alias.as_deref().map(|alias| base_in_job_name(alias).unwrap_or(alias));
    let base = alias.unwrap_or(base);
    let organization = &job.organization;
    let suffix = job.spec.suffix.as_deref();
    let digest = format!("{:x}", Sha256::digest(job.id.as_bytes()));
    // The time alone is not unique: two jobs may be created in one second.
    let tail = &digest[..8];
    match job.api {
        JobApi::FineTuningJobs => format!("ft:{base}:{organization}:{}:{tail}", suffix.unwrap_or_default()),
        JobApi::FineTunes => {
            let suffix = suffix.map(|suffix| format!(":{suffix}")).unwrap_or_default();
            let created = jiff::Timestamp::from_second(job.created_at).unwrap_or_default();
            format!("{base}:ft-{organization}{suffix}-{}-{tail}", created.strftime("%Y-%m-%d-%H-%M-%S"))
        }
    }
}
