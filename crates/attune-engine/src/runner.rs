//! Runs the loop of the engine thread: take arrivals, compose a step, compute it, hand out its results. Started by
//! `native.rs`.
//!
//! Nothing that one request does may reach another: channels are unbounded, so a slow reader stalls nothing; a send to
//! a client that has gone is not an error; a step that fails or panics is repeated by halves until only the request
//! that cannot be computed is left, and that one fails. If the loop itself panics, the requests in flight fail and the
//! loop starts anew. If the device is lost the loop ends, and `app` ends the process.

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Event;
use super::inbox::{Arrival, Asked, Inbox};
use super::metrics::EngineMetrics;
use super::pool;
use super::priority::Priority;
use super::request::{Answer, Drawn, Embedding, Next, Work};
use super::scheduler::{Overdue, Scheduler, Step};
use super::sequence::Sequence;
use super::step_model::{StepModel, StepOutput, WantedRows};
use crate::limits::EngineLimits;
use crate::{Error, Result};
use attune_model::tokenizer::Tokenizer;
use attune_model::vectors::VectorForm;

/// Time that a client is told to wait if its request was never admitted: the queue is long.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Data that the engine thread owns.
pub(super) struct Runner<M> {
    model: M,
    scheduler: Scheduler<Work>,
    limits: EngineLimits,
    metrics: EngineMetrics,
    /// Arrivals that were taken from the inbox and are not yet in the schedule.
    arrived: VecDeque<Arrival>,
    /// Whether the device is lost and computes nothing any more.
    lost: bool,
}

/// Position of a part's results in the step's output.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Results {
    /// The sequence has no rows in this step.
    None,
    /// Rows of logits: `prompt` are those of a prompt's piece if the client wants its log probabilities, `draw` is the
    /// row to draw from if the piece is the last.
    Logits { prompt: Range<usize>, draw: Option<usize> },
    /// Index of the token that the model drew.
    Token(usize),
    /// Rows of hidden states; with `last` the input is complete.
    Hidden { rows: Range<usize>, last: bool },
}

impl<M: StepModel> Runner<M> {
    pub(super) fn new(model: M, scheduler: Scheduler<Work>, limits: EngineLimits) -> Self {
        let metrics = EngineMetrics::new(model.id());
        Self { model, scheduler, limits, metrics, arrived: VecDeque::new(), lost: false }
    }

    /// Runs until the inbox is stopped or the device is lost.
    pub(super) fn run(mut self, inbox: &Inbox, priority: &Priority) {
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.serve(inbox, priority))) {
            self.start_anew(text(&*panic));
        }
        for arrival in self.arrived {
            arrival.owner.fail(Error::stopped());
        }
        for mut work in self.scheduler.drain() {
            work.fail(Error::stopped());
        }
    }

    fn serve(&mut self, inbox: &Inbox, priority: &Priority) {
        let mut busy = None;
        let mut last_step = Duration::ZERO;
        while !self.lost {
            let idle = self.scheduler.is_idle() && self.arrived.is_empty();
            if idle {
                busy = None;
            }
            let Some(arrivals) = inbox.take(idle, || self.rest()) else { break };
            self.arrived.extend(arrivals);
            while let Some(arrival) = self.arrived.pop_front() {
                self.accept(arrival);
            }
            if self.scheduler.is_background_only() {
                // Other engines' requests go first, for no longer than a step takes.
                busy = None;
                priority.yield_to_requests(last_step);
            } else if busy.is_none() {
                busy = Some(priority.busy());
            }
            let began = Instant::now();
            if self.model.uses_pool() {
                pool::compute(|| self.step());
            } else {
                self.step();
            }
            last_step = began.elapsed();
        }
    }

    /// Gives back the memory of the cache's blocks that sequences have left without content.
    fn rest(&mut self) {
        let blocks = self.scheduler.allocator().take_worn();
        if let Err(error) = self.model.give_back(&blocks) {
            tracing::error!(model = self.model.id(), %error, "the memory of unused blocks is not given back");
        }
    }

    /// Fails all requests after a panic of the loop, and replaces schedule and cache: neither can be trusted any more.
    fn start_anew(&mut self, panic: &str) {
        tracing::error!(model = self.model.id(), panic, "the engine's loop panicked; it starts anew");
        self.metrics.restarted();
        let allocator = self.scheduler.allocator().clone();
        let mut broken = std::mem::replace(&mut self.scheduler, Scheduler::new(&self.limits, allocator));
        let dropped = caught(|| {
            for mut work in broken.drain() {
                work.fail(restarted());
            }
            Ok(())
        });
        if let Err(error) = dropped {
            tracing::error!(model = self.model.id(), %error, "not every request could be told");
        }
        self.replace_cache();
        self.metrics.load(&self.scheduler);
    }

    fn accept(&mut self, arrival: Arrival) {
        let (tokenizer, submitted) = (self.model.tokenizer(), arrival.submitted);
        let sequence = arrival.with_owner(|asked| match asked {
            Asked::Answer { request, events } => {
                match caught(|| Answer::new(tokenizer, *request, events.clone(), submitted)) {
                    Ok(answer) => Some(Work::Answer(Box::new(answer))),
                    Err(error) => {
                        // Sending fails only if the client has gone; that is fine.
                        let _ = events.send(Event::Failed(error));
                        None
                    }
                }
            }
            Asked::Vector { prompt, output, reply } => {
                Some(Work::Embedding(Embedding::new(self.model.vectors().pooler(), prompt, output, reply)))
            }
        });
        if let Some(sequence) = sequence {
            self.scheduler.submit(sequence);
        }
    }

    fn step(&mut self) {
        let now = Instant::now();
        for (mut work, overdue) in self.scheduler.sweep(now) {
            work.fail(self.overdue(overdue));
        }
        let step = self.scheduler.compose(now);
        self.metrics.happened(&self.scheduler.take_happenings());
        self.metrics.load(&self.scheduler);
        if step.parts.is_empty() {
            // Admission accepts only requests that fit an empty cache, so nothing can be left waiting; if it is, do not
            // spin on it.
            for mut work in self.scheduler.drain() {
                work.fail(Error::Internal("a request fits no empty cache".into()));
            }
            return;
        }
        self.compute(step);
        self.metrics.load(&self.scheduler);
    }

    fn overdue(&self, overdue: Overdue) -> Error {
        match overdue {
            Overdue::Waiting => {
                Error::Overloaded { what: "the request waited too long for its turn", retry_after: RETRY_AFTER }
            }
            Overdue::Running => Error::TimedOut { limit: Duration::from_secs(self.limits.max_request_seconds) },
        }
    }

    /// Computes `step` and hands out its results. If it fails, each half is tried again, and so on, until only a
    /// request that cannot be computed alone is left: that one fails, the others lose nothing.
    fn compute(&mut self, step: Step) {
        let mut ended = Vec::new();
        let mut cache_lost = false;
        let mut pieces = vec![step];
        while let Some(step) = pieces.pop() {
            self.metrics.step(step.tokens.len());
            let (wanted, results) = wanted_rows(&step, self.scheduler.running(), self.model.draws());
            let output = caught(|| self.model.step(&step.tokens, &self.scheduler.rows(&step), &wanted));
            let error = match output {
                Ok(output) => {
                    self.scheduler.advance(&step);
                    ended.extend(self.hand_out(&step, &results, &output));
                    continue;
                }
                Err(error) => error,
            };
            self.metrics.step_failed();
            if !self.model.has_device() {
                tracing::error!(model = self.model.id(), %error, "an engine step failed, and the device is lost");
                self.lost = true;
                return;
            }
            cache_lost = !self.model.is_intact();
            tracing::error!(
                model = self.model.id(), %error, cache_lost, sequences = step.parts.len(), "an engine step failed"
            );
            if let [part] = step.parts.as_slice() {
                let owner = &mut self.scheduler.running()[part.sequence].owner;
                owner.fail(match error {
                    Error::Model(attune_model::Error::OutOfMemory) => error,
                    error => Error::Internal(format!("engine step: {error}")),
                });
                ended.push(part.sequence);
            } else if cache_lost {
                self.scheduler.suspect(&step);
            } else {
                let (first, second) = step.halves();
                pieces.extend([second, first]);
            }
            if cache_lost {
                break;
            }
        }
        self.scheduler.remove(ended);
        if cache_lost {
            self.scheduler.lose_cache();
            self.replace_cache();
        }
    }

    fn replace_cache(&mut self) {
        self.scheduler.allocator().forget();
        if let Err(error) = caught(|| self.model.reset()) {
            tracing::error!(model = self.model.id(), %error, "the cache cannot be replaced; going on with the old one");
        }
    }

    /// Gives each sequence its results, on all cores: drawing from a large vocabulary costs as much as a small layer.
    /// Returns the indices of the sequences that have ended.
    fn hand_out(&mut self, step: &Step, results: &[Results], output: &StepOutput) -> Vec<usize> {
        let mut by_sequence = vec![Results::None; self.scheduler.running_count()];
        for (part, result) in step.parts.iter().zip(results) {
            by_sequence[part.sequence] = result.clone();
        }
        let (tokenizer, vectors) = (self.model.tokenizer(), self.model.vectors());
        let metrics = &self.metrics;
        (self.scheduler.running().par_iter_mut())
            .zip(by_sequence)
            .enumerate()
            .filter_map(|(index, (sequence, result))| {
                (deliver(sequence, result, output, (tokenizer, vectors), metrics) == Drawn::Ended).then_some(index)
            })
            .collect()
    }
}

/// Returns the rows of `step` to read back, and the position of each part's results in them.
fn wanted_rows(step: &Step, running: &[Sequence<Work>], model_draws: bool) -> (WantedRows, Vec<Results>) {
    let mut wanted = WantedRows::default();
    let results = step.parts.iter().map(|part| match &running[part.sequence].owner {
        Work::Answer(answer) => {
            let last = part.rows.end - usize::from(part.complete);
            if part.complete
                && model_draws
                && let Some(draw) = answer.plain_draw()
            {
                wanted.draws.push((last as u32, draw));
                return Results::Token(wanted.draws.len() - 1);
            }
            let from = wanted.logits.len();
            let prompt = if answer.reads_prompt() { part.rows.start..last } else { last..last };
            wanted.logits.extend(prompt.map(|row| row as u32));
            let prompt = from..wanted.logits.len();
            let draw = part.complete.then_some(prompt.end);
            wanted.logits.extend(draw.map(|_| last as u32));
            Results::Logits { prompt, draw }
        }
        Work::Embedding(_) => {
            let from = wanted.hidden.len();
            wanted.hidden.extend(part.rows.clone().map(|row| row as u32));
            Results::Hidden { rows: from..wanted.hidden.len(), last: part.complete }
        }
    });
    let results = results.collect();
    (wanted, results)
}

fn deliver(
    sequence: &mut Sequence<Work>,
    result: Results,
    output: &StepOutput,
    (tokenizer, vectors): (&Tokenizer, &VectorForm),
    metrics: &EngineMetrics,
) -> Drawn {
    let progress = match (&mut sequence.owner, result) {
        (Work::Answer(answer), result @ (Results::Logits { .. } | Results::Token(_))) => {
            let draws = !matches!(result, Results::Logits { draw: None, .. });
            let progress = caught(|| match result {
                Results::Logits { prompt, draw } => {
                    let rows: Vec<&[f32]> = prompt.map(|row| output.logits.row(row)).collect();
                    answer.read_prompt(&rows)?;
                    let Some(row) = draw else { return Ok(Drawn::Continues) };
                    answer.draw(tokenizer, Next::Logits(output.logits.row(row)))
                }
                Results::Token(index) => answer.draw(tokenizer, Next::Token(output.tokens[index])),
                _ => Ok(Drawn::Continues),
            });
            if draws
                && progress.is_ok()
                && let Some(time) = answer.token_time(Instant::now())
            {
                metrics.token(time);
            }
            progress.unwrap_or_else(|error| answer.send_failed(error))
        }
        (Work::Embedding(embedding), Results::Hidden { rows, last }) => {
            rows.for_each(|row| embedding.add(output.hidden.row(row)));
            if !last {
                return Drawn::Continues;
            }
            embedding.finish(vectors);
            Drawn::Ended
        }
        _ => return Drawn::Continues,
    };
    if let Drawn::Token(token) = progress {
        sequence.push(token);
    }
    progress
}

/// Runs `work` and turns a panic into an error. The caller then discards the data that `work` changed, so that no
/// half-changed state is seen.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Error::Internal(format!("panic: {}", text(&*panic)))))
}

/// Returns the error of requests that were in flight when the engine's loop panicked.
fn restarted() -> Error {
    Error::Unavailable("The engine of this model had to be started again. Please send the request again.")
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
