//! Merged models in another form than their base's: a folder as a GGUF file, a GGUF file as a folder, and quantized
//! weights as the numbers that they stand for.

use std::path::{Path, PathBuf};

use attune::model::ModelConfig;
use attune::model::checkpoint::Checkpoint;
use attune::model::decoder::Decoder;
use attune::model::entry::ModelEntry;
use attune::model::generation::GenerationDefaults;
use attune::model::gguf::Gguf;
use attune::model::linear::{Dtype, Storage};
use attune::model::lora::{Adapter, LoraLayer, LoraPair};
use attune::model::merge::{self, Base, WeightType};
use attune::model::tokenizer::Tokenizer;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use crate::export::{logits, open};
use crate::fixtures::{Reference, folder, load_as, max_difference};
use crate::kernels;

/// Fixtures whose configuration a GGUF file can say, some of them after [`said`] has changed it.
const SAYABLE: [&str; 25] = [
    "llama",
    "llama_bias_heads",
    "llama3_rope",
    "llama_linear_rope",
    "llama_yarn",
    "qwen3",
    "gemma",
    "granite",
    "olmo2",
    "olmo3",
    "phi3",
    "phi3_longrope",
    "qwen3_moe",
    "olmoe",
    "mistral",
    "mixtral",
    "qwen2",
    "smollm3",
    "gemma2",
    "gemma3",
    "ministral3",
    "gpt_oss",
    "lfm2",
    "granite_hybrid",
    "granite_hybrid_nope",
];
/// Largest difference of a logit from the adapter's on its base, as in folders: other sums in f32.
pub(crate) const TOLERANCE: f32 = 1e-4;

/// Returns an adapter on all layers, of numbers that follow from their places.
pub(crate) fn adapter_of(config: &ModelConfig) -> Adapter {
    const RANK: usize = 4;
    let numbers = |rows: usize, columns: usize, seed: usize| {
        let value = |index: usize| ((index * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5;
        let values: Vec<f32> = (0..rows * columns).map(value).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let layers = (0..config.num_hidden_layers).map(|block| {
        let mut layer = LoraLayer::default();
        for (number, module) in config.modules_of(block).enumerate() {
            let (output, input) = module.shape(config);
            let seed = block * 16 + number;
            let pair = LoraPair { a: numbers(RANK, input, seed), b: numbers(output, RANK, seed + 8), scale: 0.25 };
            layer.set_whole(module.rows(config), &pair).unwrap();
        }
        layer
    });
    Adapter::of_blocks("a".into(), layers.collect(), config.block_names())
}

/// Writes a tokenizer of letters, with a mark that ends answers, and what stands beside one.
fn add_texts(target: &Path) {
    let mut vocabulary: serde_json::Map<String, Value> =
        (33_u8..127).map(|byte| ((byte as char).to_string(), json!(byte - 33))).collect();
    vocabulary.insert("Ġ".into(), json!(94));
    vocabulary.insert("ab".into(), json!(95));
    let mark = |id: u32, text: &str| {
        json!({"id": id, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false})
    };
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [mark(96, "<|begin|>"), mark(97, "<|end|>"), mark(98, "<|stop|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [96], "tokens": ["<|begin|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]},
    });
    let settings = json!({"bos_token": "<|begin|>", "eos_token": "<|end|>"});
    let generation = json!({"eos_token_id": [97, 98], "temperature": 0.5, "top_k": 7, "do_sample": true});
    for (name, value) in
        [("tokenizer.json", tokenizer), ("tokenizer_config.json", settings), ("generation_config.json", generation)]
    {
        std::fs::write(target.join(name), value.to_string()).unwrap();
    }
    std::fs::write(target.join("chat_template.jinja"), "{{ messages[0]['content'] }}<|stop|>").unwrap();
}

/// Copies a fixture to `target`, with a tokenizer and a template, and without what files of its architecture cannot say.
pub(crate) fn said(family: &str, target: &Path) -> PathBuf {
    let target = with_texts(family, target);
    let file = target.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    match family {
        "mistral" | "mixtral" | "qwen2" => config["sliding_window"] = Value::Null,
        "gemma2" | "gemma3" => config["query_pre_attn_scalar"] = config["head_dim"].clone(),
        "ministral3" => config["rope_parameters"]["mscale"] = json!(1.0),
        "gpt_oss" => config["swiglu_limit"] = json!(7.0),
        "smollm3" => {
            config["no_rope_layers"] = Value::Null;
            config["no_rope_layer_interval"] = 4.into();
        }
        _ => {}
    }
    std::fs::write(&file, config.to_string()).unwrap();
    target
}

/// Copies a fixture to `target`, with a tokenizer and a template.
pub(crate) fn with_texts(family: &str, target: &Path) -> PathBuf {
    std::fs::create_dir_all(target).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(folder(family).join(name), target.join(name)).unwrap();
    }
    add_texts(target);
    target.to_path_buf()
}

pub(crate) fn decoder(path: &Path) -> Decoder {
    let checkpoint = Checkpoint::open(path).unwrap();
    let weights = checkpoint.weights(kernels().device()).unwrap();
    let decoder = Decoder::load_on(&checkpoint.config().unwrap(), &weights, &Storage::default(), &kernels()).unwrap();
    weights.check_all_read().unwrap();
    decoder
}

/// What stands beside the weights is the same at both paths.
fn assert_same_texts(one: &Path, other: &Path) {
    let read = |path: &Path| {
        let checkpoint = Checkpoint::open(path).unwrap();
        let tokenizer = Tokenizer::new(&checkpoint.tokenizer().unwrap()).unwrap();
        let ids: Vec<_> = ["abba ab", "", "<|end|>x", " a  b"].map(|text| tokenizer.encode(text, true).unwrap()).into();
        let mut ends = checkpoint.end_tokens(&tokenizer).unwrap();
        ends.sort_unstable();
        let entry: ModelEntry = format!("m={}", path.display()).parse().unwrap();
        let GenerationDefaults { temperature, top_k, .. } = checkpoint.generation(&entry, 256).unwrap();
        let template = format!("{:?}", checkpoint.chat_template().unwrap().is_some());
        (ids, ends, (temperature.to_bits(), top_k), template)
    };
    assert_eq!(read(one), read(other));
}

#[test]
fn a_folder_becomes_a_gguf_file_that_answers_as_its_base_with_the_adapter() {
    let files = tempfile::tempdir().unwrap();
    for family in SAYABLE {
        let base = said(family, &files.path().join(family));
        let (config, original) = (ModelConfig::read(&base).unwrap(), decoder(&base));
        let adapter = adapter_of(&config);
        let output = files.path().join(format!("{family}.gguf"));
        merge::write_gguf(&Base::new(&base), &adapter, &output, None)
            .unwrap_or_else(|error| panic!("{family}: {error}"));
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let expected = logits(&original, Some(&adapter), &tokens);
        let found = logits(&decoder(&output), None, &tokens);
        let difference = max_difference(&found, &expected);
        assert!(difference <= TOLERANCE, "{family}: logits differ by {difference:e}");
        assert!(max_difference(&logits(&original, None, &tokens), &expected) > 0.1, "{family}: it changes little");
        assert_same_texts(&base, &output);
        // The same weights in the base's form.
        let merged = files.path().join(format!("{family}-merged"));
        merge::write_folder(&Base::new(&base), &adapter, &merged, None, merge::FILE_BYTES).unwrap();
        let difference = max_difference(&found, &logits(&decoder(&merged), None, &tokens));
        assert!(difference <= 1e-5, "{family}: logits differ from the folder's by {difference:e}");
        let file = Gguf::open(&output).unwrap();
        assert_eq!(file.tensor("output.weight").is_none(), config.tie_word_embeddings, "{family}");
    }
}

#[test]
fn a_gguf_file_becomes_a_folder_with_the_bytes_of_the_original() {
    let files = tempfile::tempdir().unwrap();
    for family in SAYABLE {
        let original = said(family, &files.path().join(family));
        let config = ModelConfig::read(&original).unwrap();
        let adapter = adapter_of(&config);
        let nothing = Adapter::zero(&config).unwrap();
        let base = files.path().join(format!("{family}.gguf"));
        merge::write_gguf(&Base::new(&original), &nothing, &base, None).unwrap();
        let [found, expected] = [&base, &original].map(|base| {
            let output = files.path().join(format!("{family}-of-{}", base.extension().is_some()));
            merge::write_folder(&Base::new(base), &adapter, &output, None, merge::FILE_BYTES)
                .unwrap_or_else(|error| panic!("{family}: {error}"));
            output
        });
        let (tensors, wanted) = (open(&found), open(&expected));
        assert_eq!(tensors.tensors().len(), wanted.tensors().len(), "{family}");
        for (name, view) in wanted.tensors() {
            let tensor = tensors.get(&name).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (view.dtype(), view.shape()), "{family}: {name}");
            // Gemma's norms have 1 added in the file, in f32.
            if !(family.starts_with("gemma") && name.ends_with("norm.weight")) {
                assert!(tensor.data() == view.data(), "{family}: {name}");
            }
        }
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let [found_logits, expected_logits] = [&found, &expected].map(|path| logits(&decoder(path), None, &tokens));
        let difference = max_difference(&found_logits, &expected_logits);
        assert!(difference <= 1e-5, "{family}: logits differ by {difference:e}");
        assert_same_texts(&original, &found);
        let config: Value = serde_json::from_slice(&std::fs::read(found.join("config.json")).unwrap()).unwrap();
        let before: Value = serde_json::from_slice(&std::fs::read(original.join("config.json")).unwrap()).unwrap();
        for field in ["architectures", "model_type", "dtype", "tie_word_embeddings"] {
            // In files, Mistral is a Llama.
            if family == "mistral" && ["architectures", "model_type"].contains(&field) {
                continue;
            }
            assert_eq!(config[field], before[field], "{family}: {field}");
        }
    }
}

#[test]
fn what_a_gguf_file_cannot_say_of_a_model_is_refused_by_name() {
    let files = tempfile::tempdir().unwrap();
    let output = files.path().join("out.gguf");
    for (family, named) in [
        ("qwen2", "sliding_window"),
        ("mistral", "sliding_window"),
        ("mixtral", "sliding_window"),
        ("gemma2", "query_pre_attn_scalar"),
        ("gpt_oss", "the experts"),
        ("lfm2_bias", "the convolutions"),
    ] {
        let base = with_texts(family, &files.path().join(family));
        let adapter = adapter_of(&ModelConfig::read(&base).unwrap());
        let said = merge::write_gguf(&Base::new(&base), &adapter, &output, None).unwrap_err().to_string();
        assert!(said.contains(named), "{family}: {said}");
        assert!(!output.exists() && !files.path().join("out.gguf.part").exists());
    }
    let base = with_texts("llama", &files.path().join("llama"));
    let adapter = adapter_of(&ModelConfig::read(&base).unwrap());
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(base.join("tokenizer.json")).unwrap()).unwrap();
    tokenizer["added_tokens"][2]["rstrip"] = true.into();
    std::fs::write(base.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let said = merge::write_gguf(&Base::new(&base), &adapter, &output, None).unwrap_err().to_string();
    assert!(said.contains("tokenizer.json") && said.contains("`<|stop|>`"), "{said}");
}

#[test]
fn quantized_weights_are_merged_as_the_numbers_that_the_adapter_was_trained_on() {
    let files = tempfile::tempdir().unwrap();
    for model in ["model_gptq", "model_mlx", "model_fp8", "model_nf4"] {
        let family = format!("quantized/{model}");
        let base = with_texts(&family, &files.path().join(model));
        // In f32: products with the blocks themselves round activations.
        let in_f32 = Storage { dtype: Some(Dtype::F32), quantize: None };
        let (config, original) = load_as(&family, kernels().device(), &in_f32);
        let adapter = adapter_of(&config);
        let tokens = Reference::read(&family, "reference.safetensors").ids("input_ids");
        let expected = logits(&original, Some(&adapter), &tokens);
        let largest = expected.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        // By default in F16: 11 bits, through two blocks.
        for (kind, tolerance) in [(Some(WeightType::F32), TOLERANCE), (None, largest * 4e-3)] {
            for form in ["folder", "gguf"] {
                let output = files.path().join(format!("{model}-{kind:?}.{form}"));
                if form == "folder" {
                    merge::write_folder(&Base::new(&base), &adapter, &output, kind, merge::FILE_BYTES).unwrap();
                } else {
                    merge::write_gguf(&Base::new(&base), &adapter, &output, kind).unwrap();
                }
                let difference = max_difference(&logits(&decoder(&output), None, &tokens), &expected);
                assert!(difference <= tolerance, "{model} {kind:?} {form}: {difference:e} of {largest}");
            }
        }
        let merged = files.path().join(format!("{model}-None.folder"));
        let text = std::fs::read_to_string(merged.join("config.json")).unwrap();
        let fields: Value = serde_json::from_str(&text).unwrap();
        assert!(fields.get("quantization_config").is_none() && fields.get("quantization").is_none(), "{text}");
        assert_eq!(fields["dtype"], "float16");
        let (before, after) = (open(&base), open(&merged));
        for (name, view) in after.tensors() {
            let changed = name.contains("_proj.");
            match before.get(&name) {
                Ok(tensor) if !changed && tensor.dtype() == view.dtype() => {
                    assert_eq!(tensor.data(), view.data(), "{name}");
                }
                _ => assert!(changed || view.dtype() == safetensors::Dtype::F16, "{name}: {:?}", view.dtype()),
            }
        }
    }
}

#[test]
fn a_base_that_is_quantized_at_load_is_merged_as_it_was_served() {
    let files = tempfile::tempdir().unwrap();
    let base = with_texts("llama", &files.path().join("llama"));
    let storage = Storage { dtype: None, quantize: Some("q4_0".into()) };
    let (config, served) = load_as("llama", &Device::Cpu, &storage);
    let adapter = adapter_of(&config);
    let tokens = Reference::read("llama", "reference.safetensors").ids("input_ids");
    let expected = logits(&served, Some(&adapter), &tokens);
    let gguf = files.path().join("base.gguf");
    merge::write_gguf(&Base::new(&base), &Adapter::zero(&config).unwrap(), &gguf, None).unwrap();
    let merged = |path: &Path, quantize: Option<&str>, form: &str| {
        let output = files.path().join(format!("out-{form}-{}-{}", quantize.is_some(), path.is_dir()));
        let base = Base { path: path.to_path_buf(), quantize: quantize.map(str::to_owned) };
        let kind = quantize.map(|_| WeightType::F32);
        if form == "folder" {
            merge::write_folder(&base, &adapter, &output, kind, merge::FILE_BYTES).unwrap();
            return max_difference(&logits(&decoder(&output), None, &tokens), &expected);
        }
        let output = output.with_extension("gguf");
        merge::write_gguf(&base, &adapter, &output, kind).unwrap();
        max_difference(&logits(&decoder(&output), None, &tokens), &expected)
    };
    // Products with the blocks round activations to 8 bits; weights in 4 bits are much farther from those of the folder.
    let without = merged(&base, None, "folder");
    for path in [&base, &gguf] {
        for form in ["folder", "gguf"] {
            let difference = merged(path, Some("q4_0"), form);
            assert!(difference * 4.0 < without, "{form}: {difference:e}, and {without:e} of the original weights");
        }
    }
}
