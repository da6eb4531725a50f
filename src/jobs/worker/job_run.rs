//! Runs one job from claim to end: fetches its inputs, lets a thread train, writes events and checkpoints meanwhile,
//! then publishes the model, or writes why there is none. Files of a job that ends without a model are deleted, but for
//! its checkpoints that are models. Called by the claim loop.
//!
//! A worker may stand still at any point for longer than its lease. So it writes to names that no other attempt uses,
//! or that tell the content; and it deletes only what the database has just said to be of no use for ever.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::checkpoints::{KeptStates, model_name};
use super::inputs::{Inputs, Surroundings};
use super::lease::{Control, Interrupt, keep};
use super::progress::{Progress, Trained};
use super::pulse::{RunningJob, count_attempt};
use super::report::{Speed, seconds_from_now};
use super::storage::{AdapterFiles, Content};
use super::training::train;
use super::{LEASE, Worker};
use crate::jobs::queue::{Outcome, ResultFile, TrainedModel};
use crate::jobs::worker::results;
use crate::jobs::{Error, Result};
use crate::jobs::{Job, JobApi, JobSpec, JobStatus};
use crate::store::files::new_file_id;
use crate::system;
use crate::train::hyperparameters::Hyperparameters;

/// Most reports that wait for the database before training waits, too.
const PROGRESS_REPORTS: usize = 16;
/// Model that waits for its row, and the content of its result file.
struct StoredModel {
    model: TrainedModel,
    result: Bytes,
}

/// Attempts to write a job's end while the database does not answer, a second apart: less than a lease in total.
const FINISH_ATTEMPTS: u32 = 20;

impl Worker {
    /// Runs a claimed job to its end or to the loss of its lease.
    pub(super) async fn run_job(&self, job: Job, shutdown: &CancellationToken) {
        tracing::info!(job = job.id, attempt = job.attempt, "job claimed");
        let _running = RunningJob::enter();
        let control = Arc::new(Control::with_pulse(self.pulse.clone()));
        let keeper = keep(self.queue.clone(), job.clone(), Arc::clone(&control), shutdown.clone());
        let keeper = AbortOnDropHandle::new(tokio::spawn(keeper));
        let trained = Box::pin(self.train(&job, &control)).await;
        let stored = match trained {
            Ok((base, trained)) => {
                self.tell_answers(&job, &base, &trained.adapter, &trained.questions, &control).await;
                self.store_model(&job, base, trained, &control).await
            }
            Err(error) => Err(error),
        };
        let (outcome, stored) = match (control.raised(), stored) {
            (Some(Interrupt::Lost), stored) => {
                tracing::warn!(job = job.id, "the lease is lost; another worker goes on");
                count_attempt("lost");
                if let Ok(stored) = stored {
                    self.discard(&job, &stored).await;
                }
                return;
            }
            (_, Ok(stored)) => (Outcome::Succeeded(stored.model.clone()), Some(stored)),
            (Some(Interrupt::Shutdown), Err(Error::Cancelled)) => (Outcome::Released, None),
            (Some(_), Err(Error::Cancelled)) => (Outcome::Stopped, None),
            (_, Err(error)) => (self.failure(&job, &error), None),
        };
        self.end(&job, outcome, stored).await;
        drop(keeper);
    }

    /// Writes how the job ended, and deletes the files that nobody needs any more.
    async fn end(&self, job: &Job, outcome: Outcome, stored: Option<StoredModel>) {
        match self.finish(job, &outcome).await {
            Ok(Some(ended)) => {
                tracing::info!(job = job.id, status = ?ended.status, "job ended");
                count_attempt(ended.status.word());
                if let Err(error) = self.queue.remove_useless_states(job).await {
                    tracing::warn!(job = job.id, "cannot remove the states of the job: {error}");
                }
                match stored {
                    Some(stored) if ended.status == JobStatus::Succeeded => self.keep_result(job, &stored).await,
                    Some(stored) => self.discard(job, &stored).await,
                    None => {}
                }
            }
            Ok(None) => {
                tracing::warn!(job = job.id, "the lease was lost before the end was written");
                count_attempt("lost");
                if let Some(stored) = stored {
                    self.discard(job, &stored).await;
                }
            }
            Err(error) => tracing::error!(job = job.id, "cannot write the job's end, it will run again: {error}"),
        }
    }

    /// Calls [`Queue::finish`](crate::jobs::queue::Queue::finish), again and again while the database does not answer.
    /// If an answer was lost on its way, the next call finds a lost lease; then the row tells whether the job has
    /// ended.
    async fn finish(&self, job: &Job, outcome: &Outcome) -> Result<Option<Job>> {
        let mut attempt = 1;
        loop {
            self.pulse.beat();
            match self.queue.finish(job, outcome.clone()).await {
                Ok(None) if attempt > 1 => {
                    let row = self.queue.job(&job.organization, job.api, &job.id).await?;
                    return Ok(Some(row).filter(|row| row.attempt == job.attempt && row.status != JobStatus::Running));
                }
                Err(error) if error.is_transient() && attempt < FINISH_ATTEMPTS => {
                    tracing::warn!(job = job.id, "cannot write the job's end yet: {error}");
                    attempt += 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                answer => return answer,
            }
        }
    }

    /// Fetches the job's inputs and trains. Returns the base model's id and the result.
    async fn train(&self, job: &Job, control: &Arc<Control>) -> Result<(String, Trained)> {
        let (progress, reports) = mpsc::channel(PROGRESS_REPORTS);
        let (base, inputs) = self.gather(&job.organization, job.api, &job.spec, control, progress).await?;
        let checkpoint = self.last_checkpoint(job).await?;
        // The present of every attempt, so that all of them read the same examples.
        let now = job.created_at;
        let inputs = Inputs { resolved: job.resolved.clone(), checkpoint, now, ..inputs };
        let training = tokio::task::spawn_blocking(move || train(inputs));
        Box::pin(self.follow(job, &base, reports, control)).await;
        let trained = training.await.map_err(|error| Error::Internal(format!("the training thread: {error}")))??;
        self.tell_account(job, &base, &trained.account).await;
        Ok((base, trained))
    }

    /// Fetches the inputs of a job's first attempt. Returns the base model's id and the inputs.
    pub(super) async fn gather(
        &self,
        organization: &str,
        api: JobApi,
        spec: &JobSpec,
        control: &Arc<Control>,
        progress: mpsc::Sender<Progress>,
    ) -> Result<(String, Inputs)> {
        let (base, initial) = if self.catalog.get(&spec.model).is_ok() {
            (spec.model.clone(), None)
        } else {
            let (base, adapter) = self.registry.original(organization, &spec.model).await?;
            (base, Some(adapter))
        };
        let model = Arc::clone(&self.catalog.get(&base)?.model);
        let training_file = self.fetch(organization, &spec.training_file).await?;
        let validation_file = match &spec.validation_file {
            Some(id) => Some(self.fetch(organization, id).await?),
            None => None,
        };
        let surroundings = Surroundings {
            rates: self.store.training_rates(&system::name(), &base).await?,
            memory: self.memory,
            scratch: self.store.scratch.to_path_buf(),
            priority: Arc::clone(&self.priority),
            control: Arc::clone(control),
            progress,
        };
        let inputs = Inputs::new(model, api, spec, (training_file, validation_file), surroundings);
        Ok((base, Inputs { initial, classification: spec.classification.clone(), ..inputs }))
    }

    /// Opens an uploaded file of the organisation.
    async fn fetch(&self, organization: &str, id: &str) -> Result<std::fs::File> {
        let file = self.store.file(organization, id).await?;
        Ok(self.store.open_file(&file).await?)
    }

    /// Writes down what the training thread reports, until it ends.
    async fn follow(&self, job: &Job, base: &str, mut reports: mpsc::Receiver<Progress>, control: &Control) {
        let begin = tokio::time::Instant::now();
        let mut resolved = Hyperparameters::default();
        let mut kept = KeptStates::default();
        let mut all_published = true;
        while let Some(progress) = reports.recv().await {
            self.pulse.beat();
            // The thread notices as well; reports that it sends until then are not written.
            if control.raised() == Some(Interrupt::Lost) {
                continue;
            }
            match progress {
                Progress::Planned(plan) => {
                    resolved = plan.resolved.clone();
                    self.tell_plan(job, base, &plan).await;
                }
                Progress::Before(measured) => self.tell_before(job, &measured).await,
                Progress::Mined { negatives, pairs, of } => {
                    let message =
                        format!("Found {negatives} hard negatives in the training file, for {pairs} of {of} pairs");
                    let data = json!({"hard_negatives": negatives, "pairs": pairs});
                    self.say(job, "info", &message, Some(data)).await;
                }
                Progress::OrderedBefore(quality) => self.tell_ordered_before(job, &quality).await,
                Progress::NotCounted(why) => {
                    self.say(job, "info", &format!("Right answers are not counted: {why}"), None).await;
                }
                Progress::Measured(measured) => self.tell_measured(job, &measured).await,
                Progress::Step { figures, tokens_per_second, remaining } => {
                    let finish = seconds_from_now(remaining.as_secs_f64());
                    let speed = Speed { tokens_per_second, elapsed: begin.elapsed(), remaining };
                    self.tell_step(job, &figures, speed).await;
                    if let Err(error) = self.queue.record_plan(job, &resolved, Some(finish)).await {
                        tracing::warn!(job = job.id, "cannot write the expected end: {error}");
                    }
                }
                Progress::Classified { step, figures } => self.tell_classes(job, step, &figures).await,
                Progress::Epoch { done, of } => {
                    self.say(job, "info", &format!("Completed epoch {done}/{of}"), None).await;
                }
                Progress::Model { figures, files } => {
                    all_published &= self.publish_checkpoint(job, base, &figures, files, control).await;
                }
                // A later state than that of a model which is yet to be made would leave it out for good.
                Progress::Checkpoint { .. } if !all_published => {}
                Progress::Checkpoint { step, state } => {
                    self.keep_state(job, (step, state), &mut kept, control).await;
                }
            }
        }
    }

    /// Stores adapter and result file, and puts the adapter into memory, ready to serve once the row is written. Waits
    /// for storage.
    async fn store_model(&self, job: &Job, base: String, trained: Trained, control: &Control) -> Result<StoredModel> {
        // A fresh lease covers the rest, which takes less time than to pause here and to go on later.
        control.hear(self.queue.heartbeat(job, LEASE, None).await?.as_ref());
        if matches!(control.raised(), Some(Interrupt::Cancel | Interrupt::Lost)) {
            return Err(Error::Cancelled);
        }
        self.tell_end(job, &trained).await;
        self.tell_best(job, model_name(job, &base), &trained.standings).await;
        let Trained { files, adapter, tokens, result_file, .. } = trained;
        self.store_adapter(job, &AdapterFiles::from(files), control).await?;
        let (id, result) = (new_file_id(), Bytes::from(result_file));
        self.write(job, "the result file", &Content::File(&id, &result), control).await?;
        let filename = results::file_name(job.api).into();
        let model = TrainedModel {
            model: model_name(job, &base),
            base,
            adapter: adapter.id.clone(),
            trained_tokens: tokens,
            result_files: vec![ResultFile { id, filename, bytes: result.len() as i64 }],
        };
        self.registry.publish(&job.organization, &model.model, &model.base, adapter);
        Ok(StoredModel { model, result })
    }

    /// Looks for the result file once its row is written: a sweep that took it for one without a row has looked for the
    /// row after the file was away, so one of the two sees the other.
    async fn keep_result(&self, job: &Job, stored: &StoredModel) {
        for file in &stored.model.result_files {
            let kept = match self.store.has_content(&file.id).await {
                Ok(true) => Ok(()),
                _ => self.store.put_content(&file.id, stored.result.clone()).await,
            };
            if let Err(error) = kept {
                tracing::error!(job = job.id, file = file.id, "the result file may be missing: {error}");
            }
        }
    }

    /// Takes back a model that did not come to be, and deletes its result file, whose row can only be written by the
    /// statement that has just failed for good. Checkpoints are models already and stay, as do the adapter's files:
    /// another attempt makes the very same ones, and files without a row are swept up.
    async fn discard(&self, job: &Job, stored: &StoredModel) {
        self.registry.forget(&job.organization, &stored.model.model);
        for file in &stored.model.result_files {
            if let Err(error) = self.store.remove_content(&file.id).await {
                tracing::warn!(job = job.id, "cannot delete a result file: {error}");
            }
        }
    }
}
