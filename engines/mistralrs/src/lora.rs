//! Adds a PEFT adapter to the weights while they are loaded. The library knows rank, alpha and names of layers alone, and
//! leaves out silently what it finds no place for; so everything else is refused here, by name. Called by [`load`](crate::load).

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device};
use mistralrs_quant::{LoraAdapter, LoraConfig, ShardedSafeTensors, push_applied_lora};
use serde_json::Value;

/// Fields of `adapter_config.json` that change what an adapter does and are not applied, unless they say nothing.
const NOT_APPLIED: &[&str] = &[
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "megatron_config",
    "fan_in_fan_out",
    "exclude_modules",
    "layers_to_transform",
    "alora_invocation_tokens",
];

/// Lets the next load of this thread add the adapter in the folder `adapter` to the model in the folder `base`.
pub(crate) fn apply(adapter: &Path, base: &Path) -> Result<()> {
    let config = std::fs::read_to_string(adapter.join("adapter_config.json")).context("adapter_config.json")?;
    let config: Value = serde_json::from_str(&config).context("adapter_config.json")?;
    check(&config)?;
    let number = |name: &str| config[name].as_f64().with_context(|| format!("`{name}` is missing"));
    let (rank, alpha) = (number("r")? as usize, number("lora_alpha")?);
    let file = adapter.join("adapter_model.safetensors");
    // SAFETY: nothing changes the file while it is mapped, as with the weights themselves.
    let tensors = unsafe { MmapedSafetensors::new(&file) }.with_context(|| file.display().to_string())?;
    let layers = layers(&tensors, rank)?;
    check_places(&layers, base)?;
    let escaped = layers.iter().map(|layer| format!("^{}$", layer.replace('.', "\\.")));
    let target_modules: HashSet<String> = escaped.collect();
    // SAFETY: as above.
    let weights = unsafe { ShardedSafeTensors::sharded(&[file], DType::F32, &Device::Cpu, None, Arc::new(|_| true)) }?;
    push_applied_lora(LoraAdapter { config: LoraConfig { rank, alpha, target_modules }, weights });
    Ok(())
}

/// Refuses a configuration of which not everything is applied.
fn check(config: &Value) -> Result<()> {
    ensure!(config["peft_type"] == "LORA", "`peft_type` is {}, and only LORA is added", config["peft_type"]);
    ensure!(matches!(config["bias"].as_str(), None | Some("none")), "`bias` is {}, which is not added", config["bias"]);
    // Other starts change the base as well.
    let starts = [Value::Null, true.into(), false.into(), "gaussian".into(), "eva".into(), "orthogonal".into()];
    let start = &config["init_lora_weights"];
    ensure!(starts.contains(start), "`init_lora_weights` is {start}, which changes the base model");
    let fields = config.as_object().context("adapter_config.json holds no object")?;
    let uses = fields.keys().filter(|name| name.starts_with("use_")).map(String::as_str);
    for name in NOT_APPLIED.iter().copied().chain(uses) {
        let says_nothing = match &config[name] {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        ensure!(says_nothing, "`{name}` is {}, which is not applied: merge the adapter with PEFT", config[name]);
    }
    Ok(())
}

/// Returns the paths of the layers that the adapter changes; refuses a tensor that is neither A nor B of one.
fn layers(tensors: &MmapedSafetensors, rank: usize) -> Result<BTreeSet<String>> {
    let mut halves = [BTreeSet::new(), BTreeSet::new()];
    for (name, view) in tensors.tensors() {
        let inner = name.strip_prefix("base_model.model.").unwrap_or(&name);
        let ends = [".lora_A.weight", ".lora_B.weight"];
        let half = ends.iter().position(|end| inner.ends_with(end));
        let Some(half) = half else { bail!("the tensor `{name}` is neither A nor B of a linear layer") };
        let own_rank = if half == 0 { view.shape().first() } else { view.shape().get(1) };
        ensure!(own_rank == Some(&rank), "the tensor `{name}` has shape {:?}, and `r` is {rank}", view.shape());
        halves[half].insert(inner[..inner.len() - ends[half].len()].to_owned());
    }
    let [a, b] = halves;
    ensure!(a == b, "a layer has one of A and B alone");
    ensure!(!a.is_empty(), "it holds no layer");
    Ok(a)
}

/// Refuses a layer that the base does not have as a tensor of its own.
fn check_places(layers: &BTreeSet<String>, base: &Path) -> Result<()> {
    let mut names = HashSet::new();
    for file in weight_files(base)? {
        // SAFETY: as above.
        let tensors = unsafe { MmapedSafetensors::new(&file) }.with_context(|| file.display().to_string())?;
        names.extend(tensors.tensors().into_iter().map(|(name, _)| name));
    }
    match layers.iter().find(|layer| !names.contains(&format!("{layer}.weight"))) {
        None => Ok(()),
        Some(layer) => bail!("the model has no linear layer `{layer}`"),
    }
}

fn weight_files(base: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(base)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            files.push(path);
        }
    }
    Ok(files)
}
