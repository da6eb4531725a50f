//! One sequence on its way through the scheduler: its tokens, how many of them are in the cache, and its blocks there. It
//! keeps everything but its blocks when it has to give them up for an older one.

use std::sync::Arc;
use std::time::Instant;

use super::admission::Ticket;
use super::kv::{BlockAllocator, BlockTable};
use super::prefix_cache::{PrefixChain, PrefixKey};
use super::queue::Position;
use attune_model::kv_cache::BLOCK_TOKENS;
use attune_model::lora::AdapterLease;

/// What a sequence is computed for: the engine's reply channel and sampling state, opaque to the scheduler.
pub trait Owner {
    /// Returns which queue its sequence waits in, and what is wanted of the rows.
    fn lane(&self) -> Lane;

    /// Returns `true` once nobody waits for the result any more.
    fn is_gone(&self) -> bool;

    /// True where the owner needs to see every row, so that none may be taken from the cache.
    fn needs_all_rows(&self) -> bool;

    /// This many more tokens of the prompt were found in the cache.
    fn reused(&mut self, tokens: usize);

    /// The sequence is computed once more from its first row: what was gathered from its rows so far comes again.
    fn restarted(&mut self);
}

/// What is wanted of a sequence's rows. Each lane has a queue of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A token after the last row.
    Answer,
    /// The hidden states of all rows.
    Embed,
}

/// A sequence that asks to be computed.
#[derive(Debug)]
pub struct NewSequence<T> {
    /// Who asks.
    pub organization: Arc<str>,
    /// The tokens given; at least one.
    pub prompt: Arc<[u32]>,
    /// New tokens at the most; 0 for embeddings.
    pub max_tokens: usize,
    /// The adapter of its rows.
    pub adapter: Option<AdapterLease>,
    /// When it came.
    pub submitted: Instant,
    /// Its place in the queue, given back at admission; the inputs of one request share one.
    pub ticket: Arc<Ticket>,
    /// Who gets the result.
    pub owner: T,
}

impl<T> NewSequence<T> {
    /// Replaces the owner by what `change` makes of it; `None` if that is `None`.
    pub(super) fn with_owner<U>(self, change: impl FnOnce(T) -> Option<U>) -> Option<NewSequence<U>> {
        let Self { organization, prompt, max_tokens, adapter, submitted, ticket, owner } = self;
        let owner = change(owner)?;
        Some(NewSequence { organization, prompt, max_tokens, adapter, submitted, ticket, owner })
    }
}

/// A sequence that waits or runs.
#[derive(Debug)]
pub struct Sequence<T> {
    /// Who gets the result.
    pub owner: T,
    pub(super) place: Position,
    /// The prompt, then the tokens drawn.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_tokens: usize,
    max_tokens: usize,
    /// Tokens whose keys and values are in the cache.
    pub(super) cached: usize,
    pub(super) table: BlockTable,
    pub(super) adapter: Option<AdapterLease>,
    pub(super) submitted: Instant,
    /// Present until it first runs.
    pub(super) ticket: Option<Arc<Ticket>>,
    /// The names of its blocks, where it takes part in the prefix cache.
    chain: Option<PrefixChain>,
    /// Leading blocks whose content others can find.
    published: usize,
    /// It had to give up its blocks: what it finds in the cache may be its own.
    restarted: bool,
    /// It was in a step that broke the cache: it is computed alone until this many tokens are in the cache.
    pub(super) suspect_until: Option<usize>,
}

impl<T: Owner> Sequence<T> {
    /// `new` before its first row.
    pub(super) fn new(new: NewSequence<T>, allocator: &BlockAllocator, prefix_cache: bool) -> Self {
        let adapter_id = new.adapter.as_ref().map(|adapter| adapter.id.as_str());
        // An input to embed neither finds nor leaves anything: all its rows are computed, and each text is its own.
        let chain = (prefix_cache && new.owner.lane() == Lane::Answer)
            .then(|| PrefixChain::new(PrefixKey::root(&new.organization, adapter_id)));
        let place = Position { organization: new.organization, adapter: adapter_id.unwrap_or_default().into() };
        Self {
            owner: new.owner,
            place,
            prompt_tokens: new.prompt.len(),
            tokens: new.prompt.to_vec(),
            max_tokens: new.max_tokens,
            cached: 0,
            table: allocator.empty_table(),
            adapter: new.adapter,
            submitted: new.submitted,
            ticket: Some(new.ticket),
            chain,
            published: 0,
            restarted: false,
            suspect_until: None,
        }
    }

    /// Appends a drawn token; the next step computes its row.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// Tokens that are not yet in the cache.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.cached
    }

    /// True where the next row is that of the token drawn last.
    pub(super) fn is_answering(&self) -> bool {
        self.tokens.len() > self.prompt_tokens && self.pending() == 1
    }

    /// True where it may yet need a block more than it has.
    pub(super) fn may_grow(&self) -> bool {
        // The last token drawn is never fed back, so it needs no place.
        let most = self.prompt_tokens + self.max_tokens.saturating_sub(1);
        BlockAllocator::blocks_for(most) > self.table.blocks().len()
    }

    /// Takes blocks for all tokens so far, and uses what the cache holds of them; nothing where fewer than `spare` would be
    /// left. Returns the tokens of others that it found.
    pub(super) fn reserve(&mut self, allocator: &BlockAllocator, spare: usize) -> Option<usize> {
        let reusable = self.reusable_blocks();
        let keys = self.chain.as_mut().map_or(&[][..], |chain| chain.keys(&self.tokens, reusable));
        let (table, shared) = allocator.reserve(keys, self.tokens.len(), spare)?;
        self.table = table;
        self.published = shared;
        Some(self.note_reused(shared))
    }

    /// Uses what another sequence has computed of the same beginning since this one was admitted; returns its tokens.
    pub(super) fn catch_up(&mut self) -> usize {
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

    /// The name of the block that the next row lies in, where its content may come from another sequence.
    pub(super) fn next_block(&mut self) -> Option<PrefixKey> {
        let index = self.cached / BLOCK_TOKENS;
        let reusable = self.reusable_blocks();
        let chain = self.chain.as_mut().filter(|_| index < reusable)?;
        chain.keys(&self.tokens, index + 1).last().copied()
    }

    /// `rows` more tokens are in the cache.
    pub(super) fn advance(&mut self, rows: usize) {
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
    pub(super) fn give_up_blocks(&mut self, allocator: &BlockAllocator) {
        self.table = allocator.empty_table();
        self.cached = 0;
        self.published = 0;
        self.restarted = true;
        self.owner.restarted();
    }

    /// Full blocks that may come from the cache: the last token is always computed, since its row is what is wanted.
    fn reusable_blocks(&self) -> usize {
        if self.owner.needs_all_rows() { 0 } else { (self.tokens.len() - 1) / BLOCK_TOKENS }
    }

    /// `blocks` more are in the cache already. Returns their tokens, where others have computed them.
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
