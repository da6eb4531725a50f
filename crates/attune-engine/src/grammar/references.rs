//! A schema with those that it refers to. Its methods stand where they belong: `flat` and `exclusion`.

use serde_json::{Map, Value};

use super::budget;
use super::keywords::Reader;

type Result<T> = std::result::Result<T, String>;

/// Largest number of schemas that are read to write one; alternatives of alternatives multiply.
const MAX_WORK: usize = 100_000;

/// A schema with the schemas that it refers to.
#[derive(Debug)]
pub(super) struct Schemas<'a> {
    root: &'a Value,
    work: usize,
    pub reader: Reader,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(root: &'a Value, loosen: bool) -> Self {
        Self { root, work: 0, reader: Reader { loosen, notes: Vec::new() } }
    }

    /// Counts a schema that is read; an error if there were too many, or once the compile must end.
    pub(super) fn spend(&mut self) -> Result<()> {
        budget::check()?;
        self.work += 1;
        if self.work > MAX_WORK { Err("it is too complex: make its alternatives fewer".into()) } else { Ok(()) }
    }

    /// Returns the schema that `reference` names.
    pub(super) fn resolve(&self, reference: &str) -> Result<&'a Value> {
        let root = self.root;
        let own_id = ["$id", "id"].iter().find_map(|keyword| root.get(keyword)?.as_str());
        let local = own_id.and_then(|id| reference.strip_prefix(id.trim_end_matches('#'))).unwrap_or(reference);
        let found = match local.strip_prefix('#') {
            Some("") => Some(root),
            Some(pointer) if pointer.starts_with('/') => {
                root.pointer(&percent_decoded(pointer)).or_else(|| root.pointer(pointer))
            }
            Some(anchor) => find(root, &|object| {
                ["$anchor", "$dynamicAnchor"].iter().any(|keyword| object.get(*keyword) == Some(&anchor.into()))
                    || ["$id", "id"].iter().any(|keyword| object.get(*keyword) == Some(&local.into()))
            }),
            None if local.is_empty() => Some(root),
            None => find(root, &|object| object.get("$id") == Some(&local.into())),
        };
        found.ok_or_else(|| format!("the reference '{reference}' names no schema within this schema"))
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Finds the first object within `value` that `fits`.
fn find<'a>(value: &'a Value, fits: &impl Fn(&Map<String, Value>) -> bool) -> Option<&'a Value> {
    match value {
        Value::Object(object) if fits(object) => Some(value),
        Value::Object(object) => object.values().find_map(|value| find(value, fits)),
        Value::Array(values) => values.iter().find_map(|value| find(value, fits)),
        _ => None,
    }
}
