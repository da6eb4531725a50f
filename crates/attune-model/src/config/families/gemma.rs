//! Gemma 1, 2 and 3 (text), also where Gemma 3's text model stands inside one that sees images.

use half::{bf16, f16};

use super::{ActivationField, Defaults, Family, llama, softcap, window, windows};
use crate::ModelConfig;
use crate::config::fields::Fields;
use crate::config::{Biases, NormPlaces, QueryKeyNorm, ropes};
use crate::forms::{Activation, LogitForm};

/// The approximation with a tanh; old files of Gemma 1 call it `gelu`.
const TANH: ActivationField =
    ActivationField { field: "hidden_act", default: Activation::GeluTanh, gelu: Some(Activation::GeluTanh) };

/// Gemma 1.
pub(super) const GEMMA: Family = Family {
    name: "gemma",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        hidden_size: 3072,
        intermediate_size: 24_576,
        num_hidden_layers: 28,
        num_attention_heads: 16,
        num_key_value_heads: Some(16),
        head_dim: Some(256),
        vocab_size: 256_000,
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        activation: TANH,
        ..llama::DEFAULTS
    },
    apply: apply_gemma,
};

fn apply_gemma(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    let attention = fields.flag("attention_bias", false)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp: false };
    config.norms_plus_one = true;
    config.overflows_f16 = true;
    config.embedding_multiplier = embedding_multiplier(fields, config.hidden_size)?;
    Ok(())
}

/// Returns the root of the hidden size in the type of the checkpoint, in which transformers multiplies.
fn embedding_multiplier(fields: &Fields, hidden_size: usize) -> Result<f32, String> {
    let root = (hidden_size as f64).sqrt() as f32;
    let dtype = match fields.text("dtype")? {
        None => fields.text("torch_dtype")?,
        given => given,
    };
    Ok(match dtype {
        Some("bfloat16") => bf16::from_f32(root).to_f32(),
        Some("float16") => f16::from_f32(root).to_f32(),
        _ => root,
    })
}

/// Gemma 2.
pub(super) const GEMMA2: Family = Family {
    name: "gemma2",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults {
        hidden_size: 2304,
        intermediate_size: 9216,
        num_hidden_layers: 26,
        num_attention_heads: 8,
        num_key_value_heads: Some(4),
        sliding_window: Some(4096),
        activation: ActivationField { field: "hidden_activation", gelu: None, ..TANH },
        ..GEMMA.defaults
    },
    apply: apply_gemma2,
};

/// Every second block has the window, beginning with the first.
fn apply_gemma2(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    apply_gemma(fields, config)?;
    config.norm_places = NormPlaces::Around;
    config.attention_scale = attention_scale(fields)?;
    config.attention_cap = softcap(fields, "attn_logit_softcapping", Some(50.0))?;
    config.logit_form.cap = softcap(fields, "final_logit_softcapping", Some(30.0))?;
    let window = window(fields, GEMMA2.defaults.sliding_window)?;
    config.sliding_windows = windows(fields, config.num_hidden_layers, window, |layer| layer % 2 == 0)?;
    Ok(())
}

fn attention_scale(fields: &Fields) -> Result<f32, String> {
    let scalar = fields.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    if scalar > 0.0 { Ok(scalar.sqrt().recip() as f32) } else { Err("`query_pre_attn_scalar` must be above 0".into()) }
}

/// Gemma 3, text alone.
pub(super) const GEMMA3_TEXT: Family = Family {
    name: "gemma3_text",
    inside: None,
    reads_both_ways: true,
    defaults: Defaults {
        vocab_size: 262_208,
        max_position_embeddings: 131_072,
        rope_theta: 1_000_000.0,
        ..GEMMA2.defaults
    },
    apply: apply_gemma3,
};

/// Gemma 3's text model inside a model that sees images too, which are not read.
pub(super) const GEMMA3: Family =
    Family { name: "gemma3", inside: Some("gemma3_text"), apply: apply_gemma3_inside, ..GEMMA3_TEXT };

const LOCAL_THETA: f64 = 10_000.0;

/// Every block has the window but each `sliding_window_pattern`-th, which has another rotation.
fn apply_gemma3(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    apply_gemma(fields, config)?;
    config.norm_places = NormPlaces::Around;
    config.query_key_norm = Some(QueryKeyNorm::Head);
    config.attention_scale = attention_scale(fields)?;
    // transformers reads the cap of attention's scores, but does not apply it.
    if fields.get("attn_logit_softcapping").is_some() {
        return Err("attn_logit_softcapping is not supported in Gemma 3, which trains without it".into());
    }
    config.logit_form = LogitForm { scale: 1.0, cap: softcap(fields, "final_logit_softcapping", None)? };
    let pattern = fields.size("sliding_window_pattern", 6)?;
    let window = window(fields, GEMMA3_TEXT.defaults.sliding_window)?;
    let is_sliding = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    let kinds = ropes::by_layer_type(fields, config.num_hidden_layers, is_sliding)?;
    config.sliding_windows = windows(fields, config.num_hidden_layers, window, is_sliding)?;
    let local = fields.number("rope_local_base_freq")?.unwrap_or(LOCAL_THETA);
    config.ropes = ropes::read_by_type(fields, [GEMMA3_TEXT.defaults.rope_theta, local], config)?;
    config.rotary = kinds;
    config.is_encoder = fields.flag("use_bidirectional_attention", false)?;
    if config.is_encoder {
        // EmbeddingGemma: the window is that of both sides together.
        let halved = |window: usize| window / 2 + 1;
        config.sliding_windows = config.sliding_windows.iter().map(|window| window.map(halved)).collect();
    }
    Ok(())
}

fn apply_gemma3_inside(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    apply_gemma3(fields, config)?;
    // transformers caps the logits of the text model alone.
    match config.logit_form.cap {
        Some(_) => Err("final_logit_softcapping is not supported in a model with images".into()),
        None => Ok(()),
    }
}
