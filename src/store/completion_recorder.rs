//! Writes the answers that clients asked to store, off the path of the answers: `api` hands them over, `app` runs the
//! writer. While the database is away they wait in memory, up to [`MAX_WAITING_BYTES`]; what finds no room there, or
//! cannot be stored at all, is logged and counted.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::store::stored_completions::NewCompletion;
use crate::store::{Result, Store};

/// Bytes of answers that wait for the database at the most.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// Pause before the next try while the database is away.
const RETRY: Duration = Duration::from_secs(1);
/// Time that the last answers have to be written when the process ends.
const LAST: Duration = Duration::from_secs(1);

/// The recorder. Cheap to clone.
#[derive(Clone)]
pub struct CompletionRecorder {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    waiting: Mutex<Waiting>,
    /// Held while answers are written, so that their order is kept and a reader can wait for them.
    writer: tokio::sync::Mutex<()>,
    wake: Notify,
}

/// What is not written yet, oldest first.
#[derive(Default)]
struct Waiting {
    answers: VecDeque<Arc<NewCompletion>>,
    bytes: usize,
}

impl Waiting {
    /// Takes the answer, or returns its id if there is no room for it.
    fn push(&mut self, answer: NewCompletion, limit: usize) -> Result<(), String> {
        let bytes = self.bytes + answer.bytes();
        if bytes > limit {
            return Err(answer.id);
        }
        self.bytes = bytes;
        self.answers.push_back(Arc::new(answer));
        Ok(())
    }

    /// Drops the oldest, which was written or is lost.
    fn pop(&mut self) {
        if let Some(answer) = self.answers.pop_front() {
            self.bytes -= answer.bytes();
        }
    }
}

impl CompletionRecorder {
    /// A recorder that writes to `store`.
    pub fn new(store: Store) -> Self {
        let inner =
            Inner { store, waiting: Mutex::default(), writer: tokio::sync::Mutex::default(), wake: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Takes an answer to be written.
    pub fn record(&self, answer: NewCompletion) {
        let pushed = self.inner.waiting.lock().push(answer, MAX_WAITING_BYTES);
        match pushed {
            Ok(()) => self.inner.wake.notify_one(),
            Err(id) => self.lose(&id, &"the database does not answer, and too many wait for it already"),
        }
    }

    /// Notes that an answer is not stored although its client asked for it.
    pub fn lose(&self, id: &str, why: &impl Display) {
        tracing::error!(completion = id, "a completion could not be stored, and is lost: {why}");
        count("lost");
    }

    /// Writes answers as they come until `shutdown`, and the last ones then.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut reported = false;
        loop {
            let pause = if reported { RETRY } else { Duration::MAX };
            let ended = tokio::select! {
                () = shutdown.cancelled() => true,
                () = self.inner.wake.notified() => false,
                () = tokio::time::sleep(pause) => false,
            };
            if ended {
                break;
            }
            match self.flush().await {
                Ok(()) => reported = false,
                // Said once: they wait, and the database is reported missing elsewhere too.
                Err(error) if !reported => {
                    tracing::warn!("cannot store completions yet; they are kept in memory: {error}");
                    reported = true;
                }
                // Not at once for each that comes.
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
        let why = match tokio::time::timeout(LAST, self.flush()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the database does not answer in time".into(),
        };
        let left: Vec<_> = self.inner.waiting.lock().answers.drain(..).collect();
        for answer in left {
            self.lose(&answer.id, &why);
        }
    }

    /// Writes all that was recorded before the call. What cannot be written now is kept for the next time.
    pub async fn flush(&self) -> Result<()> {
        let inner = &self.inner;
        let _writer = inner.writer.lock().await;
        loop {
            let Some(answer) = inner.waiting.lock().answers.front().cloned() else { return Ok(()) };
            match inner.store.add_stored_completion(&answer).await {
                Ok(()) => count("written"),
                // Trying again would change nothing, and the others wait behind it.
                Err(error) if error.is_of_data() => self.lose(&answer.id, &error),
                Err(error) => return Err(error),
            }
            inner.waiting.lock().pop();
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("attune_stored_completions_total", "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: usize) -> NewCompletion {
        NewCompletion {
            id: "chatcmpl-1".into(),
            organization: "acme".into(),
            model: "demo".into(),
            created_micros: 1,
            metadata: serde_json::Map::new(),
            completion: "x".repeat(bytes),
            messages: String::new(),
        }
    }

    #[test]
    fn what_waits_is_bounded_and_there_is_room_again_once_some_is_written() {
        let mut waiting = Waiting::default();
        assert!(waiting.push(answer(6), 10).is_ok() && waiting.push(answer(4), 10).is_ok());
        assert_eq!(waiting.push(answer(1), 10).expect_err("full"), "chatcmpl-1");
        waiting.pop();
        assert!(waiting.push(answer(6), 10).is_ok());
        assert_eq!((waiting.answers.len(), waiting.bytes), (2, 10));
    }
}
