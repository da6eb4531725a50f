//! Training on pairs of texts with labels: the model reads both texts at once, and its head scores them
//! ([`crate::train::cross_encoder`]). Called through [`super::Method`].

use std::ops::Range;

use super::{
    EVALUATION_EXAMPLES, EvaluationNotes, FLOAT, Figure, Labels, LossShape, Method, Probe, RunInputs, StepInputs,
    StepOutcome,
};
use crate::datasets::{ExampleStore, TokenizedExample};
use crate::train::batch::LossReport;
use crate::train::cross_encoder::{LabelledTexts, ScoredBatch};
use crate::train::ranking::average_precision;
use crate::train::rate::{RateSum, Watch};
use crate::train::recomputation::Recomputation;
use crate::train::yielding::BeforeMicroStep;
use crate::{Error, Result};
use attune_model::classifier::Classifier;
use attune_model::lora::Adapter;

pub(super) struct LabelledPairs;

fn read(examples: &ExampleStore, indices: impl Iterator<Item = usize>) -> Result<Vec<LabelledTexts>> {
    indices.map(|index| examples.scored(index).map(LabelledTexts::of)).collect()
}

fn head(classifier: Option<&Classifier>) -> Result<&Classifier> {
    classifier.ok_or_else(|| Error::Internal("labels were trained on without a classification head".into()))
}

/// Computes the loss of the examples at `places` under `adapter`, and the head's number for each.
fn measure(
    run: &RunInputs<'_>,
    adapter: Option<&Adapter>,
    places: Range<usize>,
    before: BeforeMicroStep<'_>,
) -> Result<(LossReport, Vec<f64>)> {
    let (mut total, mut numbers) = (LossReport::default(), Vec::with_capacity(places.len()));
    for start in places.clone().step_by(EVALUATION_EXAMPLES) {
        let examples = read(run.examples, start..(start + EVALUATION_EXAMPLES).min(places.end))?;
        let batch = ScoredBatch {
            classifier: head(run.source.heads()?.classifier)?,
            examples: &examples,
            budget: run.settings.batch_rows,
            dropout: None,
            recomputation: Recomputation::None,
        };
        let (report, found) = batch.loss(run.source.decoder(), adapter, before)?;
        total.add(report);
        numbers.extend(found);
    }
    Ok((total, numbers))
}

impl Method for LabelledPairs {
    fn gradients(&self, step: &StepInputs<'_>, before: BeforeMicroStep<'_>) -> Result<StepOutcome> {
        let run = &step.run;
        let examples = read(run.examples, step.units.iter().copied())?;
        let batch = ScoredBatch {
            classifier: head(run.source.heads()?.classifier)?,
            examples: &examples,
            budget: run.settings.batch_rows,
            dropout: step.dropout(0),
            recomputation: step.recomputation,
        };
        let (report, gradients) = batch.loss_and_gradients(run.source.decoder(), run.adapter, before)?;
        Ok(StepOutcome { report, gradients, asked: Vec::new() })
    }

    fn evaluate(
        &self,
        run: &RunInputs<'_>,
        places: Range<usize>,
        _: &mut EvaluationNotes<'_>,
        before: BeforeMicroStep<'_>,
    ) -> Result<LossReport> {
        Ok(measure(run, Some(run.adapter), places, before)?.0)
    }

    /// In place of logits: the batch's rows with their gradients; the head's numbers take next to nothing.
    fn loss_bytes(&self, shape: &LossShape) -> u64 {
        let LossShape { rows, hidden, texts, .. } = *shape;
        FLOAT * (4 * texts * hidden + 4 * rows * hidden)
    }

    /// Both texts are one sequence, read to its end.
    fn samples(&self, examples: &ExampleStore, index: usize) -> Result<Vec<TokenizedExample>> {
        let tokens = examples.texts(index)?.concat();
        Ok(vec![TokenizedExample { weights: vec![1.0; tokens.len()], tokens }])
    }

    fn calibrate(
        &self,
        probe: Probe<'_>,
        samples: &[TokenizedExample],
        before: BeforeMicroStep<'_>,
        sum: &mut RateSum,
    ) -> Result<()> {
        let of_sample = |sample: &TokenizedExample| LabelledTexts::of((vec![sample.tokens.clone()], 1.0));
        let examples: Vec<_> = samples.iter().map(of_sample).collect();
        before()?;
        let watch = Watch::start(probe.clocks);
        let batch = ScoredBatch {
            classifier: head(probe.heads.classifier)?,
            examples: &examples,
            budget: usize::MAX,
            dropout: None,
            recomputation: probe.recomputation,
        };
        batch.loss_and_gradients(probe.decoder, probe.adapter, &mut || Ok(()))?;
        sum.add(samples.iter().map(|sample| sample.tokens.len()).sum::<usize>() as f64, watch.stop());
        Ok(())
    }

    fn quality_of(
        &self,
        run: &RunInputs<'_>,
        adapter: Option<&Adapter>,
        before: BeforeMicroStep<'_>,
    ) -> Result<Vec<f64>> {
        let places = 0..run.examples.len();
        let (_, numbers) = measure(run, adapter, places.clone(), before)?;
        let answers = places.map(|index| Ok(run.examples.scored(index)?.1 >= 0.5)).collect::<Result<Vec<_>>>()?;
        Ok(vec![average_precision(&numbers, &answers)])
    }

    fn labels(&self) -> Labels {
        Labels {
            examples: "pairs of texts with labels",
            accuracy: "accuracy",
            left_out: "were left out",
            of_texts: true,
            rewards: false,
            quality: &[Figure { name: "average_precision", words: "average precision" }],
        }
    }
}
