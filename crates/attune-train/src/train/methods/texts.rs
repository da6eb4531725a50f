//! What the methods that compare vectors of texts have in common. Called by [`super::text_pairs`] and
//! [`super::scored_pairs`].

use super::{EVALUATION_SHARE, FLOAT, LossShape, Probe, RunInputs, WorkFactors};
use crate::Result;
use crate::datasets::{DatasetReport, ExampleStore, TokenizedExample};
use crate::train::contrastive::Contrast;
use crate::train::distinct_texts::VectorMaker;
use crate::train::pair_loss::PairLoss;
use crate::train::rate::{RateSum, Watch};
use crate::train::recomputation::Recomputation;
use crate::train::settings::TrainSettings;
use crate::train::yielding::BeforeMicroStep;
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

/// Returns a batch of `pairs` of the run with this `loss`, as it is evaluated: nothing is dropped out or computed again.
pub(super) fn contrast<'a>(
    run: &RunInputs<'a>,
    pairs: &'a [Vec<Vec<u32>>],
    loss: PairLoss<'a>,
) -> Result<Contrast<'a>> {
    Ok(Contrast {
        form: run.source.heads()?.vectors,
        pairs,
        unpooled: run.examples.unpooled(),
        loss,
        budget: run.settings.batch_rows,
        dropout: None,
        recomputation: Recomputation::None,
    })
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

/// Returns the model that makes vectors under `adapter`.
pub(super) fn maker<'a>(run: &RunInputs<'a>, adapter: Option<&'a Adapter>) -> Result<VectorMaker<'a>> {
    let (decoder, form) = (run.source.decoder(), run.source.heads()?.vectors);
    Ok(VectorMaker { decoder, form, adapter, budget: run.settings.batch_rows })
}
