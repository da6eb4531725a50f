//! Measures how well vectors and scores put texts in order: figures of the whole validation file beside its loss. Called
//! by [`super::methods`] with vectors and scores that are computed already.

use std::collections::HashSet;

use candle_core::{Device, Tensor};

use crate::Result;

/// Anchors that are compared with all texts at one time.
const ROWS: usize = 256;

/// Places of the own positives of anchors among all positives, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks(Vec<usize>);

impl Ranks {
    /// Ranks the positive of each of `pairs`, given as the numbers of an anchor and a text. `anchors` `[anchors, width]`
    /// and `texts` `[texts, width]` have length 1. Other positives of the same anchor do not count against it; of equal
    /// texts the own positive is the last.
    pub fn of(pairs: &[[usize; 2]], anchors: &[Vec<f32>], texts: &[Vec<f32>]) -> Result<Self> {
        let own: HashSet<[usize; 2]> = pairs.iter().copied().collect();
        let mut by_anchor: Vec<usize> = (0..pairs.len()).collect();
        by_anchor.sort_by_key(|pair| pairs[*pair][0]);
        let all = matrix(texts)?.t()?;
        let mut ranks = vec![0; pairs.len()];
        let mut rest = by_anchor.into_iter().peekable();
        for (chunk, part) in anchors.chunks(ROWS).enumerate() {
            let scores = matrix(part)?.matmul(&all)?.to_vec2::<f32>()?; // [anchors, texts]
            for (row, anchor) in scores.iter().zip(chunk * ROWS..) {
                while let Some(pair) = rest.next_if(|pair| pairs[*pair][0] == anchor) {
                    let text = pairs[pair][1];
                    let is_before = |(other, score): (usize, &f32)| {
                        // A score that is not a number must not look like a good one.
                        other != text
                            && (score.is_nan() || row[text].is_nan() || *score >= row[text])
                            && !own.contains(&[anchor, other])
                    };
                    ranks[pair] = 1 + row.iter().enumerate().filter(|place| is_before(*place)).count();
                }
            }
        }
        Ok(Self(ranks))
    }

    /// Returns the share of the pairs whose positive is among the first `count` texts; NaN if there are no pairs.
    pub fn recall(&self, count: usize) -> f64 {
        self.0.iter().filter(|rank| **rank <= count).count() as f64 / self.0.len() as f64
    }
}

fn matrix(rows: &[Vec<f32>]) -> Result<Tensor> {
    let width = rows.first().map_or(0, Vec::len);
    Ok(Tensor::from_vec(rows.concat(), (rows.len(), width), &Device::Cpu)?)
}

/// Computes the average precision of `scores`: the mean, over the documents that answer their query, of the share of
/// such documents among those that score at least as high. NaN if there is no such document. Equal scores are one place.
pub fn average_precision(scores: &[f64], answers: &[bool]) -> f64 {
    let mut order: Vec<(f64, bool)> = scores.iter().copied().zip(answers.iter().copied()).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut sum, mut seen, mut found) = (0.0, 0, 0);
    for equal in order.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let new = equal.iter().filter(|(_, answers)| *answers).count();
        seen += equal.len();
        found += new;
        sum += new as f64 * found as f64 / seen as f64;
    }
    sum / found as f64
}

/// Computes Spearman's rank correlation of two lists; NaN if all numbers of one are equal.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (places(a), places(b));
    let mean = f64::midpoint(a.len() as f64, 1.0);
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

/// Returns the place of each number in rising order, from 1; equal ones share the mean of theirs.
fn places(numbers: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|a, b| numbers[*a].total_cmp(&numbers[*b]));
    let (mut places, mut before) = (vec![0.0; numbers.len()], 0);
    for equal in order.chunk_by(|a, b| numbers[*a].total_cmp(&numbers[*b]).is_eq()) {
        let place = before as f64 + f64::midpoint(equal.len() as f64, 1.0);
        for index in equal {
            places[*index] = place;
        }
        before += equal.len();
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(angle: f32) -> Vec<f32> {
        vec![angle.cos(), angle.sin()]
    }

    #[test]
    fn the_rank_counts_the_texts_that_are_nearer() {
        let anchors = [at(0.0), at(1.0)];
        let texts = [at(0.1), at(0.3), at(0.9), at(2.0)];
        let ranks = Ranks::of(&[[0, 0], [0, 2], [1, 3], [1, 1]], &anchors, &texts).unwrap();
        // The first anchor's other positive does not count against it.
        assert_eq!(ranks, Ranks(vec![1, 2, 3, 2]));
        assert!((ranks.recall(1) - 0.25).abs() < 1e-12 && (ranks.recall(2) - 0.75).abs() < 1e-12);
        assert!((ranks.recall(10) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn many_anchors_are_ranked_as_few_are() {
        let count = 2 * ROWS + 3;
        let vectors: Vec<_> = (0..count).map(|i| at(i as f32 * 0.01)).collect();
        let pairs: Vec<_> = (0..count).rev().map(|i| [i, i]).collect();
        let ranks = Ranks::of(&pairs, &vectors, &vectors).unwrap();
        assert!((ranks.recall(1) - 1.0).abs() < 1e-12, "each is the nearest to itself");
    }

    #[test]
    fn equal_texts_and_what_is_not_a_number_are_no_success() {
        let ranks = Ranks::of(&[[0, 0]], &[at(0.0)], &[at(0.5), at(0.5), at(1.0)]).unwrap();
        assert_eq!(ranks, Ranks(vec![2]));
        let ranks = Ranks::of(&[[0, 0]], &[vec![f32::NAN, 0.0]], &[at(0.5), at(0.7)]).unwrap();
        assert_eq!(ranks, Ranks(vec![2]));
    }

    #[test]
    fn average_precision_is_that_of_scikit_learn() {
        // The example of its documentation: sklearn.metrics.average_precision_score.
        let precision = average_precision(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true]);
        assert!((precision - 0.833_333_333).abs() < 1e-8, "{precision}");
        let equal = average_precision(&[0.5, 0.5, 0.5, 0.1], &[true, false, false, true]);
        assert!((equal - f64::midpoint(1.0 / 3.0, 0.5)).abs() < 1e-12, "{equal}");
        assert!(average_precision(&[0.5, 0.2], &[false, false]).is_nan());
    }

    #[test]
    fn rank_correlation_is_that_of_scipy() {
        // scipy.stats.spearmanr([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]).
        let found = rank_correlation(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]);
        assert!((found - 0.820_782_681_668_123_3).abs() < 1e-12, "{found}");
        assert!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
    }
}
