//! Which Postgres is installed, and which system user runs it.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Gid, Uid, User};

use crate::store::{Error, Result};

/// Users that a server started by root runs its database as, the first that exists.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// The system user of the cluster: ourselves, or an unprivileged user if we are root.
#[derive(Debug, Clone)]
pub(super) struct ServiceUser {
    pub uid: Uid,
    pub gid: Gid,
    /// For messages.
    pub name: String,
    /// True if this is not the user that we run as.
    pub other: bool,
}

/// Postgres refuses to run as root, so root hands it to an unprivileged user.
pub(super) fn service_user() -> Result<ServiceUser> {
    let own = Uid::effective();
    if !own.is_root() {
        let name = User::from_uid(own).ok().flatten().map_or_else(|| own.to_string(), |user| user.name);
        return Ok(ServiceUser { uid: own, gid: Gid::effective(), name, other: false });
    }
    let found = UNPRIVILEGED.iter().find_map(|name| User::from_name(name).ok().flatten()).ok_or_else(|| {
        Error::Setup(format!(
            "private PostgreSQL: root cannot run it, and there is no user to run it as: create one of {UNPRIVILEGED:?}, \
             run attune as another user, or set database_url"
        ))
    })?;
    Ok(ServiceUser { uid: found.uid, gid: found.gid, name: found.name, other: true })
}

impl ServiceUser {
    /// A command that runs as this user, from a folder that it can enter.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/");
        if self.other {
            command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
        }
        command
    }

    /// Makes `path` this user's.
    pub(super) fn give(&self, path: &Path) -> std::io::Result<()> {
        if self.other {
            std::os::unix::fs::chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))?;
        }
        Ok(())
    }
}

/// One set of binaries.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    pub user: ServiceUser,
    pub initdb: PathBuf,
    pub postgres: PathBuf,
    /// `15`; the form of the cluster's `PG_VERSION`.
    pub major: String,
}

impl Installation {
    /// The newest one, for a new cluster.
    pub(super) fn newest(user: &ServiceUser) -> Result<Self> {
        let number = |installation: &Self| installation.major.parse().unwrap_or(0_u32);
        installed(user).into_iter().max_by_key(number).ok_or_else(|| {
            Error::Setup(
                "no database_url is set and PostgreSQL is not installed. Install it: apt-get install postgresql \
                 (Debian, Ubuntu), or set database_url (in the environment ATTUNE_DATABASE_URL) to a server of yours"
                    .into(),
            )
        })
    }

    /// One that can open the cluster: the files of one major version mean nothing to another.
    pub(super) fn of_major(user: &ServiceUser, major: &str, cluster: &Path) -> Result<Self> {
        let all = installed(user);
        if let Some(found) = all.iter().find(|installation| installation.major == major) {
            return Ok(found.clone());
        }
        let present: Vec<&str> = all.iter().map(|installation| installation.major.as_str()).collect();
        Err(Error::Setup(format!(
            "the database in {} was made by PostgreSQL {major}, but {} is installed. Install that version: apt-get install \
             postgresql-{major}, or move the data over with pg_upgrade",
            cluster.display(),
            if present.is_empty() { "none".into() } else { format!("only version {}", present.join(" and ")) },
        )))
    }
}

/// Finds every set of binaries that the user can run: in the search path, in the packages' folders, and in the folder
/// that `pg_config` names.
fn installed(user: &ServiceUser) -> Vec<Installation> {
    let mut folders = vec![PathBuf::new()];
    for parent in ["/usr/lib/postgresql", "/usr/local/lib/postgresql", "/opt/homebrew/opt"] {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path().join("bin")));
    }
    folders.extend(output(Command::new("pg_config").arg("--bindir")).map(|folder| PathBuf::from(folder.trim())));
    folders.iter().filter_map(|folder| probe(user, folder)).collect()
}

/// Finds the binaries in `folder` (in the search path if it is empty), if the user can run them.
fn probe(user: &ServiceUser, folder: &Path) -> Option<Installation> {
    let (initdb, postgres) = (folder.join("initdb"), folder.join("postgres"));
    output(user.command(&initdb).arg("--version"))?;
    let version = output(user.command(&postgres).arg("--version"))?;
    Some(Installation { user: user.clone(), initdb, postgres, major: major_of(&version)? })
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(std::process::Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `15` from `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, also from `18beta1`.
fn major_of(version: &str) -> Option<String> {
    let number = version.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    Some(number.chars().take_while(char::is_ascii_digit).collect())
}

#[cfg(test)]
mod tests {
    use super::major_of;

    #[test]
    fn the_major_version_is_read_from_what_postgres_prints() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").as_deref(), Some("15"));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1").as_deref(), Some("18"));
        assert_eq!(major_of("what is this"), None);
    }
}
