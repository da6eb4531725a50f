//! A model with an adapter's changes added to its weights, for programs that know no adapters: as a folder that
//! transformers loads, or as a GGUF file. In a folder each changed tensor keeps its type and is rounded once. All other
//! tensors are copied byte for byte, so that tied weights stay tied. Called by `attune export`.
//!
//! `merge/addition.rs` computes, `merge/safetensors_files.rs` and `merge/gguf_file.rs` write.

mod addition;
mod gguf_file;
mod safetensors_files;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::safetensors::MmapedSafetensors;
use serde_json::Value;

use self::addition::Change;
pub use self::gguf_file::{ChangedType, write_gguf};
use self::safetensors_files::Tensor;
use crate::lora::Adapter;
use crate::{Error, Result, weights};

/// Files beside the weights that are copied.
const COPIED: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];
/// A folder of further templates.
const TEMPLATES: &str = "additional_chat_templates";
/// Bytes of one file of weights at the most, as transformers cuts them.
pub const FILE_BYTES: usize = 5_000_000_000;

/// Writes the model in the folder `base`, with `adapter` added, to the new folder `output`; files of weights have
/// `file_bytes` at the most, unless one tensor has more. Nothing is left of a write that fails.
pub fn write_folder(base: &Path, adapter: &Adapter, output: &Path, file_bytes: usize) -> Result<()> {
    if output.exists() {
        return Err(fault(output, "it exists already; name a folder that does not"));
    }
    if !base.is_dir() {
        return Err(fault(base, "the model to add to must be a folder with config.json and safetensors files"));
    }
    let config = config(base)?;
    // A folder beside it, so that the last step is a change of the name.
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = output.with_file_name(name);
    std::fs::create_dir_all(&part).map_err(Error::io(format!("make {}", part.display())))?;
    let written = write_parts(base, adapter, &config, &part, file_bytes)
        .and_then(|()| std::fs::rename(&part, output).map_err(Error::io(format!("name {}", output.display()))));
    if written.is_err() {
        // The reason matters more than what may be left.
        let _ = std::fs::remove_dir_all(&part);
    }
    written
}

fn write_parts(base: &Path, adapter: &Adapter, config: &Value, part: &Path, file_bytes: usize) -> Result<()> {
    write_weights(base, adapter, part, file_bytes)?;
    let text = serde_json::to_vec_pretty(config).map_err(|error| Error::Internal(error.to_string()))?;
    std::fs::write(part.join("config.json"), text).map_err(Error::io("write config.json"))?;
    copy(base, part, &COPIED)?;
    let templates = base.join(TEMPLATES);
    if templates.is_dir() {
        let to = part.join(TEMPLATES);
        std::fs::create_dir(&to).map_err(Error::io(format!("make {}", to.display())))?;
        let listing = std::fs::read_dir(&templates).map_err(Error::io(format!("list {}", templates.display())))?;
        let names: Vec<_> = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        copy(&templates, &to, &names)?;
    }
    Ok(())
}

/// Copies those of the files that are there.
fn copy(from: &Path, to: &Path, names: &[impl AsRef<str>]) -> Result<()> {
    for name in names {
        let file = from.join(name.as_ref());
        if file.is_file() {
            std::fs::copy(&file, to.join(name.as_ref())).map_err(Error::io(format!("copy {}", file.display())))?;
        }
    }
    Ok(())
}

/// Reads `config.json`. Refuses a quantized model, whose tensors hold no plain weights to add to.
fn config(base: &Path) -> Result<Value> {
    let config = crate::tokenizer::read_json(&base.join("config.json"))?;
    let config = config.ok_or_else(|| fault(base, "the folder has no config.json"))?;
    if !config["quantization_config"].is_null() {
        let advice =
            "an adapter cannot be added to quantized weights: name the folder of the model's full weights with --base";
        return Err(fault(base, advice));
    }
    Ok(config)
}

fn write_weights(base: &Path, adapter: &Adapter, part: &Path, file_bytes: usize) -> Result<()> {
    let paths = weights::files(base)?;
    // SAFETY: the files are mapped read-only, as where a model is loaded.
    let files = unsafe { MmapedSafetensors::multi(&paths) }
        .map_err(|error| fault(base, &format!("cannot read the weights: {error}")))?;
    let mut changes = changes(adapter)?;
    let mut tensors = Vec::new();
    for (name, view) in files.tensors() {
        let change = changes.remove(name.strip_prefix("model.").unwrap_or(&name));
        tensors.push(Tensor {
            name,
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().len(),
            change,
        });
    }
    if let Some(name) = changes.keys().next() {
        let message = format!("the adapter changes `{name}`, which this model has no tensor of its own for");
        return Err(fault(base, &message));
    }
    safetensors_files::write(part, tensors, file_bytes, |tensor| {
        let view = files.get(&tensor.name)?;
        match &tensor.change {
            Some(change) => change.added_to(&tensor.name, view.dtype(), view.shape(), view.data()).map(Into::into),
            None => Ok(view.data().into()),
        }
    })
}

/// Returns what is added to the tensors, by their names without `model.`.
fn changes(adapter: &Adapter) -> Result<BTreeMap<String, Change>> {
    let mut changes = BTreeMap::new();
    for (index, layer) in adapter.layers.iter().enumerate() {
        for module in adapter.modules {
            if let Some(pair) = layer.whole(module)? {
                changes.insert(format!("layers.{index}.{}.weight", module.path), Change::of(&pair)?);
            }
        }
    }
    Ok(changes)
}

fn fault(path: &Path, message: &str) -> Error {
    Error::Setup(format!("{}: {message}", path.display()))
}
