//! The folder that an account is copied into, which is at the same time what `--from` starts from: the account's
//! objects as it answered them, the contents of its files, and how far the copy is. Written by [`super::fetch`], read
//! by all later stages. Each file appears whole or not at all, so that a run may be killed at any time.
//!
//! ```text
//! models.json                  the list of models, with the dates on which they stop
//! jobs/ID.json                 a job; jobs/ID.events.json, jobs/ID.checkpoints.json: lists
//! files/ID.json                a file; files/ID.content: what is in it; files/ID.missing.json: why that is not there
//! evals/ID.json                an eval; evals/ID/RUN.json: a run of it; evals/ID/RUN.items.json: its output items
//! completions/ID.json          a stored chat; completions/ID.messages.json: what was asked
//! progress.json                how far the listings are
//! carried.json                 what of it is where on the local server, see `ledger.rs`
//! ```

mod objects;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

pub(super) use self::objects::{Content, OldCompletion, OldEval, OldFile, OldJob, OldModel, OldRun};
use crate::{Error, Result};

/// The names of what the folder holds.
pub(super) const MODELS: &str = "models.json";
pub(super) const JOBS: &str = "jobs";
pub(super) const FILES: &str = "files";
pub(super) const EVALS: &str = "evals";
pub(super) const COMPLETIONS: &str = "completions";
/// The endings of the names of parts of an object.
pub(super) const EVENTS: &str = ".events";
pub(super) const CHECKPOINTS: &str = ".checkpoints";
pub(super) const MISSING: &str = ".missing";
pub(super) const ITEMS: &str = ".items";
pub(super) const MESSAGES: &str = ".messages";

/// The beginning of the names of files that are being written.
const UNFINISHED: &str = ".unfinished-";

/// A folder, locked for this run.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    _lock: File,
}

impl Folder {
    /// Opens the folder at `root`, which is made if it is not there and `create` is set. Only one run uses it at a
    /// time.
    pub(super) fn open(root: &Path, create: bool) -> Result<Self> {
        let context = || format!("open {}", root.display());
        if create {
            std::fs::create_dir_all(root).map_err(Error::io(context()))?;
        }
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(root.join("lock"));
        let lock = lock.map_err(Error::io(context()))?;
        match lock.try_lock() {
            Ok(()) => {
                sweep(root).map_err(Error::io(context()))?;
                Ok(Self { root: root.to_path_buf(), _lock: lock })
            }
            Err(TryLockError::WouldBlock) => {
                Err(Error::Setup(format!("{}: another run uses this folder", root.display())))
            }
            Err(TryLockError::Error(error)) => Err(Error::io(context())(error)),
        }
    }

    /// Returns the path of the folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of an object within `kind`, or of a part of it: `jobs/ID.events.json`.
    pub(super) fn place(&self, kind: &str, id: &str, part: &str) -> PathBuf {
        self.root.join(kind).join(format!("{}{part}.json", file_name(id)))
    }

    /// Returns the path of a file's content.
    pub(super) fn content(&self, id: &str) -> PathBuf {
        self.root.join(FILES).join(format!("{}.content", file_name(id)))
    }

    /// Returns the path of the runs of an eval, to be used as a kind.
    pub(super) fn runs(eval: &str) -> String {
        format!("{EVALS}/{}", file_name(eval))
    }

    /// Reads JSON of the folder; `None` if it is not there.
    pub(super) fn read(&self, path: &Path) -> Result<Option<Value>> {
        debug_assert!(path.starts_with(&self.root), "{} is not in the folder", path.display());
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read {}", path.display()))(error)),
        };
        let read = serde_json::from_slice(&bytes);
        read.map(Some).map_err(|error| Error::Setup(format!("{} is not JSON: {error}", path.display())))
    }

    /// Reads a list's `data`; empty if it is not there.
    pub(super) fn read_list(&self, path: &Path) -> Result<Vec<Value>> {
        let list = self.read(path)?;
        Ok(list.and_then(|list| list["data"].as_array().cloned()).unwrap_or_default())
    }

    /// Writes JSON, whole or not at all.
    pub(super) fn write(&self, path: &Path, value: &Value) -> Result<()> {
        self.write_bytes(path, format!("{value:#}\n").as_bytes())
    }

    /// Writes a file, whole or not at all.
    pub(super) fn write_bytes(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        debug_assert!(path.starts_with(&self.root), "{} is not in the folder", path.display());
        write_whole(path, bytes).map_err(Error::io(format!("write {}", path.display())))
    }

    /// Returns the models, those that stop first in front.
    pub(super) fn models(&self) -> Result<Vec<OldModel>> {
        let list = self.read_list(&self.root.join(MODELS))?;
        let mut models: Vec<OldModel> = list
            .iter()
            .filter_map(|model| {
                let shutdown_date = model["shutdown_date"].as_str().map(str::to_owned);
                Some(OldModel { id: model["id"].as_str()?.to_owned(), shutdown_date })
            })
            .collect();
        models.sort_by_key(|model| (model.shutdown_date.is_none(), model.shutdown_date.clone(), model.id.clone()));
        Ok(models)
    }

    /// Returns the jobs, oldest first.
    pub(super) fn jobs(&self) -> Result<Vec<OldJob>> {
        let mut jobs = Vec::new();
        for (id, object) in self.objects(JOBS)? {
            let checkpoints = self.read_list(&self.place(JOBS, &id, CHECKPOINTS))?;
            jobs.extend(OldJob::read(object, checkpoints));
        }
        jobs.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(jobs)
    }

    /// Returns the events of a job, newest first.
    pub(super) fn events(&self, job: &str) -> Result<Vec<Value>> {
        self.read_list(&self.place(JOBS, job, EVENTS))
    }

    /// Returns the files by their ids.
    pub(super) fn files(&self) -> Result<Vec<OldFile>> {
        let mut files = Vec::new();
        for (id, object) in self.objects(FILES)? {
            let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
            let content = self.content_of(&id)?;
            files.push(OldFile { filename: text("filename"), purpose: text("purpose"), content, id });
        }
        Ok(files)
    }

    /// Says whether the content of a file is there. Works for files that jobs name and no list has, too.
    pub(super) fn content_of(&self, file: &str) -> Result<Content> {
        let path = self.content(file);
        if path.is_file() {
            return Ok(Content::Here(path));
        }
        let missing = self.read(&self.place(FILES, file, MISSING))?;
        Ok(missing.map_or(Content::NotFetched, |missing| {
            Content::Missing(missing["reason"].as_str().unwrap_or("no reason was given").to_owned())
        }))
    }

    /// Returns true if the account lists a file.
    pub(super) fn has_file(&self, id: &str) -> bool {
        self.place(FILES, id, "").is_file()
    }

    /// Counts the objects of a kind.
    pub(super) fn number_of(&self, kind: &str) -> Result<usize> {
        Ok(self.paths(kind)?.len())
    }

    /// Returns the evals with their runs, by their ids.
    pub(super) fn evals(&self) -> Result<Vec<OldEval>> {
        let mut evals = Vec::new();
        for (id, object) in self.objects(EVALS)? {
            let kind = Self::runs(&id);
            let mut runs = Vec::new();
            for (run, object) in self.objects(&kind)? {
                let items = self.read_list(&self.place(&kind, &run, ITEMS))?;
                runs.push(OldRun { id: run, object, items });
            }
            let name = object["name"].as_str().unwrap_or_default().to_owned();
            evals.push(OldEval { id, name, runs, object });
        }
        Ok(evals)
    }

    /// Returns the stored chats by their ids.
    pub(super) fn completions(&self) -> Result<Vec<OldCompletion>> {
        let mut completions = Vec::new();
        for (id, object) in self.objects(COMPLETIONS)? {
            let messages = self.read_list(&self.place(COMPLETIONS, &id, MESSAGES))?;
            completions.push(OldCompletion { id, object, messages });
        }
        Ok(completions)
    }

    /// Returns the ids of the objects of a kind. The objects are read one after another: there may be very many.
    pub(super) fn ids(&self, kind: &str) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for path in self.paths(kind)? {
            ids.extend(self.read(&path)?.and_then(|object| object["id"].as_str().map(str::to_owned)));
        }
        Ok(ids)
    }

    /// Returns the objects of a kind with their ids, by the names of their files.
    fn objects(&self, kind: &str) -> Result<Vec<(String, Value)>> {
        let mut objects = Vec::new();
        for path in self.paths(kind)? {
            if let Some(object) = self.read(&path)?
                && let Some(id) = object["id"].as_str()
            {
                objects.push((id.to_owned(), object));
            }
        }
        Ok(objects)
    }

    /// Returns the paths of the objects of a kind, sorted. Parts of objects have a `.` in their name.
    fn paths(&self, kind: &str) -> Result<Vec<PathBuf>> {
        let folder = self.root.join(kind);
        let context = || format!("read {}", folder.display());
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(context())(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io(context()))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
            if name.is_some_and(|name| !name.contains('.')) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }
}

/// Returns the name of a file for an id: ids come from elsewhere, and must name nothing outside of the folder.
fn file_name(id: &str) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    id.bytes().map(|byte| if kept(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Removes what runs that were killed had begun to write.
fn sweep(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sweep(&entry.path())?;
        } else if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes beside `path`, and puts it in its place once it is on the disk.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_names_nothing_outside_of_the_folder_and_no_part_of_another() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(root.path(), true).expect("open");
        for id in ["../../etc/passwd", "..", "ftjob-1.events", "ft:a b/c"] {
            folder.write(&folder.place(JOBS, id, ""), &json!({"id": id})).expect("written");
        }
        folder.write(&folder.place(JOBS, "ftjob-1", EVENTS), &json!({"data": [1]})).expect("written");
        let mut ids = folder.ids(JOBS).expect("ids");
        ids.sort();
        assert_eq!(ids, ["..", "../../etc/passwd", "ft:a b/c", "ftjob-1.events"]);
        assert_eq!(folder.events("ftjob-1").expect("events"), [json!(1)]);
        assert_eq!(std::fs::read_dir(root.path().join(JOBS)).expect("a folder").count(), 5);
    }

    #[test]
    fn what_a_killed_run_had_begun_is_removed_by_the_next_and_two_runs_keep_apart() {
        let root = tempfile::tempdir().expect("a folder");
        let first = Folder::open(root.path(), true).expect("open");
        first.write(&first.place(FILES, "file-1", ""), &json!({"id": "file-1"})).expect("written");
        let begun = root.path().join(FILES).join(format!("{UNFINISHED}x"));
        std::fs::write(&begun, "half").expect("written");
        assert!(Folder::open(root.path(), true).is_err(), "one run at a time");
        drop(first);
        let second = Folder::open(root.path(), false).expect("open");
        assert!(!begun.exists() && second.has_file("file-1"));
        assert!(Folder::open(&root.path().join("none"), false).is_err());
    }
}
