//! Paths that are no model's folder, each with what to do about it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

const CONFIG: &str = r#"{"model_type":"llama","hidden_size":64}"#;

/// Makes a folder of `files` and returns what is said of it, or of `inside` it.
fn said(files: &[(&str, &str)], inside: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    match check(&folder.path().join(inside)) {
        Ok(()) => "fine".into(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_folder_with_configuration_weights_and_tokenizer_is_taken() {
    let weights = ("model.safetensors", "x");
    assert_eq!(said(&[("config.json", CONFIG), weights, ("tokenizer.json", "{}")], "."), "fine");
}

#[test]
fn files_instead_of_a_folder_are_told_from_one_another() {
    for (name, text, says) in [
        ("model-Q4_1.gguf", "", "GGUF files do not load"),
        ("ollama-blob", "GGUF\u{3}\0", "GGUF files do not load"),
        ("model.safetensors", "", "give its folder"),
        ("config.json", CONFIG, "give its folder"),
        ("notes.txt", "", "this is a file"),
    ] {
        assert!(said(&[(name, text)], name).contains(says), "{name}");
    }
}

#[test]
fn names_on_a_hub_are_not_downloaded() {
    let error = check(Path::new("HuggingFaceTB/SmolLM2-135M-Instruct")).unwrap_err().to_string();
    assert!(error.contains("nothing is downloaded") && error.contains("hf download HuggingFaceTB/Smol"), "{error}");
    for path in ["gpt2", "/no/such/folder", "./a/b", "../a"] {
        let error = check(Path::new(path)).unwrap_err().to_string();
        assert!(error.contains("there is no such folder; give one with config.json"), "{error}");
    }
}

#[test]
fn a_folder_that_is_no_models_is_told_what_it_is() {
    for (files, says) in [
        (&[("adapter_config.json", "{}")][..], "PEFT adapter"),
        (&[("a.gguf", "")], "GGUF files such as a.gguf"),
        (&[("snapshots/abc/config.json", CONFIG)], "snapshots/abc"),
        (&[("smol/config.json", CONFIG)], "smol in it has"),
        (&[("readme.md", "")], "has no config.json"),
        (&[("config.json", r#"{"model_type":"bert"}"#)], "model_type `bert` is not supported (an encoder"),
        (&[("config.json", CONFIG)], "neither model.safetensors nor its index is there: the download"),
        (&[("config.json", CONFIG), ("pytorch_model.bin", "x")], "pytorch_model.bin is not read"),
        (&[("config.json", CONFIG), ("consolidated.safetensors", "x")], "Mistral's own names"),
        (&[("config.json", CONFIG), ("model.safetensors", "")], "is empty"),
        (
            &[("config.json", CONFIG), ("model.safetensors", "version https://git-lfs.github.com/spec/v1\n")],
            "git lfs pull",
        ),
        (
            &[("config.json", CONFIG), ("model.safetensors.index.json", r#"{"weight_map":{"a":"m-1.safetensors"}}"#)],
            "m-1.safetensors: No such file",
        ),
        (&[("config.json", CONFIG), ("model.safetensors", "x")], "has no tokenizer.json"),
        (&[("config.json", CONFIG), ("model.safetensors", "x"), ("tokenizer.model", "x")], "from tokenizer.model"),
    ] {
        let said = said(files, ".");
        assert!(said.contains(says), "{files:?}: {said}");
    }
}
