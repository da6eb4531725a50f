//! Stores the checkpoints of a running job: the state that another attempt goes on from, and a model at the end of each
//! epoch. Called by [`super::job_run`].

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::lease::{Control, Interrupt};
use super::progress::StepFigures;
use super::report::checkpoint_metrics;
use super::{LEASE, Worker};
use crate::adapters::peft::PeftFiles;
use crate::adapters::registry::{config_key, weights_key};
use crate::jobs::Result;
use crate::jobs::checkpoints::NewCheckpoint;
use crate::jobs::{Job, JobApi};
use crate::store;

/// Attempts to publish a checkpoint while database or storage do not answer, a second apart. The next state waits for
/// it, so that the checkpoint is not lost with this attempt.
const PUBLISH_ATTEMPTS: u32 = 10;

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

    /// Stores a state, makes it the one that a next attempt goes on from, and returns its key.
    pub(super) async fn keep_state(&self, job: &Job, step: usize, state: Vec<u8>, control: &Control) -> Result<String> {
        let key = format!("{}/attempt-{}/step-{step}.safetensors", states(job), job.attempt);
        self.store.blobs.put(&key, state.into()).await?;
        let checkpoint = json!({"step": step, "key": key});
        control.hear(self.queue.heartbeat(job, LEASE, Some(checkpoint)).await?);
        Ok(key)
    }

    /// Publishes the adapter at the end of an epoch as the model `{fine_tuned_model}:ckpt-step-{step}`. If all attempts
    /// fail, training goes on without it and an event says so.
    pub(super) async fn publish_checkpoint(
        &self,
        job: &Job,
        base: &str,
        figures: &StepFigures,
        files: PeftFiles,
        control: &Control,
    ) {
        let step = &figures.step;
        let new = NewCheckpoint {
            model: format!("{}:ckpt-step-{}", model_name(job, base), step.step),
            base: base.into(),
            adapter: files.id(),
            step: step.step as i64,
            metrics: checkpoint_metrics(figures),
        };
        let (weights, config) = (Bytes::from(files.weights), Bytes::from(files.config));
        let mut attempt = 1;
        loop {
            match self.add_checkpoint(job, &new, &weights, &config, control).await {
                Ok(()) => return,
                Err(error) if attempt < PUBLISH_ATTEMPTS && control.raised() != Some(Interrupt::Lost) => {
                    tracing::warn!(job = job.id, step = step.step, "cannot publish a checkpoint yet: {error}");
                    attempt += 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => {
                    tracing::error!(job = job.id, step = step.step, "cannot publish a checkpoint: {error}");
                    let message = format!("The checkpoint of step {} could not be stored", step.step);
                    return self.say(job, "warn", &message, None).await;
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
        weights: &Bytes,
        config: &Bytes,
        control: &Control,
    ) -> Result<()> {
        self.store.blobs.put(&weights_key(&new.adapter), weights.clone()).await?;
        self.store.blobs.put(&config_key(&new.adapter), config.clone()).await?;
        let Some(dropped) = self.queue.add_checkpoint(job, new).await? else {
            control.raise(Interrupt::Lost);
            return Ok(());
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
/// the base. The name follows from the job alone, so that every attempt makes the same one.
pub(super) fn model_name(job: &Job, base: &str) -> String {
    let base = job.spec.alias.as_deref().unwrap_or(base);
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
