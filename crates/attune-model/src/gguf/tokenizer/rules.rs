//! What a `tokenizer.json` does to texts, apart from how it is spelled: two of the same rules make the same tokens and
//! the same texts. By it the writer of files knows that a file says all.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::tokens::BLANK;

/// The rules of a tokenizer.
#[derive(Debug, PartialEq)]
pub(super) struct Rules {
    pub(super) normalizer: Vec<Value>,
    pub(super) pre_tokenizer: Vec<Value>,
    /// Ids that are put before and behind a text.
    pub(super) around: [Vec<u32>; 2],
    pub(super) decoder: Vec<Value>,
    /// Tokens by id.
    pub(super) vocabulary: BTreeMap<u32, String>,
    /// Tokens that are found in a text before it is cut.
    pub(super) added: BTreeMap<u32, Added>,
    pub(super) merges: Vec<(String, String)>,
    pub(super) ignore_merges: bool,
    pub(super) byte_fallback: bool,
    /// What stands for a character without a token, and whether several become one; `None` if every text has tokens.
    pub(super) unknown: Option<(String, bool)>,
}

/// How an added token is found and shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "flags of the file")]
pub(super) struct Added {
    pub(super) special: bool,
    left_strip: bool,
    right_strip: bool,
    single_word: bool,
    /// Looked for in the text as the normalizer makes it.
    normalized: bool,
}

impl Rules {
    /// Reads the rules of a `tokenizer.json`; an error names the part that no GGUF file has.
    pub(super) fn read(document: &Value) -> Result<Self, String> {
        let model = &document["model"];
        if model["type"].as_str().is_some_and(|kind| kind != "BPE") || !model["merges"].is_array() {
            return Err(format!("its model is {}, not BPE", model["type"]));
        }
        for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model[affix].as_str().is_some_and(|affix| !affix.is_empty()) {
                return Err(format!("its model has a `{affix}`"));
            }
        }
        if model["dropout"].as_f64().is_some_and(|dropout| dropout > 0.0) {
            return Err("its model has a `dropout`".into());
        }
        let normalizer = steps(&document["normalizer"], "normalizers");
        let marks_blanks = normalizer.iter().any(|step| step["content"] == BLANK);
        let mut vocabulary = BTreeMap::new();
        for (text, id) in model["vocab"].as_object().into_iter().flatten() {
            vocabulary.insert(id_of(id)?, text.clone());
        }
        let mut added = BTreeMap::new();
        for token in document["added_tokens"].as_array().into_iter().flatten() {
            let (id, flag) = (id_of(&token["id"])?, |name: &str| token[name] == true);
            vocabulary.insert(id, token["content"].as_str().unwrap_or_default().to_owned());
            let flags = Added {
                special: flag("special"),
                left_strip: flag("lstrip"),
                right_strip: flag("rstrip"),
                single_word: flag("single_word"),
                normalized: flag("normalized") && !normalizer.is_empty(),
            };
            added.insert(id, flags);
        }
        let byte_fallback = model["byte_fallback"] == true;
        let has_all_bytes = !byte_fallback && byte_alphabet().all(|byte| model["vocab"][byte.to_string()].is_u64());
        let unknown = model["unk_token"].as_str().filter(|_| !has_all_bytes);
        Ok(Self {
            pre_tokenizer: pre_tokenizer(&document["pre_tokenizer"], marks_blanks),
            around: around(&document["post_processor"], &vocabulary)?,
            decoder: decoder(&document["decoder"]),
            merges: merges(&model["merges"])?,
            ignore_merges: model["ignore_merges"] == true,
            unknown: unknown.map(|text| (text.to_owned(), model["fuse_unk"] == true)),
            normalizer,
            vocabulary,
            added,
            byte_fallback,
        })
    }

    /// Returns what `file` does otherwise; `None` if nothing.
    pub(super) fn difference(&self, file: &Self) -> Option<String> {
        let texts = |part: &[Value]| part.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
        let parts = [
            ("normalizer", &self.normalizer, &file.normalizer),
            ("pre_tokenizer", &self.pre_tokenizer, &file.pre_tokenizer),
            ("decoder", &self.decoder, &file.decoder),
        ];
        for (name, own, other) in parts {
            if own != other {
                return Some(format!("no kind of tokenizer that files can name has its {name} [{}]", texts(own)));
            }
        }
        if self.vocabulary != file.vocabulary {
            let differs = |(id, text): &(&u32, &String)| file.vocabulary.get(id) != Some(text);
            let token = self.vocabulary.iter().find(differs);
            return Some(match token {
                Some((id, text)) => format!("the token {id}, `{text}`, would be another"),
                None => "it would have tokens that the original has not".into(),
            });
        }
        if let Some((id, _)) = self.added.iter().find(|(id, flags)| file.added.get(id) != Some(flags)) {
            let text = &self.vocabulary[id];
            return Some(format!(
                "the added token {id}, `{text}`, is stripped, looked for or shown in a way no key says"
            ));
        }
        if self.added.len() != file.added.len() {
            return Some("tokens would be added ones that are not".into());
        }
        [
            ("its post_processor puts other tokens around texts than begin and end", self.around == file.around),
            ("its merges do not follow from the order of its tokens", self.merges == file.merges),
            ("`ignore_merges` is another", self.ignore_merges == file.ignore_merges),
            ("`byte_fallback` is another", self.byte_fallback == file.byte_fallback),
            ("`unk_token` or `fuse_unk` is another", self.unknown == file.unknown),
        ]
        .into_iter()
        .find(|(_, same)| !same)
        .map(|(what, _)| what.to_owned())
    }
}

fn id_of(value: &Value) -> Result<u32, String> {
    value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| format!("a token has the id {value}"))
}

/// Returns the steps of a part, which may be a sequence of them under `name`.
fn steps(part: &Value, name: &str) -> Vec<Value> {
    match part {
        Value::Null => Vec::new(),
        _ if part["type"] == "Sequence" => {
            part[name].as_array().into_iter().flatten().flat_map(|step| steps(step, name)).collect()
        }
        _ => vec![part.clone()],
    }
}

/// Returns the steps of cutting a text, without what changes no token. Where blanks are marks already, no blank is left
/// to cut at.
pub(super) fn pre_tokenizer(part: &Value, marks_blanks: bool) -> Vec<Value> {
    let cuts_blanks = |step: &Value| step["type"] == "Split" && step["pattern"]["String"] == " ";
    let steps = steps(part, "pretokenizers").into_iter().filter(|step| !(marks_blanks && cuts_blanks(step)));
    let plain = |step: Value| match step["type"].as_str() {
        Some("ByteLevel") => json!({
            "type": "ByteLevel",
            "add_prefix_space": step["add_prefix_space"] != false,
            "use_regex": step["use_regex"] != false,
        }),
        Some("Split") => json!({
            "type": "Split", "pattern": step["pattern"], "behavior": step["behavior"], "invert": step["invert"] == true,
        }),
        _ => step,
    };
    steps.map(plain).collect()
}

fn decoder(part: &Value) -> Vec<Value> {
    let plain = |step: Value| if step["type"] == "ByteLevel" { json!({"type": "ByteLevel"}) } else { step };
    steps(part, "decoders").into_iter().map(plain).collect()
}

/// Returns the ids before and behind a text.
fn around(part: &Value, vocabulary: &BTreeMap<u32, String>) -> Result<[Vec<u32>; 2], String> {
    let mut around = [Vec::new(), Vec::new()];
    for step in steps(part, "processors") {
        match step["type"].as_str() {
            Some("ByteLevel") => {}
            Some("TemplateProcessing") => {
                let mut behind = false;
                for piece in step["single"].as_array().into_iter().flatten() {
                    let Some(name) = piece["SpecialToken"]["id"].as_str() else {
                        behind = true;
                        continue;
                    };
                    let ids = step["special_tokens"][name]["ids"].as_array();
                    let ids = ids.ok_or_else(|| format!("its post_processor does not say what `{name}` is"))?;
                    for id in ids {
                        around[usize::from(behind)].push(id_of(id)?);
                    }
                }
            }
            other => return Err(format!("its post_processor is a {}", other.unwrap_or("part without a type"))),
        }
    }
    match around.iter().flatten().find(|id| !vocabulary.contains_key(id)) {
        Some(id) => Err(format!("its post_processor adds the token {id}, which it does not have")),
        None => Ok(around),
    }
}

/// Reads the merges, each a pair or, in older files, a text with a blank between the halves.
fn merges(list: &Value) -> Result<Vec<(String, String)>, String> {
    let pair = |merge: &Value| {
        let (left, right) = match merge {
            Value::String(text) => text.split_once(' ')?,
            other => (other[0].as_str()?, other[1].as_str()?),
        };
        Some((left.to_owned(), right.to_owned()))
    };
    let merges = list.as_array().into_iter().flatten();
    merges.map(|merge| pair(merge).ok_or_else(|| format!("its merge {merge} is no pair"))).collect()
}

/// Returns the characters that stand for bytes in GPT-2's table.
fn byte_alphabet() -> impl Iterator<Item = char> {
    let shown = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = (0..=255).filter(move |byte| !shown(byte)).count() as u32;
    (0..=255).filter(move |byte| shown(byte)).chain(256..256 + others).filter_map(char::from_u32)
}
