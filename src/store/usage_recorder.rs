//! Gathers the use of requests and writes it in batches, off their path. `api` records, `app` runs the writer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::store::Result;
use crate::store::Store;
use crate::store::usage::{Counts, UsageEntry, UsageRows};

/// Pause between batches.
const INTERVAL: Duration = Duration::from_secs(1);
/// Sums that wait for the database at the most. Beyond it the use of fine-tuned models is summed up under their base,
/// so that the number of sums is bounded by keys and base models, and nothing is lost.
const MAX_WAITING: usize = 20_000;

/// The recorder. Cheap to clone.
#[derive(Clone)]
pub struct UsageRecorder {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    waiting: Mutex<Waiting>,
    /// Held while a batch is written, so that batches go one after the other.
    writer: tokio::sync::Mutex<Writer>,
}

/// What no batch has taken yet.
#[derive(Default)]
struct Waiting {
    sums: HashMap<(Arc<str>, UsageEntry), Counts>,
    /// Keys that were used, with the last UTC day.
    used: HashMap<Arc<str>, Arc<str>>,
}

struct Writer {
    /// Names this process in the database.
    id: Uuid,
    /// Number of the batch that is being written.
    batch: i64,
    /// That batch, until it is known to have arrived: it may not change in between.
    rows: UsageRows,
}

impl UsageRecorder {
    /// A recorder that writes to `store`.
    pub fn new(store: Store) -> Self {
        let writer = Writer { id: Uuid::new_v4(), batch: 0, rows: UsageRows::new() };
        let (waiting, writer) = (Mutex::default(), tokio::sync::Mutex::new(writer));
        Self { inner: Arc::new(Inner { store, waiting, writer }) }
    }

    /// Adds to the sums of today.
    pub fn record(&self, entry: UsageEntry, counts: Counts) {
        self.inner.with_waiting(|waiting| waiting.add(today(), entry, counts, MAX_WAITING));
    }

    /// Notes that a request came with the key.
    pub fn touch(&self, key: &Arc<str>) {
        self.inner.with_waiting(|waiting| waiting.used.insert(Arc::clone(key), today()));
    }

    /// Writes batches until `shutdown`, and the last one then.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut reported = false;
        loop {
            let ended = tokio::time::timeout(INTERVAL, shutdown.cancelled()).await.is_ok();
            match self.flush().await {
                Ok(()) => reported = false,
                // Said once: the sums wait, and the database is reported missing elsewhere too.
                Err(error) if !reported => {
                    tracing::warn!("cannot write usage yet; it is kept in memory: {error}");
                    reported = true;
                }
                Err(_) => {}
            }
            if ended {
                return;
            }
        }
    }

    /// Writes all that was recorded before the call. What cannot be written is kept for the next time.
    pub async fn flush(&self) -> Result<()> {
        let inner = &self.inner;
        let mut writer = inner.writer.lock().await;
        // First the batch that failed before, unchanged; then what came since.
        for _ in 0..2 {
            if writer.rows.is_empty() {
                writer.rows = inner.with_waiting(|waiting| waiting.sums.drain().collect());
                writer.batch += 1;
            }
            if writer.rows.is_empty() {
                break;
            }
            inner.store.add_usage(writer.id, writer.batch, &writer.rows).await?;
            writer.rows.clear();
        }
        self.flush_touches().await
    }

    async fn flush_touches(&self) -> Result<()> {
        let used = self.inner.with_waiting(|waiting| std::mem::take(&mut waiting.used));
        let mut days: HashMap<&str, Vec<&str>> = HashMap::new();
        for (key, day) in &used {
            days.entry(day).or_default().push(key);
        }
        for (day, keys) in days {
            if let Err(error) = self.inner.store.touch_keys(&keys, day).await {
                self.inner.with_waiting(|waiting| {
                    for (key, day) in &used {
                        waiting.used.entry(Arc::clone(key)).or_insert_with(|| Arc::clone(day));
                    }
                });
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Inner {
    fn with_waiting<T>(&self, work: impl FnOnce(&mut Waiting) -> T) -> T {
        work(&mut self.waiting.lock())
    }
}

impl Waiting {
    fn add(&mut self, day: Arc<str>, entry: UsageEntry, counts: Counts, limit: usize) {
        let mut place = (day, entry);
        if self.sums.len() >= limit && !self.sums.contains_key(&place) {
            place.1.model = Arc::clone(&place.1.base);
        }
        self.sums.entry(place).or_default().add(counts);
    }
}

/// The UTC day, `2026-01-31`.
fn today() -> Arc<str> {
    jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(model: &str) -> UsageEntry {
        UsageEntry {
            organization: "acme".into(),
            key: "key_1".into(),
            model: model.into(),
            base: "demo".into(),
            batch: false,
        }
    }

    #[test]
    fn sums_are_bounded_and_no_token_is_lost() {
        let mut waiting = Waiting::default();
        let counts = Counts { requests: 1, prompt_tokens: 3, cached_tokens: 1, completion_tokens: 2 };
        for model in 0..10 {
            waiting.add("2026-01-31".into(), entry(&format!("ft:{model}")), counts, 4);
            waiting.add("2026-01-31".into(), entry("ft:0"), counts, 4);
        }
        let models: Vec<&str> = waiting.sums.keys().map(|(_, entry)| &*entry.model).collect();
        assert!(waiting.sums.len() == 5 && models.contains(&"demo") && models.contains(&"ft:3"), "{models:?}");
        let total: i64 = waiting.sums.values().map(|counts| counts.prompt_tokens).sum();
        assert_eq!(total, 60);
    }
}
