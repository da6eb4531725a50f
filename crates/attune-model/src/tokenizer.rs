//! Text to token ids and back, from a folder's `tokenizer.json` and `tokenizer_config.json`, or from the keys of a GGUF
//! file, of which [`gguf::tokenizer`](crate::gguf::tokenizer) makes the same [`TokenizerSource`].
//!
//! Called by `api` and `datasets` (text in), by `engine/text.rs` (text out) and by the chat template (names of the
//! special tokens). `reading.rs` makes the library's tokenizer, over a model that `byte_pairs.rs` holds in little memory.

mod byte_pairs;
mod library;
mod reading;
mod spellings;
mod word_cache;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::Value;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::utils::truncation::{TruncationDirection, TruncationParams, truncate_encodings};
use tokenizers::{Model as _, NormalizerWrapper, PostProcessor as _, PostProcessorWrapper};

pub(crate) use self::library::Library;
use crate::{Error, Result};

/// Special tokens that `tokenizer_config.json` names and that chat templates may use.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What a tokenizer is made of, wherever it was found.
#[derive(Debug)]
pub struct TokenizerSource {
    /// The tokenizer in the form of `tokenizer.json`.
    pub json: Vec<u8>,
    /// The texts of the special tokens that have a role, such as `bos_token`.
    pub special_tokens: BTreeMap<&'static str, String>,
    /// The file, for messages.
    pub origin: String,
}

impl TokenizerSource {
    /// Reads `tokenizer.json` in `folder`, and the special tokens of `tokenizer_config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = folder.join("tokenizer.json");
        let origin = file.display().to_string();
        if !file.is_file() {
            let message = "the file does not exist; the model folder needs its tokenizer";
            return Err(Error::Setup(format!("{origin}: {message}")));
        }
        let json = std::fs::read(&file).map_err(Error::io(format!("read {origin}")))?;
        Ok(Self { json, special_tokens: special_tokens(folder)?, origin })
    }
}

/// A pair of texts as one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairTokens {
    /// Token ids of both texts and of the tokens around them.
    pub ids: Vec<u32>,
    /// Index of the first token of the second segment; `None` if the tokenizer tells no segments apart.
    pub second: Option<usize>,
    /// Tokens of the pair before any were cut off.
    pub length: usize,
}

/// A text as a model of vectors reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextTokens {
    /// Token ids of the text and of those around it, cut to a limit.
    pub ids: Vec<u32>,
    /// Tokens before any were cut off.
    pub length: usize,
    /// Characters that were read of the text, and those that it has, where it was cut by them.
    pub characters: Option<[usize; 2]>,
}

/// The tokenizer of one model.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Library,
    special: HashSet<u32>,
    end_token: Option<u32>,
    /// The token before every text, where the tokenizer puts one there.
    begin_token: Option<u32>,
    /// Ids from here on are never made.
    limit: usize,
    /// Tokens that are put behind a text, such as an end token.
    behind: Vec<u32>,
    /// The token that is left out of all texts, once they are cut.
    left_out: Option<u32>,
    /// Characters of a text that are read for each token that may be; `None` for all.
    characters: Option<usize>,
}

impl Tokenizer {
    /// Reads the tokenizer in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::new(&TokenizerSource::read(folder)?)
    }

    /// Makes the tokenizer of `source`, with truncation and padding switched off.
    pub fn new(source: &TokenizerSource) -> Result<Self> {
        let setup = |error: &dyn std::fmt::Display| Error::Setup(format!("{}: {error}", source.origin));
        let inner = reading::read(&source.json).map_err(|error| setup(&error))?;
        let end_token = match source.special_tokens.get("eos_token") {
            Some(text) => {
                let id = inner.token_to_id(text);
                Some(id.ok_or_else(|| setup(&format!("the model's eos_token `{text}` is not in the vocabulary")))?)
            }
            None => None,
        };
        Ok(Self::of(inner, end_token, usize::MAX))
    }

    fn of(inner: Library, end_token: Option<u32>, limit: usize) -> Self {
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let (begin_token, behind) = inner.encode_fast("a", true).map_or((None, Vec::new()), |letter| {
            let (ids, added) = (letter.get_ids(), letter.get_special_tokens_mask());
            let begins = added.first() == Some(&1);
            let behind = added.iter().rev().take_while(|added| **added == 1).count();
            (ids.first().copied().filter(|_| begins), ids[ids.len() - behind..].to_vec())
        });
        Self { inner, special, end_token, begin_token, limit, behind, left_out: None, characters: None }
    }

    /// Makes all texts lower-case before anything else is done with them, as sentence-transformers does: character by
    /// character, and outside the names of special tokens.
    pub(crate) fn lower_cased(mut self) -> Self {
        let normalizer = match self.inner.get_normalizer().cloned() {
            None => vec![Lowercase.into()],
            Some(NormalizerWrapper::Lowercase(lowercase)) => vec![lowercase.into()],
            Some(NormalizerWrapper::Sequence(steps)) => {
                let has_one = steps.as_ref().iter().any(|step| matches!(step, NormalizerWrapper::Lowercase(_)));
                let first = (!has_one).then(|| Lowercase.into());
                first.into_iter().chain(steps).collect()
            }
            Some(other) => vec![Lowercase.into(), other],
        };
        self.inner.with_normalizer(Some(Sequence::new(normalizer)));
        self
    }

    /// Makes tokens of texts alone, without any around them.
    pub(crate) fn alone(mut self) -> Self {
        self.inner.with_post_processor(None::<PostProcessorWrapper>);
        Self::of(self.inner, self.end_token, self.limit)
    }

    /// Reads texts as model2vec does: cuts them by characters, as many for each token as half of the vocabulary's tokens
    /// have at the most, then by tokens, and then leaves out `left_out`.
    pub(crate) fn cutting_like_model2vec(self, left_out: Option<u32>) -> Self {
        let mut lengths: Vec<usize> =
            self.inner.get_vocab(true).into_keys().map(|token| token.chars().count()).collect();
        lengths.sort_unstable();
        let middle = lengths.len() / 2;
        // Of an even number it is the mean of the two in the middle, rounded down.
        let median = match lengths.len() % 2 {
            _ if lengths.is_empty() => 0,
            0 => usize::midpoint(lengths[middle - 1], lengths[middle]),
            _ => lengths[middle],
        };
        Self { left_out, characters: Some(median), ..self }
    }

    /// Leaves out the added tokens that an embedding of `rows` rows has no row for, such as the marks of pictures in
    /// a text model: texts that hold their names are tokenized like any other text. Returns the tokenizer and the names,
    /// or what is wrong if other tokens have no row either, in words that go on after the name of a file.
    pub(crate) fn within(self, rows: usize) -> Result<(Self, Vec<String>), String> {
        let tokens = self.vocabulary_size();
        if tokens <= rows {
            return Ok((self, Vec::new()));
        }
        let has_row = |id: u32| (id as usize) < rows;
        let mut added: Vec<_> = self.inner.get_added_tokens_decoder().into_iter().collect();
        added.sort_by_key(|(id, _)| *id);
        let (kept, left_out): (Vec<_>, Vec<_>) = added.into_iter().partition(|(id, _)| has_row(*id));
        let is_left_out = |text: &str| left_out.iter().any(|(_, token)| token.content == text);
        let vocabulary = self.inner.get_vocab(false);
        if vocabulary.iter().any(|(text, id)| !has_row(*id) && !is_left_out(text)) {
            return Err(format!("the tokenizer has {tokens} tokens, the embedding only {rows} rows"));
        }
        let mut inner = Library::new(self.inner.get_model().clone());
        inner.with_normalizer(self.inner.get_normalizer().cloned());
        inner.with_pre_tokenizer(self.inner.get_pre_tokenizer().cloned());
        inner.with_post_processor(self.inner.get_post_processor().cloned());
        inner.with_decoder(self.inner.get_decoder().cloned());
        let tokens: Vec<_> = kept.iter().map(|(_, token)| token.clone()).collect();
        inner.add_tokens(&tokens);
        let moved = kept.iter().find(|(id, token)| inner.token_to_id(&token.content) != Some(*id));
        if let Some((id, token)) = moved {
            return Err(format!(
                "the token `{}` does not keep its id {id} without those that have no row",
                token.content
            ));
        }
        let (left_out_of_texts, characters) = (self.left_out, self.characters);
        let fitted = Self { left_out: left_out_of_texts, characters, ..Self::of(inner, self.end_token, rows) };
        // The end token, and those that stand around each text, cannot be left out.
        let around = fitted.inner.encode_fast("", true);
        let around = around.map(|around| around.get_ids().to_vec()).unwrap_or_default();
        if let Some(id) = around.into_iter().chain(fitted.end_token).find(|id| !has_row(*id)) {
            let token = left_out.iter().find(|(other, _)| *other == id).map_or("", |(_, token)| token.content.as_str());
            return Err(format!(
                "the token {id} `{token}` begins or ends texts, but the embedding has only {rows} rows"
            ));
        }
        Ok((fitted, left_out.into_iter().map(|(_, token)| token.content).collect()))
    }

    /// Returns the token ids of `text`; `special` adds the tokens that the tokenizer puts around a text (such as a
    /// begin token). A begin token that the text itself names, as rendered chats do, is not put there again.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special).map_err(|error| not_encodable(&error))?;
        let mut ids = encoding.get_ids();
        if special && self.begins_twice(ids) {
            ids = &ids[1..];
        }
        self.checked(ids)
    }

    /// Returns the token ids of `text` and of those that the tokenizer puts around it. A text of more than `limit` tokens
    /// is cut at its end, inside those behind it.
    pub fn encode_within(&self, text: &str, limit: usize) -> Result<TextTokens> {
        let most = self.characters.map_or(usize::MAX, |of_token| limit.saturating_mul(of_token));
        let end = if text.len() <= most { None } else { text.char_indices().nth(most).map(|(end, _)| end) };
        let read = &text[..end.unwrap_or(text.len())];
        let encoding = self.inner.encode_fast(read, true).map_err(|error| not_encodable(&error))?;
        let mut ids = encoding.get_ids();
        if self.begins_twice(ids) {
            ids = &ids[1..];
        }
        let length = ids.len();
        let ids = self.checked(&cut(ids.to_vec(), limit, &self.behind))?;
        Ok(TextTokens { ids, length, characters: end.map(|_| [most, text.chars().count()]) })
    }

    /// Refuses ids that the model has no embedding for.
    fn checked(&self, ids: &[u32]) -> Result<Vec<u32>> {
        match ids.iter().find(|id| **id as usize >= self.limit) {
            None => Ok(ids.iter().copied().filter(|id| Some(*id) != self.left_out).collect()),
            Some(id) => {
                let name = self.inner.id_to_token(*id).unwrap_or_default();
                Err(not_encodable(&format!("the model has no embedding for the token `{name}`")))
            }
        }
    }

    /// Returns the token ids of `first` and `second` as one input, with the tokens that the tokenizer puts around a pair. An
    /// input of more than `limit` tokens loses tokens at the end of the longer text, one by one.
    pub fn encode_pair(&self, first: &str, second: &str, limit: usize) -> Result<PairTokens> {
        self.encode_pair_within(first, second, limit, usize::MAX)
    }

    /// Returns the token ids of a pair, as [`Self::encode_pair`] does, of whose second text `second_limit` tokens are read.
    pub fn encode_pair_within(
        &self,
        first: &str,
        second: &str,
        limit: usize,
        second_limit: usize,
    ) -> Result<PairTokens> {
        let encode = |text| self.inner.encode_fast(text, false).map_err(|error| not_encodable(&error));
        let (first, mut second) = (encode(first)?, encode(second)?);
        second.truncate(second_limit, 0, TruncationDirection::Right);
        let around = self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(true));
        let length = first.len() + second.len() + around;
        let room = TruncationParams { max_length: limit.saturating_sub(around), ..TruncationParams::default() };
        let cut = truncate_encodings(first, Some(second), &room).map_err(|error| not_encodable(&error))?;
        let (mut first, mut second) = cut;
        // What was cut off would be paired, too, each piece with each.
        first.take_overflowing();
        if let Some(second) = &mut second {
            second.take_overflowing();
        }
        let whole = self.inner.post_process(first, second, true).map_err(|error| not_encodable(&error))?;
        let ids = self.checked(whole.get_ids())?;
        Ok(PairTokens { ids, second: whole.get_type_ids().iter().position(|id| *id == 1), length })
    }

    /// Returns the token ids that the tokenizer puts behind a text, such as an end token.
    pub fn tokens_behind(&self) -> &[u32] {
        &self.behind
    }

    /// Returns how many tokens of a text belong to the `prompt` before it: as sentence-transformers counts them, all of the
    /// prompt alone but a special one at its end.
    pub fn prompt_tokens(&self, prompt: &str) -> Result<usize> {
        let tokens = self.encode(prompt, true)?;
        let has_end = tokens.last().is_some_and(|id| self.is_special(*id));
        Ok(tokens.len() - usize::from(has_end))
    }

    fn begins_twice(&self, ids: &[u32]) -> bool {
        self.begin_token.is_some_and(|begin| ids.starts_with(&[begin, begin]))
    }

    /// Returns, for each token of `text` and the special ones around it, the number of characters before it.
    pub fn character_offsets(&self, text: &str) -> Result<Vec<usize>> {
        let encoding = self.inner.encode_char_offsets(text, true).map_err(|error| not_encodable(&error))?;
        // Tokens that the tokenizer puts around the text have an empty range at 0.
        let length = text.chars().count();
        let mut end = 0;
        let special = encoding.get_special_tokens_mask();
        let twice = usize::from(self.begins_twice(encoding.get_ids()));
        let offsets = encoding.get_offsets().iter().zip(special).skip(twice).map(|(&(from, to), &added)| {
            if added == 1 {
                return end;
            }
            end = to.min(length);
            from.min(length)
        });
        Ok(offsets.collect())
    }

    /// Returns the text of `ids`, without special tokens if `skip_special`. Ids outside the vocabulary have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|error| Error::Internal(format!("decode tokens: {error}")))
    }

    /// Returns the vocabulary's own spelling of `id`, in which a blank may be `Ġ`; `None` outside the vocabulary.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the id of the token that the vocabulary spells `text`; `None` if there is none.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text).filter(|id| (*id as usize) < self.limit)
    }

    /// Returns the number of ids, added tokens included.
    pub fn vocabulary_size(&self) -> usize {
        // Added tokens may lie beyond a gap, and the highest id counts for the model's embedding.
        let (model, added) = (self.inner.get_model(), self.inner.get_added_vocabulary());
        let highest_added = added.get_added_tokens_decoder().keys().max().map_or(0, |id| *id as usize + 1);
        let beside = added.get_vocab().keys().filter(|text| model.token_to_id(text).is_none()).count();
        (model.get_vocab_size() + beside).max(highest_added).min(self.limit)
    }

    /// Returns the library's tokenizer.
    pub(crate) fn library(&self) -> &Library {
        &self.inner
    }

    /// Returns the id of `tokenizer_config.json`'s `eos_token`; `None` if there is none.
    pub fn end_token(&self) -> Option<u32> {
        self.end_token
    }

    /// Returns the id of the special token `name`; `None` if there is none of this name.
    pub fn special_token(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name).filter(|id| self.special.contains(id))
    }

    /// Returns the special tokens whose names `text` holds, with their names, in the order of their places.
    pub fn special_tokens_within(&self, text: &str) -> Vec<(u32, String)> {
        let named = self.special.iter().filter_map(|id| Some((*id, self.inner.id_to_token(*id)?)));
        let found =
            named.filter_map(|(id, name)| if name.is_empty() { None } else { Some((text.find(&name)?, id, name)) });
        let mut found: Vec<_> = found.collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id, name)| (id, name)).collect()
    }

    /// Returns true if `id` is a token that is found in a text before it is cut into words, special or not.
    pub(crate) fn is_added(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
    }

    /// Returns true if `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Returns true if `id` adds to the text that a client sees: it is in the vocabulary and not a special token.
    pub fn is_visible(&self, id: u32) -> bool {
        !self.special.contains(&id) && self.inner.id_to_token(id).is_some()
    }
}

/// Cuts `tokens` to `limit`; those that end with `end`, which the tokenizer puts behind a text, still do then.
pub fn cut(mut tokens: Vec<u32>, limit: usize, end: &[u32]) -> Vec<u32> {
    if tokens.len() > limit {
        let end = if tokens.ends_with(end) && end.len() <= limit { end } else { &[] };
        tokens.truncate(limit - end.len());
        tokens.extend_from_slice(end);
    }
    tokens
}

fn not_encodable(error: &dyn std::fmt::Display) -> Error {
    Error::NotEncodable(error.to_string())
}

/// Reads the special tokens by role (`bos_token`, `eos_token`, …) of `tokenizer_config.json`, else of
/// `special_tokens_map.json`; each is a string or an object with `content`.
pub(crate) fn special_tokens(folder: &Path) -> Result<BTreeMap<&'static str, String>> {
    let mut tokens = BTreeMap::new();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let Some(value) = read_json(&folder.join(name))? else { continue };
        for role in SPECIAL_TOKENS {
            let token = value[role].as_str().or_else(|| value[role]["content"].as_str());
            if let Some(token) = token {
                tokens.entry(role).or_insert_with(|| token.to_owned());
            }
        }
    }
    Ok(tokens)
}

/// Reads the JSON value in `file`; `None` if there is no such file.
pub(crate) fn read_json(file: &Path) -> Result<Option<Value>> {
    if !file.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(file).map_err(Error::io(format!("read {}", file.display())))?;
    let value =
        serde_json::from_str(&text).map_err(|error| Error::Setup(format!("{}: not JSON: {error}", file.display())))?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Makes a tokenizer of words: `<begin>` stands before every text, and blanks belong to no word.
    fn tokenizer() -> Tokenizer {
        let folder = tempfile::tempdir().expect("a folder");
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": [{"id": 0, "content": "<begin>", "special": true, "single_word": false, "lstrip": false,
                              "rstrip": false, "normalized": false}],
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<begin>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<begin>": {"id": "<begin>", "ids": [0], "tokens": ["<begin>"]}}},
            "model": {"type": "WordLevel", "vocab": {"<begin>": 0, "un": 1, "café": 2, "noir": 3}, "unk_token": "un"},
        });
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).expect("written");
        Tokenizer::read(folder.path()).expect("a tokenizer")
    }

    #[test]
    fn a_pair_loses_tokens_at_the_end_of_its_longer_text() {
        let tokenizer = tokenizer();
        for (limit, second_limit, ids, second, length) in [
            (9, 9, vec![1, 2, 3, 2, 1, 3], 2, 6),
            (9, 3, vec![1, 2, 3, 2, 1], 2, 5),
            (4, 9, vec![1, 2, 3, 2], 2, 6),
            (3, 9, vec![1, 3, 2], 1, 6),
            (4, 1, vec![1, 2, 3], 2, 3),
        ] {
            let pair = tokenizer.encode_pair_within("un café", "noir café un noir", limit, second_limit);
            let expected = PairTokens { ids, second: Some(second), length };
            assert_eq!(pair.expect("tokens"), expected, "{limit} {second_limit}");
        }
    }

    #[test]
    fn tokens_behind_a_text_are_those_that_the_tokenizer_puts_there() {
        assert!(tokenizer().tokens_behind().is_empty(), "it puts one before texts only");
    }

    #[test]
    fn offsets_count_characters_and_belong_to_the_tokens_of_the_text() {
        let tokenizer = tokenizer();
        for (text, ids, offsets) in [
            ("un café noir", vec![0, 1, 2, 3], vec![0, 0, 3, 8]),
            ("  café", vec![0, 2], vec![0, 2]),
            // Written out, a special token is part of the text.
            ("un<begin>noir", vec![0, 1, 0, 3], vec![0, 0, 2, 9]),
            ("", vec![0], vec![0]),
        ] {
            assert_eq!(tokenizer.encode(text, true).expect("tokens"), ids, "{text}");
            assert_eq!(tokenizer.character_offsets(text).expect("offsets"), offsets, "{text}");
        }
    }
}
