//! Whether the data folder takes writes: a disk that has become full or read-only shows in no other sign until an
//! upload or a job fails. Called by `Store` for readiness.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::off_thread::off_thread;
use crate::store::{Error, Result};

/// Time for which an outcome is told again, so that those who ask all the time do not wear the disk.
const EVERY: Duration = Duration::from_secs(10);
/// Bytes of a write: a block of common file systems.
const BLOCK: [u8; 4096] = [0; 4096];

/// The last outcome, with its time. Whoever asks meanwhile waits for the write that runs.
#[derive(Debug, Clone)]
pub(super) struct WriteProbe {
    folders: Arc<[PathBuf]>,
    last: Arc<Mutex<Option<Answer>>>,
}

/// What a probe found, and when.
type Answer = (Instant, Result<()>);

impl WriteProbe {
    pub(super) fn of(folders: [PathBuf; 2]) -> Self {
        Self { folders: Arc::new(folders), last: Arc::default() }
    }

    /// Returns whether a block could be written to each folder within the last seconds.
    pub(super) async fn check(&self) -> Result<()> {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some((at, outcome)) = &*last
            && at.elapsed() < EVERY
        {
            return outcome.clone();
        }
        let folders = Arc::clone(&self.folders);
        // A disk that hangs holds one thread, not one for each who asks and goes away.
        let writing = tokio::spawn(async move {
            let outcome = off_thread("try to write", move || folders.iter().try_for_each(write)).await;
            *last = Some((Instant::now(), outcome.clone()));
            outcome
        });
        writing.await.map_err(|error| Error::Internal(format!("try to write: {error}")))?
    }
}

/// Writes to a file without a name, which is gone whatever happens.
fn write(folder: &PathBuf) -> Result<()> {
    let context = || Error::io(format!("write to the data folder {}", folder.display()));
    tempfile::tempfile_in(folder).and_then(|mut file| file.write_all(&BLOCK)).map_err(context())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_outcome_is_told_again_for_some_seconds_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let probe = WriteProbe::of([folder.path().into(), folder.path().into()]);
        probe.check().await.expect("writable");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a listing").count(), 0);
        std::fs::remove_dir(folder.path()).expect("removed");
        probe.check().await.expect("asked again within the time");
        let fresh = WriteProbe::of([folder.path().into(), folder.path().into()]);
        let said = fresh.check().await.expect_err("no folder").to_string();
        assert!(said.contains("data folder"), "{said}");
    }
}
