//! The bytes of every token, and the trie over them that grammars walk.
//!
//! Log probabilities show a token alone, where its bytes need not be whole characters (`api`); a grammar decides byte
//! by byte which tokens may come next (`engine`). Both read this table, loaded once per model. [`covering`] tells by it
//! how few tokens a text can have.

mod bytes;
mod covering;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use llguidance::ParserFactory;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie};

use self::bytes::{Environment, Spelling};
use self::covering::{Covering, fewest_tokens};
use super::tokenizer::Tokenizer;

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
    /// Makes the table of the `tokenizer` that was read from the file `origin`, widened to the `size` of the model's
    /// embedding. `None`, with a warning, if the tokenizer's tokens have no bytes of their own (neither byte-level nor
    /// byte-fallback).
    pub fn new(origin: &str, tokenizer: &Tokenizer, size: usize, end_tokens: &[u32]) -> Option<Self> {
        let highest = tokenizer.vocabulary_size();
        let ends: Vec<u32> = end_tokens.iter().copied().filter(|id| (*id as usize) < highest).collect();
        let library = tokenizer.library();
        let Some(spelling) = Spelling::of(library) else {
            let reason = "its decoder knows no bytes";
            tracing::warn!(file = origin, reason, "no structured output with this tokenizer");
            return None;
        };
        // Its tokens are a tokenizer's, which nobody has checked: one that the trie does not expect must not keep the
        // model from being served.
        let built = catch_unwind(AssertUnwindSafe(|| {
            let words: Vec<Vec<u8>> = (0..size).map(|id| word(tokenizer, spelling, id as u32, id < highest)).collect();
            let trie = TokTrie::from(&TokRxInfo::new(size as u32, 0), &words);
            if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) }
        }));
        let Ok(trie) = built else {
            let reason = "its tokens are numbered in an unexpected way";
            tracing::warn!(file = origin, reason, "no structured output with this tokenizer");
            return None;
        };
        let covering = Covering::of(library).with_tokens(&trie);
        let environment: TokEnv = Arc::new(Environment::new(trie, library.clone()));
        Some(Self { environment, covering, parsers: OnceLock::new() })
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

/// Returns the bytes of the token `id`: its text, or its name behind a mark if it is special, which no text may hold. An
/// id that only fills the embedding up, which is not `known`, gets a name of its own.
fn word(tokenizer: &Tokenizer, spelling: Spelling, id: u32, known: bool) -> Vec<u8> {
    let marked = |name: &str| [[TokTrie::SPECIAL_TOKEN_MARKER].as_slice(), name.as_bytes()].concat();
    if !known {
        return marked(&format!("<[{id}]>"));
    }
    match tokenizer.spelling(id) {
        Some(name) if tokenizer.is_special(id) => marked(&name),
        Some(name) => spelling.bytes(&name),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn demo() -> (Tokenizer, Vocabulary) {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"));
        let tokenizer = Tokenizer::read(folder).expect("a tokenizer");
        let size = tokenizer.vocabulary_size() + 5;
        let ends = [tokenizer.end_token().expect("an end")];
        let vocabulary = Vocabulary::new("demo", &tokenizer, size, &ends).expect("byte-level");
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
