//! Words what a disk or a network storage says that an operator mends and nobody else: whoever can wait, waits. Asked
//! by the worker for the jobs that it runs.

use std::error::Error as StdError;
use std::io::{self, ErrorKind};

use nix::errno::Errno;

use crate::store::Error;
use crate::store::error::system_errors;

/// Returns what is wrong with the storage, as the end of a sentence about it, if that is what the error or one of its
/// causes says; `None` for other failures, which waiting does not mend.
pub(crate) fn disk_trouble(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    system_errors(error).find_map(of_system)
}

fn of_system(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        ErrorKind::StorageFull => Some("its disk is full"),
        ErrorKind::QuotaExceeded => Some("its share of the disk is used up"),
        ErrorKind::FileTooLarge => Some("its disk takes no file of that size"),
        ErrorKind::ReadOnlyFilesystem => Some("its disk can only be read"),
        ErrorKind::PermissionDenied => Some("it may not use its data folder"),
        ErrorKind::StaleNetworkFileHandle
        | ErrorKind::TimedOut
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown
        | ErrorKind::NotConnected
        | ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted => Some("its storage does not answer"),
        _ => match Errno::from_raw(error.raw_os_error()?) {
            Errno::EIO | Errno::ENXIO | Errno::ENODEV | Errno::EREMOTEIO | Errno::ESHUTDOWN | Errno::ENOTCONN => {
                Some("its disk fails to read or write")
            }
            Errno::EMFILE | Errno::ENFILE => Some("it has too many files open"),
            _ => None,
        },
    }
}

impl Error {
    /// [`disk_trouble`] of this error.
    pub(crate) fn disk_trouble(&self) -> Option<&'static str> {
        match self {
            Self::Io { source, .. } => disk_trouble(&**source),
            Self::Blob(error) => disk_trouble(&**error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_mends_is_told_from_a_defect_however_deep_it_lies() {
        let system = |code: Errno| io::Error::from_raw_os_error(code as i32);
        for code in
            [Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS, Errno::EIO, Errno::ESTALE, Errno::EACCES, Errno::EMFILE]
        {
            assert!(Error::io("write")(system(code)).disk_trouble().is_some(), "{code}");
            let source = Box::new(io::Error::other(object_store::Error::Generic {
                store: "test",
                source: Box::new(system(code)),
            }));
            let wrapped = Error::from(object_store::Error::Generic { store: "test", source });
            assert!(wrapped.disk_trouble().is_some(), "{code} below others");
        }
        for kind in [ErrorKind::NotFound, ErrorKind::InvalidData, ErrorKind::UnexpectedEof, ErrorKind::Interrupted] {
            assert_eq!(Error::io("read")(kind.into()).disk_trouble(), None, "{kind}");
        }
        assert_eq!(Error::BlobNotFound("files/x".into()).disk_trouble(), None);
    }
}
