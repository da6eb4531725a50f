//! Kinds of rotary embeddings, as `rope_parameters` or the older `rope_theta` and `rope_scaling` give them. Called by
//! [`super`] and by the families whose blocks have different kinds.

use serde_json::Value;

use super::defaults::Defaults;
use super::fields::Fields;
use super::{ModelConfig, RopeParameters};
use crate::rope_scaling::RopeScaling;

/// Reads the one kind that all blocks have, of a model with a `context` in tokens.
pub(super) fn read(fields: &Fields, defaults: &Defaults, context: usize) -> Result<RopeParameters, String> {
    let rope = parameters(fields)?;
    let own = |name: &str| rope.and_then(|parameters| parameters[name].as_f64());
    let theta = own("rope_theta").or(fields.number("rope_theta")?).unwrap_or(defaults.rope_theta);
    let share = own("partial_rotary_factor").or(fields.number("partial_rotary_factor")?).unwrap_or(1.0);
    if !defaults.partial_rotary {
        refuse_partial(Some(share))?;
    }
    let original_context = original_context(fields, defaults)?;
    let share = if defaults.partial_rotary { share } else { 1.0 };
    let scaling = RopeScaling::parse(rope, context, original_context)?;
    Ok(RopeParameters { share, ..RopeParameters::whole(theta, scaling) })
}

/// Returns the context first trained on, if the file or its family says it outside of the rotary settings: it wins over
/// what they say.
pub(super) fn original_context(fields: &Fields, defaults: &Defaults) -> Result<Option<f64>, String> {
    Ok(fields.number("original_max_position_embeddings")?.or(defaults.original_context))
}

/// The types of blocks, by their index among the kinds.
const TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

/// Returns the kind of each block's rotation, of the two of [`read_by_type`]: by `layer_types`; without the list, by
/// what `is_sliding` says.
pub(super) fn by_layer_type(
    fields: &Fields,
    layers: usize,
    is_sliding: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, String> {
    let sliding = sliding_layers(fields, layers, is_sliding)?;
    Ok(sliding.into_iter().map(|sliding| Some(usize::from(sliding))).collect())
}

/// Reads the kinds of blocks with full and with sliding attention, of families in which they differ. `thetas` are the
/// bases of both if the file does not say; `rope_theta` and `rope_scaling` of older files are those of full attention.
pub(super) fn read_by_type(
    fields: &Fields,
    thetas: [f64; 2],
    config: &ModelConfig,
) -> Result<Vec<RopeParameters>, String> {
    let given = fields.get("rope_parameters");
    if given.is_some_and(|given| TYPES.iter().all(|kind| given.get(kind).is_none())) {
        return Err(format!("`rope_parameters` must have the parts {} and {}", TYPES[0], TYPES[1]));
    }
    refuse_partial(fields.number("partial_rotary_factor")?)?;
    let scaling = fields.get("rope_scaling").and_then(Value::as_object);
    let mut kinds = Vec::with_capacity(TYPES.len());
    for (kind, theta) in TYPES.into_iter().zip(thetas) {
        let is_full = kind == TYPES[0];
        let part = given.and_then(|given| given.get(kind)).and_then(Value::as_object);
        let mut parameters = part.cloned().unwrap_or_default();
        parameters.extend(scaling.filter(|_| is_full).cloned().unwrap_or_default());
        let older = if is_full { fields.number("rope_theta")? } else { None };
        let theta = parameters.get("rope_theta").and_then(Value::as_f64).or(older).unwrap_or(theta);
        // transformers looks for it beside the parts, where files do not have it.
        if parameters.get("truncate").or(given.and_then(|given| given.get("truncate"))) == Some(&Value::Bool(false)) {
            return Err("`truncate` false in rope_parameters is not supported for this model_type".into());
        }
        let parameters = Value::Object(parameters);
        refuse_partial(parameters["partial_rotary_factor"].as_f64())?;
        // What the configuration itself calls `original_max_position_embeddings` does not count here.
        let scaling = RopeScaling::parse(Some(&parameters), config.max_position_embeddings, None)?;
        kinds.push(RopeParameters::whole(theta, scaling));
    }
    Ok(kinds)
}

fn refuse_partial(share: Option<f64>) -> Result<(), String> {
    if share.is_some_and(|share| share < 1.0) {
        return Err("partial_rotary_factor below 1 is not supported for this model_type".into());
    }
    Ok(())
}

/// Returns the settings of the rotary embedding: `rope_scaling` if it has any, else `rope_parameters`.
pub(super) fn parameters(fields: &Fields) -> Result<Option<&Value>, String> {
    let filled =
        |name: &str| fields.get(name).filter(|value| value.as_object().is_none_or(|object| !object.is_empty()));
    let Some(rope) = filled("rope_scaling").or_else(|| filled("rope_parameters")) else { return Ok(None) };
    if !rope.is_object() {
        return Err("`rope_scaling` and `rope_parameters` must be objects".into());
    }
    if rope["full_attention"].is_object() || rope["sliding_attention"].is_object() {
        return Err("rope_parameters that differ between layers are not supported".into());
    }
    Ok(Some(rope))
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
