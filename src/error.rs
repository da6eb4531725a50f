//! What can go wrong, in the words of the domain. Every module returns [`Error`]; `api/error.rs` alone turns it into a
//! status and a body, `jobs/worker.rs` into a failed job.

use std::sync::Arc;
use std::time::Duration;

/// The result of everything that can fail in Attune.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a key may use a bounded amount of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimit {
    /// Requests, per minute or at a time.
    Requests,
    /// Tokens per minute.
    Tokens,
}

/// A failure, with a message that its reader can act on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller sent something that must change; `param` names the field, `code` is a stable word for programs.
    #[error("{message}")]
    Invalid {
        /// What is wrong and what to send instead.
        message: String,
        /// The field at fault, in the spelling of the request body.
        param: Option<String>,
        /// A stable word for programs, such as `invalid_training_file`.
        code: Option<&'static str>,
    },

    /// Prompt and answer together do not fit the model's context.
    #[error(
        "This model's maximum context length is {limit} tokens. However, you requested {} tokens ({prompt} in the prompt, \
         {completion} in the completion). Please shorten the prompt or ask for fewer tokens.", prompt + completion
    )]
    ContextLength {
        /// Tokens that the model can attend to.
        limit: usize,
        /// Tokens in the prompt.
        prompt: usize,
        /// Tokens asked for.
        completion: usize,
    },

    /// No base model and no adapter of this caller has the name.
    #[error("The model `{0}` does not exist or you do not have access to it.")]
    ModelNotFound(String),

    /// No object of this kind has the id.
    #[error("No such {kind} object: {id}")]
    NotFound {
        /// `File`, `FineTune`, `FineTuningJob`, …
        kind: &'static str,
        /// The id as the caller wrote it.
        id: String,
    },

    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(String),

    /// The object is not in a state that allows this.
    #[error("{0}")]
    Conflict(String),

    /// Every queue is full; try again after the given time.
    #[error("The server is busy: {what}. Please try again in {} s.", retry_after.as_secs())]
    Overloaded {
        /// The limit that was met.
        what: &'static str,
        /// A sound time to wait.
        retry_after: Duration,
    },

    /// The answer took longer than the server allows; trying the same again would take as long.
    #[error(
        "The answer was not complete after {} s, the limit of this server. Please ask for fewer tokens, or stream the \
         answer and go on from what has come.", limit.as_secs()
    )]
    TimedOut {
        /// The time that a request may take.
        limit: Duration,
    },

    /// The key has used up what it may use.
    #[error("{message}")]
    RateLimited {
        /// The kind of limit.
        what: RateLimit,
        /// The limit, what is used of it, and when to come back.
        message: String,
        /// When the same request is let in; absent where it never is.
        retry_after: Option<Duration>,
    },

    /// A part that the server needs does not answer, for example the database.
    #[error("{0}")]
    Unavailable(String),

    /// A model folder, adapter or configuration on this machine cannot be used; the message says which file and why.
    #[error("{0}")]
    Setup(String),

    /// The work was cancelled before it ended.
    #[error("cancelled")]
    Cancelled,

    /// The device has no memory left for what was to be computed; it goes on with all else.
    #[error("The device has no memory left for this at the moment. Please try again later, or with less at a time.")]
    OutOfMemory,

    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(Arc<candle_core::Error>),

    /// A query failed.
    #[error("database: {0}")]
    Database(sqlx::Error),

    /// Reading or writing a stored blob failed.
    #[error("storage: {0}")]
    Blob(#[from] object_store::Error),

    /// Reading or writing a file failed.
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

impl From<attune_model::Error> for Error {
    fn from(error: attune_model::Error) -> Self {
        use attune_model::Error as Model;
        match error {
            Model::Setup(message) => Self::Setup(message),
            Model::Template(message) => Self::invalid("messages", message),
            Model::NotEncodable(_) => Self::Invalid { message: error.to_string(), param: None, code: None },
            Model::OutOfMemory => Self::OutOfMemory,
            Model::DeviceLost => Self::Unavailable(error.to_string()),
            Model::Tensor(error) => Self::Tensor(error),
            Model::Io { context, source } => Self::Io { context, source },
            Model::Internal(message) => Self::Internal(message),
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        attune_model::Error::from(error).into()
    }
}

impl From<attune_engine::Error> for Error {
    fn from(error: attune_engine::Error) -> Self {
        use attune_engine::Error as Engine;
        let message = error.to_string();
        match error {
            Engine::Model(error) => error.into(),
            Engine::ContextLength { limit, prompt, completion } => Self::ContextLength { limit, prompt, completion },
            Engine::EmptyPrompt => Self::Invalid { message, param: None, code: None },
            Engine::UnknownToken { .. } => Self::invalid("prompt", message),
            Engine::Grammar { message, field } => Self::invalid(field, message),
            Engine::UnknownModel(name) => Self::ModelNotFound(name),
            Engine::Overloaded { what, retry_after } => Self::Overloaded { what, retry_after },
            Engine::TimedOut { limit } => Self::TimedOut { limit },
            Engine::Unavailable(message) => Self::Unavailable(message.into()),
            Engine::Setup(message) => Self::Setup(message),
            Engine::Io { context, source } => Self::Io { context: context.into(), source },
            Engine::Internal(message) => Self::Internal(message),
        }
    }
}

impl From<attune_train::Error> for Error {
    fn from(error: attune_train::Error) -> Self {
        use attune_train::datasets::Purpose;
        use attune_train::{ClassFault, Error as Train, FileFault};
        let file = |purpose| match purpose {
            Purpose::Training => "training_file",
            Purpose::Validation => "validation_file",
        };
        let message = error.to_string();
        match error {
            Train::Model(error) => error.into(),
            Train::File { purpose, fault, message } => {
                let code = match fault {
                    FileFault::Content => "invalid_training_file",
                    FileFault::TooFewExamples => "invalid_n_examples",
                };
                Self::invalid_code(file(purpose), code, message)
            }
            Train::Classes { fault, message } => {
                let param = match fault {
                    ClassFault::File(purpose) => file(purpose),
                    ClassFault::Number => "classification_n_classes",
                    ClassFault::PositiveClass => "classification_positive_class",
                };
                Self::invalid_code(param, "invalid_classes", message)
            }
            Train::Setting { name, message } => Self::invalid(name, message),
            Train::SequenceTooLong { .. } => Self::invalid_code("max_seq_length", "invalid_value", message),
            Train::InsufficientMemory(message) => Self::invalid_code("max_seq_length", "insufficient_memory", message),
            Train::NonFiniteLoss(message) => Self::invalid_code("learning_rate_multiplier", "non_finite_loss", message),
            Train::Checkpoint(message) => Self::Setup(message),
            Train::Cancelled => Self::Cancelled,
            Train::Io { context, source } => Self::Io { context, source },
            Train::Internal(message) => Self::Internal(message),
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolTimedOut => Self::Unavailable("The database is busy or does not answer.".into()),
            sqlx::Error::PoolClosed => Self::Unavailable("The server is shutting down.".into()),
            sqlx::Error::Io(error) => Self::Unavailable(format!("The database does not answer: {error}.")),
            // It shuts down (57P01, 57P02), starts up (57P03) or has no connection left (53300).
            sqlx::Error::Database(error)
                if matches!(error.code().as_deref(), Some("57P01" | "57P02" | "57P03" | "53300")) =>
            {
                Self::Unavailable(format!("The database does not answer: {error}."))
            }
            // Postgres stores no NUL in text (22021) or JSON (22P05), and only a client can have sent one.
            sqlx::Error::Database(error) if matches!(error.code().as_deref(), Some("22021" | "22P05")) => {
                Self::Invalid { message: "Text must not contain the NUL character.".into(), param: None, code: None }
            }
            error => Self::Database(error),
        }
    }
}

impl Error {
    /// A fault in the request's field `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), param: Some(param.into()), code: None }
    }

    /// A fault in the request's field `param`, with a stable code.
    pub fn invalid_code(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), param: Some(param.into()), code: Some(code) }
    }

    /// The same error; a model that was not found is called by the `name` that was asked for.
    #[must_use]
    pub fn about_model(self, name: &str) -> Self {
        match self {
            Self::ModelNotFound(_) => Self::ModelNotFound(name.into()),
            error => error,
        }
    }

    /// An input or output failure while doing `context`; use as `.map_err(Error::io("read config.json"))`.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source: Arc::new(source) }
    }

    /// True where trying the same again later can help: what a job retries and a client is told to retry.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Overloaded { .. }
                | Self::Unavailable(_)
                | Self::OutOfMemory
                | Self::Database(_)
                | Self::Blob(_)
                | Self::Io { .. }
        )
    }
}
