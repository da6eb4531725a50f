//! The queue's operations: enqueue, claim, heartbeat, finish, reap, stop, resume. The only writer of a job's status.

use std::time::Duration;

use tokio::sync::broadcast;
use uuid::Uuid;

use crate::Result;
use crate::jobs::{Hyperparameters, Job, JobApi, JobFault, JobSpec};
use crate::store::Store;
use crate::store::files::Page;

/// What a client may ask of a job that is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRequest {
    /// End it for good.
    Cancel,
    /// Stop it until resumed.
    Pause,
}

/// How a claimed job ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Publish the model and finish, in one transaction.
    Succeeded {
        /// The new model's name.
        model: String,
        /// Id of the base model it runs on.
        base: String,
        /// SHA-256 of its adapter.
        adapter: String,
        /// Tokens trained on.
        trained_tokens: i64,
        /// Ids of result files.
        result_files: Vec<String>,
    },
    /// The request's fault; not tried again.
    Failed(JobFault),
    /// Not the request's fault; tried again while attempts are left.
    Retry(JobFault),
    /// Stopped because the client asked; the row knows whether to cancel or pause.
    Stopped,
    /// The worker shuts down; the attempt does not count.
    Released,
}

/// The queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Queue {
    pub(crate) store: Store,
}

impl Queue {
    /// Opens the queue and begins to listen for changes.
    pub async fn open(store: Store) -> Result<Self> {
        let _ = store;
        todo!()
    }

    /// Writes a new job and its first event.
    pub async fn enqueue(&self, organization: &str, api: JobApi, spec: JobSpec) -> Result<Job> {
        let _ = (organization, api, spec);
        todo!()
    }

    /// The organisation's job, or [`crate::Error::NotFound`].
    pub async fn job(&self, organization: &str, api: JobApi, id: &str) -> Result<Job> {
        let _ = (organization, api, id);
        todo!()
    }

    /// A page of the organisation's jobs of one resource, newest first, and whether there are more.
    pub async fn jobs(&self, organization: &str, api: JobApi, page: Page) -> Result<(Vec<Job>, bool)> {
        let _ = (organization, api, page);
        todo!()
    }

    /// Cancels or pauses; [`crate::Error::Conflict`] where the job is past it.
    pub async fn stop(&self, job: &Job, what: StopRequest) -> Result<Job> {
        let _ = (job, what);
        todo!()
    }

    /// Puts a paused job back into the queue.
    pub async fn resume(&self, job: &Job) -> Result<Job> {
        let _ = job;
        todo!()
    }

    /// Claims the next job for `worker`, with a lease.
    pub async fn claim(&self, worker: &str, lease: Duration) -> Result<Option<Job>> {
        let _ = (worker, lease);
        todo!()
    }

    /// Renews the lease and saves the checkpoint; the answer carries a stop request. `None`: the lease is lost.
    pub async fn heartbeat(
        &self,
        job: &Job,
        lease: Duration,
        checkpoint: Option<serde_json::Value>,
    ) -> Result<Option<HeartbeatAnswer>> {
        let _ = (job, lease, checkpoint);
        todo!()
    }

    /// Stores the settings that training uses and the expected end.
    pub async fn record_plan(
        &self,
        job: &Job,
        resolved: &Hyperparameters,
        estimated_finish: Option<i64>,
    ) -> Result<()> {
        let _ = (job, resolved, estimated_finish);
        todo!()
    }

    /// Ends the attempt. `None`: the lease was lost, nothing was written.
    pub async fn finish(&self, job: &Job, outcome: Outcome) -> Result<Option<Job>> {
        let _ = (job, outcome);
        todo!()
    }

    /// Takes back jobs whose lease has run out; returns how many.
    pub async fn reap(&self) -> Result<usize> {
        todo!()
    }

    /// Keys of jobs that changed or got an event, as hints: always read the row again. A lagging receiver re-reads.
    pub fn changes(&self) -> broadcast::Receiver<Uuid> {
        todo!()
    }
}

/// What the queue says to a worker that reports itself alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// The client asked to stop.
    pub stop: Option<StopRequest>,
}
