//! Measures a run on held-out examples, and decides from that when the run ends early and which of its adapters is the
//! best. Called by `jobs/worker/training.rs` between steps.

use std::borrow::Cow;

use crate::Result;
use candle_core::Device;

use crate::datasets::{ExampleStore, TokenizedExample};
use crate::train::answer_sheet::AnswerSheet;
use crate::train::batch::LossReport;
use crate::train::classification::ClassificationTask;
use crate::train::methods::EvaluationNotes;
use crate::train::packing::pack_in_order;
use crate::train::records::{Evaluation, Validation};
use crate::train::trainer::Trainer;
use crate::train::yielding::{BeforeMicroStep, YieldPolicy};
use attune_model::BaseModel;
use attune_model::lora::Adapter;

/// Most evaluations between those at the ends of epochs.
const EVALUATIONS: usize = 10;
/// Fewest examples that an evaluation between epochs measures, if the file has as many.
const MIN_SAMPLE: usize = 16;
/// All evaluations between epochs together read one token per this many trained tokens. Reading a token takes about
/// half the time of training on it, so they take about a tenth of a job at most.
const TRAINED_PER_EVALUATED: usize = 5;

/// Held-out examples to measure on.
pub struct HeldOut {
    pub(super) examples: ExampleStore,
    /// Number of sequences that are measured together: one, or the two answers of a preference.
    width: usize,
    /// Number of sequences, from the first on, that every evaluation measures.
    sample: usize,
    /// Steps from one evaluation between epochs to the next.
    every: Option<usize>,
    /// Log probabilities of the sequences under the reference, by batch, of the sample and of the rest; filled by
    /// methods that use a reference.
    reference: [Vec<Vec<f64>>; 2],
    /// Answers that are counted; `None` if none are.
    pub(super) answers: Option<AnswerSheet>,
    /// Most probable tokens at the targets of each sequence, noted when all of them are measured and answers are
    /// counted.
    pub(super) predicted: Vec<Vec<u32>>,
    /// Whether it is measured how well vectors or scores put all examples in order.
    pub(super) orders: bool,
}

impl HeldOut {
    /// Prepares to measure on all of `examples`, `width` sequences at a time, only at the ends of epochs.
    pub fn new(examples: ExampleStore, width: usize) -> Self {
        let sample = examples.len();
        let reference = [Vec::new(), Vec::new()];
        Self { examples, width, sample, every: None, reference, answers: None, predicted: Vec::new(), orders: false }
    }

    /// Adds measurements between the ends of epochs, about ten times in a run of `steps` steps that trains on
    /// `trained_tokens`; fewer times, and not on all examples, if that would take more than a small part of the time.
    #[must_use]
    pub fn between_epochs(mut self, trained_tokens: usize, steps: usize) -> Self {
        let budget = trained_tokens / TRAINED_PER_EVALUATED;
        let (mut sample, mut tokens) = (0, 0);
        for first in (0..self.examples.len()).step_by(self.width) {
            let needed: usize = (first..first + self.width).map(|index| self.examples.tokens(index)).sum();
            if sample >= MIN_SAMPLE * self.width && tokens + needed > budget / EVALUATIONS {
                break;
            }
            sample += self.width;
            tokens += needed;
        }
        let times = (budget / tokens.max(1)).min(EVALUATIONS);
        self.sample = sample;
        // The last step needs no evaluation of its own: an epoch ends there.
        self.every = (times > 0).then(|| steps.div_ceil(times + 1).max(1));
        self
    }

    /// Adds a count of right answers ([`super::right_answers`]) before a run that trains on `trained_tokens`, and each
    /// time that all examples are measured. The examples must be answers.
    pub fn counting_answers(mut self, trained_tokens: usize, model: &BaseModel) -> Result<Self> {
        let sheet = AnswerSheet::new(&self.examples, trained_tokens, model)?;
        self.answers = Some(sheet).filter(|sheet| !sheet.is_empty());
        Ok(self)
    }

    /// Returns the answers that are counted; `None` if none are, which is so if all of them are cut.
    pub fn answers(&self) -> Option<&AnswerSheet> {
        self.answers.as_ref()
    }

    /// Counts the tokens that the evaluations of a run read: the sample each time one is due, all examples at the ends
    /// of epochs, all of them once more if the method uses a reference, those whose answers are counted before the first
    /// step, and all at the ends of epochs and before the first step if they are put in order.
    pub fn tokens_read(&self, run: &Trainer) -> usize {
        let sample: usize = (0..self.sample).map(|index| self.examples.tokens(index)).sum();
        let between =
            (1..=run.total_steps()).filter(|step| self.is_due(*step) && run.epoch_ending_with(*step).is_none());
        let epochs = run.settings().epochs;
        let ordered = if self.orders { epochs + 1 } else { 0 };
        let wholes = epochs + usize::from(run.method.asks_reference()) + ordered;
        between.count() * sample + wholes * self.tokens() + self.answers.as_ref().map_or(0, AnswerSheet::tokens)
    }

    /// Counts the tokens of all examples.
    pub fn tokens(&self) -> usize {
        (0..self.examples.len()).map(|index| self.examples.tokens(index)).sum()
    }

    /// Counts the examples.
    pub fn len(&self) -> usize {
        self.examples.len() / self.width
    }

    /// Returns true if there are no examples.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Returns true if an evaluation follows step `step`, counted from 1.
    pub fn is_due(&self, step: usize) -> bool {
        self.every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// Reads the first sequence of the example at `place`; `None` if there are fewer examples.
    pub fn example(&self, place: usize) -> Result<Option<TokenizedExample>> {
        let index = place * self.width;
        if index < self.examples.len() { self.examples.get(index).map(Some) } else { Ok(None) }
    }
}

impl Trainer {
    /// Measures the current adapter on the sample and, if `whole`, on all held-out examples; `None` if the sample has
    /// no targets.
    pub fn validate(
        &self,
        held_out: &mut HeldOut,
        whole: bool,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<Validation>> {
        let predicted = (whole && held_out.answers.is_some()).then(|| vec![Vec::new(); held_out.examples.len()]);
        held_out.predicted = predicted.unwrap_or_default();
        let mut total = self.measure(held_out, 0, before_micro_step)?;
        let Some(sample) = Evaluation::of(&total) else { return Ok(None) };
        let mut full = None;
        if whole {
            total.add(self.measure(held_out, 1, before_micro_step)?);
            full = Evaluation::of(&total);
        }
        Ok(Some(Validation { sample, full }))
    }

    /// Sums over the sample (part 0) or the rest (part 1) of the held-out examples.
    fn measure(
        &self,
        held_out: &mut HeldOut,
        part: usize,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<LossReport> {
        let adapter = self.state.adapter(self.source.device())?;
        let HeldOut { examples, sample, reference, predicted, .. } = held_out;
        let bounds = [0, *sample, examples.len()];
        let places = bounds[part]..bounds[part + 1];
        let predicted = (!predicted.is_empty()).then_some(predicted.as_mut_slice());
        let mut notes = EvaluationNotes { reference: &mut reference[part], predicted };
        self.method.evaluate(&self.run_inputs(examples, &adapter), places, &mut notes, before_micro_step)
    }

    /// Measures how the current adapter classifies the task's prompts: a number for each of the task's columns.
    pub fn classify(&self, task: &ClassificationTask, before_micro_step: BeforeMicroStep<'_>) -> Result<Vec<f64>> {
        let adapter = self.state.adapter(self.source.device())?;
        let mut log_likelihoods = Vec::new();
        for candidates in task.candidates() {
            for batch in pack_in_order(&candidates, self.settings.batch_rows) {
                before_micro_step()?;
                let pace = YieldPolicy::asking(before_micro_step);
                log_likelihoods.extend(self.source.log_likelihoods(Some(&adapter), &batch, pace)?);
            }
        }
        Ok(task.figures(&log_likelihoods))
    }

    /// Records validation metrics with the last step, and keeps its adapter if it is the best one so far.
    pub fn record_validation(&mut self, validation: Validation) -> Result<()> {
        if let Some(record) = self.history.last_mut() {
            record.validation = Some(validation);
        }
        if self.settings.keep_best && self.best_step() == Some(self.step_number()) {
            self.best = Some(self.state.values()?.into_owned());
        }
        Ok(())
    }

    /// Records classification metrics with the last step.
    pub fn record_classification(&mut self, figures: Vec<f64>) {
        if let Some(record) = self.history.last_mut() {
            record.classification = figures;
        }
    }

    /// Returns the step, counted from 1, whose adapter has the lowest validation loss so far, the earliest of equals.
    pub fn best_step(&self) -> Option<usize> {
        let losses =
            self.history.iter().zip(1..).filter_map(|(record, step)| Some((record.validation?.sample.loss, step)));
        losses.filter(|(loss, _)| !loss.is_nan()).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, step)| step)
    }

    /// Returns true if the run is to end before its last step: the validation loss has not fallen for as many
    /// evaluations as the settings allow.
    pub fn has_ended_early(&self) -> bool {
        let after_best = &self.history[self.best_step().unwrap_or(0)..];
        let in_vain = after_best.iter().filter(|record| record.validation.is_some()).count();
        self.settings.patience > 0 && in_vain >= self.settings.patience
    }

    /// Returns true if no step is left.
    pub fn is_complete(&self) -> bool {
        self.step_number() >= self.total_steps() || self.has_ended_early()
    }

    /// Returns the run's resulting adapter, on the host, and its step: the best adapter if the settings ask for it and
    /// there is one, else the last.
    pub fn result(&self) -> Result<(Adapter, usize)> {
        let (values, step) = match (&self.best, self.best_step()) {
            (Some(values), Some(step)) if self.settings.keep_best => (Cow::Borrowed(values.as_slice()), step),
            _ => (self.state.values()?, self.step_number()),
        };
        Ok((self.state.adapter_of(&values, &Device::Cpu)?, step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates held-out examples of ten tokens each.
    fn held_out(count: usize) -> HeldOut {
        let example = TokenizedExample { tokens: vec![7; 10], weights: vec![1.0; 10] };
        HeldOut::new(ExampleStore::of((0..count).map(|_| example.clone())).unwrap(), 1)
    }

    fn plan(count: usize, trained_tokens: usize, steps: usize) -> (usize, Option<usize>) {
        let HeldOut { sample, every, .. } = held_out(count).between_epochs(trained_tokens, steps);
        (sample, every)
    }

    #[test]
    fn evaluations_between_epochs_are_about_ten_and_take_a_bounded_part_of_the_time() {
        // All of a small file, ten times.
        assert_eq!(plan(30, 100_000, 300), (30, Some(28)));
        assert_eq!(plan(30, 100_000, 7), (30, Some(1)), "not more than one in a step");
        // A part of a large one: 2,000 tokens at a time.
        assert_eq!(plan(10_000, 100_000, 300), (200, Some(28)));
        // Fewer evaluations if even the smallest part is long compared with training, and none if it is too long.
        assert_eq!(plan(10_000, 4_000, 300), (16, Some(50)));
        assert_eq!(plan(10_000, 500, 300), (16, None));
        assert_eq!(plan(3, 500, 300), (3, Some(75)));
    }

    #[test]
    fn without_a_plan_there_are_none_between_epochs() {
        let held_out = held_out(3);
        assert!((0..100).all(|step| !held_out.is_due(step)));
        assert_eq!((held_out.example(2).unwrap().is_some(), held_out.example(3).unwrap()), (true, None));
    }
}
