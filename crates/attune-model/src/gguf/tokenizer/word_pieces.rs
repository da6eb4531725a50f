//! Tokenizers of BERT: words are cut into pieces, the longest ones first. Files mark the pieces that begin a word with
//! the blank of SentencePiece, and leave the rules for texts to the reader: those of the original `tokenizer.json`.

use serde_json::{Value, json};
use tokenizers::normalizers::BertNormalizer;
use tokenizers::{NormalizedString, Normalizer as _};

use super::REMEDY;
use super::document::{Document, Model, Parts};
use super::roles::role;
use super::tokens::{INSIDE, Kind, Tokens};
use crate::Result;
use crate::gguf::Metadata;

/// Reads the keys of such a tokenizer.
pub(super) fn document(metadata: &Metadata) -> Result<Document> {
    let tokens = Tokens::read(metadata)?;
    if let Some((_, token)) = tokens.iter().find(|(_, token)| token.kind == Kind::UserDefined) {
        let message = format!("how the added token `{}` is found in texts is not in the file: {REMEDY}", token.text);
        return Err(metadata.fault(&message));
    }
    for key in ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_sep_token"] {
        if metadata.flag(key)? == Some(false) {
            return Err(metadata.fault(&format!("the key `{key}` is false, which is not supported: {REMEDY}")));
        }
    }
    let named = |roles: [&str; 2], text: &str| -> Result<(u32, String)> {
        let mut found = None;
        for name in roles {
            found = found.or(role(metadata, &tokens, name)?);
        }
        let found = found.or_else(|| tokens.iter().find(|(_, token)| token.text == text).map(|(id, _)| (id, text)));
        let found = found.map(|(id, text)| (id, text.to_owned()));
        found.ok_or_else(|| metadata.fault(&format!("no key says which token is `{text}`")))
    };
    let begin = named(["cls_token", "bos_token"], "[CLS]")?;
    let end = named(["sep_token", "eos_token"], "[SEP]")?;
    let (_, unknown) = named(["unk_token", "unk_token"], "[UNK]")?;
    let parts = Parts {
        normalizer: Some(normalizer(metadata, &tokens)?),
        pre_tokenizer: Some(json!({"type": "BertPreTokenizer"})),
        post_processor: Some(around(&begin, &end)),
        decoder: json!({"type": "WordPiece", "prefix": INSIDE, "cleanup": true}),
        model: Model::WordPieces { unknown },
        swallows_before: None,
        swallows_blanks: |_| false,
    };
    Ok(Document::new(&tokens, parts))
}

/// Returns the part that changes a text before it is cut. Few files say whether letters are made small and accents are
/// taken off; else the words and endings of the vocabulary tell, none of which were learnt of letters that texts lose.
fn normalizer(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Value> {
    // Single letters are there for texts of all kinds; names of marks stand in brackets.
    let is_word = |text: &str| text.trim_start_matches(INSIDE).chars().nth(1).is_some() && !text.starts_with('[');
    let is_kept = |strips: bool, lowers: bool| {
        let normalizer = BertNormalizer::new(false, false, Some(strips), lowers);
        let mut words = tokens.iter().filter(|(_, token)| token.kind == Kind::Normal && is_word(&token.text));
        words.all(|(_, token)| {
            let mut text = NormalizedString::from(token.text.as_ref());
            normalizer.normalize(&mut text).is_ok() && text.get() == token.text
        })
    };
    let lowers = metadata.flag("tokenizer.ggml.normalizer.lowercase")?.unwrap_or_else(|| is_kept(false, true));
    let strips = metadata.flag("tokenizer.ggml.normalizer.strip_accents")?;
    // Tokenizers that keep capitals keep accents, too, unless they are told otherwise.
    let strips = strips.unwrap_or_else(|| lowers && is_kept(true, false));
    Ok(json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": strips,
              "lowercase": lowers}))
}

/// Returns the part that puts the tokens `begin` and `end` around a text, and `end` behind each of a pair.
fn around(begin: &(u32, String), end: &(u32, String)) -> Value {
    let mark = |text: &str, type_id: u8| json!({"SpecialToken": {"id": text, "type_id": type_id}});
    let text = |name: &str, type_id: u8| json!({"Sequence": {"id": name, "type_id": type_id}});
    let first = [mark(&begin.1, 0), text("A", 0), mark(&end.1, 0)];
    let both: Vec<Value> = first.iter().cloned().chain([text("B", 1), mark(&end.1, 1)]).collect();
    let special_tokens: serde_json::Map<String, Value> = [begin, end]
        .into_iter()
        .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": first, "pair": both, "special_tokens": special_tokens})
}
