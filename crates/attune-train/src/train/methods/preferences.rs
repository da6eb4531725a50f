//! Training on preferences: pairs of answers, compared with the model that training began with
//! ([`crate::train::preference`]). Called through [`super::Method`].

use std::ops::Range;

use super::{
    EVALUATION_SHARE, EvaluationNotes, Labels, Method, PROMPT_FILLS_CONTEXT, RunInputs, StepInputs, StepOutcome,
    StepSum, WorkFactors,
};
use crate::Result;
use crate::datasets::DatasetReport;
use crate::train::backward::Objective;
use crate::train::batch::LossReport;
use crate::train::packing::{Packed, pack};
use crate::train::preference::Preferences;
use crate::train::settings::TrainSettings;
use crate::train::yielding::BeforeMicroStep;

pub(super) struct AnswerPairs {
    /// Strength of the pull towards the reference model.
    pub beta: f64,
}

impl AnswerPairs {
    fn objective<'a>(&self, reference: &'a [f64]) -> Objective<'a> {
        Objective::Preferences(Preferences { beta: self.beta, reference })
    }
}

impl Method for AnswerPairs {
    fn gradients(&self, step: &StepInputs<'_>, before: BeforeMicroStep<'_>) -> Result<StepOutcome> {
        let packs = step.packs(self.width())?;
        let normalizer = packs.iter().map(|pack| pack.units.len() as f64).sum();
        let (mut sum, mut asked) = (StepSum::default(), Vec::new());
        for (index, Packed { batch, units }) in packs.iter().enumerate() {
            before()?;
            let places: Vec<usize> = units.iter().map(|unit| step.units[*unit]).collect();
            let known: Option<Vec<[f64; 2]>> = places.iter().map(|place| step.reference[*place]).collect();
            let reference = if let Some(known) = known {
                known.concat()
            } else {
                let reference = step.run.ask_reference(batch, before)?;
                asked.extend(places.into_iter().zip(reference.chunks_exact(2).map(|pair| [pair[0], pair[1]])));
                before()?;
                reference
            };
            sum.add(step.micro_step(index, batch, self.objective(&reference), normalizer, before)?)?;
        }
        let (report, gradients) = sum.finish()?;
        Ok(StepOutcome { report, gradients, asked })
    }

    fn evaluate(
        &self,
        run: &RunInputs<'_>,
        places: Range<usize>,
        notes: &mut EvaluationNotes<'_>,
        before: BeforeMicroStep<'_>,
    ) -> Result<LossReport> {
        let (mut total, mut batches) = (LossReport::default(), 0);
        let reference = &mut *notes.reference;
        for examples in run.rounds(places, self.width()) {
            for Packed { batch, .. } in pack(&examples?, self.width(), run.settings.batch_rows) {
                before()?;
                // Every evaluation has the same batches in the same order.
                if batches == reference.len() {
                    reference.push(run.ask_reference(&batch, before)?);
                }
                total.add(run.loss(&batch, self.objective(&reference[batches]), before)?);
                batches += 1;
            }
        }
        Ok(total)
    }

    fn width(&self) -> usize {
        2
    }

    fn asks_reference(&self) -> bool {
        true
    }

    /// In the first epoch the reference reads each token as well.
    fn work(&self, _: &TrainSettings, _: &DatasetReport) -> WorkFactors {
        WorkFactors { first_epoch: 1.0 + EVALUATION_SHARE, later: 1.0 }
    }

    fn labels(&self) -> Labels {
        Labels {
            examples: "pairs of answers",
            accuracy: "mean_token_accuracy",
            left_out: PROMPT_FILLS_CONTEXT,
            of_texts: false,
            rewards: true,
            quality: &[],
        }
    }
}
