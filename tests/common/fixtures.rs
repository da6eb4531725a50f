//! Loads tiny random checkpoints and the results of transformers and PEFT on them; see `tests/parity/README.md`.

#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses a part, and fails by panicking")]

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use attune::engine::stops::StopTexts;
use attune::engine::{GenerateRequest, Sampling};
use attune::model::decoder::Decoder;
use attune::model::device::DeviceChoice;
use attune::model::entry::ModelEntry;
use attune::model::kernels::Kernels;
use attune::model::linear::Dtype;
use attune::model::linear::Storage;
use attune::model::lora::modules::Module;
use attune::model::lora::{Adapter, AdapterLease, LoraLayer, LoraPair, Site};
use attune::model::weights::Weights;
use attune::model::{BaseModel, ModelConfig};
use attune::train::backward::{PackedBatch, Target};
use candle_core::{Device, Tensor};
use serde_json::json;

/// All families, each with its particulars.
pub(crate) const FAMILIES: [&str; 27] = [
    "llama",
    "llama3_rope",
    "llama_bias_heads",
    "llama_linear_rope",
    "llama_yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_linear_rope",
    "granite",
    "granite_hybrid",
    "granite_hybrid_nope",
    "olmo2",
    "olmo3",
    "phi3",
    "phi3_longrope",
    "ministral3",
    "qwen3_moe",
    "mixtral",
    "olmoe",
    "gpt_oss",
    "lfm2",
    "lfm2_bias",
];

/// Families of [`FAMILIES`] that come with a PEFT adapter and a training run.
pub(crate) const TRAINED_FAMILIES: [&str; 16] = [
    "llama",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma2",
    "gemma3",
    "granite",
    "granite_hybrid",
    "olmo2",
    "phi3_longrope",
    "ministral3",
    "qwen3_moe",
    "mixtral",
    "olmoe",
    "gpt_oss",
    "lfm2",
];

/// Returns true for families with convolutions.
pub(crate) fn convolves(family: &str) -> bool {
    family.starts_with("lfm2")
}

/// Families with a mixture of experts.
pub(crate) const EXPERT_FAMILIES: [&str; 4] = ["qwen3_moe", "mixtral", "olmoe", "gpt_oss"];

/// Returns true for families whose rounded weights or activations are near the exact ones. A router's rounding can choose
/// other experts, and so another model; `tests/model/experts.rs` compares experts for rows with the same choice.
pub(crate) fn bears_rounding(family: &&str) -> bool {
    !EXPERT_FAMILIES.contains(family)
}

/// Returns the device under test: the first GPU in a build with the feature `cuda`, else the CPU.
pub(crate) fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let choice = if cfg!(feature = "cuda") { DeviceChoice::Cuda(0) } else { DeviceChoice::Cpu };
    // Tensors that are combined must be on one device, and a GPU that is opened twice counts as two.
    DEVICE.get_or_init(|| attune::model::device::select(choice).expect("this build tests a GPU")).clone()
}

pub(crate) fn folder(family: &str) -> PathBuf {
    // The binary may run on another machine than the one that built it; there it runs in the repository's root.
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let here = PathBuf::from("tests/fixtures");
    if here.is_dir() { here.join(family) } else { built.join(family) }
}

pub(crate) fn load(family: &str, device: &Device) -> (ModelConfig, Decoder) {
    load_as(family, device, &Storage::default())
}

/// Loads the same with its weights held as `storage`.
pub(crate) fn load_as(family: &str, device: &Device, storage: &Storage) -> (ModelConfig, Decoder) {
    load_on(family, &Kernels::of(device).unwrap(), storage)
}

/// Loads the same over `kernels`.
pub(crate) fn load_on(family: &str, kernels: &Kernels, storage: &Storage) -> (ModelConfig, Decoder) {
    let folder = folder(family);
    let config = ModelConfig::read(&folder).unwrap();
    let weights = Weights::open(&folder, kernels.device()).unwrap();
    let decoder = Decoder::load_on(&config, &weights, storage, kernels).unwrap();
    (config, decoder)
}

/// Loads a fixture as a whole model. It has no tokenizer of its own: each of its ids becomes a word.
pub(crate) fn whole_model(family: &str) -> Arc<BaseModel> {
    whole_model_of(family, |_, _| {})
}

/// Loads the same over `kernels`.
pub(crate) fn whole_model_on(family: &str, kernels: &Kernels) -> Arc<BaseModel> {
    make_whole_model(family, kernels, |_, _| {})
}

/// Loads the same after a change of its weights.
pub(crate) fn whole_model_of(
    family: &str,
    change: impl FnOnce(&mut HashMap<String, Tensor>, &ModelConfig),
) -> Arc<BaseModel> {
    make_whole_model(family, &Kernels::of(&device()).unwrap(), change)
}

fn make_whole_model(
    family: &str,
    kernels: &Kernels,
    change: impl FnOnce(&mut HashMap<String, Tensor>, &ModelConfig),
) -> Arc<BaseModel> {
    let target = tempfile::tempdir().unwrap();
    std::fs::copy(folder(family).join("config.json"), target.path().join("config.json")).unwrap();
    let mut weights = candle_core::safetensors::load(folder(family).join("model.safetensors"), &Device::Cpu).unwrap();
    change(&mut weights, &ModelConfig::read(&folder(family)).unwrap());
    candle_core::safetensors::save(&weights, target.path().join("model.safetensors")).unwrap();
    add_tokenizer(target.path());
    // The results of transformers are in f32.
    let entry = ModelEntry { dtype: Some(Dtype::F32), ..ModelEntry::new(family, target.path()) };
    Arc::new(BaseModel::load_on(&entry, kernels).unwrap())
}

/// Writes a tokenizer with a word for each id of a fixture.
pub(crate) fn add_tokenizer(folder: &Path) {
    let words: serde_json::Map<_, _> = (0..160).map(|id| (format!("w{id}"), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    });
    for (name, value) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", json!({}))] {
        std::fs::write(folder.join(name), value.to_string()).unwrap();
    }
}

/// Tensors of a reference file, on the CPU.
pub(crate) struct Reference(pub HashMap<String, Tensor>);

impl Reference {
    pub(crate) fn read(family: &str, file: &str) -> Self {
        Self(candle_core::safetensors::load(folder(family).join(file), &Device::Cpu).unwrap())
    }

    pub(crate) fn tensor(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("the reference has no `{name}`"))
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<u32> {
        self.tensor(name).to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.tensor(name).flatten_all().unwrap().to_vec1().unwrap()
    }

    pub(crate) fn scalar(&self, name: &str) -> f32 {
        self.floats(name)[0]
    }

    /// Returns the adapter whose tensors are called `{prefix}base_model.model.model.layers.…`.
    pub(crate) fn adapter(&self, prefix: &str, config: &ModelConfig, scale: f32, device: &Device) -> Adapter {
        let layers = (0..config.num_hidden_layers)
            .map(|index| {
                let mut layer = LoraLayer::default();
                for module in config.modules_of(index) {
                    let name = tensor_name(index, module);
                    let a = self.tensor(&format!("{prefix}{name}.lora_A.weight")).to_device(device).unwrap();
                    let b = self.tensor(&format!("{prefix}{name}.lora_B.weight")).to_device(device).unwrap();
                    layer.set_whole(module.rows(config), &LoraPair { a, b, scale }).unwrap();
                }
                layer
            })
            .collect();
        Adapter::of_blocks(prefix.to_owned(), layers, config.block_names())
    }

    /// Returns the training batch: four sequences of unequal lengths.
    pub(crate) fn batch(&self) -> PackedBatch {
        let tokens = self.ids("batch_tokens");
        let mask = self.ids("batch_targets_mask");
        let mut sequences: Vec<Range<usize>> = Vec::new();
        for length in self.ids("batch_lengths") {
            let start = sequences.last().map_or(0, |last| last.end);
            sequences.push(start..start + length as usize);
        }
        let targets = sequences
            .iter()
            .flat_map(|rows| rows.clone().skip(1))
            .filter(|&row| mask[row] == 1)
            .map(|row| Target { row: row - 1, token: tokens[row], weight: 1.0 })
            .collect();
        PackedBatch { tokens, sequences, targets, ..PackedBatch::default() }
    }
}

pub(crate) fn tensor_name(layer: usize, module: &Module) -> String {
    format!("base_model.model.model.layers.{layer}.{}", module.path)
}

/// Adds `added` to the rows that `site` has in a checkpoint's weight.
pub(crate) fn add_to_weight(
    weights: &mut HashMap<String, Tensor>,
    config: &ModelConfig,
    (layer, site): (usize, Site),
    added: &Tensor,
) {
    let module = config.modules.iter().find(|module| module.sites.contains(&site)).unwrap();
    let (_, rows) = module.rows(config).find(|(other, _)| *other == site).unwrap();
    let weight = weights.get_mut(&format!("model.layers.{layer}.{}.weight", module.path)).unwrap();
    let (_, columns) = weight.dims2().unwrap();
    let sum = (weight.narrow(0, rows.start, rows.len()).unwrap() + added).unwrap();
    *weight = weight.slice_assign(&[rows, 0..columns], &sum).unwrap();
}

/// Returns a batch of one sequence without targets.
#[allow(clippy::single_range_in_vec_init, reason = "one sequence is meant")]
pub(crate) fn one_sequence(tokens: &[u32]) -> PackedBatch {
    PackedBatch { tokens: tokens.to_vec(), sequences: vec![0..tokens.len()], ..PackedBatch::default() }
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Returns the largest absolute difference.
pub(crate) fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Returns ‖a − b‖ / ‖b‖.
pub(crate) fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
}

/// Checks a gradient against central differences of `loss` along random directions, one for each of the linear
/// layers that the adapter changes.
pub(crate) fn assert_gradient(adapter: &Adapter, gradients: &[LoraLayer], loss: impl Fn(&Adapter) -> f64) {
    for site in Site::ALL.into_iter().filter(|site| adapter.layers.iter().any(|layer| layer.get(*site).is_some())) {
        let directions: Vec<Option<(Tensor, Tensor)>> = adapter
            .layers
            .iter()
            .map(|layer| layer.get(site).map(|pair| (random_like(&pair.a), random_like(&pair.b))))
            .collect();
        let moved = |step: f64| {
            let mut layers = adapter.layers.clone();
            for (layer, direction) in layers.iter_mut().zip(&directions) {
                let (Some(pair), Some((a, b))) = (layer.get(site).cloned(), direction) else { continue };
                let (a, b) = ((pair.a + (a * step).unwrap()).unwrap(), (pair.b + (b * step).unwrap()).unwrap());
                layer.set(site, LoraPair { a, b, scale: pair.scale });
            }
            loss(&Adapter::new(String::new(), layers))
        };
        let dot = |a: &Tensor, b: &Tensor| floats(a).iter().zip(floats(b)).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let (mut expected, mut square) = (0.0, 0.0);
        for (layer, direction) in gradients.iter().zip(&directions) {
            let (Some(gradient), Some((a, b))) = (layer.get(site), direction) else { continue };
            expected += dot(&gradient.a, a) + dot(&gradient.b, b);
            square += dot(&gradient.a, &gradient.a) + dot(&gradient.b, &gradient.b);
        }
        // Extrapolated to a step of 0 (Richardson). The steps are as small as f32 allows: the loss bends sharply.
        let difference = |step: f64| (moved(step) - moved(-step)) / (2.0 * step);
        let (wide, narrow) = (difference(1e-3), difference(5e-4));
        let measured = (4.0 * narrow - wide) / 3.0;
        // Along numbers of about 1, the slope has the size of the gradient's norm.
        let tolerance = 2e-2 * square.sqrt();
        assert!(
            (measured - expected).abs() < tolerance,
            "{site:?}: {measured} by differences ({wide}, {narrow}), {expected} by the gradient"
        );
    }
}

/// Returns numbers of about 1, the same each time.
fn random_like(tensor: &Tensor) -> Tensor {
    let count = tensor.elem_count();
    let values = (0..count).map(|i| ((i * 7919 + count) as f32 * 0.618).sin() * 1.4).collect::<Vec<_>>();
    Tensor::from_vec(values, tensor.shape(), tensor.device()).unwrap()
}

/// Creates a request for the most probable tokens after `prompt`.
pub(crate) fn greedy(prompt: &[u32], max_tokens: usize, adapter: Option<&AdapterLease>) -> GenerateRequest {
    GenerateRequest {
        organization: "org".into(),
        prompt: prompt.into(),
        adapter: adapter.cloned(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens,
        stop: StopTexts::default(),
        stop_tokens: Vec::new(),
        logprobs: None,
        prompt_logprobs: None,
        grammar: None,
        background: false,
    }
}
