//! The folder that Hugging Face's own programs keep downloads in, so that each reads what the other has fetched:
//!
//! ```text
//! models--OWNER--NAME/
//!   refs/main                 the commit that the branch had when it was last asked for
//!   blobs/CHECKSUM            the bytes; CHECKSUM.attune.incomplete is a download that has not ended
//!   snapshots/COMMIT/PATH     a link to ../../blobs/CHECKSUM
//!   trees/COMMIT.json         all files of the commit, as huggingface_hub keeps them
//!   .attune/COMMIT.json       the same, as Attune keeps them
//! .locks/models--OWNER--NAME/CHECKSUM.lock
//! ```
//!
//! Attune's list stands in a place of its own: from one in `trees`, Python would conclude that a snapshot without the
//! files that Attune leaves out is broken.

use std::ffi::OsStr;
use std::fs::create_dir_all;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::listing::{self, RemoteFile};
use crate::name::{Repository, is_commit};
use crate::{Error, Result};

const PREFIX: &str = "models--";
/// Folders below a snapshot that are looked into.
const DEEPEST: usize = 8;

/// The folder of one repository in the cache.
#[derive(Debug, Clone)]
pub(crate) struct RepositoryCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepositoryCache {
    /// Names the folder of `repository` below `cache`; nothing has to be there.
    pub(crate) fn of(cache: &Path, repository: &Repository) -> Self {
        let name = format!("{PREFIX}{}", repository.as_str().replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// Returns the path of the finished file with this checksum.
    pub(crate) fn blob(&self, digits: &str) -> PathBuf {
        self.folder.join("blobs").join(digits)
    }

    /// Returns the path of the unfinished file with this checksum.
    pub(crate) fn part(&self, digits: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{digits}.attune.incomplete"))
    }

    /// Returns the path of the lock that Python's programs hold while they write the file with this checksum.
    pub(crate) fn lock(&self, digits: &str) -> PathBuf {
        self.locks.join(format!("{digits}.lock"))
    }

    /// Returns the folder with the files of `commit`.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Returns the commit that `revision` stood for when it was last asked for; a commit stands for itself.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes which commit `revision` stands for.
    pub(crate) fn write_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        write(&self.folder.join("refs").join(revision), commit.as_bytes())
    }

    /// Returns all files of `commit`; `None` if nobody has kept the list.
    pub(crate) fn listing(&self, commit: &str) -> Option<Vec<RemoteFile>> {
        let read = |folder: &str| {
            let text = std::fs::read_to_string(self.folder.join(folder).join(format!("{commit}.json"))).ok()?;
            listing::from_json(&text)
        };
        read(".attune").or_else(|| read("trees"))
    }

    /// Keeps the list of all files of `commit`.
    pub(crate) fn write_listing(&self, commit: &str, files: &[RemoteFile]) -> Result<()> {
        let text = listing::to_json(files).to_string();
        write(&self.folder.join(".attune").join(format!("{commit}.json")), text.as_bytes())
    }

    /// Shows `files`, whose bytes are all there, in the snapshot of `commit`: all at once if the snapshot is new, since
    /// other programs take a snapshot that exists for complete.
    pub(crate) fn publish(&self, commit: &str, files: &[RemoteFile]) -> Result<()> {
        let snapshot = self.snapshot(commit);
        if snapshot.exists() {
            return files.iter().try_for_each(|file| Self::link(&snapshot, file));
        }
        let made = create_dir_all(self.folder.join(".attune"))
            .and_then(|()| tempfile::Builder::new().prefix("new-").tempdir_in(self.folder.join(".attune")))
            .map_err(Error::io(format!("make a folder in {}", self.folder.display())))?;
        files.iter().try_for_each(|file| Self::link(made.path(), file))?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(made.path(), open).map_err(Error::io(format!("open {}", made.path().display())))?;
        let fault = || Error::io(format!("make {}", snapshot.display()));
        create_dir_all(self.folder.join("snapshots")).map_err(fault())?;
        match std::fs::rename(made.path(), &snapshot) {
            // Another process was faster.
            Err(_) if snapshot.exists() => files.iter().try_for_each(|file| Self::link(&snapshot, file)),
            renamed => renamed.map_err(fault()),
        }
    }

    /// Links `file` below `snapshot` to its bytes, in place of whatever else stands there.
    fn link(snapshot: &Path, file: &RemoteFile) -> Result<()> {
        let (link, digits) = (snapshot.join(&file.path), file.checksum.digits());
        let fault = || Error::io(format!("link {}", link.display()));
        // `snapshots/COMMIT/` is two folders deep.
        let ups = "../".repeat(2 + file.path.matches('/').count());
        let target = PathBuf::from(format!("{ups}blobs/{digits}"));
        if std::fs::read_link(&link).is_ok_and(|known| known == target) {
            return Ok(());
        }
        let parent = link.parent().unwrap_or(snapshot);
        create_dir_all(parent).map_err(fault())?;
        let temporary = parent.join(format!(".{digits}.{}.link", std::process::id()));
        symlink(&target, &temporary).and_then(|()| std::fs::rename(&temporary, &link)).map_err(fault())
    }

    /// Returns the files below the snapshot of `commit`, with the lengths of what they lead to.
    pub(crate) fn files(&self, commit: &str) -> Vec<RemoteFile> {
        let root = self.snapshot(commit);
        let mut found = Vec::new();
        let mut open = vec![(root.clone(), 0)];
        while let Some((folder, depth)) = open.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                // A link whose file is gone is no file.
                let Ok(metadata) = std::fs::metadata(&path) else { continue };
                if metadata.is_dir() && depth < DEEPEST {
                    open.push((path, depth + 1));
                } else if let (true, Ok(Some(name))) =
                    (metadata.is_file(), path.strip_prefix(&root).map(|name| name.to_str().map(str::to_owned)))
                {
                    found.push(RemoteFile::local(name, metadata.len()));
                }
            }
        }
        found.sort_by(|one, other| one.path.cmp(&other.path));
        found
    }

    /// Returns the commits that have a snapshot, each with the branches and tags that stood for it.
    pub(crate) fn commits(&self) -> Vec<(String, Vec<String>)> {
        let mut references = Vec::new();
        collect_references(&self.folder.join("refs"), "", &mut references);
        references.sort();
        let names = names(&self.folder.join("snapshots")).into_iter().filter(|name| is_commit(name));
        let of = |commit: &str| {
            let known = references.iter().filter(|name| self.commit(name).as_deref() == Some(commit));
            known.cloned().collect()
        };
        names.map(|commit| (commit.clone(), of(&commit))).collect()
    }
}

/// Returns the repositories that have a folder in the cache.
pub(crate) fn repositories(cache: &Path) -> Vec<Repository> {
    let names = names(cache).into_iter();
    names.filter_map(|name| Repository::parse(&name.strip_prefix(PREFIX)?.replace("--", "/"))).collect()
}

/// Returns the names in a folder, sorted; none if it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn collect_references(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for name in names(folder) {
        let (path, full) = (folder.join(&name), format!("{prefix}{name}"));
        if path.is_dir() && full.matches('/').count() < DEEPEST {
            collect_references(&path, &format!("{full}/"), found);
        } else if path.is_file() {
            found.push(full);
        }
    }
}

/// Writes a small file, which others see whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let fault = || Error::io(format!("write {}", path.display()));
    let folder = path.parent().unwrap_or(Path::new("."));
    let making = format!("make {}, in the folder that HF_HOME or HF_HUB_CACHE names", folder.display());
    create_dir_all(folder).map_err(Error::io(making))?;
    let prefix = format!(".{}.", path.file_name().and_then(OsStr::to_str).unwrap_or_default());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let mut file = tempfile::Builder::new().prefix(&prefix).permissions(open).tempfile_in(folder).map_err(fault())?;
    file.write_all(bytes).map_err(fault())?;
    file.as_file().sync_all().map_err(fault())?;
    file.persist(path).map(drop).map_err(|error| error.error).map_err(fault())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn files(paths: &[&str]) -> Vec<RemoteFile> {
        let entries = paths.iter().map(|path| ((*path).to_owned(), json!({"size": 1, "blob_id": COMMIT}))).collect();
        let entries = serde_json::Value::Object(entries);
        listing::from_json(&json!({"format_version": 1, "files": entries}).to_string()).expect("a listing")
    }

    #[test]
    fn a_snapshot_appears_with_links_that_lead_to_the_bytes_and_can_be_completed() {
        let root = tempfile::tempdir().expect("a folder");
        let cache = RepositoryCache::of(root.path(), &Repository::parse("a/b").expect("a name"));
        let blob = cache.blob(COMMIT);
        create_dir_all(blob.parent().expect("a parent")).expect("made");
        std::fs::write(&blob, "x").expect("written");
        for paths in [&["config.json", "deep/er/x.gguf"][..], &["config.json", "y.json"]] {
            cache.publish(COMMIT, &files(paths)).expect("linked");
            for path in paths {
                assert_eq!(std::fs::read_to_string(cache.snapshot(COMMIT).join(path)).expect("there"), "x", "{path}");
            }
        }
        let there = cache.files(COMMIT);
        let names: Vec<&str> = there.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["config.json", "deep/er/x.gguf", "y.json"]);
        assert_eq!(
            std::fs::read_dir(cache.folder.join(".attune")).expect("a listing").count(),
            0,
            "nothing is left over"
        );
    }

    #[test]
    fn branches_with_slashes_are_kept_and_a_commit_is_no_branch() {
        let root = tempfile::tempdir().expect("a folder");
        let cache = RepositoryCache::of(root.path(), &Repository::parse("a/b").expect("a name"));
        create_dir_all(cache.snapshot(COMMIT)).expect("made");
        for revision in ["main", "refs/pr/1", COMMIT] {
            cache.write_commit(revision, COMMIT).expect("written");
            assert_eq!(cache.commit(revision).as_deref(), Some(COMMIT));
        }
        assert_eq!(cache.commits(), [(COMMIT.to_owned(), vec!["main".to_owned(), "refs/pr/1".to_owned()])]);
        std::fs::write(cache.folder.join("refs/main"), "../../x").expect("written");
        assert_eq!(cache.commit("main"), None, "what is no commit leads nowhere");
        assert_eq!(repositories(root.path()), [Repository::parse("a/b").expect("a name")]);
    }
}
