//! What can go wrong with adapters: their files, their names, their place in memory. `jobs` wraps [`Error`] in its own,
//! `api` maps each variant to a status.

use std::sync::Arc;
use std::time::Duration;

use crate::off_thread::Lost;
use crate::{engine, model, store};

/// The result of everything in this module that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure with an adapter, with a message that its reader can act on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),

    /// The base model failed.
    #[error(transparent)]
    Model(#[from] model::Error),

    /// No base model has the id that the adapter was trained on.
    #[error(transparent)]
    Engine(#[from] engine::Error),

    /// The two files of an adapter cannot be used: damaged, of an unknown kind, or not for this base model.
    #[error("The adapter cannot be used: {0}")]
    Invalid(String),

    /// The adapter needs more than all memory for adapters on the device.
    #[error(
        "The adapter cannot be used: it needs {bytes} bytes on the device; this server's limits.adapter_device_mib allows \
         {limit}. Use a smaller rank, or raise the limit."
    )]
    TooLarge {
        /// Bytes that the adapter needs.
        bytes: u64,
        /// Bytes that all adapters on the device may take.
        limit: u64,
    },

    /// The folder or the archive that should hold the two files cannot be taken.
    #[error("the adapter's folder or archive cannot be used: {0}")]
    Source(String),

    /// There is no such folder.
    #[error("No such adapter folder object: {0}")]
    FolderNotFound(String),

    /// A limit is met; try again after the given time.
    #[error("The server is busy: {what}. Please try again in {} s.", retry_after.as_secs())]
    Overloaded {
        /// The limit that was met.
        what: &'static str,
        /// A sound time to wait.
        retry_after: Duration,
    },

    /// The storage of adapters does not answer in time.
    #[error("{0}")]
    Unavailable(&'static str),

    /// Reading a file failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// What the system said.
        source: Arc<std::io::Error>,
    },

    /// A defect in Attune itself; the message goes to the log, not to the client.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

impl Error {
    /// An input or output failure while doing `context`; use as `.map_err(Error::io("read the folder"))`.
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
