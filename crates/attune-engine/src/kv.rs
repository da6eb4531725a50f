//! Keeps account of which sequence uses which cache block. The scheduler takes a [`BlockTable`] for each sequence that
//! runs; dropping the table gives the blocks back, on every path that a sequence can end by.
//!
//! A block is free, or used by one or more tables, or kept: no table uses it, but its content may serve the next
//! request (`prefix_cache.rs`). Once no block is free, kept blocks are reused, the longest unused first. Only full
//! blocks are shared, and nobody writes into a full block, so no table ever sees another's tokens.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::prefix_cache::{PrefixCache, PrefixKey};
use attune_model::kv_cache::BLOCK_TOKENS;

/// The blocks of one cache. Cheap to clone; clones share the blocks.
#[derive(Debug, Clone)]
pub struct BlockAllocator {
    pool: Arc<Mutex<Pool>>,
    total: usize,
}

#[derive(Debug)]
struct Pool {
    free: Vec<u32>,
    /// Whether each block has had users since its memory was given back.
    worn: Vec<bool>,
    /// Number of tables that use each block.
    users: Vec<u32>,
    prefixes: PrefixCache,
}

/// The blocks of one sequence, in the order of its tokens.
#[derive(Debug)]
pub struct BlockTable {
    blocks: Vec<u32>,
    allocator: BlockAllocator,
}

impl BlockAllocator {
    /// Creates an allocator of `total` free blocks.
    pub fn new(total: usize) -> Self {
        // Taken from the end: low numbers first, which keeps a small load in one part of the cache.
        let free = (0..total as u32).rev().collect();
        let pool = Pool { free, worn: vec![false; total], users: vec![0; total], prefixes: PrefixCache::default() };
        Self { pool: Arc::new(Mutex::new(pool)), total }
    }

    /// Returns the number of blocks for `tokens` tokens.
    pub fn blocks_for(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS)
    }

    /// Returns a table without blocks.
    pub fn empty_table(&self) -> BlockTable {
        BlockTable { blocks: Vec::new(), allocator: self.clone() }
    }

    /// Returns a table for `tokens` tokens, and the number of blocks at its beginning that are shared because they hold
    /// `prefix` already. `None` if fewer than `spare` blocks would be left.
    pub(crate) fn reserve(&self, prefix: &[PrefixKey], tokens: usize, spare: usize) -> Option<(BlockTable, usize)> {
        let mut pool = self.lock();
        let mut blocks: Vec<u32> = prefix.iter().map_while(|key| pool.prefixes.find(key)).collect();
        let shared = blocks.len();
        let missing = Self::blocks_for(tokens).saturating_sub(shared);
        let kept = blocks.iter().filter(|block| pool.prefixes.is_idle(**block)).count();
        if pool.available() - kept < missing + spare {
            return None;
        }
        for block in &blocks {
            pool.join(*block);
        }
        for _ in 0..missing {
            blocks.push(pool.take()?);
        }
        drop(pool);
        Some((BlockTable { blocks, allocator: self.clone() }, shared))
    }

    /// Returns how many blocks a table for `tokens` tokens that begins with `prefix` takes of those that can be taken.
    pub(crate) fn wanted(&self, prefix: &[PrefixKey], tokens: usize) -> usize {
        let pool = self.lock();
        let shared = prefix.iter().map_while(|key| pool.prefixes.find(key));
        let in_use = shared.filter(|block| !pool.prefixes.is_idle(*block)).count();
        Self::blocks_for(tokens).saturating_sub(in_use)
    }

    /// Returns how many blocks could be taken once `tables` have given theirs back.
    pub(crate) fn available_without<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) -> usize {
        let mut leaving: HashMap<u32, u32> = HashMap::new();
        for block in tables.flat_map(BlockTable::blocks) {
            *leaving.entry(*block).or_default() += 1;
        }
        let pool = self.lock();
        let freed = leaving.iter().filter(|(block, users)| pool.users[**block as usize] == **users).count();
        pool.available() + freed
    }

    /// Forgets the content of all blocks: the cache is lost.
    pub fn forget(&self) {
        let mut pool = self.lock();
        let idle = pool.prefixes.clear();
        pool.free.extend(idle.into_iter().rev());
    }

    /// Returns the blocks without content that were used since the last call, in rising order: they hold memory for nothing.
    /// Nobody may take blocks before that is given back.
    pub(crate) fn take_worn(&self) -> Vec<u32> {
        let mut pool = self.lock();
        let Pool { free, worn, .. } = &mut *pool;
        let mut blocks: Vec<u32> = free.iter().copied().filter(|block| worn[*block as usize]).collect();
        blocks.sort_unstable();
        for block in &blocks {
            worn[*block as usize] = false;
        }
        blocks
    }

    /// Returns the number of blocks without content.
    pub fn free(&self) -> usize {
        self.lock().free.len()
    }

    /// Returns the number of unused blocks whose content is kept for the next request that begins with it.
    pub fn kept(&self) -> usize {
        self.lock().prefixes.idle()
    }

    /// Returns the number of blocks in tables.
    pub fn used(&self) -> usize {
        self.total - self.lock().available()
    }

    /// Returns the number of all blocks.
    pub fn total(&self) -> usize {
        self.total
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock()
    }
}

impl Pool {
    /// Returns the number of blocks that can be taken.
    fn available(&self) -> usize {
        self.free.len() + self.prefixes.idle()
    }

    /// Takes a block without content for its first user.
    fn take(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| self.prefixes.evict())?;
        (self.users[block as usize], self.worn[block as usize]) = (1, true);
        Some(block)
    }

    /// Adds a user to a block with content.
    fn join(&mut self, block: u32) {
        self.prefixes.wake(block);
        self.users[block as usize] += 1;
    }

    /// Removes a user of a block.
    fn leave(&mut self, block: u32) {
        let users = &mut self.users[block as usize];
        *users -= 1;
        if *users == 0 && !self.prefixes.rest(block) {
            self.free.push(block);
        }
    }
}

impl BlockTable {
    /// Returns the blocks, for the decoder.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Takes blocks until `tokens` tokens fit; returns `false` if no block is left.
    pub fn grow(&mut self, tokens: usize) -> bool {
        let wanted = BlockAllocator::blocks_for(tokens);
        if self.blocks.len() >= wanted {
            return true;
        }
        let mut pool = self.allocator.lock();
        if pool.available() < wanted - self.blocks.len() {
            return false;
        }
        while self.blocks.len() < wanted {
            let Some(block) = pool.take() else { return false };
            self.blocks.push(block);
        }
        true
    }

    /// Replaces the table's own block at `index` by the block that holds `key`; returns `false` if there is none.
    pub(crate) fn share(&mut self, index: usize, key: &PrefixKey) -> bool {
        let mut pool = self.allocator.lock();
        let Some(shared) = pool.prefixes.find(key) else { return false };
        if shared != self.blocks[index] {
            pool.join(shared);
            pool.leave(std::mem::replace(&mut self.blocks[index], shared));
        }
        true
    }

    /// Lets sequences that begin with the same tokens use the block at `index`, which is full. If another block has the
    /// same content already, the table uses that one from now on.
    pub(crate) fn publish(&mut self, index: usize, key: PrefixKey) {
        if !self.share(index, &key) {
            self.allocator.lock().prefixes.insert(key, self.blocks[index]);
        }
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        let mut pool = self.allocator.lock();
        // From the end, so that a prefix outlives the blocks that build on it.
        for block in self.blocks.drain(..).rev() {
            pool.leave(block);
        }
    }
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;
