//! Every family of tokenizers survives the way into a file, and what a file cannot say is refused by name.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::json;

use super::super::tests::{ids, metadata, table, texts};
use super::*;

/// Returns the original of a family, with the rows that its embedding has.
fn original(family: &Json) -> (TokenizerSource, usize) {
    let source = super::super::source(&metadata(&family["keys"])).unwrap();
    (source, family["keys"]["tokenizer.ggml.tokens"].as_array().unwrap().len())
}

fn written(source: &TokenizerSource, rows: usize, ends: &[u32]) -> Result<Metadata> {
    Ok(Metadata::new("written", keys(source, Architecture::Llama, rows, ends)?))
}

#[test]
fn every_family_makes_the_same_tokens_after_it_was_written() {
    let table = table();
    let families = table["families"].as_array().unwrap();
    for family in families.iter().filter(|family| family["name"] != "gemma4") {
        let name = family["name"].as_str().unwrap();
        let (source, rows) = original(family);
        // More rows than tokens, as embeddings are padded.
        let file = written(&source, rows + 8, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let tokenizer = super::super::read(&file).unwrap();
        for (index, text) in texts(&table).iter().enumerate() {
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&family["ids"][index]), "{name}: {text:?}");
        }
        let around: Vec<u32> = serde_json::from_value(family["around"].clone()).unwrap();
        assert_eq!(tokenizer.encode("a b", true).unwrap(), around, "{name}");
        let again = super::super::source(&file).unwrap();
        for (role, text) in &source.special_tokens {
            assert_eq!(again.special_tokens.get(role), Some(text), "{name}: {role}");
        }
    }
}

#[test]
fn tokens_that_end_answers_are_kept_beside_the_usual_one() {
    let table = table();
    let family = &table["families"][0];
    let (source, rows) = original(family);
    let end = family["keys"]["tokenizer.ggml.eos_token_id"].as_u64().unwrap() as u32;
    let file = written(&source, rows, &[end, 40, 41]).unwrap();
    let read = end_tokens(&file).unwrap();
    assert!([end, 40, 41].iter().all(|id| read.contains(id)), "{read:?}");
    let said = written(&source, rows, &[end, 40, 41, 42]).unwrap_err().to_string();
    assert!(said.contains("no key for the token 42"), "{said}");
}

/// A change of a tokenizer, the rows of the embedding, and what the refusal names.
type Case<'a> = (&'a dyn Fn(&mut Json), usize, &'a str);

#[test]
fn what_a_file_cannot_say_is_refused_by_name() {
    let table = table();
    let (source, rows) = original(&table["families"][0]);
    let refused = |change: &dyn Fn(&mut Json), rows: usize| {
        let mut document: Json = serde_json::from_slice(&source.json).unwrap();
        change(&mut document);
        let source = TokenizerSource {
            json: document.to_string().into_bytes(),
            special_tokens: source.special_tokens.clone(),
            origin: "t/tokenizer.json".into(),
        };
        written(&source, rows, &[]).unwrap_err().to_string()
    };
    let cases: [Case<'_>; 8] = [
        (&|document| document["added_tokens"][0]["lstrip"] = true.into(), rows, "the added token"),
        (&|document| document["normalizer"] = json!({"type": "Lowercase"}), rows, "its normalizer"),
        (&|document| document["pre_tokenizer"] = json!({"type": "Whitespace"}), rows, "its pre_tokenizer"),
        (&|document| document["post_processor"] = json!({"type": "BertProcessing"}), rows, "its post_processor"),
        (&|document| document["model"]["type"] = "Unigram".into(), rows, "its model is"),
        (&|document| document["model"]["end_of_word_suffix"] = "</w>".into(), rows, "`end_of_word_suffix`"),
        (&|document| document["decoder"] = json!({"type": "Fuse"}), rows, "its decoder"),
        (&|_| (), 100, "the embedding has 100 rows"),
    ];
    for (change, rows, named) in cases {
        let said = refused(change, rows);
        assert!(said.contains(named) && said.starts_with("t/tokenizer.json: "), "{named}: {said}");
    }
}
