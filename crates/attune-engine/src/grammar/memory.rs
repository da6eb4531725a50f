//! The memory that the grammars of running answers hold, bounded for each request, for each organisation and in all.
//! The API opens a [`Share`] per request before the work; the parsers of its answers grow it token by token.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::{Error, Result};

/// Time that a client is told to wait if the memory is taken: an answer ends in that time.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// An organisation may hold this part of all memory, and a request this part of what its organisation may hold.
const PARTS: usize = 4;

/// Memory for the grammars of running answers. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct GrammarMemory {
    total: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    organizations: HashMap<Arc<str>, usize>,
}

/// The part of [`GrammarMemory`] that one request holds, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    memory: GrammarMemory,
    organization: Arc<str>,
    bytes: usize,
}

/// Why a share cannot grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The request holds as much as one may: this many bytes.
    Request(usize),
    /// Its organisation, or all together, hold all there is.
    Others,
}

impl GrammarMemory {
    /// Creates the account of `total` bytes.
    pub fn new(total: usize) -> Self {
        Self { total, held: Arc::default() }
    }

    /// Opens the share of one request.
    pub(super) fn share(&self, organization: Arc<str>) -> Share {
        Share { memory: self.clone(), organization, bytes: 0 }
    }

    /// Returns the bytes that all requests hold.
    pub fn held(&self) -> usize {
        self.held.lock().all
    }
}

impl Share {
    /// Grows to `bytes`, unless it has as many already.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), Full> {
        let Some(more) = bytes.checked_sub(self.bytes) else { return Ok(()) };
        let GrammarMemory { total, held } = &self.memory;
        let (organization_limit, request_limit) = (total / PARTS, total / PARTS / PARTS);
        if bytes > request_limit {
            return Err(Full::Request(request_limit));
        }
        let mut held = held.lock();
        let own = held.organizations.get(&self.organization).copied().unwrap_or(0);
        if own + more > organization_limit || held.all + more > *total {
            return Err(Full::Others);
        }
        held.all += more;
        held.organizations.insert(self.organization.clone(), own + more);
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.memory.held.lock();
        held.all -= self.bytes;
        if let Some(own) = held.organizations.get_mut(&self.organization) {
            *own -= self.bytes;
            if *own == 0 {
                held.organizations.remove(&self.organization);
            }
        }
    }
}

impl Full {
    /// Returns the error of a request whose schema is in `field`.
    pub(super) fn into_error(self, field: &str) -> Error {
        match self {
            Self::Request(limit) => Error::Grammar {
                message: format!(
                    "The grammars of one request's answers may hold {} MiB of memory: make the patterns and alternatives of \
                     the schema smaller, or ask for fewer answers.",
                    limit >> 20
                ),
                field: field.to_owned(),
            },
            Self::Others => Error::Overloaded {
                what: "the grammars of this organization's running answers hold all the memory that it may use for them",
                retry_after: RETRY_AFTER,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_organizations_and_all_have_their_parts_and_give_them_back() {
        let memory = GrammarMemory::new(1600);
        let open = |name: &str| memory.share(name.into());
        let mut first = open("a");
        assert_eq!(first.grow_to(101), Err(Full::Request(100)));
        assert_eq!((first.grow_to(100), first.grow_to(50), memory.held()), (Ok(()), Ok(()), 100));
        let mut more: Vec<Share> = (0..4).map(|_| open("a")).collect();
        let grown: Vec<_> = more.iter_mut().map(|share| share.grow_to(100)).collect();
        assert_eq!(grown, [Ok(()), Ok(()), Ok(()), Err(Full::Others)]);
        assert_eq!(open("b").grow_to(100), Ok(()), "another organisation has a part of its own");
        drop(first);
        assert_eq!(more[3].grow_to(100), Ok(()));
        drop(more);
        assert_eq!((memory.held(), memory.held.lock().organizations.len()), (0, 0));
    }
}
