//! Each family of tokenizers against the original that was trained in its manner (`tests/parity/make_tokenizers.py`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use serde_json::{Value as Json, json};

use super::*;
use crate::gguf::metadata::Value;
use crate::gguf::{sampling, template};
use crate::vocabulary::Vocabulary;

/// Makes the keys of a file of JSON values.
pub(super) fn metadata(keys: &Json) -> Metadata {
    let values = keys.as_object().unwrap().iter().map(|(key, value)| (key.clone(), of_json(value)));
    Metadata::new("m.gguf", values)
}

fn of_json(value: &Json) -> Value {
    match value {
        Json::Bool(flag) => (*flag).into(),
        Json::String(text) => text.as_str().into(),
        Json::Number(number) if number.is_f64() => (number.as_f64().unwrap() as f32).into(),
        Json::Number(number) => (number.as_u64().unwrap() as u32).into(),
        Json::Array(items) if items[0].is_string() => {
            items.iter().map(|item| item.as_str().unwrap().to_owned()).collect::<Vec<_>>().into()
        }
        Json::Array(items) if items.iter().all(Json::is_u64) => {
            items.iter().map(|item| item.as_u64().unwrap() as i32).collect::<Vec<_>>().into()
        }
        Json::Array(items) => items.iter().map(|item| item.as_f64().unwrap() as f32).collect::<Vec<_>>().into(),
        _ => panic!("{value}"),
    }
}

pub(super) fn table() -> Json {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gguf_tokenizers.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

pub(super) fn texts(table: &Json) -> Vec<&str> {
    table["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

pub(super) fn ids(row: &Json) -> Vec<u32> {
    row.as_str().unwrap().split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// Every token has the number that it has in the file.
fn check_ids(metadata: &Metadata, tokenizer: &Tokenizer) {
    for (id, token) in super::tokens::Tokens::read(metadata).unwrap().iter() {
        assert_eq!(tokenizer.token(&token.text), Some(id), "{token:?}");
    }
}

#[test]
fn every_family_makes_the_tokens_and_texts_of_its_original() {
    let table = table();
    let texts = texts(&table);
    let mut wrong = Vec::new();
    let families = table["families"].as_array().unwrap();
    for family in families {
        let name = family["name"].as_str().unwrap();
        let tokenizer = read(&metadata(&family["keys"])).unwrap();
        for (index, text) in texts.iter().enumerate() {
            let expected = ids(&family["ids"][index]);
            let made = tokenizer.encode(text, false).unwrap();
            if made != expected {
                wrong.push(format!("{name}: {text:?}: {made:?}, not {expected:?}"));
            }
            let shown = family["decoded"][index.to_string()].as_str().unwrap_or(text);
            let decoded = tokenizer.decode(&expected, false).unwrap();
            if decoded != shown {
                wrong.push(format!("{name}: {text:?} is shown as {decoded:?}, not {shown:?}"));
            }
        }
        check_ids(&metadata(&family["keys"]), &tokenizer);
        let around: Vec<u32> = serde_json::from_value(family["around"].clone()).unwrap();
        assert_eq!(tokenizer.encode("a b", true).unwrap(), around, "{name}");
    }
    assert!(families.len() == 18 && texts.len() == 200);
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
}

#[test]
fn the_bytes_of_the_tokens_are_those_of_the_text() {
    let table = table();
    let texts = texts(&table);
    for family in table["families"].as_array().unwrap() {
        let name = family["name"].as_str().unwrap();
        let metadata = metadata(&family["keys"]);
        let tokenizer = read(&metadata).unwrap();
        let ends = end_tokens(&metadata).unwrap();
        let size = tokenizer.vocabulary_size() + 16;
        let vocabulary = Vocabulary::new(name, &tokenizer, size, &ends).unwrap();
        for (index, text) in texts.iter().enumerate() {
            let shown = family["decoded"][index.to_string()].as_str().unwrap_or(text);
            let ids = ids(&family["ids"][index]);
            let bytes: Vec<u8> = ids.iter().flat_map(|id| vocabulary.token_bytes(*id).to_vec()).collect();
            // The blank before a text of SentencePiece belongs to its first token, and to each behind a special one.
            let same = bytes == shown.as_bytes() || (name == "sentencepiece" && bytes[1..] == *shown.as_bytes());
            assert!(same || text.contains("日本語"), "{name}: {text:?}: {bytes:?}");
        }
    }
}

/// Keys of a small file, with `changes`.
fn small(changes: &Json) -> Metadata {
    let mut keys = json!({
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "Ġ", "<|end|>", "<|call|>", "</s>", "<think>", "[PAD8]"],
        "tokenizer.ggml.token_type": [1, 1, 1, 1, 3, 3, 3, 4, 5], "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 6, "tokenizer.ggml.bos_token_id": 5,
    });
    keys.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    metadata(&keys)
}

#[test]
fn what_is_not_told_exactly_is_refused_by_name() {
    let said = |changes: &Json| read(&small(changes)).unwrap_err().to_string();
    for (changes, part) in [
        (json!({"tokenizer.ggml.pre": "default"}), "does not say how texts are cut into words"),
        (json!({"tokenizer.ggml.pre": "kimi-k2"}), "`kimi-k2`"),
        (json!({"tokenizer.ggml.model": "t5"}), "of the kind `t5`"),
        (json!({"tokenizer.ggml.add_sep_token": true}), "add_sep_token"),
        (json!({"tokenizer.ggml.model": "llama"}), "`tokenizer.ggml.scores` is missing"),
        (json!({"tokenizer.ggml.merges": ["ab"]}), "`ab` of tokenizer.ggml.merges is no pair"),
        (json!({"tokenizer.ggml.merges": ["a c"]}), "`c`"),
        (json!({"tokenizer.ggml.token_type": [1, 1]}), "9 tokens, but kinds of 2"),
        (json!({"tokenizer.ggml.token_type": [1, 1, 1, 1, 3, 3, 3, 4, 9]}), "unknown kind 9"),
        (json!({"tokenizer.ggml.tokens": ["a", "b", "ab", "Ġ", "a", "c", "d", "e", "f"]}), "0 and 4 are both `a`"),
        (
            json!({"tokenizer.ggml.model": "llama", "tokenizer.ggml.remove_extra_whitespaces": true}),
            "blanks are not removed",
        ),
    ] {
        assert!(said(&changes).contains(part), "{changes}: {}", said(&changes));
    }
}

#[test]
fn a_whole_tokenizer_in_the_file_is_taken_as_it_is() {
    let whole = json!({"model": {"type": "WordLevel", "vocab": {"ab": 0, "</s>": 6}, "unk_token": "ab"}}).to_string();
    let metadata = small(&json!({"tokenizer.huggingface.json": whole, "tokenizer.ggml.pre": "default"}));
    assert_eq!(read(&metadata).unwrap().encode("ab", true).unwrap(), [0]);
}

#[test]
fn answers_end_with_the_tokens_that_the_file_names_and_with_well_known_marks() {
    let ends = |changes: Json| end_tokens(&small(&changes)).unwrap();
    assert_eq!(ends(json!({})), [6, 4, 5]);
    assert_eq!(ends(json!({"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eos_token_id": 5})), [5, 7, 4, 6]);
    // In gpt-oss `<|end|>` is the end of one of an answer's messages.
    let harmony = ["a", "b", "ab", "Ġ", "<|end|>", "<|call|>", "<|return|>", "<think>", "[PAD8]"];
    assert_eq!(ends(json!({"tokenizer.ggml.tokens": harmony})), [6, 5]);
    // A mark that is no special token ends answers like one, but not what may as well be a tag of HTML.
    assert_eq!(ends(json!({"tokenizer.ggml.token_type": [1, 1, 1, 1, 4, 4, 3, 4, 5]})), [6, 4, 5]);
    assert_eq!(
        ends(json!({"tokenizer.ggml.token_type": [1, 1, 1, 1, 3, 3, 4, 4, 5], "tokenizer.ggml.eos_token_id": 4})),
        [4, 5]
    );
    // A word of the text ends nothing.
    assert_eq!(ends(json!({"tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 3, 3, 4, 5]})), [6, 5]);
}

#[test]
fn special_tokens_are_hidden_and_fillers_have_no_text() {
    let tokenizer = read(&small(&json!({}))).unwrap();
    assert_eq!(tokenizer.end_token(), Some(6));
    assert_eq!(tokenizer.special_token("<|end|>"), Some(4));
    assert!(tokenizer.is_visible(7) && !tokenizer.is_visible(4) && !tokenizer.is_visible(8));
    assert_eq!(tokenizer.encode("ab<think>b", true).unwrap(), [2, 7, 1]);
    let around = small(&json!({"tokenizer.ggml.add_bos_token": true, "tokenizer.ggml.add_eos_token": true}));
    assert_eq!(read(&around).unwrap().encode("ab", true).unwrap(), [5, 2, 6]);
}

#[test]
fn a_half_of_a_merge_may_begin_with_a_blank() {
    let tokens = ["<unk>", " ", "x", " x", "▁"];
    let keys = json!({
        "tokenizer.ggml.model": "gemma4", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["  x"], "tokenizer.ggml.unknown_token_id": 0,
    });
    assert!(String::from_utf8(source(&metadata(&keys)).unwrap().json).unwrap().contains(r#"[" ","x"]"#));
}

#[test]
fn templates_are_read_with_their_names_and_the_texts_of_the_roles() {
    assert!(template::read(&small(&json!({}))).unwrap().is_none());
    let found = template::find(&small(&json!({
        "tokenizer.chat_template": "{{ bos_token }}", "tokenizer.chat_template.tool_use": "with tools",
        "tokenizer.chat_templates": ["tool_use"],
    })));
    let found: Vec<(String, String)> = found.unwrap().into_iter().collect();
    assert_eq!(found, [("default".into(), "{{ bos_token }}".into()), ("tool_use".into(), "with tools".into())]);
    let broken = template::read(&small(&json!({"tokenizer.chat_template": "{% if %}"}))).unwrap_err().to_string();
    assert!(broken.starts_with("m.gguf: chat template"), "{broken}");
    let template = template::read(&small(&json!({"tokenizer.chat_template": "{{ bos_token }}|{{ eos_token }}"})));
    let text =
        crate::chat::render(&template.unwrap().unwrap(), &[], &[], &crate::chat_template::TemplateOptions::default());
    assert_eq!(text.unwrap(), "<|call|>|</s>");
}

#[test]
fn suggested_settings_have_the_names_of_generation_config() {
    let settings = sampling::settings(&small(&json!({
        "general.sampling.temp": 0.5, "general.sampling.top_k": 20, "general.sampling.penalty_repeat": 1.5,
        "general.sampling.penalty_last_n": 64,
    })));
    let expected = json!({"temperature": 0.5, "top_k": 20.0, "repetition_penalty": 1.5, "penalty_last_n": true});
    assert_eq!(Json::Object(settings.unwrap()), expected);
}
