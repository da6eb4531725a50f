//! Draws tokens: one [`Sampler`] per request, with its own random numbers, so that a seed gives the same text whatever
//! else is in the batch. Called by the engine thread (`native.rs`) with one row of logits per token.

use std::collections::HashMap;

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::Sampling;
use super::grammar::GrammarState;
use crate::{Error, Result};

/// Tokens that are looked at first when `top_p` is below 1; a peaked distribution needs no more.
const FIRST_CANDIDATES: usize = 64;

/// The state of one request's draws.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// How often each token was drawn; only kept where a penalty asks for it.
    drawn: HashMap<u32, u32>,
    /// Logits as this request sees them, then probabilities; kept to allocate once.
    scratch: Vec<f32>,
    /// Where the answer stands in its grammar.
    grammar: Option<GrammarState>,
}

impl Sampler {
    /// A sampler at its first token.
    pub fn new(sampling: Sampling) -> Self {
        let random = sampling.seed.map_or_else(ChaCha8Rng::from_os_rng, ChaCha8Rng::seed_from_u64);
        Self { sampling, random, drawn: HashMap::new(), scratch: Vec::new(), grammar: None }
    }

    /// Draws only what `grammar` allows.
    #[must_use]
    pub fn with_grammar(mut self, grammar: Option<GrammarState>) -> Self {
        self.grammar = grammar;
        self
    }

    /// True where the grammar has come to its end: nothing may follow.
    pub fn is_complete(&self) -> bool {
        self.grammar.as_ref().is_some_and(GrammarState::is_complete)
    }

    /// The next token. Fails where a logit is not a finite number: the model or the adapter is broken. Fails also where
    /// the grammar cannot be followed any further.
    pub fn draw(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.is_empty() || !logits.iter().all(|logit| logit.is_finite()) {
            return Err(Error::Internal("the model's logits are not finite".into()));
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(logits);
        self.apply_bias_and_penalties();
        if let Some(grammar) = &mut self.grammar {
            grammar.mask(&mut self.scratch)?;
        }
        let token = if self.sampling.temperature <= 0.0 {
            most_probable(&self.scratch)
        } else {
            // One number per token on every path, so that a seed's stream does not depend on the logits.
            let point = self.random.random::<f64>();
            to_weights(&mut self.scratch, self.sampling.temperature);
            if self.sampling.top_p < 1.0 {
                draw_from_top(&self.scratch, f64::from(self.sampling.top_p), point)
            } else {
                draw_from_all(&self.scratch, point)
            }
        };
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.drawn.entry(token).or_default() += 1;
        }
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(token)?;
        }
        Ok(token)
    }

    fn apply_bias_and_penalties(&mut self) {
        for &(token, bias) in &self.sampling.logit_bias {
            if let Some(logit) = self.scratch.get_mut(token as usize) {
                *logit += bias;
            }
        }
        for (&token, &count) in &self.drawn {
            if let Some(logit) = self.scratch.get_mut(token as usize) {
                *logit -= self.sampling.presence_penalty + count as f32 * self.sampling.frequency_penalty;
            }
        }
    }
}

/// The index of the largest value, the lowest one of equals.
fn most_probable(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

/// Logits to probabilities times a constant: the largest weight is 1.
fn to_weights(logits: &mut [f32], temperature: f32) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for logit in logits {
        // In f64: a tiny temperature must not turn 0 / 0 or overflow into a NaN.
        *logit = (f64::from(*logit - max) / f64::from(temperature)).exp() as f32;
    }
}

/// The token at `point` (0..1) of all weights laid end to end.
fn draw_from_all(weights: &[f32], point: f64) -> u32 {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    walk(weights.iter().copied().enumerate().map(|(id, weight)| (id as u32, weight)), point * total)
}

/// The same over the fewest most probable tokens whose share of the sum is at least `top_p` (at least one token).
fn draw_from_top(weights: &[f32], top_p: f64, point: f64) -> u32 {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let wanted = top_p * total;
    // All tokens below this weight together weigh less than what may be left out.
    let negligible = (total - wanted) / weights.len() as f64;
    let mut candidates: Vec<(u32, f32)> = (weights.iter().enumerate())
        .filter(|(_, weight)| f64::from(**weight) >= negligible)
        .map(|(id, weight)| (id as u32, *weight))
        .collect();
    // A total order, so that equal weights do not depend on the selection's inner workings.
    let by_weight = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut count = FIRST_CANDIDATES.min(candidates.len());
    loop {
        if count < candidates.len() {
            candidates.select_nth_unstable_by(count, by_weight);
        }
        let sum: f64 = candidates[..count].iter().map(|(_, weight)| f64::from(*weight)).sum();
        if sum >= wanted || count == candidates.len() {
            break;
        }
        count = (count * 4).min(candidates.len());
    }
    candidates.truncate(count);
    candidates.sort_unstable_by(by_weight);
    let mut kept = 0.0;
    let mut length = 0;
    for (_, weight) in &candidates {
        kept += f64::from(*weight);
        length += 1;
        if kept >= wanted {
            break;
        }
    }
    walk(candidates.into_iter().take(length), point * kept)
}

/// The first token at which the running sum passes `target`; the last one with any weight where rounding lets none.
fn walk(tokens: impl Iterator<Item = (u32, f32)>, target: f64) -> u32 {
    let mut sum = 0.0;
    let mut last = 0;
    for (id, weight) in tokens {
        if weight <= 0.0 {
            continue;
        }
        last = id;
        sum += f64::from(weight);
        if sum > target {
            break;
        }
    }
    last
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
