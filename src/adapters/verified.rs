//! Files that were found to match their hash, so that the next load need not hash them again. Hashing is most of the work
//! of a load from the disk.
//!
//! A file counts as unchanged while its inode, size and times of change are the same; the system sets the last of these
//! itself. They tell changes apart only after a tick of its clock, so a file that was changed a moment ago is hashed again
//! (as Git does with its index).

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use moka::sync::Cache;

use crate::adapters::{Error, Result};

/// Generations that are remembered.
const CAPACITY: u64 = 10_000;
/// Bytes of the largest configuration that is remembered.
const LARGEST_CONFIG: usize = 16 << 10;
/// Time after a change within which another one may look the same.
const CLOCK_TICK: Duration = Duration::from_secs(2);

/// What was found to match its hash, by generation.
pub(super) struct Verified(Cache<String, Files>);

/// The two files of a generation: the configuration's content, and what tells that the weights have not changed.
#[derive(Debug, Clone, PartialEq)]
struct Files {
    config: Bytes,
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl Files {
    /// Describes the files by the configuration and the metadata of the open weights.
    fn new(config: Bytes, weights: &Metadata) -> Self {
        Self {
            config,
            device: weights.dev(),
            inode: weights.ino(),
            bytes: weights.size(),
            modified: (weights.mtime(), weights.mtime_nsec()),
            changed: (weights.ctime(), weights.ctime_nsec()),
        }
    }

    /// Returns true if a later change would show, `now` being the time before the files were read.
    fn can_tell_changes(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let old = |seconds: i64| u64::try_from(seconds).is_ok_and(|at| Duration::from_secs(at) + CLOCK_TICK < now);
        old(self.modified.0) && old(self.changed.0)
    }
}

impl Default for Verified {
    fn default() -> Self {
        Self(Cache::new(CAPACITY))
    }
}

impl Verified {
    /// Calls `read` for the files of `generation`, the weights opened after `read_at`, with whether they are known to match
    /// its hash; if it succeeds, they are known from now on.
    pub(super) fn read<T>(
        &self,
        generation: &str,
        config: &Bytes,
        weights: &File,
        read_at: SystemTime,
        read: impl FnOnce(bool) -> Result<T>,
    ) -> Result<T> {
        let metadata = weights.metadata().map_err(Error::io("look at the weights of an adapter"))?;
        let files = Files::new(config.clone(), &metadata);
        let done = read(self.holds(generation, &files))?;
        self.add(generation, files, read_at);
        Ok(done)
    }

    /// Returns true if just these files were found to match the hash `generation`.
    fn holds(&self, generation: &str, files: &Files) -> bool {
        self.0.get(generation).is_some_and(|known| known == *files)
    }

    /// Remembers files that match; `read_at` is the time before they were opened.
    fn add(&self, generation: &str, files: Files, read_at: SystemTime) {
        if files.config.len() <= LARGEST_CONFIG && files.can_tell_changes(read_at) {
            self.0.insert(generation.to_owned(), files);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_known_until_one_of_them_changes_and_fresh_ones_never() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        fs::write(&path, "abc").unwrap();
        let look = |config: &'static str| Files::new(config.into(), &fs::metadata(&path).unwrap());
        let (verified, now) = (Verified::default(), SystemTime::now());
        verified.add("a", look("{}"), now);
        assert!(!verified.holds("a", &look("{}")), "a change in the same moment would not show");
        let later = now + 2 * CLOCK_TICK;
        verified.add("a", look("{}"), later);
        assert!(verified.holds("a", &look("{}")));
        assert!(!verified.holds("b", &look("{}")) && !verified.holds("a", &look("{ }")));

        // The same content, another file.
        let other = folder.path().join("other");
        fs::write(&other, "abc").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(!verified.holds("a", &look("{}")));
        verified.add("a", look("{}"), later);
        assert!(verified.holds("a", &look("{}")));
        fs::File::options().write(true).open(&path).unwrap().set_modified(now - CLOCK_TICK).unwrap();
        assert!(!verified.holds("a", &look("{}")));
    }
}
