//! Where the cluster lives, and the locks that keep a second server away.

use std::fs::{File, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::install::ServiceUser;
use super::{setup_error, socket, write_whole};
use crate::store::{Error, Result};

/// Holds the state folder's path if the cluster is not inside the data folder.
const LOCATION_FILE: &str = "postgres.location";

/// How long a lock is tried to get, and the pause between two tries.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The cluster's folders. The locks last as long as this value.
#[derive(Debug)]
pub(super) struct DataLayout {
    /// The cluster itself.
    pub cluster: PathBuf,
    /// What the server prints.
    pub log: PathBuf,
    /// Holds the unix socket; only the cluster's user (and root) can enter.
    pub socket_dir: PathBuf,
    _locks: Vec<File>,
}

impl DataLayout {
    /// Finds or chooses the place of `data_dir`'s cluster and locks it.
    pub(super) fn choose(data_dir: &Path, user: &ServiceUser) -> Result<Self> {
        std::fs::create_dir_all(data_dir).map_err(|error| setup_error("create", data_dir, &error))?;
        let data_dir = data_dir.canonicalize().map_err(|error| setup_error("open", data_dir, &error))?;
        // The lock comes before the choice, so that two first starts cannot choose twice.
        let mut locks = vec![lock(&data_dir)?];
        let state = state_folder(&data_dir, user)?;
        if state != data_dir {
            // A copy of the data folder points to the same state folder.
            locks.push(lock(&state)?);
            tracing::info!(
                "the user `{}`, which runs the private PostgreSQL, cannot reach {}: the database lives in {}",
                user.name,
                data_dir.display(),
                state.display()
            );
        }
        let cluster = state.join("postgres");
        let socket_dir = socket::make(&state, &cluster, user)?;
        Ok(Self { log: state.join("postgres.log"), cluster, socket_dir, _locks: locks })
    }

    /// Reads the major version that made the cluster; `None` if there is no cluster yet.
    pub(super) fn existing_major(&self) -> Result<Option<String>> {
        match std::fs::read_to_string(self.cluster.join("PG_VERSION")) {
            Ok(version) => Ok(Some(version.trim().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !self.cluster.exists() => Ok(None),
            Err(error) => Err(setup_error("read the version of", &self.cluster, &error)),
        }
    }
}

impl Drop for DataLayout {
    fn drop(&mut self) {
        // It is empty once the server has stopped; where it is not, the next start uses it again.
        let _ = std::fs::remove_dir(&self.socket_dir);
    }
}

/// Refuses a second server on the folder; the system drops the lock with the process, however that ends. A process that is
/// just being started has a copy of its parent's locks until its program runs, so a lock may outlive its holder a little.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("postgres.lock");
    let file =
        File::options().create(true).append(true).open(&path).map_err(|error| setup_error("open", &path, &error))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::FolderInUse(format!(
                    "another attune uses {}: stop it, choose another data_dir, or give both the same database_url",
                    folder.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(setup_error("lock", &path, &error)),
        }
    }
}

/// The folder of the running cluster's socket, for who wants to talk to it beside its server; `None` where there is
/// none that belongs to the cluster's user. Nothing is made or locked.
pub(super) fn socket_of_running(data_dir: &Path) -> Option<PathBuf> {
    let data_dir = data_dir.canonicalize().ok()?;
    let location = std::fs::read_to_string(data_dir.join(LOCATION_FILE)).map(|path| PathBuf::from(path.trim()));
    let state = location.unwrap_or(data_dir);
    socket::of_running(&state, &state.join("postgres"))
}

/// Chooses the data folder if the user can reach it, else a folder that it can reach. The decision is kept: a cluster
/// must be found again also after permissions have changed.
fn state_folder(data_dir: &Path, user: &ServiceUser) -> Result<PathBuf> {
    let location = data_dir.join(LOCATION_FILE);
    match std::fs::read_to_string(&location) {
        Ok(path) => {
            let path = PathBuf::from(path.trim());
            if path.is_dir() {
                return Ok(path);
            }
            return Err(Error::Setup(format!(
                "{} says that the database is in {}, but that folder is gone: bring it back, or remove the file to begin \
                 with an empty database",
                location.display(),
                path.display()
            )));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(setup_error("read", &location, &error)),
    }
    if data_dir.join("postgres").exists() || !user.other || can_reach(user, data_dir) {
        return Ok(data_dir.to_owned());
    }
    let state = new_state_folder()?;
    write_whole(&location, state.as_os_str().as_encoded_bytes())?;
    Ok(state)
}

/// True if every folder on the way can be entered. Mode bits only: an access list that grants more is not needed, one
/// that grants less makes initdb say so.
fn can_reach(user: &ServiceUser, folder: &Path) -> bool {
    folder.ancestors().all(|ancestor| {
        std::fs::metadata(ancestor).is_ok_and(|metadata| {
            let bit = if metadata.uid() == user.uid.as_raw() {
                0o100
            } else if metadata.gid() == user.gid.as_raw() {
                0o010
            } else {
                0o001
            };
            metadata.mode() & bit != 0
        })
    })
}

/// A new folder that survives a reboot and that everyone can pass through; the cluster inside is closed. Its random
/// name keeps the database of a data folder that was removed from coming back under a new one of the same path.
fn new_state_folder() -> Result<PathBuf> {
    let name = Uuid::new_v4().simple().to_string();
    let candidates = [format!("/var/lib/attune/{name}"), format!("/var/tmp/attune-{name}")].map(PathBuf::from);
    let mut refused = Vec::new();
    for candidate in candidates {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&candidate);
        // The mode is set again because the process's mask may have narrowed it.
        match made.and_then(|()| std::fs::set_permissions(&candidate, Permissions::from_mode(0o711))) {
            Ok(()) if candidate.parent().is_some_and(passable) => return Ok(candidate),
            Ok(()) => refused.push(format!("{}: its parent is closed to others", candidate.display())),
            Err(error) => refused.push(format!("{}: {error}", candidate.display())),
        }
        let _ = std::fs::remove_dir(&candidate);
    }
    Err(Error::Setup(format!(
        "private PostgreSQL: no folder for the database ({}): choose a data_dir that every user can pass through",
        refused.join("; ")
    )))
}

fn passable(folder: &Path) -> bool {
    folder.ancestors().all(|ancestor| std::fs::metadata(ancestor).is_ok_and(|metadata| metadata.mode() & 0o001 != 0))
}
