//! The shape of a decoder, read from a checkpoint's `config.json` as transformers writes it: in the current spelling
//! (`rope_parameters`, `layer_types`) and in the older one (`rope_theta`, `rope_scaling`, `use_sliding_window`). Read
//! when a model is loaded, used by the decoder.

use std::path::Path;

use serde::Deserialize;

use crate::rope_scaling::RopeScaling;
use crate::{Error, Result};

/// The families that the decoder knows; they differ in flags only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    /// True if the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// True if the query and the key of each head are normed before the rotation (Qwen 3).
    pub query_key_norm: bool,
    /// Per block: number of tokens that attention looks back, the current one included; `None` for all.
    pub sliding_windows: Vec<Option<usize>>,
    /// Per block: false if positions are not rotated (SmolLM 3).
    pub rotary: Vec<bool>,
}

/// Fields of `config.json` as found in the file.
#[derive(Debug, Deserialize)]
struct Raw {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    rope_parameters: Option<serde_json::Value>,
    #[serde(default)]
    tie_word_embeddings: bool,
    hidden_act: Option<String>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    no_rope_layers: Option<Vec<usize>>,
    no_rope_layer_interval: Option<usize>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<serde_json::Value>,
}

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

    fn parse(text: &str) -> Result<Self, String> {
        let raw: Raw = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let family = Family::of(&raw.model_type)?;
        let layers = raw.num_hidden_layers;
        let heads = raw.num_attention_heads;
        if layers == 0 || heads == 0 || raw.hidden_size == 0 || raw.vocab_size == 0 {
            return Err("hidden_size, num_hidden_layers, num_attention_heads and vocab_size must be at least 1".into());
        }
        let num_key_value_heads = raw.num_key_value_heads.unwrap_or(heads);
        if num_key_value_heads == 0 || !heads.is_multiple_of(num_key_value_heads) {
            return Err(format!("{heads} attention heads cannot share {num_key_value_heads} key-value heads evenly"));
        }
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(format!("head_dim {head_dim} must be even"));
        }
        raw.check_supported()?;
        let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let rope_theta = rope
            .and_then(|parameters| parameters["rope_theta"].as_f64())
            .or(raw.rope_theta)
            .unwrap_or(if family == Family::SmolLm3 { 2_000_000.0 } else { 10_000.0 });
        let rope_scaling = RopeScaling::parse(rope, raw.max_position_embeddings)?;
        let sliding_windows = sliding_windows(&raw, family);
        let rotary = rotary_layers(&raw, family);
        if sliding_windows.len() != layers || rotary.len() != layers {
            return Err(format!("layer_types and no_rope_layers must have {layers} entries"));
        }
        Ok(Self {
            family,
            hidden_size: raw.hidden_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads,
            head_dim,
            intermediate_size: raw.intermediate_size,
            vocab_size: raw.vocab_size,
            max_position_embeddings: raw.max_position_embeddings,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: raw.tie_word_embeddings,
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
            other => Err(format!(
                "model_type `{other}` is not supported; supported are llama, mistral, qwen2, qwen3 and smollm3"
            )),
        }
    }
}

impl Raw {
    /// Refuses, by name, settings that the decoder would not apply.
    fn check_supported(&self) -> Result<(), String> {
        if let Some(activation) = self.hidden_act.as_deref().filter(|name| *name != "silu") {
            return Err(format!("hidden_act `{activation}` is not supported; supported is silu"));
        }
        if self.partial_rotary_factor.is_some_and(|factor| factor < 1.0) {
            return Err("partial_rotary_factor below 1 is not supported".into());
        }
        if self.quantization_config.is_some() {
            return Err("checkpoints that are quantized already are not supported; use the original weights".into());
        }
        Ok(())
    }
}

/// Returns the attention window of each block. Mistral has one in every block; Qwen and SmolLM have one where
/// `layer_types` says so, in the older spelling from `max_window_layers` on, if at all.
fn sliding_windows(raw: &Raw, family: Family) -> Vec<Option<usize>> {
    let Some(window) = raw.sliding_window else { return vec![None; raw.num_hidden_layers] };
    match (family, &raw.layer_types) {
        (Family::Llama, _) => vec![None; raw.num_hidden_layers],
        (Family::Mistral, _) => vec![Some(window); raw.num_hidden_layers],
        _ if !raw.use_sliding_window.unwrap_or(false) => vec![None; raw.num_hidden_layers],
        (_, Some(types)) => types.iter().map(|kind| (kind == "sliding_attention").then_some(window)).collect(),
        (_, None) => {
            let first = raw.max_window_layers.unwrap_or(28);
            (0..raw.num_hidden_layers).map(|layer| (layer >= first).then_some(window)).collect()
        }
    }
}

/// Returns for each block whether positions are rotated. SmolLM 3 leaves every `no_rope_layer_interval`-th block (4th
/// by default) without rotation; 1 in its list means rotated.
fn rotary_layers(raw: &Raw, family: Family) -> Vec<bool> {
    if family != Family::SmolLm3 {
        return vec![true; raw.num_hidden_layers];
    }
    if let Some(layers) = &raw.no_rope_layers {
        return layers.iter().map(|&rotated| rotated != 0).collect();
    }
    let interval = raw.no_rope_layer_interval.unwrap_or(4).max(1);
    (1..=raw.num_hidden_layers).map(|number| !number.is_multiple_of(interval)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_family_is_refused_with_the_list_of_known_ones() {
        let error = ModelConfig::parse(
            r#"{"model_type":"gpt2","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":1,"intermediate_size":8,
                "vocab_size":8,"max_position_embeddings":8,"rms_norm_eps":1e-5}"#,
        )
        .unwrap_err();
        assert!(error.contains("gpt2") && error.contains("qwen3"), "{error}");
    }

    #[test]
    fn smollm3_rotates_three_of_four_blocks_by_default() {
        let config = ModelConfig::parse(
            r#"{"model_type":"smollm3","hidden_size":8,"num_hidden_layers":5,"num_attention_heads":2,"intermediate_size":8,
                "vocab_size":8,"max_position_embeddings":8,"rms_norm_eps":1e-5}"#,
        )
        .unwrap();
        assert_eq!(config.rotary, [true, true, true, false, true]);
    }

    #[test]
    fn both_spellings_of_a_configuration_mean_the_same() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        for family in
            ["llama", "llama3_rope", "llama_linear_rope", "llama_yarn", "mistral", "qwen2", "qwen3", "smollm3"]
        {
            let new = ModelConfig::read_file(&fixtures.join(family).join("config.json")).unwrap();
            let old = ModelConfig::read_file(&fixtures.join(family).join("config_old_style.json")).unwrap();
            assert_eq!(format!("{new:?}"), format!("{old:?}"), "{family}");
        }
    }
}
