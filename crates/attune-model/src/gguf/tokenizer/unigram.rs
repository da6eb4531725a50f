//! Tokenizers of SentencePiece's probable pieces, as XLM-RoBERTa has them: a text becomes the pieces that are most
//! probable together. Files name this kind by T5, and have the table by which characters are replaced first.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::REMEDY;
use super::document::{Document, Model, Parts, around_texts};
use super::roles::role;
use super::tokens::{BLANK, Tokens};
use crate::Result;
use crate::gguf::{Architecture, Metadata};

/// Reads the keys of such a tokenizer, of an encoder.
pub(super) fn document(metadata: &Metadata) -> Result<Document> {
    if !Architecture::of(metadata).is_ok_and(Architecture::is_encoder) {
        let message =
            format!("tokenizers of the kind `t5` (key tokenizer.ggml.model) are read for encoders alone: {REMEDY}");
        return Err(metadata.fault(&message));
    }
    for key in ["tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces"] {
        if metadata.flag(key)? != Some(true) {
            return Err(metadata.fault(&format!("the key `{key}` is not true, which is not supported: {REMEDY}")));
        }
    }
    let tokens = Tokens::read(metadata)?;
    let scores = metadata.require("tokenizer.ggml.scores", metadata.numbers("tokenizer.ggml.scores")?)?;
    if scores.len() != tokens.len() {
        let message = format!("it has {} tokens, but scores of {} (tokenizer.ggml.scores)", tokens.len(), scores.len());
        return Err(metadata.fault(&message));
    }
    let begins = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(true);
    let ends = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(true);
    let begin = role(metadata, &tokens, "bos_token")?.or(role(metadata, &tokens, "cls_token")?).filter(|_| begins);
    let end = role(metadata, &tokens, "eos_token")?.or(role(metadata, &tokens, "sep_token")?).filter(|_| ends);
    if begin.is_none() == begins || end.is_none() == ends {
        return Err(metadata.fault("no key says which tokens begin and end a text"));
    }
    let unknown = role(metadata, &tokens, "unk_token")?;
    let (unknown, _) =
        unknown.ok_or_else(|| metadata.fault("no key says which token stands for unknown characters"))?;
    let spaces = json!({"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "always", "split": true});
    let parts = Parts {
        normalizer: table(metadata)?,
        pre_tokenizer: Some(json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, &spaces]})),
        post_processor: around_texts(begin, end),
        decoder: spaces,
        model: Model::Unigram { unknown, scores },
        swallows_before: role(metadata, &tokens, "mask_token")?.map(|(id, _)| id),
        swallows_blanks: |_| false,
    };
    Ok(Document::new(&tokens, parts))
}

/// Returns the part that replaces characters; `None` if the file has no table for it.
fn table(metadata: &Metadata) -> Result<Option<Value>> {
    const KEY: &str = "tokenizer.ggml.precompiled_charsmap";
    let Some(numbers) = metadata.numbers(KEY)?.filter(|numbers| !numbers.is_empty()) else { return Ok(None) };
    // Some files have the bytes with a sign.
    let byte = |number: f64| if number < 0.0 { number + 256.0 } else { number };
    let bytes: Vec<u8> = numbers.into_iter().map(|number| byte(number) as u8).collect();
    Ok(Some(json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(bytes)})))
}
