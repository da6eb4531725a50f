//! Who a key belongs to, for every request of a server: a small cache before the table of keys. Used by `api::auth`.
//!
//! Entries live for seconds, and a notification of the database outdates them all at once. They carry the generation in
//! which their lookup began, so that an answer which was on its way while a key was revoked is not kept either.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use moka::future::Cache;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::store::Store;
use crate::store::keys::{ApiKey, KeyHash, PREFIX, hash};
use crate::store::notifications;
use crate::store::{Error, Result};

/// The database's channel; a trigger of the migrations writes to it.
const CHANNEL: &str = "api_keys";
/// For how long a lost notification can keep a revoked key alive.
const LIFETIME: Duration = Duration::from_secs(5);
/// Keys that are remembered, and as many texts that are no key.
const MAX_ENTRIES: u64 = 10_000;
/// Lookups at a time: made-up keys must leave most of the pool's connections to the requests that are let in.
const LOOKUPS: usize = 4;

/// Number of notifications from the database so far.
type Generation = u64;

/// Why a lookup has no key to keep.
enum Miss {
    Unknown,
    Failed(Error),
}

/// The directory. Cheap to clone.
#[derive(Clone)]
pub struct KeyDirectory {
    inner: Arc<Inner>,
    _listener: Arc<AbortOnDropHandle<()>>,
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
}

impl KeyDirectory {
    /// Begins to listen for changed keys.
    pub async fn open(store: Store) -> Result<Self> {
        let generation = Arc::new(AtomicU64::new(0));
        let outdate = Arc::clone(&generation);
        let listener = notifications::listen(&store, CHANNEL, move |_| {
            outdate.fetch_add(1, Ordering::SeqCst);
        });
        let listener = Arc::new(listener.await?);
        let inner = Inner {
            store,
            generation,
            known: Cache::builder().max_capacity(MAX_ENTRIES).time_to_live(LIFETIME).build(),
            unknown: Cache::builder().max_capacity(MAX_ENTRIES).time_to_live(LIFETIME).build(),
            any: Cache::builder().max_capacity(1).time_to_live(LIFETIME).build(),
            closed: AtomicBool::new(false),
            lookups: Semaphore::new(LOOKUPS),
        };
        let directory = Self { inner: Arc::new(inner), _listener: listener };
        directory.is_closed().await?;
        Ok(directory)
    }

    /// Finds the live key with this text.
    pub async fn find(&self, text: &str) -> Result<Option<Arc<ApiKey>>> {
        if !text.starts_with(PREFIX) {
            return Ok(None);
        }
        let inner = &self.inner;
        let hash = hash(text);
        let entry = (inner.generation.load(Ordering::SeqCst), hash);
        if inner.unknown.contains_key(&entry) {
            return Ok(None);
        }
        let found = inner.known.try_get_with(entry, async {
            let _turn = inner.lookups.acquire().await;
            inner.store.live_key(&hash).await.map_err(Miss::Failed)?.map(Arc::new).ok_or(Miss::Unknown)
        });
        match found.await {
            // It may have expired since it was read.
            Ok(key) => Ok((!key.has_expired(jiff::Timestamp::now().as_second())).then_some(key)),
            Err(miss) => match &*miss {
                Miss::Unknown => {
                    inner.unknown.insert(entry, ()).await;
                    Ok(None)
                }
                Miss::Failed(error) => Err(error.clone()),
            },
        }
    }

    /// True if a key was ever made, so that requests need one.
    pub async fn is_closed(&self) -> Result<bool> {
        let inner = &self.inner;
        if self.was_closed() {
            return Ok(true);
        }
        let generation = inner.generation.load(Ordering::SeqCst);
        let any = inner.any.try_get_with(generation, inner.store.has_keys()).await.map_err(|error| (*error).clone())?;
        if any && !inner.closed.swap(true, Ordering::SeqCst) {
            tracing::info!("the database holds API keys: every request needs one");
        }
        Ok(any)
    }

    /// Returns the last answer of [`KeyDirectory::is_closed`].
    pub fn was_closed(&self) -> bool {
        self.inner.closed.load(Ordering::SeqCst)
    }
}
