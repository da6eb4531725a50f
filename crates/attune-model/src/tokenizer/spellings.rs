//! The tokens of a vocabulary, by id and by spelling, in three flat vectors: a quarter of a million tokens are as many
//! texts, and in two maps of them each is an allocation of its own, twice. Used by `byte_pairs.rs`.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

/// Place of the table in which no id stands.
const EMPTY: u32 = u32::MAX;
/// Characters below this one are found without hashing: nearly all that texts have, GPT-2's for bytes and the mark for blanks.
const FREQUENT: u32 = 0x2600;
/// Ids that a vocabulary may leave out: as many as it has, and some more.
const SOME_GAPS: usize = 1024;

/// The spellings of tokens.
#[derive(Debug)]
pub(super) struct Spellings {
    /// All spellings, in the order of the ids.
    text: String,
    /// Where the spelling of each id begins in `text`, and the end of the last one; that of an id without a token is
    /// empty.
    starts: Vec<u32>,
    /// The ids as a hash table with open addressing, at most half full.
    table: Vec<u32>,
    /// The ids of single characters up to [`FREQUENT`].
    characters: Vec<u32>,
    count: usize,
}

impl Spellings {
    /// Makes the table of tokens with their ids; `None` if an id has two tokens, a token no spelling, or if most ids have
    /// no token.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Option<Self> {
        let mut tokens: Vec<_> = tokens.collect();
        tokens.sort_unstable_by_key(|(_, id)| *id);
        let count = tokens.len();
        let ids = tokens.last().map_or(0, |(_, last)| *last as usize + 1);
        let doubles = tokens.windows(2).any(|pair| pair[0].1 == pair[1].1);
        if doubles || ids > 2 * count + SOME_GAPS || tokens.iter().any(|(spelling, _)| spelling.is_empty()) {
            return None;
        }
        let length = tokens.iter().map(|(spelling, _)| spelling.len()).sum();
        u32::try_from(length).ok()?;
        let mut text = String::with_capacity(length);
        let mut starts = Vec::with_capacity(ids + 1);
        for (spelling, id) in &tokens {
            starts.resize(*id as usize + 1, text.len() as u32);
            text.push_str(spelling);
        }
        starts.push(text.len() as u32);
        let table = vec![EMPTY; (2 * count).next_power_of_two()];
        let mut spellings = Self { text, starts, table, characters: Vec::new(), count };
        for (spelling, id) in tokens {
            match spellings.place(spelling) {
                place if spellings.table[place] == EMPTY => spellings.table[place] = id,
                _ => return None,
            }
        }
        let id = |code| char::from_u32(code).and_then(|character| spellings.id(character.encode_utf8(&mut [0; 4])));
        spellings.characters = (0..FREQUENT).map(|code| id(code).unwrap_or(EMPTY)).collect();
        Some(spellings)
    }

    /// Returns the number of tokens.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Returns the spelling of a token; `None` if the id has none.
    pub(super) fn get(&self, id: u32) -> Option<&str> {
        let [start, end] = *self.starts.get(id as usize..)?.first_chunk()?;
        Some(&self.text[start as usize..end as usize]).filter(|spelling| !spelling.is_empty())
    }

    /// Returns the id of the token with this spelling; `None` if there is none.
    pub(super) fn id(&self, spelling: &str) -> Option<u32> {
        Some(self.table[self.place(spelling)]).filter(|id| *id != EMPTY)
    }

    /// Returns the id of the token that is this character; `None` if there is none.
    pub(super) fn character(&self, character: char) -> Option<u32> {
        match self.characters.get(character as usize) {
            Some(id) => Some(*id).filter(|id| *id != EMPTY),
            None => self.id(character.encode_utf8(&mut [0; 4])),
        }
    }

    /// Returns all tokens with their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        (0..self.starts.len() as u32).filter_map(|id| Some((self.get(id)?, id)))
    }

    /// Returns the place of the table where the id of this spelling stands, or would.
    fn place(&self, spelling: &str) -> usize {
        let mask = self.table.len() - 1;
        let mut place = BuildHasherDefault::<DefaultHasher>::new().hash_one(spelling) as usize & mask;
        while self.table[place] != EMPTY && self.get(self.table[place]) != Some(spelling) {
            place = (place + 1) & mask;
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_by_id_and_by_spelling() {
        let tokens = [("b", 3), ("a", 0), ("日本", 7), ("ab", 4), ("本", 8)];
        let spellings = Spellings::new(tokens.into_iter()).expect("distinct tokens");
        assert_eq!(spellings.count(), 5);
        for (spelling, id) in tokens {
            assert_eq!((spellings.get(id), spellings.id(spelling)), (Some(spelling), Some(id)));
        }
        let characters = ['a', 'b', 'c', '本', '語'].map(|character| spellings.character(character));
        assert_eq!(characters, [Some(0), Some(3), None, Some(8), None]);
        assert_eq!([1, 2, 6, 9, u32::MAX].map(|id| spellings.get(id)), [None; 5]);
        assert_eq!(["", "c", "aba", "日"].map(|spelling| spellings.id(spelling)), [None; 4]);
        assert_eq!(spellings.iter().collect::<Vec<_>>(), [("a", 0), ("b", 3), ("ab", 4), ("日本", 7), ("本", 8)]);
        let nothing = Spellings::new(std::iter::empty()).expect("no tokens");
        assert_eq!((nothing.get(0), nothing.id("a"), nothing.count()), (None, None, 0));
    }

    #[test]
    fn what_does_not_fit_the_table_is_left_out() {
        for tokens in [[("a", 0), ("b", 0)], [("a", 0), ("a", 1)], [("", 0), ("a", 1)], [("a", 0), ("b", 1 << 30)]] {
            assert!(Spellings::new(tokens.into_iter()).is_none(), "{tokens:?}");
        }
    }
}
