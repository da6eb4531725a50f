//! Training on pairs of texts: their vectors are compared with each other ([`crate::train::contrastive`]). Called
//! through [`super::Method`].

use std::ops::Range;

use super::texts::{self, MOST_RANKED};
use super::{
    EVALUATION_EXAMPLES, EvaluationNotes, Figure, Labels, LossShape, Method, Probe, RunInputs, SAME_TEXTS, StepInputs,
    StepOutcome, WorkFactors,
};
use crate::Result;
use crate::datasets::{DatasetReport, ExampleStore, TokenizedExample};
use crate::train::batch::LossReport;
use crate::train::batches::{Batches, Texts};
use crate::train::contrastive::Contrast;
use crate::train::distinct_texts::DistinctTexts;
use crate::train::pair_loss::PairLoss;
use crate::train::ranking::Ranks;
use crate::train::rate::RateSum;
use crate::train::settings::TrainSettings;
use crate::train::yielding::BeforeMicroStep;
use attune_model::lora::Adapter;

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
            dropout: step.dropout(0),
            recomputation: step.recomputation,
            ..texts::contrast(run, &pairs, PairLoss::Ranking { scale: self.scale })?
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
                let contrast = texts::contrast(run, &batch, PairLoss::Ranking { scale: self.scale })?;
                total.add(contrast.loss(run.source.decoder(), Some(run.adapter), before)?);
            }
        }
        Ok(total)
    }

    fn work(&self, settings: &TrainSettings, training: &DatasetReport) -> WorkFactors {
        texts::work(settings, training)
    }

    fn loss_bytes(&self, shape: &LossShape) -> u64 {
        texts::loss_bytes(shape)
    }

    fn samples(&self, examples: &ExampleStore, index: usize) -> Result<Vec<TokenizedExample>> {
        texts::samples(examples, index)
    }

    fn calibrate(
        &self,
        probe: Probe<'_>,
        samples: &[TokenizedExample],
        before: BeforeMicroStep<'_>,
        sum: &mut RateSum,
    ) -> Result<()> {
        texts::calibrate(probe, samples, before, sum)
    }

    /// Compares each anchor with all different positives.
    fn quality_of(
        &self,
        run: &RunInputs<'_>,
        adapter: Option<&Adapter>,
        before: BeforeMicroStep<'_>,
    ) -> Result<Vec<f64>> {
        let (mut anchors, mut positives, mut pairs) = (DistinctTexts::default(), DistinctTexts::default(), Vec::new());
        for index in 0..run.examples.len().min(MOST_RANKED) {
            let mut texts = run.examples.texts(index)?.into_iter();
            let (anchor, positive) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
            pairs.push([anchors.number(anchor), positives.number(positive)]);
        }
        let [of_anchor, of_others] = run.examples.unpooled();
        let maker = texts::maker(run, adapter)?;
        let anchors = anchors.vectors(maker, of_anchor, before)?;
        let ranks = Ranks::of(&pairs, &anchors, &positives.vectors(maker, of_others, before)?)?;
        Ok(vec![ranks.recall(1), ranks.recall(10)])
    }

    fn labels(&self) -> Labels {
        Labels {
            examples: "pairs of texts",
            accuracy: "accuracy",
            left_out: SAME_TEXTS,
            of_texts: true,
            rewards: false,
            quality: &[
                Figure { name: "recall_at_1", words: "recall@1" },
                Figure { name: "recall_at_10", words: "recall@10" },
            ],
        }
    }
}
