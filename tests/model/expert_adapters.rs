//! Adapters that change experts, as PEFT makes them: they have PEFT's logits in training's pass and in a step of serving,
//! they are written as PEFT writes them, and what PEFT would not load, or would compute otherwise, is refused by name.
//! `make_expert_adapters.py` wrote them.

use std::collections::HashMap;

use attune::adapters::Error;
use attune::adapters::peft;
use attune::model::ModelConfig;
use attune::model::decoder::{Decoder, SequenceRows};
use attune::model::gguf;
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::lora::Adapter;
use attune::model::rope::RopeTable;
use attune::train::backward::hidden_states;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::fixtures::{EXPERT_FAMILIES, Reference, device, floats, folder, load, max_difference, one_sequence};

/// Adapters by family and folder: of both parameters, of one of them, and with a name for each expert's layer.
const ADAPTERS: [(&str, &str); 8] = [
    ("qwen3_moe", "peft_experts"),
    ("qwen3_moe", "peft_single"),
    ("mixtral", "peft_experts"),
    ("mixtral", "peft_single"),
    ("olmoe", "peft_experts"),
    ("olmoe", "peft_down"),
    ("gpt_oss", "peft_experts"),
    ("gpt_oss", "peft_gate_up"),
];

/// Largest absolute difference of a logit, in f32.
const TOLERANCE: f32 = 1e-4;

fn files(family: &str, name: &str) -> (Vec<u8>, Vec<u8>) {
    let read = |file: &str| std::fs::read(folder(family).join(name).join(file)).unwrap();
    (read("adapter_config.json"), read("adapter_model.safetensors"))
}

fn model(family: &str) -> ModelConfig {
    ModelConfig::read(&folder(family)).unwrap()
}

fn adapter(family: &str, name: &str) -> Adapter {
    let (config, weights) = files(family, name);
    peft::read(&config, &weights, &model(family), &device()).unwrap()
}

fn logits(decoder: &Decoder, adapter: Option<&Adapter>, tokens: &[u32]) -> Vec<f32> {
    floats(&decoder.logits(&hidden_states(decoder, adapter, &one_sequence(tokens)).unwrap()).unwrap())
}

/// Computes the logits of `tokens` for each of the adapters in one step.
fn served(decoder: &Decoder, config: &ModelConfig, tokens: &[u32], adapters: &[Option<&Adapter>]) -> Vec<Vec<f32>> {
    let blocks = tokens.len().div_ceil(BLOCK_TOKENS);
    let cache = KvCache::new(config, blocks * adapters.len(), DType::F32, &device()).unwrap();
    let blocks: Vec<Vec<u32>> = (0..adapters.len())
        .map(|index| (index * blocks..(index + 1) * blocks).map(|block| block as u32).collect())
        .collect();
    let sequences: Vec<_> = adapters
        .iter()
        .enumerate()
        .map(|(index, adapter)| SequenceRows {
            rows: index * tokens.len()..(index + 1) * tokens.len(),
            start: 0,
            blocks: &blocks[index],
            adapter: *adapter,
            rope: RopeTable::Short,
        })
        .collect();
    let hidden = decoder.step(&tokens.repeat(adapters.len()), &sequences, &cache).unwrap();
    let logits = decoder.logits(&hidden).unwrap();
    let own = |rows: &SequenceRows<'_>| floats(&logits.narrow(0, rows.rows.start, rows.rows.len()).unwrap());
    sequences.iter().map(own).collect()
}

#[test]
fn an_adapter_of_experts_has_the_logits_of_peft() {
    for (family, name) in ADAPTERS {
        let (config, decoder) = load(family, &device());
        let reference = Reference::read(family, &format!("{name}/reference.safetensors"));
        let (tokens, expected) = (reference.ids("input_ids"), reference.floats("logits"));
        let adapter = adapter(family, name);
        assert!(adapter.changes_experts());
        let found = logits(&decoder, Some(&adapter), &tokens);
        let difference = max_difference(&found, &expected);
        assert!(difference <= TOLERANCE, "{family}/{name}: logits differ by {difference:e}");
        // A step with rows of the base, of this adapter and of one of attention in turns.
        let attention = Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
        let adapters = [&adapter, &attention].map(|adapter| decoder.served(adapter).unwrap());
        let [own, other] = &adapters;
        let step = served(&decoder, &config, &tokens, &[Some(own), None, Some(other), Some(own)]);
        let attention = logits(&decoder, Some(&attention), &tokens);
        let base = logits(&decoder, None, &tokens);
        for (found, expected) in step.iter().zip([&expected, &base, &attention, &expected]) {
            let difference = max_difference(found, expected);
            assert!(difference <= TOLERANCE, "{family}/{name}: served logits differ by {difference:e}");
        }
        assert!(max_difference(&base, &expected) > 100.0 * TOLERANCE, "{family}/{name}: no effect");
    }
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_row_has_the_bits_that_it_has_alone_beside_other_adapters() {
    use attune::adapters::peft::host::HostAdapter;
    use attune::adapters::pieces::Pieces;
    use attune::model::lora::MAX_RANK;

    for (family, name) in ADAPTERS {
        let (config, decoder) = load(family, &device());
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let (settings, weights) = files(family, name);
        let mut at_once = |_| {};
        let pieces = &mut Pieces::new(&mut at_once);
        let host = HostAdapter::check(&settings, weights.into(), &config, MAX_RANK, pieces).unwrap();
        for precision in [DType::F32, DType::BF16] {
            let own = host.to_served(precision, pieces).unwrap();
            let same = host.to_adapter(&Device::Cpu, pieces).unwrap().for_serving(precision).unwrap();
            assert_eq!((own.bytes() as u64, own.rank()), (host.device_bytes(precision), host.rank()));
            let one = |adapter| served(&decoder, &config, &tokens, &[adapter]).remove(0);
            let (alone, base) = (&one(Some(&own)), &one(None));
            let together = served(&decoder, &config, &tokens, &[None, Some(&own), Some(&same), None, Some(&own)]);
            for (index, expected) in [base, alone, alone, base, alone].into_iter().enumerate() {
                assert!(together[index] == *expected, "{family}/{name}: sequence {index} differs");
            }
        }
    }
}

/// Returns the message that refuses an adapter after a change of its files.
fn refusal(family: &str, name: &str, change: impl FnOnce(&mut Value, &mut HashMap<String, Tensor>)) -> String {
    let (config, _) = files(family, name);
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    let saved = folder(family).join(name).join("adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(saved, &Device::Cpu).unwrap();
    change(&mut config, &mut tensors);
    let target = tempfile::NamedTempFile::new().unwrap();
    candle_core::safetensors::save(&tensors, target.path()).unwrap();
    let weights = std::fs::read(target.path()).unwrap();
    match peft::read(&serde_json::to_vec(&config).unwrap(), &weights, &model(family), &Device::Cpu) {
        Err(error @ Error::Invalid(_)) => error.to_string(),
        other => panic!("{family}/{name}: {other:?}"),
    }
}

fn tensor_name(block: usize, path: &str, half: &str) -> String {
    format!("base_model.model.model.layers.{block}.{path}.lora_{half}.weight")
}

#[test]
fn parameters_and_tensors_must_name_each_other() {
    for half in ["A", "B"] {
        let said = refusal("qwen3_moe", "peft_experts", |_, tensors| {
            drop(tensors.remove(&tensor_name(1, "mlp.experts.base_layer", half)).unwrap());
        });
        assert!(said.contains("`model.layers.1.mlp.experts.base_layer` has only one of lora_A and lora_B"), "{said}");
    }
    let said = refusal("qwen3_moe", "peft_experts", |_, tensors| {
        for half in ["A", "B"] {
            tensors.remove(&tensor_name(0, "mlp.experts.base_layer", half)).unwrap();
        }
    });
    assert!(said.contains("names `model.layers.0.mlp.experts.gate_up_proj`, for which there are no tensors"), "{said}");
    // With one parameter alone its matrices are those of the outermost module.
    let said = refusal("qwen3_moe", "peft_experts", |config, _| config["target_parameters"] = json!(["down_proj"]));
    assert!(said.contains("there are tensors for `model.layers.0.mlp.experts.base_layer`"), "{said}");
    let said = refusal("qwen3_moe", "peft_experts", |config, _| config["target_parameters"] = json!([]));
    assert!(said.contains("`model.layers.0.mlp.experts"), "{said}");
    let said = refusal("qwen3_moe", "peft_experts", |config, _| config["target_parameters"] = json!("down_proj"));
    assert!(said.contains("`target_parameters` must be a list of names"), "{said}");
    for (family, other) in [
        ("qwen3_moe", "mlp.gate.weight"),
        ("qwen3_moe", "q_proj.weight"),
        ("gpt_oss", "gate_up_proj_bias"),
        ("gpt_oss", "mlp.router.weight"),
        ("gpt_oss", "self_attn.sinks"),
    ] {
        let said = refusal(family, "peft_experts", |config, _| {
            config["target_parameters"].as_array_mut().unwrap().push(json!(other));
        });
        assert!(said.contains(&format!("{other}`; of a model's parameters")), "{said}");
    }
    let (config, weights) = files("qwen3_moe", "peft_experts");
    let said = peft::read(&config, &weights, &model("qwen3"), &Device::Cpu).unwrap_err().to_string();
    assert!(said.contains("has no place for the tensor"), "{said}");
}

#[test]
fn matrices_of_another_shape_or_of_an_older_peft_are_refused() {
    let said = refusal("olmoe", "peft_experts", |config, _| config["rank_pattern"] = json!({}));
    assert!(
        said.contains("`model.layers.0.mlp.experts.lora_A` has the shape (30, 24); rank and model require (12, 24)"),
        "{said}"
    );
    // Before PEFT 0.19 the A of down took its outputs.
    let exchanged = |tensors: &mut HashMap<String, Tensor>| {
        let (a, b) = (tensor_name(0, "mlp.experts", "A"), tensor_name(0, "mlp.experts", "B"));
        let [one, two] = [&b, &a].map(|name| tensors[name].t().unwrap().contiguous().unwrap());
        tensors.extend([(a, one), (b, two)]);
    };
    let said = refusal("qwen3_moe", "peft_experts", |_, tensors| exchanged(tensors));
    assert!(said.contains("down_proj` is changed by matrices from before PEFT 0.19"), "{said}");
    // Where an expert has as many inputs as outputs, only the version tells: gate and up together in Mixtral's fixture.
    for version in [json!(null), json!("0.18.1"), json!("0.18.2.dev0@UNKNOWN"), json!("new")] {
        let said = refusal("mixtral", "peft_experts", |config, _| config["peft_version"] = version);
        assert!(said.contains("gate_up_proj` is changed by matrices from before PEFT 0.19"), "{said}");
    }
}

#[test]
fn tensors_of_single_experts_must_be_complete_and_of_one_rank() {
    let up = "mlp.experts.3.up_proj";
    let said = refusal("qwen3_moe", "peft_single", |_, tensors| {
        for half in ["A", "B"] {
            tensors.remove(&tensor_name(1, up, half)).unwrap();
        }
    });
    assert!(said.contains(&format!("names `model.layers.1.{up}`, for which there are no tensors")), "{said}");
    let said = refusal("qwen3_moe", "peft_single", |config, tensors| {
        for half in ["A", "B"] {
            tensors.remove(&tensor_name(1, up, half)).unwrap();
        }
        config["exclude_modules"] = json!([format!("model.layers.1.{up}")]);
    });
    assert!(said.contains("changes only some experts of block 1"), "{said}");
    let said = refusal("mixtral", "peft_single", |config, tensors| {
        tensors.retain(|name, _| !name.contains(".w3."));
        config["target_modules"] = json!(["w1", "w2"]);
    });
    assert!(said.contains("one of w1 and w3 without the other"), "{said}");
    let said = refusal("mixtral", "peft_single", |config, _| config["target_modules"] = json!(["w1", "w3"]));
    assert!(said.contains("which target_modules does not name"), "{said}");
    for (field, value) in
        [("rank_pattern", json!({"w1": 2})), ("alpha_pattern", json!({"w1": 3})), ("use_rslora", json!(true))]
    {
        let said = refusal("mixtral", "peft_single", |config, _| config[field] = value);
        assert!(said.contains("not supported together with tensors of single experts"), "{said}");
    }
    let said = refusal("mixtral", "peft_single", |config, _| config["target_parameters"] = json!(["down_proj"]));
    assert!(said.contains("tensors of single experts and target_parameters"), "{said}");
}

#[test]
fn routers_and_modules_that_are_not_there_have_no_place() {
    let a = Tensor::zeros((4, 64), DType::F32, &Device::Cpu).unwrap();
    for (module, is_router) in [
        ("mlp.gate", true),
        ("mlp.up_proj", false),
        ("mlp.experts.6.up_proj", false),
        ("mlp.experts.07.up_proj", false),
    ] {
        let said = refusal("qwen3_moe", "peft_experts", |_, tensors| {
            tensors.insert(tensor_name(1, module, "A"), a.clone());
        });
        assert!(said.contains("has no place") && said.contains(module), "{said}");
        assert_eq!(said.contains("the router of experts cannot be changed"), is_router, "{said}");
    }
}

#[test]
fn it_is_written_as_peft_writes_it() {
    for (family, name) in ADAPTERS.into_iter().filter(|(_, name)| *name != "peft_single") {
        let written = peft::write(&adapter(family, name), "base").unwrap();
        let (settings, weights) = files(family, name);
        let tensors = |weights: &[u8]| candle_core::safetensors::load_buffer(weights, &Device::Cpu).unwrap();
        let (ours, theirs) = (tensors(&written.weights), tensors(&weights));
        assert_eq!(ours.len(), theirs.len(), "{family}/{name}");
        for (tensor, expected) in theirs {
            assert_eq!(ours[&tensor].dims(), expected.dims(), "{family}/{name}: {tensor}");
            assert_eq!(floats(&ours[&tensor]), floats(&expected), "{family}/{name}: {tensor}");
        }
        let [ours, theirs] = [&written.config, &settings].map(|file| serde_json::from_slice::<Value>(file).unwrap());
        let sorted = |settings: &Value, field: &str| {
            let mut names: Vec<String> = serde_json::from_value(settings[field].clone()).unwrap();
            names.sort();
            names
        };
        assert_eq!(sorted(&ours, "target_modules"), sorted(&theirs, "target_modules"), "{family}/{name}");
        // PEFT's file may name a parameter by its last part alone.
        for (ours, theirs) in sorted(&ours, "target_parameters").iter().zip(sorted(&theirs, "target_parameters")) {
            assert!(ours.ends_with(&theirs), "{family}/{name}: {ours} is not {theirs}");
        }
    }
}

#[test]
fn matrices_of_single_experts_become_those_of_parameters_with_the_same_logits() {
    for family in ["qwen3_moe", "mixtral"] {
        let (config, decoder) = load(family, &device());
        let single = adapter(family, "peft_single");
        let written = peft::write(&single, "base").unwrap();
        let again = peft::read(&written.config, &written.weights, &config, &device()).unwrap();
        assert_eq!(again.rank(), 2 * single.rank(), "{family}: gate and up have an A each");
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let [one, other] = [&single, &again].map(|adapter| logits(&decoder, Some(adapter), &tokens));
        let difference = max_difference(&one, &other);
        assert!(difference <= TOLERANCE, "{family}: logits differ by {difference:e}");
    }
}

#[test]
fn it_takes_no_form_beside_that_of_peft() {
    let adapter = adapter("qwen3_moe", "peft_experts");
    let names = gguf::lora::names(&folder("qwen3_moe"), &model("qwen3_moe")).unwrap();
    let said = gguf::lora::write(&adapter, &names).unwrap_err().to_string();
    assert!(said.contains("this adapter changes experts, which this form has no place for"), "{said}");
}

#[test]
fn values_that_are_not_finite_are_found_after_the_change_of_order() {
    let name = tensor_name(1, "mlp.experts.base_layer", "B");
    let said = refusal("gpt_oss", "peft_experts", |_, tensors| {
        let tensor = tensors.get_mut(&name).unwrap();
        let mut values = floats(tensor);
        *values.last_mut().unwrap() = f32::NAN;
        *tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap();
    });
    assert!(said.contains("`model.layers.1.mlp.experts.3: Up.lora_B` has values that are not finite"), "{said}");
}

/// Writes adapters with our own writer, and our logits with them, for `make parity` to load with PEFT.
#[test]
#[ignore = "writes files for the Python side of `make parity`"]
fn write_expert_adapters_for_peft() {
    let out = std::path::PathBuf::from(std::env::var("PARITY_OUT").expect("PARITY_OUT names the folder to write to"));
    for family in EXPERT_FAMILIES {
        let (config, decoder) = load(family, &device());
        let files = peft::write(&adapter(family, "peft_experts"), family).unwrap();
        let reread = peft::read(&files.config, &files.weights, &config, &device()).unwrap();
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let served = decoder.served(&reread).unwrap();
        let logits = self::served(&decoder, &config, &tokens, &[Some(&served)]).remove(0);
        let folder = out.join(format!("{family}_experts"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), &files.config).unwrap();
        std::fs::write(folder.join("adapter_model.safetensors"), &files.weights).unwrap();
        let ids: Vec<i64> = tokens.iter().map(|id| i64::from(*id)).collect();
        let shape = (tokens.len(), logits.len() / tokens.len());
        let logits = Tensor::from_vec(logits, shape, &Device::Cpu).unwrap();
        let ids = Tensor::new(ids, &Device::Cpu).unwrap();
        let tensors = HashMap::from([("input_ids", ids), ("logits", logits)]);
        candle_core::safetensors::save(&tensors, out.join(format!("{family}_experts.safetensors"))).unwrap();
    }
}
