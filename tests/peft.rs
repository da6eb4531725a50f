//! PEFT folders: what PEFT wrote is read, what Attune writes is read back to the bit, and what it cannot apply is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use attune::Error;
use attune::adapters::{Adapter, LoraLayer, LoraPair, Site, peft};
use attune::model::ModelConfig;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

const FAMILIES: [&str; 4] = ["llama", "qwen2", "qwen3", "smollm3"];

fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family)
}

fn model(family: &str) -> ModelConfig {
    ModelConfig::read(&fixture(family)).unwrap()
}

fn files(family: &str) -> (Vec<u8>, Vec<u8>) {
    let read = |name: &str| std::fs::read(fixture(family).join("peft").join(name)).unwrap();
    (read("adapter_config.json"), read("adapter_model.safetensors"))
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_same(one: &Adapter, two: &Adapter) {
    assert_eq!(one.layers.len(), two.layers.len());
    for (one, two) in one.layers.iter().zip(&two.layers) {
        for site in Site::ALL {
            match (one.get(site), two.get(site)) {
                (Some(one), Some(two)) => {
                    assert_eq!(one.scale.to_bits(), two.scale.to_bits());
                    assert_eq!((numbers(&one.a), numbers(&one.b)), (numbers(&two.a), numbers(&two.b)));
                    assert_eq!((one.a.dims(), one.b.dims()), (two.a.dims(), two.b.dims()));
                }
                (one, two) => assert!(one.is_none() && two.is_none()),
            }
        }
    }
}

/// The message of a refusal of the llama adapter with a changed configuration.
fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let (config, weights) = files("llama");
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    change(&mut config);
    let config = serde_json::to_vec(&config).unwrap();
    match peft::read(&config, &weights, &model("llama"), &Device::Cpu) {
        Err(Error::Invalid { message, code: Some("invalid_adapter"), .. }) => message,
        other => panic!("{other:?}"),
    }
}

fn scales(change: impl FnOnce(&mut Value)) -> Vec<f32> {
    let (config, weights) = files("llama");
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    change(&mut config);
    let config = serde_json::to_vec(&config).unwrap();
    let adapter = peft::read(&config, &weights, &model("llama"), &Device::Cpu).unwrap();
    adapter.layers.iter().flat_map(|layer| Site::ALL.map(|site| layer.get(site).unwrap().scale)).collect()
}

#[test]
fn adapters_that_peft_saved_are_read_and_survive_a_round_trip_to_the_bit() {
    for family in FAMILIES {
        let (config, weights) = files(family);
        let read = peft::read(&config, &weights, &model(family), &Device::Cpu).unwrap();
        assert_eq!(read.layers.len(), model(family).num_hidden_layers);
        assert!(scales(|_| {}).iter().all(|scale| (*scale - 2.0).abs() < f32::EPSILON));
        let written = peft::write(&read, family).unwrap();
        let again = peft::read(&written.config, &written.weights, &model(family), &Device::Cpu).unwrap();
        assert_same(&read, &again);
        assert_eq!(again.id, written.id());
    }
}

#[test]
fn the_same_adapter_is_written_to_the_same_bytes_with_plain_settings_that_every_reader_knows() {
    let (config, weights) = files("qwen3");
    let read = || peft::read(&config, &weights, &model("qwen3"), &Device::Cpu).unwrap();
    let (one, two) = (peft::write(&read(), "base").unwrap(), peft::write(&read(), "base").unwrap());
    assert_eq!(one, two);
    assert_eq!(one.id().len(), 64);
    let config: Value = serde_json::from_slice(&one.config).unwrap();
    assert_eq!(config["r"], json!(4));
    assert_eq!(config["lora_alpha"], json!(8));
    assert_eq!(config["rank_pattern"], json!({}));
    let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    assert_eq!(config["target_modules"], json!(modules));
}

#[test]
fn another_weight_is_another_generation() {
    let (config, weights) = files("llama");
    let adapter = peft::read(&config, &weights, &model("llama"), &Device::Cpu).unwrap();
    let mut other = Adapter { id: String::new(), layers: adapter.layers.clone() };
    let pair = adapter.layers[0].get(Site::Query).unwrap();
    let b = (&pair.b + 1e-3).unwrap();
    other.layers[0].set(Site::Query, LoraPair { a: pair.a.clone(), b, scale: pair.scale });
    assert_ne!(peft::write(&adapter, "llama").unwrap().id(), peft::write(&other, "llama").unwrap().id());
}

#[test]
fn rank_stabilised_scaling_and_alpha_patterns_are_applied() {
    assert!(scales(|config| config["use_rslora"] = json!(true)).iter().all(|scale| (*scale - 4.0).abs() < 1e-6));
    let scales = scales(|config| {
        config["alpha_pattern"] = json!({"layers.1.self_attn.q_proj": 16, "down_proj": 4});
    });
    for (index, scale) in scales.iter().enumerate() {
        let expected = match (index / 7, index % 7) {
            (1, 0) => 4.0,
            (_, 6) => 1.0,
            _ => 2.0,
        };
        assert!((scale - expected).abs() < 1e-6, "layer {}, site {}: {scale}", index / 7, index % 7);
    }
}

#[test]
fn layers_with_ranks_and_places_of_their_own_survive_a_round_trip() {
    let config = model("llama");
    let mut layers = vec![LoraLayer::default(); config.num_hidden_layers];
    for (layer, site, rank, scale) in
        [(0, Site::Query, 2, 2.0), (0, Site::Down, 3, 1.0 / 3.0), (2, Site::Query, 2, 0.7)]
    {
        let (output, input) = site.shape(&config);
        let matrix = |shape| Tensor::rand(-1f32, 1f32, shape, &Device::Cpu).unwrap();
        layers[layer].set(site, LoraPair { a: matrix((rank, input)), b: matrix((output, rank)), scale });
    }
    let adapter = Adapter { id: String::new(), layers };
    let files = peft::write(&adapter, "llama").unwrap();
    assert_same(&adapter, &peft::read(&files.config, &files.weights, &config, &Device::Cpu).unwrap());
}

#[test]
fn half_precision_weights_are_widened() {
    let (config, weights) = files("llama");
    let exact = peft::read(&config, &weights, &model("llama"), &Device::Cpu).unwrap();
    let tensors = candle_core::safetensors::load_buffer(&weights, &Device::Cpu).unwrap();
    for (dtype, tolerance) in [(DType::F16, 1e-3), (DType::BF16, 1e-2)] {
        let halved: std::collections::HashMap<_, _> =
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.to_dtype(dtype).unwrap())).collect();
        let bytes = safetensors::serialize(&halved, None).unwrap();
        let read = peft::read(&config, &bytes, &model("llama"), &Device::Cpu).unwrap();
        let (one, two) = (exact.layers[0].get(Site::Gate).unwrap(), read.layers[0].get(Site::Gate).unwrap());
        for (one, two) in numbers(&one.a).iter().zip(numbers(&two.a)) {
            assert!((one - two).abs() <= tolerance * one.abs().max(1e-3));
        }
    }
}

#[test]
fn what_cannot_be_applied_is_refused_by_name() {
    assert!(refusal(|config| config["use_dora"] = json!(true)).contains("`use_dora`"));
    assert!(refusal(|config| config["lora_bias"] = json!(true)).contains("`lora_bias`"));
    assert!(refusal(|config| config["bias"] = json!("all")).contains("`bias`"));
    assert!(refusal(|config| config["modules_to_save"] = json!(["lm_head"])).contains("`modules_to_save`"));
    assert!(refusal(|config| config["peft_type"] = json!("IA3")).contains("`IA3`"));
    assert!(refusal(|config| config["r"] = json!(0)).contains("rank"));
    assert!(refusal(|config| config["r"] = json!(100_000)).contains("rank"));
    assert!(refusal(|config| config["r"] = json!(8)).contains("shape"));
    assert!(refusal(|config| config["rank_pattern"] = json!({"q_proj": 8})).contains("q_proj.lora_A` has the shape"));
    assert!(refusal(|config| config["rank_pattern"] = json!({".*q_proj": 4})).contains("regular expression"));
    assert!(refusal(|config| config["target_modules"] = json!(["q_proj"])).contains("does not name"));
    let targets = json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]);
    assert!(refusal(|config| config["target_modules"] = targets).contains("`lm_head`"));
    assert!(
        refusal(|config| drop(config.as_object_mut().unwrap().remove("target_modules"))).contains("target_modules")
    );
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let (config, weights) = files("qwen3");
    let error = peft::read(&config, &weights, &model("llama"), &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("The adapter cannot be used"), "{error}");
}

#[test]
fn tensors_that_have_no_place_or_no_partner_are_refused() {
    let (config, weights) = files("llama");
    let tensors = candle_core::safetensors::load_buffer(&weights, &Device::Cpu).unwrap();
    let first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let read = |tensors: &std::collections::HashMap<String, Tensor>| {
        let bytes = safetensors::serialize(tensors, None).unwrap();
        peft::read(&config, &bytes, &model("llama"), &Device::Cpu).unwrap_err().to_string()
    };
    for name in [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "",
    ] {
        let mut more = tensors.clone();
        more.insert(name.into(), tensors[first].clone());
        assert!(read(&more).contains(&format!("no place for the tensor `{name}`")));
    }
    let mut fewer = tensors.clone();
    fewer.remove(first);
    assert!(read(&fewer).contains("only one of lora_A and lora_B"));
    let mut broken = tensors.clone();
    broken.insert(first.into(), (tensors[first].clone() * f64::NAN).unwrap());
    assert!(read(&broken).contains("not finite"));
    let mut integers = tensors.clone();
    integers.insert(first.into(), tensors[first].to_dtype(DType::U32).unwrap());
    assert!(read(&integers).contains("U32"));
    assert!(read(&std::collections::HashMap::new()).contains("no tensors"));
}

#[test]
fn damaged_and_hostile_files_are_errors() {
    let (config, weights) = files("llama");
    let model = model("llama");
    let read = |config: &[u8], weights: &[u8]| peft::read(config, weights, &model, &Device::Cpu);
    for end in (0..weights.len()).step_by(997).chain([1, 7, 8, 9, weights.len() - 1]) {
        assert!(read(&config, &weights[..end]).is_err(), "weights cut at {end}");
    }
    for end in (0..config.len() - 2).step_by(13) {
        assert!(read(&config[..end], &weights).is_err(), "configuration cut at {end}");
    }
    for header in [u64::MAX, 1 << 40, 99_999_999, 0] {
        let mut hostile = weights.clone();
        hostile[..8].copy_from_slice(&header.to_le_bytes());
        assert!(read(&config, &hostile).is_err(), "header of {header} bytes");
    }
    for byte in 8..600 {
        let mut hostile = weights.clone();
        hostile[byte] ^= 0x15;
        let _ = read(&config, &hostile);
    }
}
