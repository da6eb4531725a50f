//! The shape of a decoder, read from a checkpoint's `config.json` as transformers writes it: in the current spelling
//! (`rope_parameters`, `layer_types`) and in the older one (`rope_theta`, `rope_scaling`, `use_sliding_window`). Fields
//! that are missing have the values that transformers' configuration classes give them. Read when a model is loaded,
//! used by the decoder.

mod fields;

use std::path::Path;

use serde_json::Value;

use self::fields::Fields;
use crate::rope_scaling::RopeScaling;
use crate::{Error, Result};

/// The families that the decoder knows; they differ in flags only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3, SmolLM 1 and 2, and every other model of the type `llama`.
    Llama,
    /// Mistral (dense).
    Mistral,
    /// Qwen 2 and 2.5 (dense).
    Qwen2,
    /// Qwen 3 (dense).
    Qwen3,
    /// SmolLM 3.
    SmolLm3,
}

/// The shape of a decoder.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Family, which sets the conventions.
    pub family: Family,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; fewer than query heads with grouped-query attention.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Tokens that the model can attend to.
    pub max_position_embeddings: usize,
    /// Epsilon that the norms add to the mean square.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies for long contexts.
    pub rope_scaling: RopeScaling,
    /// True if the output head is the embedding, unless the checkpoint has another one.
    pub tie_word_embeddings: bool,
    /// Layers that have biases. Others in the checkpoint are not read, as in transformers.
    pub biases: Biases,
    /// True if the query and the key of each head are normed before the rotation (Qwen 3).
    pub query_key_norm: bool,
    /// Per block: number of tokens that attention looks back, the current one included; `None` for all.
    pub sliding_windows: Vec<Option<usize>>,
    /// Per block: false if positions are not rotated (SmolLM 3).
    pub rotary: Vec<bool>,
}

/// Which linear layers of a block have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases {
    /// True for those of query, key and value.
    pub query_key_value: bool,
    /// True for attention's output.
    pub output: bool,
    /// True for the three layers of the MLP.
    pub mlp: bool,
}

/// What transformers takes for fields that are missing, where families differ.
struct Defaults {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    /// `None` for one for each query head.
    num_key_value_heads: Option<usize>,
    /// `None` for the hidden size by the heads.
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    sliding_window: Option<usize>,
    tie_word_embeddings: bool,
    rope_theta: f64,
}

const LLAMA: Defaults = Defaults {
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
};

const MISTRAL: Defaults = Defaults {
    intermediate_size: 14_336,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    sliding_window: Some(4096),
    ..LLAMA
};

const QWEN2: Defaults = Defaults {
    intermediate_size: 22_016,
    num_key_value_heads: Some(32),
    vocab_size: 151_936,
    max_position_embeddings: 32_768,
    sliding_window: Some(4096),
    ..LLAMA
};

const QWEN3: Defaults = Defaults { head_dim: Some(128), ..QWEN2 };

const SMOLLM3: Defaults = Defaults {
    hidden_size: 2048,
    num_hidden_layers: 36,
    num_attention_heads: 16,
    num_key_value_heads: Some(4),
    vocab_size: 128_256,
    max_position_embeddings: 32_768,
    tie_word_embeddings: true,
    rope_theta: 2_000_000.0,
    ..LLAMA
};

/// Mean square that every family's norms add by default.
const RMS_NORM_EPS: f64 = 1e-6;

/// Parts of the names of families that make vectors, but no text.
const ENCODERS: [&str; 5] = ["bert", "mpnet", "electra", "deberta", "clip"];

impl ModelConfig {
    /// Reads and checks `config.json` of `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_file(&folder.join("config.json"))
    }

    /// Reads and checks one configuration file.
    pub fn read_file(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(Error::io(format!("read {}", file.display())))?;
        Self::parse(&text).map_err(|message| Error::Setup(format!("{}: {message}", file.display())))
    }

    /// Reads and checks the text of a `config.json`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fields = Fields::parse(text)?;
        let family = Family::of(fields.text("model_type")?.ok_or("`model_type` is missing")?)?;
        let defaults = family.defaults();
        check_supported(&fields)?;
        let hidden_size = fields.size("hidden_size", defaults.hidden_size)?;
        let layers = fields.size("num_hidden_layers", defaults.num_hidden_layers)?;
        let (num_attention_heads, num_key_value_heads, head_dim) = heads(&fields, defaults, hidden_size)?;
        let max_position_embeddings = fields.size("max_position_embeddings", defaults.max_position_embeddings)?;
        let rope = rope_parameters(&fields)?;
        let own_theta = rope.and_then(|parameters| parameters["rope_theta"].as_f64());
        let rope_theta = own_theta.or(fields.number("rope_theta")?).unwrap_or(defaults.rope_theta);
        let original_context = fields.number("original_max_position_embeddings")?;
        let rope_scaling = RopeScaling::parse(rope, max_position_embeddings, original_context)?;
        let rotary = rotary_layers(&fields, family, layers)?;
        let sliding_windows = sliding_windows(&fields, family, &rotary)?;
        if sliding_windows.len() != layers {
            return Err(format!("layer_types must have {layers} entries"));
        }
        Ok(Self {
            family,
            hidden_size,
            num_hidden_layers: layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            intermediate_size: fields.size("intermediate_size", defaults.intermediate_size)?,
            vocab_size: fields.size("vocab_size", defaults.vocab_size)?,
            max_position_embeddings,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(RMS_NORM_EPS) as f32,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: fields.flag("tie_word_embeddings", defaults.tie_word_embeddings)?,
            biases: biases(&fields, family)?,
            query_key_norm: family == Family::Qwen3,
            sliding_windows,
            rotary,
        })
    }
}

impl Family {
    /// Returns the family of a `model_type`, or an error that lists the supported ones.
    fn of(model_type: &str) -> Result<Self, String> {
        match model_type {
            "llama" => Ok(Self::Llama),
            "mistral" => Ok(Self::Mistral),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            "smollm3" => Ok(Self::SmolLm3),
            other => {
                let encoder = ENCODERS.iter().any(|name| other.contains(name));
                let kind = if encoder { " (an encoder, which generates no text)" } else { "" };
                Err(format!(
                    "model_type `{other}` is not supported{kind}; supported are llama, mistral, qwen2, qwen3 and smollm3"
                ))
            }
        }
    }

    fn defaults(self) -> &'static Defaults {
        match self {
            Self::Llama => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::Qwen2 => &QWEN2,
            Self::Qwen3 => &QWEN3,
            Self::SmolLm3 => &SMOLLM3,
        }
    }
}

/// Refuses, by name, settings that the decoder would not apply.
fn check_supported(fields: &Fields) -> Result<(), String> {
    // `swish` is another name of silu.
    if let Some(activation) = fields.text("hidden_act")?.filter(|name| !["silu", "swish"].contains(name)) {
        return Err(format!("hidden_act `{activation}` is not supported; supported is silu"));
    }
    if fields.number("partial_rotary_factor")?.is_some_and(|factor| factor < 1.0) {
        return Err("partial_rotary_factor below 1 is not supported".into());
    }
    if fields.get("quantization_config").is_some() {
        return Err("checkpoints that are quantized already are not supported; use the original weights".into());
    }
    Ok(())
}

/// Returns the number of query heads, that of key-value heads, and their width.
fn heads(fields: &Fields, defaults: &Defaults, hidden_size: usize) -> Result<(usize, usize, usize), String> {
    let heads = fields.size("num_attention_heads", defaults.num_attention_heads)?;
    let default = if fields.has("num_key_value_heads") { None } else { defaults.num_key_value_heads };
    let key_value_heads = fields.size("num_key_value_heads", default.unwrap_or(heads))?;
    if !heads.is_multiple_of(key_value_heads) {
        return Err(format!("{heads} attention heads cannot share {key_value_heads} key-value heads evenly"));
    }
    let head_dim = fields.size("head_dim", defaults.head_dim.unwrap_or(hidden_size / heads))?;
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(format!("head_dim {head_dim} must be even"));
    }
    Ok((heads, key_value_heads, head_dim))
}

/// Returns which layers have biases: Qwen 2 fixes it, and Mistral has none.
fn biases(fields: &Fields, family: Family) -> Result<Biases, String> {
    let output = !matches!(family, Family::Qwen2 | Family::Mistral) && fields.flag("attention_bias", false)?;
    let mlp = matches!(family, Family::Llama | Family::SmolLm3) && fields.flag("mlp_bias", false)?;
    Ok(Biases { query_key_value: output || family == Family::Qwen2, output, mlp })
}

/// Returns the settings of the rotary embedding: `rope_scaling` if it has any, else `rope_parameters`.
fn rope_parameters(fields: &Fields) -> Result<Option<&Value>, String> {
    let filled =
        |name: &str| fields.get(name).filter(|value| value.as_object().is_none_or(|object| !object.is_empty()));
    let Some(rope) = filled("rope_scaling").or_else(|| filled("rope_parameters")) else { return Ok(None) };
    if !rope.is_object() {
        return Err("`rope_scaling` and `rope_parameters` must be objects".into());
    }
    if rope["full_attention"].is_object() || rope["sliding_attention"].is_object() {
        return Err("rope_parameters that differ between layers are not supported".into());
    }
    if rope["partial_rotary_factor"].as_f64().is_some_and(|factor| factor < 1.0) {
        return Err("partial_rotary_factor below 1 is not supported".into());
    }
    Ok(Some(rope))
}

/// Returns the attention window of each block: where `layer_types` says so; without it Mistral has one in every block,
/// Qwen from block `max_window_layers` on and SmolLM where positions are not rotated, both if `use_sliding_window`.
fn sliding_windows(fields: &Fields, family: Family, rotary: &[bool]) -> Result<Vec<Option<usize>>, String> {
    let layers = rotary.len();
    let default = if fields.has("sliding_window") { None } else { family.defaults().sliding_window };
    let window = fields.optional_size("sliding_window")?.or(default);
    let switched_on = family == Family::Mistral || fields.flag("use_sliding_window", false)?;
    let window = window.filter(|_| switched_on && family != Family::Llama);
    let types = if family == Family::Llama { None } else { fields.list("layer_types", Value::as_str)? };
    if let Some(types) = types {
        let windows = types.into_iter().map(|kind| match kind {
            "full_attention" | "attention" => Ok(None),
            "sliding_attention" => Ok(window),
            other => Err(format!("layer_types `{other}` is not supported")),
        });
        return windows.collect();
    }
    let first = match fields.get("max_window_layers") {
        Some(first) => first.as_u64().ok_or("`max_window_layers` must be a whole number")? as usize,
        None => 28,
    };
    Ok((0..layers)
        .map(|layer| match family {
            Family::Llama => None,
            Family::Mistral => window,
            Family::Qwen2 | Family::Qwen3 => window.filter(|_| layer >= first),
            Family::SmolLm3 => window.filter(|_| !rotary[layer]),
        })
        .collect())
}

/// Returns for each block whether positions are rotated. SmolLM 3 leaves every `no_rope_layer_interval`-th block (4th
/// by default) without rotation; 1 in its list means rotated.
fn rotary_layers(fields: &Fields, family: Family, layers: usize) -> Result<Vec<bool>, String> {
    if family != Family::SmolLm3 {
        return Ok(vec![true; layers]);
    }
    if let Some(mut rotated) = fields.list("no_rope_layers", Value::as_u64)? {
        if rotated.len() < layers {
            return Err(format!("no_rope_layers must have {layers} entries"));
        }
        rotated.truncate(layers);
        return Ok(rotated.into_iter().map(|rotated| rotated != 0).collect());
    }
    let interval = fields.size("no_rope_layer_interval", 4)?;
    Ok((1..=layers).map(|number| !number.is_multiple_of(interval)).collect())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
