//! Forecasts the time and memory of a run, and accounts for them at its end; the worker writes both into events. Called
//! by [`super::training`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::clocks::{Busy, MachineClocks};
use crate::datasets::{DatasetReport, TokenizedExample};
use crate::engine::priority::Priority;
use crate::jobs::Result;
use crate::model::BaseModel;
use crate::train::calibration::{Calibration, calibrate};
use crate::train::estimate::{Estimate, Evaluated, ForwardPasses, Pace, TrainingMemory, TrainingRate};
use crate::train::hyperparameters::Hyperparameters;
use crate::train::methods::WorkFactors;
use crate::train::{BeforeMicroStep, Heads, HeldOut, Recomputation, StepReport, Trainer};

/// Expected time and memory of a run.
#[derive(Debug, Clone)]
pub(super) struct Forecast {
    /// Estimate of the whole run.
    pub estimate: Estimate,
    /// Share of the run that this attempt has to do, 1 for a first attempt.
    pub share: f64,
    /// Setup that the rate was measured with, see [`setup`].
    pub setup: String,
    /// Rate measured for this forecast, to be kept; `None` if one was known, or if other work disturbed the
    /// measurement.
    pub calibrated: Option<TrainingRate>,
    work: WorkFactors,
}

/// Time and memory of a finished attempt.
#[derive(Debug)]
pub(super) struct RunAccount {
    /// Forecast made before the first step.
    pub forecast: Forecast,
    /// Seconds from the first step to the last, evaluations included.
    pub seconds: f64,
    /// Tokens read in the steps.
    pub tokens: usize,
    /// Work of the steps, in tokens that are trained on, and its seconds; `None` if there was no step.
    pub rate: Option<TrainingRate>,
    /// Most resident memory of the process in bytes; `None` if the system does not tell.
    pub peak_bytes: Option<u64>,
}

/// Inputs of [`Forecast::new`].
pub(super) struct ForecastInputs<'a> {
    pub model: &'a BaseModel,
    pub trainer: &'a Trainer,
    pub resolved: &'a Hyperparameters,
    pub training: &'a DatasetReport,
    pub validation: Option<&'a HeldOut>,
    /// Forward passes of the run beside its training and its evaluations.
    pub passes: &'a [ForwardPasses],
    /// Sample of the examples for [`calibrate`].
    pub samples: &'a [TokenizedExample],
    /// Known rates of this machine and model, by setup.
    pub rates: &'a BTreeMap<String, TrainingRate>,
    /// Memory of the run.
    pub memory: TrainingMemory,
    /// Requests that run beside.
    pub priority: &'a Arc<Priority>,
}

impl Forecast {
    /// Forecasts a run that is about to begin. Measures the machine's rate if it is not known, and calls `before`
    /// before each piece of that work.
    pub(super) fn new(grounds: &ForecastInputs<'_>, before: BeforeMicroStep<'_>) -> Result<Self> {
        let ForecastInputs { model, trainer, training, .. } = *grounds;
        let setup = setup(model, trainer, grounds.resolved);
        let busy = Busy::enter();
        let clocks = MachineClocks::new(model.decoder.device(), Arc::clone(grounds.priority), &busy);
        let (pace, calibrated) = Pace::find(grounds.rates.get(&setup).copied(), &clocks, || {
            let adapter = trainer.adapter()?;
            let wanted = Calibration {
                decoder: model.training_decoder(),
                heads: Heads::of(model),
                adapter: &adapter,
                training: trainer.settings().method,
                step_tokens: training.tokens as f64 / trainer.steps_per_epoch() as f64,
                recomputation: trainer.recomputation(),
                clocks: &clocks,
            };
            calibrate(&wanted, grounds.samples, before)
        })?;
        let (settings, steps) = (trainer.settings(), trainer.total_steps());
        let share = steps.saturating_sub(trainer.step_number()) as f64 / steps.max(1) as f64;
        let evaluated = Evaluated {
            once: grounds.validation.map_or(0, HeldOut::tokens),
            in_all: grounds.validation.map_or(0, |held_out| held_out.tokens_read(trainer)),
        };
        let evaluated = evaluated.and(grounds.passes);
        let estimate = Estimate::new(settings, steps, training, evaluated, pace, grounds.memory);
        let work = settings.method.work(settings, training);
        let calibrated = calibrated.filter(|_| busy.is_alone());
        Ok(Self { estimate, share, setup, calibrated, work })
    }

    /// Returns the work of a step, in tokens that are trained on.
    pub(super) fn work_of(&self, step: &StepReport, steps_per_epoch: usize) -> f64 {
        step.tokens as f64 * if step.step <= steps_per_epoch { self.work.first_epoch } else { self.work.later }
    }

    /// Returns the seconds that this attempt should take on a machine with nothing else to do.
    pub(super) fn seconds(&self) -> f64 {
        self.share * self.estimate.seconds
    }

    /// Returns the fewest and the most seconds that this attempt should take.
    pub(super) fn bounds(&self) -> [f64; 2] {
        [self.share * self.estimate.low, self.share * self.estimate.high]
    }

    /// Returns the seconds that this attempt should take at the present load.
    pub(super) fn present_seconds(&self) -> f64 {
        self.share * self.estimate.present
    }
}

/// Describes what a rate depends on beside machine and model: the program's version, device and type of the weights,
/// the adapter's shape, its dropout, whether vectors are compared in place of words, and how much is recomputed.
fn setup(model: &BaseModel, trainer: &Trainer, resolved: &Hyperparameters) -> String {
    let device = if model.decoder.device().is_cpu() { "cpu" } else { "gpu" };
    let (version, bytes) = (env!("CARGO_PKG_VERSION"), model.decoder.weight_bytes());
    let (parameters, rank) = (trainer.parameter_count(), resolved.rank.unwrap_or_default());
    let dropout = if resolved.lora_dropout.unwrap_or_default() > 0.0 { ", dropout" } else { "" };
    let vectors = if trainer.settings().method.labels().of_texts { ", vectors" } else { "" };
    let again = match trainer.recomputation() {
        Recomputation::None => String::new(),
        way => format!(", recomputation {}", way.name()),
    };
    format!(
        "attune {version}, {device}, {bytes} bytes of weights, {parameters} numbers of rank \
         {rank}{dropout}{vectors}{again}"
    )
}
