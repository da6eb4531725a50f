//! What ends the program or a command: the application's own failures, and those of the layers below it. Only `app` and
//! `cli` return [`Error`]; each layer has an error of its own, see `docs/adr/0005-errors-by-layer.md`.

use std::sync::Arc;

use crate::off_thread::Lost;
use crate::{adapters, config, engine, hub, jobs, model, sandbox, store};

/// The result of everything in `app` and `cli` that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure with a message that the person at the terminal can act on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),

    /// Graders of the type `python` cannot be run in a sandbox.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),

    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),

    /// An adapter failed.
    #[error(transparent)]
    Adapters(#[from] adapters::Error),

    /// The queue or a job failed.
    #[error(transparent)]
    Jobs(#[from] jobs::Error),

    /// An engine cannot start.
    #[error(transparent)]
    Engine(#[from] engine::Error),

    /// A model cannot be loaded.
    #[error(transparent)]
    Model(#[from] model::Error),

    /// A model cannot be found or downloaded.
    #[error(transparent)]
    Hub(#[from] hub::Error),

    /// A file or a setting of training cannot be used.
    #[error(transparent)]
    Train(#[from] attune_train::Error),

    /// An option of the command line or a device cannot be used; the message says which and why.
    #[error("{0}")]
    Setup(String),

    /// A server that a command asks does not answer.
    #[error("{0}")]
    Unavailable(String),

    /// Reading or writing a file failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// What the system said.
        source: Arc<std::io::Error>,
    },

    /// A defect in Attune itself.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// An input or output failure while doing `context`; use as `.map_err(Error::io("read config.json"))`.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source: Arc::new(source) }
    }
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        Self::Internal(lost.0)
    }
}
