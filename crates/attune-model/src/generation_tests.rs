//! What models' folders and entries say about answers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::sampling_settings::SamplingSettings;

/// Makes a folder with this `generation_config.json` and returns what is read for the entry after `change`.
fn read(file: &str, change: impl FnOnce(&mut ModelEntry)) -> std::result::Result<GenerationDefaults, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("generation_config.json"), file).unwrap();
    let mut entry = ModelEntry::new("m", folder.path());
    change(&mut entry);
    GenerationDefaults::read(&entry, 8192).map_err(|error| error.to_string())
}

fn of(file: &str) -> GenerationDefaults {
    read(file, |_| {}).unwrap()
}

#[test]
fn without_a_word_tokens_are_drawn_as_in_openais_api_and_answers_take_a_part_of_the_context() {
    let entry = ModelEntry::new("m", "/no/such/folder");
    let defaults = |context| GenerationDefaults::read(&entry, context).unwrap();
    let GenerationDefaults { temperature, top_p, top_k, min_p, .. } = defaults(8192);
    assert_eq!((temperature, top_p, top_k, min_p), (1.0, 1.0, 0, 0.0));
    let penalties = |of: GenerationDefaults| (of.presence_penalty, of.frequency_penalty, of.repetition_penalty);
    assert_eq!(penalties(defaults(8192)), (0.0, 0.0, 1.0));
    for (context, tokens) in [(512, 1024), (1024, 1024), (4096, 1024), (8192, 2048), (131_072, 32_768)] {
        assert_eq!((defaults(context).max_tokens, defaults(context).max_answer_tokens), (tokens, None));
    }
}

#[test]
fn the_file_gives_what_the_configuration_does_not_say() {
    let file = r#"{"temperature": 0.6, "top_p": 0.95, "top_k": 20.0, "min_p": 0.1, "repetition_penalty": 1,
        "max_new_tokens": 300, "eos_token_id": 2, "made_up": "x", "do_sample": true}"#;
    let found = of(file);
    assert_eq!((found.temperature, found.top_p, found.top_k, found.min_p), (0.6, 0.95, 20, 0.1));
    assert_eq!((found.max_tokens, found.max_answer_tokens), (300, None), "a suggestion limits no request");
    let all = ["temperature", "top_p", "min_p", "repetition_penalty", "top_k", "max_new_tokens"];
    assert_eq!((found.from_file.as_slice(), found.not_applied.as_slice()), (all.as_slice(), [].as_slice()));

    let said = SamplingSettings { temperature: Some(0.0), top_k: Some(-1), ..SamplingSettings::default() };
    let mixed = read(file, |entry| (entry.sampling, entry.max_answer_tokens) = (said, Some(400))).unwrap();
    assert_eq!((mixed.temperature, mixed.top_k, mixed.top_p), (0.0, 0, 0.95));
    assert_eq!((mixed.max_tokens, mixed.max_answer_tokens), (400, Some(400)));
    assert_eq!(mixed.from_file, ["top_p", "min_p", "repetition_penalty"]);

    let ignored = read(file, |entry| entry.generation_config = false).unwrap();
    assert_eq!((ignored.temperature, ignored.top_p, ignored.max_tokens), (1.0, 1.0, 2048));
    assert!(ignored.from_file.is_empty() && ignored.not_applied.is_empty());
}

#[test]
fn null_says_nothing() {
    let nulls = r#"{"temperature":null,"top_p":null,"top_k":null,"min_p":null,"repetition_penalty":null,
        "max_new_tokens":null,"num_beams":null,"do_sample":null,"max_length":null}"#;
    assert_eq!(of(nulls), of("{}"));
}

#[test]
fn values_that_cannot_be_meant_are_refused_by_name_with_what_to_do() {
    for (field, says) in [
        (r#""temperature": -1"#, "`temperature` is -1, and must be a number of at least 0"),
        (r#""temperature": "0.7""#, "`temperature` is \"0.7\", and must be a number"),
        (r#""temperature": NaN"#, "`temperature` is NaN, and must be a number"),
        (r#""temperature": Infinity"#, "`temperature` is Infinity,"),
        (r#""temperature": 1e300"#, "`temperature` is 1e300"),
        (r#""temperature": true"#, "`temperature` is true"),
        (r#""temperature": [0.7]"#, "`temperature` is [0.7]"),
        (r#""top_p": 1.5"#, "`top_p` is 1.5, and must be a number from 0 to 1"),
        (r#""top_k": -5"#, "`top_k` is -5, and must be a whole number"),
        (r#""top_k": 1.5"#, "`top_k` is 1.5, and must be a whole number"),
        (r#""min_p": 2"#, "`min_p` is 2, and must be a number from 0 to 1"),
        (r#""repetition_penalty": 0.0"#, "`repetition_penalty` is 0.0, and must be a number above 0"),
        (r#""max_new_tokens": 0"#, "`max_new_tokens` is 0, and must be a whole number of at least 1"),
        (r#""max_new_tokens": "many""#, "`max_new_tokens` is \"many\""),
    ] {
        let file = format!("{{{field}}}");
        let said = read(&file, |_| {}).unwrap_err().replace("1e+300", "1e300");
        assert!(said.contains(says) && said.contains("generation_config = false"), "{field}: {said}");
        assert!(read(&file, |entry| entry.generation_config = false).is_ok(), "{field}");
    }
    assert!(read("[]", |_| {}).unwrap_err().contains("holds no object"));
    assert!(read("{", |_| {}).unwrap_err().contains("generation_config.json: not JSON"));
}

#[test]
fn what_would_change_answers_and_is_not_done_is_named_and_harmless_values_are_not() {
    let file = r#"{"do_sample": false, "num_beams": 4, "typical_p": 0.9, "no_repeat_ngram_size": 3, "min_length": 10,
        "bad_words_ids": [[5]], "suppress_tokens": [1], "forced_bos_token_id": 0, "stop_strings": "x",
        "max_length": 100, "pad_token_id": 0, "use_cache": true}"#;
    let named = of(file).not_applied;
    for name in [
        "do_sample",
        "num_beams",
        "typical_p",
        "no_repeat_ngram_size",
        "min_length",
        "bad_words_ids",
        "suppress_tokens",
        "forced_bos_token_id",
        "stop_strings",
        "max_length",
    ] {
        assert!(named.contains(&name), "{name} of {named:?}");
    }
    assert_eq!(named.len(), 10);
    let harmless = r#"{"do_sample": true, "num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "min_length": 0,
        "bad_words_ids": [], "suppress_tokens": null, "token_healing": false, "stop_strings": "", "max_length": 8192,
        "length_penalty": 1.0, "_from_model_config": true, "transformers_version": "4.50.0"}"#;
    assert!(of(harmless).not_applied.is_empty());
    assert!(of(r#"{"max_length": 20, "max_new_tokens": 50}"#).not_applied.is_empty(), "the other one counts");
}
