//! Works on batches: claims one after the other, checks its lines, answers them a few at a time, and ends it. A batch can
//! be left at any moment and by any process: whoever claims it next goes on with the lines that have no result.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use futures::StreamExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::input::{Checked, Line};
use super::line::Outcome;
use super::{files, input, line};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::access::inside::Inside;
use crate::api::access::limits::{Allowance, Limiters};
use crate::api::http::error::{Problem, Result};
use crate::jobs::batches::{Batch, End, LineResult, Standing};
use crate::off_thread::in_background;

/// Batches that a process works on at a time, and lines of all of them that it asks at a time.
const BATCHES: usize = 4;
const LINES: usize = 16;
/// Results that are written in one statement at the most.
const RESULTS: usize = 16;
/// Time for which a batch is claimed; it is renewed at every [`BEAT`], when a cancellation is heard as well.
const LEASE: Duration = Duration::from_mins(1);
const BEAT: Duration = Duration::from_secs(1);
/// Time between looks for batches that no client of this process created.
const LOOK: Duration = Duration::from_secs(1);
/// Time after which a batch is tried again that failed through this machine's fault.
const PAUSE: Duration = Duration::from_secs(5);

/// Reason for which the work on a batch ended.
enum Left {
    /// It has ended, or another process has it.
    Over,
    /// This process ends.
    Stopping,
    /// The database or a disk failed.
    Fault(Problem),
}

impl<E: Into<Problem>> From<E> for Left {
    fn from(error: E) -> Self {
        Self::Fault(error.into())
    }
}

/// What works on batches.
#[derive(Clone)]
struct Runner {
    state: ApiState,
    inside: Inside,
    owner: Arc<str>,
    /// Limits of the keys of batches, apart from those of the keys' other requests.
    limiters: Limiters,
    lines: Arc<Semaphore>,
}

/// Works on batches until the server is told to stop.
pub(crate) async fn run(state: ApiState, inside: Inside) {
    let shutdown = state.shutdown.clone();
    let owner = uuid::Uuid::new_v4().to_string().into();
    let runner = Runner { state, inside, owner, limiters: Limiters::default(), lines: Arc::new(Semaphore::new(LINES)) };
    let (mut running, mut reported) = (JoinSet::new(), false);
    while !shutdown.is_cancelled() {
        while running.len() < BATCHES {
            match runner.state.batches.claim(&runner.owner, LEASE).await {
                Ok(Some(batch)) => drop(running.spawn(runner.clone().work(batch))),
                Ok(None) => break,
                Err(error) => {
                    if !reported {
                        tracing::warn!("cannot look for batches yet: {error}");
                    }
                    reported = true;
                    break;
                }
            }
            reported = false;
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            Some(ended) = running.join_next() => if let Err(error) = ended {
                tracing::error!("the work on a batch ended early, and is taken up again: {error}");
            },
            () = runner.state.batches.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    while running.join_next().await.is_some() {}
}

impl Runner {
    async fn work(self, batch: Batch) {
        let pause = match self.advance(batch.clone()).await {
            Ok(()) | Err(Left::Over) => return,
            Err(Left::Stopping) => Duration::ZERO,
            Err(Left::Fault(problem)) => {
                tracing::warn!(batch = batch.id, "the work on a batch waits: {problem}");
                PAUSE
            }
        };
        if let Err(error) = self.state.batches.release(&batch, pause).await {
            tracing::warn!(batch = batch.id, "a batch waits until its lease ends: {error}");
        }
    }

    /// Takes a batch from where it stands to its end.
    async fn advance(&self, mut batch: Batch) -> Result<(), Left> {
        if batch.status == "validating" {
            self.check(&mut batch).await?;
        }
        let mut faults = Vec::new();
        let end = match batch.status.as_str() {
            "in_progress" => match self.open_input(&batch).await {
                Ok(file) => self.answer(&batch, file).await?,
                // It will not come back. What was answered is kept.
                Err(problem) if problem.status == StatusCode::NOT_FOUND => {
                    faults = Checked::without_file(&problem.to_string()).faults;
                    End::Failed
                }
                Err(problem) => return Err(problem.into()),
            },
            "finalizing" => End::Completed,
            _ => End::Cancelled,
        };
        let end =
            if end == End::Completed && batch.status == "in_progress" && !self.state.batches.finalize(&batch).await? {
                match self.beat(&batch).await? {
                    Standing { status, .. } if status == "cancelling" => End::Cancelled,
                    _ => return Err(Left::Over),
                }
            } else {
                end
            };
        // A cancellation may come first: then the batch ends so.
        let ended = self.keep(&batch, files::finish(&self.state, &batch, end, &faults)).await?;
        if !ended && matches!(end, End::Expired | End::Failed) {
            if self.beat(&batch).await?.status != "cancelling" {
                return Err(Left::Over);
            }
            self.keep(&batch, files::finish(&self.state, &batch, End::Cancelled, &[])).await?;
        }
        Ok(())
    }

    /// Checks the lines of a batch; goes on in its next state.
    async fn check(&self, batch: &mut Batch) -> Result<(), Left> {
        let Checked { total, model, faults } = match self.open_input(batch).await {
            Ok(file) => {
                let endpoint = batch.endpoint.clone();
                self.keep(batch, in_background("check a batch", move || input::check(file, &endpoint))).await?
            }
            // It will not come back.
            Err(problem) if problem.status == StatusCode::NOT_FOUND => Checked::without_file(&problem.to_string()),
            Err(problem) => return Err(problem.into()),
        };
        let (total, model) = (total as i64, model.as_deref());
        let changed = if faults.is_empty() {
            self.state.batches.start(batch, total, model).await?
        } else {
            self.state.batches.fail(batch, &faults, model).await?
        };
        if !changed {
            batch.status = self.beat(batch).await?.status;
        } else if faults.is_empty() {
            (batch.status, batch.total) = ("in_progress".into(), total);
        } else {
            return Err(Left::Over);
        }
        Ok(())
    }

    async fn open_input(&self, batch: &Batch) -> Result<File> {
        let file = self.state.store.file(&batch.organization, &batch.input_file).await?;
        Ok(self.state.store.open_file(&file).await?)
    }

    /// Answers the lines of the input `file` that have no result; returns how the batch ends.
    async fn answer(&self, batch: &Batch, file: File) -> Result<End, Left> {
        let done: HashSet<i32> = self.state.batches.done(batch).await?.into_iter().collect();
        let lines = ReceiverStream::new(input::read(file));
        let caller = self.caller(batch);
        let left =
            lines.filter(|line| std::future::ready(line.as_ref().map_or(true, |line| !done.contains(&line.number))));
        let results = left.map(|line| self.result(batch, &caller, line)).buffer_unordered(LINES).ready_chunks(RESULTS);
        tokio::pin!(results);
        let mut beats = tokio::time::interval(BEAT);
        loop {
            let standing = tokio::select! {
                () = self.state.shutdown.cancelled() => return Err(Left::Stopping),
                _ = beats.tick() => self.beat(batch).await?,
                () = self.state.batches.changed() => self.beat(batch).await?,
                some = results.next() => match some {
                    None => return Ok(End::Completed),
                    Some(some) => {
                        let some: Vec<LineResult> = some.into_iter().collect::<Result<_, Left>>()?;
                        self.record(batch, &some).await?
                    }
                },
            };
            if standing.status == "cancelling" {
                return Ok(End::Cancelled);
            }
            if standing.expired {
                return Ok(End::Expired);
            }
        }
    }

    /// Asks for the answer to one line until there is one.
    async fn result(&self, batch: &Batch, caller: &Caller, line: Result<Line>) -> Result<LineResult, Left> {
        let line = line?;
        loop {
            let turn = self.lines.acquire().await.map_err(|_| Left::Stopping)?;
            let outcome = line::ask(&self.inside, caller, &batch.endpoint, &line).await;
            drop(turn);
            match outcome {
                // An answer that the end of the server cut short is none.
                Outcome::Result(result) if result.succeeded || !self.state.shutdown.is_cancelled() => {
                    return Ok(result);
                }
                Outcome::Result(_) => return Err(Left::Stopping),
                Outcome::Wait(time) => tokio::time::sleep(time).await,
            }
        }
    }

    /// Writes results, again and again while the database does not answer: they are not computed anew.
    async fn record(&self, batch: &Batch, results: &[LineResult]) -> Result<Standing, Left> {
        loop {
            match self.state.batches.record(batch, results).await {
                Ok(standing) => return standing.ok_or(Left::Over),
                Err(error) if error.is_transient() && !self.state.shutdown.is_cancelled() => {
                    tracing::warn!(batch = batch.id, "cannot write the results of a batch yet: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Renews the lease and tells where the batch stands.
    async fn beat(&self, batch: &Batch) -> Result<Standing, Left> {
        self.state.batches.heartbeat(batch, LEASE).await?.ok_or(Left::Over)
    }

    /// Does `work` that takes its time, and keeps the lease meanwhile.
    async fn keep<T>(&self, batch: &Batch, work: impl Future<Output = Result<T>>) -> Result<T, Left> {
        tokio::pin!(work);
        let mut beats = tokio::time::interval(LEASE / 6);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done?),
                _ = beats.tick() => drop(self.beat(batch).await?),
            }
        }
    }

    /// Returns the caller that the lines of a batch are asked for: the organisation, which pays with the key that created
    /// the batch, whether or not that still counts. The key's limits hold for all its batches together, apart from its
    /// other requests.
    fn caller(&self, batch: &Batch) -> Caller {
        let whole = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
        let allowance = Allowance {
            requests_per_minute: whole(batch.requests_per_minute),
            tokens_per_minute: whole(batch.tokens_per_minute),
            concurrent_requests: self.state.config.limits.concurrent_requests,
        };
        let key = batch.api_key.as_str().into();
        let limiter = self.limiters.of(&key, allowance);
        Caller { organization: batch.organization.as_str().into(), key, admin: false, limiter, background: true }
    }
}
