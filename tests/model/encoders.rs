//! Encoders, embedding decoders and cross-encoders against sentence-transformers and PEFT: the tokens of each text, its hidden
//! states, its vector, and the numbers of its labels. Part of several programs, as `decoder.rs`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fixtures::{Reference, folder, max_difference, one_sequence};
use attune::adapters::peft;
use attune::model::BaseModel;
use attune::model::decoder::{RowPlace, TextRows};
use attune::model::entry::ModelEntry;
use attune::model::linear::Dtype;
use attune::model::lora::Adapter;
use attune::model::merge::{self, Base};
use attune::train::backward::hidden_states;
use candle_core::{DType, Device, Tensor};

/// Folders of models that make vectors of hidden states.
pub(crate) const ENCODERS: [&str; 12] = [
    "bert",
    "bert_cls",
    "bert_tanh",
    "bert_relu",
    "xlm_roberta",
    "roberta",
    "mpnet",
    "modernbert",
    "modernbert_bias",
    "nomic_bert",
    "gemma3_embedding",
    // A decoder, whose vector is its last state.
    "qwen3_embedding",
];
/// Tables of vectors.
const TABLES: [&str; 4] = ["static", "static_half", "static_mapped", "static_embedding"];
/// Folders with another pooling, laid over the folder that their texts name.
const POOLINGS: [&str; 13] = [
    "pooling_cls",
    "pooling_cls_mean",
    "pooling_cls_without_prompt",
    "pooling_default_prompt",
    "pooling_dense",
    "pooling_lasttoken",
    "pooling_lower_case",
    "pooling_max",
    "pooling_mean_cls",
    "pooling_mean_sqrt_len",
    "pooling_weightedmean",
    "pooling_weightedmean_without_prompt",
    "pooling_without_prompt",
];
const SCORES: [&str; 8] = [
    "bert_score",
    "nomic_bert_score",
    "xlm_roberta_score",
    "mpnet_score",
    "modernbert_score",
    "bert_classes",
    "roberta_classes",
    "modernbert_classes",
];
/// sentence-transformers itself differs by 3e-7 between batches.
pub(crate) const TOLERANCE: f32 = 1e-5;

pub(crate) fn path(family: &str) -> String {
    format!("encoders/{family}")
}

pub(crate) fn json(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// Loads the folder over the kernels under test, in f32.
pub(crate) fn load(folder: &Path) -> BaseModel {
    load_as(folder, Dtype::F32)
}

/// Loads the same with its weights in `dtype`.
pub(crate) fn load_as(folder: &Path, dtype: Dtype) -> BaseModel {
    let entry = ModelEntry { dtype: Some(dtype), ..ModelEntry::new("m", folder) };
    BaseModel::load_on(&entry, &crate::kernels()).unwrap()
}

/// Copies a folder with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

/// Copies `overlay` over a copy of its base.
fn laid_over(overlay: &str) -> tempfile::TempDir {
    let target = tempfile::tempdir().unwrap();
    let own = folder(&path(overlay));
    let base = json(&own.join("texts.json"))["base"].as_str().unwrap().to_owned();
    copy(&folder(&path(&base)), target.path());
    copy(&own, target.path());
    target
}

/// A text of a fixture as the server would read it.
pub(crate) struct Text {
    pub(crate) ids: Vec<u32>,
    pub(crate) second: Option<usize>,
    /// Tokens of the prompt, where they are not pooled.
    pub(crate) unpooled: usize,
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Reads the texts of `folder`, and checks their tokens.
pub(crate) fn texts(folder: &Path, model: &BaseModel) -> Vec<Text> {
    let file = json(&folder.join("texts.json"));
    let form = &model.vectors;
    assert_eq!(form.max_tokens as u64, file["max_seq_length"].as_u64().unwrap(), "{}", folder.display());
    let text = |case: &Value| {
        let name = case["prompt_name"].as_str().or(form.default_prompt.as_deref());
        let prompt = name.map_or("", |name| form.prompts.get(name).map_or("", String::as_str));
        let text = format!("{prompt}{}", case["text"].as_str().unwrap());
        let expected = ids(&case["input_ids"]);
        let own = model.tokenizer.encode(&text, true).unwrap();
        if own.len() <= form.max_tokens {
            assert_eq!(own, expected, "{text:?} of {}", folder.display());
        }
        let counted = if form.pools_prompt || prompt.is_empty() { 0 } else { prompt_tokens(model, prompt) };
        Text { ids: expected, second: None, unpooled: counted }
    };
    file["cases"].as_array().unwrap().iter().map(text).collect()
}

/// Counts the tokens of a prompt, without those that the tokenizer puts behind it.
fn prompt_tokens(model: &BaseModel, prompt: &str) -> usize {
    let whole = model.tokenizer.encode(prompt, true).unwrap();
    whole.len() - model.tokenizer.tokens_behind().len()
}

/// Computes the hidden states of `texts` in f32, all together; of a decoder one by one.
pub(crate) fn hidden(model: &BaseModel, texts: &[Text], adapter: Option<&Adapter>) -> Vec<Tensor> {
    if !model.config.is_encoder {
        let of_text = |text: &Text| hidden_states(&model.decoder, adapter, &one_sequence(&text.ids)).unwrap();
        return texts.iter().map(|text| of_text(text).to_dtype(DType::F32).unwrap()).collect();
    }
    let tokens: Vec<u32> = texts.iter().flat_map(|text| text.ids.clone()).collect();
    let mut start = 0;
    let rows = texts.iter().map(|text| {
        let rows = start..start + text.ids.len();
        start = rows.end;
        TextRows { second: text.second.map(|second| rows.start + second), rows, adapter }
    });
    let rows: Vec<_> = rows.collect();
    let hidden = model.decoder.encode(&tokens, &rows).unwrap().to_dtype(DType::F32).unwrap();
    rows.iter().map(|text| hidden.narrow(0, text.rows.start, text.rows.len()).unwrap()).collect()
}

pub(crate) fn vector(model: &BaseModel, text: &Text, hidden: &Tensor) -> Vec<f32> {
    let mut pooler = model.vectors.pooler().without_prompt(text.unpooled);
    hidden.to_vec2::<f32>().unwrap().iter().for_each(|row| pooler.add(row));
    model.vectors.vector(pooler.finish()).unwrap()
}

/// Compares the vectors of a folder with those of its reference; returns the model and the hidden states.
fn compare(folder: &Path, reference: &Tensor, adapter: Option<&Adapter>) -> Vec<Tensor> {
    let model = load(folder);
    let texts = texts(folder, &model);
    let hidden = hidden(&model, &texts, adapter);
    let expected = reference.to_vec2::<f32>().unwrap();
    assert_eq!(texts.len(), expected.len());
    for (index, (text, expected)) in texts.iter().zip(&expected).enumerate() {
        let own = vector(&model, text, &hidden[index]);
        let difference = max_difference(&own, expected);
        let largest = expected.iter().fold(1.0_f32, |largest, value| largest.max(value.abs()));
        assert!(difference <= TOLERANCE * largest, "text {index} of {}: {difference}", folder.display());
    }
    hidden
}

pub(crate) fn reference(folder: &Path) -> Reference {
    Reference(candle_core::safetensors::load(folder.join("reference.safetensors"), &Device::Cpu).unwrap())
}

#[test]
fn vectors_and_hidden_states_equal_those_of_sentence_transformers() {
    for family in ENCODERS {
        let folder = folder(&path(family));
        let reference = reference(&folder);
        let hidden = compare(&folder, reference.tensor("vectors"), None);
        for case in [1, 8] {
            let expected = reference.floats(&format!("hidden.{case}"));
            let own: Vec<f32> = hidden[case].flatten_all().unwrap().to_vec1().unwrap();
            let difference = max_difference(&own, &expected);
            assert!(difference <= 3.0 * TOLERANCE, "{family}, case {case}: {difference}");
        }
    }
}

#[test]
fn tables_of_vectors_give_the_means_of_their_rows() {
    let (mut cut_by_characters, mut cut_by_tokens) = (0, 0);
    for family in TABLES {
        let folder = folder(&path(family));
        let model = load(&folder);
        let reference = reference(&folder);
        let name = if reference.0.contains_key("exact") { "exact" } else { "vectors" };
        let expected = reference.tensor(name).to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        let file = json(&folder.join("texts.json"));
        for (case, expected) in file["cases"].as_array().unwrap().iter().zip(expected) {
            let (text, ids) = (case["text"].as_str().unwrap(), ids(&case["input_ids"]));
            let read = model.tokenizer.encode_within(text, model.vectors.max_tokens).unwrap();
            assert_eq!(read.ids, ids, "{family}: {text:?}");
            // model2vec cuts texts by their characters first.
            let most = file["max_characters"].as_u64().filter(|most| text.chars().count() as u64 > *most);
            assert_eq!(read.characters.map(|[most, _]| most as u64), most, "{family}: {text:?}");
            cut_by_characters += usize::from(read.characters.is_some());
            cut_by_tokens += usize::from(read.length > model.vectors.max_tokens);
            let mut pooler = model.vectors.pooler();
            if !ids.is_empty() {
                let rows = model.decoder.embed(&ids, &vec![RowPlace::default(); ids.len()]).unwrap();
                rows.to_vec2::<f32>().unwrap().iter().for_each(|row| pooler.add(row));
            }
            let difference = max_difference(&model.vectors.vector(pooler.finish()).unwrap(), &expected);
            assert!(difference <= TOLERANCE, "{family}: {text:?} differs by {difference}");
        }
    }
    assert!(cut_by_characters > 0 && cut_by_tokens > 0, "{cut_by_characters} and {cut_by_tokens} texts are cut");
}

#[test]
fn every_pooling_equals_that_of_sentence_transformers() {
    for overlay in POOLINGS {
        let folder = laid_over(overlay);
        compare(folder.path(), reference(folder.path()).tensor("vectors"), None);
    }
}

#[test]
fn a_text_does_not_depend_on_those_beside_it() {
    for family in ["bert", "mpnet", "modernbert", "xlm_roberta"] {
        let folder = folder(&path(family));
        let model = load(&folder);
        let texts = texts(&folder, &model);
        let together = hidden(&model, &texts, None);
        for (text, beside) in texts.iter().zip(&together) {
            let single = std::slice::from_ref(text);
            let alone = vector(&model, text, &hidden(&model, single, None)[0]);
            let difference = max_difference(&alone, &vector(&model, text, beside));
            // A GPU has other products for few rows.
            let tolerance = if model.decoder.kernels().is_cpu() { 1e-6 } else { TOLERANCE };
            assert!(difference <= tolerance, "{family}: {difference}");
        }
    }
}

pub(crate) fn adapter_of(folder: &Path, model: &BaseModel) -> Adapter {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    peft::read(&config, &weights, &model.config, &Device::Cpu).unwrap()
}

#[test]
fn vectors_with_an_adapter_equal_those_of_peft() {
    let folders = [
        "bert/peft",
        "xlm_roberta/peft",
        "mpnet/peft",
        "modernbert/peft",
        // In the names of transformers, and in those of the checkpoint's own code.
        "nomic_bert/peft",
        "nomic_bert/peft_fused",
    ];
    for place in folders {
        let own: PathBuf = folder(&path(place));
        let base = own.parent().unwrap();
        let model = load(base);
        let adapter = model.decoder.served(&adapter_of(&own, &model)).unwrap();
        compare(base, reference(&own).tensor("vectors"), Some(&adapter));
        // What is written is read back, and by PEFT's names.
        let files = peft::write(&adapter_of(&own, &model), "base").unwrap();
        let read = peft::read(&files.config, &files.weights, &model.config, &Device::Cpu).unwrap();
        assert_eq!(read.names, adapter.names);
        let (names, written) = (tensor_names(&own), tensor_names_of(&files.weights));
        assert_eq!(names, written, "{place}");
    }
}

#[test]
fn an_adapter_with_a_layer_that_the_model_does_not_have_is_refused() {
    let (native, fused) = (folder(&path("nomic_bert/peft")), folder(&path("nomic_bert/peft_fused")));
    let model = load(native.parent().unwrap());
    let read = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let tensors = |folder: &Path| candle_core::safetensors::load_buffer(&read(folder), &Device::Cpu).unwrap();
    let refused = |tensors: &std::collections::HashMap<String, Tensor>| {
        let file = tempfile::NamedTempFile::new().unwrap();
        candle_core::safetensors::save(tensors, file.path()).unwrap();
        let config = std::fs::read(native.join("adapter_config.json")).unwrap();
        let read = peft::read(&config, &std::fs::read(file.path()).unwrap(), &model.config, &Device::Cpu);
        read.unwrap_err().to_string()
    };
    // One layer by the other program's name: neither set of names knows all.
    let mut mixed = tensors(&native);
    let foreign = "base_model.model.encoder.layers.0.attn.out_proj.lora_A.weight";
    mixed.insert(foreign.into(), tensors(&fused)[foreign].clone());
    let message = refused(&mixed);
    assert!(message.contains("no place for the tensor") && message.contains("layers.0."), "{message}");
    let mut unknown = tensors(&native);
    let pooler = unknown["base_model.model.layers.0.self_attn.o_proj.lora_A.weight"].clone();
    unknown.insert("base_model.model.pooler.dense.lora_A.weight".into(), pooler);
    assert!(refused(&unknown).contains("`base_model.model.pooler.dense.lora_A.weight`"));
}

#[test]
fn a_merged_encoder_is_its_base_with_the_adapter() {
    let merged = |place: &str| {
        let own = folder(&path(place));
        let base = own.parent().unwrap().to_owned();
        let target = tempfile::tempdir().unwrap();
        let output = target.path().join("merged");
        let adapter = adapter_of(&own, &load(&base));
        merge::write_folder(&Base::new(&base), &adapter, &output, None, usize::MAX).unwrap();
        let refused = merge::write_gguf(&Base::new(&base), &adapter, &target.path().join("merged.gguf"), None);
        assert!(refused.unwrap_err().to_string().contains("encoders are written in the base's form alone"));
        (target, base, reference(&own))
    };
    for place in ["bert/peft", "modernbert/peft", "nomic_bert/peft", "nomic_bert/peft_fused"] {
        let (target, base, reference) = merged(place);
        let output = target.path().join("merged");
        std::fs::copy(base.join("texts.json"), output.join("texts.json")).unwrap();
        compare(&output, reference.tensor("vectors"), None);
    }
    for place in ["bert_score/peft", "nomic_bert_score/peft"] {
        let (target, base, reference) = merged(place);
        let model = load(&target.path().join("merged"));
        let pairs = pairs(&base, &model);
        for (own, expected) in logits(&model, &pairs).iter().zip(reference.tensor("logits").to_vec2::<f32>().unwrap()) {
            assert!(max_difference(own, &expected) <= TOLERANCE, "{place}: {own:?} is not {expected:?}");
        }
    }
}

#[test]
fn both_spellings_of_a_configuration_say_the_same() {
    let folder = folder(&path("nomic_bert"));
    let read = |name: &str| attune::model::ModelConfig::read_file(&folder.join(name)).unwrap();
    assert_eq!(format!("{:?}", read("config.json")), format!("{:?}", read("config_native.json")));
}

fn tensor_names(folder: &Path) -> Vec<String> {
    tensor_names_of(&std::fs::read(folder.join("adapter_model.safetensors")).unwrap())
}

fn tensor_names_of(weights: &[u8]) -> Vec<String> {
    let tensors = candle_core::safetensors::load_buffer(weights, &Device::Cpu).unwrap();
    let mut names: Vec<String> = tensors.into_keys().collect();
    names.sort();
    names
}

/// Reads the pairs of a cross-encoder's folder, and checks their tokens.
fn pairs(folder: &Path, model: &BaseModel) -> Vec<Text> {
    let file = json(&folder.join("pairs.json"));
    let family = folder.display();
    assert_eq!(model.vectors.max_tokens as u64, file["max_length"].as_u64().unwrap(), "{family}");
    let pair = |case: &Value| {
        let [query, document] = ["query", "document"].map(|name| case[name].as_str().unwrap());
        let pair = model.tokenizer.encode_pair(query, document, model.vectors.max_tokens).unwrap();
        assert_eq!(pair.ids, ids(&case["input_ids"]), "{family}: {query}");
        if let Some(types) = case.get("token_type_ids") {
            let second = ids(types).iter().position(|kind| *kind == 1);
            assert_eq!(pair.second, second, "{family}: {query}");
        }
        Text { ids: pair.ids, second: pair.second, unpooled: 0 }
    };
    file["cases"].as_array().unwrap().iter().map(pair).collect()
}

/// Computes the numbers of the labels of each pair, all together.
fn logits(model: &BaseModel, pairs: &[Text]) -> Vec<Vec<f32>> {
    let classifier = model.classifier.as_ref().unwrap();
    let of_pair = |states: &Tensor| {
        let mut pooler = classifier.pooler();
        states.to_vec2::<f32>().unwrap().iter().for_each(|row| pooler.add(row));
        classifier.logits(pooler.finish()).unwrap()
    };
    hidden(model, pairs, None).iter().map(of_pair).collect()
}

#[test]
fn numbers_and_scores_of_labels_equal_those_of_cross_encoders() {
    for family in SCORES {
        let folder = folder(&path(family));
        let model = load(&folder);
        let pairs = pairs(&folder, &model);
        let reference = reference(&folder);
        let (expected, scores) = (reference.tensor("logits").to_vec2::<f32>().unwrap(), reference.tensor("scores"));
        for (index, own) in logits(&model, &pairs).iter().enumerate() {
            let difference = max_difference(own, &expected[index]);
            assert!(difference <= TOLERANCE, "{family}, pair {index}: {difference}");
            if let [logit] = own[..] {
                let (form, score) = (model.classifier.as_ref().unwrap().score, scores.to_vec1::<f32>().unwrap()[index]);
                assert!((form.of(logit) - score).abs() <= TOLERANCE, "{family}, pair {index}");
            }
        }
    }
}
