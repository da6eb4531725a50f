//! The families that the decoder knows: what each takes for fields that are missing, and the flags that it sets. Called
//! by [`super`]; nothing else asks for a model's family.

mod bert;
mod gemma;
mod granite;
mod lfm;
mod llama;
mod ministral;
mod mixtures;
mod modernbert;
mod nomic;
mod olmo;
mod phi;
mod qwen;

use super::ModelConfig;
use super::defaults::{ActivationField, Defaults};
use super::fields::Fields;
use super::ropes::sliding_layers;

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
    &granite::GRANITE_HYBRID,
    &lfm::LFM2,
    &olmo::OLMO2,
    &olmo::OLMO3,
    &mixtures::QWEN3_MOE,
    &mixtures::MIXTRAL,
    &mixtures::OLMOE,
    &mixtures::GPT_OSS,
    &bert::BERT,
    &bert::ROBERTA,
    &bert::XLM_ROBERTA,
    &bert::CAMEMBERT,
    &bert::MPNET,
    &modernbert::MODERNBERT,
    &nomic::NOMIC_BERT,
];

/// A family: the files with one `model_type`.
pub(super) struct Family {
    /// The `model_type`.
    pub(super) name: &'static str,
    /// The `model_type` of the file's `text_config`, which has the fields of the decoder; `None` if the file itself has
    /// them.
    pub(super) inside: Option<&'static str>,
    /// What it takes for fields that are missing.
    pub(super) defaults: Defaults,
    /// True if `use_bidirectional_attention` is applied; others refuse it.
    pub(super) reads_both_ways: bool,
    /// Sets the flags that the family fixes, and reads the fields that not every family has. It is given the shape with
    /// the flags of Llama, without biases and windows.
    pub(super) apply: fn(&Fields, &mut ModelConfig) -> Result<(), String>,
}

impl Family {
    /// Returns the family of a `model_type`, or an error that lists the supported ones.
    pub(super) fn of(model_type: &str) -> Result<&'static Self, String> {
        if let Some(family) = ALL.iter().find(|family| family.name == model_type) {
            return Ok(family);
        }
        let names: Vec<&str> = ALL.iter().map(|family| family.name).collect();
        let (last, others) = names.split_last().unwrap_or((&"", &[]));
        Err(format!("model_type `{model_type}` is not supported; supported are {} and {last}", others.join(", ")))
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
