//! Tokens of words by merges of byte pairs (Sennrich et al., "Neural Machine Translation of Rare Words with Subword
//! Units", 2016), as the library's own model makes them, in a quarter of its memory. Made by `reading.rs`; what the
//! library has beside (dropout, marks within words) is left to it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use tokenizers::Token;
use tokenizers::models::bpe::{Merges as Pairs, Vocab};

use super::spellings::Spellings;

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
}

/// Merges, those of the same left token together.
#[derive(Debug)]
struct Merges {
    /// Where those of each left token begin in `sorted`, and the end of the last ones.
    starts: Vec<u32>,
    /// By their left tokens, then by their right ones.
    sorted: Vec<Merge>,
}

#[derive(Debug, Clone, Copy)]
struct Merge {
    right: u32,
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
    bytes: usize,
    /// Index of the piece before it.
    before: Option<usize>,
    /// Index of the piece behind it.
    behind: Option<usize>,
}

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
        Some(Self { spellings, merges, unknown, fuse_unknown, bytes, ignore_merges })
    }

    /// Returns the tokens of a word, with the bytes that each stands for.
    pub(super) fn tokenize(&self, word: &str) -> Vec<Token> {
        let whole = if self.ignore_merges { self.spellings.id(word) } else { None };
        if let Some(token) = whole {
            return vec![Token::new(token, word.to_owned(), (0, word.len()))];
        }
        let mut pieces = self.characters(word);
        self.merge(&mut pieces);
        let mut end = 0;
        let tokens = pieces.into_iter().filter(|piece| piece.bytes > 0).map(|piece| {
            let start = end;
            end += piece.bytes;
            Token::new(piece.token, self.spelling(piece.token).unwrap_or_default().to_owned(), (start, end))
        });
        tokens.collect()
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
        for (start, character) in word.char_indices() {
            let length = character.len_utf8();
            let character = &word[start..start + length];
            if let Some(token) = self.spellings.id(character) {
                pieces.extend(unknown.take());
                pieces.push((token, length));
            } else if let Some(bytes) = self.bytes_of(character) {
                // As in the library, what is unknown before them comes behind them.
                pieces.extend(bytes.into_iter().map(|token| (token, 1)));
            } else if let Some(token) = self.unknown {
                match &mut unknown {
                    Some((_, before)) if self.fuse_unknown => *before += length,
                    _ => pieces.extend(unknown.replace((token, length))),
                }
            }
        }
        pieces.extend(unknown);
        let last = pieces.len().saturating_sub(1);
        let linked = pieces.into_iter().enumerate().map(|(index, (token, bytes))| Piece {
            token,
            bytes,
            before: index.checked_sub(1),
            behind: (index < last).then_some(index + 1),
        });
        linked.collect()
    }

    /// Returns the tokens of the bytes of a character; `None` if one of them has none.
    fn bytes_of(&self, character: &str) -> Option<Vec<u32>> {
        character.bytes().map(|byte| *self.bytes.get(usize::from(byte))?).collect()
    }

    /// Merges the pair with the smallest rank, the first one if there are several, until there is none.
    fn merge(&self, pieces: &mut [Piece]) {
        let merge_at = |pieces: &[Piece], index: usize| {
            let behind = pieces[index].behind?;
            self.merges.get(pieces[index].token, pieces[behind].token)
        };
        let entry = |pieces: &[Piece], index: usize| {
            merge_at(pieces, index).map(|Merge { rank, token, .. }| Reverse((rank, index, token)))
        };
        let mut queue: BinaryHeap<_> = (0..pieces.len()).filter_map(|index| entry(pieces, index)).collect();
        while let Some(Reverse((_, left, token))) = queue.pop() {
            // One of the two may have become a part of another piece since the entry was made.
            let is_there = pieces[left].bytes > 0 && merge_at(pieces, left).is_some_and(|merge| merge.token == token);
            let Some(right) = pieces[left].behind.filter(|_| is_there) else { continue };
            let behind = pieces[right].behind;
            pieces[left] = Piece { token, bytes: pieces[left].bytes + pieces[right].bytes, behind, ..pieces[left] };
            pieces[right].bytes = 0;
            if let Some(behind) = behind {
                pieces[behind].before = Some(left);
            }
            queue.extend(pieces[left].before.and_then(|before| entry(pieces, before)));
            queue.extend(entry(pieces, left));
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
            Some((spellings.id(left)?, Merge { right: spellings.id(right)?, rank, token }))
        });
        let mut merges: Vec<(u32, Merge)> = ids.collect::<Option<_>>()?;
        merges.sort_unstable_by_key(|(left, merge)| (*left, merge.right, Reverse(merge.rank)));
        merges.dedup_by_key(|(left, merge)| (*left, merge.right));
        let mut starts = Vec::with_capacity(merges.last().map_or(0, |(left, _)| *left as usize) + 2);
        for (index, (left, _)) in merges.iter().enumerate() {
            // Ids without merges begin where the next ones do.
            while starts.len() <= *left as usize {
                starts.push(index as u32);
            }
        }
        starts.push(merges.len() as u32);
        Some(Self { starts, sorted: merges.into_iter().map(|(_, merge)| merge).collect() })
    }

    /// Returns the merge of a pair; `None` if it stays two tokens.
    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        let [start, end] = *self.starts.get(left as usize..)?.first_chunk()?;
        let of_left = &self.sorted[start as usize..end as usize];
        of_left.binary_search_by_key(&right, |merge| merge.right).ok().map(|index| of_left[index])
    }
}

#[cfg(test)]
#[path = "byte_pairs_tests.rs"]
mod tests;
