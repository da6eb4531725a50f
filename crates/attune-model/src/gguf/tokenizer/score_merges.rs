//! Tokenizers of SentencePiece's byte pairs. The file has no merges but a score for each token: the pair that becomes
//! the token with the highest score is merged first. Every split of a token into two tokens is such a merge.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::REMEDY;
use super::document::{Document, Model, Pairs, Parts, around_texts};
use super::pair_merges::character_decoder;
use super::roles::role;
use super::tokens::{BLANK, Kind, Token, Tokens};
use crate::Result;
use crate::gguf::Metadata;

/// A pair of tokens that become one.
struct Merge<'a> {
    score: f64,
    left: &'a str,
    right: &'a str,
    /// Lengths of the halves in characters.
    lengths: (usize, usize),
}

/// Reads the keys of such a tokenizer.
pub(super) fn document(metadata: &Metadata) -> Result<Document> {
    if metadata.flag("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
        let message = format!("blanks are not removed from texts (tokenizer.ggml.remove_extra_whitespaces): {REMEDY}");
        return Err(metadata.fault(&message));
    }
    if metadata.flag("tokenizer.ggml.add_sep_token")? == Some(true)
        || metadata.has("tokenizer.ggml.precompiled_charsmap")
    {
        let message = format!(
            "marks between texts (tokenizer.ggml.add_sep_token) and tables of replacements \
             (tokenizer.ggml.precompiled_charsmap) are not applied: {REMEDY}"
        );
        return Err(metadata.fault(&message));
    }
    let tokens = Tokens::read(metadata)?;
    let scores = metadata.require("tokenizer.ggml.scores", metadata.numbers("tokenizer.ggml.scores")?)?;
    if scores.len() != tokens.len() {
        let message = format!("it has {} tokens, but scores of {} (tokenizer.ggml.scores)", tokens.len(), scores.len());
        return Err(metadata.fault(&message));
    }
    let begins = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(true);
    let ends = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let prefixed = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let begin = role(metadata, &tokens, "bos_token")?.filter(|_| begins);
    let end = role(metadata, &tokens, "eos_token")?.filter(|_| ends);
    let is_phi = metadata.text("general.architecture")? == Some("phi3");
    let parts = Parts {
        normalizer: Some(normalizer(prefixed)),
        pre_tokenizer: None,
        post_processor: around_texts(begin, end),
        decoder: character_decoder(prefixed),
        model: Model::Pairs(Pairs {
            merges: merges(&tokens, &scores),
            ignore_merges: false,
            byte_fallback: true,
            unk_token: role(metadata, &tokens, "unk_token")?.map(|(_, text)| text.to_owned()),
        }),
        swallows_before: None,
        swallows_blanks: if is_phi { phi_swallows_blanks } else { |_| false },
    };
    Ok(Document::new(&tokens, parts))
}

/// Returns the part that marks blanks. The blank before a text also stands behind each special token in it.
fn normalizer(prefixed: bool) -> Value {
    let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK});
    if !prefixed {
        return blanks;
    }
    json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, blanks]})
}

/// Tells the marks of Phi-3 that swallow the blanks behind them. No key has it.
fn phi_swallows_blanks(token: &Token<'_>) -> bool {
    !["<unk>", "<s>", "<|endoftext|>"].contains(&token.text.as_ref())
}

/// Makes the merges, the most urgent first.
fn merges(tokens: &Tokens<'_>, scores: &[f64]) -> Vec<(String, String)> {
    let ids: HashMap<&str, u32> = tokens.iter().map(|(id, token)| (token.text.as_ref(), id)).collect();
    let is_half = |text: &str| ids.contains_key(text);
    let mut merges = Vec::new();
    for (id, token) in tokens.iter() {
        let Some(score) = score(token, scores.get(id as usize)) else { continue };
        let text = token.text.as_ref();
        let count = text.chars().count();
        let places = text.char_indices().enumerate().skip(1);
        merges.extend(places.filter_map(|(length, (place, _))| {
            let (left, right) = text.split_at(place);
            let lengths = (length, count - length);
            (is_half(left) && is_half(right)).then_some(Merge { score, left, right, lengths })
        }));
    }
    // The sort keeps the order of the ids among equals.
    merges.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| b.lengths.cmp(&a.lengths)));
    merges.iter().map(|merge| (merge.left.to_owned(), merge.right.to_owned())).collect()
}

/// Returns how urgent the merges into a token are; `None` if no merge makes it. SentencePiece joins runs of blanks
/// before all else, and converters replace their scores.
fn score(token: &Token<'_>, score: Option<&f64>) -> Option<f64> {
    match token.kind {
        Kind::Normal | Kind::Unused => score.copied(),
        Kind::UserDefined if token.text.chars().all(|character| BLANK.contains(character)) => Some(f64::INFINITY),
        Kind::UserDefined | Kind::Unknown | Kind::Control | Kind::Byte => None,
    }
}
