//! The engine thread's loop: take what arrived, compose a step, compute it, hand out what came of it.
//!
//! Nothing that one request does may reach another: channels are unbounded, so a slow reader stalls nothing; a send to a
//! client that has gone is not an error; a step that fails or panics fails its own requests, and the loop goes on.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rayon::prelude::*;

use super::Event;
use super::inbox::{Arrival, Inbox};
use super::native::stopped;
use super::pool;
use super::priority::Priority;
use super::request::{Answer, Embedding, Progress, Work};
use super::scheduler::{Lane, NewSequence, Scheduler, Sequence, Step};
use super::step_model::{StepModel, StepOutput, WantedRows};
use crate::model::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Everything that the engine thread owns.
pub(super) struct Runner<M> {
    model: M,
    scheduler: Scheduler<Work>,
    /// The label of all metrics.
    id: Arc<str>,
}

/// Where a part's results stand in the step's output.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Results {
    /// The sequence has no rows in this step.
    None,
    /// Rows of logits: those of a prompt's piece where the client wants its log probabilities, then the one to draw from
    /// where the piece is the last.
    Logits { prompt: Range<usize>, draw: Option<usize> },
    /// Rows of hidden states; the input is complete with them where `last`.
    Hidden { rows: Range<usize>, last: bool },
}

impl<M: StepModel> Runner<M> {
    pub(super) fn new(model: M, scheduler: Scheduler<Work>) -> Self {
        let id = model.id().into();
        Self { model, scheduler, id }
    }

    /// Runs until the inbox is stopped.
    pub(super) fn run(mut self, inbox: &Inbox, priority: &Priority) {
        let mut busy = None;
        loop {
            let idle = self.scheduler.is_idle();
            if idle {
                busy = None;
            }
            let Some(arrivals) = inbox.take(idle) else { break };
            for arrival in arrivals {
                self.accept(arrival);
            }
            if busy.is_none() {
                busy = Some(priority.busy());
            }
            if self.model.uses_pool() {
                pool::compute(|| self.step());
            } else {
                self.step();
            }
        }
        for work in self.scheduler.drain() {
            work.fail(stopped());
        }
    }

    fn accept(&mut self, arrival: Arrival) {
        let sequence = match arrival {
            Arrival::Generate { mut request, max_tokens, events, submitted, ticket } => {
                let adapter = request.adapter.take();
                let prompt = request.prompt.clone();
                match Answer::new(self.model.tokenizer(), request, max_tokens, events.clone(), submitted) {
                    Ok(answer) => NewSequence {
                        lane: Lane::Answer,
                        prompt,
                        max_tokens,
                        adapter,
                        ticket,
                        owner: Work::Answer(Box::new(answer)),
                    },
                    Err(error) => return drop(events.send(Event::Failed(error))),
                }
            }
            Arrival::Embed { input, adapter, reply, ticket } => NewSequence {
                lane: Lane::Embed,
                prompt: input,
                max_tokens: 0,
                adapter,
                ticket,
                owner: Work::Embedding(Embedding::new(reply)),
            },
        };
        self.scheduler.submit(sequence);
    }

    fn step(&mut self) {
        let step = self.scheduler.compose();
        if step.parts.is_empty() {
            self.record_load();
            // The door lets in only what fits an empty cache, so nothing can be left waiting; if it is, do not spin on it.
            for work in self.scheduler.drain() {
                work.fail(Error::Internal("a request fits no empty cache".into()));
            }
            return;
        }
        self.record_load();
        metrics::counter!("attune_engine_steps_total", "model" => self.id.clone()).increment(1);
        metrics::histogram!("attune_step_rows", "model" => self.id.clone()).record(step.tokens.len() as f64);
        let (wanted, results) = wanted_rows(&step, self.scheduler.running());
        let output = caught(|| {
            let rows = self.scheduler.rows(&step);
            self.model.step(&step.tokens, &rows, &wanted)
        });
        match output {
            Ok(output) => {
                self.scheduler.advance(&step);
                self.hand_out(&step, &results, &output);
            }
            Err(error) => self.fail_step(&step, &error),
        }
        self.record_load();
    }

    /// Gives each sequence its results, on all cores: drawing from a large vocabulary costs as much as a small layer.
    fn hand_out(&mut self, step: &Step, results: &[Results], output: &StepOutput) {
        let mut by_sequence = vec![Results::None; self.scheduler.running_count()];
        for (part, result) in step.parts.iter().zip(results) {
            by_sequence[part.sequence] = result.clone();
        }
        let (tokenizer, id) = (self.model.tokenizer(), &self.id);
        let ended = (self.scheduler.running().par_iter_mut())
            .zip(by_sequence)
            .enumerate()
            .filter_map(|(index, (sequence, result))| {
                (deliver(sequence, result, output, tokenizer, id) == Progress::Ended).then_some(index)
            })
            .collect();
        self.scheduler.remove(ended);
    }

    /// Fails the requests of the step alone. The cache may be unusable (a panic can leave a tensor's lock poisoned); nobody
    /// else has anything in it, since a sequence that has begun is part of every step.
    fn fail_step(&mut self, step: &Step, error: &Error) {
        tracing::error!(model = %self.id, %error, requests = step.parts.len(), "an engine step failed");
        let failed = self.scheduler.remove(step.parts.iter().map(|part| part.sequence).collect());
        for sequence in failed {
            sequence.owner.fail(Error::Internal(format!("engine step: {error}")));
        }
        if let Err(error) = caught(|| self.model.reset()) {
            tracing::error!(model = %self.id, %error, "the cache cannot be replaced; going on with the old one");
        }
    }

    fn record_load(&self) {
        let id = || self.id.clone();
        metrics::gauge!("attune_queue_waiting", "model" => id()).set(self.scheduler.waiting_count() as f64);
        metrics::gauge!("attune_running_sequences", "model" => id()).set(self.scheduler.running_count() as f64);
        metrics::gauge!("attune_kv_blocks_used", "model" => id()).set(self.scheduler.allocator().used() as f64);
    }
}

/// Which rows of `step` are read back, and where each part finds its own.
fn wanted_rows(step: &Step, running: &[Sequence<Work>]) -> (WantedRows, Vec<Results>) {
    let mut wanted = WantedRows::default();
    let results = step.parts.iter().map(|part| match part.lane {
        Lane::Answer => {
            let last = part.rows.end - usize::from(part.complete);
            let reads_prompt = matches!(&running[part.sequence].owner, Work::Answer(answer) if answer.reads_prompt());
            let from = wanted.logits.len();
            let prompt = if reads_prompt { part.rows.start..last } else { last..last };
            wanted.logits.extend(prompt.map(|row| row as u32));
            let prompt = from..wanted.logits.len();
            let draw = part.complete.then_some(prompt.end);
            wanted.logits.extend(draw.map(|_| last as u32));
            Results::Logits { prompt, draw }
        }
        Lane::Embed => {
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
    tokenizer: &Tokenizer,
    id: &Arc<str>,
) -> Progress {
    let progress = match (&mut sequence.owner, result) {
        (Work::Answer(answer), Results::Logits { prompt, draw }) => {
            let progress = caught(|| {
                let rows: Vec<&[f32]> = prompt.map(|row| output.logits.row(row)).collect();
                answer.read_prompt(&rows)?;
                draw.map_or(Ok(Progress::Continues), |row| answer.draw(tokenizer, output.logits.row(row)))
            });
            let progress = progress.unwrap_or_else(|error| answer.send_failed(error));
            if let Some(time) = answer.time_to_first_token() {
                metrics::histogram!("attune_time_to_first_token_seconds", "model" => id.clone()).record(time);
            }
            progress
        }
        (Work::Embedding(embedding), Results::Hidden { rows, last }) => {
            rows.for_each(|row| embedding.add(output.hidden.row(row)));
            if !last {
                return Progress::Continues;
            }
            embedding.finish();
            Progress::Ended
        }
        _ => return Progress::Continues,
    };
    if let Progress::Token(token) = progress {
        sequence.push(token);
    }
    progress
}

/// Runs `work`; a panic becomes an error. What it touched is thrown away by the caller then, so no half-changed state is
/// seen.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Error::Internal(format!("panic: {}", text(&*panic)))))
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
