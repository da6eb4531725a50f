//! Draws tokens: one [`Sampler`] per request, with its own random numbers, so that a seed gives the same text whatever
//! else is in the batch. Called by `request.rs`, on the engine thread, with one row of logits per token, and by the program
//! of the second engine.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::Sampling;
use super::grammar::{GrammarState, ban};
use crate::{Error, Result};
use attune_model::kernels::cpu::logits as row;
use attune_model::kernels::{Draw, NO_TOKEN};

/// Candidates of the first attempt if `top_p` is below 1; a peaked distribution needs no more.
const FIRST_CANDIDATES: usize = 64;
/// Bound on the size of logits under any penalty, so that their differences are finite.
const LARGEST_LOGIT: f32 = 1e30;

/// State of one request's draws.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// Number of times that each token was drawn; kept only if a penalty needs it.
    drawn: HashMap<u32, u32>,
    /// Tokens of the prompt and the answer; kept only if the repetition penalty needs them.
    seen: HashSet<u32>,
    /// The prompt until its tokens are in `seen`, at the first draw: what waits shares it.
    prompt: Option<Arc<[u32]>>,
    /// Logits after the request's bias and penalties, then weights; kept to allocate once.
    scratch: Vec<f32>,
    /// State of the answer's grammar; `None` without one.
    grammar: Option<GrammarState>,
}

impl Sampler {
    /// Creates a sampler before its first token.
    pub fn new(sampling: Sampling) -> Self {
        let random = sampling.seed.map_or_else(ChaCha8Rng::from_os_rng, ChaCha8Rng::seed_from_u64);
        let (drawn, seen, scratch) = (HashMap::new(), HashSet::new(), Vec::new());
        Self { sampling, random, drawn, seen, prompt: None, scratch, grammar: None }
    }

    /// Counts the tokens of `prompt` for the repetition penalty.
    #[must_use]
    pub fn with_prompt(mut self, prompt: &Arc<[u32]>) -> Self {
        self.prompt = self.penalises_repetition().then(|| prompt.clone());
        self
    }

    /// Restricts draws to the tokens that `grammar` allows.
    #[must_use]
    pub(crate) fn with_grammar(mut self, grammar: Option<GrammarState>) -> Self {
        self.grammar = grammar;
        self
    }

    /// Returns `true` once the grammar is complete: no token may follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.grammar.as_ref().is_some_and(GrammarState::is_complete)
    }

    /// Starts computing the tokens that the grammar allows next on another thread; the next draw waits for it. Call it
    /// only if another draw follows.
    pub(crate) fn prepare(&self) {
        if let Some(grammar) = &self.grammar {
            grammar.prepare();
        }
    }

    /// Draws the next token. Fails if a logit is not a finite number (the model or the adapter is broken), or if the
    /// grammar cannot be followed any further.
    pub(crate) fn draw(&mut self, logits: &[f32]) -> Result<u32> {
        self.draw_among(logits, None)
    }

    /// Draws the next token of those that `allowed` has a bit for, beside what a grammar of its own allows; of all with
    /// `None`. Fails as [`Self::draw`], and if no token is allowed.
    pub fn draw_among(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Result<u32> {
        if logits.is_empty() || !row::all_finite(logits) {
            return Err(broken_logits());
        }
        if let Some(prompt) = self.prompt.take() {
            self.seen.extend(prompt.iter());
        }
        let greedy = self.sampling.temperature <= 0.0;
        let token = if greedy && !self.changes_logits() && allowed.is_none() {
            row::position_of_max(logits) as u32
        } else {
            self.scratch.clear();
            self.scratch.extend_from_slice(logits);
            self.apply_bias_and_penalties();
            if let Some(grammar) = &mut self.grammar {
                grammar.mask(&mut self.scratch)?;
            }
            if let Some(allowed) = allowed
                && !ban(allowed, &mut self.scratch)
            {
                return Err(Error::Internal("the grammar allows no token".into()));
            }
            if greedy { row::position_of_max(&self.scratch) as u32 } else { self.draw_by_weight() }
        };
        self.count(token);
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(token)?;
        }
        Ok(token)
    }

    /// Counts a drawn token for the penalties.
    fn count(&mut self, token: u32) {
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.drawn.entry(token).or_default() += 1;
        }
        if self.penalises_repetition() {
            self.seen.insert(token);
        }
    }

    /// Returns the tokens that the grammar allows next, a bit for each; `None` without a grammar.
    pub(crate) fn allowed(&mut self) -> Result<Option<Vec<u32>>> {
        self.grammar.as_mut().map(GrammarState::allowed_tokens).transpose()
    }

    /// Records a token that another process drew, among those of [`Self::allowed`].
    pub(crate) fn given(&mut self, token: u32) -> Result<u32> {
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(token)?;
        }
        Ok(token)
    }

    /// Returns the next draw if it needs nothing but the logits, else `None`. Calling it again returns the same: only
    /// [`Self::drew`] moves on.
    pub(crate) fn plain_draw(&self) -> Option<Draw> {
        let &Sampling { temperature, top_k, top_p, min_p, presence_penalty, frequency_penalty, .. } = &self.sampling;
        let counts = presence_penalty != 0.0 || frequency_penalty != 0.0;
        if self.changes_logits() || counts || self.penalises_repetition() {
            return None;
        }
        if temperature <= 0.0 {
            return Some(Draw::GREEDY);
        }
        Some(Draw { temperature, point: self.random.clone().random(), top_k, top_p, min_p })
    }

    /// Records the token that the model drew by [`Self::plain_draw`].
    pub(crate) fn drew(&mut self, token: u32) -> Result<u32> {
        if token == NO_TOKEN {
            return Err(broken_logits());
        }
        if self.sampling.temperature > 0.0 {
            let _ = self.random.random::<f64>();
        }
        Ok(token)
    }

    fn penalises_repetition(&self) -> bool {
        self.sampling.repetition_penalty.to_bits() != 1.0_f32.to_bits()
    }

    fn changes_logits(&self) -> bool {
        !(self.sampling.logit_bias.is_empty()
            && self.drawn.is_empty()
            && self.seen.is_empty()
            && self.grammar.is_none())
    }

    /// Applies bias and penalties in vLLM's order: bias, repetition, frequency, presence.
    fn apply_bias_and_penalties(&mut self) {
        for &(token, bias) in self.sampling.logit_bias.iter() {
            if let Some(logit) = self.scratch.get_mut(token as usize) {
                *logit += bias;
            }
        }
        let repetition = self.sampling.repetition_penalty;
        for &token in &self.seen {
            if let Some(logit) = self.scratch.get_mut(token as usize) {
                let changed = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
                *logit = changed.clamp(-LARGEST_LOGIT, LARGEST_LOGIT);
            }
        }
        for (&token, &count) in &self.drawn {
            if let Some(logit) = self.scratch.get_mut(token as usize) {
                *logit -= self.sampling.presence_penalty + count as f32 * self.sampling.frequency_penalty;
            }
        }
    }

    /// Draws from the logits in `scratch` and turns them into weights.
    fn draw_by_weight(&mut self) -> u32 {
        // One number per token on every path, so that a seed's stream does not depend on the logits.
        let point = self.random.random::<f64>();
        row::to_weights(&mut self.scratch, self.sampling.temperature);
        if self.sampling.top_p < 1.0 || self.sampling.top_k > 0 {
            let kept = kept(&self.scratch, &self.sampling);
            let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
            return walk(kept.into_iter(), point * total);
        }
        if self.sampling.min_p > 0.0 {
            for weight in &mut self.scratch {
                // The largest weight is 1.
                *weight = if *weight < self.sampling.min_p { 0.0 } else { *weight };
            }
        }
        draw_from_all(&self.scratch, point)
    }
}

fn broken_logits() -> Error {
    Error::Internal("the model's logits are not finite".into())
}

/// Returns the token at `point` (0..1) of all weights laid end to end.
fn draw_from_all(weights: &[f32], point: f64) -> u32 {
    let mut sums = Vec::new();
    row::block_sums(weights, &mut sums);
    let mut rest = point * sums.iter().sum::<f64>();
    let mut chosen = 0;
    for (block, sum) in sums.iter().enumerate() {
        if *sum <= 0.0 {
            continue;
        }
        chosen = block;
        if *sum > rest {
            break;
        }
        rest -= sum;
    }
    let first = chosen * row::BLOCK;
    let block = &weights[first..weights.len().min(first + row::BLOCK)];
    walk(block.iter().enumerate().map(|(place, weight)| ((first + place) as u32, *weight)), rest)
}

/// Filters `weights`, whose largest is 1, in the order of transformers: the `top_k` most probable tokens; of these the
/// fewest whose share of their sum is at least `top_p`; of these, those of at least `min_p`. Returns at least one
/// token, in descending order, of equals the lowest id first.
fn kept(weights: &[f32], sampling: &Sampling) -> Vec<(u32, f32)> {
    let sum = |tokens: &[(u32, f32)]| tokens.iter().map(|(_, weight)| f64::from(*weight)).sum::<f64>();
    let top_p = f64::from(sampling.top_p);
    let mut maxima = Vec::new();
    row::block_maxima(weights, &mut maxima);
    let (mut tokens, wanted) = if sampling.top_k > 0 {
        let tokens = most_probable(weights, &maxima, sampling.top_k.min(weights.len()));
        let wanted = top_p * sum(&tokens);
        (tokens, wanted)
    } else {
        let mut sums = Vec::new();
        row::block_sums(weights, &mut sums);
        let wanted = top_p * sums.iter().sum::<f64>();
        let mut count = FIRST_CANDIDATES.min(weights.len());
        loop {
            let tokens = most_probable(weights, &maxima, count);
            if sum(&tokens) >= wanted || count == weights.len() {
                break (tokens, wanted);
            }
            count = (count * 4).min(weights.len());
        }
    };
    if top_p < 1.0 {
        let mut share = 0.0;
        let enough = tokens.iter().position(|(_, weight)| {
            share += f64::from(*weight);
            share >= wanted
        });
        tokens.truncate(enough.map_or(tokens.len(), |last| last + 1));
    }
    let above = tokens.iter().take_while(|(_, weight)| *weight >= sampling.min_p).count();
    tokens.truncate(above.max(1));
    tokens
}

/// Returns the `count` tokens of the largest weights, in descending order, of equals the lowest id first. `maxima` are
/// those of the weights' blocks.
fn most_probable(weights: &[f32], maxima: &[f32], count: usize) -> Vec<(u32, f32)> {
    // `count` blocks have a maximum of at least this, so at least `count` weights are as large.
    let least = if count <= maxima.len() {
        let mut maxima = maxima.to_vec();
        *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    } else {
        0.0
    };
    let mut tokens = Vec::with_capacity(2 * count);
    for (block, _) in maxima.iter().enumerate().filter(|(_, max)| **max >= least) {
        let first = block * row::BLOCK;
        let block = &weights[first..weights.len().min(first + row::BLOCK)];
        let large = block.iter().enumerate().filter(|(_, weight)| **weight >= least);
        tokens.extend(large.map(|(place, weight)| ((first + place) as u32, *weight)));
    }
    // A total order, so that equal weights do not depend on the selection's inner workings.
    let by_weight = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count, by_weight);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(by_weight);
    tokens
}

/// Returns the first token at which the running sum passes `target`; if rounding prevents that, the last token with a
/// weight.
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
