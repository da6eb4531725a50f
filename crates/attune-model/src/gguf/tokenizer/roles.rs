//! Which tokens begin and end texts and answers, and which ones templates may name.

use std::collections::BTreeMap;

use super::tokens::{Kind, Token, Tokens};
use crate::Result;
use crate::gguf::Metadata;

/// Keys of the tokens with a role, and the roles' names in `tokenizer_config.json`. One key is misspelled.
const ROLES: [(&str, &str); 7] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("sep_token", "tokenizer.ggml.seperator_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    ("cls_token", "tokenizer.ggml.cls_token_id"),
    ("mask_token", "tokenizer.ggml.mask_token_id"),
];
/// What files of the kind `llama` mean where they do not say.
const SENTENCE_PIECE_IDS: [(&str, u32); 3] = [("unk_token", 0), ("bos_token", 1), ("eos_token", 2)];
/// Keys of the tokens that end an answer, the usual one first.
const ENDS: [&str; 6] = [
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
];
/// Marks that end an answer in the models that have them. A file names one end, where models have several.
const END_MARKS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Returns the key of the token with a role, such as `bos_token`; `None` for a role that files do not have.
pub(super) fn key_of(role: &str) -> Option<&'static str> {
    ROLES.iter().find(|(name, _)| *name == role).map(|(_, key)| *key)
}

/// Returns true for tokens that may end an answer: the special ones, and those that are written like one though a file
/// takes them for text. `</s>` is a tag of HTML in the models that have it among their text.
fn is_mark(token: &Token<'_>) -> bool {
    token.kind.is_special() || (token.kind == Kind::UserDefined && token.text.starts_with("<|"))
}

/// Returns the token that has a role, such as `bos_token`; `None` if there is none.
pub(super) fn role<'a>(metadata: &Metadata, tokens: &'a Tokens<'_>, role: &str) -> Result<Option<(u32, &'a str)>> {
    let key = key_of(role);
    let mut id = key.map(|key| metadata.token(key)).transpose()?.flatten();
    if id.is_none() && metadata.text("tokenizer.ggml.model")? == Some("llama") {
        id = SENTENCE_PIECE_IDS.iter().find(|(name, _)| *name == role).map(|(_, id)| *id);
    }
    // A number beyond the tokens stands for none: files have it where the original has no such token.
    Ok(id.and_then(|id| Some((id, tokens.get(id)?.text.as_ref()))))
}

/// Returns the texts of the special tokens by their roles in templates.
pub(crate) fn special_tokens(metadata: &Metadata) -> Result<BTreeMap<&'static str, String>> {
    let tokens = Tokens::read(metadata)?;
    let mut named = BTreeMap::new();
    for (name, _) in ROLES {
        named.extend(role(metadata, &tokens, name)?.map(|(_, text)| (name, text.to_owned())));
    }
    Ok(named)
}

/// Returns the tokens that end an answer, the usual one first: those that the file names, and the well-known marks that
/// it has.
pub fn end_tokens(metadata: &Metadata) -> Result<Vec<u32>> {
    let tokens = Tokens::read(metadata)?;
    let mut ends: Vec<u32> = role(metadata, &tokens, "eos_token")?.into_iter().map(|(id, _)| id).collect();
    for key in ENDS {
        ends.extend(metadata.token(key)?.filter(|id| tokens.get(*id).is_some()));
    }
    let marks: Vec<(u32, &Token<'_>)> = tokens.iter().filter(|(_, token)| is_mark(token)).collect();
    let find = |text: &str| marks.iter().find(|(_, token)| token.text == text).map(|(id, _)| *id);
    ends.extend(END_MARKS.iter().filter_map(|mark| find(mark)));
    let has = |names: &[&str]| names.iter().any(|name| find(name).is_some());
    // In answers of several messages, each of these ends a message and not the answer.
    if (has(&["<|return|>"]) && has(&["<|call|>", "<|calls|>"])) || (has(&["<|flush|>"]) && has(&["<|calls|>"])) {
        ends.retain(|id| Some(*id) != find("<|end|>"));
    }
    if has(&["<|tool_response>"]) {
        ends.retain(|id| Some(*id) != find("</s>"));
    }
    let mut seen = std::collections::HashSet::new();
    ends.retain(|id| seen.insert(*id));
    Ok(ends)
}
