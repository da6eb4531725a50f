//! Code of others, run by an interpreter of Python that can do next to nothing: it computes, reads its own modules, and
//! writes into one folder, for a bounded time and within a bounded memory. `docs/adr/0010-sandbox-for-graders.md` says
//! why it is built so.
//!
//! [`Sandbox`] is what a server has of it: [`interpreter`] finds out what the operator's interpreter needs, [`keeper`]
//! starts processes and sees them off, [`scratch`] has their folders, and [`Process`] is one that has loaded a source.
//! Each process begins as [`child`], this program again, which takes its rights away by [`paths`] and [`calls`] before
//! it becomes the interpreter.

mod calls;
pub(crate) mod child;
mod interpreter;
mod keeper;
mod paths;
mod process;
mod scratch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

pub(crate) use self::process::{Given, Process};

use self::interpreter::Interpreter;
use self::keeper::Keeper;
use self::scratch::Home;
use crate::config::Config;

/// The command of this program that becomes an interpreter.
pub(crate) const COMMAND: &str = "grader-sandbox";
/// Time after which an interpreter is replaced.
pub(crate) const LIFE: Duration = Duration::from_mins(5);
/// Seconds of a processor that an interpreter has beyond its life and its last item.
const SPARE: u64 = 30;
/// The grader that tries what must be refused.
const CHECK: &str = include_str!("check.py");
/// Folder of the data folder.
const FOLDER: &str = "graders";

/// Why graders of this kind cannot be run; for the operator.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The interpreter cannot be used.
    #[error("graders: python: {}: {what}", program.display())]
    Interpreter {
        /// As it was named.
        program: PathBuf,
        /// Why.
        what: String,
    },
    /// A folder that graders may read is not one to be read.
    #[error("graders: {}: {what}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        what: &'static str,
    },
    /// The interpreter does not run in the sandbox, or the sandbox does not hold.
    #[error("graders: python: there is no sandbox for it here: {0}")]
    NoSandbox(String),
    /// Folders cannot be made.
    #[error("graders: {}: {what}", folder.display())]
    Files {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        what: String,
    },
}

/// Why code has no score.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The source cannot be loaded.
    #[error("{0}")]
    Source(String),
    /// It raised an exception, or returned no number.
    #[error("{0}")]
    Raised(String),
    /// It took too much, or ended its interpreter.
    #[error("{0}")]
    Ended(String),
    /// It could not be run at all.
    #[error("The sandbox for graders of type python does not work: {0}.")]
    Unavailable(String),
}

/// What code may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// For one item, or to load a source.
    time: Duration,
    /// Bytes.
    memory: u64,
    disk: u64,
}

/// What the sandbox leaves to the code.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    /// The server, with which the code ends.
    server: i32,
    interpreter: PathBuf,
    /// Files and folders that it may read.
    read: Vec<PathBuf>,
    /// Programs that it may become: the interpreter and what loads it.
    run: Vec<PathBuf>,
    /// Its own folder.
    folder: PathBuf,
    /// Bytes of its address space, and of a file.
    memory: u64,
    file: u64,
    /// Seconds of a processor, all in all.
    seconds: u64,
}

/// A sandbox that holds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    interpreter: Interpreter,
    limits: Limits,
    home: Arc<Home>,
    keeper: Keeper,
}

impl Fault {
    /// True if the interpreter cannot go on.
    pub(crate) fn ends(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Unavailable(_))
    }
}

impl Sandbox {
    /// Prepares the sandbox that the configuration asks for and tries whether it holds; `None` if it asks for none.
    pub async fn open(config: &Config) -> Result<Option<Self>, Error> {
        let Some(program) = &config.graders.python else { return Ok(None) };
        let interpreter = Interpreter::find(program, &config.graders.folders).await?;
        let root = config.data_dir.join(FOLDER);
        let files = |folder: &Path, error: io::Error| Error::Files { folder: folder.into(), what: error.to_string() };
        let home = Arc::new(Home::open(&root).map_err(|error| files(&root, error))?);
        let data = config.data_dir.canonicalize().map_err(|error| files(&config.data_dir, error))?;
        let secrets = [&config.api_keys_file, &config.database_url_file].into_iter().flatten();
        let secret: Vec<PathBuf> = secrets.filter_map(|path| path.canonicalize().ok()).chain([data.clone()]).collect();
        interpreter.check_apart(&secret)?;
        let keeper = Keeper::start(Arc::clone(&home)).map_err(|error| files(&root, error))?;
        let limits = Limits {
            time: Duration::from_secs(config.graders.seconds),
            memory: config.graders.memory_mib << 20,
            disk: config.graders.disk_mib << 20,
        };
        let sandbox = Self(Arc::new(Inner { interpreter, limits, home, keeper }));
        sandbox.check(&data).await?;
        let Interpreter { program, version, .. } = &sandbox.0.interpreter;
        tracing::info!(python = %program.display(), version, "graders of type python run in a sandbox");
        Ok(Some(sandbox))
    }

    /// Starts an interpreter and loads `source`.
    pub(crate) async fn load(&self, source: &str) -> Result<Process, Fault> {
        let mut process = Process::start(&self.0).await?;
        process.load(source).await?;
        Ok(process)
    }

    /// Runs a grader that tries what must be refused.
    async fn check(&self, data: &Path) -> Result<(), Error> {
        let outside = self.0.home.path().join("outside");
        let names: Vec<&str> = child::variables().collect();
        let item = json!({"data": data, "outside": outside, "environment": names});
        let given = Given { text: Some(""), tools: None, choices: None, item: &item };
        let grade = async { self.load(CHECK).await?.grade(given).await };
        grade.await.map(|_| ()).map_err(|fault: Fault| {
            Error::NoSandbox(match fault {
                Fault::Unavailable(what) => what,
                fault => fault.to_string(),
            })
        })
    }
}

impl Inner {
    /// Returns what an interpreter with this folder is left.
    fn plan(&self, folder: &Path) -> Plan {
        let Interpreter { program, read, run, .. } = &self.interpreter;
        Plan {
            server: std::process::id() as i32,
            interpreter: program.clone(),
            read: read.clone(),
            run: run.clone(),
            folder: folder.to_path_buf(),
            memory: self.limits.memory,
            file: self.limits.disk,
            seconds: (LIFE + self.limits.time).as_secs() + SPARE,
        }
    }
}
