//! Streams the events of a fine-tune: those so far, then new ones as they happen, until the job has ended. Called by
//! `fine_tunes::events`. Notifications of the queue wake it; it polls in case one is lost.

use std::collections::VecDeque;
use std::time::Duration;

use futures::stream::{self, Stream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use crate::api::ApiState;
use crate::api::fine_tuning::fine_tunes::response::FineTuneEvent;
use crate::api::http::error::{Problem, Result};
use crate::api::http::sse::json;
use crate::jobs::Job;
use crate::jobs::events::JobEvent;

/// Time between polls: the most that a lost notification delays an event.
const POLL: Duration = Duration::from_secs(2);
/// Events that are read from the database at a time.
const PAGE: i64 = 200;

/// Streams the events of `job` as JSON documents; ends after the last event of a job that has ended.
pub(crate) fn follow(state: ApiState, job: Job) -> impl Stream<Item = Result<String, Problem>> + Send {
    let changes = state.queue.changes();
    let follower = Follower { state, job, changes, seen: 0, ready: VecDeque::new() };
    stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        match follower.next().await {
            Ok(Some(event)) => Some((json(&FineTuneEvent::new(&follower.job, event)), Some(follower))),
            Ok(None) => None,
            Err(problem) => Some((Err(problem), None)),
        }
    })
}

struct Follower {
    state: ApiState,
    job: Job,
    changes: Receiver<Uuid>,
    /// Number of the last event that was sent; 0 before the first.
    seen: i64,
    ready: VecDeque<JobEvent>,
}

impl Follower {
    async fn next(&mut self) -> Result<Option<JobEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.seen = event.seq;
                return Ok(Some(event));
            }
            // The status is read before the events, so that none can follow those of a job that has ended.
            self.job = self.state.queue.job(&self.job.organization, self.job.api, &self.job.id).await?;
            self.ready = self.state.queue.events_after(&self.job, self.seen, PAGE).await?.into();
            if !self.ready.is_empty() {
                continue;
            }
            if self.job.status.is_final() {
                return Ok(None);
            }
            tokio::select! {
                () = changed(&mut self.changes, self.job.key) => {}
                () = tokio::time::sleep(POLL) => {}
                () = self.state.shutdown.cancelled() => return Err(Problem::stopping()),
            }
        }
    }
}

/// Waits for a notification that the job changed, or that notifications were lost.
async fn changed(changes: &mut Receiver<Uuid>, job: Uuid) {
    loop {
        match changes.recv().await {
            Ok(key) if key == job => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            // The poll goes on.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
