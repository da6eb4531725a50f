//! Trains embeddings: computes the loss with negatives from the batch that sentence-transformers calls
//! `MultipleNegativesRankingLoss` (Henderson et al., 2017), and its gradient. Called by the trainer and its evaluation.
//!
//! Every anchor of a batch is compared with all positives and negatives of the batch: scores are cosine similarities
//! times a scale, and the loss is the cross entropy of the anchor's own positive under their softmax, on average over
//! the anchors.
//!
//! A batch whose texts exceed the rows of one pack is computed as `GradCache` does (Gao et al., 2021): first the
//! vectors of all texts, keeping no activations, then the loss's gradient with respect to each vector, then each pack
//! forward and backward with these. The result is that of computing all at once.

use std::ops::Range;

use crate::train::backward::{self, Gradients, PassOptions};
use crate::train::batch::{LossReport, PackedBatch};
use crate::train::dropout::Dropout;
use crate::train::packing::{Packed, pack_texts};
use crate::train::parameters::add_gradients;
use crate::train::pooling::Pooled;
use crate::train::recomputation::Recomputation;
use crate::train::yielding::{BeforeMicroStep, YieldPolicy};
use crate::{Error, Result};
use attune_model::decoder::Decoder;
use attune_model::lora::Adapter;

/// Scale that brings the slopes of unit vectors, divided by the tokens of their texts, near to 1.
const GRADIENT_SCALE: f64 = 1024.0;

/// A batch of pairs of texts and the options of its loss.
#[derive(Debug, Clone, Copy)]
pub struct Contrast<'a> {
    /// Tokens of each pair's texts: an anchor, its positive, its negatives.
    pub pairs: &'a [Vec<Vec<u32>>],
    /// Factor on the similarities.
    pub scale: f64,
    /// Most rows of a pack.
    pub budget: usize,
    /// Dropout of the first pack; the others have masks of their own.
    pub dropout: Option<Dropout>,
    /// Activations that the backward pass computes again.
    pub recomputation: Recomputation,
}

/// Texts of a batch in packs.
struct Packs {
    packs: Vec<Packed>,
    /// Positions of each pair's texts.
    pairs: Vec<Range<usize>>,
}

impl Contrast<'_> {
    /// Computes the loss alone.
    pub fn loss(
        &self,
        decoder: &Decoder,
        adapter: Option<&Adapter>,
        before: BeforeMicroStep<'_>,
    ) -> Result<LossReport> {
        let Packs { packs, pairs } = self.packs();
        let vectors = self.vectors(decoder, adapter, &packs, before)?;
        Ok(compare(&vectors, &pairs, self.scale).0)
    }

    /// Computes the sums over the anchors and the gradients of the mean loss. Calls `before` before each pack.
    pub fn loss_and_gradients(
        &self,
        decoder: &Decoder,
        adapter: &Adapter,
        before: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Gradients)> {
        let Packs { packs, pairs } = self.packs();
        if let [only] = packs.as_slice() {
            before()?;
            return self.vector_gradients(decoder, adapter, 0, &only.batch, before, |vectors| {
                let (report, slopes) = compare(&in_order(&packs, vec![vectors.to_vec()]), &pairs, self.scale);
                (report, slopes_of(only, &slopes))
            });
        }
        let vectors = self.vectors(decoder, Some(adapter), &packs, before)?;
        let (report, slopes) = compare(&vectors, &pairs, self.scale);
        let mut sum: Option<Gradients> = None;
        for (index, pack) in packs.iter().enumerate() {
            before()?;
            let known = |_: &[Vec<f64>]| ((), slopes_of(pack, &slopes));
            let ((), gradients) = self.vector_gradients(decoder, adapter, index, &pack.batch, before, known)?;
            match &mut sum {
                None => sum = Some(gradients),
                Some(sum) => add_gradients(sum, &gradients)?,
            }
        }
        let gradients = sum.ok_or_else(|| Error::Internal("a batch without texts".into()))?;
        Ok((report, gradients))
    }

    fn packs(&self) -> Packs {
        let mut texts = Vec::new();
        let mut pairs = Vec::with_capacity(self.pairs.len());
        for pair in self.pairs {
            let begin = texts.len();
            texts.extend(pair.iter().map(Vec::as_slice));
            pairs.push(begin..texts.len());
        }
        Packs { packs: pack_texts(&texts, self.budget), pairs }
    }

    /// Computes the vectors of all texts, in order.
    fn vectors(
        &self,
        decoder: &Decoder,
        adapter: Option<&Adapter>,
        packs: &[Packed],
        before: BeforeMicroStep<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut vectors = Vec::with_capacity(packs.len());
        for (index, pack) in packs.iter().enumerate() {
            before()?;
            let pace = YieldPolicy::asking(before);
            vectors.push(embed(decoder, adapter, &pack.batch, self.dropout(index).as_ref(), pace)?);
        }
        Ok(in_order(packs, vectors))
    }

    /// Computes the adapter's gradients for one pack's `batch`; `slopes` turns the vectors into their gradients.
    fn vector_gradients<T>(
        &self,
        decoder: &Decoder,
        adapter: &Adapter,
        pack: usize,
        batch: &PackedBatch,
        before: BeforeMicroStep<'_>,
        slopes: impl FnOnce(&[Vec<f64>]) -> (T, Vec<Vec<f64>>),
    ) -> Result<(T, Gradients)> {
        let dropout = self.dropout(pack);
        let pace = YieldPolicy::asking(before);
        let manner = PassOptions { dropout: dropout.as_ref(), recomputation: self.recomputation, pace };
        let scale = decoder.gradient_scale(GRADIENT_SCALE);
        backward::gradients_from_hidden(decoder, adapter, batch, manner, scale, |hidden| {
            let pooled = Pooled::of(hidden, batch)?;
            let (result, slopes) = slopes(&pooled.vectors);
            Ok((result, (pooled.backward(&slopes, hidden, batch)? * scale)?))
        })
    }

    fn dropout(&self, pack: usize) -> Option<Dropout> {
        self.dropout.map(|dropout| Dropout { batch: dropout.batch + pack, ..dropout })
    }
}

/// Computes the vectors of the sequences of `batch`, equal to the answers of `/embeddings`.
pub fn embed(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    batch: &PackedBatch,
    dropout: Option<&Dropout>,
    pace: YieldPolicy<'_>,
) -> Result<Vec<Vec<f64>>> {
    let hidden = backward::hidden_states_with(decoder, adapter, batch, dropout, pace)?;
    Ok(Pooled::of(&hidden, batch)?.vectors)
}

/// Reorders the vectors of packs into the order of the texts.
fn in_order(packs: &[Packed], vectors: Vec<Vec<Vec<f64>>>) -> Vec<Vec<f64>> {
    let mut ordered = vec![Vec::new(); packs.iter().map(|pack| pack.units.len()).sum()];
    for (text, vector) in packs.iter().flat_map(|pack| &pack.units).zip(vectors.into_iter().flatten()) {
        ordered[*text] = vector;
    }
    ordered
}

/// Returns the slopes of a pack's texts in the order of its sequences.
fn slopes_of(pack: &Packed, slopes: &[Vec<f64>]) -> Vec<Vec<f64>> {
    pack.units.iter().map(|text| slopes[*text].clone()).collect()
}

/// Computes the loss of the pairs of `vectors`, and the gradient of its mean over the pairs with respect to each
/// vector. The first text of a pair is its anchor, the second its positive. An anchor counts as correct if its positive
/// is nearer than every other text that is not an anchor.
pub fn compare(vectors: &[Vec<f64>], pairs: &[Range<usize>], scale: f64) -> (LossReport, Vec<Vec<f64>>) {
    let mut slopes: Vec<Vec<f64>> = vectors.iter().map(|vector| vec![0.0; vector.len()]).collect();
    let mut report = LossReport::default();
    let candidates: Vec<usize> = pairs.iter().flat_map(|texts| texts.start + 1..texts.end).collect();
    for texts in pairs {
        let (anchor, own) = (&vectors[texts.start], texts.start + 1);
        let score = |text: &usize| scale * dot(anchor, &vectors[*text]);
        let scores: Vec<f64> = candidates.iter().map(score).collect();
        let (mut of_own, mut best_other) = (f64::NAN, f64::NEG_INFINITY);
        for (text, score) in candidates.iter().zip(&scores) {
            if *text == own {
                of_own = *score;
            } else {
                best_other = best_other.max(*score);
            }
        }
        let largest = best_other.max(of_own);
        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let log_sum_exp = largest + sum.ln();
        report.loss_sum += log_sum_exp - of_own;
        report.correct += usize::from(of_own > best_other);
        for (text, score) in candidates.iter().zip(&scores) {
            let wanted = if *text == own { 1.0 } else { 0.0 };
            let slope = scale * ((score - log_sum_exp).exp() - wanted) / pairs.len() as f64;
            add(&mut slopes[texts.start], slope, &vectors[*text]);
            add(&mut slopes[*text], slope, anchor);
        }
    }
    report.weight_sum = pairs.len() as f64;
    (report.targets, report.sequences, report.exact) = (pairs.len(), pairs.len(), report.correct);
    (report, slopes)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], factor: f64, vector: &[f64]) {
    sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += factor * value);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns two pairs, the second with two negatives; lengths differ from 1, since the gradient must hold for any
    /// vectors.
    fn texts() -> (Vec<Vec<f64>>, Vec<Range<usize>>) {
        let vector = |text: usize| (0..4).map(|i| ((text * 5 + i * 3) as f64 * 0.37).sin() * 0.6).collect();
        ((0..6).map(vector).collect(), vec![0..2, 2..6])
    }

    #[test]
    fn the_gradient_of_every_vector_equals_central_differences() {
        let (vectors, pairs) = texts();
        let (_, slopes) = compare(&vectors, &pairs, 5.0);
        for text in 0..vectors.len() {
            for index in 0..4 {
                let moved = |step: f64| {
                    let mut vectors = vectors.clone();
                    vectors[text][index] += step;
                    let report = compare(&vectors, &pairs, 5.0).0;
                    report.loss_sum / report.weight_sum
                };
                let measured = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                let slope = slopes[text][index];
                assert!((measured - slope).abs() < 1e-8, "text {text}: {measured} is not {slope}");
            }
        }
    }

    #[test]
    fn the_loss_is_the_cross_entropy_of_the_own_positive() {
        let vector = |x: f64| vec![x, (1.0 - x * x).sqrt()];
        // Cosines of the only anchors with (1, 0): scores 20, 12 and 0 for the first pair.
        let vectors = [vec![1.0, 0.0], vector(1.0), vec![0.0, 1.0], vector(0.6), vector(0.0)];
        let (report, _) = compare(&vectors, &[0..2, 2..5], 20.0);
        let first = (1.0 + (-8f64).exp() + (-20f64).exp()).ln();
        // The second anchor's scores are 0, 16 (its own) and 20: the negative is nearer.
        let second = 20.0 + (1.0 + (-4f64).exp() + (-20f64).exp()).ln() - 16.0;
        assert!((report.loss_sum - first - second).abs() < 1e-12, "{report:?}");
        assert_eq!((report.correct, report.targets, report.exact, report.sequences), (1, 2, 1, 2));
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one pair is meant")]
    fn a_single_pair_has_nothing_to_be_told_apart_from() {
        let (vectors, _) = texts();
        let (report, slopes) = compare(&vectors[..2], &[0..2], 20.0);
        assert!(report.loss_sum.abs() < 1e-15 && slopes.iter().flatten().all(|slope| slope.abs() < 1e-14));
    }

    #[test]
    fn what_is_not_a_number_is_not_hidden() {
        let (mut vectors, pairs) = texts();
        vectors[0][0] = f64::NAN;
        let (report, _) = compare(&vectors, &pairs, 20.0);
        assert!(report.loss_sum.is_nan());
        assert!(report.correct < 2);
    }
}
