//! Adapters on their way out: added to their base's weights, and as llama.cpp's file.

use std::path::Path;

use attune::model::ModelConfig;
use attune::model::checkpoint::Checkpoint;
use attune::model::decoder::Decoder;
use attune::model::gguf::{Gguf, lora};
use attune::model::linear::Storage;
use attune::model::lora::{Adapter, LoraLayer, LoraPair, Site};
use attune::model::merge::{self, Base, WeightType};
use attune::model::weights::Weights;
use attune::train::backward::hidden_states;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use half::bf16;
use serde_json::Value;

use crate::fixtures::{
    EXPERT_FAMILIES, Reference, TRAINED_FAMILIES, floats, folder, load, max_difference, one_sequence,
};
use crate::kernels;

fn adapter(family: &str, config: &ModelConfig) -> Adapter {
    Reference::read(family, "peft/adapter_model.safetensors").adapter("", config, 2.0, &Device::Cpu)
}

pub(crate) fn logits(decoder: &Decoder, adapter: Option<&Adapter>, tokens: &[u32]) -> Vec<f32> {
    let hidden = hidden_states(decoder, adapter, &one_sequence(tokens)).unwrap();
    floats(&decoder.logits(&hidden).unwrap())
}

pub(crate) fn open(folder: &Path) -> MmapedSafetensors {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "safetensors"));
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("model")));
    // SAFETY: nobody changes the files of a test.
    unsafe { MmapedSafetensors::multi(&files) }.unwrap()
}

/// Returns the pair at the layer that a tensor belongs to; `None` if the adapter leaves it as it is.
fn pair_of(adapter: &Adapter, name: &str) -> Option<LoraPair> {
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let module = adapter.names.modules.iter().find(|module| rest == format!("{}.weight", module.path))?;
    adapter.layers[block.parse::<usize>().ok()?].whole(module).unwrap()
}

/// Returns `weights + scale · B A`, in f64.
fn sum(weights: &[f32], pair: &LoraPair) -> Vec<f64> {
    let (rank, input) = pair.a.dims2().unwrap();
    let (a, b) = (floats(&pair.a), floats(&pair.b));
    let change = |index: usize| -> f64 {
        let (row, column) = (index / input, index % input);
        (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * input + column])).sum()
    };
    let scale = f64::from(pair.scale);
    weights.iter().enumerate().map(|(index, weight)| f64::from(*weight) + scale * change(index)).collect()
}

#[test]
fn a_merged_model_answers_as_its_base_with_the_adapter() {
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family, &Device::Cpu);
        let adapter = adapter(family, &config);
        let output = tempfile::tempdir().unwrap();
        let output = output.path().join("merged");
        merge::write_folder(&Base::new(folder(family)), &adapter, &output, None, merge::FILE_BYTES).unwrap();
        let weights = Weights::open(&output, &Device::Cpu).unwrap();
        let config = ModelConfig::read(&output).unwrap();
        let merged = Decoder::load_on(&config, &weights, &Storage::default(), &kernels()).unwrap();
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let expected = logits(&decoder, Some(&adapter), &tokens);
        let largest = expected.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        let difference = max_difference(&logits(&merged, None, &tokens), &expected);
        assert!(difference <= 1e-5 * largest, "{family}: logits differ by {difference:e} of {largest}");
        let from_base = max_difference(&logits(&decoder, None, &tokens), &expected);
        assert!(from_base > 0.1, "{family}: the adapter changes little: {from_base:e}");

        let (before, after) = (open(&folder(family)), open(&output));
        assert_eq!(before.tensors().len(), after.tensors().len(), "tied weights stay tied");
        let bytes = |folder: &Path| -> u64 {
            let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
            let of_model = files.filter(|entry| entry.file_name().to_string_lossy().starts_with("model"));
            of_model.map(|entry| entry.metadata().unwrap().len()).sum()
        };
        let (size, of_base) = (bytes(&output), bytes(&folder(family)));
        assert!(size.abs_diff(of_base) < 4096, "{family}: {size} bytes instead of {of_base}");
        for (name, view) in before.tensors() {
            let written = after.get(&name).unwrap();
            assert_eq!((written.dtype(), written.shape()), (view.dtype(), view.shape()), "{name}");
            let Some(pair) = pair_of(&adapter, &name) else {
                assert_eq!(written.data(), view.data(), "{name}");
                continue;
            };
            let stored =
                |data: &[u8]| data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>();
            let expected: Vec<f32> = sum(&stored(view.data()), &pair).into_iter().map(|value| value as f32).collect();
            assert!(max_difference(&stored(written.data()), &expected) <= 1e-9, "{family}: {name}");
        }
    }
}

#[test]
fn experts_are_merged() {
    for family in EXPERT_FAMILIES {
        let (config, decoder) = load(family, &Device::Cpu);
        let read = |file: &str| std::fs::read(folder(family).join("peft_experts").join(file)).unwrap();
        let (settings, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
        let adapter = attune::adapters::peft::read(&settings, &weights, &config, &Device::Cpu).unwrap();
        let target = tempfile::tempdir().unwrap();
        let output = target.path().join("merged");
        merge::write_folder(&Base::new(folder(family)), &adapter, &output, None, merge::FILE_BYTES).unwrap();
        let weights = Weights::open(&output, &Device::Cpu).unwrap();
        let merged = Decoder::load_on(&config, &weights, &Storage::default(), &kernels()).unwrap();
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let expected = logits(&decoder, Some(&adapter), &tokens);
        let difference = max_difference(&logits(&merged, None, &tokens), &expected);
        assert!(difference <= 1e-4, "{family}: logits differ by {difference:e}");
        assert!(max_difference(&logits(&decoder, None, &tokens), &expected) > 0.1, "{family}: it changes little");
        let (before, after) = (open(&folder(family)), open(&output));
        if family == "gpt_oss" {
            for (name, view) in before.tensors() {
                let written = after.get(&name).unwrap();
                assert_eq!((written.dtype(), written.shape()), (view.dtype(), view.shape()), "{name}");
            }
            continue;
        }
        let (module, names) = config.single_expert_names();
        for (name, view) in before.tensors() {
            let written = after.get(&name).unwrap();
            let Some((block, rest)) = name.strip_prefix("model.layers.").and_then(|name| name.split_once('.')) else {
                assert_eq!(written.data(), view.data(), "{name}");
                continue;
            };
            let Some(rest) = rest.strip_prefix(module) else { continue };
            let [_, expert, layer, _] = rest.split('.').collect::<Vec<_>>()[..] else { panic!("{name}") };
            let site = [Site::Gate, Site::Up, Site::Down][names.iter().position(|name| *name == layer).unwrap()];
            let pair = adapter.layers[block.parse::<usize>().unwrap()].expert(expert.parse().unwrap(), site).unwrap();
            let stored =
                |data: &[u8]| data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>();
            let expected: Vec<f32> = sum(&stored(view.data()), pair).into_iter().map(|value| value as f32).collect();
            assert!(max_difference(&stored(written.data()), &expected) <= 1e-9, "{family}: {name}");
        }
    }
}

/// Writes the llama fixture with its weights in bf16.
fn in_bf16(to: &Path) {
    let from = folder("llama");
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let tensors = candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    let tensors: std::collections::HashMap<_, _> =
        tensors.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(DType::BF16).unwrap())).collect();
    candle_core::safetensors::save(&tensors, to.join("model.safetensors")).unwrap();
}

#[test]
fn weights_in_bf16_are_rounded_once_and_files_are_cut_to_their_limit() {
    let base = tempfile::tempdir().unwrap();
    in_bf16(base.path());
    std::fs::write(base.path().join("tokenizer.json"), "{}").unwrap();
    std::fs::create_dir(base.path().join("additional_chat_templates")).unwrap();
    std::fs::write(base.path().join("additional_chat_templates/rag.jinja"), "x").unwrap();
    let adapter = adapter("llama", &ModelConfig::read(base.path()).unwrap());
    let output = base.path().join("out");
    merge::write_folder(&Base::new(base.path()), &adapter, &output, None, 60_000).unwrap();
    assert!(output.join("tokenizer.json").is_file() && output.join("additional_chat_templates/rag.jinja").is_file());
    assert!(!base.path().join("out.part").exists());
    let index: Value =
        serde_json::from_slice(&std::fs::read(output.join("model.safetensors.index.json")).unwrap()).unwrap();
    let (before, after) = (open(base.path()), open(&output));
    let total: usize = before.tensors().iter().map(|(_, view)| view.data().len()).sum();
    assert_eq!(index["metadata"]["total_size"], total);
    let stored = |data: &[u8]| data.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes)).collect::<Vec<_>>();
    for (name, view) in before.tensors() {
        let file = output.join(index["weight_map"][&name].as_str().unwrap());
        assert!(file.is_file() && file.metadata().unwrap().len() < 70_000, "{name}");
        let written = after.get(&name).unwrap();
        let Some(pair) = pair_of(&adapter, &name) else {
            assert_eq!(written.data(), view.data(), "{name}");
            continue;
        };
        let weights: Vec<f32> = stored(view.data()).into_iter().map(bf16::to_f32).collect();
        for (value, stored) in sum(&weights, &pair).into_iter().zip(stored(written.data())) {
            // Half the distance of two neighbouring values.
            let half = f64::from(stored.to_f32()).abs().max(1e-30) * 2f64.powi(-8);
            assert!((value - f64::from(stored.to_f32())).abs() <= half, "{name}: {value} became {stored}");
        }
    }
}

#[test]
fn a_model_that_cannot_be_merged_is_refused_and_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    in_bf16(base.path());
    let adapter = adapter("llama", &ModelConfig::read(base.path()).unwrap());
    let output = base.path().join("out");
    let refused = |adapter: &Adapter| {
        let plain = Base::new(base.path());
        let error = merge::write_folder(&plain, adapter, &output, None, merge::FILE_BYTES).unwrap_err().to_string();
        assert!(!output.exists() && !base.path().join("out.part").exists());
        error
    };
    let deeper = Adapter::new("x".into(), [adapter.layers.clone(), adapter.layers.clone()].concat());
    assert!(refused(&deeper).contains("which this model has no tensor of its own for"));
    let plain = Base::new(base.path());
    let kind = Some(WeightType::F16);
    let error = merge::write_folder(&plain, &adapter, &output, kind, merge::FILE_BYTES).unwrap_err().to_string();
    assert!(error.contains("leave out --type"), "{error}");
    std::fs::create_dir(&output).unwrap();
    let error = merge::write_folder(&plain, &adapter, &output, None, merge::FILE_BYTES).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
}

/// Writes `adapter` as llama.cpp's file, and opens that.
fn as_gguf(family: &str, config: &ModelConfig, adapter: &Adapter) -> Gguf {
    let names = lora::names(&folder(family), config).unwrap();
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    let mut bytes = lora::write(adapter, &names).unwrap();
    // An adapter is no model, which alone are opened: here the key that says so gets another name.
    let key = bytes.windows(12).position(|bytes| bytes == b"general.type").unwrap();
    bytes[key + 11] = b'o';
    std::fs::write(file.path(), bytes).unwrap();
    Gguf::open(file.path()).unwrap()
}

/// Returns scale · B A of a layer, as llama.cpp computes it from the file.
fn change_of(file: &Gguf, name: &str) -> (Vec<usize>, Vec<f64>) {
    let alpha = file.metadata().number("adapter.lora.alpha").unwrap().unwrap();
    let values = |half: &str| {
        let tensor = file.tensor(&format!("{name}.weight.{half}")).unwrap();
        let values: Vec<f32> = tensor.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (tensor.shape.clone(), values)
    };
    let ((a_shape, a), (b_shape, b)) = (values("lora_a"), values("lora_b"));
    let (rank, input) = (a_shape[0], a_shape[1]);
    assert_eq!(b_shape[1], rank, "{name}");
    let pair = LoraPair {
        a: Tensor::from_vec(a, (rank, input), &Device::Cpu).unwrap(),
        b: Tensor::from_vec(b, (b_shape[0], rank), &Device::Cpu).unwrap(),
        scale: (alpha / rank as f64) as f32,
    };
    (vec![b_shape[0], input], sum(&vec![0.0; b_shape[0] * input], &pair))
}

#[test]
fn llama_cpps_file_changes_each_layer_as_the_adapter_does() {
    // Files of the first have the rows of query and key in another order; those of the second do not.
    for (family, reordered) in [("llama", true), ("qwen2", false)] {
        let config = ModelConfig::read(&folder(family)).unwrap();
        let mut adapter = adapter(family, &config);
        // Other scales in one layer, as `alpha_pattern` makes them, which one alpha has no room for.
        let mut first = LoraLayer::default();
        for (number, site) in Site::USUAL.into_iter().enumerate() {
            let mut pair = adapter.layers[0].get(site).unwrap().clone();
            pair.scale = 2.0 + number as f32 / 3.0;
            first.set(site, pair);
        }
        adapter.layers[0] = first;
        let file = as_gguf(family, &config, &adapter);
        let text = |key: &str| file.metadata().text(key).unwrap().unwrap().to_owned();
        assert_eq!((text("general.typo"), text("adapter.type")), ("adapter".into(), "lora".into()));
        assert_eq!(text("general.architecture"), family);
        assert_eq!(file.tensors().len(), adapter.layers.len() * 14);
        let sites = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        for (block, layer) in adapter.layers.iter().enumerate() {
            for (site, name) in Site::USUAL.into_iter().zip(sites) {
                let pair = layer.get(site).unwrap();
                let (shape, changed) = change_of(&file, &format!("blk.{block}.{name}"));
                let (rows, columns) = (shape[0], shape[1]);
                let expected = sum(&vec![0.0; rows * columns], pair);
                let (dim, half) = (config.head_dim, config.head_dim / 2);
                for row in 0..rows {
                    // Row i of the first half of a head stands at 2 i, row i of the second half behind it.
                    let within = row % dim;
                    let moved = reordered && name != "attn_v" && ["attn_q", "attn_k"].contains(&name);
                    let place = if moved { row - within + 2 * (within % half) + within / half } else { row };
                    let (found, wanted) =
                        (&changed[place * columns..][..columns], &expected[row * columns..][..columns]);
                    let difference = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(difference <= 1e-6, "{family}: {name} {row}: {difference:e}");
                }
            }
        }
    }
}

#[test]
fn llama_cpps_file_changes_a_layer_that_holds_several_as_a_whole() {
    let config = ModelConfig::read(&folder("phi3_longrope")).unwrap();
    let adapter = adapter("phi3_longrope", &config);
    let file = as_gguf("phi3_longrope", &config, &adapter);
    assert_eq!(file.tensors().len(), adapter.layers.len() * 8);
    for (block, layer) in adapter.layers.iter().enumerate() {
        for (module, name) in config.modules.iter().zip(["attn_qkv", "attn_output", "ffn_up", "ffn_down"]) {
            let pair = layer.whole(module).unwrap().unwrap();
            let (shape, changed) = change_of(&file, &format!("blk.{block}.{name}"));
            assert_eq!((shape[0], shape[1]), module.shape(&config), "{name}");
            let expected = sum(&vec![0.0; shape[0] * shape[1]], &pair);
            let difference = changed.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(difference <= 1e-6, "{name}: {difference:e}");
        }
    }
}

#[test]
fn llama_cpps_file_changes_layers_apart_that_the_adapter_changes_as_a_whole() {
    let config = ModelConfig::read(&folder("granite_hybrid")).unwrap();
    let adapter = adapter("granite_hybrid", &config);
    let file = as_gguf("granite_hybrid", &config, &adapter);
    assert_eq!(file.metadata().text("general.architecture").unwrap(), Some("granite"));
    assert_eq!(file.tensors().len(), adapter.layers.len() * 14);
    for (block, layer) in adapter.layers.iter().enumerate() {
        for (site, name) in [(Site::Gate, "ffn_gate"), (Site::Up, "ffn_up"), (Site::Down, "ffn_down")] {
            let (shape, changed) = change_of(&file, &format!("blk.{block}.{name}"));
            assert_eq!((shape[0], shape[1]), site.shape(&config), "{name}");
            let expected = sum(&vec![0.0; shape[0] * shape[1]], layer.get(site).unwrap());
            let difference = changed.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(difference <= 1e-6, "{name}: {difference:e}");
        }
    }
}

#[test]
fn an_adapter_without_a_scale_changes_nothing_in_llama_cpp_either() {
    let config = ModelConfig::read(&folder("llama")).unwrap();
    let mut adapter = adapter("llama", &config);
    for layer in &mut adapter.layers {
        let mut none = LoraLayer::default();
        for site in Site::USUAL {
            none.set(site, LoraPair { scale: 0.0, ..layer.get(site).unwrap().clone() });
        }
        *layer = none;
    }
    let file = as_gguf("llama", &config, &adapter);
    // There, an alpha of 0 stands for no scaling at all.
    assert_eq!(file.metadata().number("adapter.lora.alpha").unwrap(), Some(1.0));
    assert!(change_of(&file, "blk.0.ffn_up").1.iter().all(|value| *value == 0.0));
}

#[test]
fn a_merged_gguf_file_answers_as_its_base_with_the_adapter() {
    for (family, architecture, layers) in
        [("llama", "llama", 7), ("qwen3", "qwen3", 7), ("phi3_longrope", "phi3", 4), ("granite_hybrid", "granite", 7)]
    {
        let folder_of_files = tempfile::tempdir().unwrap();
        let (base, output) = (folder_of_files.path().join("base.gguf"), folder_of_files.path().join("out.gguf"));
        crate::gguf::write_plain(&folder(family), architecture, &base);
        let (config, decoder) = load(family, &Device::Cpu);
        let adapter = adapter(family, &config);
        merge::write_gguf(&Base::new(&base), &adapter, &output, Some(WeightType::F16)).unwrap();
        let checkpoint = Checkpoint::open(&output).unwrap();
        let weights = checkpoint.weights(&Device::Cpu).unwrap();
        let config = checkpoint.config().unwrap();
        let merged = Decoder::load_on(&config, &weights, &Storage::default(), &kernels()).unwrap();
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let expected = logits(&decoder, Some(&adapter), &tokens);
        let largest = expected.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        let difference = max_difference(&logits(&merged, None, &tokens), &expected);
        // Weights of 11 bits, through four blocks.
        assert!(difference <= largest * 4e-3, "{family}: logits differ by {difference:e} of {largest}");

        let (before, after) = (Gguf::open(&base).unwrap(), Gguf::open(&output).unwrap());
        let mut changed = 0;
        for (name, tensor) in before.tensors() {
            let written = after.tensor(name).unwrap();
            if written.kind == tensor.kind {
                assert_eq!(written.bytes, tensor.bytes, "{name}");
            } else {
                changed += 1;
            }
        }
        assert_eq!(changed, layers * adapter.layers.len());
        for (key, value) in before.metadata().iter() {
            assert_eq!(after.metadata().get(key), Some(value), "{key}");
        }
        let again =
            merge::write_gguf(&Base::new(&base), &adapter, &output, Some(WeightType::Q8_0)).unwrap_err().to_string();
        assert!(again.contains("exists already"), "{again}");
        std::fs::remove_file(&output).unwrap();
        // The fixture's MLP is no whole number of blocks wide.
        let refused =
            merge::write_gguf(&Base::new(&base), &adapter, &output, Some(WeightType::Q8_0)).unwrap_err().to_string();
        assert!(refused.contains("`blk.0.ffn_down.weight` [64, 112] is no whole number of Q8_0 blocks"), "{refused}");
        assert_eq!(std::fs::read_dir(folder_of_files.path()).unwrap().count(), 1, "nothing is left");
    }
}
