//! What the directory of keys goes by while the database does not answer: what that last confirmed, for a set time.
//!
//! Everything here fails closed. A key counts for no longer than the set time since the database last confirmed it, and
//! not at all once a notification told of a change of keys after that: it may be the one that was revoked. A server that
//! was open counts as open in the same way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use moka::future::Cache;
use parking_lot::Mutex;

use crate::store::keys::{ApiKey, KeyHash};

/// Keys that are remembered at the most.
const MAX_KEYS: u64 = 10_000;

/// Number of notifications from the database so far.
pub(super) type Generation = u64;

/// The memory of one directory.
pub(super) struct OutageMemory {
    keys: Cache<KeyHash, (Generation, Arc<ApiKey>)>,
    /// When the database last said that there is no key, and what had been heard of changes by then.
    open: Mutex<Option<(Generation, Instant)>>,
    lifetime: Duration,
    away: AtomicBool,
}

impl OutageMemory {
    /// An empty memory, which keeps what it is told for `lifetime`; zero keeps nothing.
    pub(super) fn new(lifetime: Duration) -> Self {
        let keys = Cache::builder().max_capacity(MAX_KEYS).time_to_live(lifetime).build();
        Self { keys, open: Mutex::default(), lifetime, away: AtomicBool::new(false) }
    }

    /// Notes that the database confirmed the key; `generation` is of the time before it was asked.
    pub(super) async fn confirm(&self, hash: KeyHash, generation: Generation, key: &Arc<ApiKey>) {
        if !self.lifetime.is_zero() {
            self.keys.insert(hash, (generation, Arc::clone(key))).await;
        }
    }

    /// Forgets a key that the database does not know, or not any more.
    pub(super) async fn forget(&self, hash: &KeyHash) {
        self.keys.invalidate(hash).await;
    }

    /// Returns the key if it is as good as confirmed in `generation`.
    pub(super) async fn key(&self, hash: &KeyHash, generation: Generation) -> Option<Arc<ApiKey>> {
        let (confirmed, key) = self.keys.get(hash).await?;
        (confirmed == generation).then_some(key)
    }

    /// Returns the hashes of all keys in memory.
    pub(super) fn hashes(&self) -> Vec<KeyHash> {
        self.keys.iter().map(|(hash, _)| *hash).collect()
    }

    /// Notes that the database has no key; `generation` is of the time before it was asked.
    pub(super) fn confirm_open(&self, generation: Generation) {
        *self.open.lock() = Some((generation, Instant::now()));
    }

    /// Returns true if it is as good as confirmed in `generation` that there is no key.
    pub(super) fn is_open(&self, generation: Generation) -> bool {
        self.open.lock().is_some_and(|(confirmed, at)| confirmed == generation && at.elapsed() < self.lifetime)
    }

    /// Returns true while the database is known not to answer: there is no use in waiting for it.
    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::SeqCst)
    }

    /// Sets whether the database is away; returns what was set before.
    pub(super) fn set_away(&self, away: bool) -> bool {
        self.away.swap(away, Ordering::SeqCst)
    }
}
