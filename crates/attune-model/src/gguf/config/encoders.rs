//! Encoders of BERT's kind: the keys of their shape, which have layer norms where decoders have RMS norms, and what
//! llama.cpp fixes for each. Called by the translation of the keys.
//!
//! No key names the activation of BERT: the models that are published in this form have the exact GELU, which is taken.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::{has_biases, rope, rows};
use crate::Result;
use crate::gguf::architecture::Architecture;
use crate::gguf::file::Gguf;

/// Every how many blocks of ModernBERT attend to all of a text, where the file does not say.
const MODERN_INTERVAL: usize = 3;
/// Base of the rotation in ModernBERT's other blocks, where the file does not say.
const MODERN_LOCAL_THETA: f64 = 10_000.0;

/// Translates the shape.
pub(super) fn fields(architecture: Architecture, file: &Gguf, keys: &Keys<'_>) -> Result<Map<String, Value>> {
    let layers = keys.size("block_count")?;
    // Lists are made for all blocks, each of which has tensors.
    if layers > file.tensors().len() {
        return Err(keys.fault("block_count", "is more than the file has tensors"));
    }
    let heads = keys.size("attention.head_count")?;
    if keys.optional_size("attention.head_count_kv")?.is_some_and(|others| others != heads) {
        return Err(keys.fault("attention.head_count_kv", "differs from that of queries, which is not supported"));
    }
    // Readers take attention for causal where it is missing.
    if keys.flag("attention.causal")? != Some(false) {
        return Err(keys.fault("attention.causal", "must be false for this architecture"));
    }
    let context = keys.size("context_length")?;
    let positions = match architecture {
        Architecture::Bert => rows(file, "position_embd.weight")?,
        _ => context,
    };
    if positions < context {
        return Err(keys.fault("context_length", "is more than the file has rows for positions"));
    }
    let segments = if file.tensor("token_types.weight").is_some() { rows(file, "token_types.weight")? } else { 0 };
    let fields = json!({
        "hidden_size": keys.size("embedding_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": keys.size("feed_forward_length")?,
        "vocab_size": rows(file, "token_embd.weight")?,
        "max_position_embeddings": positions,
        "layer_norm_eps": keys.required_number("attention.layer_norm_epsilon")?,
        "type_vocab_size": segments,
        "tie_word_embeddings": true,
    });
    if let Value::Object(fields) = fields { Ok(fields) } else { Ok(Map::new()) }
}

/// Adds what BERT has.
pub(super) fn bert(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    let layers = fields["num_hidden_layers"].as_u64().unwrap_or(0) as usize;
    if !has_biases(keys.file, layers, &["attn_output"])? {
        return Err(keys.file.fault("linear layers without biases are not supported for this architecture"));
    }
    fields.insert("model_type".into(), json!("bert"));
    fields.insert("hidden_act".into(), json!("gelu"));
    Ok(())
}

/// Adds what Nomic's BERT has: rotated positions and a gate.
pub(super) fn nomic(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    fields.insert("model_type".into(), json!("nomic_bert"));
    fields.insert("hidden_act".into(), json!("silu"));
    rotation(keys, fields)
}

/// Adds what ModernBERT has: rotated positions, and blocks whose attention sees a window on both sides.
pub(super) fn modern(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    rotation(keys, fields)?;
    let theta = fields.remove("rope_theta").unwrap_or(Value::Null);
    if fields.contains_key("rope_scaling") {
        return Err(keys.fault("rope.scaling.type", "is not supported for this architecture"));
    }
    let layers = fields["num_hidden_layers"].as_u64().unwrap_or(0) as usize;
    let named = [keys.text("hidden_activation")?, keys.text("hidden_act")?];
    let activation = named.into_iter().flatten().next().unwrap_or("gelu");
    let eps = fields.remove("layer_norm_eps").unwrap_or(Value::Null);
    let others = json!({
        "model_type": "modernbert",
        "hidden_activation": activation,
        "norm_eps": eps,
        "global_rope_theta": theta,
        "local_rope_theta": keys.number("rope.freq_base_swa")?.unwrap_or(MODERN_LOCAL_THETA),
        "local_attention": keys.size("attention.sliding_window")?,
        "layer_types": kinds(layers, keys)?,
    });
    fields.extend(others.as_object().cloned().unwrap_or_default());
    Ok(())
}

/// Returns the kind of each block: by the key, else every so many, beginning with the first, attend to all of a text.
fn kinds(layers: usize, keys: &Keys<'_>) -> Result<Vec<&'static str>> {
    const KEY: &str = "attention.sliding_window_pattern";
    let slides: Vec<bool> = match keys.flags(KEY)? {
        Some(flags) if flags.len() == layers => flags,
        Some(_) => return Err(keys.fault(KEY, &format!("must have {layers} values"))),
        None => {
            let every = keys.optional_size(KEY)?.unwrap_or(MODERN_INTERVAL);
            (0..layers).map(|layer| !layer.is_multiple_of(every)).collect()
        }
    };
    Ok(slides.into_iter().map(|slides| if slides { "sliding_attention" } else { "full_attention" }).collect())
}

/// Translates the rotation of whole heads.
fn rotation(keys: &Keys<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    let size = |name: &str| fields[name].as_u64().unwrap_or(0);
    let head_dim = size("hidden_size") / size("num_attention_heads").max(1);
    fields.insert("head_dim".into(), json!(head_dim));
    // No such file has a list of divisors.
    rope::apply(keys, fields)
}
