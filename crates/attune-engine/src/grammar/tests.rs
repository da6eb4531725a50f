//! Tests of a sampler with a grammar, on random logits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::*;
use crate::sampler::Sampler;
use crate::{Error, Sampling};
use attune_model::tokenizer::Tokenizer;

struct Demo {
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    size: usize,
    end: u32,
}

static DEMO: LazyLock<Demo> = LazyLock::new(|| {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"));
    let tokenizer = Tokenizer::read(folder).unwrap();
    let end = tokenizer.end_token().unwrap();
    // Wider than the tokenizer, as embeddings often are.
    let size = tokenizer.vocabulary_size() + 7;
    let vocabulary = Vocabulary::new("demo", &tokenizer, size, &[end]).unwrap();
    Demo { tokenizer, vocabulary, size, end }
});

fn compile(schema: Value) -> Result<Grammar, String> {
    let budget = CompileBudget::new(Duration::from_mins(1));
    Grammar::compile(&DEMO.vocabulary, "response_format", GrammarSource::json(schema), &budget)
}

/// Draws from random logits until the grammar is complete or the end token comes.
fn draw(grammar: &Grammar, seed: u64, sampling: Sampling) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut sampler = Sampler::new(sampling).with_grammar(Some(grammar.begin()));
    let mut ids = Vec::new();
    for _ in 0..3000 {
        let logits: Vec<f32> = (0..DEMO.size).map(|_| random.random_range(-4.0..4.0)).collect();
        let id = sampler.draw(&logits).unwrap();
        if id == DEMO.end {
            return DEMO.tokenizer.decode(&ids, true).unwrap();
        }
        ids.push(id);
        if sampler.is_complete() {
            return DEMO.tokenizer.decode(&ids, true).unwrap();
        }
    }
    panic!("no end after {:?}", DEMO.tokenizer.decode(&ids, true));
}

fn seeded(seed: u64) -> Sampling {
    Sampling { seed: Some(seed), ..Sampling::default() }
}

#[test]
fn random_logits_make_documents_that_follow_the_schema() {
    let grammar = compile(json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "kind": {"enum": ["a", "b", null]},
            "counts": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 20}, "maxItems": 3},
        },
        "required": ["name", "kind", "counts"],
        "additionalProperties": false,
    }))
    .unwrap();
    for seed in 0..20 {
        let text = draw(&grammar, seed, seeded(seed));
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let object = value.as_object().unwrap();
        assert_eq!(object.keys().collect::<Vec<_>>(), ["name", "kind", "counts"], "{text}");
        assert!(value["name"].as_str().unwrap().chars().count() <= 6, "{text}");
        assert!([json!("a"), json!("b"), Value::Null].contains(&value["kind"]), "{text}");
        let counts = value["counts"].as_array().unwrap();
        assert!(counts.len() <= 3 && counts.iter().all(|count| (1..=20).contains(&count.as_u64().unwrap())), "{text}");
        assert!(!text.contains("  ") && !text.contains(['\n', '\t']), "blanks run on: {text}");
    }
}

#[test]
fn the_answer_ends_where_the_grammar_does_and_not_before() {
    let grammar = compile(json!({"const": "yes"})).unwrap();
    // The end token's bias would force it; the mask comes after the bias.
    let sampling = Sampling { temperature: 0.0, logit_bias: [(DEMO.end, 100.0)].into(), ..Sampling::default() };
    assert_eq!(draw(&grammar, 1, sampling), "\"yes\"");
    let open = compile(json!({"type": "integer"})).unwrap();
    let sampling = Sampling { temperature: 0.0, logit_bias: [(DEMO.end, 100.0)].into(), ..Sampling::default() };
    let digits = draw(&open, 1, sampling);
    assert!(digits.parse::<i64>().is_ok(), "ends at the first place where it may: {digits}");
}

#[test]
fn the_name_of_a_special_token_is_text_in_a_document() {
    let name = DEMO.tokenizer.decode(&[DEMO.end], false).unwrap();
    let text = draw(&compile(json!({"const": format!("a{name}b")})).unwrap(), 1, seeded(1));
    assert_eq!(text, format!("\"a{name}b\""));
}

#[test]
fn broken_logits_are_found_before_the_mask_hides_them() {
    let grammar = compile(json!({"const": "yes"})).unwrap();
    let mut sampler = Sampler::new(seeded(1)).with_grammar(Some(grammar.begin()));
    let mut logits = vec![0.0; DEMO.size];
    logits[0] = f32::NAN;
    assert!(matches!(sampler.draw(&logits), Err(Error::Internal(_))));
}

#[test]
fn answers_to_one_request_do_not_share_their_state() {
    let grammar = compile(json!({"enum": ["ab", "cd"]})).unwrap();
    let alone: Vec<String> = (0..6).map(|seed| draw(&grammar, seed, seeded(seed))).collect();
    let again: Vec<String> = (0..6).rev().map(|seed| draw(&grammar, seed, seeded(seed))).collect();
    assert_eq!(alone, again.into_iter().rev().collect::<Vec<_>>());
    assert!(alone.contains(&"\"ab\"".into()) && alone.contains(&"\"cd\"".into()), "{alone:?}");
}

#[test]
fn schemas_that_cannot_be_met_are_refused_with_a_reason() {
    let chain: serde_json::Map<String, Value> = (0..1500)
        .map(|index| {
            (format!("d{index}"), json!({"allOf": [{"$ref": format!("#/$defs/d{}", index + 1)}], "minLength": 1}))
        })
        .collect();
    for (schema, word) in [
        (json!({"type": "magic"}), "magic"),
        (json!({"type": "string", "pattern": "("}), "("),
        (json!({"type": "string", "pattern": "(?=x)y"}), "look"),
        (json!({"$ref": "https://example.com/schema.json"}), ""),
        (json!({"$ref": "file:///etc/passwd"}), ""),
        (json!({"$ref": "#/$defs/absent"}), ""),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            "no document",
        ),
        (json!({"type": "object", "properties": {"a": false}, "required": ["a"]}), "nsatisfiable"),
        (json!({"not": {"type": "string"}}), "not"),
        (json!({"$defs": chain, "$ref": "#/$defs/d0"}), ""),
        (json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}], "minLength": 1}}, "$ref": "#/$defs/a"}), ""),
    ] {
        let shown = schema.to_string();
        let reason = compile(schema).err();
        let reason = reason.unwrap_or_else(|| panic!("{} was compiled", &shown[..shown.len().min(200)]));
        assert!(reason.contains(word) && reason.chars().count() <= REASON_CHARACTERS + 1, "{reason}");
        assert!(!reason.contains("backtrace") && !reason.contains('\n'), "{reason}");
    }
}

#[test]
fn recursion_and_large_choices_are_fine() {
    let tree = json!({"$defs": {"tree": {"type": "object", "properties": {"left": {"anyOf": [{"$ref": "#/$defs/tree"},
        {"type": "null"}]}}, "required": ["left"], "additionalProperties": false}}, "$ref": "#/$defs/tree"});
    let text = draw(&compile(tree).unwrap(), 3, seeded(3));
    assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
    let words: Vec<String> = (0..4000).map(|index| format!("word{index}")).collect();
    let text = draw(&compile(json!({"enum": words})).unwrap(), 3, seeded(3));
    assert!(words.contains(&serde_json::from_str(&text).unwrap()), "{text}");
}

#[test]
fn what_is_too_complex_to_follow_is_the_schemas_fault() {
    // So many keys are possible that the parser gives up at the first of them.
    let properties: serde_json::Map<String, Value> = (0..2500).map(|index| (format!("p{index}"), json!({}))).collect();
    let grammar = compile(json!({"type": "object", "properties": properties})).unwrap();
    let mut sampler = Sampler::new(seeded(1)).with_grammar(Some(grammar.begin()));
    let failed = (0..50).find_map(|_| sampler.draw(&vec![0.0; DEMO.size]).err());
    let Some(Error::Grammar { message, field }) = failed else { panic!("not the schema's fault: {failed:?}") };
    assert_eq!(
        (message.as_str(), field.as_str()),
        ("The schema is too complex to follow: make its patterns and alternatives smaller.", "response_format")
    );
}

mod limits;
mod schemas;
mod texts;
