//! What can go wrong with stored things. The layers above wrap [`Error`] in their own; `api` maps each variant to a
//! status.
//!
//! Database and blobs are known here alone: nobody above looks into `sqlx`'s or `object_store`'s errors.

use std::io::ErrorKind;
use std::iter::successors;
use std::sync::Arc;

use crate::off_thread::Lost;

/// The result of everything in this module that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the store, with a message that its reader can act on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No object of this kind has the id.
    #[error("No such {kind} object: {id}")]
    NotFound {
        /// `File`, `key`, …
        kind: &'static str,
        /// The id as the caller wrote it.
        id: String,
    },

    /// No fine-tuned model of this caller has the name.
    #[error("The model `{0}` does not exist or you do not have access to it.")]
    ModelNotFound(String),

    /// An unfinished job, batch or run of an eval reads the file, so it cannot be deleted.
    #[error("File {file} is in use by {job}, which has not ended: cancel that first.")]
    FileInUse {
        /// Id of the file.
        file: String,
        /// Public id of the job, the batch or the run.
        job: String,
    },

    /// An unfinished job continues the model, so it cannot be deleted.
    #[error("The model {model} is in use by job {job}, which trains it further: cancel the job first.")]
    ModelInUse {
        /// Name of the model.
        model: String,
        /// Public id of the job.
        job: String,
    },

    /// An alias of the organisation stands for the model, so it cannot be deleted.
    #[error("The alias '{alias}' stands for the model {model}: move or delete the alias first.")]
    ModelHasAlias {
        /// Name of the model.
        model: String,
        /// The alias.
        alias: String,
    },

    /// The organisation has as many aliases as it may have.
    #[error("Your organization has as many aliases as it may have: delete one that is not needed any more.")]
    TooManyAliases,

    /// An adapter from elsewhere already has the name, and the caller did not ask to replace it.
    #[error("An adapter named '{0}' is stored already: replace it, or choose another name.")]
    NameTaken(String),

    /// A job's model has the name; those are never replaced.
    #[error("A fine-tune job made the model '{0}': choose another name.")]
    NameOfJob(String),

    /// A field of a new API key is out of its range; the message says which and what is allowed.
    #[error("{0}")]
    KeySetting(String),

    /// Postgres stores no NUL in text or JSON.
    #[error("Text must not contain the NUL character.")]
    NulInText,

    /// The database does not answer now, or not in time.
    #[error("{0}")]
    Unavailable(String),

    /// The connection to the database cannot be secured.
    #[error("database: {0}")]
    Tls(Arc<sqlx::Error>),

    /// A query failed.
    #[error("database: {0}")]
    Database(Arc<sqlx::Error>),

    /// The blob is not there (any more).
    #[error("storage: there is no blob `{0}`")]
    BlobNotFound(String),

    /// Reading or writing a blob failed.
    #[error("storage: {0}")]
    Blob(Arc<object_store::Error>),

    /// The database cannot be set up or used; the message says which part and why.
    #[error("{0}")]
    Setup(String),

    /// Another process has the private Postgres of this data folder.
    #[error("{0}")]
    FolderInUse(String),

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

/// Why a disk takes nothing: it does so until its operator sees to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageFault {
    /// No room is left, for anybody or for this user.
    Full,
    /// It can only be read.
    ReadOnly,
}

/// Returns what the system said, of an error and all its causes.
pub(super) fn system_errors<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a std::io::Error> {
    successors(Some(error), |cause| cause.source()).filter_map(|cause| cause.downcast_ref())
}

impl StorageFault {
    /// Finds the fault in an error or one of its causes; `None` if it is another one.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        system_errors(error).find_map(|cause| match cause.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Some(Self::Full),
            ErrorKind::ReadOnlyFilesystem => Some(Self::ReadOnly),
            _ => None,
        })
    }
}

impl Error {
    /// An input or output failure while doing `context`; use as `.map_err(Error::io("read an upload"))`.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source: Arc::new(source) }
    }

    /// Returns what is wrong with the disk, of the blobs or of the database; `None` if this is another failure.
    pub fn storage_fault(&self) -> Option<StorageFault> {
        match self {
            Self::Io { source, .. } => StorageFault::of(&**source),
            Self::Blob(error) => StorageFault::of(&**error),
            Self::Database(error) => {
                let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
                // `disk_full`
                (code.as_deref() == Some("53100")).then_some(StorageFault::Full)
            }
            _ => None,
        }
    }

    /// True if what was to be stored is at fault: of a wrong form (class 22), against a rule (23) or too large (54).
    pub(crate) fn is_of_data(&self) -> bool {
        match self {
            Self::NulInText => true,
            Self::Database(error) => {
                let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
                code.is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
            }
            _ => false,
        }
    }

    /// True if trying the same again later can help.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_)
                | Self::Tls(_)
                | Self::Database(_)
                | Self::BlobNotFound(_)
                | Self::Blob(_)
                | Self::Io { .. }
        )
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
            // NUL in text (22021) or JSON (22P05), which only a client can have sent.
            sqlx::Error::Database(error) if matches!(error.code().as_deref(), Some("22021" | "22P05")) => {
                Self::NulInText
            }
            error @ sqlx::Error::Tls(_) => Self::Tls(Arc::new(error)),
            error => Self::Database(Arc::new(error)),
        }
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { path, .. } => Self::BlobNotFound(path),
            error => Self::Blob(Arc::new(error)),
        }
    }
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        Self::Internal(lost.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_or_read_only_disk_is_found_below_other_errors() {
        let failure = |kind: ErrorKind| std::io::Error::from(kind);
        for (kind, fault) in [
            (ErrorKind::StorageFull, Some(StorageFault::Full)),
            (ErrorKind::QuotaExceeded, Some(StorageFault::Full)),
            (ErrorKind::ReadOnlyFilesystem, Some(StorageFault::ReadOnly)),
            (ErrorKind::PermissionDenied, None),
        ] {
            assert_eq!(Error::io("write")(failure(kind)).storage_fault(), fault, "{kind}");
            let blob = object_store::Error::Generic { store: "local", source: Box::new(failure(kind)) };
            // As a writer of the store reports it.
            let wrapped =
                std::io::Error::other(object_store::Error::Generic { store: "local", source: Box::new(failure(kind)) });
            assert_eq!(Error::from(blob).storage_fault(), fault, "{kind}");
            assert_eq!(Error::io("copy")(wrapped).storage_fault(), fault, "{kind}");
        }
    }
}
