//! Composes steps: which sequences run, which wait, and whose rows the next step computes. A plain data structure without
//! tensors and threads; the engine thread (`native.rs`) owns it.
//!
//! The rules:
//! - Requests are admitted first in, first out, once the cache can hold all that they may ever need; so a running sequence
//!   never lacks a block. The next in line is waited for, not overtaken, so a large one is not starved by small ones.
//! - Answers and embeddings queue in lanes of their own, admitted in turn: a bulk embedding job delays no chat.
//! - A step has one row of every sequence that is answering, then pieces of prompts, oldest first, within the budget.
//! - Rows of one adapter generation stand next to each other, the base first.
//! - Whose client has gone leaves at the next composition, waiting or running, and its blocks with it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::door::Ticket;
use super::kv::{BlockAllocator, BlockTable};
use crate::adapters::AdapterLease;
use crate::model::decoder::SequenceRows;

/// What a sequence is computed for: the engine's reply channel and sampling state, opaque to the scheduler.
pub trait Owner {
    /// True where nobody waits for the result any more.
    fn is_gone(&self) -> bool;
}

/// Which queue a sequence waits in, and what is wanted of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A token after the last row.
    Answer,
    /// The hidden states of all rows.
    Embed,
}

/// A sequence that waits.
#[derive(Debug)]
pub struct NewSequence<T> {
    /// What is wanted.
    pub lane: Lane,
    /// The tokens given; at least one.
    pub prompt: Vec<u32>,
    /// New tokens at the most; 0 for embeddings.
    pub max_tokens: usize,
    /// The adapter of its rows.
    pub adapter: Option<AdapterLease>,
    /// Its place in the queue, shared by the inputs of one request, given back at admission.
    pub ticket: Arc<Ticket>,
    /// Who gets the result.
    pub owner: T,
}

/// A sequence that runs.
#[derive(Debug)]
pub struct Sequence<T> {
    /// Who gets the result.
    pub owner: T,
    lane: Lane,
    /// The prompt, then the tokens drawn.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Tokens whose keys and values are in the cache.
    cached: usize,
    table: BlockTable,
    adapter: Option<AdapterLease>,
    /// The step that last had rows of it, to serve the longest waiting first where the budget is short.
    served: u64,
}

/// One step's rows.
#[derive(Debug, Default)]
pub struct Step {
    /// The tokens of all parts.
    pub tokens: Vec<u32>,
    /// One part per sequence, rows of one adapter next to each other.
    pub parts: Vec<Part>,
}

/// One sequence's share of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Index of the sequence in [`Scheduler::running`].
    pub sequence: usize,
    /// Its rows in the step.
    pub rows: Range<usize>,
    /// What is wanted of the rows.
    pub lane: Lane,
    /// True where the rows reach the last known token: a token can be drawn, an embedding is complete.
    pub complete: bool,
}

/// Waiting and running sequences of one engine.
#[derive(Debug)]
pub struct Scheduler<T> {
    max_sequences: usize,
    max_step_tokens: usize,
    allocator: BlockAllocator,
    /// Indexed by [`Lane`].
    waiting: [VecDeque<NewSequence<T>>; 2],
    /// The lane whose turn it is.
    turn: usize,
    /// In the order of admission.
    running: Vec<Sequence<T>>,
    steps: u64,
}

impl<T: Owner> Scheduler<T> {
    /// An empty scheduler over the blocks of `allocator`.
    pub fn new(max_sequences: usize, max_step_tokens: usize, allocator: BlockAllocator) -> Self {
        let waiting = [VecDeque::new(), VecDeque::new()];
        Self { max_sequences, max_step_tokens, allocator, waiting, turn: 0, running: Vec::new(), steps: 0 }
    }

    /// Puts a sequence at the end of its queue. The [door](super::door) has made sure that it can run.
    pub fn submit(&mut self, sequence: NewSequence<T>) {
        self.waiting[sequence.lane as usize].push_back(sequence);
    }

    /// Drops what nobody waits for, admits what fits, and composes the next step; it has no parts where nothing runs.
    pub fn compose(&mut self) -> Step {
        for lane in &mut self.waiting {
            lane.retain(|sequence| !sequence.owner.is_gone());
        }
        self.running.retain(|sequence| !sequence.owner.is_gone());
        self.admit();
        let mut shares = self.shares();
        // `None` (the base) is less than every adapter; the sort is stable, so each group stays in the order of admission.
        shares.sort_by(|(a, _), (b, _)| self.running[*a].adapter_id().cmp(&self.running[*b].adapter_id()));
        self.steps += 1;
        let mut step = Step::default();
        for (index, rows) in shares {
            let sequence = &mut self.running[index];
            sequence.served = self.steps;
            let from = step.tokens.len();
            step.tokens.extend_from_slice(&sequence.tokens[sequence.cached..][..rows]);
            step.parts.push(Part {
                sequence: index,
                rows: from..from + rows,
                lane: sequence.lane,
                complete: sequence.cached + rows == sequence.tokens.len(),
            });
        }
        step
    }

    fn admit(&mut self) {
        while self.running.len() < self.max_sequences {
            if self.waiting[self.turn].is_empty() {
                self.turn = 1 - self.turn;
            }
            let Some(next) = self.waiting[self.turn].front() else { return };
            // The last token drawn is never fed back, so it needs no place.
            let wanted = next.prompt.len() + next.max_tokens.saturating_sub(1);
            let Some(table) = self.allocator.reserve(wanted) else { return };
            let Some(next) = self.waiting[self.turn].pop_front() else { return };
            self.turn = 1 - self.turn;
            self.running.push(Sequence {
                owner: next.owner,
                lane: next.lane,
                prompt_tokens: next.prompt.len(),
                tokens: next.prompt,
                cached: 0,
                table,
                adapter: next.adapter,
                served: 0,
            });
        }
    }

    /// Indices of running sequences with their number of rows, in the order of admission.
    fn shares(&self) -> Vec<(usize, usize)> {
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        order.sort_by_key(|index| {
            let sequence = &self.running[*index];
            // Answers that flow come first, the one that waited longest ahead; prompts strictly by age.
            if sequence.is_answering() { (0, sequence.served) } else { (1, 0) }
        });
        let mut budget = self.max_step_tokens;
        let mut shares = Vec::with_capacity(order.len());
        for index in order {
            let sequence = &self.running[index];
            let rows = (sequence.tokens.len() - sequence.cached).min(budget);
            if rows > 0 {
                shares.push((index, rows));
                budget -= rows;
            }
        }
        shares.sort_unstable();
        shares
    }

    /// The decoder's view of `step`.
    pub fn rows<'a>(&'a self, step: &Step) -> Vec<SequenceRows<'a>> {
        let rows = step.parts.iter().map(|part| {
            let sequence = &self.running[part.sequence];
            SequenceRows {
                rows: part.rows.clone(),
                start: sequence.cached,
                blocks: sequence.table.blocks(),
                adapter: sequence.adapter.as_deref(),
            }
        });
        rows.collect()
    }

    /// The step was computed: its tokens are in the cache.
    pub fn advance(&mut self, step: &Step) {
        for part in &step.parts {
            self.running[part.sequence].cached += part.rows.len();
        }
    }

    /// Running sequences in the order of admission, as [`Part::sequence`] counts them until the next [`Self::remove`].
    pub fn running(&mut self) -> &mut [Sequence<T>] {
        &mut self.running
    }

    /// Takes out the sequences at `indices`; their blocks are free when the result drops.
    pub fn remove(&mut self, mut indices: Vec<usize>) -> Vec<Sequence<T>> {
        indices.sort_unstable();
        indices.dedup();
        indices.into_iter().rev().map(|index| self.running.remove(index)).collect()
    }

    /// Takes out everything, waiting and running.
    pub fn drain(&mut self) -> Vec<T> {
        let running = self.running.drain(..).map(|sequence| sequence.owner);
        let waiting = self.waiting.iter_mut().flat_map(|lane| lane.drain(..)).map(|sequence| sequence.owner);
        running.chain(waiting).collect()
    }

    /// The cache was lost: what still runs is computed again from its first token, and draws no token twice.
    pub fn forget_cache(&mut self) {
        for sequence in &mut self.running {
            sequence.cached = 0;
        }
    }

    /// True where there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.iter().all(VecDeque::is_empty)
    }

    /// Sequences that wait for admission.
    pub fn waiting_count(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    /// Sequences that run.
    pub fn running_count(&self) -> usize {
        self.running.len()
    }

    /// The cache's blocks.
    pub fn allocator(&self) -> &BlockAllocator {
        &self.allocator
    }
}

impl<T> Sequence<T> {
    /// Appends a drawn token; the next step computes its row.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// Tokens given by the client.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    fn is_answering(&self) -> bool {
        self.tokens.len() > self.prompt_tokens && self.tokens.len() - self.cached == 1
    }

    fn adapter_id(&self) -> Option<&str> {
        self.adapter.as_ref().map(|adapter| adapter.id.as_str())
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
