//! Training on answers: the cross entropy of their tokens. Called through [`super::Method`].

use std::ops::Range;

use super::{EvaluationNotes, Labels, Method, PROMPT_FILLS_CONTEXT, RunInputs, StepInputs, StepOutcome, StepSum};
use crate::Result;
use crate::train::backward::Objective;
use crate::train::batch::LossReport;
use crate::train::packing::{Packed, pack};
use crate::train::yielding::{BeforeMicroStep, YieldPolicy};

pub(super) struct Answers;

impl Method for Answers {
    fn gradients(&self, step: &StepInputs<'_>, before: BeforeMicroStep<'_>) -> Result<StepOutcome> {
        let packs = step.packs(self.width())?;
        let normalizer = packs.iter().flat_map(|pack| &pack.batch.targets).map(|target| f64::from(target.weight)).sum();
        let mut sum = StepSum::default();
        for (index, Packed { batch, .. }) in packs.iter().enumerate() {
            before()?;
            sum.add(step.micro_step(index, batch, Objective::Targets, normalizer, before)?)?;
        }
        let (report, gradients) = sum.finish()?;
        Ok(StepOutcome { report, gradients, asked: Vec::new() })
    }

    fn evaluate(
        &self,
        run: &RunInputs<'_>,
        places: Range<usize>,
        notes: &mut EvaluationNotes<'_>,
        before: BeforeMicroStep<'_>,
    ) -> Result<LossReport> {
        let mut total = LossReport::default();
        let mut first = places.start;
        for examples in run.rounds(places, self.width()) {
            let examples = examples?;
            for Packed { batch, units } in pack(&examples, self.width(), run.settings.batch_rows) {
                before()?;
                let Some(predicted) = &mut notes.predicted else {
                    total.add(run.loss(&batch, Objective::Targets, before)?);
                    continue;
                };
                let (report, best) = run.source.predictions(Some(run.adapter), &batch, YieldPolicy::asking(before))?;
                total.add(report);
                for (unit, tokens) in units.into_iter().zip(batch.by_sequence(&best)) {
                    predicted[first + unit] = tokens;
                }
            }
            first += examples.len();
        }
        Ok(total)
    }

    fn labels(&self) -> Labels {
        Labels {
            examples: "examples",
            accuracy: "mean_token_accuracy",
            left_out: PROMPT_FILLS_CONTEXT,
            of_texts: false,
            rewards: false,
            quality: &[],
        }
    }
}
