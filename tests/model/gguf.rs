//! GGUF files give the model that they were made of: the fixtures, written as llama.cpp's converter writes them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use attune::model::blocks::{BlockMatrix, BlockType};
use attune::model::checkpoint::Checkpoint;
use attune::model::decoder::{BaseAlone, Decoder};
use attune::model::entry::ModelEntry;
use attune::model::gguf::tensors::{Names, Part};
use attune::model::gguf::writer::{self, TensorToWrite};
use attune::model::gguf::{Metadata, Value};
use attune::model::linear::{Dtype, Storage};
use attune::model::rope::{Rope, RopeTable};
use attune::model::rope_scaling::RopeScaling;
use attune::model::weights::Weights;
use attune::model::{BaseModel, ModelConfig};
use attune::train::backward::hidden_states;
use bytes::Bytes;
use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

use crate::fixtures::{Reference, bears_rounding, device, floats, folder, max_difference, one_sequence};

/// Largest absolute difference of a logit from that of the same weights in safetensors, in f32.
const TOLERANCE: f32 = 1e-5;

/// Fixtures with the architecture that their files have, and whether a file can say all that the fixture's configuration
/// says.
const FAMILIES: [(&str, &str, bool); 23] = [
    ("llama", "llama", true),
    // Query and key with biases, and heads that are no power of two wide.
    ("llama_bias_heads", "llama", true),
    ("llama3_rope", "llama", true),
    ("llama_linear_rope", "llama", true),
    ("qwen2", "qwen2", false),
    ("qwen3", "qwen3", true),
    ("smollm3", "smollm3", false),
    ("gemma", "gemma", true),
    ("gemma2", "gemma2", false),
    ("gemma3_linear_rope", "gemma3", false),
    ("granite", "granite", true),
    // Files hold its gate and up one by one.
    ("granite_hybrid", "granite", true),
    ("granite_hybrid_nope", "granite", true),
    ("olmo2", "olmo2", true),
    ("olmo3", "olmo2", true),
    ("phi3", "phi3", true),
    ("phi3_longrope", "phi3", true),
    ("ministral3", "mistral3", false),
    ("lfm2", "lfm2", true),
    ("qwen3_moe", "qwen3moe", true),
    ("mixtral", "llama", false),
    ("olmoe", "olmoe", true),
    ("gpt_oss", "gpt-oss", false),
];

const ORIGINAL: &str = "original_max_position_embeddings";

/// Tensors by transformers' names.
type Tensors = HashMap<String, Tensor>;

fn tensors_of(folder: &Path) -> Tensors {
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let mut tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap())).collect();
    split_stacks(folder, &mut tensors);
    tensors
}

/// Gives each layer of an expert of gpt-oss a tensor of its own, as the other families have them.
fn split_stacks(folder: &Path, tensors: &mut Tensors) {
    let config = ModelConfig::read(folder).unwrap();
    let Some(experts) = config.experts.filter(|experts| experts.biases) else { return };
    let (count, width, hidden) = (experts.count, experts.intermediate_size, config.hidden_size);
    let weights = Weights::open(folder, &Device::Cpu).unwrap();
    let stacks = [
        ("gate_up_proj", [2 * width, hidden], &["gate_proj", "up_proj"][..]),
        ("down_proj", [hidden, width], &["down_proj"]),
    ];
    for layer in 0..config.num_hidden_layers {
        let block = format!("model.layers.{layer}.mlp.experts");
        for (stack, [outputs, inputs], parts) in stacks {
            let name = format!("{block}.{stack}");
            let dense = tensors.remove(&name); // [experts, inputs, outputs]
            for end in ["_blocks", "_scales"] {
                tensors.remove(&format!("{name}{end}"));
            }
            let biases = tensors.remove(&format!("{name}_bias")).unwrap();
            let all: Vec<usize> = (0..outputs).collect();
            for expert in 0..count {
                let matrix = if let Some(dense) = &dense {
                    dense.get(expert).unwrap().t().unwrap().contiguous().unwrap()
                } else {
                    let matrix = weights.mxfp4_expert(&name, expert, [count, outputs, inputs], &all).unwrap();
                    matrix.dense(&Device::Cpu).unwrap()
                };
                for (turn, part) in parts.iter().enumerate() {
                    let rows: Vec<u32> = (turn..outputs).step_by(parts.len()).map(|row| row as u32).collect();
                    let rows = Tensor::new(rows, &Device::Cpu).unwrap();
                    for (end, values) in [("weight", &matrix), ("bias", &biases.get(expert).unwrap())] {
                        let values = values.index_select(&rows, 0).unwrap();
                        tensors.insert(format!("{block}.{expert}.{part}.{end}"), values);
                    }
                }
            }
        }
    }
}

/// Returns the tensors with the layers that files hold one by one apart: gate and up of Granite 4.
fn as_in_files(tensors: Tensors) -> Tensors {
    let mut apart = Tensors::new();
    for (name, tensor) in tensors {
        let Some((block, layer)) = name.split_once(".shared_mlp.") else {
            apart.insert(name, tensor);
            continue;
        };
        if layer == "output_linear.weight" {
            apart.insert(format!("{block}.mlp.down_proj.weight"), tensor);
            continue;
        }
        assert_eq!(layer, "input_linear.weight");
        let halves = tensor.chunk(2, 0).unwrap();
        for (half, layer) in halves.iter().zip(["gate_proj", "up_proj"]) {
            apart.insert(format!("{block}.mlp.{layer}.weight"), half.contiguous().unwrap());
        }
    }
    apart
}

fn json_of(folder: &Path) -> Json {
    serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

/// Returns the keys of a file of the model in `folder`.
fn keys(folder: &Path, architecture: &str) -> Vec<(String, Value)> {
    let config = ModelConfig::read(folder).unwrap();
    let size = |size: usize| Value::from(size as u32);
    let keys = [
        ("block_count", size(config.num_hidden_layers)),
        ("context_length", size(config.max_position_embeddings)),
        ("embedding_length", size(config.hidden_size)),
        ("feed_forward_length", size(config.intermediate_size)),
        ("attention.head_count", size(config.num_attention_heads)),
        ("attention.head_count_kv", size(config.num_key_value_heads)),
        ("attention.key_length", size(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", config.rms_norm_eps.into()),
        ("rope.dimension_count", size(config.ropes[0].rotated(config.head_dim))),
        ("rope.freq_base", (config.ropes[0].theta as f32).into()),
    ];
    let keys = keys.into_iter().chain(family_keys(&json_of(folder), architecture));
    let keys = keys.map(|(name, value)| (format!("{architecture}.{name}"), value));
    keys.chain([("general.architecture".to_owned(), architecture.into())]).collect()
}

/// Returns the keys beside the common ones that the converter makes of fields of `config.json`.
fn family_keys(json: &Json, architecture: &str) -> Vec<(&'static str, Value)> {
    let mut keys = Vec::new();
    let ropes = &json["rope_parameters"];
    let rope = if ropes["full_attention"].is_object() { &ropes["full_attention"] } else { ropes };
    let numbers = [
        ("embedding_scale", &json["embedding_multiplier"]),
        ("residual_scale", &json["residual_multiplier"]),
        ("attention.scale", &json["attention_multiplier"]),
        ("logit_scale", &json["logits_scaling"]),
        ("attn_logit_softcapping", &json["attn_logit_softcapping"]),
        ("final_logit_softcapping", &json["final_logit_softcapping"]),
        ("rope.freq_base_swa", &ropes["sliding_attention"]["rope_theta"]),
    ];
    keys.extend(numbers.into_iter().filter_map(|(name, value)| Some((name, (value.as_f64()? as f32).into()))));
    if let Some(kind) = rope["rope_type"].as_str().filter(|kind| ["linear", "yarn"].contains(kind)) {
        keys.push(("rope.scaling.type", kind.into()));
        keys.push(("rope.scaling.factor", (rope["factor"].as_f64().unwrap() as f32).into()));
        for (name, field) in
            [("rope.scaling.yarn_beta_fast", "beta_fast"), ("rope.scaling.yarn_beta_slow", "beta_slow")]
        {
            keys.extend(rope[field].as_f64().map(|beta| (name, (beta as f32).into())));
        }
        let context = rope["original_max_position_embeddings"].as_u64();
        keys.extend(context.map(|context| ("rope.scaling.original_context_length", (context as u32).into())));
    }
    let counts = [("expert_count", "num_experts"), ("expert_count", "num_local_experts")]
        .into_iter()
        .chain([("expert_used_count", "num_experts_per_tok"), ("expert_feed_forward_length", "moe_intermediate_size")]);
    keys.extend(counts.filter_map(|(name, field)| Some((name, (json[field].as_u64()? as u32).into()))));
    if architecture == "gpt-oss" {
        keys.push(("expert_feed_forward_length", (json["intermediate_size"].as_u64().unwrap() as u32).into()));
    }
    // The converter leaves the windows of Qwen 2 out.
    if let (Some(window), Some(types)) = (json["sliding_window"].as_u64(), json["layer_types"].as_array())
        && architecture != "qwen2"
    {
        keys.push(("attention.sliding_window", (window as u32).into()));
        let slides: Vec<bool> = types.iter().map(|kind| kind == "sliding_attention").collect();
        keys.push(("attention.sliding_window_pattern", slides.into()));
    }
    match architecture {
        "phi3" => {
            keys.push(("attention.sliding_window", (json["sliding_window"].as_u64().unwrap_or(0) as u32).into()));
            if let (Some(_), Some(original)) = (rope["long_factor"].as_array(), json[ORIGINAL].as_f64()) {
                let stretch = json["max_position_embeddings"].as_f64().unwrap() / original;
                let factor = (1.0 + stretch.ln() / original.ln()).sqrt();
                keys.push(("rope.scaling.attn_factor", (factor as f32).into()));
                keys.push(("rope.scaling.original_context_length", (original as u32).into()));
            }
        }
        "lfm2" => {
            keys.push(("shortconv.l_cache", (json["conv_L_cache"].as_u64().unwrap() as u32).into()));
            let heads = json["num_key_value_heads"].as_u64().unwrap() as u32;
            let types = json["layer_types"].as_array().unwrap().iter();
            let of_blocks: Vec<u32> = types.map(|kind| if kind == "conv" { 0 } else { heads }).collect();
            keys.push(("attention.head_count_kv", of_blocks.into()));
        }
        "granite" if json["shared_intermediate_size"].is_u64() => {
            let number = |name: &str| Value::from(json[name].as_u64().unwrap() as u32);
            keys.push(("expert_count", number("num_local_experts")));
            keys.push(("expert_shared_feed_forward_length", number("shared_intermediate_size")));
            keys.push(("ssm.conv_kernel", number("mamba_d_conv")));
            keys.push(("ssm.state_size", number("mamba_d_state")));
            keys.push(("rope.scaling.finetuned", (json["position_embedding_type"] == "rope").into()));
        }
        "mistral3" => {
            let number = |name: &str| Value::from(rope[name].as_f64().unwrap() as f32);
            keys.push(("attention.temperature_scale", number("llama_4_scaling_beta")));
            keys.push(("rope.scaling.yarn_log_multiplier", number("mscale_all_dim")));
        }
        _ => {}
    }
    keys
}

/// Returns the divisors of Phi for long and for short sequences, by the names that they have in files.
fn long_rope(folder: &Path) -> Vec<(&'static str, Tensor)> {
    let json = json_of(folder);
    let list = |name: &str| -> Option<Tensor> {
        let factors = json["rope_parameters"][name].as_array()?.iter().map(|factor| factor.as_f64().unwrap() as f32);
        Some(Tensor::new(factors.collect::<Vec<f32>>(), &Device::Cpu).unwrap())
    };
    let lists = [("rope_factors_long.weight", "long_factor"), ("rope_factors_short.weight", "short_factor")];
    lists.into_iter().filter_map(|(file, name)| Some((file, list(name)?))).collect()
}

/// Moves the rows of query and key as the converter does: `[heads, 2, half]` to `[heads, half, 2]`.
fn for_neighbours(tensor: &Tensor, heads: usize) -> Tensor {
    let rows = tensor.dim(0).unwrap();
    let rest: Vec<usize> = tensor.dims()[1..].to_vec();
    let split: Vec<usize> = [heads, 2, rows / heads / 2].into_iter().chain(rest).collect();
    tensor.reshape(split).unwrap().transpose(1, 2).unwrap().contiguous().unwrap().reshape(tensor.dims()).unwrap()
}

/// Returns the divisors of the frequencies that the converter writes for the scaling of Llama 3.
fn divisors(folder: &Path) -> Option<Tensor> {
    let config = ModelConfig::read(folder).unwrap();
    let rope = json_of(folder)["rope_parameters"].clone();
    let number = |name: &str| rope[name].as_f64();
    let (low, high, factor) = (number("low_freq_factor")?, number("high_freq_factor")?, number("factor")?);
    let context = number("original_max_position_embeddings")?;
    let divisor = |i: usize| {
        let frequency = config.ropes[0].theta.powf(-2.0 * i as f64 / config.head_dim as f64);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            factor as f32
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        }
    };
    let divisors: Vec<f32> = (0..config.head_dim / 2).map(divisor).collect();
    Some(Tensor::new(divisors, &Device::Cpu).unwrap())
}

/// Returns the rows of a tensor, all dimensions but the last one taken together, and their width.
fn rows_and_columns(tensor: &Tensor) -> (usize, usize) {
    let columns = *tensor.dims().last().unwrap();
    (tensor.elem_count() / columns, columns)
}

/// Packs values that MXFP4 can hold: a block's scale fits its largest number, and so all.
fn mxfp4(values: &[f32]) -> Vec<u8> {
    const NUMBERS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let largest = values.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
    let exponent = if largest > 0.0 { largest.log2().floor() as i32 - 2 } else { 0 };
    let number = |value: f32| {
        let scaled = value.abs() / (exponent as f32).exp2();
        let number = NUMBERS.iter().position(|number| (number - scaled).abs() < f32::EPSILON);
        number.expect("a value of MXFP4") as u8 | u8::from(value < 0.0) << 3
    };
    let pairs = (0..16).map(|place| number(values[place]) | number(values[place + 16]) << 4);
    [(exponent + 127) as u8].into_iter().chain(pairs).collect()
}

/// Packs rows of `weights` in blocks; rows that are no whole number of blocks stay in F32.
fn packed(kind: BlockType, tensor: &Tensor) -> (BlockType, Vec<u8>) {
    let values = floats(tensor);
    let (size, _) = kind.size();
    if tensor.rank() < 2 || !rows_and_columns(tensor).1.is_multiple_of(size) || kind == BlockType::F32 {
        return (BlockType::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect());
    }
    let half = |value: f32| half::f16::from_f32(value);
    let block = |values: &[f32]| {
        let largest = values.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
        let least = values.iter().copied().fold(f32::MAX, f32::min);
        match kind {
            BlockType::F16 => values.iter().flat_map(|value| half(*value).to_le_bytes()).collect::<Vec<u8>>(),
            BlockType::Mxfp4 => mxfp4(values),
            BlockType::Q8_0 => {
                let scale = half(largest / 127.0);
                let quants = values.iter().map(|value| (value / scale.to_f32()).round() as i8 as u8);
                scale.to_le_bytes().into_iter().chain(quants).collect()
            }
            _ => {
                let (scale, offset) = (half((largest - least) / 15.0), half(least));
                let quant = |value: f32| ((value - offset.to_f32()) / scale.to_f32()).round().clamp(0.0, 15.0) as u8;
                let pairs = (0..16).map(|i| quant(values[i]) | quant(values[i + 16]) << 4);
                [scale.to_le_bytes(), offset.to_le_bytes()].concat().into_iter().chain(pairs).collect()
            }
        }
    };
    (kind, values.chunks_exact(size).flat_map(block).collect())
}

/// What differs in how files are made.
#[derive(Clone, Copy, Default)]
struct Form {
    /// Type of the matrices; `None` for F32.
    kind: Option<BlockType>,
    /// Type of the experts' matrices; `None` for that of the others.
    experts: Option<BlockType>,
    /// True to write query, key and value as one tensor.
    fused: bool,
}

/// Writes the model in `source` to the file `target`, and returns its tensors as they are in the file.
fn write(source: &Path, architecture: &str, form: Form, more: Vec<(String, Value)>, target: &Path) -> Tensors {
    let metadata = Metadata::new("test", keys(source, architecture).into_iter().chain(more));
    let names = Names::of(&metadata).unwrap();
    let config = ModelConfig::read(source).unwrap();
    // Written out, not asked of the program.
    let reorders = ["llama", "smollm3", "granite", "mistral3"].contains(&architecture);
    let adds_one = architecture.starts_with("gemma");
    let kind = form.kind.unwrap_or(BlockType::F32);
    let mut stored = Tensors::new();
    let mut parts: Vec<(TensorToWrite, Vec<u8>)> = Vec::new();
    let mut put = |name: &str, tensor: &Tensor, kind: BlockType| {
        let (kind, bytes) = packed(kind, tensor);
        parts.push((TensorToWrite { name: name.into(), shape: tensor.dims().to_vec(), kind }, bytes.clone()));
        let (rows, columns) = rows_and_columns(tensor);
        let values = BlockMatrix::new(kind, rows, columns, bytes.into()).unwrap().dequantize().unwrap();
        Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap()
    };
    let mut tensors: Vec<_> = as_in_files(tensors_of(source)).into_iter().collect();
    tensors.sort_by(|one, other| one.0.cmp(&other.0));
    let mut fusing: HashMap<String, Vec<Tensor>> = HashMap::new();
    let mut experts: BTreeMap<String, BTreeMap<usize, (&String, &Tensor)>> = BTreeMap::new();
    for (name, tensor) in &tensors {
        let place = names.places(name).remove(0);
        if let Part::Expert(expert) = place.part {
            experts.entry(place.tensor).or_default().insert(expert, (name, tensor));
            continue;
        }
        let heads = match name {
            _ if !reorders => None,
            _ if name.contains("q_proj") => Some(config.num_attention_heads),
            _ if name.contains("k_proj") => Some(config.num_key_value_heads),
            _ => None,
        };
        let ordered = heads.map_or_else(|| tensor.clone(), |heads| for_neighbours(tensor, heads));
        if form.fused && [".q_proj", ".k_proj", ".v_proj"].iter().any(|part| name.contains(part)) {
            let end = name.rsplit('.').next().unwrap();
            let block = name.split('.').nth(2).unwrap();
            fusing.entry(format!("blk.{block}.attn_qkv.{end}")).or_default().push(ordered);
            stored.insert(name.clone(), tensor.clone());
            continue;
        }
        let ordered = if adds_one && name.ends_with("norm.weight") { (ordered + 1.0).unwrap() } else { ordered };
        // Files hold the filters of convolutions in two dimensions.
        let ordered = if ordered.rank() == 3 { ordered.squeeze(1).unwrap() } else { ordered };
        let in_file = put(&place.tensor, &ordered, kind).reshape(tensor.dims()).unwrap();
        // A test of the values that the file has needs them in transformers' order.
        let original = if heads.is_some() { None } else { Some(in_file) };
        let unordered = || packed_values(kind, tensor);
        stored.insert(name.clone(), original.unwrap_or_else(unordered));
    }
    for (name, parts) in fusing {
        // Sorted by name, they came as key, query, value.
        put(&name, &Tensor::cat(&[&parts[1], &parts[0], &parts[2]], 0).unwrap(), kind);
    }
    for (name, experts) in experts {
        let stack = Tensor::stack(&experts.values().map(|(_, tensor)| *tensor).collect::<Vec<_>>(), 0).unwrap();
        let is_bias = stack.rank() == 2;
        let kind = if is_bias { BlockType::F32 } else { form.experts.unwrap_or(kind) };
        let in_file = put(&name, &stack, kind);
        for (expert, (name, _)) in experts {
            stored.insert(name.clone(), in_file.get(expert).unwrap());
        }
    }
    if let Some(divisors) = divisors(source) {
        put("rope_freqs.weight", &divisors, kind);
    }
    for (name, divisors) in long_rope(source) {
        put(name, &divisors, kind);
    }
    let (tensors, data): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let mut data = data.into_iter();
    let mut file = std::fs::File::create(target).unwrap();
    writer::write(&mut file, &metadata, &tensors, |_| Ok(Bytes::from(data.next().unwrap()))).unwrap();
    stored
}

/// Writes the model in `source` to the file `target`, all of it in F32.
pub(crate) fn write_plain(source: &Path, architecture: &str, target: &Path) {
    write(source, architecture, Form::default(), Vec::new(), target);
}

/// Returns the values of a matrix after packing.
fn packed_values(kind: BlockType, tensor: &Tensor) -> Tensor {
    let (kind, bytes) = packed(kind, tensor);
    let (rows, columns) = rows_and_columns(tensor);
    let values = BlockMatrix::new(kind, rows, columns, bytes.into()).unwrap().dequantize().unwrap();
    Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap()
}

fn logits(decoder: &Decoder, tokens: &[u32]) -> Vec<f32> {
    floats(&decoder.logits(&hidden_states(decoder, None, &one_sequence(tokens)).unwrap()).unwrap())
}

/// Loads a decoder whose products are in f32, or, without a type, with the numbers that a file's blocks have.
fn decoder(config: &ModelConfig, weights: &Weights, dtype: Option<Dtype>) -> Decoder {
    let storage = Storage { dtype, quantize: None };
    let decoder = Decoder::load_on(config, weights, &storage, &crate::kernels()).unwrap();
    weights.check_all_read().unwrap();
    decoder
}

/// Loads the fixture's tensors, or others in their place, with the shape that a file gives: some settings of the
/// fixtures cannot be said in files.
fn in_safetensors(config: &ModelConfig, tensors: &Tensors) -> Decoder {
    let folder = tempfile::tempdir().unwrap();
    candle_core::safetensors::save(tensors, folder.path().join("model.safetensors")).unwrap();
    decoder(config, &Weights::open(folder.path(), &device()).unwrap(), Some(Dtype::F32))
}

#[test]
fn a_file_gives_the_logits_of_the_safetensors_that_it_was_made_of() {
    let folder_of_files = tempfile::tempdir().unwrap();
    for (family, architecture, says_all) in FAMILIES {
        for fused in [false, true] {
            let file = folder_of_files.path().join("m.gguf");
            let form = Form { fused, ..Form::default() };
            write(&folder(family), architecture, form, Vec::new(), &file);
            let checkpoint = Checkpoint::open(&file).unwrap();
            let config = checkpoint.config().unwrap();
            let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
            let expected = logits(&in_safetensors(&config, &tensors_of(&folder(family))), &tokens);
            let found = logits(&decoder(&config, &checkpoint.weights(&device()).unwrap(), None), &tokens);
            let difference = max_difference(&found, &expected);
            assert!(difference <= TOLERANCE, "{family}, fused {fused}: logits differ by {difference:e}");
            if says_all {
                let expected = Reference::read(family, "reference.safetensors").floats("logits");
                let difference = max_difference(&found, &expected);
                assert!(difference <= 1e-4, "{family}: logits differ from transformers' by {difference:e}");
            }
        }
    }
}

#[test]
fn a_quantized_file_gives_the_logits_of_its_dequantized_weights() {
    let folder_of_files = tempfile::tempdir().unwrap();
    for (family, architecture, _) in FAMILIES {
        for kind in [BlockType::F16, BlockType::Q8_0, BlockType::Q4_1] {
            let file = folder_of_files.path().join("m.gguf");
            let form = Form { kind: Some(kind), ..Form::default() };
            let tensors = write(&folder(family), architecture, form, Vec::new(), &file);
            let checkpoint = Checkpoint::open(&file).unwrap();
            let config = checkpoint.config().unwrap();
            let weights = checkpoint.weights(&device()).unwrap();
            // Tensor by tensor, bit by bit.
            for (name, expected) in &tensors {
                let found = weights.get(name, expected.dims()).unwrap();
                assert_eq!(floats(&found), floats(expected), "{family}, {kind:?}: {name}");
            }
            let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
            // Norms have no blocks: those of the fixture are those of the file, but for Gemma's 1.
            let mut plain = as_in_files(tensors_of(&folder(family)));
            plain.extend(tensors.into_iter().filter(|(name, _)| !name.ends_with("norm.weight")));
            let expected = logits(&in_safetensors(&config, &plain), &tokens);
            let largest = expected.iter().fold(0_f32, |largest, logit| largest.max(logit.abs()));
            // Products with a file's own numbers round activations to 16 bits, which such random weights amplify: 5.6e-4 at
            // the most. A router's rounding can choose other experts, and so another model.
            let kept = bears_rounding(&family).then_some((None, 1e-3 * largest));
            for (dtype, tolerance) in [(Some(Dtype::F32), TOLERANCE)].into_iter().chain(kept) {
                let found = logits(&decoder(&config, &checkpoint.weights(&device()).unwrap(), dtype), &tokens);
                let difference = max_difference(&found, &expected);
                assert!(difference <= tolerance, "{family}, {kind:?}, {dtype:?}: logits differ by {difference:e}");
            }
        }
    }
}

#[test]
fn a_file_of_gpt_oss_with_experts_in_mxfp4_is_its_checkpoint() {
    let folder_of_files = tempfile::tempdir().unwrap();
    let (source, file) = (folder("quantized/model_mxfp4"), folder_of_files.path().join("m.gguf"));
    let form = Form { experts: Some(BlockType::Mxfp4), ..Form::default() };
    write(&source, "gpt-oss", form, Vec::new(), &file);
    let checkpoint = Checkpoint::open(&file).unwrap();
    let config = checkpoint.config().unwrap();
    let reference = Reference::read("quantized/model_mxfp4", "reference.safetensors");
    let load = |weights: &Weights, dtype| decoder(&config, weights, dtype);
    let of_file = || checkpoint.weights(&device()).unwrap();
    let found = logits(&load(&of_file(), Some(Dtype::F32)), &reference.ids("input_ids"));
    let difference = max_difference(&found, &reference.floats("logits"));
    assert!(difference <= 1e-4, "logits differ from transformers' by {difference:e}");
    // Both forms hold the same bits, and their products are the same.
    let x = Tensor::rand(-1_f32, 1.0, (7, config.hidden_size), &device()).unwrap();
    let [file, folder] = [load(&of_file(), None), load(&Weights::open(&source, &device()).unwrap(), None)];
    for (file, folder) in file.blocks.iter().zip(&folder.blocks) {
        let [file, folder] =
            [file, folder].map(|block| floats(&block.experts().unwrap().forward(&x, &BaseAlone).unwrap()));
        assert_eq!(file, folder);
    }
}

#[test]
fn the_divisors_of_a_file_are_the_scaling_of_llama_3_at_every_position() {
    let folder_of_files = tempfile::tempdir().unwrap();
    let file = folder_of_files.path().join("m.gguf");
    write(&folder("llama3_rope"), "llama", Form::default(), Vec::new(), &file);
    let rope = |config: &ModelConfig| Rope::new(config.head_dim, &config.ropes[0]);
    let positions = [0, 1, 31, 32, 5000].map(|position| (position, RopeTable::Short));
    let angles = |config: &ModelConfig| rope(config).angles(positions.into_iter(), &Device::Cpu).unwrap();
    let expected = angles(&ModelConfig::read(&folder("llama3_rope")).unwrap());
    let found = angles(&Checkpoint::open(&file).unwrap().config().unwrap());
    // Position 5000 makes of the last bit of a frequency 5000 times as much.
    assert!(max_difference(&floats(&found.cos), &floats(&expected.cos)) <= 1e-3);
    assert!(max_difference(&floats(&found.sin), &floats(&expected.sin)) <= 1e-3);
    let mut unscaled = ModelConfig::read(&folder("llama3_rope")).unwrap();
    unscaled.ropes[0].scaling = RopeScaling::None;
    assert!(max_difference(&floats(&angles(&unscaled).cos), &floats(&expected.cos)) > 0.1);
}

/// Returns the keys of the demo model's tokenizer and template, with special tokens behind the others.
fn demo_keys(behind: &[&str]) -> Vec<(String, Value)> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let text = |name: &str| std::fs::read_to_string(demo.join(name)).unwrap();
    let config: Json = serde_json::from_str(&text("tokenizer_config.json")).unwrap();
    let mut keys = vec![
        ("tokenizer.ggml.model".to_owned(), Value::from("gpt2")),
        ("tokenizer.ggml.eos_token_id".to_owned(), 2_u32.into()),
    ];
    keys.extend(config["chat_template"].as_str().map(|text| ("tokenizer.chat_template".to_owned(), text.into())));
    let tokenizer: Json = serde_json::from_str(&text("tokenizer.json")).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); 2048];
    let mut kinds = vec![1_i32; 2048];
    for (token, id) in vocabulary {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    for token in tokenizer["added_tokens"].as_array().unwrap() {
        let id = token["id"].as_u64().unwrap() as usize;
        token["content"].as_str().unwrap().clone_into(&mut tokens[id]);
        kinds[id] = if token["special"] == true { 3 } else { 4 };
    }
    tokens.extend(behind.iter().map(|token| (*token).to_owned()));
    kinds.resize(tokens.len(), 3);
    let pair = |pair: &Json| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let merges: Vec<String> = tokenizer["model"]["merges"].as_array().unwrap().iter().map(pair).collect();
    keys.push(("tokenizer.ggml.pre".to_owned(), "smollm".into()));
    keys.push(("tokenizer.ggml.merges".to_owned(), merges.into()));
    keys.push(("tokenizer.ggml.token_type".to_owned(), kinds.into()));
    keys.push(("tokenizer.ggml.tokens".to_owned(), tokens.into()));
    keys
}

/// Writes the demo model to the file `target`, with special tokens that its embedding has no row for.
pub(crate) fn write_demo(behind: &[&str], target: &Path) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    write(&demo, "llama", Form::default(), demo_keys(behind), target);
}

#[test]
fn a_file_is_a_whole_model_with_tokenizer_template_and_ends() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let folder_of_files = tempfile::tempdir().unwrap();
    let file = folder_of_files.path().join("demo.gguf");
    write_demo(&[], &file);

    let load = |path: &Path| {
        let entry = ModelEntry { dtype: Some(Dtype::F32), ..ModelEntry::new("demo", path) };
        BaseModel::load_on(&entry, &crate::kernels()).unwrap()
    };
    let (original, found) = (load(&demo), load(&file));
    // A folder that holds the file alone is the same.
    assert_eq!(load(folder_of_files.path()).config.num_hidden_layers, original.config.num_hidden_layers);
    assert_eq!(found.end_tokens[0], original.end_tokens[0]);
    assert_eq!(found.chat_template.is_some(), original.chat_template.is_some());
    assert!(found.vocabulary.is_some() && found.created > 0);
    let prompt = original.tokenizer.encode("Where is the river town?", true).unwrap();
    assert_eq!(found.tokenizer.encode("Where is the river town?", true).unwrap(), prompt);
    let difference = max_difference(&logits(&found.decoder, &prompt), &logits(&original.decoder, &prompt));
    assert!(difference <= TOLERANCE, "logits differ by {difference:e}");
}
