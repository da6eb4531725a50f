//! Claims jobs and runs them: file to tokens, tokens to adapter, adapter to model. Runs inside `serve`, or alone.
//!
//! This file is the claim loop. [`job_run`] is one job from claim to end, and [`training`] its part on a thread of its
//! own. [`checkpoints`] stores the states of a running job, [`storage`] waits while a disk is full, [`report`] writes
//! its events, [`counts`] those of right answers, [`answers`] asks the models at its end, [`best`] names the best of
//! its adapters, [`lease`] keeps the claim alive and brings requests to stop, [`pulse`] tells whether the worker turns.
//! [`estimate`] tells the time, memory and cost of a job, with the figures of [`forecast`]; [`examination`] looks at its
//! files alone.

mod answers;
mod best;
mod cancellable_reader;
mod checkpoints;
mod clocks;
mod compatibility;
mod counts;
pub mod estimate;
pub mod examination;
mod forecast;
mod inputs;
mod job_run;
mod lease;
mod meter;
mod progress;
pub mod pulse;
mod quality;
mod report;
mod results;
mod storage;
mod training;
mod warnings;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::pulse::Pulse;
use crate::adapters::registry::AdapterRegistry;
use crate::engine::catalog::Catalog;
use crate::engine::priority::Priority;
use crate::jobs::cost::Pricing;
use crate::jobs::queue::Queue;
use crate::jobs::{Blame, Error, JobFault, JobSpec};
use crate::store::Store;
use crate::train::memory_bounds::MemoryBounds;

/// Time that a claim lasts without a heartbeat.
const LEASE: Duration = Duration::from_mins(1);
/// Time between looks for jobs without a notification.
const POLL: Duration = Duration::from_secs(5);
/// Time between searches for jobs of lost workers.
const REAP: Duration = Duration::from_secs(10);

/// Worker that trains one job at a time.
#[derive(Clone)]
pub struct Worker {
    /// Queue that jobs are claimed from.
    pub queue: Queue,
    /// Files and adapters.
    pub store: Store,
    /// Base models.
    pub catalog: Catalog,
    /// Registry that serves finished adapters as models.
    pub registry: AdapterRegistry,
    /// Priority of requests over training.
    pub priority: Arc<Priority>,
    /// Price of training.
    pub pricing: Pricing,
    /// Bounds of the memory that training takes.
    pub memory: MemoryBounds,
    /// Function that words an error for the owner of the job that it ended, and says who is to blame; `api` has the table.
    pub describe_fault: fn(&Error, &JobSpec) -> (JobFault, Blame),
    /// Time of its last sign of life.
    pub pulse: Pulse,
}

impl Worker {
    /// Runs until `shutdown`; then the running job is checkpointed and released.
    pub async fn run(self, shutdown: CancellationToken) {
        pulse::describe();
        tokio::join!(self.claim_jobs(&shutdown), self.reap_jobs(&shutdown));
    }

    async fn claim_jobs(&self, shutdown: &CancellationToken) {
        let name = format!("{}-{}", std::process::id(), Uuid::new_v4().simple());
        let mut changes = self.queue.changes();
        while !shutdown.is_cancelled() {
            self.pulse.beat();
            match self.queue.claim(&name, LEASE).await {
                Ok(Some(job)) => {
                    let id = job.id.clone();
                    // A job that panics must not end the worker: its lease runs out, and it fails after some attempts.
                    if AssertUnwindSafe(Box::pin(self.run_job(job, shutdown))).catch_unwind().await.is_err() {
                        tracing::error!(job = id, "the job panicked; it is taken back when its lease has run out");
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!("cannot look for jobs: {error}"),
            }
            let woken = async {
                // Notifications missed meanwhile are about jobs that the claim above has seen or will see.
                if changes.recv().await == Err(RecvError::Closed) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(POLL) => {}
                () = woken => {}
            }
        }
    }

    async fn reap_jobs(&self, shutdown: &CancellationToken) {
        loop {
            match self.queue.reap().await {
                Ok(0) => {}
                Ok(lost) => tracing::warn!(lost, "took back jobs whose worker stopped answering"),
                Err(error) => tracing::warn!("cannot take back jobs: {error}"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(REAP) => {}
            }
        }
    }
}
