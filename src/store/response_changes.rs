//! Receives the database's notifications of responses in the background, and wakes who waits for one: the work that takes
//! up those that wait, and readers of the events of one. `work_changes` listens for it, `api::generation::responses` waits.
//!
//! A wake is a hint: whoever waits looks at the database again, and looks now and then without one.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::store::notifications::{Ear, Heard};

/// The database's channel; the triggers of the migrations write to it.
const CHANNEL: &str = "responses";

/// Wakes who waits for responses. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ResponseChanges {
    waiting: Arc<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Of any response.
    any: Notify,
    /// Of readers, by the response's id; the number counts them.
    readers: Mutex<HashMap<String, (usize, Arc<Notify>)>>,
}

/// Reads one response.
#[derive(Debug)]
pub struct ResponseReader {
    waiting: Arc<Waiting>,
    id: String,
    changed: Arc<Notify>,
}

impl ResponseChanges {
    /// Returns what listens for it.
    pub(super) fn ear(&self) -> Ear {
        let waiting = Arc::clone(&self.waiting);
        (CHANNEL, Box::new(move |heard| waiting.wake(heard)))
    }

    /// Waits until any response was queued or changed since the last wait. For one waiter alone.
    pub async fn any(&self) {
        self.waiting.any.notified().await;
    }

    /// Begins to wait for changes of the response `id`.
    pub fn reader(&self, id: &str) -> ResponseReader {
        let changed = {
            let mut readers = self.waiting.readers.lock();
            let (count, changed) = readers.entry(id.to_owned()).or_default();
            *count += 1;
            Arc::clone(changed)
        };
        ResponseReader { waiting: Arc::clone(&self.waiting), id: id.to_owned(), changed }
    }
}

impl Waiting {
    fn wake(&self, heard: Heard<'_>) {
        self.any.notify_one();
        let readers = self.readers.lock();
        match heard {
            Heard::Payload(id) => {
                if let Some((_, changed)) = readers.get(id) {
                    changed.notify_waiters();
                }
            }
            Heard::Gap => readers.values().for_each(|(_, changed)| changed.notify_waiters()),
        }
    }
}

impl ResponseReader {
    /// Waits for the next change. Enabled before the database is asked, it misses none.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

impl Drop for ResponseReader {
    fn drop(&mut self) {
        let mut readers = self.waiting.readers.lock();
        if let Some((count, _)) = readers.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_reader_wakes_for_its_response_and_after_a_gap() {
        let changes = ResponseChanges::default();
        let (waiting, (_, hear)) = (&changes.waiting, changes.ear());
        let (one, same, other) = (changes.reader("a"), changes.reader("a"), changes.reader("b"));
        for (heard, woken) in [
            (Heard::Payload("a"), [true, true, false]),
            (Heard::Payload("b"), [false, false, true]),
            (Heard::Payload("c"), [false, false, false]),
            (Heard::Gap, [true, true, true]),
        ] {
            let waits = [one.changed(), same.changed(), other.changed()];
            let mut waits = waits.map(Box::pin);
            for wait in &mut waits {
                assert!(!wait.as_mut().enable());
            }
            hear(heard);
            assert_eq!(waits.map(|wait| wait.now_or_never().is_some()), woken, "{heard:?}");
            assert!(changes.any().now_or_never().is_some(), "whoever looks for any response wakes each time");
        }
        assert!(changes.any().now_or_never().is_none());
        drop((one, other));
        assert_eq!(waiting.readers.lock().keys().collect::<Vec<_>>(), ["a"]);
        drop(same);
        assert!(waiting.readers.lock().is_empty());
    }
}
