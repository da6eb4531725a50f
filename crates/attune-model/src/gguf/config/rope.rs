//! The rotary embedding of a file, in the older spelling of `config.json` (`rope_theta`, `rope_scaling`), which holds for
//! all blocks. Factors of single frequencies are tensors of the file.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use crate::Result;
use crate::blocks::BlockType;

/// Tensor with the divisors of the frequencies, in which converters write out the scaling of Llama 3.
pub(super) const DIVISORS: &str = "rope_freqs.weight";
/// Tensor with the divisors for sequences longer than the original context.
pub(super) const LONG: &str = "rope_factors_long.weight";
/// Tensor with the divisors for sequences within the original context.
pub(super) const SHORT: &str = "rope_factors_short.weight";
/// Base of files that do not say.
const THETA: f64 = 10_000.0;

/// Translates base and scaling, of an architecture that rotates whole heads.
pub(super) fn apply(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    let head_dim = fields["head_dim"].as_u64().unwrap_or(0) as usize;
    if keys.optional_size("rope.dimension_count")?.is_some_and(|rotated| rotated != head_dim) {
        return Err(keys.fault("rope.dimension_count", "is not the width of a head, which is not supported"));
    }
    fields.insert("rope_theta".into(), json!(keys.number("rope.freq_base")?.unwrap_or(THETA)));
    keys.only("rope.scale_linear", 1.0)?;
    keys.only("rope.scaling.attn_factor", 1.0)?;
    let scaling = scaling(keys)?;
    let divisors = divisors(keys, DIVISORS, head_dim)?;
    let scaling = match (scaling, divisors) {
        (Some(_), Some(_)) => {
            let message = format!("and the tensor `{DIVISORS}` are not supported together");
            return Err(keys.fault("rope.scaling.type", &message));
        }
        (None, Some(divisors)) => Some(json!({ "rope_type": "divided", "divisors": divisors })),
        (scaling, None) => scaling,
    };
    fields.extend(scaling.map(|scaling| ("rope_scaling".into(), scaling)));
    Ok(())
}

/// Translates the keys of the scaling; `None` if the frequencies are not scaled.
fn scaling(keys: &Keys<'_>) -> Result<Option<Value>> {
    let factor = keys.number("rope.scaling.factor")?;
    let original = keys.optional_count("rope.scaling.original_context_length")?.filter(|context| *context > 0);
    let required =
        || factor.filter(|factor| *factor > 0.0).ok_or_else(|| keys.fault("rope.scaling.factor", "is missing"));
    match keys.text("rope.scaling.type")? {
        // Without a factor there is nothing to scale.
        None | Some("none") => match factor.filter(|factor| *factor > 0.0 && (factor - 1.0).abs() > f64::EPSILON) {
            None => Ok(None),
            Some(_) => Err(keys.fault("rope.scaling.factor", "has no `rope.scaling.type` beside it")),
        },
        Some("linear") => Ok(Some(json!({ "rope_type": "linear", "factor": required()? }))),
        Some("yarn") => {
            keys.only("rope.scaling.yarn_ext_factor", 1.0)?;
            let factor = required()?;
            // Some converters write out what follows from the factor.
            let usual = 0.1 * factor.max(1.0).ln() + 1.0;
            match keys.number("rope.scaling.yarn_attn_factor")? {
                Some(number) if (number - usual).abs() < 1e-3 => {}
                _ => keys.only("rope.scaling.yarn_attn_factor", 1.0)?,
            }
            let mut scaling = json!({ "rope_type": "yarn", "factor": factor });
            let original = original.ok_or_else(|| keys.fault("rope.scaling.original_context_length", "is missing"))?;
            scaling["original_max_position_embeddings"] = json!(original);
            for (key, field) in
                [("rope.scaling.yarn_beta_fast", "beta_fast"), ("rope.scaling.yarn_beta_slow", "beta_slow")]
            {
                if let Some(beta) = keys.number(key)? {
                    scaling[field] = json!(beta);
                }
            }
            Ok(Some(scaling))
        }
        Some(other) => Err(keys.fault("rope.scaling.type", &format!("is `{other}`, which is not supported"))),
    }
}

/// Translates what Phi 3 has: heads that are rotated in part, and lists of divisors for short and long sequences.
pub(super) fn apply_long(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    let head_dim = fields["head_dim"].as_u64().unwrap_or(0) as usize;
    let context = fields["max_position_embeddings"].as_u64().unwrap_or(0) as f64;
    let rotated = keys.optional_size("rope.dimension_count")?.unwrap_or(head_dim);
    if rotated > head_dim {
        return Err(keys.fault("rope.dimension_count", "is more than the width of a head"));
    }
    fields.insert("partial_rotary_factor".into(), json!(rotated as f64 / head_dim as f64));
    fields.insert("rope_theta".into(), json!(keys.number("rope.freq_base")?.unwrap_or(THETA)));
    let original = keys.optional_size("rope.scaling.original_context_length")?;
    fields.extend(original.map(|context| ("original_max_position_embeddings".into(), json!(context))));
    match keys.text("rope.scaling.type")? {
        None | Some("none" | "longrope") => {}
        Some(other) => return Err(keys.fault("rope.scaling.type", &format!("is `{other}`, which is not supported"))),
    }
    keys.only("rope.scaling.factor", 1.0)?;
    let attention_factor = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let (long, short) = match (divisors(keys, LONG, rotated)?, divisors(keys, SHORT, rotated)?) {
        (None, None) => return keys.only("rope.scaling.attn_factor", 1.0),
        (Some(long), Some(short)) => (long, short),
        _ => return Err(keys.file.fault(&format!("of `{LONG}` and `{SHORT}` one is missing"))),
    };
    let Some(original) = original else {
        return Err(keys.fault("rope.scaling.original_context_length", "is missing"));
    };
    // Transformers computes it from the two contexts; a file that says otherwise was made by another rule.
    let factor = context / original as f64;
    let expected = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    if (attention_factor - expected).abs() > 1e-4 {
        return Err(
            keys.fault("rope.scaling.attn_factor", &format!("is {attention_factor} where {expected} is expected"))
        );
    }
    let scaling = json!({ "rope_type": "longrope", "long_factor": long, "short_factor": short });
    fields.insert("rope_scaling".into(), scaling);
    Ok(())
}

/// Reads a tensor of divisors of the frequencies of `rotated` elements; `None` if the file has none.
fn divisors(keys: &Keys<'_>, name: &str, rotated: usize) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = keys.file.tensor(name) else { return Ok(None) };
    let fault = |message: &str| keys.file.fault(&format!("the tensor `{name}` {message}"));
    if tensor.shape != [rotated / 2] || tensor.kind != BlockType::F32 {
        return Err(fault(&format!("must hold {} numbers in F32", rotated / 2)));
    }
    let numbers = tensor.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let numbers: Vec<f32> = numbers.collect();
    if numbers.iter().any(|divisor| !divisor.is_finite() || *divisor <= 0.0) {
        return Err(fault("must hold numbers above 0"));
    }
    Ok(Some(numbers))
}
