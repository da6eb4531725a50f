//! The operator's interpreter: where it keeps what it needs, which is all that the code in the sandbox may read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

use super::Error;

const PROBE: &str = include_str!("probe.py");
const PATIENCE: Duration = Duration::from_secs(30);
/// The oldest version that the harness is written for.
const OLDEST: [u32; 2] = [3, 8];
/// Parts of a prefix that hold modules, libraries and data of theirs.
const PARTS: [&str; 6] = ["lib", "lib64", "pyvenv.cfg", "nltk_data", "share/nltk_data", "lib/nltk_data"];
/// Where systems keep libraries, and what the standard library reads.
const SYSTEM: [&str; 8] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/etc/ld.so.cache",
    "/usr/share/zoneinfo",
];

/// An interpreter that can run.
#[derive(Debug)]
pub(super) struct Interpreter {
    pub program: PathBuf,
    pub version: String,
    /// Files and folders that it reads.
    pub read: Vec<PathBuf>,
    /// Itself, and what loads it.
    pub run: Vec<PathBuf>,
}

/// What the probe says.
#[derive(Deserialize)]
struct Told {
    version: [u32; 3],
    executable: PathBuf,
    mapped: Vec<PathBuf>,
    prefixes: Vec<PathBuf>,
    path: Vec<PathBuf>,
}

impl Interpreter {
    /// Asks the interpreter at `program` for what it needs; `further` may be read as well.
    pub(super) async fn find(program: &Path, further: &[PathBuf]) -> Result<Self, Error> {
        let fault = |what: String| Error::Interpreter { program: program.to_path_buf(), what };
        if !program.is_absolute() {
            return Err(fault("it must be an absolute path, such as /usr/bin/python3".into()));
        }
        let mut command = Command::new(program);
        command.args(["-I", "-B", "-c", PROBE]).env_clear().stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await;
        let output = output.map_err(|_| fault(format!("it did not answer within {} s", PATIENCE.as_secs())))?;
        let output = output.map_err(|error| fault(format!("it cannot be run: {error}")))?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            let told = told.trim().lines().last().unwrap_or("it says nothing").to_owned();
            return Err(fault(format!("it cannot be run ({}): {told}", output.status)));
        }
        let told: Told = serde_json::from_slice(&output.stdout)
            .map_err(|_| fault("it does not answer as Python does: name the interpreter itself".into()))?;
        if told.version[..2] < OLDEST[..] {
            let [major, minor] = OLDEST;
            return Err(fault(format!("it must be Python {major}.{minor} or newer, and is {}", version(told.version))));
        }
        // Through scripts in front of it, such as those of version managers.
        let program = if is_script(program) { told.executable.clone() } else { program.to_path_buf() };
        if let Some(missing) = further.iter().find(|path| !path.is_absolute() || !path.exists()) {
            return Err(Error::Folder { folder: missing.clone(), what: "it must be an absolute path that is there" });
        }
        let (read, run) = (readable(&told, further), runnable(&told));
        Ok(Self { program, version: version(told.version), read, run })
    }

    /// Refuses an interpreter that needs a folder in which the server keeps what nobody may read.
    pub(super) fn check_apart(&self, secret: &[PathBuf]) -> Result<(), Error> {
        let inside = |folder: &PathBuf| secret.iter().any(|path| path.starts_with(folder));
        let wide = |folder: &PathBuf| {
            folder.parent().is_none() || ["/proc", "/sys", "/dev", "/etc"].iter().any(|path| folder == Path::new(path))
        };
        match self.read.iter().find(|folder| inside(folder) || wide(folder)) {
            None => Ok(()),
            Some(folder) => Err(Error::Folder {
                folder: folder.clone(),
                what: "graders would read it, and the server keeps its data or its secrets there: have the interpreter and \
                       its modules elsewhere",
            }),
        }
    }
}

fn version([major, minor, patch]: [u32; 3]) -> String {
    format!("{major}.{minor}.{patch}")
}

fn is_script(program: &Path) -> bool {
    use std::io::Read as _;
    let mut begin = [0; 2];
    std::fs::File::open(program).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && &begin == b"#!"
}

/// Returns what the interpreter reads, as real paths.
fn readable(told: &Told, further: &[PathBuf]) -> Vec<PathBuf> {
    let libraries = told.mapped.iter().filter(|path| is_library(path)).filter_map(|path| path.parent());
    let parts = told.prefixes.iter().flat_map(|prefix| PARTS.iter().map(|part| prefix.join(part)));
    let all = libraries.map(Path::to_path_buf).chain(parts).chain(told.path.iter().cloned());
    let all = all.chain(SYSTEM.iter().map(PathBuf::from)).chain(further.iter().cloned());
    let real: BTreeSet<PathBuf> = all.filter_map(|path| path.canonicalize().ok()).collect();
    // What lies within another one needs no rule of its own.
    let covered = |path: &Path| path.ancestors().skip(1).any(|above| real.contains(above));
    real.iter().filter(|path| !covered(path)).cloned().collect()
}

/// Returns the interpreter and the loader of its libraries.
fn runnable(told: &Told) -> Vec<PathBuf> {
    let is_loader = |path: &&PathBuf| file_name(path).starts_with("ld-") || file_name(path).starts_with("ld.so");
    let loaders = told.mapped.iter().filter(is_loader).filter_map(|path| path.canonicalize().ok());
    loaders.chain([told.executable.clone()]).collect()
}

fn is_library(path: &Path) -> bool {
    // Some have their version behind it.
    file_name(path).split('.').skip(1).any(|part| part == "so")
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_named_once_and_never_holds_the_data() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path().canonicalize().expect("a path");
        for folder in ["env/lib/python3/site-packages", "base/lib", "data"] {
            std::fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let told = Told {
            version: [3, 11, 2],
            executable: root.join("base/bin/python3"),
            mapped: Vec::new(),
            prefixes: vec![root.join("env"), root.join("base"), root.join("missing")],
            path: vec![root.join("env/lib/python3/site-packages")],
        };
        let read = readable(&told, &[]);
        let own: Vec<&PathBuf> = read.iter().filter(|path| path.starts_with(&root)).collect();
        assert_eq!(own, [&root.join("base/lib"), &root.join("env/lib")]);
        let interpreter = |read| Interpreter { program: "/p".into(), version: String::new(), read, run: Vec::new() };
        let data = [root.join("data")];
        interpreter(read).check_apart(&data).expect("apart");
        for wide in ["/", "/etc", root.to_str().expect("a text")] {
            interpreter(vec![wide.into()]).check_apart(&data).expect_err(wide);
        }
    }
}
