//! Folders of the sandbox: one for each interpreter, removed after it, and what a server that was killed has left.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{Flock, FlockArg};
use uuid::Uuid;

/// What an entry counts at least, in bytes.
const ENTRY: u64 = 4096;
/// Most entries, and folders within each other, that are looked at; with more, the folder counts as full.
pub(super) const MAX_ENTRIES: usize = 10_000;
pub(super) const MAX_DEPTH: usize = 32;
const LOCK: &str = "lock";

/// The folder of this process, in which the interpreters have theirs. Others that lie beside it belong to servers that
/// share the data folder, or to those that were killed.
#[derive(Debug)]
pub(super) struct Home {
    folder: PathBuf,
    made: AtomicU64,
    /// Held while the process lives: whose lock can be taken has gone.
    _lock: Flock<File>,
}

/// The folder of one interpreter.
#[derive(Debug, Clone)]
pub(super) struct Scratch(PathBuf);

impl Home {
    /// Makes the folder inside of `root`, and removes those of processes that have gone.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        for entry in fs::read_dir(root)?.flatten() {
            // Whoever makes a folder just now has not locked it yet: then the lock is missing.
            let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
            if let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
                if let Err(error) = remove(&entry.path()) {
                    tracing::warn!(folder = %entry.path().display(), %error, "a folder of graders is left behind");
                }
                drop(lock);
            }
        }
        let folder = root.join(Uuid::new_v4().to_string());
        private_folder(&folder)?;
        // Locked under another name, so that nobody finds it unlocked.
        let (made, name) = (folder.join("made"), folder.join(LOCK));
        let lock = Flock::lock(File::create(&made)?, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
        fs::rename(made, name)?;
        Ok(Self { folder: fs::canonicalize(folder)?, made: AtomicU64::new(0), _lock: lock })
    }

    /// Makes a folder for an interpreter.
    pub(super) fn scratch(&self) -> io::Result<Scratch> {
        let folder = self.folder.join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        private_folder(&folder)?;
        Ok(Scratch(folder))
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // What cannot be removed goes when the next server starts.
        drop(remove(&self.folder));
    }
}

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the bytes that `process` has written there, with files that it holds open without a name.
    pub(super) fn used(&self, process: u32) -> u64 {
        let (mut bytes, mut seen) = (0, 0);
        let mut folders = vec![(self.0.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            // A folder may have been made so that it can be written but not listed.
            drop(fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)));
            let entries = match fs::read_dir(folder) {
                Ok(entries) if depth < MAX_DEPTH => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Ok(_) | Err(_) => return u64::MAX,
            };
            for entry in entries.flatten() {
                seen += 1;
                if seen > MAX_ENTRIES {
                    return u64::MAX;
                }
                let Ok(metadata) = entry.metadata() else { continue };
                bytes += (metadata.blocks() * 512).max(ENTRY);
                if metadata.is_dir() {
                    folders.push((entry.path(), depth + 1));
                }
            }
        }
        for entry in fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten() {
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if metadata.is_file() && metadata.nlink() == 0 {
                bytes += metadata.blocks() * 512;
            }
        }
        bytes
    }

    /// Removes the folder. Nobody may be writing there any more.
    pub(super) fn remove(self) -> io::Result<()> {
        remove(&self.0)
    }
}

fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// Removes a folder, however deep it is: folders within folders are moved up first, so that no path gets long.
fn remove(folder: &Path) -> io::Result<()> {
    let mut moved = 0_u64;
    loop {
        let mut inner = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { inner.push(entry.path()) } else { fs::remove_file(entry.path())? }
        }
        if inner.is_empty() {
            return fs::remove_dir(folder);
        }
        for path in inner {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                if !entry.file_type()?.is_dir() {
                    fs::remove_file(entry.path())?;
                    continue;
                }
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700))?;
                moved += 1;
                fs::rename(entry.path(), folder.join(format!("{}-{moved}", Uuid::new_v4())))?;
            }
            fs::remove_dir(&path)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_counts_what_is_in_it_and_goes_however_deep_it_is() {
        let root = tempfile::tempdir().expect("a folder");
        let home = Home::open(root.path()).expect("a home");
        let scratch = home.scratch().expect("a folder");
        assert_eq!(scratch.used(std::process::id()), 0);
        fs::write(scratch.path().join("file"), vec![1; 100_000]).expect("a file");
        let used = scratch.used(std::process::id());
        assert!((100_000..200_000).contains(&used), "{used}");
        let mut deep = scratch.path().to_path_buf();
        for index in 0..300 {
            deep = deep.join(format!("folder-{index}"));
            if fs::create_dir(&deep).is_err() {
                break;
            }
            fs::write(deep.join("file"), "x").expect("a file");
        }
        fs::set_permissions(scratch.path().join("folder-0"), fs::Permissions::from_mode(0o000)).expect("a mode");
        let path = scratch.path().to_path_buf();
        scratch.remove().expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_another_one_holds_stays() {
        let root = tempfile::tempdir().expect("a folder");
        let other = Home::open(root.path()).expect("a home");
        let killed = root.path().join("killed");
        fs::create_dir_all(killed.join("0/deep")).expect("folders");
        fs::write(killed.join(LOCK), "").expect("a lock");
        let own = Home::open(root.path()).expect("a home");
        assert!(!killed.exists() && other.path().exists() && own.path().exists());
        let path = own.path().to_path_buf();
        drop(own);
        assert!(!path.exists() && other.path().exists());
    }
}
