//! The training loop, one optimizer step at a time: order, pack, micro-steps, clip, update, record.
//!
//! `jobs/worker/training.rs` calls [`Trainer::step`] until it has no more, and saves, stops and evaluates
//! ([`super::evaluation`]) in between. Every step is a function of the state that [`Trainer::save`] writes, so a resumed
//! run is bit-identical to an uninterrupted one on the same machine.

use std::sync::Arc;

use crate::datasets::{ExampleStore, TokenizedExample};
use crate::train::backward::{Gradients, LossReport, Objective, PackedBatch, PassOptions};
use crate::train::batches::Batches;
use crate::train::checkpoint;
use crate::train::contrastive::Contrast;
use crate::train::dropout::Dropout;
use crate::train::loss_source::{LossSource, SharedDecoder};
use crate::train::packing::{Packed, pack};
use crate::train::parameters::{Parameters, add_gradients};
use crate::train::preference::Preferences;
use crate::train::recomputation::Recomputation;
use crate::train::records::{Evaluation, StepRecord, StepReport};
use crate::train::settings::TrainSettings;
use crate::train::state::{AdapterState, UpdateScales};
use crate::train::yielding::YieldPolicy;
use crate::{Error, Result};
use attune_model::BaseModel;
use attune_model::lora::Adapter;

/// Asked before each micro-step, on a GPU between its blocks too: may wait for requests to go first; an error ends the step with
/// nothing changed.
pub type BeforeMicroStep<'a> = &'a mut dyn FnMut() -> Result<()>;

/// A training run.
pub struct Trainer {
    pub(super) source: Box<dyn LossSource>,
    pub(super) settings: TrainSettings,
    examples: ExampleStore,
    /// Hash of everything that determines the run; a checkpoint of another one is refused.
    fingerprint: String,
    pub(super) state: AdapterState,
    /// One entry per step done.
    pub(super) history: Vec<StepRecord>,
    /// Parameters of the lowest validation loss; `None` unless the settings keep the best.
    pub(super) best: Option<Vec<Vec<f32>>>,
    /// What each step trains on.
    batches: Batches,
    /// Adapter that training continues, which is also DPO's reference model; `None` if that is the base model.
    beginning: Option<Adapter>,
    /// DPO: the reference model's log-probabilities of [chosen, rejected] per pair; NaN until computed.
    reference: Vec<[f64; 2]>,
    recomputation: Recomputation,
}

/// Reference log-probabilities of [chosen, rejected], by index of the pair.
type ReferenceLogProbs = Vec<(usize, [f64; 2])>;

impl Trainer {
    /// A run over `examples` that begins from `initial`, or from a new adapter of the settings' shape.
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
        let beginning = initial.map(|adapter| adapter.to_device(model.decoder.for_training().device())).transpose()?;
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
        let units = examples.len() / settings.width();
        let (seed, epochs, size) = (settings.seed, settings.epochs, settings.batch_size);
        let batches = match settings.scale {
            Some(_) => Batches::of_pairs(seed, epochs, &examples, size)?,
            None => Batches::new(seed, epochs, units, size),
        };
        Ok(Self {
            fingerprint: checkpoint::fingerprint(
                &settings,
                examples.digest(),
                beginning.as_ref().map(|adapter| adapter.id.as_str()),
            )?,
            state: AdapterState::new(parameters, settings.adam, source.kernels(), source.dtype())?,
            batches,
            reference: if settings.beta.is_some() { vec![[f64::NAN; 2]; units] } else { Vec::new() },
            history: Vec::new(),
            best: None,
            source,
            settings,
            examples,
            beginning,
            recomputation: Recomputation::None,
        })
    }

    /// Sets what the backward pass computes again to save memory. It changes no bit of the run, so it may differ from attempt to attempt.
    pub fn recompute(&mut self, recomputation: Recomputation) {
        self.recomputation = recomputation;
    }

    /// Returns what the backward pass computes again.
    pub fn recomputation(&self) -> Recomputation {
        self.recomputation
    }

    /// What determines the run.
    pub fn settings(&self) -> &TrainSettings {
        &self.settings
    }

    /// Numbers that training changes.
    pub fn parameter_count(&self) -> usize {
        self.state.parameter_count()
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.batches.ends().last().copied().unwrap_or(0)
    }

    /// Steps of the first epoch, and of every other one but for pairs of texts that repeat; the last takes the examples that
    /// are left.
    pub fn steps_per_epoch(&self) -> usize {
        self.batches.ends().first().copied().unwrap_or(0)
    }

    /// The epoch that ends with `step`, both counted from 1.
    pub fn epoch_ending_with(&self, step: usize) -> Option<usize> {
        self.batches.ends().binary_search(&step).ok().map(|epoch| epoch + 1)
    }

    /// Steps done.
    pub fn step_number(&self) -> usize {
        self.history.len()
    }

    /// Tokens read so far, repeats counted.
    pub fn trained_tokens(&self) -> u64 {
        self.history.last().map_or(0, |record| record.elapsed_tokens)
    }

    /// The records of all steps done.
    pub fn history(&self) -> &[StepRecord] {
        &self.history
    }

    /// Does one step; `None` when the run is complete. After an error nothing has changed and the step can be done again.
    pub fn step(&mut self, before_micro_step: BeforeMicroStep<'_>) -> Result<Option<StepReport>> {
        let (step, total_steps) = (self.step_number(), self.total_steps());
        if self.is_complete() {
            return Ok(None);
        }
        let units = &self.batches.of_step(step);
        let width = self.settings.width();
        let sequences = units.iter().flat_map(|unit| unit * width..(unit + 1) * width);
        let examples = sequences.map(|sequence| self.examples.get(sequence)).collect::<Result<Vec<_>>>()?;
        let (read, tokens) = (units.len(), examples.iter().map(|example| example.tokens.len()).sum::<usize>());

        let (report, gradients, judged) = self.gradients(units, &examples, before_micro_step)?;
        let Some(Evaluation { loss, token_accuracy, sequence_accuracy, rewards }) = Evaluation::of(&report) else {
            return Err(Error::Internal("a step without targets".into()));
        };
        let warmup = self.settings.warmup_steps(total_steps);
        let learning_rate = self.settings.learning_rate * self.settings.schedule.factor(step, warmup, total_steps);
        let update = UpdateScales { learning_rate, clip: self.settings.clip };
        let gradient_norm = self.state.step(&gradients, update, |norm| {
            if loss.is_finite() && norm.is_finite() { Ok(()) } else { Err(non_finite(step + 1, loss, norm)) }
        })?;

        let before = self.history.last();
        for (unit, log_likelihoods) in judged {
            self.reference[unit] = log_likelihoods;
        }
        self.history.push(StepRecord {
            elapsed_tokens: before.map_or(0, |record| record.elapsed_tokens) + tokens as u64,
            elapsed_examples: before.map_or(0, |record| record.elapsed_examples) + read as u64,
            loss,
            token_accuracy,
            sequence_accuracy,
            rewards,
            validation: None,
            classification: Vec::new(),
        });
        let step = step + 1;
        let completed_epoch = self.epoch_ending_with(step);
        Ok(Some(StepReport {
            step,
            total_steps,
            loss,
            token_accuracy,
            sequence_accuracy,
            learning_rate,
            gradient_norm,
            tokens,
            completed_epoch,
            rewards,
            texts: self.settings.scale.is_some(),
        }))
    }

    /// Loss and gradients of one optimizer step: sums over its micro-batches, divided by the weights of the whole step, so
    /// that the split into micro-batches changes nothing but rounding. What the reference had to be asked for comes third.
    fn gradients(
        &self,
        units: &[usize],
        examples: &[TokenizedExample],
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Gradients, ReferenceLogProbs)> {
        if let Some(scale) = self.settings.scale {
            let adapter = self.state.adapter(self.source.device())?;
            let batch = Contrast {
                pairs: examples,
                scale,
                budget: self.settings.batch_rows,
                dropout: self.dropout(0),
                recomputation: self.recomputation,
            };
            let (report, gradients) = self.source.contrast_and_gradients(&adapter, batch, before_micro_step)?;
            return Ok((report, gradients, Vec::new()));
        }
        let packs = pack(examples, self.settings.width(), self.settings.batch_rows);
        let normalizer = match self.settings.beta {
            Some(_) => packs.iter().map(|pack| pack.units.len() as f64).sum(),
            None => packs.iter().flat_map(|pack| &pack.batch.targets).map(|target| f64::from(target.weight)).sum(),
        };
        let adapter = self.state.adapter(self.source.device())?;
        let mut sum: Option<(LossReport, Gradients)> = None;
        let mut judged = Vec::new();
        for (index, Packed { batch, units: places }) in packs.iter().enumerate() {
            before_micro_step()?;
            let dropout = self.dropout(index);
            let places: Vec<usize> = places.iter().map(|place| units[*place]).collect();
            let mut known: Vec<f64> =
                places.iter().filter_map(|unit| self.reference.get(*unit)).flatten().copied().collect();
            if known.iter().any(|log_likelihood| log_likelihood.is_nan()) {
                known = self.ask_reference(batch, before_micro_step)?;
                judged.extend(places.iter().copied().zip(known.chunks_exact(2).map(|pair| [pair[0], pair[1]])));
                before_micro_step()?;
            }
            let objective = self.objective(&known);
            let pace = YieldPolicy::asking(before_micro_step);
            let manner = PassOptions { dropout: dropout.as_ref(), recomputation: self.recomputation, pace };
            let (report, gradients) = self.source.loss_and_gradients(&adapter, batch, objective, normalizer, manner)?;
            match &mut sum {
                None => sum = Some((report, gradients)),
                Some((total, accumulated)) => {
                    add_report(total, report);
                    add_gradients(accumulated, &gradients)?;
                }
            }
        }
        let (report, gradients) = sum.ok_or_else(|| Error::Internal("a step without targets".into()))?;
        Ok((report, gradients, judged))
    }

    /// What is made small in a batch whose sequences the reference thinks so of.
    pub(super) fn objective<'a>(&self, reference: &'a [f64]) -> Objective<'a> {
        match self.settings.beta {
            Some(beta) => Objective::Preferences(Preferences { beta, reference }),
            None => Objective::Targets,
        }
    }

    /// Computes the reference model's log-probabilities of the two answers of each pair in `batch`.
    pub(super) fn ask_reference(
        &self,
        batch: &PackedBatch,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Vec<f64>> {
        self.source.log_likelihoods(self.beginning.as_ref(), batch, YieldPolicy::asking(before_micro_step))
    }

    /// What the micro-batch `batch` of the coming step leaves out of the adapter's inputs.
    fn dropout(&self, batch: usize) -> Option<Dropout> {
        let TrainSettings { dropout: probability, seed, .. } = self.settings;
        (probability > 0.0).then(|| Dropout { probability, seed, step: self.step_number(), batch })
    }

    /// The adapter as it stands, on the model's device; it has no name until its files are written.
    pub fn adapter(&self) -> Result<Adapter> {
        self.state.adapter_of(&self.state.values()?, self.source.device())
    }

    /// Everything that [`Trainer::restore`] needs to go on from here.
    pub fn save(&self) -> Result<Vec<u8>> {
        let (best, reference) = (self.best.as_deref(), self.reference.as_slice());
        let (values, optimizer) = (self.state.values()?, self.state.optimizer()?);
        checkpoint::write(&self.fingerprint, &values, &optimizer, &self.history, best, reference)
    }

    /// Goes on from a checkpoint of the same run: same settings, same examples, same beginning. An error leaves the run
    /// where it was.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        let state = checkpoint::read(bytes, &self.fingerprint, &self.state.values()?, self.reference.len())?;
        if state.history.len() > self.total_steps() {
            return Err(Error::Checkpoint("the checkpoint has more steps than the run".into()));
        }
        self.state.restore(state.values, state.moments, state.history.len() as u64)?;
        self.history = state.history;
        self.best = state.best;
        self.reference = state.reference;
        Ok(())
    }
}

pub(super) fn add_report(total: &mut LossReport, part: LossReport) {
    total.loss_sum += part.loss_sum;
    total.weight_sum += part.weight_sum;
    total.targets += part.targets;
    total.correct += part.correct;
    total.sequences += part.sequences;
    total.exact += part.exact;
    total.pairs += part.pairs;
    total.margin_sum += part.margin_sum;
    total.preferred += part.preferred;
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
