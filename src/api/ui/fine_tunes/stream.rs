//! Tells an open page of a job what happens, as server-sent events: `points` (figures of steps), `changed` (anything
//! else), `end` (nothing follows, and why). Their ids are numbers of the job's events, from which a browser goes on
//! after a cut. Ends when the visitor's session does. With `hold=no` it ends once everything so far is told: a browser
//! holds few connections to a server, so pages that get none of them look from time to time instead.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::stream::{self, Stream};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::feed::{Batch, read};
use super::job::find;
use crate::api::http::error::Result;
use crate::api::http::extract::Path;
use crate::api::http::query::Query;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::visitor::Visitor;
use crate::jobs::Job;

/// Time between comments, which keep a quiet connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Time between checks that the visitor's session still lives.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// Milliseconds after which browsers come back to a server that stops, drawn for each from this range.
const COME_BACK: std::ops::Range<u64> = 2_000..6_000;

/// What is asked for.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct From {
    /// Number of the event where the page's own figures end.
    after: Option<i64>,
    /// `no`: what happened until now, without waiting for more.
    hold: Option<String>,
}

/// Streams what happens to a job.
pub(super) async fn follow(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
    Query(from): Query<From>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let job = find(&pages, &visitor, &id).await?;
    let resumed = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let seen = resumed.or(from.after).unwrap_or_default();
    let mut check = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let holds = from.hold.as_deref() != Some("no");
    let (reader, ready, state) = (None, VecDeque::new(), Reading::Behind);
    let follower = Follower { pages, visitor, job, seen, holds, reader, check, ready, state };
    let events = Sse::new(follower.stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(([unbuffered], events).into_response())
}

/// Where a follower stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// It reads the database, up to now.
    Behind,
    /// It reads the feed.
    Live,
    /// It says nothing more.
    Over,
}

struct Follower {
    pages: Pages,
    visitor: Visitor,
    job: Job,
    /// Number of the last event that was sent.
    seen: i64,
    /// True if it waits for what comes later.
    holds: bool,
    /// The feed, once the events so far are read.
    reader: Option<broadcast::Receiver<Arc<Batch>>>,
    check: Interval,
    ready: VecDeque<Event>,
    state: Reading,
}

impl Follower {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> + Send {
        stream::unfold(self, |mut follower| async move { Some((Ok(follower.next().await?), follower)) })
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match self.state {
                Reading::Behind => match read(&self.pages.api.queue, &mut self.job, self.seen).await {
                    Ok(batch) => {
                        if batch.last == self.seen && self.holds {
                            self.join();
                        } else if batch.last == self.seen {
                            self.state = Reading::Over;
                        }
                        self.take(&batch);
                    }
                    // The browser comes back.
                    Err(_) => return None,
                },
                Reading::Live => self.wait().await,
                Reading::Over => return None,
            }
        }
    }

    /// Joins the feed, and then reads the database once more: what came in between may have gone through the feed
    /// already.
    fn join(&mut self) {
        if self.reader.is_some() {
            self.state = Reading::Live;
        } else {
            self.reader = Some(self.pages.feeds.join(&self.pages.api.queue, &self.job, self.seen));
        }
    }

    /// Waits for the feed, for the end of the session, or of the server.
    async fn wait(&mut self) {
        let Some(reader) = &mut self.reader else {
            self.state = Reading::Behind;
            return;
        };
        tokio::select! {
            batch = reader.recv() => match batch {
                Ok(batch) if batch.last > self.seen || batch.is_last => self.take(&batch),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.state = Reading::Behind,
                Err(RecvError::Closed) => self.state = Reading::Over,
            },
            _ = self.check.tick() => {
                // A database that does not answer ends no session.
                if matches!(self.visitor.is_still_let_in(&self.pages).await, Ok(false)) {
                    self.end("signed-out");
                }
            }
            () = self.pages.api.shutdown.cancelled() => {
                let wait = rand::random_range(COME_BACK);
                self.ready.push_back(Event::default().retry(Duration::from_millis(wait)).comment("the server stops"));
                self.state = Reading::Over;
            }
        }
    }

    fn take(&mut self, batch: &Batch) {
        self.seen = self.seen.max(batch.last);
        self.ready.extend(batch.frames.iter().cloned());
        if batch.is_last {
            self.state = Reading::Over;
        }
    }

    fn end(&mut self, why: &str) {
        self.ready.push_back(Event::default().event("end").data(json!({"why": why}).to_string()));
        self.state = Reading::Over;
    }
}
