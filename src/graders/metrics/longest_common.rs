//! Length of the longest common subsequence of two rows, with a bit for each symbol of one of them (Hyyrö, "Bit-parallel
//! LCS-length computation revisited", 2004). Words of bits in which a symbol does not occur are skipped, so that rows of
//! many different symbols take little memory.

use std::collections::HashMap;
use std::hash::Hash;

/// A row that others are compared with.
pub(super) struct Pattern<T> {
    /// For each symbol, the words of bits that have it, in order, with its bits.
    masks: HashMap<T, Vec<(usize, u64)>>,
    words: usize,
}

/// A comparison that goes on symbol by symbol.
pub(super) struct Comparison<'a, T> {
    pattern: &'a Pattern<T>,
    /// A zero for each symbol of the pattern at which the common subsequence grows by one.
    row: Vec<u64>,
}

impl<T: Copy + Eq + Hash> Pattern<T> {
    pub(super) fn new(symbols: impl ExactSizeIterator<Item = T>) -> Self {
        let words = symbols.len().div_ceil(64);
        let mut masks: HashMap<T, Vec<(usize, u64)>> = HashMap::new();
        for (index, symbol) in symbols.enumerate() {
            let (word, bit) = (index / 64, 1 << (index % 64));
            let of_symbol = masks.entry(symbol).or_default();
            match of_symbol.last_mut() {
                Some((last, mask)) if *last == word => *mask |= bit,
                _ => of_symbol.push((word, bit)),
            }
        }
        Self { masks, words }
    }

    pub(super) fn begin(&self) -> Comparison<'_, T> {
        Comparison { pattern: self, row: vec![u64::MAX; self.words] }
    }

    /// Returns the length of the longest common subsequence with `symbols`.
    pub(super) fn length(&self, symbols: &[T]) -> usize {
        let mut comparison = self.begin();
        for symbol in symbols {
            comparison.push(*symbol);
        }
        comparison.length()
    }
}

impl<T: Copy + Eq + Hash> Comparison<'_, T> {
    /// Adds a symbol to the other row: `row = (row + matches) | (row & !matches)`, over all words as one number.
    pub(super) fn push(&mut self, symbol: T) {
        let Some(masks) = self.pattern.masks.get(&symbol) else { return };
        let (mut carry, mut at) = (false, 0);
        for &(word, mask) in masks {
            carry = carry && self.carry_on(at, word);
            let before = self.row[word];
            let matches = before & mask;
            let (sum, first) = before.overflowing_add(matches);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            self.row[word] = sum | (before & !matches);
            (carry, at) = (first || second, word + 1);
        }
        if carry {
            self.carry_on(at, self.pattern.words);
        }
    }

    /// Adds a carry to the words from `at` until `end`, which have no matches; returns true if it leaves the last one.
    fn carry_on(&mut self, at: usize, end: usize) -> bool {
        for word in &mut self.row[at..end] {
            let (sum, carry) = word.overflowing_add(1);
            *word |= sum;
            if !carry {
                return false;
            }
        }
        true
    }

    /// Returns the length of the longest common subsequence so far.
    pub(super) fn length(&self) -> usize {
        self.row.iter().map(|word| word.count_zeros() as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The table of the textbook.
    fn expected(one: &[u32], other: &[u32]) -> usize {
        let mut last = vec![0; other.len() + 1];
        for symbol in one {
            let mut row = vec![0];
            for (index, candidate) in other.iter().enumerate() {
                row.push(if symbol == candidate { last[index] + 1 } else { row[index].max(last[index + 1]) });
            }
            last = row;
        }
        last[other.len()]
    }

    #[test]
    fn the_length_is_that_of_the_table() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for round in 0..600 {
            let symbols = [1, 2, 4, 40, 1000][round % 5];
            let mut row = |most: usize| -> Vec<u32> {
                let length = random.random_range(0..=most);
                (0..length).map(|_| random.random_range(0..symbols)).collect()
            };
            let (one, other) = (row(300), row(200));
            assert_eq!(Pattern::new(one.iter().copied()).length(&other), expected(&one, &other), "{one:?} {other:?}");
        }
    }
}
