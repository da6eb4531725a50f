//! The families that the decoder knows: what each takes for fields that are missing, and the flags that it sets. Called
//! by [`super`]; nothing else asks for a model's family.

mod gemma;
mod granite;
mod llama;
mod ministral;
mod mixtures;
mod olmo;
mod phi;
mod qwen;

use serde_json::Value;

use super::ModelConfig;
use super::fields::Fields;
use crate::kernels::Activation;

/// All families.
const ALL: &[&Family] = &[
    &llama::LLAMA,
    &llama::MISTRAL,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &llama::SMOLLM3,
    &ministral::MINISTRAL3,
    &ministral::MISTRAL3,
    &phi::PHI3,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gemma::GEMMA3_TEXT,
    &granite::GRANITE,
    &olmo::OLMO2,
    &olmo::OLMO3,
    &mixtures::QWEN3_MOE,
    &mixtures::MIXTRAL,
    &mixtures::OLMOE,
    &mixtures::GPT_OSS,
];

/// Parts of the names of families that make vectors, but no text.
const ENCODERS: [&str; 5] = ["bert", "mpnet", "electra", "deberta", "clip"];

/// A family: the files with one `model_type`.
pub(super) struct Family {
    /// The `model_type`.
    pub(super) name: &'static str,
    /// The `model_type` of the file's `text_config`, which has the fields of the decoder; `None` if the file itself has
    /// them.
    pub(super) inside: Option<&'static str>,
    /// What it takes for fields that are missing.
    pub(super) defaults: Defaults,
    /// Sets the flags that the family fixes, and reads the fields that not every family has. It is given the shape with
    /// the flags of Llama, without biases and windows.
    pub(super) apply: fn(&Fields, &mut ModelConfig) -> Result<(), String>,
}

/// What transformers takes for fields that are missing, where families differ.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// `None` for one for each query head.
    pub(super) num_key_value_heads: Option<usize>,
    /// `None` for the hidden size by the heads.
    pub(super) head_dim: Option<usize>,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    pub(super) sliding_window: Option<usize>,
    pub(super) tie_word_embeddings: bool,
    pub(super) rope_theta: f64,
    /// The context first trained on, in tokens; `None` if only the rotary settings say it.
    pub(super) original_context: Option<f64>,
    /// True if `partial_rotary_factor` is applied; others refuse it.
    pub(super) partial_rotary: bool,
    pub(super) rms_norm_eps: f64,
    pub(super) activation: ActivationField,
}

/// The field that names the activation.
#[derive(Clone, Copy)]
pub(super) struct ActivationField {
    pub(super) field: &'static str,
    pub(super) default: Activation,
    /// What `gelu` stands for; `None` for the exact one, which is not supported.
    pub(super) gelu: Option<Activation>,
}

impl ActivationField {
    /// Reads the activation.
    pub(super) fn read(self, fields: &Fields) -> Result<Activation, String> {
        let Some(name) = fields.text(self.field)? else { return Ok(self.default) };
        match (name, self.gelu) {
            // `swish` is another name of silu.
            ("silu" | "swish", _) => Ok(Activation::Silu),
            ("gelu_pytorch_tanh" | "gelu_new", _) => Ok(Activation::GeluTanh),
            ("gelu", Some(activation)) => Ok(activation),
            _ => Err(format!("{} `{name}` is not supported; supported are silu and gelu_pytorch_tanh", self.field)),
        }
    }
}

impl Family {
    /// Returns the family of a `model_type`, or an error that lists the supported ones.
    pub(super) fn of(model_type: &str) -> Result<&'static Self, String> {
        if let Some(family) = ALL.iter().find(|family| family.name == model_type) {
            return Ok(family);
        }
        let encoder = ENCODERS.iter().any(|name| model_type.contains(name));
        let kind = if encoder { " (an encoder, which generates no text)" } else { "" };
        let names: Vec<&str> = ALL.iter().map(|family| family.name).collect();
        let (last, others) = names.split_last().unwrap_or((&"", &[]));
        Err(format!("model_type `{model_type}` is not supported{kind}; supported are {} and {last}", others.join(", ")))
    }
}

/// Returns the window of the blocks that have one; `default` if the file does not say.
fn window(fields: &Fields, default: Option<usize>) -> Result<Option<usize>, String> {
    let default = if fields.has("sliding_window") { None } else { default };
    Ok(fields.optional_size("sliding_window")?.or(default))
}

/// Reads the cap `name`; `None` if it is `null`, `default` if it is missing.
fn softcap(fields: &Fields, name: &str, default: Option<f32>) -> Result<Option<f32>, String> {
    if !fields.has(name) {
        return Ok(default);
    }
    match fields.number(name)? {
        Some(cap) if cap <= 0.0 => Err(format!("`{name}` must be above 0")),
        cap => Ok(cap.map(|cap| cap as f32)),
    }
}

/// Returns the attention window of each block: `window` where `layer_types` says so; without it, where `by_default` is
/// true.
fn windows(
    fields: &Fields,
    layers: usize,
    window: Option<usize>,
    by_default: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, String> {
    let is_sliding = sliding_layers(fields, layers, by_default)?;
    Ok(is_sliding.into_iter().map(|sliding| window.filter(|_| sliding)).collect())
}

/// Returns for each block whether `layer_types` calls its attention sliding; without the list, what `by_default` says.
pub(super) fn sliding_layers(
    fields: &Fields,
    layers: usize,
    by_default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, String> {
    let Some(types) = fields.list("layer_types", Value::as_str)? else {
        return Ok((0..layers).map(by_default).collect());
    };
    if types.len() != layers {
        return Err(format!("layer_types must have {layers} entries"));
    }
    let sliding = types.into_iter().map(|kind| match kind {
        "full_attention" | "attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(format!("layer_types `{other}` is not supported")),
    });
    sliding.collect()
}
