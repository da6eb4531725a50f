//! The keys of a GGUF file as the `config.json` that transformers would have for the model, so that both ways go through
//! [`ModelConfig::parse`]. What the format fixes for an architecture without a key is written out.
//!
//! `families.rs` knows the architectures, `keys.rs` reads the keys and refuses those that nobody has read, since each of
//! them may change what the model computes.

mod comparison;
mod encoders;
mod families;
mod keys;
mod rope;
mod stretch;
mod writing;

use serde_json::{Map, Value, json};

use self::keys::Keys;
use super::architecture::Architecture;
use super::file::Gguf;
use crate::{ModelConfig, Result};

pub(crate) use self::comparison::difference;
pub(crate) use self::writing::{keys, tensors};

/// Largest size that a key may give: beyond it products of sizes would not be whole numbers of this machine.
const LARGEST: usize = 1 << 30;

/// Reads the shape of the decoder.
pub(crate) fn read(file: &Gguf) -> Result<ModelConfig> {
    let fields = fields(file)?;
    ModelConfig::parse(&Value::Object(fields).to_string()).map_err(|message| file.fault(&message))
}

/// Translates the keys into the fields of a `config.json`.
pub fn fields(file: &Gguf) -> Result<Map<String, Value>> {
    let architecture = Architecture::of(file.metadata())?;
    let keys = Keys::new(file, architecture);
    let mut fields = match architecture {
        Architecture::Bert | Architecture::NomicBert | Architecture::ModernBert => {
            encoders::fields(architecture, file, &keys)?
        }
        _ => shape(file, architecture, &keys)?,
    };
    families::apply(architecture, &keys, &mut fields)?;
    keys.check_all_read()?;
    Ok(fields)
}

/// Translates the keys into the fields of a `config.json` that transformers reads, too: it knows no lists of divisors, which
/// are said as the scaling of Llama 3 that they were computed from. Refuses those of another origin.
pub(crate) fn fields_for_transformers(file: &Gguf) -> Result<Map<String, Value>> {
    let mut fields = fields(file)?;
    if fields.get("rope_scaling").is_some_and(|scaling| scaling["rope_type"] == "divided") {
        let scaling = stretch::of_divisors(&fields).ok_or_else(|| {
            file.fault(&format!(
                "the numbers of the tensor `{}` follow no rule that transformers knows",
                rope::DIVISORS
            ))
        })?;
        fields.insert("rope_scaling".into(), scaling);
    }
    Ok(fields)
}

/// Returns the tensors that [`fields`] reads.
pub(super) fn settings(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::Phi3 => &[rope::LONG, rope::SHORT],
        Architecture::GemmaEmbedding => &super::vectors::DENSE,
        _ if architecture.rotates_neighbours() => &[rope::DIVISORS],
        _ => &[],
    }
}

/// Translates what nearly all architectures have.
fn shape(file: &Gguf, architecture: Architecture, keys: &Keys<'_>) -> Result<Map<String, Value>> {
    let layers = keys.size("block_count")?;
    // Lists are made for all blocks, each of which has tensors.
    if layers > file.tensors().len() {
        return Err(keys.fault("block_count", "is more than the file has tensors"));
    }
    let hidden = keys.size("embedding_length")?;
    let heads = keys.size("attention.head_count")?;
    let kv_heads = match architecture {
        Architecture::Lfm2 => keys.size_of_attention("attention.head_count_kv")?,
        _ => keys.optional_size("attention.head_count_kv")?,
    };
    let kv_heads = kv_heads.unwrap_or(heads);
    let head_dim = keys.optional_size("attention.key_length")?.unwrap_or(hidden / heads);
    if keys.optional_size("attention.value_length")?.is_some_and(|width| width != head_dim) {
        return Err(keys.fault("attention.value_length", "differs from that of keys, which is not supported"));
    }
    let is_causal = keys.flag("attention.causal")?.unwrap_or(!architecture.is_encoder());
    if is_causal == architecture.is_encoder() {
        let message = if is_causal {
            "is true, but the architecture looks both ways"
        } else {
            "is false: this is an encoder of an architecture that is read as one of decoders"
        };
        return Err(keys.fault("attention.causal", message));
    }
    let vocabulary = rows(file, "token_embd.weight")?;
    let eps = keys.required_number("attention.layer_norm_rms_epsilon")?;
    let fields = json!({
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": keys.size("context_length")?,
        "rms_norm_eps": eps,
        "tie_word_embeddings": file.tensor("output.weight").is_none(),
        "attention_bias": has_biases(file, layers, &["attn_q", "attn_k", "attn_v", "attn_output", "attn_qkv"])?,
        "mlp_bias": has_biases(file, layers, &["ffn_gate", "ffn_up", "ffn_down"])?,
    });
    if let Value::Object(fields) = fields { Ok(fields) } else { Ok(Map::new()) }
}

/// Returns the rows of the matrix `name`.
fn rows(file: &Gguf, name: &str) -> Result<usize> {
    let tensor = file.tensor(name).ok_or_else(|| file.fault(&format!("the tensor `{name}` is missing")))?;
    Ok(tensor.shape.first().copied().unwrap_or(0))
}

/// Returns true if layers of these names have biases; refuses a file in which some blocks have one and others not.
fn has_biases(file: &Gguf, layers: usize, names: &[&str]) -> Result<bool> {
    let mut found = false;
    for name in names {
        let count = (0..layers).filter(|layer| file.tensor(&format!("blk.{layer}.{name}.bias")).is_some()).count();
        if count != 0 && count != layers {
            return Err(file.fault(&format!("only {count} of {layers} blocks have a tensor `{name}.bias`")));
        }
        found |= count != 0;
    }
    Ok(found)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
