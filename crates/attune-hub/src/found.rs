//! Looks for a model in the cache, without the network. That a snapshot exists does not mean that it is complete: a
//! program may have been killed, or have fetched other files. With the list of the commit's files that is known
//! exactly; without it the files themselves are looked at.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cache::{self, RepositoryCache};
use crate::choice::{self, Choice, Form, INDEX};
use crate::listing::RemoteFile;
use crate::name::{MAIN, ModelName, Pick, Repository, is_gguf};

/// Longest header of a safetensors file, as its own library has it.
const LONGEST_HEADER: u64 = 100_000_000;

/// A model that is complete in the cache.
#[derive(Debug, Clone)]
pub struct Found {
    /// Commit of the repository.
    pub commit: String,
    /// The folder of the model, or its first GGUF file.
    pub path: PathBuf,
    /// What it is.
    pub form: Form,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether the list of the commit's files is known: without it a small file may be missing, such as a chat
    /// template.
    pub is_listed: bool,
}

/// A model of the cache, for a list.
#[derive(Debug, Clone)]
pub struct Cached {
    /// The name that finds it.
    pub name: ModelName,
    /// Commit of the repository.
    pub commit: String,
    /// The model, or why it is not complete.
    pub found: Result<Found, String>,
}

/// Returns the model `name` if it is complete.
pub(crate) fn find(cache: &Path, name: &ModelName) -> Option<Found> {
    let folder = RepositoryCache::of(cache, &name.repository);
    let commit = folder.commit(name.revision())?;
    look(&folder, &name.repository, &commit, &name.pick).ok()
}

/// Looks for what `pick` means in the snapshot of `commit`; the error says what is missing.
pub(crate) fn look(
    folder: &RepositoryCache,
    repository: &Repository,
    commit: &str,
    pick: &Pick,
) -> Result<Found, String> {
    let (snapshot, there, listing) = (folder.snapshot(commit), folder.files(commit), folder.listing(commit));
    let is_listed = listing.is_some();
    let all = listing.unwrap_or_else(|| there.clone());
    let mut choice = Choice::of(repository, &all, pick).map_err(|error| error.to_string())?;
    if choice.has_index() {
        let index = std::fs::read_to_string(snapshot.join(INDEX)).map_err(|_| format!("{INDEX} is missing"))?;
        choice.add_parts(repository, &index, &all).map_err(|error| error.to_string())?;
    }
    let is_there = |file: &&RemoteFile| there.iter().any(|have| have.path == file.path && have.size == file.size);
    let missing: Vec<&RemoteFile> = choice.files.iter().filter(|file| !is_there(file)).collect();
    if let Some(first) = missing.first() {
        let (count, of) = (missing.len(), choice.files.len());
        return Err(format!("not complete: {count} of {of} files are missing, such as {}", first.path));
    }
    if !is_listed {
        choice.files.iter().try_for_each(|file| check_file(&snapshot.join(&file.path), file.size))?;
    }
    let bytes = choice.files.iter().map(|file| file.size).sum();
    let path = if choice.entry.is_empty() { snapshot } else { snapshot.join(&choice.entry) };
    Ok(Found { commit: commit.to_owned(), path, form: choice.form, bytes, is_listed })
}

/// Returns all models of the cache, and what is not complete.
pub(crate) fn list(cache: &Path) -> Vec<Cached> {
    let mut models = Vec::new();
    for repository in cache::repositories(cache) {
        let folder = RepositoryCache::of(cache, &repository);
        for (commit, references) in folder.commits() {
            let revision = match references.iter().find(|reference| *reference == MAIN) {
                Some(_) => None,
                None => Some(references.first().unwrap_or(&commit).clone()),
            };
            let there = folder.files(&commit);
            let mut picks: Vec<Pick> = choice::models(&there).map(|file| Pick::File(file.path.clone())).collect();
            let usual = look(&folder, &repository, &commit, &Pick::Usual);
            // One GGUF file of many is there: that is complete in itself.
            let has_folder = there.iter().any(|file| ["config.json", "adapter_config.json"].contains(&&*file.path));
            if picks.is_empty() || has_folder && !usual.as_ref().is_ok_and(|found| found.form == Form::Gguf) {
                picks.push(Pick::Usual);
            }
            for pick in picks {
                let found = look(&folder, &repository, &commit, &pick);
                let name = ModelName { repository: repository.clone(), revision: revision.clone(), pick };
                models.push(Cached { name, commit: commit.clone(), found });
            }
        }
    }
    models
}

/// Refuses a file of weights that is cut, or something else: a web page, or a pointer of Git LFS.
fn check_file(path: &Path, size: u64) -> Result<(), String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_whole = if is_gguf(&name) {
        read(path, 4).is_some_and(|bytes| bytes == b"GGUF")
    } else if name.ends_with(".safetensors") {
        safetensors_length(path) == Some(size)
    } else {
        size > 0
    };
    if is_whole { Ok(()) } else { Err(format!("not complete: {name} is cut, or no file of weights")) }
}

fn read(path: &Path, count: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(count).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 == count).then_some(bytes)
}

/// Returns the length that a safetensors file must have by its header; `None` if it has no header.
fn safetensors_length(path: &Path) -> Option<u64> {
    let start = read(path, 8)?;
    let header = u64::from_le_bytes(start.try_into().ok()?);
    if header > LONGEST_HEADER {
        return None;
    }
    let value: Value = serde_json::from_slice(read(path, 8 + header)?.get(8..)?).ok()?;
    let ends = value.as_object()?.iter().filter(|(name, _)| *name != "__metadata__");
    let ends: Option<Vec<u64>> = ends.map(|(_, tensor)| tensor["data_offsets"][1].as_u64()).collect();
    (8 + header).checked_add(ends?.into_iter().max().unwrap_or(0))
}

#[cfg(test)]
#[path = "found_tests.rs"]
mod tests;
