//! Index of the full cache blocks by the tokens whose keys and values they hold, so that a request need not compute the
//! beginning of a prompt that an earlier one computed. Used by `kv.rs`, which counts the users of each block.
//!
//! A block is named by a chained hash: of the organisation, the weights (the base or one adapter generation) and the
//! table that positions are rotated by, then of its own 16 tokens and all before them. So a request never finds a
//! prefix of another organisation, a model name that was given new weights never finds blocks of the old ones, and keys
//! that were rotated by the table of short sequences never meet queries of a long one.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest as _, Sha256};

use attune_model::kv_cache::BLOCK_TOKENS;
use attune_model::rope::RopeTable;

/// First byte of the hash of a chain's root, different from that of each block after it: no input of one can be an
/// input of the other.
const ROOT: [u8; 1] = [0];
const BLOCK: [u8; 1] = [1];

/// Name of a block's content: SHA-256, so that equal names mean equal content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PrefixKey([u8; 32]);

impl PrefixKey {
    /// Returns the root of all chains of an organisation on the base (`None`) or on an adapter generation, of sequences
    /// whose positions are rotated by the table `rope`.
    pub(crate) fn root(organization: &str, adapter: Option<&str>, rope: RopeTable) -> Self {
        let mut hash = Sha256::new_with_prefix(ROOT);
        hash.update((organization.len() as u64).to_le_bytes());
        hash.update(organization);
        hash.update([u8::from(adapter.is_some()), u8::from(rope == RopeTable::Long)]);
        hash.update(adapter.unwrap_or_default());
        Self(hash.finalize().into())
    }

    /// Returns the name of the block that holds `tokens` and follows the block named by `self`.
    #[must_use]
    pub(crate) fn next(&self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new_with_prefix(BLOCK);
        hash.update(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// Names of a sequence's full blocks, computed only as far as needed.
#[derive(Debug)]
pub(crate) struct PrefixChain {
    root: PrefixKey,
    keys: Vec<PrefixKey>,
}

impl PrefixChain {
    /// Creates a chain before its first block.
    pub(crate) fn new(root: PrefixKey) -> Self {
        Self { root, keys: Vec::new() }
    }

    /// Returns the names of the first `blocks` blocks of `tokens`, all full.
    pub(crate) fn keys(&mut self, tokens: &[u32], blocks: usize) -> &[PrefixKey] {
        for block in tokens[..blocks * BLOCK_TOKENS].chunks_exact(BLOCK_TOKENS).skip(self.keys.len()) {
            let key = self.keys.last().unwrap_or(&self.root).next(block);
            self.keys.push(key);
        }
        &self.keys[..blocks]
    }
}

/// Blocks with known content, and which of them are unused.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    blocks: HashMap<PrefixKey, u32>,
    /// Reverse of `blocks`.
    keys: HashMap<u32, PrefixKey>,
    /// Unused blocks by the time of their last use.
    idle: BTreeMap<u64, u32>,
    /// Reverse of `idle`.
    since: HashMap<u32, u64>,
    clock: u64,
}

impl PrefixCache {
    /// Returns the block with this content; `None` if there is none.
    pub(crate) fn find(&self, key: &PrefixKey) -> Option<u32> {
        self.blocks.get(key).copied()
    }

    /// Records the content of a block in use.
    pub(crate) fn insert(&mut self, key: PrefixKey, block: u32) {
        self.blocks.insert(key, block);
        self.keys.insert(block, key);
    }

    /// Notes that a block's last user has gone. Returns `false` if its content is not known: then the block is simply
    /// free.
    ///
    /// Give back the blocks of a sequence from the last to the first. All users of a block also use the blocks before
    /// it, so each block is then older than the blocks that it builds on, and these outlive it.
    pub(crate) fn rest(&mut self, block: u32) -> bool {
        if !self.keys.contains_key(&block) {
            return false;
        }
        self.clock += 1;
        self.idle.insert(self.clock, block);
        self.since.insert(block, self.clock);
        true
    }

    /// Notes that a block is in use again.
    pub(crate) fn wake(&mut self, block: u32) {
        if let Some(since) = self.since.remove(&block) {
            self.idle.remove(&since);
        }
    }

    /// Returns `true` if the block is unused and its content is kept.
    pub(crate) fn is_idle(&self, block: u32) -> bool {
        self.since.contains_key(&block)
    }

    /// Returns the number of unused blocks whose content is kept.
    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Forgets the unused block with the oldest last use and returns it; `None` if there is none.
    pub(crate) fn evict(&mut self) -> Option<u32> {
        let (_, block) = self.idle.pop_first()?;
        self.since.remove(&block);
        if let Some(key) = self.keys.remove(&block) {
            self.blocks.remove(&key);
        }
        Some(block)
    }

    /// Forgets everything; returns the unused blocks.
    pub(crate) fn clear(&mut self) -> Vec<u32> {
        let idle = std::mem::take(&mut self.idle).into_values().collect();
        *self = Self { clock: self.clock, ..Self::default() };
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: RopeTable = RopeTable::Short;

    #[test]
    fn names_tell_apart_organizations_weights_rotations_places_and_contents() {
        let tokens: Vec<u32> = (0..48).collect();
        let mut seen = std::collections::HashSet::new();
        let adapters = [None, Some(""), Some("a"), Some("ab")];
        for organization in ["", "a", "ab", "b"] {
            for (adapter, rope) in
                adapters.into_iter().flat_map(|adapter| [(adapter, SHORT), (adapter, RopeTable::Long)])
            {
                let mut chain = PrefixChain::new(PrefixKey::root(organization, adapter, rope));
                for key in chain.keys(&tokens, 3) {
                    assert!(seen.insert(*key), "{organization:?} {adapter:?} {rope:?}");
                }
            }
        }
        // The same 16 tokens at another position are another block.
        let mut repeated = PrefixChain::new(PrefixKey::root("a", None, SHORT));
        let keys = repeated.keys(&[7; 48], 3).to_vec();
        assert!(keys[0] != keys[1] && keys[1] != keys[2]);
        // Equal beginnings have equal names, also if the names are computed piece by piece.
        let mut longer = PrefixChain::new(PrefixKey::root("a", None, SHORT));
        longer.keys(&[7; 16], 1);
        assert_eq!(longer.keys(&[[7; 32], [8; 32]].concat(), 3)[..2], keys[..2]);
        assert_ne!(longer.keys(&[[7; 32], [8; 32]].concat(), 3)[2], keys[2]);
    }
}
