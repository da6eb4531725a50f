//! Tokens of words that were met before: texts repeat their words, and finding one takes a fraction of the time of merging
//! it again. Used by `byte_pairs.rs`, once for each model; all threads share it.
//!
//! Its memory is fixed, [`BYTES`]: a word has one slot where it may stand, and takes it from the word that
//! stands there. So texts that never repeat a word, or whose words share slots, only find nothing.

use std::fmt;

use parking_lot::Mutex;

/// Memory of a cache.
const BYTES: usize = 512 << 10;
/// Number of words that it holds at most.
const SLOTS: usize = BYTES / size_of::<Mutex<Entry>>();
/// Bytes of the longest word that it takes.
const MOST_BYTES: usize = 23;
/// Tokens that a word may have.
const MOST_TOKENS: usize = 7;

/// A cache of words. A slot that another thread is just reading or writing counts as empty.
pub(super) struct WordCache {
    slots: Box<[Mutex<Entry>]>,
}

/// A word that is short enough: its bytes, zeros, and in the last place its length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Key([u8; MOST_BYTES + 1]);

/// The tokens of a word, each with the bytes that it stands for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WordTokens {
    ids: [u32; MOST_TOKENS],
    bytes: [u8; MOST_TOKENS],
    count: u8,
}

/// What a slot holds. The empty word, which has no tokens, stands for nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    key: Key,
    tokens: WordTokens,
}

impl WordCache {
    /// Makes a cache without words.
    pub(super) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Mutex::default()).collect() }
    }

    /// Returns the tokens of a word; `None` if the cache does not have it.
    pub(super) fn get(&self, key: Key) -> Option<WordTokens> {
        let entry = self.slot(key).try_lock()?;
        (entry.key == key).then_some(entry.tokens)
    }

    /// Puts a word into its slot.
    pub(super) fn put(&self, key: Key, tokens: WordTokens) {
        if let Some(mut entry) = self.slot(key).try_lock() {
            *entry = Entry { key, tokens };
        }
    }

    fn slot(&self, key: Key) -> &Mutex<Entry> {
        &self.slots[key.hash() % SLOTS]
    }
}

impl Key {
    /// Makes the key of a word; `None` if it is too long for the cache.
    pub(super) fn of(word: &str) -> Option<Self> {
        let mut key = [0; MOST_BYTES + 1];
        key[..MOST_BYTES].get_mut(..word.len())?.copy_from_slice(word.as_bytes());
        key[MOST_BYTES] = word.len() as u8;
        Some(Self(key))
    }

    /// Mixes the bytes, eight at a time: a product spreads each of them over the upper half, which is folded down.
    fn hash(self) -> usize {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let (parts, _) = self.0.as_chunks::<8>();
        let mixed = parts.iter().fold(0, |hash, part| {
            let product = u128::from(hash ^ u64::from_le_bytes(*part)) * u128::from(ODD);
            (product >> 64) as u64 ^ product as u64
        });
        mixed as usize
    }
}

impl WordTokens {
    /// Takes the tokens of a word; `None` if they are too many.
    pub(super) fn of(tokens: impl IntoIterator<Item = (u32, usize)>) -> Option<Self> {
        let mut taken = Self::default();
        for (id, bytes) in tokens {
            let place = usize::from(taken.count);
            *taken.ids.get_mut(place)? = id;
            taken.bytes[place] = u8::try_from(bytes).ok()?;
            taken.count += 1;
        }
        Some(taken)
    }

    /// Returns the tokens in the order of the word.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, usize)> {
        let tokens = self.ids.iter().zip(&self.bytes).take(usize::from(self.count));
        tokens.map(|(id, bytes)| (*id, usize::from(*bytes)))
    }
}

impl fmt::Debug for WordCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("WordCache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(word: &str) -> Key {
        Key::of(word).expect("a short word")
    }

    fn found(cache: &WordCache, word: &str) -> Option<Vec<(u32, usize)>> {
        cache.get(key(word)).map(|tokens| tokens.iter().collect())
    }

    #[test]
    fn a_word_is_found_with_its_own_tokens_until_another_takes_its_slot() {
        assert_eq!(SLOTS, 8192);
        let (cache, mut replaced) = (WordCache::new(), 0);
        for number in 0..20_000_u32 {
            let word = format!("word {number}");
            assert_eq!(found(&cache, &word), None);
            cache.put(key(&word), WordTokens::of([(number, 4), (7, word.len() - 4)]).expect("two tokens"));
            assert_eq!(found(&cache, &word), Some(vec![(number, 4), (7, word.len() - 4)]));
            let first = number / 2;
            match found(&cache, &format!("word {first}")) {
                Some(tokens) => assert_eq!(tokens[0], (first, 4)),
                None => replaced += 1,
            }
        }
        assert!((2_000..15_000).contains(&replaced), "{replaced}");
    }

    #[test]
    fn words_that_begin_alike_or_end_in_zeros_are_told_apart() {
        let cache = WordCache::new();
        let words = ["a", "a\0", "a\0\0", "ab", "the twenty three bytes ", "the twenty three bytes!"];
        for (word, number) in words.iter().zip(0..) {
            cache.put(key(word), WordTokens::of([(number, word.len())]).expect("a token"));
        }
        for (word, number) in words.iter().zip(0..) {
            assert_eq!(found(&cache, word), Some(vec![(number, word.len())]), "{word:?}");
        }
    }

    #[test]
    fn long_words_and_those_of_many_tokens_do_not_fit() {
        assert!(Key::of(&"a".repeat(MOST_BYTES)).is_some() && Key::of(&"a".repeat(MOST_BYTES + 1)).is_none());
        let tokens = |count: usize| WordTokens::of((0..count).map(|place| (9, place)));
        assert!(tokens(MOST_TOKENS).is_some() && tokens(MOST_TOKENS + 1).is_none());
        assert!(WordTokens::of([(9, 256)]).is_none());
    }
}
