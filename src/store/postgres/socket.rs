//! The folder of the cluster's socket: being inside is what authorises a connection, so that nobody but the cluster's
//! user (and root) may be able to enter it, or to have made it.
//!
//! A socket's path holds 107 bytes, so the folder is in `/tmp`, where every user of the machine can make one. Its name
//! follows from the cluster, so that no start leaves another folder behind. If something else has that name, a name
//! that nobody can foresee takes its place, which the state folder remembers.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Uid;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::install::ServiceUser;
use super::{setup_error, write_whole};
use crate::store::{Error, Result};

/// Where the folders are. Its sticky bit keeps others from renaming and removing them.
const PARENT: &str = "/tmp";
/// Holds the name that follows from the cluster and the one that took its place.
const NAME_FILE: &str = "postgres.socket";
/// The bit that lets nobody but its owner rename or remove what is in a folder.
const STICKY: u32 = 0o1000;

/// Makes the folder for the socket of `cluster`, or finds the one that an earlier start made.
pub(super) fn make(state: &Path, cluster: &Path, user: &ServiceUser) -> Result<PathBuf> {
    check_parent()?;
    let name = remembered(state, cluster).unwrap_or_else(|| name_of(cluster));
    let folder = Path::new(PARENT).join(name);
    if make_or_take(&folder, user)? {
        return Ok(folder);
    }
    let unforeseen = format!("attune-{}", Uuid::new_v4().simple());
    let other = Path::new(PARENT).join(&unforeseen);
    if !make_or_take(&other, user)? {
        return Err(Error::Setup(format!("private PostgreSQL: {} was taken by another user", other.display())));
    }
    tracing::warn!(
        "{} is not a folder of the user `{}` that is closed to others: the database's socket is in {} instead",
        folder.display(),
        user.name,
        other.display()
    );
    write_whole(&state.join(NAME_FILE), format!("{} {unforeseen}\n", name_of(cluster)).as_bytes())?;
    Ok(other)
}

/// Finds the folder in which the cluster's server has its socket; `None` if there is none, or if anyone but the
/// cluster's owner could have made it.
pub(super) fn of_running(state: &Path, cluster: &Path) -> Option<PathBuf> {
    check_parent().ok()?;
    let owner = std::fs::metadata(cluster).ok()?.uid();
    let folder = Path::new(PARENT).join(remembered(state, cluster).unwrap_or_else(|| name_of(cluster)));
    let opened = open(&folder).ok()?;
    is_closed_folder_of(&opened, owner).ok()?.then_some(folder)
}

/// Makes the folder, or takes one that is there and of this user alone; false if it is anything else. What is judged is
/// what was opened; nobody else can put something else in its place afterwards.
fn make_or_take(folder: &Path, user: &ServiceUser) -> Result<bool> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(setup_error("create", folder, &error));
        }
        _ => {}
    }
    let Ok(opened) = open(folder) else { return Ok(false) };
    let fault = |error: std::io::Error| setup_error("open", folder, &error);
    // New, or an earlier start was stopped between making it and giving it away.
    if user.other && is_closed_folder_of(&opened, Uid::effective().as_raw()).map_err(fault)? {
        fchown(&opened, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .map_err(|error| setup_error("give away", folder, &error))?;
    }
    is_closed_folder_of(&opened, user.uid.as_raw()).map_err(fault)
}

/// Opens a folder, and no link to one.
fn open(folder: &Path) -> std::io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    File::options().read(true).custom_flags(flags.bits()).open(folder)
}

fn is_closed_folder_of(folder: &File, owner: u32) -> std::io::Result<bool> {
    let metadata = folder.metadata()?;
    Ok(metadata.is_dir() && metadata.uid() == owner && metadata.mode() & 0o777 == 0o700)
}

/// Refuses to work where every user can take a folder away and put another in its place.
fn check_parent() -> Result<()> {
    let parent = std::fs::metadata(PARENT).map_err(|error| setup_error("open", Path::new(PARENT), &error))?;
    if parent.mode() & 0o022 != 0 && parent.mode() & STICKY == 0 {
        return Err(Error::Setup(format!(
            "private PostgreSQL: every user can remove the folders of others in {PARENT}: set its sticky bit (chmod +t \
             {PARENT}), or set database_url"
        )));
    }
    Ok(())
}

/// Reads the name that took the place of the one that follows from the cluster. A copy of the folder is another
/// cluster: it does not go by the original's.
fn remembered(state: &Path, cluster: &Path) -> Option<String> {
    let text = std::fs::read_to_string(state.join(NAME_FILE)).ok()?;
    let (of, name) = text.trim().split_once(' ')?;
    let fits = name.starts_with("attune-") && name.bytes().all(|byte| byte == b'-' || byte.is_ascii_alphanumeric());
    (of == name_of(cluster) && fits).then(|| name.to_owned())
}

fn name_of(cluster: &Path) -> String {
    let digest = Sha256::digest(cluster.as_os_str().as_encoded_bytes());
    let hash = digest[..8].iter().fold(0_u64, |hash, byte| hash << 8 | u64::from(*byte));
    format!("attune-{hash:016x}")
}
