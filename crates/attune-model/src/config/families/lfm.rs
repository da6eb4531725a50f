//! LFM 2 and 2.5: the type `lfm2`. Most blocks have a gated short convolution in the place of attention (Amini et al.,
//! "LFM2 Technical Report", 2025).

use serde_json::Value;

use super::{Defaults, Family, llama};
use crate::ModelConfig;
use crate::config::fields::Fields;
use crate::config::{ConvolutionConfig, QueryKeyNorm};
use crate::forms::Activation;
use crate::sites;

/// LFM 2 and 2.5, dense.
pub(super) const LFM2: Family = Family {
    name: "lfm2",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        hidden_size: 2560,
        intermediate_size: 12_288,
        num_key_value_heads: Some(8),
        vocab_size: 65_536,
        max_position_embeddings: 128_000,
        tie_word_embeddings: true,
        rope_theta: 1_000_000.0,
        rms_norm_eps: 1e-5,
        ..llama::DEFAULTS
    },
    apply,
};

/// Norms by Llama's names and by those of LFM 2, whose last norm is called that of the embedding.
const NORMS: [(&str, &str); 5] = [
    ("input_layernorm", "operator_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_norm", "self_attn.q_layernorm"),
    ("self_attn.k_norm", "self_attn.k_layernorm"),
    ("model.norm", "model.embedding_norm"),
];

fn apply(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    // transformers does not read the field, and Attune would.
    if config.activation != Activation::Silu {
        return Err("`hidden_act` other than silu is not supported for this model_type".into());
    }
    let taps = fields.size("conv_L_cache", 3)?;
    if taps > ConvolutionConfig::MOST_TAPS {
        return Err(format!("`conv_L_cache` {taps} is not supported: at most {} is", ConvolutionConfig::MOST_TAPS));
    }
    let blocks = convolutions(fields, config.num_hidden_layers)?;
    config.convolution = Some(ConvolutionConfig { taps, bias: fields.flag("conv_bias", false)?, blocks });
    config.modules = &sites::CONVOLUTION;
    config.norm_names = &NORMS;
    config.query_key_norm = Some(QueryKeyNorm::Head);
    config.rms_norm_eps = fields.number("norm_eps")?.unwrap_or(LFM2.defaults.rms_norm_eps) as f32;
    config.tie_word_embeddings = fields.flag("tie_embedding", config.tie_word_embeddings)?;
    config.intermediate_size = intermediate_size(fields, config.intermediate_size)?;
    Ok(())
}

/// Returns for each block whether it has a convolution: by `layer_types`, else by the list of those with attention, else
/// none has.
fn convolutions(fields: &Fields, layers: usize) -> Result<Vec<bool>, String> {
    if let Some(types) = fields.list("layer_types", Value::as_str)? {
        if types.len() != layers {
            return Err(format!("layer_types must have {layers} entries"));
        }
        return types.into_iter().map(is_convolution).collect();
    }
    let attention = fields.list("full_attn_idxs", Value::as_u64)?;
    let attends = |layer: usize| attention.as_ref().is_none_or(|list| list.contains(&(layer as u64)));
    Ok((0..layers).map(|layer| !attends(layer)).collect())
}

fn is_convolution(kind: &str) -> Result<bool, String> {
    match kind {
        "conv" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(format!("layer_types `{other}` is not supported")),
    }
}

/// Returns the width of the MLP, which is mostly computed from the one that the file says.
fn intermediate_size(fields: &Fields, said: usize) -> Result<usize, String> {
    let said = fields.size("block_ff_dim", said)?;
    if !fields.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(said);
    }
    let width = (2.0 * said as f64 / 3.0) as usize;
    let has_factor = fields.has("block_ffn_dim_multiplier");
    let factor = fields.number("block_ffn_dim_multiplier")?.or((!has_factor).then_some(1.0));
    let multiple = fields.size("block_multiple_of", 256)?;
    let width = factor.map_or(width, |factor| ((factor * width as f64) as usize).next_multiple_of(multiple));
    if width == 0 { Err("the MLP has no width".into()) } else { Ok(width) }
}
