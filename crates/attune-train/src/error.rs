//! Errors of training files and training runs. The worker turns each variant into a failed or repeated job, `api` into
//! a status.

use std::sync::Arc;

use crate::purpose::Purpose;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Kinds of faults of a training or validation file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFault {
    /// Lines that cannot be read, or examples that cannot be trained on.
    Content,
    /// Too few examples.
    TooFewExamples,
}

/// Reasons why a job's classes cannot be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassFault {
    /// A line of one of the job's files does not fit.
    File(Purpose),
    /// The given number of classes does not fit.
    Number,
    /// The given positive class does not fit.
    PositiveClass,
}

/// A failure of a training run, with a message that tells its reader what to change.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] attune_model::Error),

    /// A training or validation file cannot be used; the message names lines.
    #[error("{message}")]
    File {
        /// File that is at fault.
        purpose: Purpose,
        /// The kind of fault.
        fault: FileFault,
        /// Faults by line and the changes to make.
        message: String,
    },

    /// The files do not have the classes that classification metrics need.
    #[error("{message}")]
    Classes {
        /// Reason.
        fault: ClassFault,
        /// Fault and the change to make.
        message: String,
    },

    /// A setting of the fine-tune is out of its range or does not go with the others.
    #[error("{message}")]
    Setting {
        /// Field of [`Hyperparameters`](crate::train::hyperparameters::Hyperparameters).
        name: &'static str,
        /// Allowed range and the change to make.
        message: String,
    },

    /// `max_seq_length` is above the model's context.
    #[error("max_seq_length is {asked}, but the model reads at most {context} tokens: make it smaller or leave it out")]
    SequenceTooLong {
        /// Requested tokens.
        asked: usize,
        /// Tokens that the model can attend to.
        context: usize,
    },

    /// The run does not fit into memory.
    #[error("{0}")]
    InsufficientMemory(String),

    /// Loss or gradient is no longer a finite number.
    #[error("{0}")]
    NonFiniteLoss(String),

    /// The saved state of a run cannot be continued.
    #[error("{0}")]
    Checkpoint(String),

    /// The work was cancelled before it ended.
    #[error("cancelled")]
    Cancelled,

    /// Reading or writing a file failed.
    #[error("{context}: {source}")]
    Io {
        /// Operation that failed, with the path.
        context: String,
        /// Error of the system.
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
    /// Wraps an input or output failure while doing `context`; use as `.map_err(Error::io("read the training file"))`.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source: Arc::new(source) }
    }
}
