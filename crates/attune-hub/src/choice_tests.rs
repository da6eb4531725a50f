//! Repositories as they are on the hub, and the files that are taken of each.

use super::*;

fn files(paths: &[&str]) -> Vec<RemoteFile> {
    paths.iter().map(|path| RemoteFile::local((*path).to_owned(), 1)).collect()
}

/// Returns the files that are taken, joined by blanks, or the refusal.
fn taken(paths: &[&str], pick: &Pick) -> String {
    let repository = Repository::parse("a/b").expect("a name");
    match Choice::of(&repository, &files(paths), pick) {
        Ok(choice) => choice.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(" "),
        Err(error) => error.to_string(),
    }
}

const FOLDER: [&str; 4] = ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"];

#[test]
fn of_a_folder_only_what_attune_reads_is_taken() {
    let others = [
        "README.md",
        "pytorch_model.bin",
        "model.onnx",
        "model-Q4_K_M.gguf",
        "original/consolidated.00.safetensors",
        "consolidated.safetensors",
        "modeling_x.py",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "additional_chat_templates/tool.jinja",
    ];
    let all = [&FOLDER[..], &others].concat();
    let wanted =
        "config.json model.safetensors tokenizer.json chat_template.jinja additional_chat_templates/tool.jinja";
    assert_eq!(taken(&all, &Pick::Usual), wanted);
}

#[test]
fn modules_of_sentence_transformers_are_taken_with_the_list_that_names_them() {
    let modules =
        ["sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"];
    let others =
        ["2_Dense/pytorch_model.bin", "onnx/config.json", "checkpoint/model.safetensors", "1_Pooling/a/config.json"];
    let without = [&FOLDER[..], &modules, &others].concat();
    assert_eq!(taken(&without, &Pick::Usual), FOLDER.join(" "));
    let with = [&FOLDER[..], &["modules.json"], &modules, &others].concat();
    assert_eq!(taken(&with, &Pick::Usual), [&FOLDER[..], &["modules.json"], &modules].concat().join(" "));
}

#[test]
fn the_parts_of_large_weights_are_those_that_the_index_names() {
    let all = files(&["config.json", INDEX, "tokenizer.json", "a.safetensors", "b.safetensors", "c.safetensors"]);
    let repository = Repository::parse("a/b").expect("a name");
    let mut choice = Choice::of(&repository, &all, &Pick::Usual).expect("a folder");
    assert!(choice.has_index());
    let index = r#"{"weight_map":{"x":"a.safetensors","y":"b.safetensors","z":"a.safetensors"}}"#;
    choice.add_parts(&repository, index, &all).expect("both are there");
    let names: Vec<&str> = choice.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names[3..], ["a.safetensors", "b.safetensors"]);
    for index in ["<html>", "{}", r#"{"weight_map":{"x":"d.safetensors"}}"#, r#"{"weight_map":{"x":"../c"}}"#] {
        assert!(choice.add_parts(&repository, index, &all).is_err(), "{index}");
    }
}

#[test]
fn of_gguf_files_the_tag_chooses_and_without_one_the_usual() {
    let repository = [
        "x-F16.gguf",
        "x-Q4_K_M.gguf",
        "x-Q4_K_S.gguf",
        "x.Q8_0.gguf",
        "mmproj-x-Q4_K_M.gguf",
        "x-imatrix.gguf",
        "mtp-x-Q8_0.gguf",
        "big/x-BF16-00001-of-00002.gguf",
        "big/x-BF16-00002-of-00002.gguf",
    ];
    let tag = |tag: &str| taken(&repository, &Pick::Tag(tag.into()));
    assert_eq!(taken(&repository, &Pick::Usual), "x-Q4_K_M.gguf");
    assert_eq!(tag("q4_k_s"), "x-Q4_K_S.gguf");
    assert_eq!(tag("Q8_0"), "x.Q8_0.gguf");
    assert_eq!(tag("BF16"), "big/x-BF16-00001-of-00002.gguf big/x-BF16-00002-of-00002.gguf");
    assert_eq!(tag("f16"), "x-F16.gguf", "BF16 ends so too");
    let of_folder = ["Q8_0/x-00001-of-00002.gguf", "Q8_0/x-00002-of-00002.gguf"];
    assert_eq!(taken(&of_folder, &Pick::Tag("q8_0".into())), of_folder.join(" "));
    let said = tag("Q4_K");
    assert!(said.contains("has no GGUF file with the tag `Q4_K`") && said.contains("x-Q4_K_M.gguf"), "{said}");
    assert_eq!(taken(&["x-Q8_0.gguf", "x-F16.gguf"], &Pick::Usual), "x-Q8_0.gguf");
    assert_eq!(taken(&["x-F16.gguf", "x-Q2_K.gguf"], &Pick::Usual), "x-F16.gguf");
    assert_eq!(taken(&["config.json", "x-Q2_K.gguf"], &Pick::Usual), "x-Q2_K.gguf", "no weights of the folder");
    assert_eq!(taken(&["x-Q2_K-00002-of-00002.gguf", "x-Q2_K-00001-of-00002.gguf"], &Pick::Usual).len(), 53);
    assert!(taken(&["x-00001-of-00002.gguf"], &Pick::Usual).contains("part x-00002-of-00002.gguf is missing"));
}

#[test]
fn a_file_is_taken_by_its_name_or_near_ones_are_told() {
    let pick = |file: &str| Pick::File(file.into());
    assert_eq!(taken(&["d/x-Q4_0.gguf", "y.gguf"], &pick("d/x-Q4_0.gguf")), "d/x-Q4_0.gguf");
    let said = taken(&["d/x-Q4_0.gguf", "y.gguf"], &pick("d/x-Q4.gguf"));
    assert!(said.contains("has no file `d/x-Q4.gguf`; there is d/x-Q4_0.gguf, y.gguf"), "{said}");
}

#[test]
fn what_attune_cannot_load_is_said_before_anything_is_downloaded() {
    assert!(taken(&["config.json", "pytorch_model.bin"], &Pick::Usual).contains("it has pytorch_model.bin, but"));
    assert!(taken(&["README.md"], &Pick::Usual).contains("it has no weights"));
    let old = ["config.json", "model.safetensors", "tokenizer.model"];
    assert!(taken(&old, &Pick::Usual).contains("tokenizer.model, but no tokenizer.json"));
    assert_eq!(taken(&["adapter_model.safetensors", "adapter_config.json"], &Pick::Usual).len(), 45);
}
