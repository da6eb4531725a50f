//! The files of a commit, as the hub lists them: checked, since paths and checksums become names of files here. Read by
//! [`pull`](crate::pull), and kept beside the files, so that later it is known offline whether all of them are there.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::name::{Repository, is_hex, is_inside};
use crate::{Error, Result};

/// More than any repository of a model has.
const MOST_FILES: usize = 100_000;
/// Version of the form in which a listing is kept: the one of `huggingface_hub`.
const FORMAT: u64 = 1;

/// The checksum that a file is stored under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-1 of git's object with the file's bytes, 40 digits: small files.
    Git(String),
    /// SHA-256 of the bytes, 64 digits: large files.
    Sha256(String),
}

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path inside the repository.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// Checksum of its bytes.
    pub checksum: Checksum,
    /// The id of git's object; for a large file that of its pointer.
    blob_id: String,
}

impl Checksum {
    /// Returns the digits, which name the file in the cache.
    pub fn digits(&self) -> &str {
        match self {
            Self::Git(digits) | Self::Sha256(digits) => digits,
        }
    }
}

impl RemoteFile {
    /// Makes a file of what is known of one that lies in a folder: its path and its length.
    pub(crate) fn local(path: String, size: u64) -> Self {
        Self { path, size, checksum: Checksum::Git(String::new()), blob_id: String::new() }
    }

    fn checked(path: &str, blob_id: &str, size: u64, large: Option<(&str, u64)>) -> Result<Self, String> {
        let shown: String = path.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect();
        if !is_inside(path) {
            return Err(format!("the path `{shown}` leads out of the folder"));
        }
        if !is_hex(blob_id, 40) {
            return Err(format!("the checksum of `{shown}` is none"));
        }
        let (checksum, size) = match large {
            Some((sha256, size)) if is_hex(sha256, 64) => (Checksum::Sha256(sha256.to_owned()), size),
            Some(_) => return Err(format!("the checksum of `{shown}` is none")),
            None => (Checksum::Git(blob_id.to_owned()), size),
        };
        Ok(Self { path: path.to_owned(), size, checksum, blob_id: blob_id.to_owned() })
    }
}

/// Adds the files of one page of the hub's answer to `files`.
pub(crate) fn add_page(repository: &Repository, page: &Value, files: &mut Vec<RemoteFile>) -> Result<()> {
    let hostile = |reason: String| Error::Hostile { repository: repository.to_string(), reason };
    let entries = page.as_array().ok_or_else(|| hostile("it is not a list".into()))?;
    for entry in entries.iter().filter(|entry| entry["type"] == "file") {
        let (path, oid) = (entry["path"].as_str().unwrap_or_default(), entry["oid"].as_str().unwrap_or_default());
        let size = entry["size"].as_u64().ok_or_else(|| hostile(format!("a file has no size: {path:?}")))?;
        let large = entry.get("lfs").filter(|large| large.is_object());
        let large = large.map(|large| {
            let sha256 = large["oid"].as_str().unwrap_or_default();
            // Some servers write git's own form of it.
            (sha256.strip_prefix("sha256:").unwrap_or(sha256), large["size"].as_u64().unwrap_or(size))
        });
        files.push(RemoteFile::checked(path, oid, size, large).map_err(hostile)?);
    }
    if files.len() > MOST_FILES {
        return Err(hostile(format!("it has more than {MOST_FILES} files")));
    }
    Ok(())
}

/// Refuses a listing that names a path twice, or a file below another file.
pub(crate) fn check_whole(repository: &Repository, files: &[RemoteFile]) -> Result<()> {
    let hostile = |reason: String| Error::Hostile { repository: repository.to_string(), reason };
    let mut paths = BTreeSet::new();
    if let Some(file) = files.iter().find(|file| !paths.insert(file.path.as_str())) {
        return Err(hostile(format!("the path `{}` stands in it twice", file.path)));
    }
    let parents = |path: &str| path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect::<Vec<_>>();
    match files.iter().find(|file| parents(&file.path).iter().any(|parent| paths.contains(parent.as_str()))) {
        Some(file) => Err(hostile(format!("the path `{}` leads through a file", file.path))),
        None => Ok(()),
    }
}

/// Writes a listing in the form of `huggingface_hub`.
pub(crate) fn to_json(files: &[RemoteFile]) -> Value {
    let entry = |file: &RemoteFile| match &file.checksum {
        Checksum::Git(_) => json!({"size": file.size, "blob_id": file.blob_id}),
        Checksum::Sha256(digits) => {
            json!({"size": file.size, "blob_id": file.blob_id, "lfs_sha256": digits, "lfs_size": file.size})
        }
    };
    let entries: Map<String, Value> = files.iter().map(|file| (file.path.clone(), entry(file))).collect();
    json!({"format_version": FORMAT, "files": entries})
}

/// Reads a listing of that form; `None` if it is none, or of another version.
pub(crate) fn from_json(text: &str) -> Option<Vec<RemoteFile>> {
    let value: Value = serde_json::from_str(text).ok()?;
    if value["format_version"].as_u64() != Some(FORMAT) {
        return None;
    }
    let files = value["files"].as_object()?.iter().map(|(path, entry)| {
        let size = entry["size"].as_u64()?;
        let large = entry["lfs_sha256"].as_str().map(|digits| (digits, entry["lfs_size"].as_u64().unwrap_or(size)));
        RemoteFile::checked(path, entry["blob_id"].as_str()?, size, large).ok()
    });
    files.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const SHA: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn read(entries: &Value) -> Result<Vec<RemoteFile>> {
        let repository = Repository::parse("a/b").expect("a name");
        let mut files = Vec::new();
        add_page(&repository, entries, &mut files)?;
        check_whole(&repository, &files)?;
        Ok(files)
    }

    #[test]
    fn a_listing_survives_being_kept() {
        let files = read(&json!([
            {"type": "directory", "path": "sub", "oid": GIT, "size": 0},
            {"type": "file", "path": "config.json", "oid": GIT, "size": 3},
            {"type": "file", "path": "sub/m.safetensors", "oid": GIT, "size": 9, "lfs": {"oid": SHA, "size": 9}},
        ]))
        .expect("fine");
        assert_eq!(files.len(), 2);
        assert_eq!(files[1].checksum, Checksum::Sha256(SHA.into()));
        assert_eq!(from_json(&to_json(&files).to_string()), Some(files));
        assert_eq!(from_json(r#"{"format_version":2,"files":{}}"#), None);
        assert_eq!(from_json("<html>"), None);
    }

    #[test]
    fn a_listing_that_would_write_elsewhere_is_refused() {
        let file = |path: &str| json!({"type": "file", "path": path, "oid": GIT, "size": 3});
        for path in ["../x", "/etc/passwd", "a/../../x", "a//b", "", "a\\b", "a\u{0}b", "./x", "a/.."] {
            assert!(read(&json!([file(path)])).is_err(), "{path:?}");
        }
        for oid in ["../../x", "", "ABCDEF6789abcdef0123456789abcdef01234567", "0123"] {
            assert!(read(&json!([{"type": "file", "path": "a", "oid": oid, "size": 1}])).is_err(), "{oid}");
            let large = json!([{"type": "file", "path": "a", "oid": GIT, "size": 1, "lfs": {"oid": oid, "size": 1}}]);
            assert!(read(&large).is_err(), "{oid}");
        }
        assert!(read(&json!([file("a"), file("a")])).is_err(), "twice");
        assert!(read(&json!([file("a"), file("a/b")])).is_err(), "through a file");
        assert!(read(&json!({"error": "x"})).is_err());
        assert!(read(&json!([{"type": "file", "path": "a", "oid": GIT, "size": -1}])).is_err());
    }
}
