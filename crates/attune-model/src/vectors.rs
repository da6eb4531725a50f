//! From the hidden states of a text to its vector: pooling, dense layers, length 1. Read from a folder of
//! sentence-transformers; models without such a folder take the mean, scaled to length 1. Called by `engine` and by
//! `train`, which takes gradients the same way back.

pub(crate) mod copy;
mod dense;
pub(crate) mod folder;
mod modules;
mod pooling;

use std::collections::BTreeMap;

pub use self::dense::{DenseActivation, DenseLayer};
pub use self::pooling::{Pooler, Pooling};
use crate::{Error, ModelConfig, Result};

/// How a model makes vectors of texts.
#[derive(Debug, Clone)]
pub struct VectorForm {
    /// What is taken of the hidden states; several are joined end to end.
    pub poolings: Vec<Pooling>,
    /// True if the tokens of a prompt before the text are pooled, too.
    pub pools_prompt: bool,
    /// Dense layers behind the pooling.
    pub layers: Vec<DenseLayer>,
    /// True if vectors are scaled to length 1.
    pub is_normalized: bool,
    /// Texts that stand before an input, by name, such as `query`.
    pub prompts: BTreeMap<String, String>,
    /// Name of the prompt that is used where a request names none.
    pub default_prompt: Option<String>,
    /// True if the model's tokenizer makes all texts lower-case, beside what `tokenizer.json` says.
    pub is_lower_cased: bool,
    /// Most tokens of a text, the ones around it included.
    pub max_tokens: usize,
    /// Shorter vectors that the model was trained for (Kusupati et al., "Matryoshka representation learning", 2022); empty
    /// if it does not say.
    pub shorter_widths: Vec<usize>,
    /// Width of the hidden states.
    pub hidden_size: usize,
}

impl VectorForm {
    /// Returns the form of a model that comes without modules of sentence-transformers: the mean, of length 1.
    pub fn of_model(config: &ModelConfig) -> Self {
        Self {
            poolings: vec![Pooling::Mean],
            pools_prompt: true,
            layers: Vec::new(),
            is_normalized: true,
            prompts: BTreeMap::new(),
            default_prompt: None,
            is_lower_cased: false,
            max_tokens: config.max_position_embeddings,
            shorter_widths: Vec::new(),
            hidden_size: config.hidden_size,
        }
    }

    /// Returns the number of values of a vector.
    pub fn width(&self) -> usize {
        self.layers.last().map_or(self.hidden_size * self.poolings.len(), DenseLayer::output)
    }

    /// Begins to pool a text.
    pub fn pooler(&self) -> Pooler {
        Pooler::of(&self.poolings, self.hidden_size)
    }

    /// Makes the vector of what was pooled; an error if it is not finite.
    pub fn vector(&self, pooled: Vec<f64>) -> Result<Vec<f32>> {
        self.row(pooled, false)
    }

    /// Makes the same, `unscaled` as it is before it is scaled to length 1 in models that do that.
    pub fn row(&self, pooled: Vec<f64>, unscaled: bool) -> Result<Vec<f32>> {
        let vector = self.layers.iter().fold(pooled, |values, layer| layer.forward(&values));
        let length = length(&vector);
        if !length.is_finite() {
            return Err(Error::Internal("the model's hidden states are not finite".into()));
        }
        let scale = if self.is_normalized && !unscaled { scale_to_one(length) } else { 1.0 };
        Ok(vector.into_iter().map(|value| (value * scale) as f32).collect())
    }
}

/// Scales `vector` to length 1; all zeros have no direction, and stay zeros.
pub fn normalize(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
    let scale = scale_to_one(square.sqrt());
    for value in vector {
        *value = (f64::from(*value) * scale) as f32;
    }
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn scale_to_one(length: f64) -> f64 {
    if length > 0.0 { length.recip() } else { 0.0 }
}
