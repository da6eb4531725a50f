//! Training on pairs of texts with scores: the cosine of each pair's vectors shall be its score
//! ([`crate::train::pair_loss`]). Called through [`super::Method`].

use std::ops::Range;

use super::texts::{self, MOST_RANKED};
use super::{
    EVALUATION_EXAMPLES, EvaluationNotes, Figure, Labels, LossShape, Method, Probe, RunInputs, SAME_TEXTS, StepInputs,
    StepOutcome, WorkFactors,
};
use crate::Result;
use crate::datasets::{DatasetReport, ExampleStore, TokenizedExample};
use crate::train::batch::LossReport;
use crate::train::contrastive::Contrast;
use crate::train::distinct_texts::DistinctTexts;
use crate::train::pair_loss::PairLoss;
use crate::train::ranking::rank_correlation;
use crate::train::rate::RateSum;
use crate::train::settings::TrainSettings;
use crate::train::yielding::BeforeMicroStep;
use attune_model::lora::Adapter;

pub(super) struct ScoredPairs;

/// Tokens of the texts of each pair, and the pairs' scores.
type Scored = (Vec<Vec<Vec<u32>>>, Vec<f32>);

/// Reads the pairs at `indices` and their scores.
fn read(examples: &ExampleStore, indices: impl Iterator<Item = usize>) -> Result<Scored> {
    let read = indices.map(|index| examples.scored(index)).collect::<Result<Vec<_>>>()?;
    Ok(read.into_iter().unzip())
}

impl Method for ScoredPairs {
    fn gradients(&self, step: &StepInputs<'_>, before: BeforeMicroStep<'_>) -> Result<StepOutcome> {
        let run = &step.run;
        let (pairs, scores) = read(run.examples, step.units.iter().copied())?;
        let batch = Contrast {
            dropout: step.dropout(0),
            recomputation: step.recomputation,
            ..texts::contrast(run, &pairs, PairLoss::Similarity { scores: &scores })?
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
        let mut total = LossReport::default();
        for start in places.clone().step_by(EVALUATION_EXAMPLES) {
            let (pairs, scores) = read(run.examples, start..(start + EVALUATION_EXAMPLES).min(places.end))?;
            let batch = texts::contrast(run, &pairs, PairLoss::Similarity { scores: &scores })?;
            total.add(batch.loss(run.source.decoder(), Some(run.adapter), before)?);
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

    fn quality_of(
        &self,
        run: &RunInputs<'_>,
        adapter: Option<&Adapter>,
        before: BeforeMicroStep<'_>,
    ) -> Result<Vec<f64>> {
        let (pairs, scores) = read(run.examples, 0..run.examples.len().min(MOST_RANKED))?;
        let (mut first, mut second) = (DistinctTexts::default(), DistinctTexts::default());
        let numbered: Vec<[usize; 2]> = pairs
            .into_iter()
            .map(|pair| {
                let mut texts = pair.into_iter();
                [first.number(texts.next().unwrap_or_default()), second.number(texts.next().unwrap_or_default())]
            })
            .collect();
        let unpooled = run.examples.unpooled();
        let maker = texts::maker(run, adapter)?;
        let (first, second) = (first.vectors(maker, unpooled[0], before)?, second.vectors(maker, unpooled[1], before)?);
        let cosine = |[a, b]: &[usize; 2]| {
            first[*a].iter().zip(&second[*b]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let cosines: Vec<f64> = numbered.iter().map(cosine).collect();
        let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
        Ok(vec![rank_correlation(&cosines, &scores)])
    }

    fn labels(&self) -> Labels {
        Labels {
            examples: "pairs of texts with scores",
            accuracy: "accuracy",
            left_out: SAME_TEXTS,
            of_texts: true,
            rewards: false,
            quality: &[Figure { name: "rank_correlation", words: "rank correlation" }],
        }
    }
}
