//! Kinds of rotary embeddings, as `rope_parameters` or the older `rope_theta` and `rope_scaling` give them. Called by
//! [`super`] and by the families whose blocks have different kinds.

use serde_json::Value;

use super::RopeParameters;
use super::fields::Fields;
use crate::rope_scaling::RopeScaling;

/// Reads the one kind that all blocks have, of a model with a `context` in tokens.
pub(super) fn read(fields: &Fields, default_theta: f64, context: usize) -> Result<Vec<RopeParameters>, String> {
    let rope = parameters(fields)?;
    let own_theta = rope.and_then(|parameters| parameters["rope_theta"].as_f64());
    let theta = own_theta.or(fields.number("rope_theta")?).unwrap_or(default_theta);
    let original_context = fields.number("original_max_position_embeddings")?;
    Ok(vec![RopeParameters { theta, scaling: RopeScaling::parse(rope, context, original_context)? }])
}

/// Returns the settings of the rotary embedding: `rope_scaling` if it has any, else `rope_parameters`.
fn parameters(fields: &Fields) -> Result<Option<&Value>, String> {
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
