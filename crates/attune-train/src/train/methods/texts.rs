//! What the methods that compare vectors of texts have in common. Called by [`super::text_pairs`] and
//! [`super::scored_pairs`].

use std::collections::HashMap;

use super::{EVALUATION_EXAMPLES, EVALUATION_SHARE, FLOAT, LossShape, Probe, RunInputs, WorkFactors};
use crate::Result;
use crate::datasets::{DatasetReport, ExampleStore, TokenizedExample};
use crate::train::contrastive::{Contrast, embed};
use crate::train::packing::{Packed, pack_texts};
use crate::train::pair_loss::PairLoss;
use crate::train::rate::{RateSum, Watch};
use crate::train::settings::TrainSettings;
use crate::train::yielding::{BeforeMicroStep, YieldPolicy};
use attune_model::lora::Adapter;

/// Most examples whose vectors are put in order: those that come first. Their comparisons take about a second, and
/// their vectors some 50 MiB.
pub(super) const MOST_RANKED: usize = 10_000;

/// The texts of a step that exceed one pack are read once more, for their vectors.
pub(super) fn work(settings: &TrainSettings, training: &DatasetReport) -> WorkFactors {
    let step = settings.batch_size.min(training.sequences) * training.tokens / training.sequences.max(1);
    let work = if step > settings.batch_rows { 1.0 + EVALUATION_SHARE } else { 1.0 };
    WorkFactors { first_epoch: work, later: work }
}

/// In place of logits: the vectors of a step's texts and their gradients, in f64 and twice each, and the batch's rows
/// with their gradients.
pub(super) fn loss_bytes(shape: &LossShape) -> u64 {
    let LossShape { rows, hidden, texts, vector, .. } = *shape;
    FLOAT * (8 * texts * vector + 4 * rows * hidden)
}

/// Reads the texts of an example as examples of their own, each read to its end.
pub(super) fn samples(examples: &ExampleStore, index: usize) -> Result<Vec<TokenizedExample>> {
    let whole = |text: Vec<u32>| TokenizedExample { weights: vec![1.0; text.len()], tokens: text };
    Ok(examples.texts(index)?.into_iter().map(whole).collect())
}

/// Measures a step on `samples`. The time does not depend on which texts are compared. All of them are one pack.
pub(super) fn calibrate(
    probe: Probe<'_>,
    samples: &[TokenizedExample],
    before: BeforeMicroStep<'_>,
    sum: &mut RateSum,
) -> Result<()> {
    before()?;
    let watch = Watch::start(probe.clocks);
    let pair: [Vec<Vec<u32>>; 1] = [samples.iter().map(|sample| sample.tokens.clone()).collect()];
    let batch = Contrast {
        form: probe.heads.vectors,
        pairs: &pair,
        unpooled: [0; 2],
        loss: PairLoss::Ranking { scale: 1.0 },
        budget: usize::MAX,
        dropout: None,
        recomputation: probe.recomputation,
    };
    batch.loss_and_gradients(probe.decoder, probe.adapter, &mut || Ok(()))?;
    sum.add(samples.iter().map(|sample| sample.tokens.len()).sum::<usize>() as f64, watch.stop());
    Ok(())
}

/// Different texts and their vectors.
#[derive(Default)]
pub(super) struct DistinctTexts {
    numbers: HashMap<Vec<u32>, usize>,
    texts: Vec<Vec<u32>>,
}

impl DistinctTexts {
    /// Returns the number of a text, a new one if need be.
    pub(super) fn number(&mut self, text: Vec<u32>) -> usize {
        let next = self.texts.len();
        *self.numbers.entry(text).or_insert_with_key(|text| {
            self.texts.push(text.clone());
            next
        })
    }

    /// Computes the vectors of all texts under `adapter`, by number; of each the first `unpooled` tokens are not
    /// pooled.
    pub(super) fn vectors(
        &self,
        run: &RunInputs<'_>,
        adapter: Option<&Adapter>,
        unpooled: usize,
        before: BeforeMicroStep<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let (decoder, form) = (run.source.decoder(), run.source.heads()?.vectors);
        let mut vectors = vec![Vec::new(); self.texts.len()];
        for (round, texts) in self.texts.chunks(EVALUATION_EXAMPLES).enumerate() {
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            for Packed { mut batch, units } in pack_texts(&texts, run.settings.batch_rows) {
                before()?;
                batch.unpooled = vec![unpooled; units.len()];
                let found = embed(decoder, form, adapter, &batch, None, YieldPolicy::asking(before))?;
                for (unit, vector) in units.into_iter().zip(found) {
                    let vector = vector.into_iter().map(|value| value as f32).collect();
                    vectors[round * EVALUATION_EXAMPLES + unit] = vector;
                }
            }
        }
        Ok(vectors)
    }
}
