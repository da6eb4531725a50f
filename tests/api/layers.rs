//! Checks in the sources what each layer may use: HTTP and the fields of requests belong to `api`, the database to the
//! store and the queue (`docs/adr/0005-errors-by-layer.md`).

use std::path::{Path, PathBuf};

/// Folders and files below the repository's root whose Rust sources are checked.
const SOURCES: [&str; 2] = ["src", "crates"];

/// Texts that may stand in code only at these places.
const RULES: [(&[&str], &[&str]); 6] = [
    (&["axum"], &["src/api", "src/app.rs"]),
    // The clients of the hub, of teachers and of an account that moves read the statuses of other servers.
    (&["StatusCode"], &["src/api", "src/app.rs", "src/teachers", "src/cli/move_in", "crates/attune-hub"]),
    // What moves in is put into requests of this server.
    (&["\"file_id\""], &["src/api", "src/cli/move_in"]),
    (&["sqlx::"], &["src/store", "src/jobs"]),
    (&["object_store::"], &["src/store"]),
    // Errors in words for clients: a field at fault, or a code for programs.
    (
        &[
            "invalid_code(",
            "Error::invalid(",
            "\"lora_name\"",
            "\"lora_path\"",
            "\"fine_tune_id\"",
            "\"invalid_value\"",
            "\"invalid_adapter\"",
            "\"invalid_training_file\"",
            "\"model_not_found\"",
            "\"file_not_found\"",
            "\"server_error\"",
        ],
        &["src/api"],
    ),
];

#[test]
fn http_and_databases_stay_in_their_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in SOURCES {
        collect(&root.join(folder), &mut files);
    }
    assert!(files.len() > 200, "only {} files were found", files.len());
    let mut strays = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let place = file.strip_prefix(root).unwrap();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for (texts, allowed) in RULES {
                let stray = texts.iter().find(|text| line.contains(**text));
                if let Some(text) = stray.filter(|_| !allowed.iter().any(|folder| place.starts_with(folder))) {
                    strays.push(format!("{}:{}: `{text}` belongs to {allowed:?}", place.display(), number + 1));
                }
            }
        }
    }
    assert!(strays.is_empty(), "{}", strays.join("\n"));
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
