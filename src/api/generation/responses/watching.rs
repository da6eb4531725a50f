//! Streams the events of a response that is written in the background: those so far, then new ones, until the last. The
//! server that writes it may be another one, so the database tells of new ones, and is asked now and then. Called by
//! `stored::retrieve` and `background::queue`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};

use super::events::LAST;
use crate::api::ApiState;
use crate::api::http::error::Problem;
use crate::api::http::sse;
use crate::store::background_responses::ResponseEvent;
use crate::store::response_changes::ResponseReader;

/// Time between looks if nothing is told of, and the least time between two.
const POLL: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_millis(30);
/// Events that are read at a time.
const PAGE: i64 = 200;
/// Statuses of responses that will have more events.
const UNFINISHED: [&str; 2] = ["queued", "in_progress"];

/// Streams the events of the response `id` that come after number `after`.
pub(super) fn watch(
    state: ApiState,
    organization: Arc<str>,
    id: String,
    after: i32,
) -> impl Stream<Item = Result<sse::Named, Problem>> + Send + 'static {
    let reader = state.response_changes.reader(&id);
    let watcher = Watcher { state, reader, organization, id, seen: after, ready: VecDeque::new() };
    stream::unfold(Some(watcher), |watcher| async move {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(Some(event)) => {
                let is_last = LAST.contains(&event.kind.as_str());
                let named = sse::Named { name: event.kind.into(), data: event.event };
                Some((Ok(named), (!is_last).then_some(watcher)))
            }
            Ok(None) => None,
            Err(problem) => Some((Err(problem), None)),
        }
    })
}

struct Watcher {
    state: ApiState,
    reader: ResponseReader,
    organization: Arc<str>,
    id: String,
    /// Number of the last event that was sent.
    seen: i32,
    ready: VecDeque<ResponseEvent>,
}

impl Watcher {
    async fn next(&mut self) -> Result<Option<ResponseEvent>, Problem> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.seen = event.sequence;
                return Ok(Some(event));
            }
            let mut changed = std::pin::pin!(self.reader.changed());
            changed.as_mut().enable();
            // The status is read before the events, so that none can follow those of a response that has ended.
            let status = self.state.store.response_status(&self.organization, &self.id).await?;
            self.ready = self.state.store.response_events(&self.id, self.seen, PAGE).await?.into();
            if !self.ready.is_empty() {
                continue;
            }
            if !status.is_some_and(|status| UNFINISHED.contains(&status.as_str())) {
                return Ok(None);
            }
            tokio::select! {
                // A stream of tokens is told of more often than it need be read.
                () = async { tokio::join!(changed, tokio::time::sleep(REST)); } => {}
                () = tokio::time::sleep(POLL) => {}
                () = self.state.shutdown.cancelled() => return Err(Problem::stopping()),
            }
        }
    }
}
