//! Checkpoints that are quantized already: every format's matrices have the values of its own program, whole models the
//! logits and gradients of transformers and PEFT, and files made to hurt are refused. `make_quantized.py` wrote them.

use std::collections::HashMap;
use std::path::Path;

use attune::model::blocks::BlockType;
use attune::model::decoder::{BaseAlone, Decoder};
use attune::model::entry::ModelEntry;
use attune::model::kernels::Kernels;
use attune::model::linear::{Dtype, Storage};
use attune::model::matrix::Matrix;
use attune::model::weights::Weights;
use attune::model::{BaseModel, ModelConfig};
use attune::train::backward::{hidden_states, loss_and_gradients};
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::fixtures::{
    Reference, add_tokenizer, device, floats, folder, load_on, max_difference, one_sequence, relative_difference,
    tensor_name,
};

const NAME: &str = "model.layers.0.mlp.up_proj.weight";
/// Largest absolute difference of a logit, in f32.
const LOGIT_TOLERANCE: f32 = 1e-4;
const MODELS: [&str; 5] = ["model_gptq", "model_mlx", "model_fp8", "model_nf4", "model_mxfp4"];
const TRAINED_MODELS: [&str; 3] = ["model_gptq", "model_mlx", "model_mxfp4"];

struct Case {
    name: String,
    /// True if the numbers stay whole.
    grouped: bool,
    /// Steps of f32 that a value may be off.
    steps: i64,
    config: Value,
    /// The file with the matrix.
    bytes: Vec<u8>,
    expected: Tensor,
}

fn cases() -> Vec<Case> {
    let folder = folder("quantized");
    let expected = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
    let text = std::fs::read_to_string(folder.join("cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let case = |case: Value| {
        let name = case["name"].as_str().unwrap().to_owned();
        Case {
            grouped: case["grouped"].as_bool().unwrap(),
            steps: case["steps"].as_i64().unwrap(),
            config: case["config"].clone(),
            bytes: std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap(),
            expected: expected[&name].clone(),
            name,
        }
    };
    cases.into_iter().map(case).collect()
}

/// Reads the matrix of a folder with this configuration and file.
fn read(folder: &Path, config: &Value, bytes: &[u8], shape: [usize; 2]) -> Result<Matrix, String> {
    // MLX says `quantization`, all others name their method.
    let key = if config["quant_method"].is_null() { "quantization" } else { "quantization_config" };
    std::fs::write(folder.join("config.json"), json!({ key: config }).to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    let weights = Weights::open(folder, &Device::Cpu).map_err(|error| error.to_string())?;
    weights.matrix(NAME, shape).map_err(|error| error.to_string())
}

fn dense(matrix: &Matrix) -> Vec<f32> {
    floats(&matrix.dense(&Device::Cpu).unwrap())
}

/// Returns a number's place among all numbers of f32: neighbours differ by 1.
fn place(number: f32) -> i64 {
    let bits = i64::from(number.to_bits() & 0x7fff_ffff);
    if number.is_sign_negative() { -bits } else { bits }
}

fn assert_values(what: &str, found: &[f32], expected: &[f32], steps: i64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (place(*found) - place(*expected)).abs();
        assert!(off <= steps, "{what}: the value at {index} is {found}, expected {expected}");
    }
}

/// Weights in f32: without a type the CPU multiplies by the checkpoint's whole numbers, and rounds activations for it.
const IN_FULL: Storage = Storage { dtype: Some(Dtype::F32), quantize: None };

#[test]
fn matrices_have_the_values_of_the_programs_that_write_their_format() {
    let folder = tempfile::tempdir().unwrap();
    for case in cases() {
        let shape = case.expected.dims2().unwrap().into();
        let matrix = read(folder.path(), &case.config, &case.bytes, shape).unwrap();
        assert_eq!(matches!(matrix, Matrix::Grouped(_)), case.grouped, "{}", case.name);
        assert_values(&case.name, &dense(&matrix), &floats(&case.expected), case.steps);
    }
}

#[test]
fn experts_in_mxfp4_have_the_values_of_transformers() {
    let fixtures = folder("quantized");
    let expected = candle_core::safetensors::load(fixtures.join("expected.safetensors"), &Device::Cpu).unwrap();
    let shape: [usize; 3] = expected["experts"].dims3().unwrap().into();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures.join("experts.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let config = json!({"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights = Weights::open(folder.path(), &Device::Cpu).unwrap();
    let name = "model.layers.0.mlp.experts.gate_up_proj";
    assert!(weights.has_mxfp4_experts(name) && !weights.has_mxfp4_experts("model.layers.0.mlp.experts.down_proj"));
    let rows = |first: usize, step: usize| (first..shape[1]).step_by(step).collect::<Vec<_>>();
    for expert in 0..shape[0] {
        let expected = floats(&expected["experts"].get(expert).unwrap());
        for rows in [rows(0, 1), rows(0, 2), rows(1, 2)] {
            let matrix = weights.mxfp4_expert(name, expert, shape, &rows).unwrap();
            // The file's 4 bits, not what they stand for.
            assert!(matches!(&matrix, Matrix::Blocks(blocks) if blocks.shape().0 == BlockType::Mxfp4));
            let expected: Vec<f32> =
                rows.iter().flat_map(|row| expected[row * shape[2]..][..shape[2]].to_vec()).collect();
            assert_values(&format!("expert {expert}"), &dense(&matrix), &expected, 0);
        }
    }
    for (expert, shape) in [(3, shape), (0, [3, 8, 32]), (0, [3, 8, 65]), (0, [3, 4, 64]), (0, [usize::MAX, 8, 64])] {
        assert!(weights.mxfp4_expert(name, expert, shape, &[0]).is_err(), "{shape:?}");
    }
    assert!(weights.mxfp4_expert(name, 0, shape, &[shape[1]]).is_err());
}

/// Copies a whole model with a change of its tensors.
fn changed(name: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> tempfile::TempDir {
    let (source, target) = (folder(&format!("quantized/{name}")), tempfile::tempdir().unwrap());
    let mut tensors = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, target.path().join("model.safetensors")).unwrap();
    std::fs::copy(source.join("config.json"), target.path().join("config.json")).unwrap();
    target
}

#[test]
fn stacks_of_experts_that_do_not_fit_are_refused_by_name() {
    let stack = "model.layers.1.mlp.experts";
    let said = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let folder = changed("model_mxfp4", |tensors| change(tensors));
        let config = ModelConfig::read(folder.path()).unwrap();
        let weights = Weights::open(folder.path(), &Device::Cpu).unwrap();
        Decoder::load_on(&config, &weights, &IN_FULL, &Kernels::Cpu).expect_err("refused").to_string()
    };
    for part in ["gate_up_proj_scales", "down_proj_blocks", "down_proj_scales", "gate_up_proj_bias", "down_proj_bias"] {
        let error = said(&|tensors| drop(tensors.remove(&format!("{stack}.{part}")).unwrap()));
        assert!(error.contains(&format!("{stack}.{part}` is missing")), "{error}");
    }
    // 255 stands for no number, and 253 makes numbers beyond f32.
    for scale in [253_u8, 255] {
        let error = said(&|tensors| {
            let scales = tensors.get_mut(&format!("{stack}.down_proj_scales")).unwrap();
            let (shape, mut values) = (scales.shape().clone(), scales.flatten_all().unwrap().to_vec1::<u8>().unwrap());
            *values.last_mut().unwrap() = scale;
            *scales = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        });
        assert!(error.contains(&format!("{stack}.down_proj`: expert 3 has the scale {scale}")), "{error}");
    }
    let error = said(&|tensors| {
        let blocks = tensors.get_mut(&format!("{stack}.gate_up_proj_blocks")).unwrap();
        *blocks = blocks.narrow(0, 0, 3).unwrap().contiguous().unwrap();
    });
    assert!(error.contains("blocks are U8 [3, 192, 2, 16], expected U8 [4, 192, 2, 16]"), "{error}");
}

#[test]
fn experts_in_mxfp4_keep_their_numbers_on_the_cpu() {
    let (config, exact) = load_on("quantized/model_mxfp4", &Kernels::Cpu, &IN_FULL);
    let (_, kept) = load_on("quantized/model_mxfp4", &Kernels::Cpu, &Storage::default());
    // In f32, values that fit bf16 take two bytes; rows of the tiny experts are filled up to 128 inputs.
    assert!(kept.weight_bytes() < exact.weight_bytes() * 2 / 3);
    let values = (0..11 * config.hidden_size).map(|i| ((i * 7919 + 13) as f32 * 0.618).sin() * 1.4).collect::<Vec<_>>();
    let x = Tensor::from_vec(values, (11, config.hidden_size), &Device::Cpu).unwrap();
    for (exact, kept) in exact.blocks.iter().zip(&kept.blocks) {
        let [exact, kept] =
            [exact, kept].map(|block| floats(&block.experts().unwrap().forward(&x, &BaseAlone).unwrap()));
        let difference = relative_difference(&kept, &exact);
        // Activations are rounded to 16 bits in two layers, and the weights not at all.
        assert!(difference > 1e-6 && difference < 1e-4, "{difference}");
    }
}

#[test]
fn whole_models_have_the_logits_of_transformers_on_the_dequantized_weights() {
    for name in MODELS {
        let name = format!("quantized/{name}");
        let (_, decoder) = load_on(&name, &crate::kernels(), &IN_FULL);
        let reference = Reference::read(&name, "reference.safetensors");
        let hidden = hidden_states(&decoder, None, &one_sequence(&reference.ids("input_ids"))).unwrap();
        let logits = decoder.logits(&hidden).unwrap();
        let difference = max_difference(&floats(&logits), &reference.floats("logits"));
        assert!(difference <= LOGIT_TOLERANCE, "{name}: logits differ by {difference:e}");
    }
}

#[test]
fn folders_of_quantized_models_load_with_their_tokenizer() {
    for name in MODELS {
        let target = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(folder(&format!("quantized/{name}")).join(file), target.path().join(file)).unwrap();
        }
        add_tokenizer(target.path());
        let entry = ModelEntry { dtype: Some(Dtype::F32), ..ModelEntry::new(name, target.path()) };
        let model = BaseModel::load_on(&entry, &crate::kernels()).unwrap();
        let reference = Reference::read(&format!("quantized/{name}"), "reference.safetensors");
        // What the model itself writes after the first words of the text.
        let (mut tokens, expected) = (reference.ids("input_ids")[..12].to_vec(), reference.ids("greedy"));
        for next in expected {
            let hidden = hidden_states(&model.decoder, None, &one_sequence(&tokens)).unwrap();
            let logits = model.decoder.logits(&hidden).unwrap();
            let last = floats(&logits.get(tokens.len() - 1).unwrap());
            let best = (0..last.len()).max_by(|one, other| last[*one].total_cmp(&last[*other])).unwrap();
            assert_eq!(best as u32, next, "{name} after {} tokens", tokens.len());
            tokens.push(next);
        }
    }
}

#[test]
fn an_adapter_on_a_quantized_model_has_the_logits_and_gradients_of_peft() {
    for name in TRAINED_MODELS {
        let name = format!("quantized/{name}");
        let (config, decoder) = load_on(&name, &crate::kernels(), &IN_FULL);
        let adapter = Reference::read(&name, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
        let reference = Reference::read(&name, "peft/reference.safetensors");
        let hidden = hidden_states(&decoder, Some(&adapter), &one_sequence(&reference.ids("input_ids"))).unwrap();
        let difference = max_difference(&floats(&decoder.logits(&hidden).unwrap()), &reference.floats("logits"));
        assert!(difference <= LOGIT_TOLERANCE, "{name}: logits differ by {difference:e}");
        let batch = reference.batch();
        let (report, gradients) = loss_and_gradients(&decoder, &adapter, &batch, batch.targets.len() as f64).unwrap();
        let (loss, expected) = (report.loss_sum / report.weight_sum, f64::from(reference.scalar("loss")));
        assert!((loss - expected).abs() / expected <= 1e-5, "{name}: loss {loss} instead of {expected}");
        for (index, layer) in gradients.iter().enumerate() {
            for module in config.modules {
                let (pair, path) = (layer.whole_gradient(module).unwrap().unwrap(), tensor_name(index, module));
                for (tensor, part) in [(&pair.a, "lora_A"), (&pair.b, "lora_B")] {
                    let expected = reference.floats(&format!("grad.{path}.{part}.weight"));
                    let difference = relative_difference(&floats(tensor), &expected);
                    assert!(difference <= 1e-4, "{name}: gradient of {path}.{part} differs by {difference:e}");
                }
            }
        }
    }
}

/// Returns the header of a file, its values, and where its data begin.
fn parts(bytes: &[u8]) -> (Value, &[u8]) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), &bytes[8 + length..])
}

fn file(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Gives the tensor at the end of the file another name or puts one beside it.
fn renamed(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let (mut header, data) = parts(bytes);
    let entry = header.as_object_mut().unwrap().remove(&format!("model.layers.0.mlp.up_proj.{from}")).unwrap();
    header[format!("model.layers.0.mlp.up_proj.{to}")] = entry;
    file(&header, data)
}

#[test]
fn what_configuration_and_tensors_disagree_on_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let cases: HashMap<String, Case> = cases().into_iter().map(|case| (case.name.clone(), case)).collect();
    let said = |name: &str, change: &dyn Fn(&mut Value), bytes: &dyn Fn(&[u8]) -> Vec<u8>| {
        let case = &cases[name];
        let mut config = case.config.clone();
        change(&mut config);
        let shape = case.expected.dims2().unwrap().into();
        read(folder.path(), &config, &bytes(&case.bytes), shape).unwrap_err()
    };
    let same = |bytes: &[u8]| bytes.to_vec();
    let plain = |key: &'static str, list: Value| move |config: &mut Value| config[key] = list.clone();
    for (name, change, says) in [
        ("gptq_4", plain("modules_to_not_convert", json!(["up_proj"])), "config.json says that it is not"),
        ("fp8_block", plain("ignored_layers", json!(["model.layers.0"])), "config.json says that it is not"),
        ("ct_int", plain("ignore", json!(["re:.*up_proj"])), "config.json says that it is not"),
        ("ct_int", plain("config_groups", json!({})), "belongs to no config group"),
        ("modelopt_fp8", plain("exclude_modules", json!(["*mlp*"])), "config.json says that it is not"),
        ("mlx_4", plain("model.layers.0.mlp.up_proj", json!(false)), "config.json says that it is not"),
        ("gptq_4", plain("dynamic", json!({r"-:.*up_proj": {}})), "`dynamic` in config.json says that it is not"),
        ("gptq_4", plain("bits", json!(8)), "qweight` has shape [8, 32], expected [16, 32]"),
        ("gptq_4", plain("group_size", json!(64)), "qzeros` has shape [2, 4], expected [1, 4]"),
        ("mlx_4", plain("bits", json!(8)), "weight` has shape [16, 16], expected [16, 32]"),
        ("fp8_block", plain("weight_block_size", json!([64, 128])), "weight_scale_inv` has shape [2, 2]"),
    ] {
        let error = said(name, &change, &same);
        assert!(error.contains(says) && error.contains("up_proj"), "{name}: {error}");
    }
    for (name, from, to, says) in [
        ("gptq_4", "g_idx", "pre_quant_scale", "pre_quant_scale` is not known"),
        ("modelopt_nvfp4", "input_scale", "pre_quant_scale", "pre_quant_scale` is not known"),
        ("gptq_4", "scales", "weight_scale", "weight_scale` is not known"),
        ("awq", "qzeros", "bias", "qzeros` is missing"),
        ("bnb_nf4", "weight.absmax", "bias", "weight.absmax` is missing"),
        ("ct_nvfp4", "weight_global_scale", "bias", "weight_global_scale` is missing"),
        ("ct_int_asymmetric", "weight_zero_point", "bias", "weight_zero_point` is missing"),
    ] {
        let error = said(name, &|_| (), &|bytes| renamed(bytes, from, to));
        assert!(error.contains(says), "{name}: {error}");
    }
    let symmetric = |config: &mut Value| config["config_groups"]["group_0"]["weights"]["symmetric"] = json!(true);
    let error = said("ct_packed_4_asymmetric", &symmetric, &same);
    assert!(error.contains("weight_zero_point` is there"), "{error}");
    let error = said("ct_int_asymmetric", &symmetric, &same);
    assert!(error.contains("weight_zero_point` is not zero"), "{error}");
    for name in ["gptq_4", "fp8_tensor", "ct_int", "bnb_nf4"] {
        let error = said(name, &|config| *config = json!({}), &same);
        assert!(error.contains("has no `quantization_config`"), "{error}");
    }
}

#[test]
fn plain_matrices_among_quantized_ones_are_read_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let values = Tensor::rand(-1_f32, 1.0, (32, 64), &Device::Cpu).unwrap();
    let path = folder.path().join("plain.safetensors");
    for case in cases() {
        candle_core::safetensors::save(&HashMap::from([(NAME, values.clone())]), &path).unwrap();
        let matrix = read(folder.path(), &case.config, &std::fs::read(&path).unwrap(), [32, 64]).unwrap();
        assert_eq!(dense(&matrix), floats(&values), "{}", case.name);
    }
    // A scale beside plain numbers would change them.
    let scaled = HashMap::from([(NAME, &values), ("model.layers.0.mlp.up_proj.weight_scale", &values)]);
    let scaled: HashMap<&str, Tensor> = scaled.into_iter().map(|(name, tensor)| (name, tensor.clone())).collect();
    candle_core::safetensors::save(&scaled, &path).unwrap();
    for config in [json!({}), json!({"quant_method": "fp8"})] {
        let error = read(folder.path(), &config, &std::fs::read(&path).unwrap(), [32, 64]).unwrap_err();
        assert!(error.contains("up_proj.weight"), "{error}");
    }
}

/// Changes a value of the JSON to another kind or size.
fn mutate(value: &mut Value, random: &mut ChaCha8Rng) {
    match value {
        Value::Object(fields) if !fields.is_empty() && random.random_bool(0.9) => {
            let index = random.random_range(0..fields.len());
            mutate(fields.values_mut().nth(index).unwrap(), random);
        }
        Value::Array(items) if !items.is_empty() && random.random_bool(0.7) => {
            let index = random.random_range(0..items.len());
            mutate(&mut items[index], random);
        }
        other => {
            let choices = [
                json!(null),
                json!(0),
                json!(1),
                json!(-1),
                json!(3),
                json!(u64::MAX),
                json!(1.5),
                json!(true),
                json!("F32"),
                json!("U8"),
                json!("re:("),
                json!([]),
                json!([1, u64::MAX]),
                json!({}),
            ];
            *other = choices[random.random_range(0..choices.len())].clone();
        }
    }
}

#[test]
fn files_made_to_hurt_are_refused_or_read_but_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let (mut refused, mut read_anyway) = (0, 0);
    for case in cases() {
        let shape: [usize; 2] = case.expected.dims2().unwrap().into();
        let (header, data) = parts(&case.bytes);
        for round in 0..24 {
            let mut config = case.config.clone();
            let mut bytes = case.bytes.clone();
            match round % 6 {
                0 => mutate(&mut config, &mut random),
                1 => {
                    let mut header = header.clone();
                    mutate(&mut header, &mut random);
                    bytes = file(&header, data);
                }
                2 => bytes.truncate(random.random_range(0..bytes.len())),
                3 => {
                    let place = random.random_range(0..bytes.len());
                    bytes[place] = random.random();
                }
                // All data the same: scales without end, groups that do not exist, settings that are no JSON.
                4 => {
                    let byte = [0xff, 0x00, 0x7f, 0x80][round / 6];
                    bytes[case.bytes.len() - data.len()..].fill(byte);
                }
                _ => {
                    let mut header = header.clone();
                    let tensors = header.as_object_mut().unwrap();
                    let names: Vec<String> = tensors.keys().cloned().collect();
                    tensors.remove(&names[random.random_range(0..names.len())]);
                    bytes = file(&header, data);
                }
            }
            let wanted = if round == 11 { [usize::MAX, shape[1]] } else { shape };
            match read(folder.path(), &config, &bytes, wanted) {
                Ok(matrix) => {
                    assert_eq!(dense(&matrix).len(), shape[0] * shape[1], "{}", case.name);
                    read_anyway += 1;
                }
                Err(error) => {
                    assert!(!error.is_empty());
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 400 && read_anyway > 50, "{refused} refused, {read_anyway} read");
}
