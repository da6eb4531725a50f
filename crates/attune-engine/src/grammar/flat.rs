//! Makes one schema of a schema with all that it combines: references, `allOf`, `oneOf`. Used by `exclusion` and
//! `document`.

use serde_json::{Map, Value, json};

use super::merge::{all_of, merge};
use super::references::Schemas;

type Result<T> = std::result::Result<T, String>;

impl Schemas<'_> {
    /// Returns the keywords that a document of `schema` follows, in the form of `Reader::read` and without `$ref`,
    /// `oneOf` and, but for patterns and formats, `allOf`; `None` if it follows no document.
    pub(super) fn flat(&mut self, schema: &Value) -> Result<Option<Map<String, Value>>> {
        self.flatten(schema, &mut Vec::new())
    }

    fn flatten(&mut self, schema: &Value, seen: &mut Vec<String>) -> Result<Option<Map<String, Value>>> {
        self.spend()?;
        let object = match schema {
            Value::Bool(any) => return Ok(any.then(Map::new)),
            Value::Object(object) => object,
            _ => return Err("a schema must be an object or a boolean".into()),
        };
        let mut own = self.reader.read(object)?;
        let reference = own.shift_remove("$ref");
        let all = own.shift_remove("allOf");
        let one = own.shift_remove("oneOf");
        let mut parts = Vec::new();
        if let Some(reference) = reference.as_ref().and_then(Value::as_str) {
            if seen.iter().any(|seen| seen == reference) {
                return Err(format!("the reference '{reference}' leads back to itself"));
            }
            match self.resolve(reference) {
                Ok(target) => {
                    seen.push(reference.to_owned());
                    parts.push(self.flatten(target, seen)?);
                    seen.pop();
                }
                Err(reason) => self.reader.give_up("$ref", &format!("cannot be followed: {reason}"))?,
            }
        }
        for schema in all.iter().filter_map(|all| all.as_array()).flatten() {
            parts.push(self.flatten(schema, seen)?);
        }
        let Some(mut parts) = parts.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
        // Properties come in the order in which the schema mentions them.
        let position = |keyword: &str| object.keys().position(|key| key == keyword).unwrap_or(usize::MAX);
        let own_first = position("properties") < position("$ref").min(position("allOf"));
        parts.insert(if own_first { 0 } else { parts.len() }, own);
        let mut merged = Map::new();
        for part in parts {
            if !merge(&mut merged, part)? {
                return Ok(None);
            }
        }
        if let Some(Value::Array(alternatives)) = one {
            self.check_exclusion(&merged, &alternatives)?;
            merge(&mut merged, Map::from_iter([("anyOf".into(), alternatives.into())]))?;
        }
        let none = |keyword: &str| merged.get(keyword).and_then(Value::as_array).is_some_and(Vec::is_empty);
        Ok((!none("enum") && !none("anyOf") && !none("type")).then_some(merged))
    }

    /// Refuses alternatives of a `oneOf` that may both be true of a document that follows `others`.
    fn check_exclusion(&mut self, others: &Map<String, Value>, alternatives: &[Value]) -> Result<()> {
        let mut flat = Vec::new();
        for alternative in alternatives {
            let whole = all_of(vec![others.clone().into(), alternative.clone()]);
            flat.extend(self.flat(&whole)?);
        }
        for (index, first) in flat.iter().enumerate() {
            for second in &flat[index + 1..] {
                if !self.exclude(first, second, 0)? {
                    let reason = "has alternatives that do not visibly exclude each other: use 'anyOf'";
                    return self.reader.give_up("oneOf", reason);
                }
            }
        }
        Ok(())
    }

    /// Returns the alternatives of a flat schema, each with all that they have in common.
    pub(super) fn alternatives(map: &Map<String, Value>) -> Option<Vec<Value>> {
        let alternatives = map.get("anyOf")?.as_array()?.clone();
        let mut others = map.clone();
        others.shift_remove("anyOf");
        if others.is_empty() {
            return Some(alternatives);
        }
        let whole = |alternative| json!({"allOf": [others, alternative]});
        Some(alternatives.into_iter().map(whole).collect())
    }
}
