//! A request's share of what all requests share out: memory, and the threads for work that takes its time. `access`
//! gives each request its share; `extract` draws bodies from it, `generation` texts and tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::api::http::error::{Problem, RateLimit, Result};
use crate::api::http::memory::RequestMemory;
use crate::api::http::turns::Turns;
use crate::config::limits::Limits;
use crate::off_thread::off_thread;

/// Pieces of work of one organisation that wait for a thread. What each of them holds is counted, so this is only for
/// those that hold next to nothing.
const MAX_WAITING: usize = 4096;
/// Time that a client is told to wait if so many wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What all requests share. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Resources {
    memory: RequestMemory,
    /// One for each core: more threads would only take more memory.
    threads: Turns,
}

impl Resources {
    /// Creates the resources of a server with `limits`.
    pub fn new(limits: &Limits) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { memory: RequestMemory::new(limits.request_mib), threads: Turns::new(cores, MAX_WAITING) }
    }

    /// Returns the share of one request of `organization`, of which nothing is used yet.
    pub(crate) fn share(&self, organization: Arc<str>) -> Share {
        let (kept, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Share { part: Arc::new(Part { resources: self.clone(), organization, kept, used, body: AtomicUsize::new(0) }) }
    }
}

/// One request's share. Cheap to clone; what was kept is given back when the last clone is gone.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    part: Arc<Part>,
}

#[derive(Debug)]
struct Part {
    resources: Resources,
    organization: Arc<str>,
    /// Bytes that are kept to the end of the request.
    kept: AtomicUsize,
    /// Bytes that are used now, the kept ones included.
    used: AtomicUsize,
    /// Bytes of the body.
    body: AtomicUsize,
}

/// Memory that a request uses for a while; given back when dropped.
#[derive(Debug)]
#[must_use = "dropping it gives it back"]
pub(crate) struct Held {
    share: Share,
    bytes: usize,
}

impl Share {
    /// Takes `bytes` for as long as the answer lives.
    pub(crate) async fn hold(&self, bytes: usize) -> Result<Held> {
        let mut held = Held { share: self.clone(), bytes: 0 };
        held.grow(bytes).await?;
        Ok(held)
    }

    /// Takes `bytes` until the request ends.
    pub(crate) async fn keep(&self, bytes: usize) -> Result<()> {
        let mut held = self.hold(bytes).await?;
        held.bytes = 0;
        self.part.kept.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Notes the size of the request's body, for those who handle what is in it.
    pub(crate) fn set_body_bytes(&self, bytes: usize) {
        self.part.body.store(bytes, Ordering::Relaxed);
    }

    /// Returns the size of the request's body.
    pub(crate) fn body_bytes(&self) -> usize {
        self.part.body.load(Ordering::Relaxed)
    }

    /// Runs `work` on a thread that may block, when it is the organisation's turn; dropping the future before that
    /// leaves the line. `what` names the work in the error of one that panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = self.part.resources.threads.wait(&self.part.organization).await.map_err(|_| {
            let message = "The server is busy: too many requests of this organization wait to be read. Please try again \
                           in 1 s.";
            Problem::rate_limited(RateLimit::Requests, message, Some(RETRY_AFTER))
        })?;
        // Work whose client has gone uses turn and memory to its end, which is soon.
        let share = self.clone();
        off_thread(what, move || {
            let (_turn, _share) = (turn, share);
            work()
        })
        .await
    }
}

impl Held {
    /// Takes `bytes` more.
    pub(crate) async fn grow(&mut self, bytes: usize) -> Result<()> {
        let part = &self.share.part;
        let own = part.used.load(Ordering::Relaxed);
        part.resources.memory.take(&part.organization, own, bytes).await?;
        part.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let part = &self.share.part;
        part.used.fetch_sub(self.bytes, Ordering::Relaxed);
        part.resources.memory.give_back(&part.organization, self.bytes);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.resources.memory.give_back(&self.organization, self.kept.load(Ordering::Relaxed));
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Share {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let share = parts.extensions.get::<Self>().cloned();
        share.ok_or_else(|| Problem::defect("a route that reads a body stands outside `share_out`"))
    }
}
