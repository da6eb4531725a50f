//! What a run is expected to take, and what it took: the figures that the training thread makes for the worker to tell.
//! Called by [`super::training`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::datasets::{DatasetReport, ExampleStore, TokenizedExample};
use crate::jobs::Result;
use crate::model::BaseModel;
use crate::train::calibration::{self, calibrate};
use crate::train::estimate::{Estimate, Evaluated, TrainingMemory, TrainingRate, first_epoch_work, later_work};
use crate::train::hyperparameters::Hyperparameters;
use crate::train::trainer::BeforeMicroStep;
use crate::train::{HeldOut, Recomputation, StepReport, Trainer};

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
    /// A token of the first epoch takes the work of so many: more than one where it is read more than once.
    first_epoch: f64,
    /// A token of any other epoch.
    later: f64,
}

/// What a finished attempt took.
#[derive(Debug)]
pub(super) struct RunAccount {
    /// What was expected.
    pub forecast: Forecast,
    /// From the first step to the last, evaluations included.
    pub seconds: f64,
    /// Tokens of the steps.
    pub tokens: usize,
    /// The steps' work in tokens that are trained on, and the time that it took.
    pub rate: TrainingRate,
    /// The most memory that the process had resident meanwhile.
    pub peak_bytes: Option<u64>,
}

/// What a forecast is made of.
pub(super) struct ForecastInputs<'a> {
    pub model: &'a BaseModel,
    pub trainer: &'a Trainer,
    pub resolved: &'a Hyperparameters,
    pub training: &'a DatasetReport,
    pub validation: Option<&'a HeldOut>,
    /// Some of the examples.
    pub samples: &'a [TokenizedExample],
    /// What is known of this machine and model, by setup.
    pub rates: &'a BTreeMap<String, TrainingRate>,
    /// What the run takes of memory.
    pub memory: TrainingMemory,
}

impl Forecast {
    /// The forecast of a run that is about to begin. Measures the machine where its rate is not known; `before` is asked
    /// before each piece of that.
    pub(super) fn new(grounds: &ForecastInputs<'_>, before: BeforeMicroStep<'_>) -> Result<Self> {
        let ForecastInputs { model, trainer, training, .. } = *grounds;
        let setup = setup(model, trainer, grounds.resolved);
        let (rate, calibrated) = if let Some(known) = grounds.rates.get(&setup) {
            (*known, None)
        } else {
            let busy = Busy::enter();
            let step_tokens = training.tokens as f64 / trainer.steps_per_epoch() as f64;
            let scale = trainer.settings().scale;
            let texts = |sample: &TokenizedExample| -> Vec<_> { sample.texts().map(whole).collect() };
            let texts = scale.map(|_| grounds.samples.iter().flat_map(texts).collect::<Vec<_>>());
            let samples = texts.as_deref().unwrap_or(grounds.samples);
            let (adapter, way) = (trainer.adapter()?, trainer.recomputation());
            let rate = calibrate(model.decoder.for_training(), &adapter, samples, scale, step_tokens, way, before)?;
            (rate, busy.alone.then_some(rate))
        };
        let (settings, steps) = (trainer.settings(), trainer.total_steps());
        let share = steps.saturating_sub(trainer.step_number()) as f64 / steps.max(1) as f64;
        let evaluated = Evaluated {
            once: grounds.validation.map_or(0, HeldOut::tokens),
            in_all: grounds.validation.map_or(0, |held_out| held_out.tokens_read(trainer)),
        };
        let estimate = Estimate::new(settings, steps, training, evaluated, rate, grounds.memory);
        let (first_epoch, later) = (first_epoch_work(settings, training), later_work(settings, training));
        Ok(Self { estimate, share, setup, calibrated, first_epoch, later })
    }

    /// The work of a step, in tokens that are trained on.
    pub(super) fn work_of(&self, step: &StepReport, steps_per_epoch: usize) -> f64 {
        step.tokens as f64 * if step.step <= steps_per_epoch { self.first_epoch } else { self.later }
    }

    /// Seconds that this attempt should take.
    pub(super) fn seconds(&self) -> f64 {
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
    pub(super) fn enter() -> Self {
        Self { alone: BUSY.fetch_add(1, Ordering::Relaxed) == 0 }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A text of a pair as an example of its own, all of which is read.
fn whole(text: &[u32]) -> TokenizedExample {
    TokenizedExample { tokens: text.to_vec(), weights: vec![1.0; text.len()] }
}

/// What a rate depends on beside machine and model: the program, where and how the weights are held, the adapter's shape, its
/// dropout, whether vectors are compared in place of words, and what is computed again.
fn setup(model: &BaseModel, trainer: &Trainer, resolved: &Hyperparameters) -> String {
    let device = if model.decoder.device().is_cpu() { "cpu" } else { "gpu" };
    let (version, bytes) = (env!("CARGO_PKG_VERSION"), model.decoder.weight_bytes());
    let (parameters, rank) = (trainer.parameter_count(), resolved.rank.unwrap_or_default());
    let dropout = if resolved.lora_dropout.unwrap_or_default() > 0.0 { ", dropout" } else { "" };
    let vectors = if resolved.scale.is_some() { ", vectors" } else { "" };
    let again = match trainer.recomputation() {
        Recomputation::None => String::new(),
        way => format!(", recomputation {}", way.name()),
    };
    format!(
        "attune {version}, {device}, {bytes} bytes of weights, {parameters} numbers of rank \
         {rank}{dropout}{vectors}{again}"
    )
}

/// Some examples from all over the file, to measure with.
pub(super) fn samples(examples: &ExampleStore) -> Result<Vec<TokenizedExample>> {
    let every = examples.len().div_ceil(calibration::SAMPLES).max(1);
    (0..examples.len()).step_by(every).map(|index| Ok(examples.get(index)?)).collect()
}
