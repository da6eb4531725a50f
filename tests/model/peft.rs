//! PEFT folders: files written by PEFT are read, files written by Attune are read back to the bit, and adapters that
//! Attune cannot apply are refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod convolution;
mod forms;
mod fused;
mod pieces;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use attune::adapters::Error;
use attune::adapters::peft;
use attune::adapters::peft::PeftFiles;
use attune::adapters::peft::config::PeftConfig;
use attune::adapters::peft::host::HostAdapter;
use attune::adapters::pieces::Pieces;
use attune::model::ModelConfig;
use attune::model::lora::MAX_RANK;
use attune::model::lora::{Adapter, LoraLayer, LoraPair, Site};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const FAMILIES: [&str; 16] = [
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
const FUSED: &str = "phi3_longrope";

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

/// Returns the message that refuses the llama adapter with a changed configuration.
fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let (config, weights) = files("llama");
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    change(&mut config);
    let config = serde_json::to_vec(&config).unwrap();
    match peft::read(&config, &weights, &model("llama"), &Device::Cpu) {
        Err(error @ Error::Invalid(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn scales(change: impl FnOnce(&mut Value)) -> Vec<f32> {
    let (config, weights) = files("llama");
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    change(&mut config);
    let config = serde_json::to_vec(&config).unwrap();
    let adapter = peft::read(&config, &weights, &model("llama"), &Device::Cpu).unwrap();
    adapter.layers.iter().flat_map(|layer| Site::USUAL.map(|site| layer.get(site).unwrap().scale)).collect()
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

/// In each family, an adapter that went through has the very file of weights that PEFT saved, and settings that mean the
/// same.
#[test]
fn what_is_written_has_the_bytes_of_what_peft_saved() {
    for family in FAMILIES {
        let (config, weights) = files(family);
        let read = peft::read(&config, &weights, &model(family), &Device::Cpu).unwrap();
        let written = peft::write(&read, family).unwrap();
        let [saved, ours] = [&weights, &written.weights].map(|file| SafeTensors::deserialize(file).unwrap());
        assert_eq!(saved.len(), ours.len(), "{family}");
        for (name, tensor) in saved.tensors() {
            assert_eq!(ours.tensor(&name).unwrap(), tensor, "{family}: {name}");
        }
        assert!(written.weights == weights, "{family}: the tensors are the same, and the bytes around them are not");
        let [saved, ours]: [Value; 2] =
            [&config, &written.config].map(|config| serde_json::from_slice(config).unwrap());
        let targets = |config: &Value| -> BTreeSet<String> {
            config["target_modules"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().into()).collect()
        };
        assert_eq!(targets(&saved), targets(&ours), "{family}");
        for (field, value) in saved.as_object().unwrap() {
            let same = UNLIKE.contains(&field.as_str())
                || is_nothing(value) && is_nothing(&ours[field])
                || ours[field] == *value;
            assert!(same, "{family}: {field} was {value} and is {}", ours[field]);
        }
    }
}

/// Settings that differ: names, and what is of no use to an adapter that is not of QA-LoRA or Megatron.
const UNLIKE: [&str; 5] =
    ["base_model_name_or_path", "target_modules", "peft_version", "megatron_core", "qalora_group_size"];

/// Returns true for settings that say nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
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
    let mut other = Adapter::new(String::new(), adapter.layers.clone());
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
    let adapter = Adapter::new(String::new(), layers);
    let files = peft::write(&adapter, "llama").unwrap();
    assert_same(&adapter, &peft::read(&files.config, &files.weights, &config, &Device::Cpu).unwrap());
}

#[test]
fn half_precision_weights_are_widened_and_must_be_numbers() {
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
        // The largest number of either sign passes; infinity, and NaN of either sign, are refused.
        let largest = if dtype == DType::F16 { 65504.0 } else { f64::from(f32::from_bits(0x7f7f_0000)) };
        for (value, passes) in
            [(largest, true), (-largest, true), (f64::INFINITY, false), (f64::NAN, false), (-f64::NAN, false)]
        {
            let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
            let mut changed = halved.clone();
            let matrix = tensors[name].ones_like().unwrap();
            changed.insert(name.into(), (matrix * value).unwrap().to_dtype(dtype).unwrap());
            let bytes = safetensors::serialize(&changed, None).unwrap();
            match peft::read(&config, &bytes, &model("llama"), &Device::Cpu) {
                Ok(_) => assert!(passes, "{dtype:?}: {value}"),
                Err(error) => assert!(!passes && error.to_string().contains("not finite"), "{dtype:?}: {error}"),
            }
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
    assert!(refusal(|config| config["rank_pattern"] = json!({".*q_proj": 8})).contains("q_proj.lora_A` has the shape"));
    assert!(refusal(|config| config["rank_pattern"] = json!({"(?=q)q_proj": 4})).contains("expression `(?=q)q_proj`"));
    assert!(refusal(|config| config["rank_pattern"] = json!({"(q_proj": 4})).contains("expression `(q_proj`"));
    assert!(refusal(|config| config["rank_pattern"] = json!({"q_proj": "4"})).contains("not a number"));
    assert!(refusal(|config| config["target_modules"] = json!(".{99999}")).contains("expression"));
    assert!(refusal(|config| config["target_modules"] = json!(".*q_proj")).contains("does not name"));
    assert!(refusal(|config| config["target_modules"] = json!([7])).contains("no name"));
    assert!(refusal(|config| config["exclude_modules"] = json!(["q_proj"])).contains("does not name"));
    assert!(refusal(|config| config["layers_to_transform"] = json!([0, 1])).contains("does not name"));
    assert!(refusal(|config| config["layers_to_transform"] = json!(-1)).contains("numbers of blocks"));
    for init in ["pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "mica", "unheard"] {
        assert!(refusal(|config| config["init_lora_weights"] = json!(init)).contains("`init_lora_weights`"), "{init}");
    }
    for field in [
        "use_qalora",
        "use_bdlora",
        "use_something_new",
        "megatron_config",
        "trainable_token_indices",
        "layer_replication",
        "target_parameters",
        "alora_invocation_tokens",
        "kasa_config",
    ] {
        let value = if field.starts_with("use_") { json!(true) } else { json!({"a": [1]}) };
        assert!(refusal(|config| config[field] = value).contains(&format!("`{field}`")), "{field}");
    }
    assert!(refusal(|config| config["target_modules"] = json!(["q_proj"])).contains("does not name"));
    let targets = json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]);
    assert!(refusal(|config| config["target_modules"] = targets).contains("`lm_head`"));
    assert!(
        refusal(|config| drop(config.as_object_mut().unwrap().remove("target_modules"))).contains("target_modules")
    );
}

#[test]
fn which_layers_are_changed_by_what_is_as_peft_has_it() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft_rules.json");
    let rules: Value = serde_json::from_slice(&std::fs::read(rules).unwrap()).unwrap();
    for case in rules["cases"].as_array().unwrap() {
        let config = PeftConfig::read(&serde_json::to_vec(&case["config"]).unwrap()).unwrap();
        let changed = case["changed"].as_object().unwrap();
        let mut places = 0;
        for block in 0..rules["blocks"].as_u64().unwrap() {
            for site in Site::USUAL {
                let path = format!("model.layers.{block}.{}", site.path());
                let wanted = changed.get(&path);
                assert_eq!(config.changes(&path), wanted.is_some(), "{path} under {}", case["config"]);
                let Some(wanted) = wanted else { continue };
                places += 1;
                let (rank, scale) = config.scaling(&path, MAX_RANK).unwrap();
                assert_eq!(rank as u64, wanted[0].as_u64().unwrap(), "{path} under {}", case["config"]);
                let difference = f64::from(scale) - wanted[1].as_f64().unwrap();
                assert!(difference.abs() < 1e-6, "{path} under {}: {scale}", case["config"]);
            }
        }
        assert_eq!(places, changed.len(), "{}", case["config"]);
    }
}

#[test]
fn a_rank_above_the_limit_is_refused_and_sizes_are_known_before_anything_is_allocated() {
    let (config, whole) = files("llama");
    let mut at_once = |_| {};
    let pieces = &mut Pieces::new(&mut at_once);
    let refused = HostAdapter::check(&config, whole.clone().into(), &model("llama"), 3, pieces).unwrap_err();
    assert!(refused.to_string().contains("limits.max_adapter_rank is 3"), "{refused}");
    let adapter = HostAdapter::check(&config, whole.into(), &model("llama"), 4, pieces).unwrap();
    assert_eq!(adapter.rank(), 4);
    for precision in [DType::F32, DType::BF16] {
        let served = adapter.to_adapter(&Device::Cpu, pieces).unwrap().for_serving(precision).unwrap();
        assert_eq!(adapter.device_bytes(precision), served.bytes() as u64);
    }
}

#[test]
fn layers_that_the_configuration_names_must_be_there() {
    let (config, weights) = files("llama");
    let tensors = candle_core::safetensors::load_buffer(&weights, &Device::Cpu).unwrap();
    let fewer: std::collections::HashMap<_, _> =
        tensors.into_iter().filter(|(name, _)| !name.contains("layers.1.self_attn.q_proj")).collect();
    let bytes = safetensors::serialize(&fewer, None).unwrap();
    let error = peft::read(&config, &bytes, &model("llama"), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("`model.layers.1.self_attn.q_proj`, for which there are no tensors"), "{error}");
}

/// Creates a safetensors file with this header and as many bytes behind it.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn headers_that_lie_are_errors_with_a_reason() {
    let (config, weights) = files("llama");
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let other = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let entry = |name: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let read = |file: &[u8]| match peft::read(&config, file, &model("llama"), &Device::Cpu) {
        Err(error @ Error::Invalid(_)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let huge = u64::MAX / 2;
    for (what, header, data) in [
        ("overlapping", format!("{{{},{}}}", entry(name, "[4,1]", 0, 16), entry(other, "[4,1]", 8, 24)), 24),
        ("a hole", format!("{{{},{}}}", entry(name, "[4,1]", 0, 16), entry(other, "[4,1]", 20, 36)), 36),
        ("out of range", format!("{{{}}}", entry(name, "[4,1]", 0, 16)), 8),
        ("bytes behind the end", format!("{{{}}}", entry(name, "[4,1]", 0, 16)), 20),
        ("backwards", format!("{{{}}}", entry(name, "[4,1]", 16, 0)), 16),
        ("an overflow", format!("{{{}}}", entry(name, &format!("[{huge},{huge}]"), 0, 16)), 16),
        ("a huge shape", format!("{{{}}}", entry(name, &format!("[1,{huge}]"), 0, huge)), 16),
        ("a name twice", format!("{{{},{}}}", entry(name, "[4,1]", 0, 16), entry(name, "[4,1]", 0, 16)), 16),
        ("no object", "[]".into(), 0),
        ("not JSON", "{".into(), 0),
    ] {
        assert!(read(&with_header(&header, data)).contains("damaged"), "{what}");
    }
    let vector = format!("{{{}}}", entry(name, "[4]", 0, 16));
    assert!(read(&with_header(&vector, 16)).contains("not two dimensions"));
    let zero = format!("{{{},{}}}", entry(name, "[0,64]", 0, 0), entry(other, "[64,0]", 0, 0));
    assert!(!read(&with_header(&zero, 0)).is_empty(), "a rank of zero");
    let mut long = weights.clone();
    long[..8].copy_from_slice(&(9_u64 << 20).to_le_bytes());
    assert!(read(&long).contains("at most"), "a header of 9 MiB");
    assert!(read(&[]).contains("damaged"));
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
