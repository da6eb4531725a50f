//! Static models in both forms, each beside the numbers that its own program computes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use crate::decoder::RowPlace;
use candle_core::{DType, Device};
use safetensors::serialize_to_file;
use tempfile::TempDir;

use super::*;
use crate::BaseModel;
use crate::entry::ModelEntry;

/// A tokenizer of words, whose unknown ones become `[UNK]`, that was saved with truncation and tokens around a text.
fn tokenizer() -> Value {
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}}},
        "added_tokens": [
            {"id": 0, "content": "[UNK]", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
            {"id": 1, "content": "[CLS]", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "[CLS]": 1, "un": 2, "deux": 3}, "unk_token": "[UNK]"},
    })
}

/// A tensor for a file.
struct Stored(Dtype, Vec<usize>, Vec<u8>);

impl Stored {
    fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self(Dtype::F32, shape.to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

fn folder(files: &[(&str, Value)], weights: &str, tensors: &[(&str, Stored)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join(weights);
    std::fs::create_dir_all(&below).unwrap();
    for (name, value) in files {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    std::fs::write(below.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, Stored(dtype, shape, bytes))| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    serialize_to_file(views, None, &below.join("model.safetensors")).unwrap();
    folder
}

fn load(folder: &TempDir) -> Result<BaseModel> {
    BaseModel::load(&ModelEntry::new("static", folder.path()), &Device::Cpu)
}

/// Returns the rows of the model's tokens.
fn rows(model: &BaseModel) -> Vec<Vec<f32>> {
    model
        .decoder
        .embed(&[0, 1, 2, 3], &[RowPlace::default(); 4])
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap()
        .to_vec2()
        .unwrap()
}

const ROWS: [f32; 8] = [9.0, 9.0, 1.0, 1.0, 1.0, -2.0, 3.0, 0.5];

#[test]
fn model2vec_leaves_out_unknown_words_and_tokens_around_a_text() {
    let config = json!({"model_type": "model2vec", "normalize": true, "seq_length": 1_000_000, "apply_pca": 256});
    let model = load(&folder(&[("config.json", config)], "", &[("embeddings", Stored::f32(&[4, 2], &ROWS))])).unwrap();
    assert!(model.is_static() && model.vectors.is_normalized);
    assert_eq!((model.config.max_position_embeddings, model.vectors.max_tokens), (512, 512));
    assert_eq!(model.tokenizer.encode("un trois deux quatre deux", true).unwrap(), [2, 3, 3]);
    assert_eq!(model.tokenizer.encode("trois", true).unwrap(), [] as [u32; 0]);
    assert_eq!(rows(&model), [[9.0, 9.0], [1.0, 1.0], [1.0, -2.0], [3.0, 0.5]]);
}

#[test]
fn rows_of_clusters_are_mapped_and_weighed_by_token() {
    let mapping: Vec<u8> = [0_i64, 0, 1, 0].iter().flat_map(|row| row.to_le_bytes()).collect();
    let weights: Vec<u8> = [1.0_f64, 1.0, 0.5, 2.0].iter().flat_map(|weight| weight.to_le_bytes()).collect();
    let tensors = [
        ("embeddings", Stored(Dtype::I8, vec![2, 2], vec![4, 0xfe, 100, 0x80])),
        ("mapping", Stored(Dtype::I64, vec![4], mapping)),
        ("weights", Stored(Dtype::F64, vec![4], weights)),
    ];
    let config = json!({"model_type": "model2vec", "max_length": null});
    let model = load(&folder(&[("config.json", config)], "", &tensors)).unwrap();
    assert_eq!(rows(&model), [[4.0, -2.0], [4.0, -2.0], [50.0, -64.0], [8.0, -4.0]]);
    assert!(!model.vectors.is_normalized && model.vectors.max_tokens == UNLIMITED);
}

#[test]
fn a_static_embedding_of_sentence_transformers_keeps_unknown_words_and_its_tokenizers_limit() {
    let modules = json!([{"path": "0_StaticEmbedding", "type": "sentence_transformers.models.StaticEmbedding"},
        {"path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}]);
    let whole = json!({"prompts": {"query": "q"}});
    let files = [("modules.json", modules), ("config_sentence_transformers.json", whole)];
    let model =
        load(&folder(&files, "0_StaticEmbedding", &[("embedding.weight", Stored::f32(&[4, 2], &ROWS))])).unwrap();
    assert_eq!(model.tokenizer.encode("un trois", true).unwrap(), [2, 0]);
    assert!(model.vectors.is_normalized && model.vectors.max_tokens == 3 && model.vectors.prompts["query"] == "q");
}

#[test]
fn what_is_no_static_model_or_would_give_other_vectors_is_refused() {
    let model2vec = |more: Value| {
        let mut config = json!({"model_type": "model2vec"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        [("config.json", config)]
    };
    let plain = || ("embeddings", Stored::f32(&[4, 2], &ROWS));
    let rows =
        |count: i32| Stored(Dtype::I32, vec![4], [0, 0, 0, count].iter().flat_map(|row| row.to_le_bytes()).collect());
    for (config, tensors, says) in [
        (json!({"pooling": "max"}), vec![plain()], "the pooling \"max\""),
        (json!({}), vec![plain(), ("head", Stored::f32(&[1], &[1.0]))], "`head` is not known"),
        (json!({}), vec![("vectors", Stored::f32(&[4, 2], &ROWS))], "neither a tensor"),
        (json!({}), vec![("embeddings", Stored::f32(&[8], &ROWS))], "expected rows"),
        (json!({}), vec![plain(), ("weights", Stored::f32(&[3], &[1.0; 3]))], "there are 4 tokens"),
        (json!({}), vec![plain(), ("mapping", rows(4))], "names the row 4"),
        (json!({}), vec![plain(), ("mapping", rows(-1))], "names the row"),
        (json!({}), vec![plain(), ("mapping", Stored::f32(&[4], &[0.0; 4]))], "expected whole numbers"),
        // The tokenizer has four tokens.
        (json!({}), vec![("embeddings", Stored::f32(&[3, 2], &ROWS[..6]))], "only 3 rows"),
    ] {
        let error = load(&folder(&model2vec(config), "", &tensors)).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}
