//! Tokenizers of byte pairs whose merges are in the file: GPT-2's kind, over bytes that are written as characters, and
//! Gemma 4's, over characters.

use serde_json::{Value, json};

use super::document::{Document, Model, Pairs, Parts, around_texts};
use super::families::{Alphabet, Family};
use super::roles::role;
use super::tokens::{BLANK, Tokens};
use crate::Result;
use crate::gguf::{Architecture, Metadata};

/// Reads the keys of a tokenizer of this family.
pub(super) fn document(metadata: &Metadata, family: Family) -> Result<Document> {
    let tokens = Tokens::read(metadata)?;
    let refused = [
        ("tokenizer.ggml.add_sep_token", "marks between texts"),
        ("tokenizer.ggml.add_space_prefix", "blanks before texts"),
    ];
    // Those between texts do not matter where each text stands alone.
    let is_encoder = Architecture::of(metadata).is_ok_and(Architecture::is_encoder);
    for (key, what) in refused {
        if is_encoder && key == "tokenizer.ggml.add_sep_token" {
            continue;
        }
        if metadata.flag(key)? == Some(true) {
            return Err(metadata.fault(&format!("{what} ({key}) are not put into texts of this kind of tokenizer")));
        }
    }
    let mut begin = role(metadata, &tokens, "bos_token")?;
    let mut end = role(metadata, &tokens, "eos_token")?;
    let mut mask = None;
    if is_encoder {
        begin = begin.or(role(metadata, &tokens, "cls_token")?);
        end = end.or(role(metadata, &tokens, "sep_token")?);
        // As RoBERTa and ModernBERT have it.
        mask = role(metadata, &tokens, "mask_token")?.map(|(id, _)| id);
    }
    let begins = family.always_begins || metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(family.begins);
    let ends = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let bytes = family.alphabet == Alphabet::Bytes;
    let unknown = if bytes { None } else { role(metadata, &tokens, "unk_token")? };
    let parts = Parts {
        normalizer: family.normalizer(),
        pre_tokenizer: Some(family.pre_tokenizer()),
        post_processor: around_texts(begin.filter(|_| begins), end.filter(|_| ends)),
        decoder: if bytes { byte_decoder() } else { character_decoder(false) },
        model: Model::Pairs(Pairs {
            merges: merges(metadata)?,
            ignore_merges: family.ignore_merges,
            byte_fallback: !bytes,
            unk_token: unknown.map(|(_, text)| text.to_owned()),
        }),
        swallows_before: mask,
        swallows_blanks: |_| false,
    };
    Ok(Document::new(&tokens, parts))
}

/// Reads the merges. The halves are parted by a blank, and a half may begin with one.
fn merges(metadata: &Metadata) -> Result<Vec<(String, String)>> {
    let merges = metadata.require("tokenizer.ggml.merges", metadata.texts("tokenizer.ggml.merges")?)?;
    let pair = |merge: &String| {
        let first = merge.chars().next()?.len_utf8();
        let (left, right) = merge.split_at_checked(first + merge[first..].find(' ')?)?;
        Some((left.to_owned(), right[1..].to_owned()))
    };
    let split = merges.iter().map(|merge| {
        pair(merge).ok_or_else(|| metadata.fault(&format!("`{merge}` of tokenizer.ggml.merges is no pair of tokens")))
    });
    split.collect()
}

/// Returns the part that makes text of tokens over bytes.
fn byte_decoder() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true})
}

/// Returns the part that makes text of tokens over characters; `strips` takes away the blank that was put before it.
pub(super) fn character_decoder(strips: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": BLANK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strips {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}
