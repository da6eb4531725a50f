//! Training on pairs of texts: their vectors are compared with each other ([`crate::train::contrastive`]). Called
//! through [`super::Method`].

use std::ops::Range;

use super::{
    EVALUATION_EXAMPLES, EVALUATION_SHARE, EvaluationNotes, FLOAT, Labels, LossShape, Method, Probe, RunInputs,
    StepInputs, StepOutcome, WorkFactors,
};
use crate::Result;
use crate::datasets::{DatasetReport, ExampleStore, TokenizedExample};
use crate::train::batch::LossReport;
use crate::train::batches::{Batches, Texts};
use crate::train::contrastive::Contrast;
use crate::train::rate::{RateSum, Watch};
use crate::train::recomputation::Recomputation;
use crate::train::settings::TrainSettings;
use crate::train::yielding::BeforeMicroStep;

pub(super) struct TextPairs {
    /// Factor on the similarities.
    pub scale: f64,
}

impl Method for TextPairs {
    fn batches(&self, settings: &TrainSettings, examples: &ExampleStore) -> Result<Batches> {
        Batches::of_pairs(settings.seed, settings.epochs, examples, settings.batch_size)
    }

    fn gradients(&self, step: &StepInputs<'_>, before: BeforeMicroStep<'_>) -> Result<StepOutcome> {
        let run = &step.run;
        let pairs = step.units.iter().map(|unit| run.examples.texts(*unit)).collect::<Result<Vec<_>>>()?;
        let batch = Contrast {
            pairs: &pairs,
            scale: self.scale,
            budget: run.settings.batch_rows,
            dropout: step.dropout(0),
            recomputation: step.recomputation,
        };
        let (report, gradients) = batch.loss_and_gradients(run.source.decoder(), run.adapter, before)?;
        Ok(StepOutcome { report, gradients, asked: Vec::new() })
    }

    /// The pairs are compared with each other in the order of the file, as many at once as in training.
    fn evaluate(
        &self,
        run: &RunInputs<'_>,
        places: Range<usize>,
        _: &mut EvaluationNotes<'_>,
        before: BeforeMicroStep<'_>,
    ) -> Result<LossReport> {
        let size = run.settings.batch_size;
        let at_once = size * (EVALUATION_EXAMPLES / size).max(1);
        let mut total = LossReport::default();
        for start in places.clone().step_by(at_once) {
            let indices = start..(start + at_once).min(places.end);
            let pairs = indices.map(|index| run.examples.texts(index)).collect::<Result<Vec<_>>>()?;
            let texts = Texts::of(pairs.iter().cloned().map(Ok))?;
            // Batches of nearly equal sizes: a pair alone in a batch would always count as correct.
            let even = pairs.len().div_ceil(pairs.len().div_ceil(size));
            for batch in texts.batches(&(0..pairs.len()).collect::<Vec<_>>(), even) {
                let batch: Vec<_> = batch.into_iter().map(|place| pairs[place].clone()).collect();
                let contrast = Contrast {
                    pairs: &batch,
                    scale: self.scale,
                    budget: run.settings.batch_rows,
                    dropout: None,
                    recomputation: Recomputation::None,
                };
                total.add(contrast.loss(run.source.decoder(), Some(run.adapter), before)?);
            }
        }
        Ok(total)
    }

    /// The texts of a step that exceed one pack are read once more, for their vectors.
    fn work(&self, settings: &TrainSettings, training: &DatasetReport) -> WorkFactors {
        let step = settings.batch_size.min(training.sequences) * training.tokens / training.sequences.max(1);
        let work = if step > settings.batch_rows { 1.0 + EVALUATION_SHARE } else { 1.0 };
        WorkFactors { first_epoch: work, later: work }
    }

    /// In place of logits: the vectors of a step's texts and their gradients, in f64 and twice each.
    fn loss_bytes(&self, shape: &LossShape) -> u64 {
        let LossShape { rows, hidden, texts, .. } = *shape;
        FLOAT * (8 * texts * hidden + 3 * rows * hidden)
    }

    /// Each text is an example of its own, read to its end.
    fn samples(&self, examples: &ExampleStore, index: usize) -> Result<Vec<TokenizedExample>> {
        let whole = |text: Vec<u32>| TokenizedExample { weights: vec![1.0; text.len()], tokens: text };
        Ok(examples.texts(index)?.into_iter().map(whole).collect())
    }

    /// The time does not depend on which texts are compared. All of them are one pack.
    fn calibrate(
        &self,
        probe: Probe<'_>,
        samples: &[TokenizedExample],
        before: BeforeMicroStep<'_>,
        sum: &mut RateSum,
    ) -> Result<()> {
        before()?;
        let watch = Watch::start(probe.clocks);
        let pair: [Vec<Vec<u32>>; 1] = [samples.iter().map(|sample| sample.tokens.clone()).collect()];
        let (scale, recomputation) = (self.scale, probe.recomputation);
        let batch = Contrast { pairs: &pair, scale, budget: usize::MAX, dropout: None, recomputation };
        batch.loss_and_gradients(probe.decoder, probe.adapter, &mut || Ok(()))?;
        sum.add(samples.iter().map(|sample| sample.tokens.len()).sum::<usize>() as f64, watch.stop());
        Ok(())
    }

    fn labels(&self) -> Labels {
        Labels {
            examples: "pairs of texts",
            accuracy: "accuracy",
            left_out: "were left out, since the two texts are the same as far as they fit the model's context",
            vectors: true,
            rewards: false,
        }
    }
}
