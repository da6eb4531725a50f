//! Estimates the time, memory and cost of a job without creating it: reads the file, decides the settings and measures
//! the machine's rate if it is not known, as the worker does before a job's first step. `api` asks for uploaded files,
//! the command line for files on the disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use attune_train::FileFault;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::inputs::{Inputs, Surroundings};
use super::lease::{Control, Interrupt};
use super::progress::TrainingPlan;
use super::training::plan;
use super::warnings::warnings;
use crate::datasets::Purpose;
use crate::engine::priority::Priority;
use crate::jobs::cost::{Cost, Pricing};
use crate::jobs::{Error, Result};
use crate::jobs::{JobApi, JobSpec};
use crate::model::BaseModel;
use crate::train::estimate::{Estimate, TrainingRate};
use crate::train::hyperparameters::Hyperparameters;
use crate::train::memory_bounds::MemoryBounds;

/// Longest time that an estimate waits for others before it is refused. Each takes seconds, for large files minutes.
pub(super) const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Longest time that an estimate may take: about that of tokenizing half a gigabyte of text.
pub(super) const LONGEST: Duration = Duration::from_mins(10);

/// Files that are looked at at the same time.
const LOOKS: usize = 2;

/// Settings, time, memory and cost of a job that would be created.
#[derive(Debug, Clone)]
pub struct JobEstimate {
    /// Id of the base model.
    pub base: String,
    /// Settings, each `auto` replaced by a number.
    pub resolved: Hyperparameters,
    /// Work, time and memory.
    pub estimate: Estimate,
    /// Cost by the operator's prices.
    pub cost: Cost,
    /// Cost if it takes the fewest and the most seconds.
    pub cost_bounds: [Cost; 2],
    /// Warnings about the files for their owner.
    pub warnings: Vec<String>,
}

/// Estimator of jobs, one at a time: each takes the whole machine. [`examination`](super::examination) looks at their
/// files alone. Cheap to clone.
#[derive(Clone)]
pub struct Estimator {
    pub(super) worker: Worker,
    turn: Arc<Semaphore>,
    /// Turns of those that look at files.
    pub(super) looks: Arc<Semaphore>,
}

impl Estimator {
    /// Makes an estimator with the files, models and prices of `worker`.
    pub fn new(worker: Worker) -> Self {
        Self { worker, turn: Arc::new(Semaphore::new(1)), looks: Arc::new(Semaphore::new(LOOKS)) }
    }

    /// Estimates what the organisation's job would take. It stops if the caller goes away, and on `shutdown`.
    pub async fn estimate(
        &self,
        organization: &str,
        spec: &JobSpec,
        shutdown: &CancellationToken,
    ) -> Result<JobEstimate> {
        let busy = Error::Overloaded { what: "other estimates are being made", retry_after: Duration::from_secs(10) };
        let turn = tokio::time::timeout(LONGEST_WAIT, Arc::clone(&self.turn).acquire_owned()).await;
        let turn = turn.map_err(|_| busy)?.map_err(|error| Error::Internal(format!("estimates: {error}")))?;
        let control = Arc::new(Control::default());
        let _stopper = Stopper(Arc::clone(&control));
        let (progress, _) = mpsc::channel(1);
        let (base, inputs) = self.worker.gather(organization, JobApi::FineTuningJobs, spec, &control, progress).await?;
        let planning = tokio::task::spawn_blocking(move || {
            // The turn lasts as long as the thread, which does not end at once if the caller goes away.
            let _turn = turn;
            plan(inputs)
        });
        let plan = tokio::select! {
            plan = planning => plan.map_err(|error| Error::Internal(format!("the estimating thread: {error}")))??,
            () = tokio::time::sleep(LONGEST) => {
                let message = format!(
                    "The file could not be read within {} minutes: create the job, whose first events tell what it takes.",
                    LONGEST.as_secs() / 60
                );
                let (purpose, fault) = (Purpose::Training, FileFault::Content);
                return Err(attune_train::Error::File { purpose, fault, message }.into());
            }
            () = shutdown.cancelled() => return Err(Error::Unavailable("The server is shutting down.")),
        };
        if let Some(rate) = plan.forecast.calibrated {
            self.worker.keep_rate(&base, &plan.forecast.setup, rate).await;
        }
        Ok(JobEstimate::new(base, plan, &self.worker.pricing))
    }
}

/// Guard that cancels the thread's work when the caller is gone.
pub(super) struct Stopper(pub(super) Arc<Control>);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.raise(Interrupt::Cancel);
    }
}

/// Estimates a job on files of this disk. If `rates` has no rate for its setup, measures one and returns it with the
/// setup. `scratch` is a folder for temporary files. Slow: call it off the async threads.
pub fn estimate_files(
    model: Arc<BaseModel>,
    spec: &JobSpec,
    files: (File, Option<File>),
    rates: BTreeMap<String, TrainingRate>,
    pricing: &Pricing,
    memory: MemoryBounds,
    scratch: PathBuf,
) -> Result<(JobEstimate, Option<(String, TrainingRate)>)> {
    let (progress, _) = mpsc::channel(1);
    let base = model.id.clone();
    let surroundings = Surroundings {
        rates,
        memory,
        scratch,
        priority: Arc::new(Priority::default()),
        control: Arc::new(Control::default()),
        progress,
    };
    let plan = plan(Inputs::new(model, JobApi::FineTuningJobs, spec, files, surroundings))?;
    let measured = plan.forecast.calibrated.map(|rate| (plan.forecast.setup.clone(), rate));
    Ok((JobEstimate::new(base, plan, pricing), measured))
}

impl JobEstimate {
    fn new(base: String, plan: TrainingPlan, pricing: &Pricing) -> Self {
        let warnings = warnings(&plan).into_iter().map(|(warning, _)| warning).collect();
        let estimate = plan.forecast.estimate;
        let cost = |seconds| pricing.cost(&base, seconds, estimate.trained_tokens);
        let (cost_bounds, cost) = ([estimate.low, estimate.high].map(cost), cost(estimate.seconds));
        Self { base, resolved: plan.resolved, estimate, cost, cost_bounds, warnings }
    }
}
