//! Nomic's BERT (Nussbaum et al., "Nomic Embed", 2024): BERT's norms with rotated positions and gated MLPs.

use super::{ActivationField, Defaults, Family, bert};
use crate::ModelConfig;
use crate::config::fields::Fields;
use crate::config::{Biases, EncoderConfig, NormPlaces, RenamedBlocks, RopeParameters};
use crate::forms::Activation;
use crate::rope_scaling::RopeScaling;
use crate::sites;

/// Base of the rotation if the file does not say.
const THETA: f64 = 1000.0;
/// Fields that the published checkpoints' own code has, and transformers has not.
const PUBLISHED: [&str; 5] = ["n_embd", "activation_function", "qkv_proj_bias", "rotary_emb_base", "mlp_fc1_bias"];

/// nomic-embed-text and others.
pub(super) const NOMIC_BERT: Family = Family {
    name: "nomic_bert",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        vocab_size: 30_528,
        max_position_embeddings: 2048,
        activation: ActivationField { field: "hidden_act", default: Activation::Silu, gelu: Some(Activation::Gelu) },
        rope_theta: THETA,
        ..bert::DEFAULTS
    },
    apply,
};

fn apply(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    // transformers itself saves another configuration, in its usual spelling.
    if PUBLISHED.iter().any(|name| fields.has(name)) {
        apply_published(fields, config)?;
    }
    config.rms_norm_eps = fields.number("layer_norm_eps")?.unwrap_or(1e-12) as f32;
    config.biases = Biases { query_key_value: false, output: false, mlp: false };
    config.norm_places = NormPlaces::Behind;
    config.modules = &sites::NOMIC_BERT;
    config.norm_names = &[("post_attention_layernorm", "norm1"), ("post_feedforward_layernorm", "norm2")];
    config.embedding_name = "model.embeddings.word_embeddings";
    config.blocks_name = "model.encoder.layers";
    config.is_encoder = true;
    config.encoder = Some(EncoderConfig {
        norm_bias: true,
        positions: None,
        segments: bert::segments(fields, 2)?,
        embedding_norm: "model.emb_ln",
        final_norm: false,
        skips_first_norm: false,
        is_gated: true,
        distance_buckets: None,
        blocks_beside_head: "bert.encoder.layers",
        renamed: Some(RenamedBlocks {
            blocks: "layers",
            blocks_beside_head: "nomic_bert.layers",
            modules: &sites::PLAIN,
        }),
    });
    Ok(())
}

/// Reads the configuration of the published checkpoints' own code.
fn apply_published(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    refuse(fields)?;
    config.activation = activation(fields)?;
    let biases = ["qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"].map(|name| fields.flag(name, true));
    if biases.into_iter().collect::<Result<Vec<_>, _>>()?.contains(&true) {
        return Err("biases of linear layers are not supported for nomic_bert: the published models have none".into());
    }
    let theta = fields.number("rotary_emb_base")?.unwrap_or(THETA);
    let share = fields.number("rotary_emb_fraction")?.unwrap_or(1.0);
    config.ropes = vec![RopeParameters { share, ..RopeParameters::whole(theta, RopeScaling::None) }];
    if fields.get("rotary_scaling_factor").is_some() {
        // Longer texts would stretch the rotation.
        let trained = fields.size("max_trained_positions", 2048)?;
        config.max_position_embeddings = config.max_position_embeddings.min(trained);
    }
    Ok(())
}

fn activation(fields: &Fields) -> Result<Activation, String> {
    match fields.text("activation_function")? {
        None | Some("swiglu") => Ok(Activation::Silu),
        Some("geglu") => Ok(Activation::Gelu),
        Some(other) => Err(format!("activation_function `{other}` is not supported; supported are swiglu and geglu")),
    }
}

/// Refuses variants that would be computed in another way.
fn refuse(fields: &Fields) -> Result<(), String> {
    const OFF: [&str; 7] = [
        "prenorm",
        "parallel_block",
        "rotary_emb_interleaved",
        "use_rms_norm",
        "causal",
        "scale_attn_by_inverse_layer_idx",
        "parallel_block_tied_norm",
    ];
    if let Some(name) = OFF.into_iter().find(|name| fields.flag(name, false) == Ok(true)) {
        return Err(format!("`{name}` is not supported for nomic_bert"));
    }
    if fields.get("rotary_emb_scale_base").is_some() {
        return Err("`rotary_emb_scale_base` is not supported for nomic_bert".into());
    }
    if fields.get("num_experts").is_some() {
        return Err("experts are not supported for nomic_bert".into());
    }
    Ok(())
}
