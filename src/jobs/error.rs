//! What can go wrong with jobs: in the queue, or in a run. The worker tries transient failures again; `api` maps each
//! variant to a status, or to what a failed job tells its client.

use std::sync::Arc;
use std::time::Duration;

use crate::off_thread::Lost;
use crate::store::disk_trouble::disk_trouble;
use crate::{adapters, engine, model, store};

/// The result of everything in this module that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the queue or of a job, with a message that its reader can act on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),

    /// The adapter to continue cannot be used.
    #[error(transparent)]
    Adapters(#[from] adapters::Error),

    /// The engine failed, or does not know the model.
    #[error(transparent)]
    Engine(#[from] engine::Error),

    /// The model failed.
    #[error(transparent)]
    Model(#[from] model::Error),

    /// The files, the settings or the run itself failed.
    #[error(transparent)]
    Train(attune_train::Error),

    /// The organisation has no such job.
    #[error("No such {kind} object: {id}")]
    NotFound {
        /// The object's kind in the resource that was asked.
        kind: &'static str,
        /// The id as the caller wrote it.
        id: String,
    },

    /// The job's status does not allow the action.
    #[error("Cannot {action} job {id}: its status is {status}.")]
    Conflict {
        /// `cancel`, `pause` or `resume`.
        action: &'static str,
        /// Public id of the job.
        id: String,
        /// Where the job stands, in words.
        status: &'static str,
    },

    /// The organisation has as many unfinished jobs as it may have.
    #[error(
        "Your organization has {unfinished} jobs that have not ended, and may have {most} \
         (training.max_unfinished_jobs): wait until one has ended, or cancel one."
    )]
    TooManyJobs {
        /// Its jobs that wait, run or are paused.
        unfinished: i64,
        /// The most that it may have.
        most: i64,
    },

    /// A file was deleted before the job that names it was added.
    #[error("The file '{id}' does not exist: upload it with the purpose 'fine-tune' first.")]
    FileGone {
        /// Field of the request that names it.
        param: &'static str,
        /// Id of the file.
        id: String,
    },

    /// The fine-tuned model was deleted before the job that continues it was added.
    #[error("The model `{0}` does not exist or you do not have access to it.")]
    ModelGone(String),

    /// Classification metrics were asked for, but the training file has pairs of texts.
    #[error(
        "compute_classification_metrics is for prompts and completions, but the training file has pairs of texts: leave it \
         out"
    )]
    ClassesOfPairs,

    /// A limit is met; try again after the given time.
    #[error("The server is busy: {what}. Please try again in {} s.", retry_after.as_secs())]
    Overloaded {
        /// The limit that was met.
        what: &'static str,
        /// A sound time to wait.
        retry_after: Duration,
    },

    /// The server or its engine is stopping.
    #[error("{0}")]
    Unavailable(&'static str),

    /// The work was cancelled before it ended.
    #[error("cancelled")]
    Cancelled,

    /// Reading or writing a file failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// What the system said.
        source: Arc<std::io::Error>,
    },

    /// A defect in Attune itself; the message goes to the log, not to the client.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<attune_train::Error> for Error {
    fn from(error: attune_train::Error) -> Self {
        match error {
            attune_train::Error::Cancelled => Self::Cancelled,
            error => Self::Train(error),
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Error {
    /// An input or output failure while doing `context`; use as `.map_err(Error::io("make a temporary file"))`.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source: Arc::new(source) }
    }

    /// The model's error below this one, through whichever layer it came.
    pub fn of_model(&self) -> Option<&model::Error> {
        use attune_train::Error as Train;
        match self {
            Self::Model(error)
            | Self::Train(Train::Model(error))
            | Self::Engine(engine::Error::Model(error))
            | Self::Adapters(adapters::Error::Model(error) | adapters::Error::Engine(engine::Error::Model(error))) => {
                Some(error)
            }
            _ => None,
        }
    }

    /// True if a computation failed in a way that a lost device explains.
    pub(crate) fn may_be_of_device(&self) -> bool {
        use attune_train::Error as Train;
        let internal = matches!(
            self,
            Self::Internal(_) | Self::Train(Train::Internal(_)) | Self::Adapters(adapters::Error::Internal(_))
        );
        internal || matches!(self.of_model(), Some(model::Error::Tensor(_) | model::Error::Internal(_)))
    }

    /// True if the device had no memory left.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self.of_model(), Some(model::Error::OutOfMemory))
    }

    /// Returns what is wrong with the storage of files, as the end of a sentence about it; `None` for other failures.
    /// The worker waits until it is mended.
    pub fn storage_trouble(&self) -> Option<&'static str> {
        use attune_train::Error as Train;
        if let Some(model::Error::Io { source, .. }) = self.of_model() {
            return disk_trouble(&**source);
        }
        match self {
            Self::Store(error) | Self::Adapters(adapters::Error::Store(error)) => error.disk_trouble(),
            Self::Io { source, .. }
            | Self::Adapters(adapters::Error::Io { source, .. })
            | Self::Train(Train::Io { source, .. }) => disk_trouble(&**source),
            _ => None,
        }
    }

    /// True if trying the same again later can help: the worker does.
    pub fn is_transient(&self) -> bool {
        use model::Error as Model;
        if let Some(error) = self.of_model() {
            return matches!(error, Model::OutOfMemory | Model::DeviceLost | Model::Io { .. });
        }
        match self {
            Self::Store(error) | Self::Adapters(adapters::Error::Store(error)) => error.is_transient(),
            Self::Engine(error) | Self::Adapters(adapters::Error::Engine(error)) => {
                use engine::Error as Engine;
                matches!(error, Engine::Overloaded { .. } | Engine::Unavailable(_) | Engine::Io { .. })
            }
            Self::Adapters(error) => {
                use adapters::Error as Adapters;
                matches!(error, Adapters::Overloaded { .. } | Adapters::Unavailable(_) | Adapters::Io { .. })
            }
            Self::Train(error) => matches!(error, attune_train::Error::Io { .. }),
            Self::Overloaded { .. } | Self::Unavailable(_) | Self::Io { .. } => true,
            _ => false,
        }
    }
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        Self::Internal(lost.0)
    }
}
