//! Writes the files that a job makes, and waits with growing pauses while storage refuses them: a full disk must not
//! cost what hours of training made. Called by [`super::job_run`] and [`super::checkpoints`].

use std::time::Duration;

use bytes::Bytes;

use super::Worker;
use super::lease::{Control, Interrupt};
use crate::adapters::peft::PeftFiles;
use crate::adapters::registry::{config_key, weights_key};
use crate::jobs::queue::STORAGE_WAIT;
use crate::jobs::{Error, Job, Result};

/// Pause before the second try; each later one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// Content to be written.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// Blob under this key.
    Blob(String, &'a Bytes),
    /// Content of a file whose row is yet to come, by its id.
    File(&'a str, &'a Bytes),
}

/// Files of an adapter that can be written again and again.
#[derive(Debug)]
pub(super) struct AdapterFiles {
    /// SHA-256 of the adapter.
    pub id: String,
    weights: Bytes,
    config: Bytes,
}

impl From<PeftFiles> for AdapterFiles {
    fn from(files: PeftFiles) -> Self {
        Self { id: files.id(), weights: files.weights.into(), config: files.config.into() }
    }
}

impl Worker {
    /// Stores an adapter's files, which nobody removes from now on until the attempt has ended or named them. Waits for
    /// storage. [`Error::Cancelled`] if the lease is lost, or if the job is to stop and storage is still away.
    pub(super) async fn store_adapter(&self, job: &Job, files: &AdapterFiles, control: &Control) -> Result<()> {
        if !self.queue.hold_adapter(job, &files.id).await? {
            control.raise(Interrupt::Lost);
            return Err(Error::Cancelled);
        }
        for (key, content) in [(weights_key(&files.id), &files.weights), (config_key(&files.id), &files.config)] {
            self.write(job, "the adapter", &Content::Blob(key, content), control).await?;
        }
        Ok(())
    }

    /// Writes `content`, which the client knows as `what`. Tries again while storage refuses it, until the job has
    /// waited for [`STORAGE_WAIT`], which is the error then, or must stop ([`Error::Cancelled`]).
    pub(super) async fn write(&self, job: &Job, what: &str, content: &Content<'_>, control: &Control) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            let written = match content {
                Content::Blob(key, content) => self.store.blobs.put_new(key, Bytes::clone(content)).await,
                Content::File(id, content) => self.store.put_content(id, Bytes::clone(content)).await,
            };
            let Err(error) = written.map_err(Error::from) else { break };
            let Some(trouble) = error.storage_trouble() else { return Err(error) };
            if !self.may_wait(job, control).await {
                return Err(error);
            }
            if pause == FIRST_PAUSE {
                tracing::error!(job = job.id, "the job waits for storage: {error}");
                let hours = STORAGE_WAIT.as_secs() / 3600;
                let message = format!(
                    "The server cannot store {what}: {trouble}. It is kept in memory and stored once that is possible, \
                     for up to {hours} hours"
                );
                self.say(job, "warn", &message, None).await;
            }
            control.rest(pause).await;
            if control.raised().is_some() {
                return Err(Error::Cancelled);
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
        if pause > FIRST_PAUSE {
            self.say(job, "info", &format!("The server has stored {what}"), None).await;
        }
        Ok(())
    }

    /// Notes that the job waits; returns whether it may go on to wait.
    async fn may_wait(&self, job: &Job, control: &Control) -> bool {
        match self.queue.wait_for_storage(job).await {
            Ok(Some(waiting)) => waiting < STORAGE_WAIT,
            Ok(None) => {
                control.raise(Interrupt::Lost);
                true
            }
            // The lease tells whether the job goes on without its database.
            Err(error) => {
                tracing::warn!(job = job.id, "cannot note that the job waits: {error}");
                true
            }
        }
    }
}
