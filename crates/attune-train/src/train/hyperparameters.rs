//! Settings of a fine-tune as a client gives them, before every `auto` becomes a number ([`super::settings`]). Stored
//! with the job, so names and defaults stay readable for old rows.

use serde::{Deserialize, Serialize};

use crate::train::schedule::Schedule;

/// Name that stands for all linear layers of a block, as in PEFT.
pub const ALL_LINEAR: &str = "all-linear";

/// Methods of training, as the client names them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Learning given answers.
    #[default]
    Supervised,
    /// Direct preference optimisation on pairs of answers, one of which is preferred.
    Dpo,
}

/// Losses of texts. The training file decides on one: a request that names another is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextLoss {
    /// Of pairs: the own positive shall be nearer than the other texts of the batch.
    Ranking,
    /// Of pairs with a score: their cosine shall be the score.
    CosineSimilarity,
    /// Of pairs with a label: the probability of the model's classification head shall be the label.
    BinaryCrossEntropy,
}

impl TextLoss {
    /// Returns the name that clients use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ranking => "ranking",
            Self::CosineSimilarity => "cosine_similarity",
            Self::BinaryCrossEntropy => "binary_cross_entropy",
        }
    }
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
    /// For preferences: strength of the pull towards the model that training began with.
    pub beta: Option<f64>,
    /// Own extension: factor on the similarities, for pairs of texts.
    pub scale: Option<f64>,
    /// Own extension: loss of texts; `None` for answers.
    pub loss: Option<TextLoss>,
    /// Own extension: name of the model's prompt that stands before each anchor; empty for none.
    pub query_prompt: Option<String>,
    /// Own extension: name of the model's prompt that stands before each other text of a pair; empty for none.
    pub document_prompt: Option<String>,
    /// Own extension: hard negatives that are searched for each pair of texts.
    pub hard_negatives: Option<u32>,
    /// Own extension: rank of the adapter.
    pub rank: Option<u32>,
    /// Own extension: alpha of the adapter.
    pub alpha: Option<f64>,
    /// Own extension: the learning rate itself, before the multiplier.
    pub learning_rate: Option<f64>,
    /// Own extension: names of the linear layers that the adapter changes, such as `q_proj`; [`ALL_LINEAR`] for all of
    /// the model's.
    pub target_modules: Option<Vec<String>>,
    /// Own extension: decay of the learning rate.
    pub lr_scheduler: Option<Schedule>,
    /// Own extension: share of the steps in which the learning rate rises.
    pub warmup_ratio: Option<f64>,
    /// Own extension: the optimizer's weight decay.
    pub weight_decay: Option<f64>,
    /// Own extension: largest norm of a step's gradient; 0 does not clip.
    pub max_grad_norm: Option<f64>,
    /// Own extension: dropout on the adapter's inputs.
    pub lora_dropout: Option<f64>,
    /// Own extension: scale the adapter by alpha / √rank in place of alpha / rank.
    pub use_rslora: Option<bool>,
    /// Own extension: most tokens of a training sequence.
    pub max_seq_length: Option<u32>,
    /// Own extension: evaluations without a lower validation loss after which training ends; 0 never ends early.
    pub early_stopping_patience: Option<u32>,
    /// Own extension: publish the adapter of the lowest validation loss instead of the last one.
    pub keep_best: Option<bool>,
}

/// Values of the older resource's `classification_…` fields; `None` if the client did not set the field.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Classification {
    /// Whether to measure at the end of each epoch.
    pub compute: Option<bool>,
    /// Number of classes in the training file.
    pub n_classes: Option<u32>,
    /// Completion that is the positive class, of two.
    pub positive_class: Option<String>,
    /// Betas of the F-beta scores, of two classes.
    pub betas: Option<Vec<f64>>,
}
