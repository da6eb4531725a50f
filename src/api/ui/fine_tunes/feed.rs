//! What happens to a job, for all open pages of it together: the database is read once, however many people look. A feed
//! lives as long as it has readers. [`stream`](super::stream) reads it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::Event;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use crate::jobs::events::JobEvent;
use crate::jobs::queue::Queue;
use crate::jobs::{Job, Result};

/// Least time between two looks at the database: quicker than that no eye follows.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between looks without a notification: the most that a lost one delays an event.
const POLL: Duration = Duration::from_secs(5);
/// Events that are read at a time.
const READ: i64 = 500;
/// Batches that are kept for a slow reader; one that misses some reads the database itself.
const KEPT: usize = 64;

/// Some events in their order, ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    /// Number of the last event in it.
    pub last: i64,
    pub frames: Vec<Event>,
    /// True if nothing follows: the job has ended.
    pub is_last: bool,
}

/// The feeds of a server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::api::ui) struct Feeds {
    by_job: Arc<Mutex<HashMap<Uuid, broadcast::Sender<Arc<Batch>>>>>,
}

impl Feeds {
    /// Joins the feed of `job`, which begins after the event `seen` if there is none yet. A reader then reads the
    /// database itself, up to now, and nothing is missed: what comes later comes through the feed, some of it twice.
    pub(super) fn join(&self, queue: &Queue, job: &Job, seen: i64) -> broadcast::Receiver<Arc<Batch>> {
        let mut by_job = self.by_job.lock();
        if let Some(feed) = by_job.get(&job.key) {
            return feed.subscribe();
        }
        let (feed, reader) = broadcast::channel(KEPT);
        by_job.insert(job.key, feed.clone());
        tokio::spawn(self.clone().run(queue.clone(), job.clone(), seen, feed));
        reader
    }

    async fn run(self, queue: Queue, mut job: Job, mut seen: i64, feed: broadcast::Sender<Arc<Batch>>) {
        let mut changes = queue.changes();
        loop {
            if self.left(job.key, &feed) {
                return;
            }
            match read(&queue, &mut job, seen).await {
                Ok(batch) => {
                    let (is_more, is_last) = (batch.last > seen, batch.is_last);
                    seen = batch.last;
                    if is_more || is_last {
                        // Readers that have just gone are seen on the next round.
                        let _ = feed.send(Arc::new(batch));
                    }
                    if is_last {
                        break;
                    }
                }
                Err(error) => tracing::debug!(job = job.id, "cannot read events for the page: {error}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
            tokio::select! {
                () = changed(&mut changes, job.key) => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
        self.by_job.lock().remove(&job.key);
    }

    /// Removes a feed without readers; true if that was done.
    fn left(&self, job: Uuid, feed: &broadcast::Sender<Arc<Batch>>) -> bool {
        // Nobody joins while the lock is held.
        let mut by_job = self.by_job.lock();
        let is_left = feed.receiver_count() == 0;
        if is_left {
            by_job.remove(&job);
        }
        is_left
    }
}

/// Reads the events after `seen`, and how the job stands, which was before them.
pub(super) async fn read(queue: &Queue, job: &mut Job, seen: i64) -> Result<Batch> {
    // The status is read first, so that no event follows those of a job that has ended.
    *job = queue.job(&job.organization, job.api, &job.id).await?;
    let events = queue.events_after(job, seen, READ).await?;
    let is_last = job.status.is_final() && (events.len() as i64) < READ;
    let last = events.last().map_or(seen, |event| event.seq);
    Ok(Batch { last, frames: frames(job, &events, is_last), is_last })
}

/// Makes the frames of events: the figures of steps one after the other, and then, if anything else happened, the last
/// text of it. The page asks for the parts that have changed.
fn frames(job: &Job, events: &[JobEvent], is_last: bool) -> Vec<Event> {
    let mut frames = Vec::new();
    let points: Vec<_> = events
        .iter()
        .filter(|event| event.kind == "metrics")
        .map(|event| json!({"seq": event.seq, "attempt": event.attempt, "data": event.data}))
        .collect();
    let told = events.iter().rfind(|event| event.kind != "metrics");
    let id = |event: Event| match events.last() {
        Some(last) => event.id(last.seq.to_string()),
        None => event,
    };
    let data = |name: &str, data: serde_json::Value| Event::default().event(name).data(data.to_string());
    if !points.is_empty() {
        frames.push(data("points", points.into()));
    }
    if let Some(event) = told {
        let text = crate::api::fine_tuning::event_text::event_text(job, event);
        frames.push(data("changed", json!({"status": job.status.word(), "text": text})));
    }
    if is_last {
        frames.push(data("end", json!({"why": "ended"})));
    }
    // The number comes with the last frame: who is cut off before it gets all of them again.
    if let Some(last) = frames.pop() {
        frames.push(id(last));
    }
    frames
}

/// Waits for a notification that the job changed, or that notifications were lost.
async fn changed(changes: &mut broadcast::Receiver<Uuid>, job: Uuid) {
    loop {
        match changes.recv().await {
            Ok(key) if key == job || key.is_nil() => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
