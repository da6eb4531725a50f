//! Log probabilities as clients read them: parallel arrays in completions, an object for each token in chat. Used by
//! the writers of both.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::engine::logprobs::TokenLogprobs;
use crate::model::BaseModel;

/// Log probabilities of a choice's tokens; all arrays have one entry for each token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    /// Each token as text; as `bytes:\xNN…` where its bytes are not whole characters.
    pub tokens: Vec<String>,
    /// Natural logarithms; null for a prompt's first token, which nothing precedes.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens at each place, and the one that stands there.
    pub top_logprobs: Vec<Option<TopLogprobs>>,
    /// Characters before each token, from the start of the prompt.
    pub text_offset: Vec<usize>,
}

/// Tokens with their log probabilities, the most probable first.
#[derive(Debug, Clone, PartialEq, ToSchema)]
#[schema(value_type = std::collections::HashMap<String, f32>)]
pub(crate) struct TopLogprobs(pub Vec<(String, f32)>);

/// Log probabilities of an answer in a chat.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    /// One entry for each token drawn.
    pub content: Vec<ChatTokenLogprob>,
    /// Always null.
    pub refusal: Option<()>,
}

/// A token of an answer in a chat.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ChatTokenLogprob {
    /// The token as text; as `bytes:\xNN…` where its bytes are not whole characters.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// What the token adds to the text; null for special tokens, which add nothing.
    pub bytes: Option<Vec<u8>>,
    /// The most probable tokens at this place, the most probable first.
    pub top_logprobs: Vec<ChatTopLogprob>,
}

/// A token that could have stood at a place.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ChatTopLogprob {
    /// As in [`ChatTokenLogprob`].
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// As in [`ChatTokenLogprob`].
    pub bytes: Option<Vec<u8>>,
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

/// Returns the mean log probability of an answer's tokens, by which `best_of` ranks. An answer without tokens comes
/// last.
pub(crate) fn mean(tokens: &[TokenLogprobs]) -> f64 {
    let sum: f64 = tokens.iter().map(|token| f64::from(token.logprob)).sum();
    if tokens.is_empty() { f64::NEG_INFINITY } else { sum / tokens.len() as f64 }
}

/// Writes tokens of a model as clients read them.
#[derive(Debug, Clone)]
pub(crate) struct TokenTexts {
    model: Arc<BaseModel>,
}

impl TokenTexts {
    /// Creates a writer for the tokens of `model`.
    pub(crate) fn new(model: Arc<BaseModel>) -> Self {
        Self { model }
    }

    /// Appends a prompt's first token.
    pub(crate) fn push_first(&self, logprobs: &mut CompletionLogprobs, id: u32, offset: usize) {
        logprobs.tokens.push(name(&self.bytes(id), id));
        logprobs.token_logprobs.push(None);
        logprobs.top_logprobs.push(None);
        logprobs.text_offset.push(offset);
    }

    /// Appends a token that begins after `offset` characters.
    pub(crate) fn push(&self, logprobs: &mut CompletionLogprobs, token: &TokenLogprobs, offset: usize) {
        let (name, top) = keys(token, |id| name(&self.bytes(id), id));
        logprobs.tokens.push(name);
        logprobs.token_logprobs.push(Some(token.logprob));
        logprobs.top_logprobs.push(Some(TopLogprobs(top)));
        logprobs.text_offset.push(offset);
    }

    /// Returns the log probabilities of an answer in a chat.
    pub(crate) fn chat(&self, tokens: &[TokenLogprobs]) -> ChatLogprobs {
        let content = tokens.iter().map(|token| {
            let top = token.top.iter().map(|&(id, logprob)| {
                let (token, bytes) = self.shown(id);
                ChatTopLogprob { token, logprob, bytes }
            });
            let top_logprobs = top.collect();
            let (shown, bytes) = self.shown(token.id);
            ChatTokenLogprob { token: shown, logprob: token.logprob, bytes, top_logprobs }
        });
        ChatLogprobs { content: content.collect(), refusal: None }
    }

    fn shown(&self, id: u32) -> (String, Option<Vec<u8>>) {
        let bytes = self.bytes(id);
        let name = name(&bytes, id);
        (name, self.model.tokenizer.is_visible(id).then(|| bytes.into_owned()))
    }

    /// Returns the offset at which a token begins after `characters` characters of text, and the number of characters
    /// after it. A special token adds none, unless the text `shows_special` ones.
    pub(crate) fn place(&self, id: u32, characters: usize, shows_special: bool) -> (usize, usize) {
        if !shows_special && !self.model.tokenizer.is_visible(id) {
            return (characters, characters);
        }
        place(&self.bytes(id), characters)
    }

    fn bytes(&self, id: u32) -> Cow<'_, [u8]> {
        match &self.model.vocabulary {
            Some(vocabulary) => vocabulary.token_bytes(id).into(),
            // Ids that only the embedding has, not the tokenizer, have no text.
            None => self.model.tokenizer.decode(&[id], false).unwrap_or_default().into_bytes().into(),
        }
    }
}

/// Returns the token's text and the entries of its `top_logprobs`, its own among them. Two tokens can have one text (a
/// letter and its byte); the second one is then shown by its number, since the keys of an object are unique.
fn keys(token: &TokenLogprobs, name: impl Fn(u32) -> String) -> (String, Vec<(String, f32)>) {
    let own = (token.id, token.logprob);
    let chosen_is_listed = token.top.iter().any(|(id, _)| *id == token.id);
    let mut entries: Vec<(String, f32)> = Vec::with_capacity(token.top.len() + 1);
    let mut own_name = String::new();
    for &(id, logprob) in token.top.iter().chain((!chosen_is_listed).then_some(&own)) {
        let mut name = name(id);
        if entries.iter().any(|(other, _)| *other == name) {
            name = number(id);
        }
        if id == token.id {
            own_name.clone_from(&name);
        }
        entries.push((name, logprob));
    }
    (own_name, entries)
}

/// Returns a text for a token that no other token has.
fn name(bytes: &[u8], id: u32) -> String {
    if bytes.is_empty() {
        return number(id);
    }
    str::from_utf8(bytes).map_or_else(|_| escaped(bytes), str::to_owned)
}

fn number(id: u32) -> String {
    format!("token:{id}")
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().fold("bytes:".to_owned(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "\\x{byte:02x}");
        text
    })
}

/// Does the same as [`TokenTexts::place`] for a token of these bytes. One that continues a character begins where the
/// character does.
fn place(bytes: &[u8], characters: usize) -> (usize, usize) {
    let continues = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
    let begun = bytes.iter().filter(|byte| !continues(byte)).count();
    let inside = bytes.first().is_some_and(continues);
    (characters.saturating_sub(usize::from(inside)), characters + begun)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, logprob: f32, top: &[(u32, f32)]) -> TokenLogprobs {
        TokenLogprobs { id, logprob, top: top.to_vec() }
    }

    #[test]
    fn broken_bytes_and_tokens_without_any_are_named_apart() {
        assert_eq!(name(b" caf\xc3\xa9", 7), " café");
        assert_eq!(name(b"\xe2\x80", 7), "bytes:\\xe2\\x80");
        assert_eq!(name(b"\xe2\x81", 7), "bytes:\\xe2\\x81");
        assert_eq!(name(b"", 7), "token:7");
    }

    #[test]
    fn the_top_holds_the_chosen_token_once_and_keys_stay_unique() {
        let text = |id: u32| if id == 65 { "A".into() } else { ["x", "A", "y"][id as usize].to_owned() };
        let listed = keys(&token(0, -0.5, &[(0, -0.5), (1, -1.5)]), text);
        assert_eq!(listed, ("x".into(), vec![("x".into(), -0.5), ("A".into(), -1.5)]));
        let unlisted = keys(&token(2, -9.0, &[(0, -0.5)]), text);
        assert_eq!(unlisted, ("y".into(), vec![("x".into(), -0.5), ("y".into(), -9.0)]));
        let alone = keys(&token(2, -9.0, &[]), text);
        assert_eq!(alone, ("y".into(), vec![("y".into(), -9.0)]));
        let same_text = keys(&token(65, -2.0, &[(1, -0.5), (0, -1.0)]), text);
        assert_eq!(
            same_text,
            ("token:65".into(), vec![("A".into(), -0.5), ("x".into(), -1.0), ("token:65".into(), -2.0)])
        );
    }

    #[test]
    fn the_top_is_written_as_an_object_in_its_order() {
        let top = TopLogprobs(vec![("b".into(), -0.1), ("a".into(), -2.5)]);
        assert_eq!(serde_json::to_string(&top).expect("JSON"), r#"{"b":-0.1,"a":-2.5}"#);
    }

    #[test]
    fn offsets_count_characters_and_a_piece_of_one_stands_where_it_begins() {
        let mut characters = 3;
        let mut offsets = Vec::new();
        for bytes in [&b"ab"[..], b"\xf0\x9f", b"\x99", b"\x82c", "é".as_bytes(), b""] {
            let (offset, after) = place(bytes, characters);
            offsets.push(offset);
            characters = after;
        }
        // "ab🙂cé" after three characters.
        assert_eq!((offsets, characters), (vec![3, 5, 5, 5, 7, 8], 8));
    }

    #[test]
    fn the_mean_is_per_token() {
        let tokens = [token(0, -1.0, &[]), token(0, -3.0, &[])];
        assert!((mean(&tokens) + 2.0).abs() < 1e-9);
        assert!(mean(&tokens) < mean(&tokens[..1]), "a longer answer is not worse for its length");
        assert!(mean(&[]) < mean(&tokens));
    }
}
