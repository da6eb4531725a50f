//! State of one sequence on its way through the scheduler: its tokens, how many of them are in the cache, and its
//! blocks there. If it has to give up its blocks for another sequence, it keeps everything else.

use std::sync::Arc;
use std::time::Instant;

use super::admission::Ticket;
use super::kv::{BlockAllocator, BlockTable};
use super::prefix_cache::{PrefixChain, PrefixKey};
use super::queue::Position;
use attune_model::kv_cache::BLOCK_TOKENS;
use attune_model::lora::AdapterLease;
use attune_model::rope::RopeTable;

/// Tokens that a sequence may draw before it gives its place up to an organisation that runs nothing, if all others run
/// one sequence at the most; and the part of its tokens at admission that it may draw besides, so that computing them
/// again costs little of the time.
const SLICE: usize = 64;
const SLICE_PART: usize = 8;

/// Queues of sequences that wait: one for each [`Lane`], and [`BACKGROUND`] for those that nobody waits for.
pub(crate) const QUEUES: usize = 3;
pub(crate) const BACKGROUND: usize = 2;

/// Owner of a sequence: the engine's reply channel and sampling state, opaque to the scheduler.
pub(crate) trait Owner {
    /// Returns the lane: the queue to wait in and the kind of result.
    fn lane(&self) -> Lane;

    /// Returns `true` once nobody waits for the result any more.
    fn is_gone(&self) -> bool;

    /// Returns `true` if the owner needs every row, so that no row may come from the cache.
    fn needs_all_rows(&self) -> bool;

    /// Notes that this many more tokens of the prompt were found in the cache.
    fn reused(&mut self, tokens: usize);

    /// Drops results of rows so far: the sequence is computed again from its first row.
    fn restarted(&mut self);
}

/// Kind of result of a sequence. Each lane has a queue of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// A token after the last row.
    Answer,
    /// The hidden states of all rows.
    Embed,
}

/// A sequence that is to be computed.
#[derive(Debug)]
pub(crate) struct NewSequence<T> {
    /// Organisation of the client.
    pub(crate) organization: Arc<str>,
    /// Given tokens; at least one.
    pub(crate) prompt: Arc<[u32]>,
    /// Most new tokens; 0 for embeddings.
    pub(crate) max_tokens: usize,
    /// Adapter of the rows; `None` is the base.
    pub(crate) adapter: Option<AdapterLease>,
    /// Table that its positions are rotated by, chosen by the length that it may reach.
    pub(crate) rope: RopeTable,
    /// Time of arrival.
    pub(crate) submitted: Instant,
    /// Place in the queue, given back at admission; the inputs of one request share one.
    pub(crate) ticket: Arc<Ticket>,
    /// Whether nobody waits for the result: all others go first.
    pub(crate) background: bool,
    /// Receiver of the result.
    pub(crate) owner: T,
}

impl<T> NewSequence<T> {
    /// Replaces the owner by the result of `change`; `None` if that is `None`.
    pub(crate) fn with_owner<U>(self, change: impl FnOnce(T) -> Option<U>) -> Option<NewSequence<U>> {
        let Self { organization, prompt, max_tokens, adapter, rope, submitted, ticket, background, owner } = self;
        let owner = change(owner)?;
        Some(NewSequence { organization, prompt, max_tokens, adapter, rope, submitted, ticket, background, owner })
    }
}

/// A sequence that waits or runs.
#[derive(Debug)]
pub(crate) struct Sequence<T> {
    /// Receiver of the result.
    pub(crate) owner: T,
    pub(crate) place: Position,
    /// The prompt until it is copied to `tokens`: what waits shares it.
    prompt: Option<Arc<[u32]>>,
    /// The prompt, then the tokens drawn; empty before the first admission.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_tokens: usize,
    max_tokens: usize,
    /// Tokens whose keys and values are in the cache.
    pub(crate) cached: usize,
    pub(crate) table: BlockTable,
    pub(crate) adapter: Option<AdapterLease>,
    /// Table that all its positions are rotated by; part of its blocks' names.
    pub(crate) rope: RopeTable,
    pub(crate) submitted: Instant,
    /// Place in the queue; `None` once the sequence has run.
    pub(crate) ticket: Option<Arc<Ticket>>,
    /// Whether nobody waits for the result: all others go first.
    pub(crate) background: bool,
    /// Names of the blocks; `None` if the sequence takes no part in the prefix cache.
    chain: Option<PrefixChain>,
    /// Number of leading blocks whose content others can find.
    published: usize,
    /// Whether it had to give up its blocks: blocks that it finds in the cache may have been its own.
    restarted: bool,
    /// Number of cached tokens until which it is computed alone, since it was in a step that broke the cache.
    pub(crate) suspect_until: Option<usize>,
    /// Number of its first admission, counted upwards; 0 before it.
    pub(crate) admission: u64,
    /// Number of tokens at the last admission.
    slice_from: usize,
}

impl<T: Owner> Sequence<T> {
    /// Begins `new`, before its first row.
    pub(crate) fn new(new: NewSequence<T>, allocator: &BlockAllocator, prefix_cache: bool) -> Self {
        let adapter_id = new.adapter.as_ref().map(|adapter| adapter.id.as_str());
        // An input to embed takes no part in the prefix cache: all its rows are needed, and inputs rarely begin alike.
        let chain = (prefix_cache && new.owner.lane() == Lane::Answer)
            .then(|| PrefixChain::new(PrefixKey::root(&new.organization, adapter_id, new.rope)));
        let place = Position { organization: new.organization, adapter: adapter_id.unwrap_or_default().into() };
        Self {
            owner: new.owner,
            place,
            prompt_tokens: new.prompt.len(),
            prompt: Some(new.prompt),
            tokens: Vec::new(),
            max_tokens: new.max_tokens,
            cached: 0,
            table: allocator.empty_table(),
            adapter: new.adapter,
            rope: new.rope,
            submitted: new.submitted,
            ticket: Some(new.ticket),
            background: new.background,
            chain,
            published: 0,
            restarted: false,
            suspect_until: None,
            admission: 0,
            slice_from: 0,
        }
    }

    /// Returns the number of the queue that it waits in.
    pub(crate) fn queue(&self) -> usize {
        if self.background { BACKGROUND } else { self.owner.lane() as usize }
    }

    /// Appends a drawn token; the next step computes its row.
    pub(crate) fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// Returns how many tokens are not yet in the cache.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.cached
    }

    /// Returns `true` if the next row is that of the last drawn token.
    pub(crate) fn is_answering(&self) -> bool {
        self.tokens.len() > self.prompt_tokens && self.pending() == 1
    }

    /// Returns `true` if it may still need more blocks than it has.
    pub(crate) fn may_grow(&self) -> bool {
        // The last token drawn is never fed back, so it needs no slot in the cache.
        let most = self.prompt_tokens + self.max_tokens.saturating_sub(1);
        BlockAllocator::blocks_for(most) > self.table.blocks().len()
    }

    /// Returns how many blocks [`Self::reserve`] would take, without those to spare.
    pub(crate) fn wanted_blocks(&mut self, allocator: &BlockAllocator) -> usize {
        self.copy_prompt();
        let reusable = self.reusable_blocks();
        let keys = self.chain.as_mut().map_or(&[][..], |chain| chain.keys(&self.tokens, reusable));
        allocator.wanted(keys, self.tokens.len())
    }

    /// Returns `true` once it has drawn so much since its last admission that others may have its place.
    pub(crate) fn has_used_slice(&self) -> bool {
        self.tokens.len() - self.slice_from >= SLICE + self.slice_from / SLICE_PART
    }

    /// Takes blocks for all tokens so far, using cached ones where possible. Returns the number of tokens found that
    /// others computed; `None`, and takes nothing, if fewer than `spare` blocks would be left.
    pub(crate) fn reserve(&mut self, allocator: &BlockAllocator, spare: usize) -> Option<usize> {
        self.copy_prompt();
        let reusable = self.reusable_blocks();
        let keys = self.chain.as_mut().map_or(&[][..], |chain| chain.keys(&self.tokens, reusable));
        let (table, shared) = allocator.reserve(keys, self.tokens.len(), spare)?;
        self.table = table;
        self.published = shared;
        self.slice_from = self.tokens.len();
        Some(self.note_reused(shared))
    }

    /// Uses blocks of the same beginning that another sequence has computed since this one was admitted; returns their
    /// tokens.
    pub(crate) fn catch_up(&mut self) -> usize {
        let mut reused = 0;
        while let Some(key) = self.next_block() {
            let index = self.cached / BLOCK_TOKENS;
            if !self.cached.is_multiple_of(BLOCK_TOKENS) || !self.table.share(index, &key) {
                break;
            }
            self.published = index + 1;
            reused += self.note_reused(1);
        }
        reused
    }

    /// Returns the name of the next row's block; `None` if its content cannot come from another sequence.
    pub(crate) fn next_block(&mut self) -> Option<PrefixKey> {
        let index = self.cached / BLOCK_TOKENS;
        let reusable = self.reusable_blocks();
        let chain = self.chain.as_mut().filter(|_| index < reusable)?;
        chain.keys(&self.tokens, index + 1).last().copied()
    }

    /// Notes that `rows` more tokens are in the cache, and publishes blocks that became full.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.cached += rows;
        if self.suspect_until.is_some_and(|until| self.cached >= until) {
            self.suspect_until = None;
        }
        let Some(chain) = &mut self.chain else { return };
        let full = self.cached / BLOCK_TOKENS;
        for (index, key) in chain.keys(&self.tokens, full).iter().enumerate().skip(self.published) {
            self.table.publish(index, *key);
        }
        self.published = full.max(self.published);
    }

    /// Gives all blocks back; everything is computed again later.
    pub(crate) fn give_up_blocks(&mut self, allocator: &BlockAllocator) {
        self.table = allocator.empty_table();
        self.cached = 0;
        self.published = 0;
        self.restarted = true;
        self.owner.restarted();
    }

    fn copy_prompt(&mut self) {
        if let Some(prompt) = self.prompt.take() {
            self.tokens = prompt.to_vec();
        }
    }

    /// Returns how many full blocks may come from the cache: the last token is always computed, since its row is read.
    fn reusable_blocks(&self) -> usize {
        if self.owner.needs_all_rows() { 0 } else { (self.tokens.len() - 1) / BLOCK_TOKENS }
    }

    /// Notes that the cache holds `blocks` more. Returns their tokens; 0 if the sequence may have computed them itself.
    fn note_reused(&mut self, blocks: usize) -> usize {
        let tokens = blocks * BLOCK_TOKENS;
        self.cached += tokens;
        if self.restarted {
            return 0;
        }
        self.owner.reused(tokens);
        tokens
    }
}
