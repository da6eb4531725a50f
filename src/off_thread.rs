//! Work that takes its time, away from the threads that serve requests.

use std::fmt;

/// Why [`off_thread`] has no result: the work panicked, or the runtime is stopping.
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
