//! Computes log probabilities of tokens from the model's raw logits. Called by `request.rs` for drawn tokens and for
//! the tokens of prompts, if the request asked for them.
//!
//! Raw means before bias, penalties, grammar, temperature and `top_p`: the model's own probability of a token, however
//! it was drawn. Prompts have no other, so prompt and answer are measured alike.

use crate::{Error, Result};
use attune_model::kernels::cpu::logits::all_finite;

/// Log probability of one token, and the most probable tokens in its position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Token that was drawn, or is in the prompt.
    pub id: u32,
    /// Log probability of the token (natural logarithm).
    pub logprob: f32,
    /// Most probable tokens with their log probabilities, in descending order, of equals the lowest id first. If `id`
    /// is among them, its value is bit-identical to `logprob`.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Returns token `id` and the `count` most probable tokens under one row of logits.
    ///
    /// Fails if a logit is not a finite number: the model or the adapter is broken.
    pub fn of(logits: &[f32], id: u32, count: usize) -> Result<Self> {
        let Some(&logit) = logits.get(id as usize) else {
            return Err(Error::Internal(format!("token {id} has no logit")));
        };
        if !all_finite(logits) {
            return Err(Error::Internal("the model's logits are not finite".into()));
        }
        let normalizer = log_sum_exp(logits);
        // Finite logits can differ by more than f32 holds; JSON has no infinity.
        let logprob = |logit: f32| (f64::from(logit) - normalizer).max(f64::from(f32::MIN)) as f32;
        let top = largest(logits, count).into_iter().map(|(id, logit)| (id, logprob(logit))).collect();
        Ok(Self { id, logprob: logprob(logit), top })
    }
}

/// Returns ln Σ exp(x), in f64: over a vocabulary of 100,000 an f32 sum would lose the digits that tests compare.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    max + sum.ln()
}

/// Returns the `count` largest values with their indices, in one pass: `count` is small.
fn largest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in logits.iter().enumerate() {
        if top.len() == count && top.last().is_none_or(|(_, smallest)| *smallest >= logit) {
            continue;
        }
        let place = top.partition_point(|(_, other)| *other >= logit);
        top.insert(place, (id as u32, logit));
        top.truncate(count);
    }
    top
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_do_not_depend_on_a_constant() {
        let logits = [2.0, -1.0, 0.5, 3.25];
        let all = TokenLogprobs::of(&logits, 1, 4).unwrap().top;
        let sum: f64 = all.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        let shifted: Vec<f32> = logits.iter().map(|logit| logit + 512.0).collect();
        assert_eq!(TokenLogprobs::of(&shifted, 1, 4).unwrap().top, all);
    }

    #[test]
    fn known_probabilities_are_found_again() {
        let logits: Vec<f32> = [0.5_f32, 0.2, 0.3].iter().map(|p| p.ln() + 7.0).collect();
        let one = TokenLogprobs::of(&logits, 1, 2).unwrap();
        assert!((one.logprob - 0.2_f32.ln()).abs() < 1e-6);
        assert_eq!(one.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 2]);
        assert!((one.top[1].1 - 0.3_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_top_is_sorted_lowest_id_first_among_equals_and_holds_the_tokens_own_bits() {
        let logits: Vec<f32> = (0..300).map(|index| ((index * 7919) % 101) as f32 / 9.0).collect();
        for count in [0, 1, 5, 20, 400] {
            let mut expected: Vec<u32> = (0..300).collect();
            expected.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            expected.truncate(count);
            for id in [0, 17, expected.first().copied().unwrap_or(9)] {
                let one = TokenLogprobs::of(&logits, id, count).unwrap();
                assert_eq!(one.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), expected);
                assert!(one.top.is_sorted_by(|a, b| a.1 >= b.1));
                if let Some((_, logprob)) = one.top.iter().find(|(other, _)| *other == id) {
                    assert_eq!(logprob.to_bits(), one.logprob.to_bits());
                }
            }
        }
    }

    #[test]
    fn extreme_logits_stay_numbers_and_broken_ones_are_an_error() {
        let one = TokenLogprobs::of(&[f32::MAX, f32::MIN], 1, 2).unwrap();
        assert_eq!((one.logprob, one.top[0]), (f32::MIN, (0, 0.0)));
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(matches!(TokenLogprobs::of(&[0.0, broken], 0, 1), Err(Error::Internal(_))));
        }
        assert!(TokenLogprobs::of(&[0.0], 1, 1).is_err());
        assert!(TokenLogprobs::of(&[], 0, 0).is_err());
    }
}
