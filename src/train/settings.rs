//! From what a client asked for to numbers: the one place where `auto` is decided. Called by the worker before training.

use serde::{Deserialize, Serialize};

use crate::adapters::peft::MAX_RANK;
use crate::datasets::DatasetReport;
use crate::jobs::{Hyperparameters, JobApi};
use crate::model::ModelConfig;
use crate::model::config::Family;
use crate::train::optimizer::AdamSettings;
use crate::train::schedule::Schedule;
use crate::{Error, Result};

/// Epochs that the current API allows at most.
const MAX_EPOCHS: u32 = 50;
/// Examples per step that the current API allows at most.
const MAX_BATCH_SIZE: u32 = 256;
/// A peak learning rate above this diverged in most of the published sweeps.
const MAX_AUTO_LEARNING_RATE: f64 = 3e-3;

/// All that determines a training run besides model, data and the adapter it begins from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// Rank of the adapter.
    pub rank: usize,
    /// Alpha of the adapter; its updates are scaled by alpha / rank.
    pub alpha: f64,
    /// Passes over the examples.
    pub epochs: usize,
    /// Examples per optimizer step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Seed of initialisation and data order.
    pub seed: u64,
    /// Steps of rising learning rate; `None` takes a tenth of all steps, 100 at most.
    pub warmup: Option<usize>,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Constants of the optimizer.
    pub adam: AdamSettings,
    /// Largest norm of a step's gradient.
    pub clip: f64,
}

impl TrainSettings {
    /// The settings of resolved hyperparameters; a field that is still `None` has its default.
    pub fn new(resolved: &Hyperparameters, seed: u64) -> Self {
        let rank = resolved.rank.unwrap_or(DEFAULT_RANK);
        Self {
            rank: rank as usize,
            alpha: resolved.alpha.unwrap_or(2.0 * f64::from(rank)),
            epochs: resolved.n_epochs.unwrap_or(1) as usize,
            batch_size: resolved.batch_size.unwrap_or(1) as usize,
            learning_rate: resolved.learning_rate.unwrap_or(2e-4) * resolved.learning_rate_multiplier.unwrap_or(1.0),
            seed,
            warmup: None,
            schedule: Schedule::Linear,
            adam: AdamSettings::default(),
            clip: 1.0,
        }
    }

    /// Warmup steps of a run of `total` steps.
    pub fn warmup_steps(&self, total: usize) -> usize {
        self.warmup.unwrap_or_else(|| (total / 10).min(100))
    }
}

/// A rank at which LoRA with all linear layers learns small and medium datasets as well as full fine-tuning does.
const DEFAULT_RANK: u32 = 16;

/// Turns every `auto` into a number, given the training file's counts and the model's shape.
///
/// - **Epochs**: 4 for the legacy resource, its documented default; otherwise the formula that `OpenAI` published in its
///   cookbook: 3, more for files under 34 examples so that about 100 are seen (25 epochs at most), fewer above 8,333 so
///   that at most about 25,000 are seen.
/// - **Batch size**: `OpenAI`'s 0.2 % of the examples, from 1 to 256, but at least 8, since smaller batches only add noise;
///   and halved while the run would have fewer than 50 steps, since an adapter that starts from zero needs that many.
/// - **Learning rate**: tinker's formula for LoRA, `5e-5 · 10 · (2000 / hidden)^p` with p = 0.781 for Llama-like models and
///   0.0775 for Qwen, at most 3e-3; times the multiplier, whose `auto` is 1. The legacy resource's multipliers are for full
///   fine-tuning and recommended from 0.02 to 0.2: there the rate is ten times the formula's and `auto` is 0.1, so that
///   the recommended range surrounds the same rate.
/// - **Prompt loss weight**: 0.01 for the legacy resource, its documented default; otherwise 0.
/// - **Rank** 16, **alpha** twice the rank.
pub fn resolve(
    asked: &Hyperparameters,
    api: JobApi,
    data: &DatasetReport,
    config: &ModelConfig,
) -> Result<Hyperparameters> {
    let examples = data.examples.max(1);
    let legacy = api == JobApi::FineTunes;
    let n_epochs = match asked.n_epochs {
        Some(epochs) => bounded("n_epochs", epochs, MAX_EPOCHS)?,
        None if legacy => 4,
        None => auto_epochs(examples),
    };
    let batch_size = match asked.batch_size {
        // Clients of the old library send 0 for `auto`.
        Some(0) | None => auto_batch_size(examples, n_epochs),
        Some(size) => bounded("batch_size", size, MAX_BATCH_SIZE)?,
    };
    let exponent = if matches!(config.family, Family::Qwen2 | Family::Qwen3) { 0.0775 } else { 0.781 };
    let formula = 5e-4 * (2000.0 / config.hidden_size as f64).powf(exponent);
    let formula = formula.min(MAX_AUTO_LEARNING_RATE);
    let (base, auto_multiplier) = match positive("learning_rate", asked.learning_rate)? {
        Some(rate) => (rate, 1.0),
        None if legacy => (10.0 * formula, 0.1),
        None => (formula, 1.0),
    };
    let multiplier = positive("learning_rate_multiplier", asked.learning_rate_multiplier)?.unwrap_or(auto_multiplier);
    let rank = bounded("rank", asked.rank.unwrap_or(DEFAULT_RANK), MAX_RANK as u32)?;
    let alpha = positive("alpha", asked.alpha)?.unwrap_or(2.0 * f64::from(rank));
    let prompt_loss_weight = asked.prompt_loss_weight.unwrap_or(if legacy { 0.01 } else { 0.0 });
    if !(0.0..=1.0).contains(&prompt_loss_weight) {
        return Err(Error::invalid("prompt_loss_weight", "prompt_loss_weight must be from 0 to 1"));
    }
    Ok(Hyperparameters {
        n_epochs: Some(n_epochs),
        batch_size: Some(batch_size),
        learning_rate_multiplier: Some(multiplier),
        prompt_loss_weight: Some(prompt_loss_weight),
        rank: Some(rank),
        alpha: Some(alpha),
        learning_rate: Some(base),
    })
}

/// Weight of prompt tokens: needed to render the file, before the rest can be resolved.
pub fn prompt_loss_weight(asked: &Hyperparameters, api: JobApi) -> f32 {
    asked.prompt_loss_weight.unwrap_or(if api == JobApi::FineTunes { 0.01 } else { 0.0 }) as f32
}

fn auto_epochs(examples: usize) -> u32 {
    let epochs = match examples * 3 {
        seen if seen < 100 => (100 / examples).min(25),
        seen if seen > 25_000 => (25_000 / examples).max(1),
        _ => 3,
    };
    epochs as u32
}

fn auto_batch_size(examples: usize, epochs: u32) -> u32 {
    let mut size = ((examples as f64 * 0.002).round() as usize).clamp(8, MAX_BATCH_SIZE as usize).min(examples);
    while size > 1 && examples.div_ceil(size) * (epochs as usize) < 50 {
        size /= 2;
    }
    size as u32
}

fn bounded(field: &str, value: u32, limit: u32) -> Result<u32> {
    if !(1..=limit).contains(&value) {
        return Err(Error::invalid(field, format!("{field} is {value}; it must be from 1 to {limit}")));
    }
    Ok(value)
}

fn positive(field: &str, value: Option<f64>) -> Result<Option<f64>> {
    if value.is_some_and(|value| !value.is_finite() || value <= 0.0) {
        return Err(Error::invalid(field, format!("{field} must be a number above 0")));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_epochs_follow_the_published_formula() {
        for (examples, epochs) in [(10, 10), (4, 25), (33, 3), (34, 3), (500, 3), (8_333, 3), (10_000, 2), (60_000, 1)]
        {
            assert_eq!(auto_epochs(examples), epochs, "{examples} examples");
        }
    }

    #[test]
    fn automatic_batches_leave_small_files_fifty_steps_and_grow_with_large_ones() {
        for (examples, epochs, size) in [(10, 10, 2), (100, 3, 4), (500, 3, 8), (10_000, 2, 20), (1_000_000, 1, 256)] {
            assert_eq!(auto_batch_size(examples, epochs), size, "{examples} examples");
        }
        assert_eq!(auto_batch_size(1, 1), 1);
    }
}
