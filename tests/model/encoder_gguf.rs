//! Encoders in GGUF files, as llama.cpp's converter writes them (`tests/parity/make_encoder_gguf.py`), beside the folders
//! that they were made of: the same tokens and the same vectors.

use std::path::PathBuf;

use attune::model::BaseModel;
use attune::model::entry::ModelEntry;
use attune::model::gguf::writer::{self, TensorToWrite};
use attune::model::gguf::{Gguf, Metadata, Value};
use attune::model::merge::{self, Base};
use attune::model::vectors::Pooling;
use candle_core::Device;
use tempfile::TempDir;

use crate::encoders::{TOLERANCE, Text, adapter_of, copy, hidden, json, load, path, reference, texts, vector};
use crate::fixtures::{folder, max_difference};

/// Files that hold their folder's numbers, and what is taken of the hidden states.
const FILES: [(&str, Pooling); 7] = [
    ("bert", Pooling::Mean),
    ("roberta", Pooling::Mean),
    ("xlm_roberta", Pooling::Mean),
    ("nomic_bert", Pooling::Mean),
    ("modernbert", Pooling::First),
    ("gemma3_embedding", Pooling::Mean),
    // A decoder that says how it makes vectors.
    ("qwen3_embedding", Pooling::Last),
];

fn file(name: &str) -> PathBuf {
    folder(&path("gguf")).join(format!("{name}.gguf"))
}

/// Loads the folder of a file, as far as a file can say what it says: vectors have the length 1, and Gemma scales
/// attention by the width of a head.
fn original(name: &str) -> BaseModel {
    let target = tempfile::tempdir().unwrap();
    copy(&folder(&path(name)), target.path());
    let config = target.path().join("config.json");
    let mut fields = json(&config);
    if fields["query_pre_attn_scalar"].is_number() {
        fields["query_pre_attn_scalar"] = fields["head_dim"].clone();
    }
    std::fs::write(&config, fields.to_string()).unwrap();
    let mut model = load(target.path());
    model.vectors.is_normalized = true;
    model
}

/// Returns the texts of a fixture as a model reads them, cut to the limit of another.
fn read(name: &str, model: &BaseModel, limit: usize) -> Vec<Text> {
    let file = json(&folder(&path(name)).join("texts.json"));
    let text = |case: &serde_json::Value| {
        let ids = model.tokenizer.encode_within(case["text"].as_str().unwrap(), limit).unwrap().ids;
        Text { ids, second: None, unpooled: 0 }
    };
    file["cases"].as_array().unwrap().iter().map(text).collect()
}

fn vectors(model: &BaseModel, texts: &[Text]) -> Vec<Vec<f32>> {
    let states = hidden(model, texts, None);
    texts.iter().zip(&states).map(|(text, states)| vector(model, text, states)).collect()
}

#[test]
fn a_file_gives_the_tokens_and_the_vectors_of_its_folder() {
    for (name, pooling) in FILES {
        let (original, model) = (original(name), load(&file(name)));
        assert_eq!(model.vectors.poolings, [pooling], "{name}");
        assert_eq!(model.vectors.width(), original.vectors.width(), "{name}");
        assert_eq!(model.config.is_encoder, original.config.is_encoder, "{name}");
        let limit = original.vectors.max_tokens;
        assert!(model.vectors.max_tokens >= limit, "{name}");
        let (wanted, own) = (read(name, &original, limit), read(name, &model, limit));
        for (index, (wanted, own)) in wanted.iter().zip(&own).enumerate() {
            assert_eq!(own.ids, wanted.ids, "text {index} of {name}");
        }
        let (wanted, own) = (vectors(&original, &wanted), vectors(&model, &own));
        for (index, (wanted, own)) in wanted.iter().zip(&own).enumerate() {
            let difference = max_difference(own, wanted);
            assert!(difference <= TOLERANCE, "text {index} of {name}: {difference}");
        }
    }
}

#[test]
fn a_quantized_file_is_near_its_folder() {
    let (original, model) = (original("nomic_bert"), load(&file("nomic_bert_q8_0")));
    let texts = read("nomic_bert", &original, original.vectors.max_tokens);
    let (wanted, own) = (vectors(&original, &texts), vectors(&model, &texts));
    let differences = wanted.iter().zip(&own).map(|(wanted, own)| max_difference(own, wanted));
    let worst = differences.fold(0.0, f32::max);
    assert!((1e-5..3e-2).contains(&worst), "{worst}");
}

#[test]
fn adapters_of_the_folder_fit_the_file_and_are_merged_into_it() {
    for place in ["bert/peft", "nomic_bert/peft", "nomic_bert/peft_fused", "modernbert/peft"] {
        let own = folder(&path(place));
        let name = place.split('/').next().unwrap();
        let base = load(&file(name));
        let expected = reference(&own).tensor("vectors").to_vec2::<f32>().unwrap();
        let texts = texts(own.parent().unwrap(), &load(own.parent().unwrap()));
        let adapter = adapter_of(&own, &base);
        let served = base.decoder.served(&adapter).unwrap();
        let target = tempfile::tempdir().unwrap();
        let output = target.path().join("merged.gguf");
        merge::write_gguf(&Base::new(file(name)), &adapter, &output, None).unwrap();
        let merged = load(&output);
        let with_adapter = hidden(&base, &texts, Some(&served));
        let of_merged = hidden(&merged, &texts, None);
        for (index, expected) in expected.iter().enumerate() {
            let mut expected = expected.clone();
            attune::model::vectors::normalize(&mut expected);
            for (model, states) in [(&base, &with_adapter), (&merged, &of_merged)] {
                let difference = max_difference(&vector(model, &texts[index], &states[index]), &expected);
                assert!(difference <= TOLERANCE, "text {index} of {place}: {difference}");
            }
        }
    }
}

/// Writes a file again with other keys, `None` for none, and further tensors, the copies of others.
fn changed(name: &str, keys: &[(&str, Option<Value>)], copies: &[(&str, &str)]) -> (TempDir, PathBuf) {
    let target = tempfile::tempdir().unwrap();
    let output = target.path().join(format!("{name}.gguf"));
    let original = Gguf::open(&file(name)).unwrap();
    let kept = original.metadata().iter().filter(|(key, _)| keys.iter().all(|(other, _)| other != key));
    let kept = kept.map(|(key, value)| (key.to_owned(), value.clone()));
    let others = keys.iter().filter_map(|(key, value)| Some(((*key).to_owned(), value.clone()?)));
    let metadata = Metadata::new("changed", kept.chain(others));
    let own = original.tensors().map(|(name, tensor)| (name.to_owned(), tensor.clone()));
    let copies = copies.iter().map(|(from, to)| ((*to).to_owned(), original.tensor(from).unwrap().clone()));
    let all: Vec<_> = own.chain(copies).collect();
    let listed: Vec<_> = all
        .iter()
        .map(|(name, tensor)| TensorToWrite { name: name.clone(), shape: tensor.shape.clone(), kind: tensor.kind })
        .collect();
    let mut written = std::fs::File::create(&output).unwrap();
    let bytes = |wanted: &TensorToWrite| Ok(all.iter().find(|(name, _)| *name == wanted.name).unwrap().1.bytes.clone());
    writer::write(&mut written, &metadata, &listed, bytes).unwrap();
    (target, output)
}

#[test]
fn what_a_file_says_and_is_not_done_is_refused_by_name() {
    let text = |text: &str| Some(Value::from(text));
    let number = |number: u32| Some(Value::from(number));
    let flag = |flag: bool| Some(Value::from(flag));
    for (name, keys, copies, says) in [
        ("bert", vec![("general.architecture", text("jina-bert-v2"))], vec![], "`jina-bert-v2` is not supported"),
        ("bert", vec![("bert.pooling_type", number(0))], vec![], "a vector for each token"),
        ("bert", vec![("bert.pooling_type", number(4))], vec![], "this is a reranker"),
        ("bert", vec![("bert.attention.causal", None)], vec![], "`bert.attention.causal` must be false"),
        ("bert", vec![("bert.attention.max_alibi_bias", number(8))], vec![], "max_alibi_bias"),
        ("bert", vec![], vec![("token_types.weight", "cls.weight")], "the tensor `cls.weight`"),
        ("bert", vec![("tokenizer.ggml.add_sep_token", flag(false))], vec![], "tokenizer.ggml.add_sep_token"),
        ("bert", vec![("bert.context_length", number(4096))], vec![], "bert.context_length"),
        ("modernbert", vec![("modern-bert.hidden_activation", text("tanh"))], vec![], "hidden_activation `tanh`"),
        ("xlm_roberta", vec![("tokenizer.ggml.remove_extra_whitespaces", None)], vec![], "remove_extra_whitespaces"),
    ] {
        let (_target, file) = changed(name, &keys, &copies);
        let error = BaseModel::load(&ModelEntry::new("m", &file), &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn letters_of_a_vocabulary_tell_whether_texts_are_made_small() {
    let model = load(&file("bert"));
    let of = |model: &BaseModel, text: &str| model.tokenizer.encode(text, true).unwrap();
    assert_eq!(of(&model, "The CAFÉ"), of(&model, "the cafe"));
    // A key says otherwise.
    let keys = [("tokenizer.ggml.normalizer.lowercase", Some(Value::from(false)))];
    let (_target, told) = changed("bert", &keys, &[]);
    let cased = load(&told);
    assert_ne!(of(&cased, "The CAFÉ"), of(&cased, "the cafe"));
    assert_eq!(of(&cased, "the cat"), of(&model, "the cat"));
    // A vocabulary with capitals has them in texts.
    let tokens =
        Gguf::open(&file("bert")).unwrap().metadata().texts("tokenizer.ggml.tokens").unwrap().unwrap().to_vec();
    let capital: Vec<String> =
        tokens.iter().map(|token| if token == "\u{2581}the" { "\u{2581}The".into() } else { token.clone() }).collect();
    assert_ne!(capital, tokens);
    let (_target, told) = changed("bert", &[("tokenizer.ggml.tokens", Some(Value::from(capital)))], &[]);
    let cased = load(&told);
    assert_eq!(of(&cased, "The").len(), 3, "one piece between the marks");
    assert!(of(&cased, "the").len() > 3);
    assert_eq!(of(&cased, "The"), of(&model, "the"));
}
