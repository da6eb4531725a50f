//! Measurements of a run on held-out examples, and what follows from them: when it ends early and which of its adapters is
//! the best. Called by `jobs/worker/training.rs` between steps.

use crate::Result;
use crate::adapters::Adapter;
use crate::datasets::ExampleStore;
use crate::train::backward::LossReport;
use crate::train::classification::ClassificationTask;
use crate::train::packing::{BATCH_ROWS, Packed, pack, pack_in_order};
use crate::train::records::Evaluation;
use crate::train::trainer::{BeforeMicroStep, Trainer, add_report};

/// Examples that one round of evaluation packs, so that packed copies never exceed a part of a large file.
const EVALUATION_EXAMPLES: usize = 256;

/// Examples to measure on.
pub struct HeldOut {
    examples: ExampleStore,
    /// What the reference thinks of each batch of them, once it was asked, where training is on preferences.
    reference: Vec<Vec<f64>>,
}

impl HeldOut {
    /// To measure on `examples`.
    pub fn new(examples: ExampleStore) -> Self {
        Self { examples, reference: Vec::new() }
    }
}

impl Trainer {
    /// Measures the current adapter on the held-out examples; `None` where they have no targets.
    pub fn evaluate(
        &self,
        held_out: &mut HeldOut,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<Evaluation>> {
        let adapter = self.parameters.adapter(self.source.device())?;
        let width = self.settings.width();
        let mut total = LossReport::default();
        let mut asked = Vec::new();
        let (count, at_once) = (held_out.examples.len(), EVALUATION_EXAMPLES * width);
        for start in (0..count).step_by(at_once) {
            let part = held_out.examples.range(start..(start + at_once).min(count))?;
            for Packed { batch, .. } in pack(&part, width, BATCH_ROWS) {
                before_micro_step()?;
                // In every evaluation the batches are the same ones in the same order.
                let place = asked.len();
                if self.settings.beta.is_some() {
                    asked.push(match held_out.reference.get(place) {
                        Some(known) => known.clone(),
                        None => self.ask_reference(&batch)?,
                    });
                }
                let objective = self.objective(asked.get(place).map_or(&[], Vec::as_slice));
                add_report(&mut total, self.source.loss(&adapter, &batch, objective)?);
            }
        }
        held_out.reference = asked;
        Ok(Evaluation::of(&total))
    }

    /// Measures how the current adapter sorts the task's prompts into classes: a figure for each of its columns.
    pub fn classify(&self, task: &ClassificationTask, before_micro_step: BeforeMicroStep<'_>) -> Result<Vec<f64>> {
        let adapter = self.parameters.adapter(self.source.device())?;
        let mut log_likelihoods = Vec::new();
        for candidates in task.candidates() {
            for batch in pack_in_order(&candidates, BATCH_ROWS) {
                before_micro_step()?;
                log_likelihoods.extend(self.source.log_likelihoods(Some(&adapter), &batch)?);
            }
        }
        Ok(task.figures(&log_likelihoods))
    }

    /// Notes figures of the validation file with the last step, and keeps its adapter where it is the best one so far.
    pub fn record_validation(&mut self, evaluation: Evaluation) {
        if let Some(record) = self.history.last_mut() {
            record.validation = Some(evaluation);
        }
        if self.settings.keep_best && self.best_step() == Some(self.step_number()) {
            self.best = Some(self.parameters.values.clone());
        }
    }

    /// Notes figures of the classes with the last step.
    pub fn record_classification(&mut self, figures: Vec<f64>) {
        if let Some(record) = self.history.last_mut() {
            record.classification = figures;
        }
    }

    /// The step whose adapter has the lowest validation loss so far, the earliest of equals, counted from 1.
    pub fn best_step(&self) -> Option<usize> {
        let losses = self.history.iter().zip(1..).filter_map(|(record, step)| Some((record.validation?.loss, step)));
        losses.filter(|(loss, _)| !loss.is_nan()).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, step)| step)
    }

    /// True where the settings end the run before its last step, since the validation loss has not fallen for as many
    /// evaluations as they allow.
    pub fn has_ended_early(&self) -> bool {
        let after_best = &self.history[self.best_step().unwrap_or(0)..];
        let in_vain = after_best.iter().filter(|record| record.validation.is_some()).count();
        self.settings.patience > 0 && in_vain >= self.settings.patience
    }

    /// True where no step is left.
    pub fn is_complete(&self) -> bool {
        self.step_number() >= self.total_steps() || self.has_ended_early()
    }

    /// What the run results in, and the step that it comes from: the best adapter where the settings ask for it and there
    /// is one, else the last.
    pub fn result(&self) -> Result<(Adapter, usize)> {
        match (&self.best, self.best_step()) {
            (Some(values), Some(step)) if self.settings.keep_best => {
                Ok((self.parameters.adapter_of(values, self.source.device())?, step))
            }
            _ => Ok((self.adapter()?, self.step_number())),
        }
    }
}
