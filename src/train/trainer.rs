//! The training loop, one optimizer step at a time: order, pack, micro-steps, clip, update, record.
//!
//! `jobs/worker/training.rs` calls [`Trainer::step`] until it has no more, and saves, evaluates and stops in between. Every step is a
//! function of the state that [`Trainer::save`] writes, so a resumed run is bit-identical to an uninterrupted one on the
//! same machine.

use std::sync::Arc;

use candle_core::Device;

use crate::adapters::Adapter;
use crate::datasets::TokenizedExample;
use crate::model::BaseModel;
use crate::train::backward::{self, Gradients, LossReport, PackedBatch};
use crate::train::checkpoint;
use crate::train::classification::ClassificationTask;
use crate::train::optimizer::{AdamW, clip, global_norm};
use crate::train::packing::{BATCH_ROWS, pack, pack_in_order};
use crate::train::parameters::{Parameters, add_gradients, epoch_order};
use crate::train::settings::TrainSettings;
use crate::{Error, Result};

/// Examples that one round of evaluation packs, so that packed copies never exceed a part of a large file.
const EVALUATION_EXAMPLES: usize = 256;

/// Asked before each micro-step: may wait for requests to go first; an error ends the step with nothing changed.
pub type BeforeMicroStep<'a> = &'a mut dyn FnMut() -> Result<()>;

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps so far, this one included.
    pub step: usize,
    /// Steps in all.
    pub total_steps: usize,
    /// Weighted mean cross entropy of the step's targets before its update, in nats.
    pub loss: f64,
    /// Share of the step's targets that had the highest logit.
    pub token_accuracy: f64,
    /// Share of the step's examples whose targets all had the highest logit.
    pub sequence_accuracy: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens of the step's examples.
    pub tokens: usize,
    /// The epoch that ended with this step, counted from 1.
    pub completed_epoch: Option<usize>,
}

/// Figures of held-out examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Weighted mean cross entropy of all targets, in nats.
    pub loss: f64,
    /// Share of the targets that had the highest logit.
    pub token_accuracy: f64,
    /// Share of the examples whose targets all had the highest logit.
    pub sequence_accuracy: f64,
}

/// One line of the result file, kept for the whole run and in its checkpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    /// Tokens read so far, repeats counted.
    pub elapsed_tokens: u64,
    /// Examples read so far, repeats counted.
    pub elapsed_examples: u64,
    /// As in [`StepReport`].
    pub loss: f64,
    /// As in [`StepReport`].
    pub token_accuracy: f64,
    /// As in [`StepReport`].
    pub sequence_accuracy: f64,
    /// Of the validation file, where it was measured after this step.
    pub validation: Option<Evaluation>,
    /// Of its classes, where they were measured after this step: one figure for each of the task's columns, NaN where it is
    /// not defined.
    pub classification: Vec<f64>,
}

/// Where losses and gradients come from: the model, or a formula in tests of the loop.
pub(crate) trait LossSource: Send + Sync {
    fn device(&self) -> &Device;
    fn loss_and_gradients(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        normalizer: f64,
    ) -> Result<(LossReport, Gradients)>;
    fn loss(&self, adapter: &Adapter, batch: &PackedBatch) -> Result<LossReport>;
    fn log_likelihoods(&self, adapter: &Adapter, batch: &PackedBatch) -> Result<Vec<f64>>;
}

impl LossSource for Arc<BaseModel> {
    fn device(&self) -> &Device {
        self.decoder.device()
    }

    fn loss_and_gradients(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        normalizer: f64,
    ) -> Result<(LossReport, Gradients)> {
        backward::loss_and_gradients(&self.decoder, adapter, batch, normalizer)
    }

    fn loss(&self, adapter: &Adapter, batch: &PackedBatch) -> Result<LossReport> {
        backward::loss(&self.decoder, Some(adapter), batch)
    }

    fn log_likelihoods(&self, adapter: &Adapter, batch: &PackedBatch) -> Result<Vec<f64>> {
        backward::log_likelihoods(&self.decoder, Some(adapter), batch)
    }
}

/// A training run.
pub struct Trainer {
    source: Box<dyn LossSource>,
    settings: TrainSettings,
    examples: Vec<TokenizedExample>,
    /// Hash of everything that determines the run; a checkpoint of another one is refused.
    fingerprint: String,
    parameters: Parameters,
    optimizer: AdamW,
    /// One entry per step done.
    history: Vec<StepRecord>,
    /// The current epoch and the order of its examples.
    order: (usize, Vec<usize>),
}

impl Trainer {
    /// A run over `examples` that begins from `initial`, or from a new adapter of the settings' rank on every layer.
    pub fn new(
        model: Arc<BaseModel>,
        settings: TrainSettings,
        examples: Vec<TokenizedExample>,
        initial: Option<&Adapter>,
    ) -> Result<Self> {
        let parameters = match initial {
            Some(adapter) => Parameters::of(adapter)?,
            None => Parameters::fresh(&model.config, settings.rank, settings.alpha, settings.seed),
        };
        let beginning = initial.map(|adapter| adapter.id.as_str());
        Self::with_source(Box::new(model), settings, examples, parameters, beginning)
    }

    pub(crate) fn with_source(
        source: Box<dyn LossSource>,
        settings: TrainSettings,
        examples: Vec<TokenizedExample>,
        parameters: Parameters,
        beginning: Option<&str>,
    ) -> Result<Self> {
        if parameters.places.is_empty() || settings.batch_size == 0 {
            return Err(Error::Internal("a run needs an adapter with layers and batches with examples".into()));
        }
        if !examples.iter().any(|example| example.targets() > 0) {
            return Err(Error::Internal("a run needs examples with targets".into()));
        }
        let fingerprint = checkpoint::fingerprint(&settings, &examples, beginning)?;
        let optimizer = AdamW::new(settings.adam, &parameters.values);
        let order = (0, epoch_order(settings.seed, 0, examples.len()));
        Ok(Self { source, settings, examples, fingerprint, parameters, optimizer, history: Vec::new(), order })
    }

    /// What determines the run.
    pub fn settings(&self) -> &TrainSettings {
        &self.settings
    }

    /// Numbers that training changes.
    pub fn parameter_count(&self) -> usize {
        self.parameters.values.iter().map(Vec::len).sum()
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.settings.epochs * self.steps_per_epoch()
    }

    /// Steps of one epoch; its last one takes the examples that are left.
    pub fn steps_per_epoch(&self) -> usize {
        self.examples.len().div_ceil(self.settings.batch_size)
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
        let (step, total_steps, per_epoch) = (self.step_number(), self.total_steps(), self.steps_per_epoch());
        if step >= total_steps {
            return Ok(None);
        }
        let (epoch, position) = (step / per_epoch, step % per_epoch);
        if self.order.0 != epoch {
            self.order = (epoch, epoch_order(self.settings.seed, epoch, self.examples.len()));
        }
        let start = position * self.settings.batch_size;
        let end = (start + self.settings.batch_size).min(self.examples.len());
        let examples: Vec<&TokenizedExample> =
            self.order.1[start..end].iter().map(|index| &self.examples[*index]).collect();
        let tokens = examples.iter().map(|example| example.tokens.len()).sum::<usize>();

        let (report, mut gradients) = self.gradients(&examples, before_micro_step)?;
        let gradient_norm = global_norm(&gradients);
        let loss = report.loss_sum / report.weight_sum;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(non_finite(step + 1, loss, gradient_norm));
        }
        clip(&mut gradients, gradient_norm, self.settings.clip);
        let warmup = self.settings.warmup_steps(total_steps);
        let learning_rate = self.settings.learning_rate * self.settings.schedule.factor(step, warmup, total_steps);
        self.optimizer.update(learning_rate, &mut self.parameters.values, &gradients);

        let before = self.history.last();
        let token_accuracy = report.correct as f64 / report.targets.max(1) as f64;
        let sequence_accuracy = report.exact as f64 / report.sequences.max(1) as f64;
        self.history.push(StepRecord {
            elapsed_tokens: before.map_or(0, |record| record.elapsed_tokens) + tokens as u64,
            elapsed_examples: before.map_or(0, |record| record.elapsed_examples) + examples.len() as u64,
            loss,
            token_accuracy,
            sequence_accuracy,
            validation: None,
            classification: Vec::new(),
        });
        let completed_epoch = (position + 1 == per_epoch).then_some(epoch + 1);
        let step = step + 1;
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
        }))
    }

    /// Loss and gradients of one optimizer step: sums over its micro-batches, divided by the weights of the whole step, so
    /// that the split into micro-batches changes nothing but rounding.
    fn gradients(
        &self,
        examples: &[&TokenizedExample],
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Vec<Vec<f32>>)> {
        let batches = pack(examples, BATCH_ROWS);
        let weights = batches.iter().flat_map(|batch| &batch.targets).map(|target| f64::from(target.weight));
        let normalizer: f64 = weights.sum();
        let adapter = self.parameters.adapter(self.source.device())?;
        let mut sum: Option<(LossReport, Gradients)> = None;
        for batch in &batches {
            before_micro_step()?;
            let (report, gradients) = self.source.loss_and_gradients(&adapter, batch, normalizer)?;
            match &mut sum {
                None => sum = Some((report, gradients)),
                Some((total, accumulated)) => {
                    add_report(total, report);
                    add_gradients(accumulated, &gradients)?;
                }
            }
        }
        let (report, gradients) = sum.ok_or_else(|| Error::Internal("a step without targets".into()))?;
        Ok((report, self.parameters.gradients(&gradients)?))
    }

    /// Measures the current adapter on `examples`; `None` where they have no targets.
    pub fn evaluate(
        &self,
        examples: &[TokenizedExample],
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<Evaluation>> {
        let adapter = self.parameters.adapter(self.source.device())?;
        let mut total = LossReport::default();
        for part in examples.chunks(EVALUATION_EXAMPLES) {
            for batch in pack(&part.iter().collect::<Vec<_>>(), BATCH_ROWS) {
                before_micro_step()?;
                add_report(&mut total, self.source.loss(&adapter, &batch)?);
            }
        }
        Ok((total.targets > 0 && total.weight_sum > 0.0).then(|| Evaluation {
            loss: total.loss_sum / total.weight_sum,
            token_accuracy: total.correct as f64 / total.targets as f64,
            sequence_accuracy: total.exact as f64 / total.sequences.max(1) as f64,
        }))
    }

    /// Measures how the current adapter sorts the task's prompts into classes: a figure for each of its columns.
    pub fn classify(&self, task: &ClassificationTask, before_micro_step: BeforeMicroStep<'_>) -> Result<Vec<f64>> {
        let adapter = self.parameters.adapter(self.source.device())?;
        let mut log_likelihoods = Vec::new();
        for candidates in task.candidates() {
            for batch in pack_in_order(&candidates, BATCH_ROWS) {
                before_micro_step()?;
                log_likelihoods.extend(self.source.log_likelihoods(&adapter, &batch)?);
            }
        }
        Ok(task.figures(&log_likelihoods))
    }

    /// Notes figures of the validation file with the last step.
    pub fn record_validation(&mut self, evaluation: Evaluation) {
        if let Some(record) = self.history.last_mut() {
            record.validation = Some(evaluation);
        }
    }

    /// Notes figures of the classes with the last step.
    pub fn record_classification(&mut self, figures: Vec<f64>) {
        if let Some(record) = self.history.last_mut() {
            record.classification = figures;
        }
    }

    /// The adapter as it stands, on the model's device; it has no name until its files are written.
    pub fn adapter(&self) -> Result<Adapter> {
        self.parameters.adapter(self.source.device())
    }

    /// Everything that [`Trainer::restore`] needs to go on from here.
    pub fn save(&self) -> Result<Vec<u8>> {
        checkpoint::write(&self.fingerprint, &self.parameters.values, &self.optimizer, &self.history)
    }

    /// Goes on from a checkpoint of the same run: same settings, same examples, same beginning. An error leaves the run
    /// where it was.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        let state = checkpoint::read(bytes, &self.fingerprint, &self.parameters.values)?;
        if state.history.len() > self.total_steps() {
            return Err(Error::Setup("the checkpoint has more steps than the run".into()));
        }
        self.optimizer.updates = state.history.len() as u64;
        self.optimizer.moments = state.moments;
        self.parameters.values = state.values;
        self.history = state.history;
        Ok(())
    }
}

fn add_report(total: &mut LossReport, part: LossReport) {
    total.loss_sum += part.loss_sum;
    total.weight_sum += part.weight_sum;
    total.targets += part.targets;
    total.correct += part.correct;
    total.sequences += part.sequences;
    total.exact += part.exact;
}

fn non_finite(step: usize, loss: f64, norm: f64) -> Error {
    let what = if loss.is_finite() { format!("gradient norm is {norm}") } else { format!("loss is {loss}") };
    let message = format!("The {what} in step {step}: try a smaller learning_rate_multiplier.");
    Error::invalid_code("learning_rate_multiplier", "non_finite_loss", message)
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
mod tests;
