//! The training loop, one optimizer step at a time: order, pack, micro-steps, clip, update, record.
//!
//! `jobs/worker/training.rs` calls [`Trainer::step`] until it has no more, and saves, stops and evaluates
//! ([`super::evaluation`]) in between. Every step is a function of the state that [`Trainer::save`] writes, so a
//! resumed run is bit-identical to an uninterrupted one on the same machine.

use std::sync::Arc;

use crate::datasets::ExampleStore;
use crate::train::batches::Batches;
use crate::train::checkpoint::{self, RunRecords};
use crate::train::loss_source::{LossSource, SharedDecoder};
use crate::train::methods::{Method, ReferenceLogProbs, RunInputs, StepInputs, StepOutcome, method};
use crate::train::mining::HardNegatives;
use crate::train::parameters::Parameters;
use crate::train::recomputation::Recomputation;
use crate::train::records::{Beginning, Evaluation, StepRecord, StepReport};
use crate::train::settings::TrainSettings;
use crate::train::state::{AdapterState, UpdateScales};
use crate::train::yielding::BeforeMicroStep;
use crate::{Error, Result};
use attune_model::BaseModel;
use attune_model::lora::Adapter;
use attune_support::system::HugePages;

/// A training run.
pub struct Trainer {
    /// The values between layers are large.
    _huge_pages: HugePages,
    pub(super) source: Box<dyn LossSource>,
    pub(super) settings: TrainSettings,
    /// Implementation of the settings' method.
    pub(super) method: Box<dyn Method>,
    examples: ExampleStore,
    /// Hash of everything that determines the run; a checkpoint with another one is refused.
    fingerprint: String,
    pub(super) state: AdapterState,
    /// One entry per step done.
    pub(super) history: Vec<StepRecord>,
    /// Parameters of the lowest validation loss; `None` unless the settings keep the best.
    pub(super) best: Option<Vec<Vec<f32>>>,
    /// Examples of each step.
    batches: Batches,
    /// Adapter that training continues, which is also DPO's reference model; `None` if that is the base model.
    pub(super) beginning: Option<Adapter>,
    /// Figures of the model that training begins with; `None` if they were not measured.
    pub(super) before: Option<Beginning>,
    /// How well the model that training begins with puts the validation file in order; empty if not measured.
    pub(super) quality_before: Vec<f64>,
    /// Hard negatives that were found for the examples, and are among them; `None` if none were searched.
    hard_negatives: Option<HardNegatives>,
    /// DPO: the reference model's log-probabilities of each pair's answers, once computed; empty for other methods.
    reference: Vec<ReferenceLogProbs>,
    recomputation: Recomputation,
}

impl Trainer {
    /// Prepares a run over `examples` that begins from `initial`, or from a new adapter of the settings' shape.
    pub fn new(
        model: Arc<BaseModel>,
        settings: TrainSettings,
        examples: ExampleStore,
        initial: Option<&Adapter>,
    ) -> Result<Self> {
        let parameters = match initial {
            Some(adapter) => Parameters::of(adapter)?,
            None => Parameters::fresh(&model.config, &settings),
        };
        let beginning = initial.map(|adapter| adapter.to_device(model.training_decoder().device())).transpose()?;
        Self::with_source(Box::new(SharedDecoder(model)), settings, examples, parameters, beginning)
    }

    pub(crate) fn with_source(
        source: Box<dyn LossSource>,
        settings: TrainSettings,
        examples: ExampleStore,
        parameters: Parameters,
        beginning: Option<Adapter>,
    ) -> Result<Self> {
        if parameters.places.is_empty() || settings.batch_size == 0 || examples.is_empty() {
            return Err(Error::Internal("a run needs an adapter with layers and batches with examples".into()));
        }
        let method = method(settings.method);
        let asked = if method.asks_reference() { examples.len() / method.width() } else { 0 };
        Ok(Self {
            _huge_pages: HugePages::ask(),
            fingerprint: checkpoint::fingerprint(
                &settings,
                examples.digest(),
                beginning.as_ref().map(|adapter| adapter.id.as_str()),
            )?,
            state: AdapterState::new(parameters, settings.adam, source.kernels(), source.dtype())?,
            batches: method.batches(&settings, &examples)?,
            reference: vec![None; asked],
            method,
            history: Vec::new(),
            best: None,
            before: None,
            quality_before: Vec::new(),
            hard_negatives: None,
            source,
            settings,
            examples,
            beginning,
            recomputation: Recomputation::None,
        })
    }

    /// Sets which activations the backward pass recomputes to save memory. It changes no bit of the run, so it may
    /// differ from attempt to attempt.
    pub fn recompute(&mut self, recomputation: Recomputation) {
        self.recomputation = recomputation;
    }

    /// Returns which activations the backward pass recomputes.
    pub fn recomputation(&self) -> Recomputation {
        self.recomputation
    }

    /// Keeps the hard negatives among the examples, so that checkpoints have them and no attempt searches them again.
    pub fn keep_negatives(&mut self, negatives: HardNegatives) {
        self.hard_negatives = Some(negatives);
    }

    /// Returns the run's settings.
    pub fn settings(&self) -> &TrainSettings {
        &self.settings
    }

    /// Counts the numbers that training changes.
    pub fn parameter_count(&self) -> usize {
        self.state.parameter_count()
    }

    /// Counts the steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.batches.ends().last().copied().unwrap_or(0)
    }

    /// Counts the steps of the first epoch; all epochs have as many, unless pairs of texts repeat. The last step takes
    /// the examples that are left.
    pub fn steps_per_epoch(&self) -> usize {
        self.batches.ends().first().copied().unwrap_or(0)
    }

    /// Returns the epoch that ends with `step`, both counted from 1; `None` if no epoch does.
    pub fn epoch_ending_with(&self, step: usize) -> Option<usize> {
        self.batches.ends().binary_search(&step).ok().map(|epoch| epoch + 1)
    }

    /// Counts the steps that are done.
    pub fn step_number(&self) -> usize {
        self.history.len()
    }

    /// Counts the tokens read so far, including repeats.
    pub fn trained_tokens(&self) -> u64 {
        self.history.last().map_or(0, |record| record.elapsed_tokens)
    }

    /// Returns the records of all steps done.
    pub fn history(&self) -> &[StepRecord] {
        &self.history
    }

    /// Does one step; `None` when the run is complete. After an error nothing has changed and the step can be repeated.
    pub fn step(&mut self, before_micro_step: BeforeMicroStep<'_>) -> Result<Option<StepReport>> {
        if self.is_complete() {
            return Ok(None);
        }
        let (step, total_steps) = (self.step_number(), self.total_steps());
        let units = self.batches.of_step(step);
        let StepOutcome { report, gradients, asked } = self.gradients(&units, before_micro_step)?;
        let Some(figures) = Evaluation::of(&report) else {
            return Err(Error::Internal("a step without targets".into()));
        };
        let loss = figures.loss;
        let warmup = self.settings.warmup_steps(total_steps);
        let learning_rate = self.settings.learning_rate * self.settings.schedule.factor(step, warmup, total_steps);
        let update = UpdateScales { learning_rate, clip: self.settings.clip };
        let gradient_norm = self.state.step(&gradients, update, |norm| {
            if loss.is_finite() && norm.is_finite() { Ok(()) } else { Err(non_finite(step + 1, loss, norm)) }
        })?;
        for (unit, log_probs) in asked {
            self.reference[unit] = Some(log_probs);
        }
        let tokens = self.record(&units, figures);
        Ok(Some(self.report(figures, tokens, learning_rate, gradient_norm)))
    }

    /// Computes loss and gradients of one optimizer step on the examples `units`.
    fn gradients(&self, units: &[usize], before_micro_step: BeforeMicroStep<'_>) -> Result<StepOutcome> {
        let adapter = self.state.adapter(self.source.device())?;
        let run = self.run_inputs(&self.examples, &adapter);
        let (step, reference, recomputation) = (self.step_number(), self.reference.as_slice(), self.recomputation);
        self.method.gradients(&StepInputs { run, units, step, reference, recomputation }, before_micro_step)
    }

    /// Returns the inputs for losses of `adapter` on `examples`.
    pub(super) fn run_inputs<'a>(&'a self, examples: &'a ExampleStore, adapter: &'a Adapter) -> RunInputs<'a> {
        let (source, settings, beginning) = (self.source.as_ref(), &self.settings, self.beginning.as_ref());
        RunInputs { source, settings, examples, adapter, beginning }
    }

    /// Records a step on the examples `units`; returns how many tokens they have.
    fn record(&mut self, units: &[usize], figures: Evaluation) -> usize {
        let width = self.method.width();
        let sequences = units.iter().flat_map(|unit| unit * width..(unit + 1) * width);
        let tokens = sequences.map(|sequence| self.examples.tokens(sequence)).sum::<usize>();
        let before = self.history.last();
        self.history.push(StepRecord {
            elapsed_tokens: before.map_or(0, |record| record.elapsed_tokens) + tokens as u64,
            elapsed_examples: before.map_or(0, |record| record.elapsed_examples) + units.len() as u64,
            loss: figures.loss,
            token_accuracy: figures.token_accuracy,
            sequence_accuracy: figures.sequence_accuracy,
            rewards: figures.rewards,
            validation: None,
            classification: Vec::new(),
            right_answers: None,
            quality: Vec::new(),
        });
        tokens
    }

    /// Returns the report of the step that was recorded last.
    fn report(&self, figures: Evaluation, tokens: usize, learning_rate: f64, gradient_norm: f64) -> StepReport {
        let Evaluation { loss, token_accuracy, sequence_accuracy, rewards } = figures;
        let step = self.step_number();
        StepReport {
            step,
            total_steps: self.total_steps(),
            loss,
            token_accuracy,
            sequence_accuracy,
            learning_rate,
            gradient_norm,
            tokens,
            completed_epoch: self.epoch_ending_with(step),
            rewards,
            method: self.settings.method,
        }
    }

    /// Returns the current adapter, on the model's device; it has no name until its files are written.
    pub fn adapter(&self) -> Result<Adapter> {
        self.state.adapter_of(&self.state.values()?, self.source.device())
    }

    /// Writes everything that [`Trainer::restore`] needs to continue from here.
    pub fn save(&self) -> Result<Vec<u8>> {
        let (best, reference) = (self.best.as_deref(), self.reference.as_slice());
        let (values, optimizer) = (self.state.values()?, self.state.optimizer()?);
        let (before, quality_before) = (self.before.as_ref(), self.quality_before.as_slice());
        let (history, hard_negatives) = (self.history.as_slice(), self.hard_negatives.as_ref());
        let run = RunRecords { history, before, quality_before, hard_negatives, reference };
        checkpoint::write(&self.fingerprint, &values, &optimizer, best, &run)
    }

    /// Continues from a checkpoint of the same run: same settings, same examples, same beginning. An error leaves the
    /// run unchanged.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        let state = checkpoint::read(bytes, &self.fingerprint, &self.state.values()?, self.reference.len())?;
        if state.history.len() > self.total_steps() {
            return Err(Error::Checkpoint("the checkpoint has more steps than the run".into()));
        }
        self.state.restore(state.values, state.moments, state.history.len() as u64)?;
        self.history = state.history;
        self.before = state.before;
        self.quality_before = state.quality_before;
        self.best = state.best;
        self.reference = state.reference;
        Ok(())
    }
}

fn non_finite(step: usize, loss: f64, norm: f64) -> Error {
    let what = if loss.is_finite() { format!("gradient norm is {norm}") } else { format!("loss is {loss}") };
    let message = format!("The {what} in step {step}: try a smaller learning_rate_multiplier.");
    Error::NonFiniteLoss(message)
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "trainer_model_tests.rs"]
mod model_tests;
