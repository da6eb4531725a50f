//! Work that takes its time, away from the threads that serve requests.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;

use crate::system::background;

/// Why work has no result: it panicked, no thread could start, or the runtime is stopping.
#[derive(Debug)]
pub(crate) struct Lost(pub String);

impl fmt::Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Runs `work` on a thread that may block. `what` names the work in the error of one that panics.
pub(crate) async fn off_thread<T, E>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Lost> + Send + 'static,
{
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| Err(Lost(format!("{what}: {error}")).into()))
}

/// Runs `work` as [`off_thread`] does, on a thread that those of requests go before.
pub(crate) async fn in_background<T, E>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Lost> + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        // A panic is the answer of this work alone: the thread goes on.
        let done = catch_unwind(AssertUnwindSafe(work));
        // The answer to somebody who has left is dropped.
        drop(sender.send(done));
    };
    background::spawn(run).map_err(|error| Lost(format!("{what}: {error}")))?;
    match receiver.await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err(Lost(format!("{what}: it panicked")).into()),
        Err(_) => Err(Lost(format!("{what}: its thread ended")).into()),
    }
}
