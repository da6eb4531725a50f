//! Tokens of words by merges of byte pairs (Sennrich et al., "Neural Machine Translation of Rare Words with Subword
//! Units", 2016), as the library's own model makes them, in a quarter of its memory. Made by `reading.rs`; what the
//! library has beside (dropout, marks within words) is left to it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use tokenizers::Token;
use tokenizers::models::bpe::{Merges as Pairs, Vocab};

use super::spellings::Spellings;
use super::word_cache::{Key, WordCache, WordTokens};

/// Settings of a model.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// What stands for a character without a token.
    pub(super) unk_token: Option<String>,
    /// One such token stands for all in a row.
    pub(super) fuse_unk: bool,
    /// Write a character without a token as the tokens of its bytes, if all have one.
    pub(super) byte_fallback: bool,
    /// Take a word that is a token without merging.
    pub(super) ignore_merges: bool,
}

/// A model of byte pairs.
#[derive(Debug)]
pub(super) struct BytePairs {
    spellings: Spellings,
    merges: Merges,
    unknown: Option<u32>,
    fuse_unknown: bool,
    /// The token of each byte; empty if characters are not written so.
    bytes: Vec<Option<u32>>,
    ignore_merges: bool,
    /// Of words that were merged.
    cache: WordCache,
}

/// Merges, those of the same left token together.
#[derive(Debug)]
struct Merges {
    /// Where those of each left token begin in `rights`, and the end of the last ones.
    starts: Vec<u32>,
    /// The right tokens, by their left ones, then by themselves.
    rights: Vec<u32>,
    /// What each merge makes, in the same order.
    outcomes: Vec<Merge>,
}

#[derive(Debug, Clone, Copy)]
struct Merge {
    /// The smallest is merged first.
    rank: u32,
    /// What becomes of the pair.
    token: u32,
}

/// A token of a word.
#[derive(Debug, Clone, Copy)]
struct Piece {
    token: u32,
    /// Bytes of the word that it stands for; 0 for one that has become a part of the piece before it.
    bytes: u32,
    /// Index of the piece before it, or [`NONE`].
    before: u32,
    /// Index of the piece behind it, or [`NONE`].
    behind: u32,
}

/// Where a piece has no neighbour.
const NONE: u32 = u32::MAX;

impl BytePairs {
    /// Makes the model; `None` if a merge has no token or if the vocabulary is one that is left to the library.
    pub(super) fn new(vocabulary: &Vocab, pairs: &Pairs, rules: &Rules) -> Option<Self> {
        let spellings = Spellings::new(vocabulary.iter().map(|(spelling, id)| (spelling.as_str(), *id)))?;
        let merges = Merges::new(&spellings, pairs)?;
        let unknown = match &rules.unk_token {
            Some(spelling) => Some(spellings.id(spelling)?),
            None => None,
        };
        let bytes = if rules.byte_fallback { 256 } else { 0 };
        let bytes = (0..bytes).map(|byte| spellings.id(&format!("<0x{byte:02X}>"))).collect();
        let (fuse_unknown, ignore_merges) = (rules.fuse_unk, rules.ignore_merges);
        Some(Self { spellings, merges, unknown, fuse_unknown, bytes, ignore_merges, cache: WordCache::new() })
    }

    /// Returns the tokens of a word, with the bytes that each stands for.
    pub(super) fn tokenize(&self, word: &str) -> Vec<Token> {
        let key = Key::of(word);
        if let Some(tokens) = key.and_then(|key| self.cache.get(key)) {
            return self.spelled(tokens.iter());
        }
        let pieces = self.pieces(word);
        let tokens = || pieces.iter().filter(|piece| piece.bytes > 0).map(|piece| (piece.token, piece.bytes as usize));
        if let Some((key, tokens)) = key.zip(WordTokens::of(tokens())) {
            self.cache.put(key, tokens);
        }
        self.spelled(tokens())
    }

    /// Returns tokens as the library has them, of tokens with the bytes that each stands for.
    fn spelled(&self, tokens: impl Iterator<Item = (u32, usize)>) -> Vec<Token> {
        let mut end = 0;
        let tokens = tokens.map(|(token, bytes)| {
            let start = end;
            end += bytes;
            Token::new(token, self.spelling(token).unwrap_or_default().to_owned(), (start, end))
        });
        tokens.collect()
    }

    /// Returns the pieces of a word after all merges.
    fn pieces(&self, word: &str) -> Vec<Piece> {
        let whole = if self.ignore_merges { self.spellings.id(word) } else { None };
        if let Some(token) = whole {
            return vec![Piece { token, bytes: word.len() as u32, before: NONE, behind: NONE }];
        }
        let mut pieces = self.characters(word);
        self.merge(&mut pieces);
        pieces
    }

    /// Returns the id of the token with this spelling; `None` if there is none.
    pub(super) fn id(&self, spelling: &str) -> Option<u32> {
        self.spellings.id(spelling)
    }

    /// Returns the spelling of a token; `None` if the id has none.
    pub(super) fn spelling(&self, id: u32) -> Option<&str> {
        self.spellings.get(id)
    }

    /// Returns the number of tokens.
    pub(super) fn count(&self) -> usize {
        self.spellings.count()
    }

    /// Returns a copy of the vocabulary.
    pub(super) fn vocabulary(&self) -> HashMap<String, u32> {
        self.spellings.iter().map(|(spelling, id)| (spelling.to_owned(), id)).collect()
    }

    /// Returns the word's characters as tokens. One that has none, and whose bytes have none, is left out if nothing
    /// stands for it.
    fn characters(&self, word: &str) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(word.len());
        let mut unknown: Option<(u32, usize)> = None;
        let mut add = |(token, bytes): (u32, usize)| {
            let index = pieces.len() as u32;
            pieces.push(Piece { token, bytes: bytes as u32, before: index.wrapping_sub(1), behind: index + 1 });
        };
        for (start, character) in word.char_indices() {
            let length = character.len_utf8();
            if let Some(token) = self.spellings.character(character) {
                unknown.take().into_iter().for_each(&mut add);
                add((token, length));
            } else if let Some(bytes) = self.bytes_of(&word[start..start + length]) {
                // As in the library, what is unknown before them comes behind them.
                for token in bytes {
                    add((token, 1));
                }
            } else if let Some(token) = self.unknown {
                match &mut unknown {
                    Some((_, before)) if self.fuse_unknown => *before += length,
                    _ => unknown.replace((token, length)).into_iter().for_each(&mut add),
                }
            }
        }
        unknown.into_iter().for_each(&mut add);
        if let Some(last) = pieces.last_mut() {
            last.behind = NONE;
        }
        pieces
    }

    /// Returns the tokens of the bytes of a character; `None` if one of them has none.
    fn bytes_of(&self, character: &str) -> Option<Vec<u32>> {
        character.bytes().map(|byte| *self.bytes.get(usize::from(byte))?).collect()
    }

    /// Merges the pair with the smallest rank, the first one if there are several, until there is none.
    fn merge(&self, pieces: &mut [Piece]) {
        let entry = |pieces: &[Piece], index: u32| {
            let left = pieces[index as usize];
            let right = pieces.get(left.behind as usize)?;
            let merge = self.merges.get(left.token, right.token)?;
            Some(Reverse((merge.rank, index, merge.token, left.bytes + right.bytes)))
        };
        let mut queue: BinaryHeap<_> = (0..pieces.len() as u32).filter_map(|index| entry(pieces, index)).collect();
        while let Some(Reverse((_, index, token, bytes))) = queue.pop() {
            let left = pieces[index as usize];
            let right = pieces.get(left.behind as usize).map_or(0, |right| right.bytes);
            // One of the two may have become a part of another piece since the entry was made, or have grown itself.
            if left.bytes == 0 || left.bytes + right != bytes {
                continue;
            }
            pieces[left.behind as usize].bytes = 0;
            let behind = pieces[left.behind as usize].behind;
            pieces[index as usize] = Piece { token, bytes, behind, ..left };
            if let Some(behind) = pieces.get_mut(behind as usize) {
                behind.before = index;
            }
            if left.before != NONE {
                queue.extend(entry(pieces, left.before));
            }
            queue.extend(entry(pieces, index));
        }
    }
}

impl Merges {
    /// Sorts the merges, which come by rank; of two of the same pair the last one holds. `None` if one of their tokens is not
    /// in the vocabulary.
    fn new(spellings: &Spellings, pairs: &Pairs) -> Option<Self> {
        let mut joined = String::new();
        let ids = pairs.iter().zip(0..).map(|((left, right), rank)| {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let token = spellings.id(&joined)?;
            Some((spellings.id(left)?, spellings.id(right)?, Merge { rank, token }))
        });
        let mut merges: Vec<(u32, u32, Merge)> = ids.collect::<Option<_>>()?;
        merges.sort_unstable_by_key(|(left, right, merge)| (*left, *right, Reverse(merge.rank)));
        merges.dedup_by_key(|(left, right, _)| (*left, *right));
        let mut starts = Vec::with_capacity(merges.last().map_or(0, |(left, ..)| *left as usize) + 2);
        for (index, (left, ..)) in merges.iter().enumerate() {
            // Ids without merges begin where the next ones do.
            while starts.len() <= *left as usize {
                starts.push(index as u32);
            }
        }
        starts.push(merges.len() as u32);
        let rights = merges.iter().map(|(_, right, _)| *right).collect();
        // Taken out of the vector as a whole, they would keep the memory that the ids took.
        let outcomes = merges.iter().map(|(.., merge)| *merge).collect();
        Some(Self { starts, rights, outcomes })
    }

    /// Returns the merge of a pair; `None` if it stays two tokens.
    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        let [start, end] = *self.starts.get(left as usize..)?.first_chunk()?;
        let index = self.rights[start as usize..end as usize].binary_search(&right).ok()?;
        Some(self.outcomes[start as usize + index])
    }
}

#[cfg(test)]
#[path = "byte_pairs_tests.rs"]
mod tests;
