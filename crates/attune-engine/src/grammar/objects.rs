//! Writes the rules of objects and arrays. Part of `document::Writer`.

use serde_json::{Map, Value};

use super::document::{Writer, choice, key};
use super::keywords::is_never;
use super::merge::{all_of, is_closed, property, required};
use super::{text, weight};

type Result<T> = std::result::Result<T, String>;

/// Texts of keys that are not listed: without escapes of other characters, so that no name has two spellings.
const KEY_TEXT: &str = r#"(?:[^"\\\x00-\x1F\x7F]|\\["\\bfnrt])*"#;
/// Pattern of keys that have to match or miss other patterns: without what needs escapes, which would hide it from
/// them.
const PLAIN_TEXT: &str = r#"^[^"\\\x00-\x1F\x7F]*$"#;
/// Largest number of patterns of keys in one object; a key follows a pattern of its own and one of `propertyNames` too.
const MAX_KEY_PATTERNS: usize = weight::MAX_PATTERNS - 2;
/// Largest number of states of an object that counts its properties.
const MAX_STATES: usize = 4_000;

/// Properties of an object.
#[derive(Debug, Default)]
struct Members {
    /// The listed ones in their order, and whether each is required.
    listed: Vec<(String, bool)>,
    /// All others; `None` if there are none.
    free: Option<String>,
    /// Least and largest number of those that are not required.
    least: usize,
    most: Option<usize>,
}

impl Writer<'_> {
    pub(super) fn array(&mut self, map: &Map<String, Value>) -> Result<Option<String>> {
        let count = |keyword: &str| map.get(keyword).and_then(Value::as_u64).map(|count| count as usize);
        let (least, mut most) = (count("minItems").unwrap_or(0), count("maxItems"));
        let mut first = Vec::new();
        for schema in map.get("prefixItems").and_then(Value::as_array).into_iter().flatten() {
            match self.value(schema)? {
                Some(symbol) if most.is_none_or(|most| first.len() < most) => first.push(symbol),
                Some(_) => break,
                None => {
                    most = Some(first.len());
                    break;
                }
            }
        }
        let others = match map.get("items").unwrap_or(&Value::Bool(true)) {
            _ if most == Some(first.len()) => None,
            schema => self.value(schema)?,
        };
        if others.is_none() {
            most = Some(most.unwrap_or(usize::MAX).min(first.len()));
        }
        if most.is_some_and(|most| least > most) {
            return Ok(None);
        }
        let bound = |count: usize| count.saturating_sub(first.len());
        let mut rest = match &others {
            Some(item) => repeated(item, !first.is_empty(), bound(least), most.map(bound)),
            None => String::new(),
        };
        for (index, item) in first.iter().enumerate().rev() {
            let comma = if index > 0 { "COMMA " } else { "" };
            rest = format!("{comma}{item} {rest}");
            if index >= least {
                rest = format!("({rest})?");
            }
        }
        Ok(Some(format!("\"[\" {rest} \"]\"")))
    }

    pub(super) fn object(&mut self, map: &Map<String, Value>) -> Result<Option<String>> {
        let Some(members) = self.members(map)? else { return Ok(None) };
        let mut memo = std::collections::HashMap::new();
        let Some(body) = self.sequence(&members, (0, false, 0), &mut memo)? else { return Ok(None) };
        Ok(Some(format!("\"{{\" {body} \"}}\"")))
    }

    /// Returns the properties that an object of `map` may have; `None` if there is no such object.
    fn members(&mut self, map: &Map<String, Value>) -> Result<Option<Members>> {
        let mut map = map.clone();
        let names_schema = map.shift_remove("propertyNames");
        let required = required(&map);
        let closed = is_closed(&map);
        let (mut names, open) = names(&map, &required);
        let mut key_patterns = Vec::new();
        let mut key_map = None;
        if let Some(schema) = names_schema {
            let Some(flat) = self.schemas.flat(&schema)? else {
                return Ok(required.is_empty().then(Members::default));
            };
            match flat.get("enum").and_then(Value::as_array) {
                Some(values) if !closed => add(&mut names, values.iter().filter_map(Value::as_str)),
                _ if flat.keys().all(|keyword| ["type", "pattern", "enum"].contains(&keyword.as_str())) => {
                    key_patterns = text::patterns(&flat);
                }
                _ => self.schemas.reader.give_up("propertyNames", "cannot be enforced: use a 'pattern'")?,
            }
            key_map = Some(flat);
        }
        let mut members = Members::default();
        for name in &names {
            if let Some(key_map) = &key_map
                && !self.schemas.accepts(key_map, &name.as_str().into())?
            {
                if required.contains(name) {
                    return Ok(None);
                }
                continue;
            }
            match self.value(&all_of(property(&map, name)?))? {
                Some(value) => {
                    members.listed.push((format!("{} COLON {value}", key(name)), required.contains(name)));
                }
                None if required.contains(name) => return Ok(None),
                None => {}
            }
        }
        let only_names = key_map.is_some_and(|map| map.contains_key("enum"));
        let additional = if closed { Some(Value::Bool(false)) } else { map.get("additionalProperties").cloned() };
        let additional = additional.unwrap_or(Value::Bool(true));
        if !only_names {
            members.free = self.free(&map, &names, &open, &additional, &key_patterns)?;
        }
        self.count(&map, required.len(), &mut members)
    }

    /// Writes the properties that are not listed: each key follows some of the patterns and none of the others.
    fn free(
        &mut self,
        map: &Map<String, Value>,
        names: &[String],
        open: &[String],
        additional: &Value,
        key_patterns: &[String],
    ) -> Result<Option<String>> {
        if open.len() > MAX_KEY_PATTERNS {
            let (count, most) = (open.len(), MAX_KEY_PATTERNS);
            return Err(format!("'patternProperties' has {count} patterns; at most {most} are allowed in one object"));
        }
        let schema = |pattern: &String| map["patternProperties"][pattern].clone();
        let mut kinds: Vec<(Vec<String>, Vec<String>, Value)> = Vec::new();
        for pattern in open {
            let others = open.iter().filter(|other| *other != pattern).cloned().collect();
            kinds.push((vec![pattern.clone()], others, schema(pattern)));
        }
        for (index, first) in open.iter().enumerate() {
            for second in &open[index + 1..] {
                if text::is_empty(&[first.clone(), second.clone()], &[], names)? {
                    continue;
                }
                if open.len() > 2 {
                    return Err(
                        "'patternProperties' has more than two patterns, of which some have names in common".into()
                    );
                }
                let both = all_of(vec![schema(first), schema(second)]);
                kinds.push((vec![first.clone(), second.clone()], Vec::new(), both));
            }
        }
        kinds.push((Vec::new(), open.to_vec(), additional.clone()));
        let mut parts = Vec::new();
        for (mut with, without, schema) in kinds {
            with.extend(key_patterns.iter().cloned());
            let bare = with.is_empty() && without.is_empty();
            if !bare {
                with.push(PLAIN_TEXT.into());
            }
            if is_never(&schema) || (!bare && text::is_empty(&with, &without, names)?) {
                continue;
            }
            if let Some(value) = self.value(&schema)? {
                let key = self.key_terminal(&with, &without, names);
                parts.push(format!("{key} COLON {value}"));
            }
        }
        Ok(choice(&parts).map(|body| self.define("member", &body)))
    }

    fn key_terminal(&mut self, with: &[String], without: &[String], names: &[String]) -> String {
        let quoted = |pattern: &String| format!("\"\\\"\" /{}/ \"\\\"\"", text::whole(pattern));
        let mut parts: Vec<String> = with.iter().map(quoted).collect();
        if with.is_empty() {
            parts.push(format!("/\"{KEY_TEXT}\"/"));
        }
        parts.extend(without.iter().map(|pattern| format!("~({})", quoted(pattern))));
        if !names.is_empty() {
            let names: Vec<String> = names.iter().map(|name| key(name)).collect();
            parts.push(format!("~({})", names.join(" | ")));
        }
        self.define("KEY", &parts.join(" & "))
    }

    /// Counts the properties that are not required by `minProperties` and `maxProperties`.
    fn count(&mut self, map: &Map<String, Value>, required: usize, members: &mut Members) -> Result<Option<Members>> {
        let count = |keyword: &str| map.get(keyword).and_then(Value::as_u64).map(|count| count as usize);
        let (least, most) = (count("minProperties").unwrap_or(0), count("maxProperties"));
        if most.is_some_and(|most| required > most || least > most) {
            return Ok(None);
        }
        members.least = least.saturating_sub(required);
        members.most = most.map(|most| most - required);
        let optional = members.listed.iter().filter(|(_, required)| !required).count();
        if members.free.is_some() {
            // A key may come twice, and a document has it once then.
            if members.least > 1 {
                self.schemas.reader.give_up("minProperties", "needs more properties than are listed: list them")?;
                members.least = 1;
            }
        } else if members.least > optional {
            return Ok(None);
        } else if members.most.is_some_and(|most| most >= optional) {
            members.most = None;
        }
        let counted = members.least.max(members.most.unwrap_or(0));
        if counted.saturating_mul(members.listed.len()) > MAX_STATES {
            return Err("'minProperties' and 'maxProperties' are too large for so many properties".into());
        }
        Ok(Some(std::mem::take(members)))
    }

    /// Writes the properties from the one at `index` on, after `used` that are not required and, if `follows`, after
    /// another; `None` if there is no way on.
    fn sequence(
        &mut self,
        members: &Members,
        (index, follows, used): (usize, bool, usize),
        memo: &mut std::collections::HashMap<(usize, bool, usize), Option<String>>,
    ) -> Result<Option<String>> {
        if let Some(known) = memo.get(&(index, follows, used)) {
            return Ok(known.clone());
        }
        let Some((member, required)) = members.listed.get(index) else {
            let least = members.least.saturating_sub(used);
            let most = members.most.map(|most| most.saturating_sub(used));
            return Ok(match &members.free {
                Some(free) => Some(repeated(free, follows, least, most)),
                None => (least == 0).then(String::new),
            });
        };
        let comma = if follows { "COMMA " } else { "" };
        let cap = members.least.max(members.most.unwrap_or(0));
        let next = if *required { used } else { (used + 1).min(cap) };
        let may = *required || members.most.is_none_or(|most| used < most);
        let with = if may { self.sequence(members, (index + 1, true, next), memo)? } else { None };
        let with = with.map(|rest| format!("{comma}{member} {rest}"));
        let body = if *required {
            with
        } else {
            let without = self.sequence(members, (index + 1, follows, used), memo)?;
            match (with, without) {
                (Some(_), Some(without)) if follows && next == used => Some(format!("(COMMA {member})? {without}")),
                (Some(with), Some(without)) if without.is_empty() => Some(format!("({with})?")),
                (Some(with), Some(without)) => Some(format!("{with} | {without}")),
                (with, without) => with.or(without),
            }
        };
        let body = body.map(|body| if body.is_empty() { body } else { self.define("members", &body) });
        memo.insert((index, follows, used), body.clone());
        Ok(body)
    }
}

/// Returns the names that `map` lists, requires or describes by patterns of few names, and its other patterns.
fn names(map: &Map<String, Value>, required: &[String]) -> (Vec<String>, Vec<String>) {
    let keys = |keyword: &str| map.get(keyword).and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name);
    let mut names: Vec<String> = keys("properties").cloned().collect();
    add(&mut names, required.iter().map(String::as_str));
    let mut open = Vec::new();
    for pattern in keys("patternProperties") {
        match text::names(pattern) {
            Some(few) => add(&mut names, few.iter().map(String::as_str)),
            None => open.push(pattern.clone()),
        }
    }
    (names, open)
}

fn add<'a>(names: &mut Vec<String>, more: impl Iterator<Item = &'a str>) {
    for name in more {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
}

/// Writes `least` to `most` items with commas between, and before the first one if it `follows` another.
fn repeated(item: &str, follows: bool, least: usize, most: Option<usize>) -> String {
    let range = |least: usize, most: Option<usize>| match most {
        Some(0) => String::new(),
        Some(most) => format!("(COMMA {item}){{{least},{most}}}"),
        None if least == 0 => format!("(COMMA {item})*"),
        None => format!("(COMMA {item}){{{least},}}"),
    };
    if follows {
        return range(least, most);
    }
    if most == Some(0) {
        return String::new();
    }
    let rest = range(least.saturating_sub(1), most.map(|most| most - 1));
    if least == 0 { format!("({item} {rest})?") } else { format!("{item} {rest}") }
}
