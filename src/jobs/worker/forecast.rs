//! What a run is expected to take, and what it took: the figures that the training thread makes for the worker to tell.
//! Called by [`super::training`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Result;
use crate::datasets::{DatasetReport, TokenizedExample};
use crate::jobs::Hyperparameters;
use crate::model::BaseModel;
use crate::train::Trainer;
use crate::train::calibration::{self, calibrate};
use crate::train::estimate::{Estimate, TrainingMemory, TrainingRate};
use crate::train::trainer::BeforeMicroStep;

/// What is expected.
#[derive(Debug, Clone)]
pub(super) struct Forecast {
    /// Of the whole run.
    pub estimate: Estimate,
    /// Share of the run that this attempt has before it.
    pub share: f64,
    /// What the rate depends on beside machine and model.
    pub setup: String,
    /// The rate that was measured, where none was known and nothing disturbed it.
    pub calibrated: Option<TrainingRate>,
}

/// What a finished attempt took.
#[derive(Debug)]
pub(super) struct Account {
    /// What was expected.
    pub forecast: Forecast,
    /// From the first step to the last, evaluations included.
    pub seconds: f64,
    /// Tokens of the steps, and the time that these took.
    pub rate: TrainingRate,
    /// The most memory that the process had resident meanwhile.
    pub peak_bytes: Option<u64>,
}

/// What a forecast is made of.
pub(super) struct Grounds<'a> {
    pub model: &'a BaseModel,
    pub trainer: &'a Trainer,
    pub resolved: &'a Hyperparameters,
    pub training: &'a DatasetReport,
    pub validation: Option<&'a DatasetReport>,
    /// Some of the examples.
    pub samples: &'a [TokenizedExample],
    /// What is known of this machine and model, by setup.
    pub rates: &'a BTreeMap<String, TrainingRate>,
    /// Memory of the process before the run.
    pub process_bytes: Option<u64>,
}

impl Forecast {
    /// The forecast of a run that is about to begin. Measures the machine where its rate is not known; `before` is asked
    /// before each piece of that.
    pub fn new(grounds: &Grounds<'_>, before: BeforeMicroStep<'_>) -> Result<Self> {
        let Grounds { model, trainer, training, .. } = *grounds;
        let setup = setup(model, grounds.resolved);
        let (rate, calibrated) = if let Some(known) = grounds.rates.get(&setup) {
            (*known, None)
        } else {
            let busy = Busy::enter();
            let step_tokens = training.tokens as f64 / trainer.steps_per_epoch() as f64;
            let rate = calibrate(&model.decoder, &trainer.adapter()?, grounds.samples, step_tokens, before)?;
            (rate, busy.alone.then_some(rate))
        };
        let (settings, steps) = (trainer.settings(), trainer.total_steps());
        let memory = TrainingMemory::new(model, trainer.parameter_count(), settings, training, grounds.process_bytes);
        let share = steps.saturating_sub(trainer.step_number()) as f64 / steps.max(1) as f64;
        let estimate = Estimate::new(settings, steps, training, grounds.validation, rate, memory);
        Ok(Self { estimate, share, setup, calibrated })
    }

    /// Seconds that this attempt should take.
    pub fn seconds(&self) -> f64 {
        self.share * self.estimate.seconds
    }
}

/// Counts what trains and calibrates in this process: a calibration beside another one, or beside a job, is slower than the
/// machine is.
pub(super) struct Busy {
    /// Nothing else did when it began.
    alone: bool,
}

static BUSY: AtomicUsize = AtomicUsize::new(0);

impl Busy {
    /// Counts until it drops.
    pub fn enter() -> Self {
        Self { alone: BUSY.fetch_add(1, Ordering::Relaxed) == 0 }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a rate depends on beside machine and model: the program, where and how the weights are held, the adapter's rank.
fn setup(model: &BaseModel, resolved: &Hyperparameters) -> String {
    let device = if model.decoder.device().is_cpu() { "cpu" } else { "gpu" };
    let (version, bytes) = (env!("CARGO_PKG_VERSION"), model.decoder.weight_bytes());
    format!("attune {version}, {device}, {bytes} bytes of weights, rank {}", resolved.rank.unwrap_or_default())
}

/// Some examples from all over the file, to measure with.
pub(super) fn samples(examples: &[TokenizedExample]) -> Vec<TokenizedExample> {
    let every = examples.len().div_ceil(calibration::SAMPLES).max(1);
    examples.iter().step_by(every).cloned().collect()
}
