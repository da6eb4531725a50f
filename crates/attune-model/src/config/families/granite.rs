//! Granite 3 and 4 with attention in every block and without experts.

use serde_json::Value;

use super::{Defaults, Family, llama};
use crate::ModelConfig;
use crate::config::Biases;
use crate::config::fields::Fields;
use crate::forms::LogitForm;
use crate::sites;

/// Granite 3 and 4.1 (dense): Llama with four factors.
pub(super) const GRANITE: Family =
    Family { name: "granite", inside: None, reads_both_ways: false, defaults: llama::DEFAULTS, apply: apply_granite };

fn apply_granite(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    apply_factors(fields, config)?;
    config.biases.mlp = fields.flag("mlp_bias", false)?;
    Ok(())
}

/// Granite 4 without Mamba layers and experts: the same with gate and up in one layer, and mostly with rotation. What
/// such a file says of the two others has no effect.
pub(super) const GRANITE_HYBRID: Family = Family {
    name: "granitemoehybrid",
    inside: None,
    reads_both_ways: false,
    defaults: Defaults { intermediate_size: 1024, ..llama::DEFAULTS },
    apply: apply_hybrid,
};

fn apply_hybrid(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    const EXPERTS: &str = "num_local_experts";
    check_attention(fields, config.num_hidden_layers)?;
    match fields.get(EXPERTS).map(Value::as_u64) {
        Some(Some(0)) => {}
        Some(Some(count)) => return Err(format!("`{EXPERTS}` {count}: experts of granitemoehybrid are not supported")),
        Some(None) => return Err(format!("`{EXPERTS}` must be a whole number")),
        None => return Err(format!("without `{EXPERTS}` the model has experts, which are not supported")),
    }
    apply_factors(fields, config)?;
    // `intermediate_size` is the width of the experts.
    config.intermediate_size = fields.size("shared_intermediate_size", GRANITE_HYBRID.defaults.intermediate_size)?;
    config.modules = &sites::SHARED_MLP;
    match fields.text("position_embedding_type")? {
        Some("rope") => {}
        None | Some("nope") => config.rotary = vec![None; config.num_hidden_layers],
        Some(other) => return Err(format!("position_embedding_type `{other}` is not supported")),
    }
    Ok(())
}

/// Refuses a model with other layers than attention in some blocks, which are Mamba's where the file does not say.
fn check_attention(fields: &Fields, layers: usize) -> Result<(), String> {
    let mut is_said = false;
    for name in ["layer_types", "layers_block_type"] {
        let Some(types) = fields.list(name, Value::as_str)? else { continue };
        if types.len() != layers {
            return Err(format!("{name} must have {layers} entries"));
        }
        if let Some(other) = types.iter().find(|kind| !["attention", "full_attention"].contains(kind)) {
            return Err(format!("{name} `{other}` is not supported: of granitemoehybrid attention alone is"));
        }
        is_said = true;
    }
    if is_said {
        Ok(())
    } else {
        Err("without `layer_types` the model has Mamba layers, which are not supported".into())
    }
}

/// Reads the factors and attention's biases.
fn apply_factors(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    let attention = fields.flag("attention_bias", false)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp: false };
    let factor = |name: &str| -> Result<f32, String> { Ok(fields.number(name)?.unwrap_or(1.0) as f32) };
    config.embedding_multiplier = factor("embedding_multiplier")?;
    config.attention_scale = factor("attention_multiplier")?;
    config.residual_multiplier = factor("residual_multiplier")?;
    let divisor = factor("logits_scaling")?;
    if divisor <= 0.0 {
        return Err("`logits_scaling` must be above 0".into());
    }
    config.logit_form = LogitForm { scale: divisor.recip(), cap: None };
    Ok(())
}
