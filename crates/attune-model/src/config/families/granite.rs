//! Granite 3 and 4 with attention in every block and without experts.

use super::{Family, llama};
use crate::ModelConfig;
use crate::config::Biases;
use crate::config::fields::Fields;
use crate::forms::LogitForm;

/// Granite 3 and 4.1 (dense): Llama with four factors.
pub(super) const GRANITE: Family =
    Family { name: "granite", inside: None, defaults: llama::DEFAULTS, apply: apply_granite };

fn apply_granite(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    let attention = fields.flag("attention_bias", false)?;
    config.biases = Biases { query_key_value: attention, output: attention, mlp: fields.flag("mlp_bias", false)? };
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
