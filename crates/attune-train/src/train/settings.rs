//! Turns a client's hyperparameters into numbers: the one place where `auto` is decided. Called by the worker before
//! training.

use serde::Serialize;

use crate::datasets::DatasetReport;
use crate::train::hyperparameters::{ALL_LINEAR, Hyperparameters, Method, TextLoss};
use crate::train::optimizer::AdamSettings;
use crate::train::packing::{BATCH_ROWS, batch_rows, text_rows};
use crate::train::schedule::Schedule;
use crate::train::text_settings::{check_text_settings, loss_of};
use crate::train::training_method::TrainingMethod;
use crate::{Error, Result};
use attune_model::ModelConfig;
use attune_model::kernels::Kernels;
use attune_model::lora::MAX_RANK;
use attune_model::lora::Site;
use attune_model::lora::modules::{KNOWN, Module, names};

/// Most epochs that the current API allows.
const MAX_EPOCHS: u32 = 50;
/// Most examples per step that the current API allows.
const MAX_BATCH_SIZE: u32 = 256;
/// Most tokens in a training sequence, even if the model's context is longer: attention keeps rows × rows numbers per
/// head for the backward pass.
pub const MAX_SEQUENCE_TOKENS: u32 = 4096;
/// A peak learning rate above this diverged in most of the published sweeps.
const MAX_AUTO_LEARNING_RATE: f64 = 3e-3;

/// Characters of an unknown name that an error shows.
const MAX_SHOWN: usize = 64;

/// Set of defaults that replaces `auto`: those that `OpenAI` documented for its older fine-tuning resource, or those of
/// the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defaults {
    /// 4 epochs, and prompts with weight 0.01 in the loss.
    Legacy,
    /// Epochs by the number of examples, and prompts with weight 0 in the loss.
    Current,
}

/// Settings that determine a training run, besides model, data and the adapter it begins from.
///
/// Their serialized form enters the fingerprint of checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(into = "SerializedSettings")]
pub struct TrainSettings {
    /// Rank of the adapter.
    pub rank: usize,
    /// Alpha of the adapter; its updates are scaled by alpha / rank. Under rsLoRA this is √rank times the requested
    /// alpha, so that every reader of the files, which divides by the rank, gets alpha / √rank.
    pub alpha: f64,
    /// Linear layers that a new adapter changes, in the order of the forward pass.
    pub sites: Vec<Site>,
    /// True if [`sites`](Self::sites) mean the layers of experts, too, in a model that has some: they are adapted only
    /// where they are named, since they are no linear layers to PEFT.
    pub experts: bool,
    /// Passes over the examples.
    pub epochs: usize,
    /// Examples per optimizer step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Seed of initialisation and data order.
    pub seed: u64,
    /// Share of the steps in which the learning rate rises; `None` takes a tenth of all steps, 100 at most.
    pub warmup: Option<f64>,
    /// Decay of the learning rate.
    pub schedule: Schedule,
    /// Constants of the optimizer.
    pub adam: AdamSettings,
    /// Largest norm of a step's gradient; 0 does not clip.
    pub clip: f64,
    /// Dropout on the adapter's inputs.
    pub dropout: f64,
    /// Evaluations without a lower validation loss after which the run ends; 0 never ends early.
    pub patience: usize,
    /// Whether the result is the adapter of the lowest validation loss, not the last one.
    pub keep_best: bool,
    /// Method of training.
    pub method: TrainingMethod,
    /// Most rows that examples are packed into for one batch.
    pub batch_rows: usize,
}

/// Hashed form of [`TrainSettings`]. Renaming or reordering its fields would refuse all existing checkpoints.
#[derive(Serialize)]
struct SerializedSettings {
    rank: usize,
    alpha: f64,
    sites: Vec<Site>,
    epochs: usize,
    batch_size: usize,
    learning_rate: f64,
    seed: u64,
    warmup: Option<f64>,
    schedule: Schedule,
    adam: AdamSettings,
    clip: f64,
    dropout: f64,
    patience: usize,
    keep_best: bool,
    beta: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    /// `None` for methods that have a number of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<TextLoss>,
    #[serde(skip_serializing_if = "is_usual")]
    batch_rows: usize,
}

impl From<TrainSettings> for SerializedSettings {
    fn from(settings: TrainSettings) -> Self {
        let (beta, scale, loss) = match settings.method {
            TrainingMethod::Answers => (None, None, None),
            TrainingMethod::Preferences { beta } => (Some(beta), None, None),
            TrainingMethod::TextPairs { scale } => (None, Some(scale), None),
            TrainingMethod::ScoredPairs => (None, None, Some(TextLoss::CosineSimilarity)),
            TrainingMethod::LabelledPairs => (None, None, Some(TextLoss::BinaryCrossEntropy)),
        };
        Self {
            rank: settings.rank,
            alpha: settings.alpha,
            sites: settings.sites,
            epochs: settings.epochs,
            batch_size: settings.batch_size,
            learning_rate: settings.learning_rate,
            seed: settings.seed,
            warmup: settings.warmup,
            schedule: settings.schedule,
            adam: settings.adam,
            clip: settings.clip,
            dropout: settings.dropout,
            patience: settings.patience,
            keep_best: settings.keep_best,
            beta,
            scale,
            loss,
            batch_rows: settings.batch_rows,
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_usual(batch_rows: &usize) -> bool {
    *batch_rows == BATCH_ROWS
}

impl TrainSettings {
    /// Creates settings from resolved hyperparameters; a field that is still `None` gets its default.
    pub fn new(resolved: &Hyperparameters, seed: u64) -> Self {
        let rank = resolved.rank.unwrap_or(DEFAULT_RANK);
        let alpha = resolved.alpha.unwrap_or(2.0 * f64::from(rank));
        let rslora = resolved.use_rslora == Some(true);
        Self {
            rank: rank as usize,
            alpha: if rslora { alpha * f64::from(rank).sqrt() } else { alpha },
            sites: sites(resolved.target_modules.as_deref()),
            experts: resolved.target_modules.as_ref().is_some_and(|names| *names != [ALL_LINEAR]),
            epochs: resolved.n_epochs.unwrap_or(1) as usize,
            batch_size: resolved.batch_size.unwrap_or(1) as usize,
            learning_rate: resolved.learning_rate.unwrap_or(2e-4) * resolved.learning_rate_multiplier.unwrap_or(1.0),
            seed,
            warmup: resolved.warmup_ratio,
            schedule: resolved.lr_scheduler.unwrap_or_default(),
            adam: AdamSettings { weight_decay: resolved.weight_decay.unwrap_or(0.0), ..AdamSettings::default() },
            clip: resolved.max_grad_norm.unwrap_or(DEFAULT_CLIP),
            dropout: resolved.lora_dropout.unwrap_or(0.0),
            patience: resolved.early_stopping_patience.unwrap_or(0) as usize,
            keep_best: resolved.keep_best.unwrap_or(false),
            method: TrainingMethod::of(resolved),
            batch_rows: BATCH_ROWS,
        }
    }

    /// Sets the rows of a batch for the device of `kernels` and a model with hidden states of `hidden_size`.
    #[must_use]
    pub fn on(self, kernels: &Kernels, hidden_size: usize) -> Self {
        let batch_rows = match self.method {
            TrainingMethod::TextPairs { .. } | TrainingMethod::ScoredPairs => text_rows(kernels, hidden_size),
            _ => batch_rows(kernels),
        };
        Self { batch_rows, ..self }
    }

    /// Returns true if the run changes the experts of a model that has some.
    pub fn adapts_experts(&self) -> bool {
        self.experts && [Site::Gate, Site::Down].iter().any(|site| self.sites.contains(site))
    }

    /// Counts the warmup steps of a run of `total` steps.
    pub fn warmup_steps(&self, total: usize) -> usize {
        match self.warmup {
            Some(ratio) => (ratio * total as f64).round() as usize,
            None => auto_warmup(total),
        }
    }
}

/// A rank at which LoRA with all linear layers learns small and medium datasets as well as full fine-tuning does.
const DEFAULT_RANK: u32 = 16;
/// Share of the learning rate that training on preferences uses: it shifts abilities that the model already has, and
/// rates that teach answers well destroy its language.
const PREFERENCE_RATE: f64 = 0.1;
/// The β that most published runs of direct preference optimisation use.
const DEFAULT_BETA: f64 = 0.1;
/// The factor on cosine similarities that sentence-transformers uses: a temperature of 0.05.
const DEFAULT_SCALE: f64 = 20.0;
/// Fewest pairs of texts in an automatic step: a pair is compared with the other texts of its batch.
const PAIRS_PER_STEP: usize = 32;
/// Gradients of a larger norm are scaled down to it.
const DEFAULT_CLIP: f64 = 1.0;

/// Turns every `auto` into a number, given the training file's counts and the model's shape.
///
/// - **Epochs**: 4 for the legacy resource, its documented default; otherwise the formula that `OpenAI` published in its
///   cookbook: 3, more for files under 34 examples so that about 100 are seen (25 epochs at most), fewer above 8,333 so
///   that at most about 25,000 are seen.
/// - **Batch size**: `OpenAI`'s 0.2 % of the examples, from 1 to 256, but at least 8, since smaller batches only add noise;
///   and halved while the run would have fewer than 50 steps, since an adapter that starts from zero needs that many.
///   Of pairs of texts 32 at the least, halved while there would be fewer than 30 steps, but not below 8: what a pair is
///   compared with is the rest of its batch.
/// - **Learning rate**: tinker's formula for LoRA, `5e-5 · 10 · (2000 / hidden)^p` with p = 0.781 for Llama-like models and
///   0.0775 for Qwen, at most 3e-3; times the multiplier, whose `auto` is 1. The legacy resource's multipliers are for full
///   fine-tuning and recommended from 0.02 to 0.2: there the rate is ten times the formula's and `auto` is 0.1, so that
///   the recommended range surrounds the same rate. Training on preferences takes a tenth of the formula's rate.
/// - **Prompt loss weight**: 0.01 for the legacy resource, its documented default; otherwise 0.
/// - **Rank** 16, **alpha** twice the rank, all linear layers; the learning rate falls in a straight line after it rose for
///   a tenth of the steps, at most 100; gradients of a norm above 1 are scaled down. All else is off.
pub fn resolve(
    asked: &Hyperparameters,
    defaults: Defaults,
    method: Method,
    data: &DatasetReport,
    config: &ModelConfig,
) -> Result<Hyperparameters> {
    let examples = data.examples.max(1);
    let legacy = defaults == Defaults::Legacy;
    let (pairs, loss) = (data.is_of_pairs(), loss_of(data.format));
    check_text_settings(asked, loss)?;
    let n_epochs = match asked.n_epochs {
        Some(epochs) => bounded("n_epochs", epochs, MAX_EPOCHS)?,
        None if legacy => 4,
        None => auto_epochs(examples),
    };
    let batch_size = match asked.batch_size {
        // Clients of the old library send 0 for `auto`.
        Some(0) | None if pairs => auto_pairs(examples, n_epochs),
        Some(0) | None => auto_batch_size(examples, n_epochs),
        Some(size) => bounded("batch_size", size, MAX_BATCH_SIZE)?,
    };
    let (learning_rate, multiplier) = learning_rate(asked, legacy, method, config)?;
    let rank = bounded("rank", asked.rank.unwrap_or(DEFAULT_RANK), MAX_RANK as u32)?;
    let alpha = positive("alpha", asked.alpha)?.unwrap_or(2.0 * f64::from(rank));
    let prompt_loss_weight = checked_prompt_loss_weight(asked, legacy, loss.is_some())?;
    let total_steps = n_epochs as usize * data.sequences.div_ceil(batch_size as usize);
    Ok(Hyperparameters {
        n_epochs: Some(n_epochs),
        batch_size: Some(batch_size),
        learning_rate_multiplier: Some(multiplier),
        prompt_loss_weight: Some(prompt_loss_weight),
        beta: (method == Method::Dpo).then(|| asked.beta.unwrap_or(DEFAULT_BETA)),
        scale: pairs.then(|| asked.scale.unwrap_or(DEFAULT_SCALE)),
        loss,
        query_prompt: asked.query_prompt.clone(),
        document_prompt: asked.document_prompt.clone(),
        hard_negatives: pairs.then(|| asked.hard_negatives.unwrap_or(0)),
        rank: Some(rank),
        alpha: Some(alpha),
        learning_rate: Some(learning_rate),
        target_modules: Some(target_modules(asked, config)?),
        lr_scheduler: Some(asked.lr_scheduler.unwrap_or_default()),
        warmup_ratio: asked.warmup_ratio.or(Some(auto_warmup(total_steps) as f64 / total_steps.max(1) as f64)),
        weight_decay: asked.weight_decay.or(Some(0.0)),
        max_grad_norm: asked.max_grad_norm.or(Some(DEFAULT_CLIP)),
        lora_dropout: asked.lora_dropout.or(Some(0.0)),
        use_rslora: asked.use_rslora.or(Some(false)),
        max_seq_length: Some(max_sequence_tokens(asked, config)? as u32),
        early_stopping_patience: asked.early_stopping_patience.or(Some(0)),
        keep_best: asked.keep_best.or(Some(false)),
    })
}

/// Returns the learning rate, multiplied, of a run that asks for none.
pub fn automatic_rate(method: Method, config: &ModelConfig) -> f64 {
    let exponent = if config.family.starts_with("qwen") { 0.0775 } else { 0.781 };
    let formula = 5e-4 * (2000.0 / config.hidden_size as f64).powf(exponent);
    match method {
        Method::Supervised => formula.min(MAX_AUTO_LEARNING_RATE),
        Method::Dpo => (formula * PREFERENCE_RATE).min(MAX_AUTO_LEARNING_RATE),
    }
}

/// Returns the learning rate before the multiplier, and the multiplier.
fn learning_rate(asked: &Hyperparameters, legacy: bool, method: Method, config: &ModelConfig) -> Result<(f64, f64)> {
    let formula = automatic_rate(method, config);
    let (rate, auto_multiplier) = match positive("learning_rate", asked.learning_rate)? {
        Some(rate) => (rate, 1.0),
        None if legacy => (10.0 * formula, 0.1),
        None => (formula, 1.0),
    };
    let multiplier = positive("learning_rate_multiplier", asked.learning_rate_multiplier)?.unwrap_or(auto_multiplier);
    Ok((rate, multiplier))
}

/// Returns the weight of a prompt's tokens in the loss; 0 for `texts`, which have no prompt.
fn checked_prompt_loss_weight(asked: &Hyperparameters, legacy: bool, texts: bool) -> Result<f64> {
    let weight = asked.prompt_loss_weight.unwrap_or(if legacy { 0.01 } else { 0.0 });
    if !(0.0..=1.0).contains(&weight) {
        return Err(Error::Setting {
            name: "prompt_loss_weight",
            message: "prompt_loss_weight must be from 0 to 1".into(),
        });
    }
    if texts && !legacy && weight > 0.0 {
        let message =
            "prompt_loss_weight is for prompts, but the training file has pairs of texts: leave it out".into();
        return Err(Error::Setting { name: "prompt_loss_weight", message });
    }
    Ok(if texts { 0.0 } else { weight })
}

/// Returns the names of the model's layers that the adapter changes, in the order of the forward pass: all linear ones,
/// or those that are named, which may be those of experts too. Refuses names that the model has no layer of: each
/// family's are those of its checkpoints, as in PEFT.
pub fn target_modules(asked: &Hyperparameters, config: &ModelConfig) -> Result<Vec<String>> {
    let Some(named) = asked.target_modules.as_deref().filter(|named| *named != [ALL_LINEAR]) else {
        return Ok(names(config.modules).into_iter().map(str::to_owned).collect());
    };
    let known = names(config.modules.iter().chain(config.expert_modules()));
    if let Some(other) = named.iter().find(|name| !known.contains(&name.as_str())) {
        let other: String = other.chars().take(MAX_SHOWN).collect();
        let message = format!("target_modules: '{other}' is none of the model's layers, {}", known.join(", "));
        return Err(Error::Setting { name: "target_modules", message });
    }
    let is_named = |name: &&str| named.iter().any(|other| other == name);
    Ok(known.into_iter().filter(is_named).map(str::to_owned).collect())
}

/// Refuses dropout if `settings` name layers of experts: PEFT has none there.
pub fn check_experts(settings: &Hyperparameters, config: &ModelConfig) -> Result<()> {
    let experts = names(config.expert_modules());
    let named = settings.target_modules.iter().flatten().find(|name| experts.contains(&name.as_str()));
    match (named, settings.lora_dropout) {
        (Some(named), Some(dropout)) if dropout > 0.0 => {
            let message = format!(
                "lora_dropout is not applied to experts, which target_modules names by '{named}': leave it out"
            );
            Err(Error::Setting { name: "lora_dropout", message })
        }
        _ => Ok(()),
    }
}

/// Returns the sites of the layers with these names; all if there are none.
fn sites(names: Option<&[String]>) -> Vec<Site> {
    let Some(names) = names.filter(|names| *names != [ALL_LINEAR]) else { return Site::ALL.to_vec() };
    let named = KNOWN.iter().copied().flatten().filter(|module| names.iter().any(|name| name == module.name()));
    let named: Vec<&Module> = named.collect();
    Site::ALL.into_iter().filter(|site| named.iter().any(|module| module.sites.contains(site))).collect()
}

/// Returns the most tokens in a sequence: needed to render the file, before the rest can be resolved.
pub fn max_sequence_tokens(asked: &Hyperparameters, config: &ModelConfig) -> Result<usize> {
    let context = config.max_position_embeddings;
    match asked.max_seq_length.map(|length| length as usize) {
        Some(length) if length > context => Err(Error::SequenceTooLong { asked: length, context }),
        Some(length) => Ok(length.min(MAX_SEQUENCE_TOKENS as usize)),
        None => Ok(context.min(MAX_SEQUENCE_TOKENS as usize)),
    }
}

/// Returns the weight of prompt tokens: needed to render the file, before the rest can be resolved. It is always below
/// 1, by which answers are told from prompts.
pub fn prompt_loss_weight(asked: &Hyperparameters, defaults: Defaults) -> f32 {
    let weight = asked.prompt_loss_weight.unwrap_or(if defaults == Defaults::Legacy { 0.01 } else { 0.0 }) as f32;
    weight.min(1.0_f32.next_down())
}

fn auto_warmup(total_steps: usize) -> usize {
    (total_steps / 10).min(100)
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

fn auto_pairs(examples: usize, epochs: u32) -> u32 {
    let mut size = ((examples as f64 * 0.002).round() as usize).clamp(PAIRS_PER_STEP, MAX_BATCH_SIZE as usize);
    while size > 8 && examples.div_ceil(size) * (epochs as usize) < 30 {
        size /= 2;
    }
    size.min(examples) as u32
}

fn bounded(name: &'static str, value: u32, limit: u32) -> Result<u32> {
    if !(1..=limit).contains(&value) {
        let message = format!("{name} is {value}; it must be from 1 to {limit}");
        return Err(Error::Setting { name, message });
    }
    Ok(value)
}

fn positive(name: &'static str, value: Option<f64>) -> Result<Option<f64>> {
    if value.is_some_and(|value| !value.is_finite() || value <= 0.0) {
        return Err(Error::Setting { name, message: format!("{name} must be a number above 0") });
    }
    Ok(value)
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
