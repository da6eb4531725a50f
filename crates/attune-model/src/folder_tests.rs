//! Paths that are no model's folder, each with what to do about it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::checkpoint::Checkpoint;

const CONFIG: &str = r#"{"model_type":"llama","hidden_size":64}"#;

/// Makes a folder of `files` and returns what is said of it, or of `inside` it.
fn said(files: &[(&str, &str)], inside: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    match Checkpoint::open(&folder.path().join(inside)) {
        Ok(_) => "fine".into(),
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
        ("model-Q4_1.gguf", "", "the file is empty"),
        ("model-Q4_1.gguf", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("model-Q4_1.gguf", "<html>", "this is no GGUF file"),
        ("ollama-blob", "GGUF\u{3}\0", "the file ends at byte 6"),
        ("model.safetensors", "", "give its folder"),
        ("config.json", CONFIG, "give its folder"),
        ("notes.txt", "", "this is a file"),
    ] {
        assert!(said(&[(name, text)], name).contains(says), "{name}");
    }
}

#[test]
fn a_name_on_a_hub_is_told_how_to_be_written() {
    let error = find(Path::new("HuggingFaceTB/SmolLM2-135M-Instruct")).unwrap_err().to_string();
    assert!(
        error.contains("write hf:HuggingFaceTB/Smol") && error.contains("`attune pull HuggingFaceTB/Smol"),
        "{error}"
    );
    for path in ["gpt2", "/no/such/folder", "./a/b", "../a"] {
        let error = find(Path::new(path)).unwrap_err().to_string();
        assert!(error.contains("there is no such folder or file; give a folder with config.json"), "{error}");
    }
}

#[test]
fn a_folder_that_is_no_models_is_told_what_it_is() {
    for (files, says) in [
        (&[("adapter_config.json", "{}")][..], "PEFT adapter"),
        (&[("a.gguf", "")], "a.gguf: the file is empty"),
        (&[("a.gguf", ""), ("a-mmproj.gguf", "x")], "a.gguf: the file is empty"),
        (&[("a.gguf", ""), ("b.gguf", "")], "several GGUF models: give one, such as"),
        (&[("a-00001-of-00002.gguf", "x"), ("a-00002-of-00002.gguf", "x")], "a-00001-of-00002.gguf: this is no GGUF"),
        (&[("a-00002-of-00002.gguf", "")], "a-00002-of-00002.gguf: the file is empty"),
        (&[("snapshots/abc/config.json", CONFIG)], "snapshots/abc"),
        (&[("smol/config.json", CONFIG)], "smol in it has"),
        (&[("readme.md", "")], "has no config.json"),
        (&[("config.json", r#"{"model_type":"bart"}"#)], "model_type `bart` is not supported"),
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
