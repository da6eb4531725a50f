//! The memory of requests, counted before it is used: bodies, what they are parsed to, texts and tokens of all requests
//! together, and of each organisation. Used by `share`, which holds a request's part of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::api::http::error::{Problem, RateLimit, Result};

/// See [`Pools::patience`].
const PATIENCE: Duration = Duration::from_secs(5);
/// Time that a client is told to wait after that.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The memory that requests share. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct RequestMemory {
    pools: Arc<Pools>,
}

#[derive(Debug)]
struct Pools {
    /// Bytes in all. An organisation may hold half of them, a request an eighth.
    total: usize,
    held: Mutex<Holdings>,
    /// Wakes those who wait when something was given back.
    returned: Notify,
    /// Longest time that a request waits for memory that others hold.
    patience: Duration,
}

#[derive(Debug, Default)]
struct Holdings {
    all: usize,
    organizations: HashMap<Arc<str>, usize>,
}

impl RequestMemory {
    /// Creates a budget of `mib` MiB.
    pub(crate) fn new(mib: u64) -> Self {
        Self::with_patience(mib, PATIENCE)
    }

    fn with_patience(mib: u64, patience: Duration) -> Self {
        let total = usize::try_from(mib << 20).unwrap_or(usize::MAX);
        Self { pools: Arc::new(Pools { total, held: Mutex::default(), returned: Notify::new(), patience }) }
    }

    /// Takes `bytes` for a request of `organization` that holds `own` bytes already; waits if others hold them now.
    pub(crate) async fn take(&self, organization: &Arc<str>, own: usize, bytes: usize) -> Result<()> {
        let most = self.pools.total / 8;
        let whole = own.saturating_add(bytes);
        if whole > most {
            return Err(never_fits(whole, most));
        }
        let patience = tokio::time::sleep(self.pools.patience);
        tokio::pin!(patience);
        loop {
            let returned = self.pools.returned.notified();
            tokio::pin!(returned);
            // From here on nothing that is given back is missed.
            returned.as_mut().enable();
            if self.try_take(organization, bytes) {
                return Ok(());
            }
            tokio::select! {
                () = returned => {}
                () = &mut patience => return Err(busy()),
            }
        }
    }

    fn try_take(&self, organization: &Arc<str>, bytes: usize) -> bool {
        let mut held = self.pools.held.lock();
        let own = held.organizations.get(organization).copied().unwrap_or(0);
        if held.all + bytes > self.pools.total || own + bytes > self.pools.total / 2 {
            return false;
        }
        held.all += bytes;
        *held.organizations.entry(Arc::clone(organization)).or_default() += bytes;
        show(held.all);
        true
    }

    /// Gives `bytes` back.
    pub(crate) fn give_back(&self, organization: &Arc<str>, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut held = self.pools.held.lock();
        held.all -= bytes;
        if let Some(own) = held.organizations.get_mut(organization) {
            *own -= bytes;
            if *own == 0 {
                held.organizations.remove(organization);
            }
        }
        show(held.all);
        drop(held);
        self.pools.returned.notify_waiters();
    }
}

fn show(bytes: usize) {
    metrics::gauge!("attune_request_memory_bytes").set(bytes as f64);
}

/// The refusal of a request that would need more than one request may hold.
fn never_fits(needed: usize, most: usize) -> Problem {
    let (needed, most) = (needed.div_ceil(1 << 20), most >> 20);
    let message = format!(
        "The request needs {needed} MiB of memory for its body, the values in it and its texts; one request may take \
         {most} MiB, an eighth of the server's setting limits.request_mib. Send less in one request."
    );
    Problem { status: StatusCode::PAYLOAD_TOO_LARGE, ..Problem::bad_request(message) }
}

/// The refusal of a request that might fit later.
fn busy() -> Problem {
    let message = "The server is busy: the requests of this organization, or of all, hold the memory that requests may \
                   take. Please try again in 1 s.";
    Problem::rate_limited(RateLimit::Requests, message, Some(RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn names() -> (Arc<str>, Arc<str>) {
        ("one".into(), "other".into())
    }

    #[tokio::test]
    async fn a_request_takes_an_eighth_and_an_organization_half() {
        let memory = RequestMemory::new(16);
        let (one, other) = names();
        let refused = memory.take(&one, MIB, 2 * MIB).await.expect_err("more than an eighth");
        assert_eq!(refused.status, 413);
        assert!(refused.error.message.contains("limits.request_mib"), "{refused}");
        for _ in 0..4 {
            memory.take(&one, 0, 2 * MIB).await.expect("half of it");
        }
        assert!(!memory.try_take(&one, 1), "the other half is for others");
        memory.take(&other, 0, 2 * MIB).await.expect("the other half");
        memory.give_back(&one, 8 * MIB);
        memory.give_back(&other, 2 * MIB);
        let held = memory.pools.held.lock();
        assert_eq!((held.all, held.organizations.len()), (0, 0));
    }

    #[tokio::test]
    async fn who_does_not_fit_now_waits_a_while_and_is_told_when_to_come_back() {
        let (one, _) = names();
        let full = async |patience| {
            let memory = RequestMemory::with_patience(16, patience);
            for _ in 0..4 {
                memory.take(&one, 0, 2 * MIB).await.expect("half of it");
            }
            memory
        };
        let refused = full(Duration::ZERO).await.take(&one, 0, 1).await.expect_err("nobody gave anything back");
        assert_eq!((refused.status.as_u16(), refused.retry_after), (429, Some(RETRY_AFTER)));
        let memory = full(Duration::from_hours(1)).await;
        let (waiting, ()) = tokio::join!(memory.take(&one, 0, 1), async { memory.give_back(&one, 2 * MIB) });
        waiting.expect("given back in time");
    }
}
