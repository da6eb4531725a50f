//! What transformers takes for fields that a `config.json` lacks. Each family has its own; asked by the reader of the
//! fields that all families share.

use super::fields::Fields;
use crate::forms::Activation;

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
    /// What `gelu` stands for; `None` for the exact one of decoders, which is not supported.
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
            // Those of encoders.
            ("relu", Some(Activation::Gelu)) => Ok(Activation::Relu),
            _ => Err(format!("{} `{name}` is not supported; supported are silu and gelu_pytorch_tanh", self.field)),
        }
    }
}
