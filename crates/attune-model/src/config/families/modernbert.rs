//! ModernBERT (Warner et al., 2024): norms before the branches, rotated positions, gated MLPs, and blocks whose attention
//! sees a window on both sides.

use super::{ActivationField, Defaults, Family, bert, windows};
use crate::ModelConfig;
use crate::config::fields::Fields;
use crate::config::{Biases, EncoderConfig, ropes};
use crate::sites;

const GLOBAL_THETA: f64 = 160_000.0;
const LOCAL_THETA: f64 = 10_000.0;

/// ModernBERT: gte-modernbert and others.
pub(super) const MODERNBERT: Family = Family {
    name: "modernbert",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        intermediate_size: 1152,
        num_hidden_layers: 22,
        vocab_size: 50_368,
        max_position_embeddings: 8192,
        activation: ActivationField { field: "hidden_activation", ..bert::DEFAULTS.activation },
        ..bert::DEFAULTS
    },
    apply,
};

/// Every third block sees all of the text, beginning with the first; the others see half of `local_attention` on each side.
fn apply(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    let layers = config.num_hidden_layers;
    refuse(fields)?;
    config.rms_norm_eps = fields.number("norm_eps")?.unwrap_or(1e-5) as f32;
    let attention = fields.flag("attention_bias", false)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp: fields.flag("mlp_bias", false)? };
    config.modules = &sites::MODERN_BERT;
    config.norm_names = &[
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "mlp_norm"),
        ("model.norm", "model.final_norm"),
    ];
    config.embedding_name = "model.embeddings.tok_embeddings";
    let every = fields.size("global_attn_every_n_layers", 3)?;
    let is_local = |layer: usize| !layer.is_multiple_of(every);
    // A token half of it away is still seen.
    let window = fields.size("local_attention", 128)? / 2 + 1;
    config.rotary = ropes::by_layer_type(fields, layers, is_local)?;
    config.sliding_windows = windows(fields, layers, Some(window), is_local)?;
    let theta = |name: &str, default: f64| Ok::<_, String>(fields.number(name)?.unwrap_or(default));
    let thetas = [theta("global_rope_theta", GLOBAL_THETA)?, theta("local_rope_theta", LOCAL_THETA)?];
    config.ropes = ropes::read_by_type(fields, thetas, config)?;
    config.is_encoder = true;
    config.encoder = Some(EncoderConfig {
        norm_bias: fields.flag("norm_bias", false)?,
        positions: None,
        segments: 0,
        embedding_norm: "model.embeddings.norm",
        final_norm: true,
        skips_first_norm: true,
        is_gated: true,
        distance_buckets: None,
        blocks_beside_head: "model.layers",
        renamed: None,
    });
    Ok(())
}

/// Refuses fields of other families by which transformers changes the window or the rotation here, too.
fn refuse(fields: &Fields) -> Result<(), String> {
    for name in ["rope_scaling", "sliding_window"] {
        if fields.get(name).is_some() {
            return Err(format!("`{name}` is not supported for this model_type"));
        }
    }
    if fields.get("rope_theta").is_some() && fields.get("rope_parameters").is_none() {
        return Err("`rope_theta` is not supported for this model_type: it has one for each type of layer".into());
    }
    Ok(())
}
