//! Who a key belongs to, for every request of a server: a small cache before the table of keys. Used by `api::auth`.
//!
//! Entries live for seconds, and a notification of the database outdates them all at once. They carry the generation in
//! which their lookup began, so that an answer which was on its way while a key was revoked is not kept either. While
//! the database does not answer, [`OutageMemory`] stands in for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use moka::future::Cache;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use crate::store::Store;
use crate::store::keys::{ApiKey, KeyHash, hash, is_key};
use crate::store::notifications;
use crate::store::outage::{Generation, OutageMemory};
use crate::store::{Error, Result};

/// The database's channel; a trigger of the migrations writes to it.
const CHANNEL: &str = "api_keys";
/// For how long a lost notification can keep a revoked key alive.
const LIFETIME: Duration = Duration::from_secs(5);
/// Keys that are remembered, and as many texts that are no key.
const MAX_ENTRIES: u64 = 10_000;
/// Lookups at a time: made-up keys must leave most of the pool's connections to the requests that are let in.
const LOOKUPS: usize = 4;
/// The longest that a lookup may take: longer than the wait for a connection of the pool.
const PATIENCE: Duration = Duration::from_secs(6);
/// Pause before a database that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Why a lookup has no key to keep.
enum Miss {
    Unknown,
    Failed(Error),
}

/// The directory. Cheap to clone.
#[derive(Clone)]
pub struct KeyDirectory {
    inner: Arc<Inner>,
    _tasks: Arc<[AbortOnDropHandle<()>; 2]>,
}

struct Inner {
    store: Store,
    generation: Arc<AtomicU64>,
    /// Apart, so that a flood of made-up keys does not push out the real ones.
    known: Cache<(Generation, KeyHash), Arc<ApiKey>>,
    unknown: Cache<(Generation, KeyHash), ()>,
    /// Whether a key was ever made.
    any: Cache<Generation, bool>,
    /// Once true, always true.
    closed: AtomicBool,
    lookups: Semaphore,
    memory: OutageMemory,
}

impl KeyDirectory {
    /// Begins to listen for changed keys. Without the database, keys count for up to `outage` after it last confirmed
    /// them.
    pub async fn open(store: Store, outage: Duration) -> Result<Self> {
        let generation = Arc::new(AtomicU64::new(0));
        let outdate = Arc::clone(&generation);
        let changed = Arc::new(Notify::new());
        let change = Arc::clone(&changed);
        let listener = notifications::listen(&store, CHANNEL, move |_| {
            outdate.fetch_add(1, Ordering::SeqCst);
            change.notify_one();
        });
        let listener = listener.await?;
        let inner = Arc::new(Inner {
            store,
            generation,
            known: Cache::builder().max_capacity(MAX_ENTRIES).time_to_live(LIFETIME).build(),
            unknown: Cache::builder().max_capacity(MAX_ENTRIES).time_to_live(LIFETIME).build(),
            any: Cache::builder().max_capacity(1).time_to_live(LIFETIME).build(),
            closed: AtomicBool::new(false),
            lookups: Semaphore::new(LOOKUPS),
            memory: OutageMemory::new(outage),
        });
        let confirming = Arc::clone(&inner);
        let confirm = tokio::spawn(async move {
            loop {
                changed.notified().await;
                confirming.confirm_memory().await;
            }
        });
        let directory = Self { inner, _tasks: Arc::new([listener, AbortOnDropHandle::new(confirm)]) };
        directory.is_closed().await?;
        Ok(directory)
    }

    /// Finds the live key with this text.
    pub async fn find(&self, text: &str) -> Result<Option<Arc<ApiKey>>> {
        if !is_key(text) {
            return Ok(None);
        }
        self.find_hash(hash(text)).await
    }

    /// Finds the live key with this hash.
    pub async fn find_hash(&self, hash: KeyHash) -> Result<Option<Arc<ApiKey>>> {
        let inner = &self.inner;
        let entry = (inner.generation(), hash);
        if inner.unknown.contains_key(&entry) {
            return Ok(None);
        }
        if inner.memory.is_away(entry.0) && !inner.known.contains_key(&entry) {
            return inner.remembered(entry, away()).await;
        }
        match inner.known.try_get_with(entry, inner.look_up(entry)).await {
            Ok(key) => {
                inner.close();
                Ok(unexpired(key))
            }
            Err(miss) => match &*miss {
                Miss::Unknown => {
                    inner.unknown.insert(entry, ()).await;
                    Ok(None)
                }
                Miss::Failed(error) => {
                    Inner::note_outage(inner, entry.0, error);
                    inner.remembered(entry, error.clone()).await
                }
            },
        }
    }

    /// True if a key was ever made, so that requests need one.
    pub async fn is_closed(&self) -> Result<bool> {
        let inner = &self.inner;
        if self.was_closed() {
            return Ok(true);
        }
        let generation = inner.generation();
        if inner.memory.is_away(generation) && !inner.any.contains_key(&generation) {
            return inner.remembered_open(generation, away());
        }
        match inner.any.try_get_with(generation, inner.has_keys(generation)).await {
            Ok(any) => Ok(any),
            Err(error) => {
                Inner::note_outage(inner, generation, &error);
                inner.remembered_open(generation, (*error).clone())
            }
        }
    }

    /// [`KeyDirectory::is_closed`] by the database's word of this moment, for callers with a key that is not found: it
    /// may be revoked, and then its holder must not pass for one who needs no key.
    pub async fn is_closed_now(&self) -> Result<bool> {
        let inner = &self.inner;
        if self.was_closed() {
            return Ok(true);
        }
        let generation = inner.generation();
        if inner.memory.is_away(generation) {
            return Err(away());
        }
        let _turn = inner.lookups.acquire().await;
        inner.has_keys(generation).await.inspect_err(|error| Inner::note_outage(inner, generation, error))
    }

    /// Returns the last answer of [`KeyDirectory::is_closed`].
    pub fn was_closed(&self) -> bool {
        self.inner.closed.load(Ordering::SeqCst)
    }
}

impl Inner {
    fn generation(&self) -> Generation {
        self.generation.load(Ordering::SeqCst)
    }

    /// Asks the database for a key.
    async fn look_up(&self, (generation, hash): (Generation, KeyHash)) -> Result<Arc<ApiKey>, Miss> {
        let _turn = self.lookups.acquire().await;
        // Whoever waited for the turn need not wait for the database as well.
        if self.memory.is_away(generation) {
            return Err(Miss::Failed(away()));
        }
        let Some(key) = in_time(self.store.live_key(&hash)).await.map_err(Miss::Failed)? else {
            self.memory.forget(&hash).await;
            return Err(Miss::Unknown);
        };
        let key = Arc::new(key);
        self.memory.confirm(hash, generation, &key).await;
        Ok(key)
    }

    /// Asks the database whether a key was ever made.
    async fn has_keys(&self, generation: Generation) -> Result<bool> {
        let any = in_time(self.store.has_keys()).await?;
        if any {
            self.close();
        } else {
            self.memory.confirm_open(generation);
        }
        Ok(any)
    }

    fn close(&self) {
        if !self.closed.load(Ordering::SeqCst) && !self.closed.swap(true, Ordering::SeqCst) {
            tracing::info!("the database holds API keys: every request needs one");
        }
    }

    /// Returns the key that an outage leaves in memory; `error` if there is none.
    async fn remembered(&self, (generation, hash): (Generation, KeyHash), error: Error) -> Result<Option<Arc<ApiKey>>> {
        if !is_outage(&error) {
            return Err(error);
        }
        match self.memory.key(&hash, generation).await {
            Some(key) => Ok(unexpired(key)),
            None => Err(error),
        }
    }

    /// Returns that there is no key, if an outage leaves that in memory, else `error`.
    fn remembered_open(&self, generation: Generation, error: Error) -> Result<bool> {
        if is_outage(&error) && self.memory.is_open(generation) { Ok(false) } else { Err(error) }
    }

    /// Asks the database about every key in memory, as one of them may have changed.
    async fn confirm_memory(&self) {
        let (generation, hashes) = (self.generation(), self.memory.hashes());
        // What is not confirmed keeps its generation, and so does not count in an outage.
        let Ok(live) = in_time(self.store.live_keys(&hashes)).await else { return };
        for hash in hashes {
            match live.get(&hash) {
                Some(key) => self.memory.confirm(hash, generation, key).await,
                None => self.memory.forget(&hash).await,
            }
        }
    }

    /// Notes that the database does not answer, and asks it until it does.
    fn note_outage(inner: &Arc<Self>, generation: Generation, error: &Error) {
        if !is_outage(error) || inner.memory.note_away(generation) {
            return;
        }
        tracing::warn!("cannot look up API keys; those that were in use go on for a while: {error}");
        let inner = Arc::downgrade(inner);
        tokio::spawn(async move {
            while let Some(inner) = inner.upgrade() {
                if inner.store.is_ready().await {
                    inner.memory.note_back(generation);
                    tracing::info!("the database answers again: API keys are looked up");
                    return;
                }
                drop(inner);
                tokio::time::sleep(ASK_AGAIN).await;
            }
        });
    }
}

/// Waits for the database for no longer than a connection to it may take: one that was lost in the middle of a query is
/// silent for ever.
async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(away()))
}

/// Returns the key unless it has expired since it was read.
fn unexpired(key: Arc<ApiKey>) -> Option<Arc<ApiKey>> {
    (!key.has_expired(jiff::Timestamp::now().as_second())).then_some(key)
}

/// True if the database did not answer, in contrast to a query that failed.
fn is_outage(error: &Error) -> bool {
    matches!(error, Error::Unavailable(_))
}

/// The error of a key that cannot be looked up.
fn away() -> Error {
    Error::Unavailable("The database does not answer, so the key cannot be checked.".into())
}
