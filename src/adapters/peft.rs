//! PEFT folders in and out: `adapter_config.json` and `adapter_model.safetensors`, as PEFT, vLLM and mistral.rs read them.
//!
//! The worker writes what it trained; the registry, and whoever brings an adapter from elsewhere, reads. What Attune cannot
//! apply exactly is refused by name rather than applied in part; no content of a file may panic.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::adapters::{Adapter, LoraLayer, LoraPair, Site};
use crate::model::ModelConfig;
use crate::{Error, Result};

/// The largest rank that is accepted; no published adapter comes near it.
pub const MAX_RANK: usize = 512;

/// What PEFT puts before the name of a layer of a causal language model.
const PREFIX: &str = "base_model.model.";

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

fn generation(config: &[u8], weights: &[u8]) -> String {
    let digest = Sha256::new().chain_update(weights).chain_update(config).finalize();
    format!("{digest:x}")
}

impl Site {
    /// `(out, in)` of the layer in a model of this shape.
    pub const fn shape(self, model: &ModelConfig) -> (usize, usize) {
        let queries = model.num_attention_heads * model.head_dim;
        let keys = model.num_key_value_heads * model.head_dim;
        match self {
            Self::Query => (queries, model.hidden_size),
            Self::Key | Self::Value => (keys, model.hidden_size),
            Self::Output => (model.hidden_size, queries),
            Self::Gate | Self::Up => (model.intermediate_size, model.hidden_size),
            Self::Down => (model.hidden_size, model.intermediate_size),
        }
    }
}

/// The PEFT files of `adapter`, trained on the model `base`. The same adapter gives the same bytes.
pub fn write(adapter: &Adapter, base: &str) -> Result<PeftFiles> {
    let mut tensors = Vec::new();
    for (path, pair) in pairs(adapter) {
        tensors.push((format!("{PREFIX}{path}.lora_A.weight"), pair.a.dims2()?, bytes(&pair.a)?));
        tensors.push((format!("{PREFIX}{path}.lora_B.weight"), pair.b.dims2()?, bytes(&pair.b)?));
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
    Ok(PeftFiles { config: write_config(adapter, base)?, weights })
}

/// Every pair with the name of its layer, such as `model.layers.0.self_attn.q_proj`.
fn pairs(adapter: &Adapter) -> impl Iterator<Item = (String, &LoraPair)> {
    adapter.layers.iter().enumerate().flat_map(|(index, layer)| {
        Site::ALL
            .into_iter()
            .filter_map(move |site| Some((format!("model.layers.{index}.{}", site.path()), layer.get(site)?)))
    })
}

fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// One rank and one alpha where the adapter has one, which is all that some readers understand; patterns only where an
/// adapter from elsewhere has several. Layer names are given in full where not every block has the same layers.
fn write_config(adapter: &Adapter, base: &str) -> Result<Vec<u8>> {
    let mut scalings = Vec::new();
    for (path, pair) in pairs(adapter) {
        let rank = pair.a.dim(0)?;
        scalings.push((path, rank, alpha(pair.scale, rank)));
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
    let modules: Vec<&str> = Site::ALL
        .into_iter()
        .filter(|site| adapter.layers.iter().any(|layer| layer.get(*site).is_some()))
        .map(Site::module)
        .collect();
    let regular = modules.len() * adapter.layers.len() == scalings.len();
    let target_modules =
        if regular { json!(modules) } else { scalings.iter().map(|scaling| json!(scaling.0)).collect() };
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
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
    serde_json::to_vec_pretty(&config).map_err(|error| Error::Internal(format!("write adapter_config.json: {error}")))
}

/// The alpha that gives `scale` at `rank` when read back: the whole number where there is one (`scale` is rounded to f32).
fn alpha(scale: f32, rank: usize) -> f64 {
    let exact = f64::from(scale) * rank as f64;
    let whole = exact.round();
    if ((whole / rank as f64) as f32).to_bits() == scale.to_bits() { whole } else { exact }
}

fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// The fields of `adapter_config.json` that change what the adapter computes.
#[derive(Debug, Deserialize)]
struct Config {
    peft_type: String,
    r: u64,
    lora_alpha: f64,
    target_modules: Option<Value>,
    #[serde(default)]
    rank_pattern: Option<BTreeMap<String, f64>>,
    #[serde(default)]
    alpha_pattern: Option<BTreeMap<String, f64>>,
    #[serde(default)]
    use_rslora: Option<bool>,
    /// Everything else, to refuse by name what is not supported.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// An adapter that cannot be used, and why.
fn refuse(why: impl std::fmt::Display) -> Error {
    Error::invalid_code("adapter", "invalid_adapter", format!("The adapter cannot be used: {why}"))
}

/// Reads the two files of a PEFT folder for a model of shape `model`, onto `device`.
pub fn read(config: &[u8], weights: &[u8], model: &ModelConfig, device: &Device) -> Result<Adapter> {
    let id = generation(config, weights);
    let config = read_config(config)?;
    let file = SafeTensors::deserialize(weights)
        .map_err(|error| refuse(format_args!("adapter_model.safetensors is damaged: {error}")))?;
    let mut halves: BTreeMap<(usize, Site), [Option<TensorView<'_>>; 2]> = BTreeMap::new();
    for (name, view) in file.iter() {
        let (layer, site, half) = parse_name(name)
            .filter(|(layer, ..)| *layer < model.num_hidden_layers)
            .ok_or_else(|| refuse(format_args!("the model has no place for the tensor `{name}`")))?;
        halves.entry((layer, site)).or_default()[half] = Some(view);
    }
    if halves.is_empty() {
        return Err(refuse("adapter_model.safetensors has no tensors"));
    }
    let mut unused_targets = config.targets()?;
    let targets = unused_targets.clone();
    let mut layers = vec![LoraLayer::default(); model.num_hidden_layers];
    for ((layer, site), [a, b]) in halves {
        let path = format!("model.layers.{layer}.{}", site.path());
        let (Some(a), Some(b)) = (a, b) else {
            return Err(refuse(format_args!("`{path}` has only one of lora_A and lora_B")));
        };
        if let Some(targets) = &targets {
            let matching: Vec<&String> = targets.iter().filter(|target| names(target, &path)).collect();
            if matching.is_empty() {
                return Err(refuse(format_args!("there are tensors for `{path}`, which target_modules does not name")));
            }
            if let Some(unused) = &mut unused_targets {
                unused.retain(|target| !matching.contains(&target));
            }
        }
        let (rank, scale) = config.scaling(&path)?;
        let (out, input) = site.shape(model);
        let a = tensor(&a, &format!("{path}.lora_A"), (rank, input), device)?;
        let b = tensor(&b, &format!("{path}.lora_B"), (out, rank), device)?;
        layers[layer].set(site, LoraPair { a, b, scale });
    }
    if let Some(unused) = unused_targets.iter().flatten().next() {
        return Err(refuse(format_args!("target_modules names `{unused}`, for which there are no tensors")));
    }
    Ok(Adapter { id, layers })
}

/// The base model that `adapter_config.json` says the adapter was trained on, if it says so.
pub fn base_name(config: &[u8]) -> Option<String> {
    let config: Value = serde_json::from_slice(config).ok()?;
    Some(config["base_model_name_or_path"].as_str()?.to_owned())
}

fn read_config(config: &[u8]) -> Result<Config> {
    let config: Config =
        serde_json::from_slice(config).map_err(|error| refuse(format_args!("adapter_config.json: {error}")))?;
    if config.peft_type != "LORA" {
        return Err(refuse(format_args!("its peft_type is `{}`, only LORA is supported", config.peft_type)));
    }
    for key in ["use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora"] {
        if config.rest.get(key).is_some_and(|value| *value == json!(true)) {
            return Err(refuse(format_args!("`{key}` is not supported")));
        }
    }
    let unsupported = [
        "modules_to_save",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "alora_invocation_tokens",
    ];
    for key in unsupported {
        let empty = config.rest.get(key).is_none_or(|value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        });
        if !empty {
            return Err(refuse(format_args!("`{key}` is not supported")));
        }
    }
    if config.rest.get("bias").is_some_and(|bias| *bias != json!("none") && !bias.is_null()) {
        return Err(refuse("`bias` other than \"none\" is not supported"));
    }
    Ok(config)
}

impl Config {
    /// The names in `target_modules`; `None` where it is a pattern, which the tensors then stand for.
    fn targets(&self) -> Result<Option<BTreeSet<String>>> {
        match &self.target_modules {
            Some(Value::Array(names)) => names
                .iter()
                .map(|name| name.as_str().map(str::to_string).ok_or_else(|| refuse("target_modules has no names")))
                .collect::<Result<_>>()
                .map(Some),
            Some(Value::String(_)) => Ok(None),
            _ => Err(refuse("adapter_config.json has no target_modules")),
        }
    }

    /// Rank and scale of the layer at `path`.
    fn scaling(&self, path: &str) -> Result<(usize, f32)> {
        let rank = pattern(self.rank_pattern.as_ref(), path)?.unwrap_or(self.r as f64);
        let alpha = pattern(self.alpha_pattern.as_ref(), path)?.unwrap_or(self.lora_alpha);
        if !(1.0..=MAX_RANK as f64).contains(&rank) || rank.fract() != 0.0 {
            return Err(refuse(format_args!(
                "the rank of `{path}` is {rank}, not a whole number from 1 to {MAX_RANK}"
            )));
        }
        let divisor = if self.use_rslora == Some(true) { rank.sqrt() } else { rank };
        let scale = (alpha / divisor) as f32;
        if !scale.is_finite() {
            return Err(refuse(format_args!("the alpha of `{path}` is not a usable number")));
        }
        Ok((rank as usize, scale))
    }
}

/// The value of the pattern that matches `path`. PEFT takes keys as regular expressions for the end of the name; Attune
/// takes names, with `^` for a name in full, and refuses expressions.
fn pattern(patterns: Option<&BTreeMap<String, f64>>, path: &str) -> Result<Option<f64>> {
    let Some(patterns) = patterns else { return Ok(None) };
    let mut found = None;
    for (key, value) in patterns {
        let name = key.strip_prefix('^').unwrap_or(key);
        let name = name.strip_suffix('$').unwrap_or(name).replace("\\.", ".");
        if name.contains(|character: char| "\\*+?()[]{}|^$".contains(character)) {
            return Err(refuse(format_args!("the pattern `{key}` is a regular expression; give the layer's name")));
        }
        let matches = if key.starts_with('^') { name == path } else { names(&name, path) };
        if matches && found.replace(*value).is_some_and(|other| other.to_bits() != value.to_bits()) {
            return Err(refuse(format_args!("several patterns match `{path}`")));
        }
    }
    Ok(found)
}

/// Whether `name` is the layer at `path` in full or its last parts.
fn names(name: &str, path: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.')) && !name.is_empty()
}

/// Block, site and half (0 for A, 1 for B) of a tensor's name.
fn parse_name(name: &str) -> Option<(usize, Site, usize)> {
    let rest = name.strip_prefix(PREFIX)?.strip_prefix("model.layers.")?;
    let (index, rest) = rest.split_once('.')?;
    let layer: usize = index.parse().ok()?;
    let (path, half) = match rest.strip_suffix(".lora_A.weight") {
        Some(path) => (path, 0),
        None => (rest.strip_suffix(".lora_B.weight")?, 1),
    };
    let site = Site::ALL.into_iter().find(|site| site.path() == path)?;
    // `01` is another spelling of 1, which would let two tensors claim one place.
    (layer.to_string() == index).then_some((layer, site, half))
}

/// The tensor as f32 on `device`, checked.
fn tensor(view: &TensorView<'_>, name: &str, shape: (usize, usize), device: &Device) -> Result<Tensor> {
    if view.shape() != [shape.0, shape.1] {
        return Err(refuse(format_args!(
            "`{name}` has the shape {:?}; rank and model require [{}, {}]",
            view.shape(),
            shape.0,
            shape.1
        )));
    }
    let data = view.data();
    let half = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|bytes| half::f16::from_bits(half(bytes)).to_f32()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|bytes| half::bf16::from_bits(half(bytes)).to_f32()).collect(),
        other => return Err(refuse(format_args!("`{name}` is {other:?}; use F32, F16 or BF16"))),
    };
    if !values.iter().all(|value| value.is_finite()) {
        return Err(refuse(format_args!("`{name}` has values that are not finite")));
    }
    Ok(Tensor::from_vec(values, shape, device)?)
}
