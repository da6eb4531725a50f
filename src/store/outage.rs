//! What the directory of keys goes by while the database does not answer: what that last confirmed, for a set time.
//!
//! Everything here fails closed. A key counts for no longer than the set time since the database last confirmed it, and
//! not at all once a notification told of a change of keys after that: it may be the one that was revoked. A server
//! that was open counts as open in the same way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// One more than the generation in which the database was found not to answer; 0: it answers.
    away: AtomicU64,
}

impl OutageMemory {
    /// An empty memory, which keeps what it is told for `lifetime`; zero keeps nothing.
    pub(super) fn new(lifetime: Duration) -> Self {
        let keys = Cache::builder().max_capacity(MAX_KEYS).time_to_live(lifetime).build();
        Self { keys, open: Mutex::default(), lifetime, away: AtomicU64::new(0) }
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

    /// Returns true while the database is known not to answer: there is no use in waiting for it. A notification that
    /// came since then says that it is back.
    pub(super) fn is_away(&self, generation: Generation) -> bool {
        self.away.load(Ordering::SeqCst) == generation + 1
    }

    /// Notes that the database did not answer; returns true if that was known.
    pub(super) fn note_away(&self, generation: Generation) -> bool {
        self.away.swap(generation + 1, Ordering::SeqCst) == generation + 1
    }

    /// Notes that the database answers again.
    pub(super) fn note_back(&self, generation: Generation) {
        let _ = self.away.compare_exchange(generation + 1, 0, Ordering::SeqCst, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Arc<ApiKey> {
        Arc::new(ApiKey {
            id: "key_1".into(),
            organization: "acme".into(),
            name: None,
            masked: String::new(),
            admin: false,
            requests_per_minute: None,
            tokens_per_minute: None,
            created_at: 0,
            expires_at: None,
            revoked_at: None,
            last_used_on: None,
        })
    }

    #[tokio::test]
    async fn what_was_confirmed_counts_until_a_change_is_heard_of() {
        let memory = OutageMemory::new(Duration::from_mins(1));
        let hash = [1; 32];
        assert!(memory.key(&hash, 3).await.is_none() && !memory.is_open(3), "nothing was confirmed");
        memory.confirm(hash, 3, &key()).await;
        memory.confirm_open(3);
        assert!(memory.key(&hash, 3).await.is_some() && memory.is_open(3));
        assert!(memory.key(&hash, 4).await.is_none() && !memory.is_open(4), "it may be what has changed");
        assert!(memory.key(&[2; 32], 3).await.is_none());
        memory.forget(&hash).await;
        assert!(memory.key(&hash, 3).await.is_none());
    }

    #[tokio::test]
    async fn without_a_time_nothing_counts() {
        let memory = OutageMemory::new(Duration::ZERO);
        memory.confirm([1; 32], 0, &key()).await;
        memory.confirm_open(0);
        assert!(memory.key(&[1; 32], 0).await.is_none() && !memory.is_open(0));
    }

    #[test]
    fn the_database_is_away_until_it_answers_or_is_heard() {
        let memory = OutageMemory::new(Duration::from_mins(1));
        assert!(!memory.is_away(0) && !memory.note_away(0) && memory.note_away(0));
        assert!(memory.is_away(0) && !memory.is_away(1), "what is heard comes from the database");
        assert!(!memory.note_away(1));
        memory.note_back(0);
        assert!(memory.is_away(1), "that was another outage");
        memory.note_back(1);
        assert!(!memory.is_away(1));
    }
}
