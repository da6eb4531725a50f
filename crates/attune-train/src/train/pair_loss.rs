//! Losses of vectors of length 1 that are compared with each other, and their gradients. Called by
//! [`super::contrastive`].

use std::ops::Range;

use crate::train::batch::LossReport;

/// Largest distance of a cosine from its score at which the pair counts as correct.
const NEAR: f64 = 0.1;

/// The loss to minimise.
#[derive(Debug, Clone, Copy)]
pub enum PairLoss<'a> {
    /// Cross entropy of the own positive among all positives and negatives of the batch, which sentence-transformers
    /// calls `MultipleNegativesRankingLoss` (Henderson et al., 2017). Scores are cosines times `scale`.
    Ranking {
        /// Factor on the similarities.
        scale: f64,
    },
    /// Squared difference of the cosine of two texts from their score: `CosineSimilarityLoss` of sentence-transformers.
    Similarity {
        /// Cosine that each pair shall have.
        scores: &'a [f32],
    },
}

impl PairLoss<'_> {
    /// Computes the loss of the pairs of `vectors`, and the gradient of its mean over the pairs with respect to each
    /// vector. The first text of a pair is its anchor, the second its positive.
    pub fn compare(self, vectors: &[Vec<f64>], pairs: &[Range<usize>]) -> (LossReport, Vec<Vec<f64>>) {
        match self {
            Self::Ranking { scale } => rank(vectors, pairs, scale),
            Self::Similarity { scores } => approach(vectors, pairs, scores),
        }
    }
}

/// Compares each anchor with the other texts of all pairs. An anchor counts as correct if its positive is nearer than
/// every other text that is not an anchor.
fn rank(vectors: &[Vec<f64>], pairs: &[Range<usize>], scale: f64) -> (LossReport, Vec<Vec<f64>>) {
    let (mut slopes, mut report) = (zeros(vectors), LossReport::default());
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
    (counted(report, pairs.len()), slopes)
}

/// Compares the cosine of each pair's two texts with its score. A pair counts as correct if they are less than
/// [`NEAR`] apart.
fn approach(vectors: &[Vec<f64>], pairs: &[Range<usize>], scores: &[f32]) -> (LossReport, Vec<Vec<f64>>) {
    let (mut slopes, mut report) = (zeros(vectors), LossReport::default());
    for (texts, score) in pairs.iter().zip(scores) {
        let (first, second) = (texts.start, texts.start + 1);
        let distance = dot(&vectors[first], &vectors[second]) - f64::from(*score);
        report.loss_sum += distance * distance;
        report.correct += usize::from(distance.abs() < NEAR);
        let slope = 2.0 * distance / pairs.len() as f64;
        add(&mut slopes[first], slope, &vectors[second]);
        add(&mut slopes[second], slope, &vectors[first]);
    }
    (counted(report, pairs.len()), slopes)
}

/// Completes a report of which each of `pairs` pairs is one target.
fn counted(mut report: LossReport, pairs: usize) -> LossReport {
    report.weight_sum = pairs as f64;
    (report.targets, report.sequences, report.exact) = (pairs, pairs, report.correct);
    report
}

fn zeros(vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    vectors.iter().map(|vector| vec![0.0; vector.len()]).collect()
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
        for loss in [PairLoss::Ranking { scale: 5.0 }, PairLoss::Similarity { scores: &[0.8, -0.3] }] {
            let (_, slopes) = loss.compare(&vectors, &pairs);
            for text in 0..vectors.len() {
                for index in 0..4 {
                    let moved = |step: f64| {
                        let mut vectors = vectors.clone();
                        vectors[text][index] += step;
                        let report = loss.compare(&vectors, &pairs).0;
                        report.loss_sum / report.weight_sum
                    };
                    let measured = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    let slope = slopes[text][index];
                    assert!((measured - slope).abs() < 1e-8, "{loss:?}, text {text}: {measured} is not {slope}");
                }
            }
        }
    }

    #[test]
    fn the_ranking_loss_is_the_cross_entropy_of_the_own_positive() {
        let vector = |x: f64| vec![x, (1.0 - x * x).sqrt()];
        // Cosines of the only anchors with (1, 0): scores 20, 12 and 0 for the first pair.
        let vectors = [vec![1.0, 0.0], vector(1.0), vec![0.0, 1.0], vector(0.6), vector(0.0)];
        let (report, _) = PairLoss::Ranking { scale: 20.0 }.compare(&vectors, &[0..2, 2..5]);
        let first = (1.0 + (-8f64).exp() + (-20f64).exp()).ln();
        // The second anchor's scores are 0, 16 (its own) and 20: the negative is nearer.
        let second = 20.0 + (1.0 + (-4f64).exp() + (-20f64).exp()).ln() - 16.0;
        assert!((report.loss_sum - first - second).abs() < 1e-12, "{report:?}");
        assert_eq!((report.correct, report.targets, report.exact, report.sequences), (1, 2, 1, 2));
    }

    #[test]
    fn the_similarity_loss_is_the_squared_distance_of_cosine_and_score() {
        let vectors = [vec![1.0, 0.0], vec![0.6, 0.8], vec![0.0, 1.0], vec![0.6, 0.8]];
        let (report, _) = PairLoss::Similarity { scores: &[0.4, 0.85] }.compare(&vectors, &[0..2, 2..4]);
        assert!((report.loss_sum - 0.04 - 0.0025).abs() < 1e-7, "{report:?}");
        assert_eq!((report.correct, report.targets), (1, 2), "0.05 is near, 0.2 is not");
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one pair is meant")]
    fn a_single_pair_has_nothing_to_be_told_apart_from() {
        let (vectors, _) = texts();
        let (report, slopes) = PairLoss::Ranking { scale: 20.0 }.compare(&vectors[..2], &[0..2]);
        assert!(report.loss_sum.abs() < 1e-15 && slopes.iter().flatten().all(|slope| slope.abs() < 1e-14));
    }

    #[test]
    fn what_is_not_a_number_is_not_hidden() {
        let (mut vectors, pairs) = texts();
        vectors[0][0] = f64::NAN;
        for loss in [PairLoss::Ranking { scale: 20.0 }, PairLoss::Similarity { scores: &[0.0, 0.0] }] {
            let (report, _) = loss.compare(&vectors, &pairs);
            assert!(report.loss_sum.is_nan());
            assert!(report.correct < 2);
        }
    }
}
