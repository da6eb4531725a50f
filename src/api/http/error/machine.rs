//! Failures of this machine, whose details are for the log: defects, and disks that take nothing.

use std::fmt;

use axum::http::StatusCode;

use super::{Problem, SERVER_ERROR};
use crate::store::StorageFault;

impl Problem {
    /// A defect or a failure of this machine: the details are in the log.
    pub fn internal() -> Self {
        let message = "The server had an error while processing your request. The log of the server says more.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER_ERROR, message)
    }

    /// The disk takes nothing until the operator, who finds `message` in the log, sees to it.
    pub fn storage(fault: StorageFault, message: impl fmt::Display) -> Self {
        tracing::error!("{message}");
        let (status, code, message) = match fault {
            StorageFault::Full => (
                StatusCode::INSUFFICIENT_STORAGE,
                "insufficient_storage",
                "The server's disk is full, so this could not be stored. The operator of the server must make room \
                 before it is sent again; files that are no longer needed can be deleted.",
            ),
            StorageFault::ReadOnly => (
                StatusCode::SERVICE_UNAVAILABLE,
                "storage_read_only",
                "The server's disk can only be read at present, so nothing can be stored. The operator of the server \
                 must make it writable before this is sent again.",
            ),
        };
        Self::new(status, SERVER_ERROR, message).code(code)
    }

    /// A defect, or a failure of this machine: `message` goes to the log.
    pub fn defect(message: impl fmt::Display) -> Self {
        tracing::error!("{message}");
        Self::internal()
    }

    /// A failure of this machine while doing `context`; use as `.map_err(Problem::io("write an upload"))`.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |error| Self::of_disk(StorageFault::of(&error), format_args!("{context}: {error}"))
    }

    /// [`Problem::storage`] if it is that, else [`Problem::defect`].
    pub(super) fn of_disk(fault: Option<StorageFault>, message: impl fmt::Display) -> Self {
        match fault {
            Some(fault) => Self::storage(fault, message),
            None => Self::defect(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;
    use crate::{adapters, jobs, model, store};

    #[test]
    fn a_disk_that_takes_nothing_is_told_so_by_every_layer_and_not_asked_again() {
        let of_every_layer = |kind: std::io::ErrorKind| {
            [
                Problem::from(store::Error::io("write")(kind.into())),
                Problem::from(adapters::Error::io("write")(kind.into())),
                Problem::from(jobs::Error::io("write")(kind.into())),
                Problem::from(attune_train::Error::io("write")(kind.into())),
                Problem::from(model::Error::io("write")(kind.into())),
                Problem::io("write")(kind.into()),
            ]
        };
        for (kind, status) in [(std::io::ErrorKind::StorageFull, 507), (std::io::ErrorKind::ReadOnlyFilesystem, 503)] {
            for problem in of_every_layer(kind) {
                let answer = problem.into_response();
                assert_eq!(answer.status(), status);
                assert_eq!(answer.headers()["x-should-retry"], "false");
            }
        }
        for problem in of_every_layer(std::io::ErrorKind::PermissionDenied) {
            assert_eq!(problem.into_response().status(), 500);
        }
        assert!(!Problem::stopping().into_response().headers().contains_key("x-should-retry"));
    }
}
