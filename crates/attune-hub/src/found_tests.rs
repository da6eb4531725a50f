//! Caches as other programs leave them: whole, cut, killed half way, and damaged.

use std::os::unix::fs::symlink;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const BLOB: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A safetensors file of one tensor of four bytes.
fn weights() -> Vec<u8> {
    let header = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat()
}

/// A cache with the files of one commit of `a/b`, as links to blobs.
struct Made {
    cache: tempfile::TempDir,
}

impl Made {
    fn with(files: &[(&str, &[u8])]) -> Self {
        let made = Self { cache: tempfile::tempdir().expect("a folder") };
        std::fs::create_dir_all(made.folder().join("refs")).expect("made");
        std::fs::create_dir_all(made.folder().join("blobs")).expect("made");
        std::fs::write(made.folder().join("refs/main"), COMMIT).expect("written");
        for (index, (path, bytes)) in files.iter().enumerate() {
            let link = made.folder().join("snapshots").join(COMMIT).join(path);
            std::fs::create_dir_all(link.parent().expect("a parent")).expect("made");
            let blob = made.folder().join("blobs").join(index.to_string());
            std::fs::write(&blob, bytes).expect("written");
            symlink(&blob, link).expect("linked");
        }
        made
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join("models--a--b")
    }

    fn find(&self, name: &str) -> Option<Found> {
        find(self.cache.path(), &name.parse().expect("a name"))
    }
}

#[test]
fn a_folder_that_python_fetched_whole_is_found_by_branch_and_by_commit() {
    let weights = weights();
    let made = Made::with(&[("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", &weights)]);
    let found = made.find("a/b").expect("it is whole");
    assert_eq!((found.commit.as_str(), found.form, found.is_listed), (COMMIT, Form::Folder, false));
    assert_eq!(found.path, made.folder().join("snapshots").join(COMMIT));
    assert!(made.find(&format!("a/b@{COMMIT}")).is_some());
    assert!(made.find("a/b@v1").is_none() && made.find("a/c").is_none() && made.find("a/b:Q4_0").is_none());
}

#[test]
fn a_snapshot_that_exists_is_not_complete_for_that() {
    let whole = weights();
    let index = br#"{"weight_map":{"x":"one.safetensors","y":"two.safetensors"}}"#;
    let cut = &whole[..whole.len() - 1];
    for weights in [
        &[][..],
        &[("model.safetensors", cut)],
        &[("model.safetensors", b"<html>a login</html>".as_slice())],
        &[("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n".as_slice())],
        &[("model.safetensors", [0xff; 8].as_slice())],
        &[("model.safetensors.index.json", index.as_slice()), ("one.safetensors", &whole)],
    ] {
        let files = [&[("config.json", b"{}".as_slice()), ("tokenizer.json", b"{}")], weights].concat();
        assert!(Made::with(&files).find("a/b").is_none(), "{:?}", weights.first().map(|(name, _)| name));
    }
    let gone = Made::with(&[("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", &whole)]);
    std::fs::remove_file(gone.folder().join("blobs/2")).expect("removed");
    assert!(gone.find("a/b").is_none(), "a link to nothing");
}

#[test]
fn the_list_of_the_commits_files_tells_what_else_is_missing() {
    let weights = weights();
    let made = Made::with(&[("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", &weights)]);
    let entry = |size: usize| serde_json::json!({"size": size, "blob_id": BLOB});
    let mut files = serde_json::json!({
        "config.json": entry(2), "tokenizer.json": entry(2), "model.safetensors": entry(weights.len()),
        "README.md": entry(9),
    });
    let keep = |files: &Value| {
        let text = serde_json::json!({"format_version": 1, "files": files}).to_string();
        std::fs::create_dir_all(made.folder().join("trees")).expect("made");
        std::fs::write(made.folder().join(format!("trees/{COMMIT}.json")), text).expect("written");
    };
    keep(&files);
    assert!(made.find("a/b").is_some_and(|found| found.is_listed), "what Attune does not read may be missing");
    files["chat_template.jinja"] = entry(5);
    keep(&files);
    assert!(made.find("a/b").is_none(), "a template is missing");
    let listed = list(made.cache.path());
    assert_eq!(listed.len(), 1);
    let said = listed[0].found.as_ref().expect_err("not complete");
    assert!(said.contains("1 of 4 files are missing, such as chat_template.jinja"), "{said}");
    files.as_object_mut().expect("an object").remove("chat_template.jinja");
    files["model.safetensors"] = entry(weights.len() + 1);
    keep(&files);
    assert!(made.find("a/b").is_none(), "weights that are cut");
}

#[test]
fn gguf_files_are_listed_one_by_one_with_names_that_find_them() {
    let made = Made::with(&[
        ("x-Q4_0.gguf", b"GGUF...."),
        ("x-Q8_0-00001-of-00002.gguf", b"GGUF"),
        ("mmproj-x.gguf", b"GGUF"),
    ]);
    let models = list(made.cache.path());
    let shown: Vec<String> = models.iter().map(|model| model.name.to_string()).collect();
    assert_eq!(shown, ["a/b/x-Q4_0.gguf", "a/b/x-Q8_0-00001-of-00002.gguf"]);
    let found = made.find(&shown[0]).expect("whole");
    assert_eq!((found.form, found.bytes), (Form::Gguf, 8));
    assert!(found.path.ends_with("x-Q4_0.gguf"));
    assert!(models[1].found.is_err(), "its second part is missing");
    assert!(made.find("a/b:q4_0").is_some());
}
