//! Which cache block belongs to whom. The scheduler takes a [`BlockTable`] for each sequence it admits; dropping the table
//! gives the blocks back, on every path that a sequence can end by.

use std::sync::{Arc, Mutex, PoisonError};

use crate::model::kv_cache::BLOCK_TOKENS;

/// The free blocks of one cache. Cheap to clone; clones share the blocks.
#[derive(Debug, Clone)]
pub struct BlockAllocator {
    free: Arc<Mutex<Vec<u32>>>,
    total: usize,
}

/// The blocks of one sequence, in the order of its tokens.
#[derive(Debug)]
pub struct BlockTable {
    blocks: Vec<u32>,
    allocator: BlockAllocator,
}

impl BlockAllocator {
    /// All `total` blocks are free.
    pub fn new(total: usize) -> Self {
        // Taken from the end: low numbers first, which keeps a small load in one part of the cache.
        let free = (0..total as u32).rev().collect();
        Self { free: Arc::new(Mutex::new(free)), total }
    }

    /// Blocks that `tokens` take.
    pub fn blocks_for(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS)
    }

    /// A table for `tokens` tokens, or nothing where too few blocks are free.
    pub fn reserve(&self, tokens: usize) -> Option<BlockTable> {
        let wanted = Self::blocks_for(tokens);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let left = free.len().checked_sub(wanted)?;
        let mut blocks = free.split_off(left);
        blocks.reverse();
        Some(BlockTable { blocks, allocator: self.clone() })
    }

    /// Blocks that nobody has.
    pub fn free(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Blocks in tables.
    pub fn used(&self) -> usize {
        self.total - self.free()
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.total
    }
}

impl BlockTable {
    /// The blocks, for the decoder.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        let mut free = self.allocator.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(self.blocks.drain(..).rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_free_or_in_one_table() {
        let allocator = BlockAllocator::new(8);
        let first = allocator.reserve(3 * BLOCK_TOKENS).unwrap();
        let second = allocator.reserve(1).unwrap();
        assert_eq!((first.blocks(), second.blocks()), (&[0, 1, 2][..], &[3][..]));
        assert!(allocator.reserve(4 * BLOCK_TOKENS + 1).is_none(), "five blocks of four");
        assert_eq!((allocator.free(), allocator.used(), allocator.total()), (4, 4, 8));
        drop(first);
        let third = allocator.reserve(7 * BLOCK_TOKENS).unwrap();
        let mut blocks = [third.blocks(), second.blocks()].concat();
        blocks.sort_unstable();
        assert_eq!(blocks, (0..8).collect::<Vec<_>>());
        drop((second, third));
        assert_eq!(allocator.free(), 8);
    }
}
