//! Errors about a model's files, its chat template, its device. The layers above wrap [`Error`] in their own.

use std::sync::Arc;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a model, with a message that its reader can act on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A model folder or a device setting cannot be used; the message says which file and why.
    #[error("{0}")]
    Setup(String),

    /// The chat template refuses the messages (`raise_exception`), or does not know one of their fields.
    #[error("{0}")]
    Template(String),

    /// The tokenizer cannot encode the text.
    #[error("The text cannot be turned into tokens of this model: {0}")]
    NotEncodable(String),

    /// The device has no memory left for this computation; all other work on it goes on.
    #[error("The device has no memory left for this at the moment. Please try again later, or with less at a time.")]
    OutOfMemory,

    /// The GPU was lost: this process can compute nothing on it any more.
    #[error("The GPU does not answer any more.")]
    DeviceLost,

    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(Arc<candle_core::Error>),

    /// Reading a file failed.
    #[error("{context}: {source}")]
    Io {
        /// Operation that failed, with the path.
        context: String,
        /// The system's error.
        source: Arc<std::io::Error>,
    },

    /// A defect in Attune itself; the message goes to the log, not to the client.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        if is_out_of_memory(&error) { Self::OutOfMemory } else { Self::Tensor(Arc::new(error)) }
    }
}

/// Returns true for the messages of the GPU's driver and of cuBLAS about a failed allocation: candle 0.10 has no
/// variant for it.
pub(crate) fn is_out_of_memory(error: &candle_core::Error) -> bool {
    let text = error.to_string();
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|name| text.contains(name))
}

impl Error {
    /// Wraps an I/O error with its `context`; use as `.map_err(Error::io("read config.json"))`.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source: Arc::new(source) }
    }
}
