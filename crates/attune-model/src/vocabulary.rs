//! The bytes of every token, and the trie over them that grammars walk.
//!
//! Log probabilities show a token alone, where its bytes need not be whole characters (`api`); a grammar decides byte
//! by byte which tokens may come next (`engine`). Both read this table, loaded once per model. [`covering`] tells by it
//! how few tokens a text can have.

mod covering;

use std::panic::catch_unwind;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use llguidance::ParserFactory;
use llguidance::toktrie::{TokEnv, TokTrie};
use toktrie_hf_tokenizers::{ByteTokenizer, ByteTokenizerEnv};

use self::covering::{Covering, fewest_tokens};
use super::tokenizer::{Tokenizer, TokenizerSource};
use crate::Result;

/// Bytes of every token of a model, and the parsers of grammars over them.
pub struct Vocabulary {
    environment: TokEnv,
    covering: Covering,
    /// Built for the first grammar: it sorts the whole vocabulary, and many models never need it.
    parsers: OnceLock<Option<ParserFactory>>,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Vocabulary").field("size", &self.size()).finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// Reads the table from `tokenizer.json` in `folder`, as [`Vocabulary::new`] makes it.
    pub fn read(folder: &Path, tokenizer: &Tokenizer, size: usize, end_tokens: &[u32]) -> Result<Option<Self>> {
        Ok(Self::new(&TokenizerSource::read(folder)?, tokenizer, size, end_tokens))
    }

    /// Makes the table of the `tokenizer` of `source`, widened to the `size` of the model's embedding. `None`, with a
    /// warning, if the tokenizer's tokens have no bytes of their own (neither byte-level nor byte-fallback).
    pub fn new(source: &TokenizerSource, tokenizer: &Tokenizer, size: usize, end_tokens: &[u32]) -> Option<Self> {
        let json = source.json.as_slice();
        let highest = tokenizer.vocabulary_size();
        let ends: Vec<u32> = end_tokens.iter().copied().filter(|id| (*id as usize) < highest).collect();
        let visible: Vec<bool> = (0..highest).map(|id| tokenizer.is_visible(id as u32)).collect();
        // The bridge asserts what it expects of a tokenizer; one that differs must not keep the model from being
        // served.
        let built = catch_unwind(|| {
            let mut bytes = ByteTokenizer::from_json_bytes(json)?;
            if !ends.is_empty() {
                bytes.set_eos_tokens(&ends);
            }
            // A schema may hold the name of a special token as text, which must not become the token.
            bytes.hf_tokenizer.set_encode_special_tokens(true);
            let mut environment = ByteTokenizerEnv::new(bytes, Some(size))?;
            environment.tok_trie = with_visible_tokens_as_text(&environment.tok_trie, &visible);
            Ok::<TokEnv, anyhow::Error>(Arc::new(environment))
        });
        let reason = match built {
            Ok(Ok(environment)) => {
                let covering = Covering::read(json, environment.tok_trie());
                return Some(Self { environment, covering, parsers: OnceLock::new() });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its tokens are numbered in an unexpected way".into(),
        };
        tracing::warn!(file = source.origin, reason, "no structured output with this tokenizer");
        None
    }

    /// Returns the number of ids that have an entry.
    pub fn size(&self) -> usize {
        self.environment.tok_trie().vocab_size()
    }

    /// Returns the bytes of token `id`, for a special token those of its name; empty outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        if id as usize >= self.size() {
            return &[];
        }
        let bytes = self.environment.tok_trie().token(id);
        bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes)
    }

    /// Returns a number of tokens that the tokenizer makes of `text` at least, special ones around it not counted,
    /// without tokenizing it; what is above `limit` is not counted. 0 where nothing can be said, since the tokenizer
    /// may leave out parts of a text.
    pub fn fewest_tokens(&self, text: &str, limit: usize) -> usize {
        fewest_tokens(self.environment.tok_trie(), self.covering, text.as_bytes(), limit)
    }

    /// Returns the bytes of the longest token.
    pub fn longest_token(&self) -> usize {
        self.environment.tok_trie().max_token_len()
    }

    /// Returns the factory of parsers for this vocabulary; `None` if it cannot be built. The first call is slow with a
    /// large vocabulary: call it off the async threads.
    pub fn parsers(&self) -> Option<&ParserFactory> {
        let build = || {
            let mut factory = ParserFactory::new_simple(&self.environment).ok()?;
            factory.quiet();
            Some(factory)
        };
        self.parsers.get_or_init(build).as_ref()
    }
}

/// Makes the visible ones of the added tokens ordinary text. The bridge takes every added token of the form `<…>` for a
/// control token, which no text may hold, but `<tool_call>` or `<think>` of many models are text like any other.
fn with_visible_tokens_as_text(trie: &TokTrie, visible: &[bool]) -> TokTrie {
    let mut words = trie.all_tokens();
    for (word, _) in words.iter_mut().zip(visible).filter(|(_, visible)| **visible) {
        if word.len() > 1 && word[0] == TokTrie::SPECIAL_TOKEN_MARKER {
            word.remove(0);
        }
    }
    TokTrie::from(trie.info(), &words).with_eos_tokens(trie.eos_tokens())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> (Tokenizer, Vocabulary) {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"));
        let tokenizer = Tokenizer::read(folder).expect("a tokenizer");
        let size = tokenizer.vocabulary_size() + 5;
        let ends = [tokenizer.end_token().expect("an end")];
        let vocabulary = Vocabulary::read(folder, &tokenizer, size, &ends).expect("readable").expect("byte-level");
        (tokenizer, vocabulary)
    }

    #[test]
    fn the_bytes_of_a_texts_tokens_are_the_text() {
        let (tokenizer, vocabulary) = demo();
        let text = "Where is the café? – 東京 🙂\n";
        let ids = tokenizer.encode(text, false).expect("tokens");
        let bytes: Vec<u8> = ids.iter().flat_map(|id| vocabulary.token_bytes(*id).to_vec()).collect();
        assert_eq!(String::from_utf8(bytes).as_deref(), Ok(text));
    }

    #[test]
    fn no_text_has_fewer_tokens_than_is_told() {
        let (tokenizer, vocabulary) = demo();
        let texts = [
            "1".repeat(500),
            "a".repeat(500),
            "\n".repeat(300) + "  \t ",
            "Where is the café? – 東京 🙂, said the <|im_start|>user<|im_end|> of it. ".repeat(9),
            "fine-tuning the the river town ".repeat(20),
        ];
        for text in texts {
            let (fewest, tokens) =
                (vocabulary.fewest_tokens(&text, 10_000), tokenizer.encode(&text, false).expect("tokens").len());
            assert!(fewest <= tokens && fewest * 8 > tokens, "{fewest} of {tokens}: {text:.40}");
        }
        assert_eq!(vocabulary.fewest_tokens(&"1".repeat(1 << 20), 100), 101);
    }

    #[test]
    fn special_tokens_have_the_bytes_of_their_names_and_unknown_ids_none() {
        let (tokenizer, vocabulary) = demo();
        let end = tokenizer.end_token().expect("an end");
        let name = tokenizer.decode(&[end], false).expect("a name");
        assert_eq!(vocabulary.token_bytes(end), name.as_bytes());
        assert_eq!(vocabulary.environment.tok_trie().eos_token(), end);
        assert!(vocabulary.token_bytes(u32::MAX).is_empty());
    }
}
