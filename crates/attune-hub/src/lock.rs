//! The lock on one file of the cache, as Python's programs take it: `flock` on a file of `.locks`. Called by
//! [`download`](crate::download).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::{Error, Result};

/// How often it is looked whether another process is done.
const PAUSE: Duration = Duration::from_millis(200);

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    /// `None` if the file system has no locks.
    file: Option<Flock<File>>,
}

impl Lock {
    /// Waits for the lock at `path`; `waiting` is called once if another process holds it.
    pub(crate) async fn take(path: &Path, waiting: impl Fn()) -> Result<Self> {
        let fault = || Error::io(format!("lock {}", path.display()));
        let mut told = false;
        loop {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(fault())?;
            }
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(fault())?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Python removes the file when it lets go; a lock on a removed file keeps nobody out.
                Ok(file) if is_at(&file, path) => return Ok(Self { file: Some(file) }),
                Ok(_) => continue,
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {}
                Err((_, Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS)) => return Ok(Self { file: None }),
                Err((_, error)) => return Err(fault()(error.into())),
            }
            if !told {
                waiting();
                told = true;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Returns `false` where the file system has no locks: another process may be writing the same file.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.file.is_some()
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_second_holder_waits_until_the_first_lets_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("locks/x.lock");
        let first = Lock::take(&path, || ()).await.expect("free");
        assert!(first.is_exclusive());
        let waited = AtomicBool::new(false);
        let second = Lock::take(&path, || waited.store(true, Ordering::SeqCst));
        let release = async {
            while !waited.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
            // As Python does it.
            std::fs::remove_file(&path).expect("removed");
            drop(first);
        };
        let (second, ()) = tokio::join!(second, release);
        assert!(second.expect("free again").is_exclusive());
        assert!(path.is_file(), "it is held at its path");
    }
}
