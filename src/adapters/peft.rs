//! PEFT folders in and out: `adapter_config.json` and `adapter_model.safetensors`, as PEFT, vLLM and mistral.rs read
//! them.
//!
//! The worker writes trained adapters; the registry reads them and adapters from elsewhere, through [`HostAdapter`]. A
//! setting that Attune cannot apply exactly is refused by name rather than applied in part; no content of a file may
//! panic.

pub mod config;
mod experts;
pub mod host;
mod matrix;

use bytes::Bytes;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::adapters::peft::experts::{ParameterUpdate, parameter_names, parameter_updates};
use crate::adapters::peft::host::HostAdapter;
use crate::adapters::pieces::Pieces;
use crate::adapters::{Error, Result};
use crate::model::ModelConfig;
use crate::model::lora::modules::{Module, names};
use crate::model::lora::{Adapter, LoraLayer, LoraPair, MAX_RANK, Site};

/// What PEFT puts before the name of a layer of a causal language model.
pub(super) const PREFIX: &str = "base_model.model.";

/// The two files of a PEFT folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeftFiles {
    /// `adapter_config.json`
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`
    pub weights: Vec<u8>,
}

impl PeftFiles {
    /// The generation's name: SHA-256 over the weights and the configuration, in hex.
    pub fn id(&self) -> String {
        generation(&self.config, &self.weights)
    }
}

/// The generation's name, see [`PeftFiles::id`].
fn generation(config: &[u8], weights: &[u8]) -> String {
    name(Sha256::new().chain_update(weights), config)
}

/// The generation's name, of a digest that has seen the weights.
fn name(weights: Sha256, config: &[u8]) -> String {
    format!("{:x}", weights.chain_update(config).finalize())
}

/// Writes `adapter`, trained on the model `base`, as PEFT files. The same adapter gives the same bytes.
pub fn write(adapter: &Adapter, base: &str) -> Result<PeftFiles> {
    let (pairs, of_experts) = (adapter.linear_wholes(|module| vec![*module])?, parameter_updates(adapter)?);
    let linear = pairs.iter().map(|(path, pair)| (path, &pair.a, &pair.b));
    let mut tensors = Vec::new();
    for (path, a, b) in linear.chain(of_experts.iter().map(|update| (&update.module, &update.a, &update.b))) {
        tensors.push((format!("{PREFIX}{path}.lora_A.weight"), a.dims2()?, bytes(a)?));
        tensors.push((format!("{PREFIX}{path}.lora_B.weight"), b.dims2()?, bytes(b)?));
    }
    let mut views = Vec::with_capacity(tensors.len());
    for (name, (rows, columns), data) in &tensors {
        let view = TensorView::new(Dtype::F32, vec![*rows, *columns], data)
            .map_err(|error| Error::Internal(format!("write {name}: {error}")))?;
        views.push((name, view));
    }
    // One entry: the header's metadata is a hash map, whose order would change the bytes.
    let metadata = [("format".to_string(), "pt".to_string())].into();
    let weights = safetensors::serialize(views, Some(metadata))
        .map_err(|error| Error::Internal(format!("write adapter_model.safetensors: {error}")))?;
    Ok(PeftFiles { config: write_config(adapter, &pairs, &of_experts, base)?, weights })
}

fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// Returns true if `layer` has updates of all of its layers among `modules` that these names stand for. A block with a
/// convolution, which its updates tell, has no attention.
fn is_regular(layer: &LoraLayer, modules: &[Module], names: &[&str]) -> bool {
    let is_adapted = |module: &Module| module.sites.iter().all(|site| layer.get(*site).is_some());
    let has = |kind: fn(Site) -> bool| {
        modules.iter().any(|module| module.sites.iter().any(|site| kind(*site)) && is_adapted(module))
    };
    let (attends, convolves) = (has(Site::is_of_attention), has(Site::is_of_convolution));
    let named = modules.iter().filter(|module| names.contains(&module.name()));
    let mut expected = named.filter(|module| {
        let is_elsewhere = |site: &Site| (convolves && site.is_of_attention()) || (attends && site.is_of_convolution());
        !module.sites.iter().any(is_elsewhere)
    });
    expected.all(is_adapted)
}

/// Writes `adapter_config.json`: one rank and one alpha if the adapter has one of each, which is all that some readers
/// understand, else patterns for the others; layers by module, or by full name if blocks differ in their layers; the
/// parameters of experts, if it changes some, in the same way.
fn write_config(
    adapter: &Adapter,
    pairs: &[(String, LoraPair)],
    of_experts: &[ParameterUpdate],
    base: &str,
) -> Result<Vec<u8>> {
    let mut scalings = Vec::new();
    for (path, pair) in pairs {
        let rank = pair.a.dim(0)?;
        scalings.push((path.clone(), rank, alpha(pair.scale, rank)));
    }
    for ParameterUpdate { path, scaling: (rank, scale), .. } in of_experts {
        scalings.push((path.clone(), *rank, alpha(*scale, *rank)));
    }
    let Some(&(_, rank, alpha)) = scalings.first() else {
        return Err(Error::Internal("an adapter without layers cannot be written".into()));
    };
    let mut rank_pattern = Map::new();
    let mut alpha_pattern = Map::new();
    for (path, own_rank, own_alpha) in &scalings {
        if *own_rank != rank {
            rank_pattern.insert(path.clone(), json!(own_rank));
        }
        if number(*own_alpha) != number(alpha) {
            alpha_pattern.insert(path.clone(), number(*own_alpha));
        }
    }
    let has = |site: &Site| adapter.layers.iter().any(|layer| layer.get(*site).is_some());
    let modules = adapter.names.modules.iter().filter(|module| module.sites.iter().any(has));
    let modules = names(modules);
    // BERT has another layer of this name outside of its blocks.
    let is_ambiguous = modules.contains(&"dense");
    let is_whole = |layer| is_regular(layer, adapter.names.modules, &modules);
    let regular = !is_ambiguous && adapter.layers.iter().all(is_whole);
    let target_modules = if regular { json!(modules) } else { pairs.iter().map(|(path, _)| json!(path)).collect() };
    let mut config = json!({
        "peft_type": "LORA",
        "task_type": if adapter.names.blocks == "model.layers" { json!("CAUSAL_LM") } else { Value::Null },
        "base_model_name_or_path": base,
        "revision": null,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": number(alpha),
        "lora_dropout": 0.0,
        "target_modules": target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "use_rslora": false,
        "use_dora": false,
        "layers_to_transform": null,
        "layers_pattern": null,
    });
    if !of_experts.is_empty() {
        config["target_parameters"] = json!(parameter_names(adapter, of_experts));
        // The first one of this form, which readers tell by it.
        config["peft_version"] = json!(experts::VERSION);
    }
    serde_json::to_vec_pretty(&config).map_err(|error| Error::Internal(format!("write adapter_config.json: {error}")))
}

/// Returns the alpha that gives `scale` at `rank` when read back: a whole number if one does (`scale` is rounded to
/// f32).
fn alpha(scale: f32, rank: usize) -> f64 {
    let exact = f64::from(scale) * rank as f64;
    let whole = exact.round();
    if ((whole / rank as f64) as f32).to_bits() == scale.to_bits() { whole } else { exact }
}

fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// Returns the error for an adapter that cannot be used because of `why`.
pub(super) fn refuse(why: impl std::fmt::Display) -> Error {
    Error::Invalid(why.to_string())
}

/// Reads the two files of a PEFT folder for a model of shape `model`, onto `device`.
pub fn read(config: &[u8], weights: &[u8], model: &ModelConfig, device: &Device) -> Result<Adapter> {
    let mut at_once = |_| {};
    let pieces = &mut Pieces::new(&mut at_once);
    HostAdapter::check(config, Bytes::copy_from_slice(weights), model, MAX_RANK, pieces)?.to_adapter(device, pieces)
}

/// Returns the base model that `adapter_config.json` names, if it names one.
pub fn base_name(config: &[u8]) -> Option<String> {
    let config = config::parse(config).ok()?;
    Some(config["base_model_name_or_path"].as_str()?.to_owned())
}
