//! Tests that blocks balance under sharing, and that kept blocks are found again and evicted in the right order.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::prefix_cache::PrefixChain;
use attune_model::rope::RopeTable;

fn keys(tokens: &[u32]) -> Vec<PrefixKey> {
    let blocks = tokens.len() / BLOCK_TOKENS;
    PrefixChain::new(PrefixKey::root("org", None, RopeTable::Short)).keys(tokens, blocks).to_vec()
}

/// Computes `tokens` in a table of their own and publishes all full blocks.
fn computed(allocator: &BlockAllocator, tokens: &[u32]) -> BlockTable {
    let (mut table, shared) = allocator.reserve(&keys(tokens), tokens.len(), 0).unwrap();
    for (index, key) in keys(tokens).into_iter().enumerate().skip(shared) {
        table.publish(index, key);
    }
    table
}

#[test]
fn free_blocks_that_were_used_are_told_once() {
    let allocator = BlockAllocator::new(8);
    assert_eq!(allocator.take_worn(), [0; 0]);
    let tokens: Vec<u32> = (0..=2 * BLOCK_TOKENS as u32).collect();
    let kept = computed(&allocator, &tokens);
    let (other, _) = allocator.reserve(&[], 2 * BLOCK_TOKENS, 0).unwrap();
    assert_eq!(allocator.take_worn(), [0; 0], "all are in tables");
    drop(other);
    assert_eq!(allocator.take_worn(), [3, 4]);
    drop(kept);
    assert_eq!(allocator.take_worn(), [2], "the first two hold a prefix");
    let (again, _) = allocator.reserve(&[], BLOCK_TOKENS, 0).unwrap();
    let block = again.blocks().to_vec();
    drop(again);
    assert_eq!(allocator.take_worn(), block);
    allocator.forget();
    assert_eq!(allocator.take_worn(), [0, 1]);
}

#[test]
fn every_block_is_free_or_in_one_table() {
    let allocator = BlockAllocator::new(8);
    let (first, _) = allocator.reserve(&[], 3 * BLOCK_TOKENS, 0).unwrap();
    let (second, _) = allocator.reserve(&[], 1, 4).unwrap();
    assert_eq!((first.blocks(), second.blocks()), (&[0, 1, 2][..], &[3][..]));
    assert!(allocator.reserve(&[], 4 * BLOCK_TOKENS + 1, 0).is_none(), "five blocks of four");
    assert!(allocator.reserve(&[], 1, 4).is_none(), "none of the four is to spare");
    assert_eq!((allocator.free(), allocator.used(), allocator.total()), (4, 4, 8));
    drop(first);
    let mut third = allocator.empty_table();
    assert!(third.grow(1) && third.grow(7 * BLOCK_TOKENS) && !third.grow(7 * BLOCK_TOKENS + 1));
    let mut blocks = [third.blocks(), second.blocks()].concat();
    blocks.sort_unstable();
    assert_eq!(blocks, (0..8).collect::<Vec<_>>());
    drop((second, third));
    assert_eq!(allocator.free(), 8);
}

#[test]
fn what_was_computed_is_found_again_while_in_use_and_after() {
    let allocator = BlockAllocator::new(8);
    let tokens: Vec<u32> = (0..40).collect();
    let first = computed(&allocator, &tokens);
    let (second, shared) = allocator.reserve(&keys(&tokens), 48, 0).unwrap();
    assert_eq!((shared, &second.blocks()[..2]), (2, &first.blocks()[..2]));
    assert_eq!(allocator.used(), 4, "two blocks are shared, each has one of its own");
    drop((first, second));
    assert_eq!((allocator.used(), allocator.kept(), allocator.free()), (0, 2, 6));
    let (_third, shared) = allocator.reserve(&keys(&tokens[..16]), 20, 0).unwrap();
    assert_eq!((shared, allocator.kept()), (1, 1));
    allocator.forget();
    assert_eq!((allocator.kept(), allocator.used()), (0, 2), "what is in use stays with its user");
    assert!(allocator.reserve(&keys(&tokens), 40, 0).unwrap().1 == 0, "lost content is not found");
}

#[test]
fn the_longest_unused_goes_first_and_what_builds_on_a_block_before_it() {
    let allocator = BlockAllocator::new(6);
    let (old, new) = ((0..48).collect::<Vec<u32>>(), (100..148).collect::<Vec<u32>>());
    drop(computed(&allocator, &old));
    drop(computed(&allocator, &new));
    let known = |tokens: &[u32]| keys(tokens).iter().map_while(|key| allocator.lock().prefixes.find(key)).count();
    let mut taker = allocator.empty_table();
    for (taken, expected) in [(1, (2, 3)), (2, (1, 3)), (3, (0, 3)), (4, (0, 2)), (5, (0, 1))] {
        assert!(taker.grow(taken * BLOCK_TOKENS));
        assert_eq!((known(&old), known(&new)), expected);
    }
    assert!(taker.grow(6 * BLOCK_TOKENS) && !taker.grow(7 * BLOCK_TOKENS));
}

#[test]
fn a_block_in_use_is_never_taken_for_another() {
    let allocator = BlockAllocator::new(4);
    let tokens: Vec<u32> = (0..32).collect();
    let first = computed(&allocator, &tokens);
    let (second, shared) = allocator.reserve(&keys(&tokens), 32, 0).unwrap();
    assert_eq!(shared, 2);
    drop(first);
    assert_eq!((allocator.used(), allocator.kept()), (2, 0), "the second still uses both");
    let mut third = allocator.empty_table();
    assert!(third.grow(32) && !third.grow(33));
    assert!(second.blocks().iter().all(|block| !third.blocks().contains(block)));
}

#[test]
fn of_two_that_computed_the_same_one_copy_stays() {
    let allocator = BlockAllocator::new(8);
    let tokens: Vec<u32> = (0..32).collect();
    let (mut first, _) = allocator.reserve(&[], 32, 0).unwrap();
    let (mut second, _) = allocator.reserve(&[], 32, 0).unwrap();
    for (index, key) in keys(&tokens).into_iter().enumerate() {
        first.publish(index, key);
        second.publish(index, key);
    }
    assert_eq!(first.blocks(), second.blocks());
    assert_eq!((allocator.used(), allocator.free()), (2, 6));
    drop((first, second));
    assert_eq!((allocator.kept(), allocator.free()), (2, 6));
}

#[test]
fn under_random_use_blocks_balance_and_content_is_never_mistaken() {
    const BLOCKS: usize = 16;
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let allocator = BlockAllocator::new(BLOCKS);
    // Last tokens written into each block.
    let mut content: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut tables: Vec<(BlockTable, Vec<u32>)> = Vec::new();
    let mut hits = 0;
    for _ in 0..20_000 {
        if random.random_bool(0.5) {
            // Few different beginnings, so that many are shared.
            let length = random.random_range(1..=5 * BLOCK_TOKENS);
            let mut tokens = vec![0; length];
            for start in (0..length).step_by(BLOCK_TOKENS) {
                let end = (start + BLOCK_TOKENS).min(length);
                tokens[start..end].fill(random.random_range(0..2));
            }
            let found = allocator.reserve(&keys(&tokens), tokens.len(), random.random_range(0..3));
            if let Some((mut table, shared)) = found {
                hits += shared;
                for (index, chunk) in tokens.chunks(BLOCK_TOKENS).enumerate() {
                    if index < shared {
                        assert_eq!(content[&table.blocks()[index]], chunk);
                    } else {
                        content.insert(table.blocks()[index], chunk.to_vec());
                    }
                }
                for (index, key) in keys(&tokens).into_iter().enumerate().skip(shared) {
                    table.publish(index, key);
                }
                tables.push((table, tokens));
            }
        } else if !tables.is_empty() {
            tables.swap_remove(random.random_range(0..tables.len()));
        }
        for (table, tokens) in &tables {
            for (block, chunk) in table.blocks().iter().zip(tokens.chunks(BLOCK_TOKENS)) {
                assert_eq!(content[block], chunk, "a block in use was overwritten");
            }
        }
        assert_eq!(allocator.used() + allocator.kept() + allocator.free(), BLOCKS);
    }
    assert!(hits > 1000);
    tables.clear();
    assert_eq!(allocator.used(), 0);
    let mut all = allocator.empty_table();
    assert!(all.grow(BLOCKS * BLOCK_TOKENS), "everything that is kept can be taken");
}
