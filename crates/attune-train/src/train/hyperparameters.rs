//! What a client may set of a fine-tune, before every `auto` is turned into a number ([`super::settings`]). Stored with
//! the job, so names and defaults stay readable for old rows.

use attune_model::lora::Site;
use serde::{Deserialize, Serialize};

use crate::train::schedule::Schedule;

/// What a job trains on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Answers to learn.
    #[default]
    Supervised,
    /// Pairs of answers, of which one is preferred: direct preference optimisation.
    Dpo,
}

/// Settings of a fine-tune; `None` is `auto`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hyperparameters {
    /// Passes over the training file.
    pub n_epochs: Option<u32>,
    /// Examples per optimizer step.
    pub batch_size: Option<u32>,
    /// Factor on the base learning rate.
    pub learning_rate_multiplier: Option<f64>,
    /// Weight of the prompt's tokens in the loss (0 trains on completions only).
    pub prompt_loss_weight: Option<f64>,
    /// How strongly the adapter is held to the model that it began as, where training is on preferences.
    pub beta: Option<f64>,
    /// Own extension: factor on the similarities, where training is on pairs of texts.
    pub scale: Option<f64>,
    /// Own extension: rank of the adapter.
    pub rank: Option<u32>,
    /// Own extension: alpha of the adapter.
    pub alpha: Option<f64>,
    /// Own extension: the learning rate itself, before the multiplier.
    pub learning_rate: Option<f64>,
    /// Own extension: the linear layers that the adapter changes.
    pub target_modules: Option<Vec<Site>>,
    /// Own extension: how the learning rate falls.
    pub lr_scheduler: Option<Schedule>,
    /// Own extension: share of the steps in which the learning rate rises.
    pub warmup_ratio: Option<f64>,
    /// Own extension: the optimizer's weight decay.
    pub weight_decay: Option<f64>,
    /// Own extension: largest norm of a step's gradient; 0 leaves it as it is.
    pub max_grad_norm: Option<f64>,
    /// Own extension: share of the adapter's inputs that a training step leaves out.
    pub lora_dropout: Option<f64>,
    /// Own extension: scale the adapter by alpha / √rank in place of alpha / rank.
    pub use_rslora: Option<bool>,
    /// Own extension: tokens of a training sequence at the most.
    pub max_seq_length: Option<u32>,
    /// Own extension: evaluations without a lower validation loss after which training ends; 0 goes on to the end.
    pub early_stopping_patience: Option<u32>,
    /// Own extension: publish the adapter of the lowest validation loss in place of the last one.
    pub keep_best: Option<bool>,
}

/// What the older resource's `classification_…` fields asked for; a field is `None` where the client gave none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Classification {
    /// Measure at the end of each epoch.
    pub compute: Option<bool>,
    /// How many classes the training file has.
    pub n_classes: Option<u32>,
    /// The completion that is the positive class, of two.
    pub positive_class: Option<String>,
    /// The betas of the F-beta scores, of two classes.
    pub betas: Option<Vec<f64>>,
}
