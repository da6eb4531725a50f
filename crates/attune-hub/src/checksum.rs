//! The checksum of a file's bytes as they arrive: SHA-256, or git's SHA-1 of an object. Called by
//! [`download`](crate::download) and [`found`](crate::found).

use sha1::Sha1;
use sha2::Sha256;
use std::fmt::Write as _;

use crate::listing::{Checksum, RemoteFile};

/// A checksum that is being computed.
#[derive(Clone)]
pub(crate) enum Sum {
    Git(Box<Sha1>),
    Sha256(Box<Sha256>),
}

impl Sum {
    /// Begins the checksum of `file`.
    pub(crate) fn of(file: &RemoteFile) -> Self {
        match file.checksum {
            Checksum::Sha256(_) => Self::Sha256(Box::default()),
            Checksum::Git(_) => {
                let mut sum = Sha1::default();
                // An object of git begins with its kind and length.
                sha1::Digest::update(&mut sum, format!("blob {}\0", file.size));
                Self::Git(Box::new(sum))
            }
        }
    }

    /// Adds the bytes that follow.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        match self {
            Self::Git(sum) => sha1::Digest::update(sum.as_mut(), bytes),
            Self::Sha256(sum) => sha2::Digest::update(sum.as_mut(), bytes),
        }
    }

    /// Returns the digits of the bytes so far.
    pub(crate) fn digits(&self) -> String {
        match self {
            Self::Git(sum) => hex(&sha1::Digest::finalize((**sum).clone())),
            Self::Sha256(sum) => hex(&sha2::Digest::finalize((**sum).clone())),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        // Writing to a text cannot fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_git_and_of_sha256sum() {
        let mut file = RemoteFile::local("a".into(), 6);
        let mut sum = Sum::of(&file);
        sum.add(b"hel");
        sum.add(b"lo\n");
        // `printf 'hello\n' | git hash-object --stdin`
        assert_eq!(sum.digits(), "ce013625030ba8dba906f756967f9e9ca394464a");
        file.checksum = Checksum::Sha256(String::new());
        let mut sum = Sum::of(&file);
        sum.add(b"hello\n");
        assert_eq!(sum.digits(), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
    }
}
