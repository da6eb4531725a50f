//! Composes steps: decides which sequences run, which wait, and which rows the next step computes. A plain data
//! structure without tensors and threads; the engine thread (`runner.rs`) owns it.
//!
//! The rules:
//! - A sequence is admitted once there is a place and there are blocks for its tokens, plus one spare block for each
//!   running sequence that may need another; it takes further blocks as it grows. Places and blocks are shared out among
//!   organisations (`scheduler/places.rs`); the others wait for who is next and do not overtake it, so a large sequence
//!   is not starved by small ones.
//! - When a running sequence needs a block and none is left, the one admitted last gives up all of its own, of the
//!   organisation that runs most. It keeps its tokens and its owner's state, comes before everything of its organisation
//!   that waits, and is computed again from its tokens: its text does not change. So the oldest always goes on, and
//!   everyone becomes the oldest.
//! - Answers and embeddings queue in lanes of their own, admitted in turn: a bulk embedding job delays no chat.
//! - A step has one row of every sequence that is answering, then pieces of prompts within the budget, in equal parts for
//!   each organisation: a quarter of its part for its oldest prompt, the remainder for those that need least. So a long
//!   prompt delays no short one, and short ones delay no long one without end.
//! - Beside answers, the prompts of an organisation bring a few new adapters into a step: requests that waited for their
//!   adapters together do not make one step long for all.
//! - If two prompts begin alike, the younger waits for the older one's blocks instead of computing the same.
//! - Background sequences, which nobody waits for, have a queue of their own. They are admitted when nothing else waits,
//!   give up places and blocks before all others, and have few rows beside others (`scheduler/shares.rs`).
//! - Rows of one adapter generation stand next to each other, the base first.
//! - A sequence whose client has gone is removed with its blocks at the next sweep, waiting or running.

mod places;
mod shares;

use std::ops::Range;
use std::time::{Duration, Instant};

use super::kv::BlockAllocator;
use super::queue::{DRAWN_TOKEN, FairQueue};
pub(crate) use super::sequence::{BACKGROUND, Lane, NewSequence, Owner, QUEUES, Sequence};
use crate::limits::EngineLimits;
use attune_model::decoder::SequenceRows;

/// Number of waiting sequences beyond which only every [`LAZY_SWEEP`]th step looks for those whose client has gone.
const LONG_QUEUE: usize = 4096;
const LAZY_SWEEP: u64 = 16;

/// Rows of one step.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// The tokens of all parts.
    pub(crate) tokens: Vec<u32>,
    /// One part per sequence, rows of one adapter next to each other.
    pub(crate) parts: Vec<StepPart>,
}

/// One sequence's share of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepPart {
    /// Index of the sequence in [`Scheduler::running`].
    pub(crate) sequence: usize,
    /// Rows of the sequence in the step.
    pub(crate) rows: Range<usize>,
    /// Whether the rows reach the last known token: a token can be drawn, or an embedding is complete.
    pub(crate) complete: bool,
}

/// A limit on time that a sequence has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// It waited longer than `limits.max_queue_seconds`.
    Waiting,
    /// Its answer took longer than `limits.max_request_seconds`.
    Running,
}

/// Counts of events while steps were composed, for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Happenings {
    /// Waiting time of each admitted sequence.
    pub(crate) waits: Vec<Duration>,
    /// Tokens of prompts that sequences found in the cache.
    pub(crate) reused_tokens: usize,
    /// Number of sequences that had to give up their blocks because none was left.
    pub(crate) preemptions: u64,
    /// Number of sequences that gave their place up to another organisation.
    pub(crate) yields: u64,
}

/// Waiting and running sequences of one engine.
#[derive(Debug)]
pub(crate) struct Scheduler<T> {
    limits: EngineLimits,
    allocator: BlockAllocator,
    /// Waiting sequences, indexed by [`Sequence::queue`].
    waiting: [FairQueue<Sequence<T>>; QUEUES],
    /// Lane whose turn it is.
    turn: usize,
    /// When a sequence that somebody waits for was last seen, and the number of steps with such sequences.
    last_awaited: Option<Instant>,
    awaited_steps: u64,
    /// Running sequences in the order of their first admission.
    running: Vec<Sequence<T>>,
    /// Sequences that gave up their blocks, in the same order.
    preempted: Vec<Sequence<T>>,
    arrivals: u64,
    admissions: u64,
    sweeps: u64,
    happenings: Happenings,
}

impl Step {
    /// Splits the step into one with the first half of the parts and one with the second.
    pub(crate) fn halves(&self) -> (Self, Self) {
        let middle = self.parts.len() / 2;
        let half = |parts: &[StepPart]| {
            let mut step = Self::default();
            for part in parts {
                let from = step.tokens.len();
                step.tokens.extend_from_slice(&self.tokens[part.rows.clone()]);
                step.parts.push(StepPart { rows: from..step.tokens.len(), ..part.clone() });
            }
            step
        };
        (half(&self.parts[..middle]), half(&self.parts[middle..]))
    }
}

impl<T: Owner> Scheduler<T> {
    /// Creates an empty scheduler over the blocks of `allocator`.
    pub(crate) fn new(limits: &EngineLimits, allocator: BlockAllocator) -> Self {
        Self {
            limits: limits.clone(),
            allocator,
            waiting: std::array::from_fn(|_| FairQueue::default()),
            turn: 0,
            last_awaited: None,
            awaited_steps: 0,
            running: Vec::new(),
            preempted: Vec::new(),
            arrivals: 0,
            admissions: 0,
            sweeps: 0,
            happenings: Happenings::default(),
        }
    }

    /// Puts a sequence at the end of its queue. [`Admission`](super::admission::Admission) has checked that it can run.
    pub(crate) fn submit(&mut self, new: NewSequence<T>) {
        let sequence = Sequence::new(new, &self.allocator, self.limits.prefix_cache);
        self.arrivals += 1;
        self.waiting[sequence.queue()].push(&sequence.place.clone(), self.arrivals, sequence);
    }

    /// Removes sequences whose client has gone or whose time is over; returns the owners of the latter.
    pub(crate) fn sweep(&mut self, now: Instant) -> Vec<(T, Overdue)> {
        let max_wait = Duration::from_secs(self.limits.max_queue_seconds);
        let max_time = Duration::from_secs(self.limits.max_request_seconds);
        let overdue = |sequence: &Sequence<T>| {
            if sequence.background {
                return None;
            }
            let age = now.saturating_duration_since(sequence.submitted);
            // A request with many sequences has begun when the first one runs: the others may wait longer.
            let has_begun = sequence.ticket.as_ref().is_none_or(|ticket| ticket.has_begun());
            let late = (age > max_time).then_some(Overdue::Running);
            late.or((age > max_wait && !has_begun).then_some(Overdue::Waiting))
        };
        let stays = |sequence: &Sequence<T>| !sequence.owner.is_gone() && overdue(sequence).is_none();
        let mut taken: Vec<Sequence<T>> = self.running.extract_if(.., |sequence| !stays(sequence)).collect();
        taken.extend(self.preempted.extract_if(.., |sequence| !stays(sequence)));
        for sequence in &taken {
            self.waiting[sequence.queue()].leave(&sequence.place);
        }
        self.sweeps += 1;
        if self.waiting_count() <= LONG_QUEUE || self.sweeps.is_multiple_of(LAZY_SWEEP) {
            taken.extend(self.waiting.iter_mut().flat_map(|lane| lane.extract(stays)));
        }
        let taken = taken.into_iter().filter(|sequence| !sequence.owner.is_gone());
        taken.filter_map(|sequence| overdue(&sequence).map(|what| (sequence.owner, what))).collect()
    }

    /// Takes blocks for running sequences, admits new ones, and composes the next step; it has no parts if nothing
    /// runs.
    pub(crate) fn compose(&mut self, now: Instant) -> Step {
        self.grow();
        self.admit(now);
        let mut shares = self.shares(now);
        // `None` (the base) is less than every adapter; the sort is stable, so each group stays in the order of
        // admission.
        let adapter = |index: usize| self.running[index].adapter.as_ref().map(|adapter| &adapter.id);
        shares.sort_by(|(a, _), (b, _)| adapter(*a).cmp(&adapter(*b)));
        let mut step = Step::default();
        for (index, rows) in shares {
            let sequence = &self.running[index];
            let from = step.tokens.len();
            step.tokens.extend_from_slice(&sequence.tokens[sequence.cached..][..rows]);
            step.parts.push(StepPart {
                sequence: index,
                rows: from..from + rows,
                complete: sequence.pending() == rows,
            });
        }
        step
    }

    /// Takes blocks for every token of the running sequences, the oldest first, from others if there are too few.
    fn grow(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            if sequence.table.grow(sequence.tokens.len()) {
                index += 1;
                continue;
            }
            let Some(other) = self.who_gives_up_blocks() else { return };
            self.preempt(other);
            self.happenings.preemptions += 1;
            index -= usize::from(other < index);
        }
    }

    /// Returns the decoder's view of `step`.
    pub(crate) fn rows<'a>(&'a self, step: &Step) -> Vec<SequenceRows<'a>> {
        let rows = step.parts.iter().map(|part| {
            let sequence = &self.running[part.sequence];
            SequenceRows {
                rows: part.rows.clone(),
                start: sequence.cached,
                blocks: sequence.table.blocks(),
                adapter: sequence.adapter.as_deref(),
                rope: sequence.rope,
            }
        });
        rows.collect()
    }

    /// Notes that the step was computed, so that its tokens are in the cache.
    pub(crate) fn advance(&mut self, step: &Step) {
        for part in &step.parts {
            let sequence = &mut self.running[part.sequence];
            sequence.advance(part.rows.len());
            if part.complete && sequence.owner.lane() == Lane::Answer {
                self.waiting[sequence.queue()].charge(&sequence.place, DRAWN_TOKEN);
            }
        }
    }

    /// Returns the running sequences in the order of admission, as [`StepPart::sequence`] counts them until the next
    /// [`Self::remove`].
    pub(crate) fn running(&mut self) -> &mut [Sequence<T>] {
        &mut self.running
    }

    /// Removes the sequences at `indices`; their blocks are free when the result drops.
    pub(crate) fn remove(&mut self, mut indices: Vec<usize>) -> Vec<Sequence<T>> {
        indices.sort_unstable();
        indices.dedup();
        let removed: Vec<_> = indices.into_iter().rev().map(|index| self.running.remove(index)).collect();
        for sequence in &removed {
            self.waiting[sequence.queue()].leave(&sequence.place);
        }
        removed
    }

    /// Marks each sequence of `step` to be computed alone until it is past this step: one of them breaks the cache.
    pub(crate) fn suspect(&mut self, step: &Step) {
        for part in &step.parts {
            let sequence = &mut self.running[part.sequence];
            sequence.suspect_until = Some(sequence.tokens.len());
        }
    }

    /// Notes that the cache's content is lost: all running sequences are computed again.
    pub(crate) fn lose_cache(&mut self) {
        while let Some(youngest) = self.running.len().checked_sub(1) {
            self.preempt(youngest);
        }
        self.allocator.forget();
    }

    /// Removes all sequences, waiting and running, and returns their owners.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        let running = self.running.drain(..).chain(self.preempted.drain(..)).map(|sequence| sequence.owner);
        let mut drained: Vec<T> = running.collect();
        for lane in &mut self.waiting {
            drained.extend(lane.extract(|_| false).into_iter().map(|sequence| sequence.owner));
            *lane = FairQueue::default();
        }
        drained
    }

    /// Returns the counts since the last call and resets them.
    pub(crate) fn take_happenings(&mut self) -> Happenings {
        std::mem::take(&mut self.happenings)
    }

    /// Returns `true` if there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting_count() == 0
    }

    /// Returns `true` if nobody waits for any of the sequences.
    pub(crate) fn is_background_only(&self) -> bool {
        self.waiting[..BACKGROUND].iter().all(|queue| queue.len() == 0)
            && self.running.iter().chain(&self.preempted).all(|sequence| sequence.background)
    }

    /// Returns how many sequences wait for admission, for the first time or again.
    pub(crate) fn waiting_count(&self) -> usize {
        self.preempted.len() + self.waiting.iter().map(FairQueue::len).sum::<usize>()
    }

    /// Returns how many sequences run.
    pub(crate) fn running_count(&self) -> usize {
        self.running.len()
    }

    /// Returns the cache's blocks.
    pub(crate) fn allocator(&self) -> &BlockAllocator {
        &self.allocator
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
