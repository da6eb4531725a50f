//! The list of tokens of a GGUF file, with the kind of each.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::Result;
use crate::gguf::Metadata;

/// The mark that stands for a blank in the tokens of SentencePiece.
pub(super) const BLANK: &str = "▁";

/// What pieces inside of words begin with.
pub(super) const INSIDE: &str = "##";

/// Kind of a token, in `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text, made by merges.
    Normal,
    /// The token for what has no other.
    Unknown,
    /// A mark of the model's own, not shown in answers.
    Control,
    /// A text that is always a token of its own.
    UserDefined,
    /// Has a number and is never made.
    Unused,
    /// One byte, spelled `<0x41>`.
    Byte,
}

/// A token of the file.
#[derive(Debug)]
pub(super) struct Token<'a> {
    /// In the spelling of the vocabulary.
    pub(super) text: Cow<'a, str>,
    pub(super) kind: Kind,
}

/// The tokens of a file by id; `None` at the ids that only fill the embedding up.
#[derive(Debug)]
pub(super) struct Tokens<'a>(Vec<Option<Token<'a>>>);

impl<'a> Tokens<'a> {
    /// Reads the tokens and their kinds. Refuses two of one spelling, which no text could tell apart.
    pub(super) fn read(metadata: &'a Metadata) -> Result<Self> {
        let texts = metadata.require("tokenizer.ggml.tokens", metadata.texts("tokenizer.ggml.tokens")?)?;
        let kinds = metadata.require("tokenizer.ggml.token_type", metadata.sizes("tokenizer.ggml.token_type")?)?;
        if kinds.len() != texts.len() {
            let message =
                format!("it has {} tokens, but kinds of {} (tokenizer.ggml.token_type)", texts.len(), kinds.len());
            return Err(metadata.fault(&message));
        }
        let model = metadata.text("tokenizer.ggml.model")?;
        let (is_sentence_piece, is_word_pieces) = (model == Some("llama"), model == Some("bert"));
        let mut ids = HashMap::with_capacity(texts.len());
        let mut tokens = Vec::with_capacity(texts.len());
        for (id, (text, number)) in texts.iter().zip(kinds).enumerate() {
            let kind = Kind::from_number(number)
                .ok_or_else(|| metadata.fault(&format!("token {id}, `{text}`, is of the unknown kind {number}")))?;
            let spelled = match text.as_str() {
                text if is_sentence_piece => spelling(text, kind),
                text if is_word_pieces => piece(text, kind),
                text => Cow::Borrowed(text),
            };
            if text.is_empty() || (kind == Kind::Unused && spelled == format!("[PAD{id}]")) {
                tokens.push(None);
                continue;
            }
            let text = spelled;
            if let Some(other) = ids.insert(text.clone(), id) {
                return Err(metadata.fault(&format!("the tokens {other} and {id} are both `{text}`")));
            }
            tokens.push(Some(Token { text, kind }));
        }
        Ok(Self(tokens))
    }

    /// Returns the number of ids.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the tokens with their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Token<'a>)> {
        self.0.iter().zip(0..).filter_map(|(token, id)| Some((id, token.as_ref()?)))
    }

    /// Returns the id behind the last token that must be in the vocabulary: from there on all are added ones, without
    /// gaps.
    pub(super) fn end_of_vocabulary(&self) -> u32 {
        let known = self.0.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let has_gaps = self.0[..known].iter().any(Option::is_none);
        let is_added = |token: &Option<Token<'_>>| token.as_ref().is_some_and(|token| token.kind.is_added());
        let end = if has_gaps { None } else { self.0[..known].iter().rposition(|token| !is_added(token)) };
        end.map_or(known, |last| last + 1) as u32
    }

    /// Returns the token of an id; `None` if there is none.
    pub(super) fn get(&self, id: u32) -> Option<&Token<'a>> {
        self.0.get(id as usize)?.as_ref()
    }
}

/// Returns the spelling that `tokenizer.json` has: files hold runs of blanks, which SentencePiece defines, as blanks.
fn spelling(text: &str, kind: Kind) -> Cow<'_, str> {
    let is_run = text.len() > 1 && text.bytes().all(|byte| byte == b' ');
    if kind == Kind::UserDefined && is_run { BLANK.repeat(text.len()).into() } else { text.into() }
}

/// Returns the spelling that `tokenizer.json` has for pieces of words: files mark those that begin a word, and there those
/// are marked that do not.
fn piece(text: &str, kind: Kind) -> Cow<'_, str> {
    match text.strip_prefix(BLANK).filter(|rest| !rest.is_empty()) {
        Some(begin) => begin.into(),
        None if matches!(kind, Kind::Control | Kind::Unknown) => text.into(),
        None => format!("{INSIDE}{text}").into(),
    }
}

impl Kind {
    fn from_number(number: usize) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Returns true for tokens that are found in a text before it is cut into words.
    pub(super) fn is_added(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
    }

    /// Returns true for tokens that are not shown in answers.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control)
    }
}
