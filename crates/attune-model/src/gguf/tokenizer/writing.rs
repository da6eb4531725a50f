//! The keys of a GGUF file for a `tokenizer.json`. They are read again, and refused unless they say the same: a file
//! names a family of rules, and has no place for any others. Called by the export of merged models.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::families;
use super::roles::{end_tokens, key_of};
use super::rules::{Rules, pre_tokenizer};
use super::tokens::BLANK;
use crate::gguf::architecture::Architecture;
use crate::gguf::metadata::{Metadata, Value};
use crate::tokenizer::TokenizerSource;
use crate::{Error, Result};

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;
/// Keys of the tokens that end an answer beside the usual one.
const FURTHER_ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// A tokenizer that is to be written.
struct Writer<'a> {
    source: &'a TokenizerSource,
    rules: Rules,
    /// Rows of the embedding, each of which gets a token.
    rows: usize,
    /// Tokens that end an answer.
    ends: &'a [u32],
    architecture: Architecture,
}

/// Returns the keys of the tokenizer of `source`, for a model of this `architecture`, whose embedding has `rows` and whose
/// answers `ends` end. Refuses what a file cannot say exactly.
pub(crate) fn keys(
    source: &TokenizerSource,
    architecture: Architecture,
    rows: usize,
    ends: &[u32],
) -> Result<Vec<(String, Value)>> {
    let fault = |what: &str| {
        Error::Setup(format!(
            "{}: the tokenizer cannot be written into a GGUF file exactly: {what}. Export the model with --merged safetensors",
            source.origin
        ))
    };
    let document: Json = serde_json::from_slice(&source.json).map_err(|error| fault(&error.to_string()))?;
    let rules = Rules::read(&document).map_err(|what| fault(&what))?;
    let writer = Writer { source, rules, rows, ends, architecture };
    let shared = writer.shared().map_err(|what| fault(&what))?;
    let mut why = None;
    for kind in writer.kinds().map_err(|what| fault(&what))? {
        let keys: Vec<_> = shared.iter().cloned().chain(kind).collect();
        match writer.check(&keys) {
            Ok(()) => return writer.with_ends(keys).map_err(|what| fault(&what)),
            Err(what) => why = why.or(Some(what)),
        }
    }
    Err(fault(&why.unwrap_or_default()))
}

fn key(name: &str, value: impl Into<Value>) -> (String, Value) {
    (format!("tokenizer.ggml.{name}"), value.into())
}

impl Writer<'_> {
    /// Returns the keys that all kinds have.
    fn shared(&self) -> Result<Vec<(String, Value)>, String> {
        let [before, behind] = &self.rules.around;
        let mut keys = vec![key("tokens", self.tokens()?), key("token_type", self.types())];
        let ids: BTreeMap<&str, u32> = self.rules.vocabulary.iter().map(|(id, text)| (text.as_str(), *id)).collect();
        let mut roles: BTreeMap<&str, u32> = BTreeMap::new();
        for (role, text) in &self.source.special_tokens {
            let id = ids.get(text.as_str()).ok_or_else(|| format!("its {role} `{text}` is no token"))?;
            roles.insert(role, *id);
        }
        if let Some(id) = self.rules.unknown.as_ref().and_then(|(text, _)| ids.get(text.as_str())) {
            roles.insert("unk_token", *id);
        }
        if let Some(end) = self.ends.first() {
            roles.entry("eos_token").or_insert(*end);
        }
        // A text begins and ends with these two, or with nothing.
        for (tokens, role) in [(before, "bos_token"), (behind, "eos_token")] {
            if let Some(id) = tokens.first() {
                roles.entry(role).or_insert(*id);
            }
        }
        keys.extend([key("add_bos_token", !before.is_empty()), key("add_eos_token", !behind.is_empty())]);
        if self.rules.byte_fallback {
            // Without the keys, readers take the first tokens for these; a number beyond all stands for none.
            for role in ["bos_token", "eos_token", "unk_token"] {
                roles.entry(role).or_insert(self.rows as u32);
            }
        }
        keys.extend(roles.iter().filter_map(|(role, id)| Some((key_of(role)?.to_owned(), Value::from(*id)))));
        Ok(keys)
    }

    /// Returns the keys of each kind that the tokenizer may be of.
    fn kinds(&self) -> Result<Vec<Vec<(String, Value)>>, String> {
        if self.rules.byte_fallback {
            let prefixed = self.rules.normalizer.iter().any(|step| step["type"] == "Prepend");
            return Ok(vec![vec![
                key("model", "llama"),
                key("pre", "default"),
                key("scores", self.scores()),
                key("add_space_prefix", prefixed),
            ]]);
        }
        let merges: Vec<String> = self.rules.merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        let kind = |pre: &str| vec![key("model", "gpt2"), key("pre", pre), key("merges", merges.clone())];
        let cuts_alike = |name: &&str| {
            let family = families::named(name);
            family.is_some_and(|family| pre_tokenizer(&family.pre_tokenizer(), false) == self.rules.pre_tokenizer)
        };
        let kinds: Vec<_> = families::WRITTEN.into_iter().filter(cuts_alike).map(kind).collect();
        if kinds.is_empty() {
            let steps: Vec<String> = self.rules.pre_tokenizer.iter().map(Json::to_string).collect();
            return Err(format!("no family that files can name has its pre_tokenizer [{}]", steps.join(", ")));
        }
        Ok(kinds)
    }

    fn tokens(&self) -> Result<Vec<String>, String> {
        if let Some((id, text)) = self.rules.vocabulary.iter().find(|(id, _)| **id as usize >= self.rows) {
            return Err(format!("the embedding has {} rows, and none for the token {id}, `{text}`", self.rows));
        }
        let text = |id: u32| match self.rules.vocabulary.get(&id) {
            // Runs of blanks that are always a token are stored as blanks.
            Some(text) if self.is_run_of_blanks(id, text) => text.replace(BLANK, " "),
            Some(text) => text.clone(),
            None => format!("[PAD{id}]"),
        };
        Ok((0..self.rows as u32).map(text).collect())
    }

    fn types(&self) -> Vec<i32> {
        let is_unknown = |text: &str| self.rules.unknown.as_ref().is_some_and(|(unknown, _)| unknown == text);
        let kind = |id: u32| match (self.rules.vocabulary.get(&id), self.rules.added.get(&id)) {
            (None, _) => UNUSED,
            (Some(text), Some(flags)) if flags.special && self.rules.byte_fallback && is_unknown(text) => UNKNOWN,
            (_, Some(flags)) => [USER_DEFINED, CONTROL][usize::from(flags.special)],
            (Some(text), None) if self.rules.byte_fallback && is_byte(text) => BYTE,
            (Some(_), None) => NORMAL,
        };
        (0..self.rows as u32).map(kind).collect()
    }

    /// Returns scores by which tokens are merged in the order of their ids.
    fn scores(&self) -> Vec<f32> {
        let score = |(id, kind): (u32, i32)| match kind {
            NORMAL => -(id as f32),
            USER_DEFINED | UNUSED => -1000.0,
            _ => 0.0,
        };
        (0..).zip(self.types()).map(score).collect()
    }

    fn is_run_of_blanks(&self, id: u32, text: &str) -> bool {
        let is_run = text.chars().count() > 1 && text.chars().all(|character| BLANK.contains(character));
        let user_defined = self.rules.added.get(&id).is_some_and(|flags| !flags.special);
        is_run && user_defined && self.rules.byte_fallback
    }

    /// Reads the keys again; an error says what they do otherwise.
    fn check(&self, keys: &[(String, Value)]) -> Result<(), String> {
        let architecture = ("general.architecture".to_owned(), self.architecture.name().into());
        let metadata = Metadata::new("the file", keys.iter().cloned().chain([architecture]));
        let source = super::source(&metadata).map_err(|error| error.to_string())?;
        let document: Json = serde_json::from_slice(&source.json).map_err(|error| error.to_string())?;
        if let Some(what) = self.rules.difference(&Rules::read(&document)?) {
            return Err(what);
        }
        let roles = &self.source.special_tokens;
        match roles.iter().find(|(role, text)| source.special_tokens.get(*role) != Some(text)) {
            Some((role, text)) => Err(format!("its {role} `{text}` would be another")),
            None => Ok(()),
        }
    }

    /// Adds the tokens that end an answer and that a reader does not know by their texts.
    fn with_ends(&self, mut keys: Vec<(String, Value)>) -> Result<Vec<(String, Value)>, String> {
        let read = |keys: &[(String, Value)]| {
            end_tokens(&Metadata::new("the file", keys.iter().cloned())).map_err(|error| error.to_string())
        };
        for name in FURTHER_ENDS {
            let known = read(&keys)?;
            let missing = self.ends.iter().find(|id| !known.contains(id));
            keys.extend(missing.map(|id| (name.to_owned(), Value::from(*id))));
        }
        let known = read(&keys)?;
        match self.ends.iter().find(|id| !known.contains(id)) {
            Some(id) => Err(format!("there is no key for the token {id} as a further end of answers")),
            None => Ok(keys),
        }
    }
}

/// Returns true for the spelling of one byte, such as `<0x41>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

#[cfg(test)]
#[path = "writing_tests.rs"]
mod tests;
