//! Llama and the families that differ from it in biases, windows or rotated blocks: Mistral and SmolLM 3.

use serde_json::Value;

use super::{ActivationField, Defaults, Family, window, windows};
use crate::ModelConfig;
use crate::config::Biases;
use crate::config::fields::Fields;
use crate::forms::Activation;

/// What Llama takes for fields that are missing.
pub(super) const DEFAULTS: Defaults = Defaults {
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    head_dim: None,
    vocab_size: 32_000,
    max_position_embeddings: 2048,
    sliding_window: None,
    tie_word_embeddings: false,
    rope_theta: 10_000.0,
    original_context: None,
    partial_rotary: false,
    rms_norm_eps: 1e-6,
    activation: ActivationField { field: "hidden_act", default: Activation::Silu, gelu: None },
};

/// Llama 1 to 3, SmolLM 1 and 2, and every other model of the type `llama`.
pub(super) const LLAMA: Family =
    Family { name: "llama", inside: None, reads_both_ways: false, defaults: DEFAULTS, apply: apply_llama };

fn apply_llama(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.biases = biases(fields)?;
    Ok(())
}

/// Mistral (dense).
pub(super) const MISTRAL: Family = Family {
    name: "mistral",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        intermediate_size: 14_336,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        sliding_window: Some(4096),
        ..DEFAULTS
    },
    apply: apply_mistral,
};

/// Every block has the window.
fn apply_mistral(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    let window = window(fields, MISTRAL.defaults.sliding_window)?;
    config.sliding_windows = windows(fields, config.num_hidden_layers, window, |_| true)?;
    Ok(())
}

/// SmolLM 3.
pub(super) const SMOLLM3: Family = Family {
    name: "smollm3",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        hidden_size: 2048,
        num_hidden_layers: 36,
        num_attention_heads: 16,
        num_key_value_heads: Some(4),
        vocab_size: 128_256,
        max_position_embeddings: 32_768,
        tie_word_embeddings: true,
        rope_theta: 2_000_000.0,
        ..DEFAULTS
    },
    apply: apply_smollm3,
};

/// Blocks whose positions are not rotated have the window, if `use_sliding_window`.
fn apply_smollm3(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.biases = biases(fields)?;
    config.rotary = rotary(fields, config.num_hidden_layers)?;
    let switched_on = fields.flag("use_sliding_window", false)?;
    let window = window(fields, SMOLLM3.defaults.sliding_window)?.filter(|_| switched_on);
    let rotary = &config.rotary;
    config.sliding_windows = windows(fields, config.num_hidden_layers, window, |layer| rotary[layer].is_none())?;
    Ok(())
}

/// Returns for each block the kind of its rotation. Every `no_rope_layer_interval`-th block (4th by default) has none;
/// 1 in the list means rotated.
fn rotary(fields: &Fields, layers: usize) -> Result<Vec<Option<usize>>, String> {
    if let Some(mut rotated) = fields.list("no_rope_layers", Value::as_u64)? {
        if rotated.len() < layers {
            return Err(format!("no_rope_layers must have {layers} entries"));
        }
        rotated.truncate(layers);
        return Ok(rotated.into_iter().map(|rotated| (rotated != 0).then_some(0)).collect());
    }
    let interval = fields.size("no_rope_layer_interval", 4)?;
    Ok((1..=layers).map(|number| (!number.is_multiple_of(interval)).then_some(0)).collect())
}

/// Returns which layers have biases.
fn biases(fields: &Fields) -> Result<Biases, String> {
    let attention = fields.flag("attention_bias", false)?;
    Ok(Biases { query_key_value: attention, output: attention, mlp: fields.flag("mlp_bias", false)? })
}
