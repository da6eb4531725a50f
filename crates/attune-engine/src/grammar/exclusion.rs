//! Tells documents that follow a schema from those that do not, and schemas that exclude each other from those that may
//! not, so that `oneOf` and lists of values can be followed. Used by `flat` and `document`.

use serde_json::{Map, Value};

use super::decimal::Decimal;
use super::merge::{all_of, is_closed, lists, property, required};
use super::references::Schemas;
use super::{number, text};

type Result<T> = std::result::Result<T, String>;

/// How deep properties and items are compared.
const MAX_DEPTH: usize = 6;
const ALL_TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];

/// Returns the types of a flat schema.
pub(super) fn types(map: &Map<String, Value>) -> Vec<&str> {
    let given = map.get("type").and_then(Value::as_array);
    given.map_or_else(|| ALL_TYPES.to_vec(), |given| given.iter().filter_map(Value::as_str).collect())
}

impl Schemas<'_> {
    /// Returns true if it is certain that no document follows both flat schemas.
    pub(super) fn exclude(&mut self, a: &Map<String, Value>, b: &Map<String, Value>, depth: usize) -> Result<bool> {
        self.spend()?;
        if depth > MAX_DEPTH {
            return Ok(false);
        }
        for (one, other) in [(a, b), (b, a)] {
            if let Some(alternatives) = Schemas::alternatives(one) {
                for alternative in alternatives {
                    let Some(alternative) = self.flat(&alternative)? else { continue };
                    if !self.exclude(&alternative, other, depth + 1)? {
                        return Ok(false);
                    }
                }
                return Ok(true);
            }
        }
        for (one, other) in [(a, b), (b, a)] {
            if let Some(values) = one.get("enum").and_then(Value::as_array) {
                for value in values {
                    if self.accepts(one, value)? && self.accepts(other, value)? {
                        return Ok(false);
                    }
                }
                return Ok(true);
            }
        }
        for first in types(a) {
            for second in types(b) {
                let numbers = ["integer", "number"];
                let same = first == second || (numbers.contains(&first) && numbers.contains(&second));
                if same && !self.exclude_type(first, a, b, depth)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn exclude_type(
        &mut self,
        kind: &str,
        a: &Map<String, Value>,
        b: &Map<String, Value>,
        depth: usize,
    ) -> Result<bool> {
        let apart = |least: &str, most: &str| {
            let beyond = |a: &Map<String, Value>, b: &Map<String, Value>| {
                let count = |map: &Map<String, Value>, keyword: &str| map.get(keyword).and_then(Value::as_u64);
                count(a, least).zip(count(b, most)).is_some_and(|(least, most)| least > most)
            };
            beyond(a, b) || beyond(b, a)
        };
        match kind {
            "integer" | "number" => {
                let ((low_a, high_a), (low_b, high_b)) = (number::bounds(a)?, number::bounds(b)?);
                let below = |high: Option<&number::Bound>, low: Option<&number::Bound>| match (high, low) {
                    (Some(high), Some(low)) => high.0 < low.0 || (high.0 == low.0 && !(high.1 && low.1)),
                    _ => false,
                };
                Ok(below(high_a.as_ref(), low_b.as_ref()) || below(high_b.as_ref(), low_a.as_ref()))
            }
            "string" => {
                let formats = text::formats(b);
                let formats = text::formats(a).iter().any(|a| formats.iter().any(|b| text::formats_exclude(a, b)));
                let patterns: Vec<String> = text::patterns(a).into_iter().chain(text::patterns(b)).collect();
                Ok(apart("minLength", "maxLength")
                    || formats
                    || (patterns.len() > 1 && text::is_empty(&patterns, &[], &[]).unwrap_or(false)))
            }
            "array" => Ok(apart("minItems", "maxItems")),
            "object" => Ok(apart("minProperties", "maxProperties") || self.exclude_objects(a, b, depth)?),
            _ => Ok(false),
        }
    }

    fn exclude_objects(&mut self, a: &Map<String, Value>, b: &Map<String, Value>, depth: usize) -> Result<bool> {
        let names = [a, b].into_iter().filter_map(|map| map.get("required")?.as_array()).flatten();
        for name in names.filter_map(Value::as_str) {
            let (first, second) = (all_of(property(a, name)?), all_of(property(b, name)?));
            let (Some(first), Some(second)) = (self.flat(&first)?, self.flat(&second)?) else { return Ok(true) };
            if self.exclude(&first, &second, depth + 1)? {
                return Ok(true);
            }
        }
        // What is written of one lacks what the other requires.
        let lacks = |a: &Map<String, Value>, b: &Map<String, Value>| {
            is_closed(a) && required(b).iter().any(|name| !lists(a, name))
        };
        Ok(lacks(a, b) && lacks(b, a))
    }

    /// Returns true if `value` follows the flat schema `map`.
    pub(super) fn accepts(&mut self, map: &Map<String, Value>, value: &Value) -> Result<bool> {
        if !has_type(map, value) {
            return Ok(false);
        }
        if map.get("enum").and_then(Value::as_array).is_some_and(|values| !values.contains(value)) {
            return Ok(false);
        }
        if let Some(Value::Array(alternatives)) = map.get("anyOf") {
            let mut any = false;
            for alternative in alternatives {
                any = any || self.follows(alternative, value)?;
            }
            if !any {
                return Ok(false);
            }
        }
        let count = |keyword: &str| map.get(keyword).and_then(Value::as_u64);
        let counts = |length: usize, least: &str, most: &str| {
            count(least).is_none_or(|least| length as u64 >= least)
                && count(most).is_none_or(|most| length as u64 <= most)
        };
        match value {
            Value::Number(number) => accepts_number(map, number),
            Value::String(string) => {
                let mut fits = counts(string.chars().count(), "minLength", "maxLength");
                for pattern in text::patterns(map) {
                    fits = fits && text::matches(&pattern, string)?;
                }
                Ok(fits)
            }
            Value::Array(items) => {
                let first = map.get("prefixItems").and_then(Value::as_array).cloned().unwrap_or_default();
                let mut fits = counts(items.len(), "minItems", "maxItems");
                for (index, item) in items.iter().enumerate() {
                    if let Some(schema) = first.get(index).or_else(|| map.get("items")) {
                        fits = fits && self.follows(schema, item)?;
                    }
                }
                Ok(fits)
            }
            Value::Object(object) => {
                let mut required = map.get("required").and_then(Value::as_array).into_iter().flatten();
                let mut fits = counts(object.len(), "minProperties", "maxProperties")
                    && required.all(|name| name.as_str().is_some_and(|name| object.contains_key(name)));
                for (name, value) in object {
                    fits = fits && self.follows(&all_of(property(map, name)?), value)?;
                }
                Ok(fits)
            }
            _ => Ok(true),
        }
    }

    /// Returns true if `value` follows `schema`.
    fn follows(&mut self, schema: &Value, value: &Value) -> Result<bool> {
        match self.flat(schema)? {
            Some(map) => self.accepts(&map, value),
            None => Ok(false),
        }
    }
}

/// Returns true if `value` has one of the types that `map` allows.
fn has_type(map: &Map<String, Value>, value: &Value) -> bool {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let whole = value.as_number().and_then(Decimal::of).is_some_and(|number| number.fraction.is_empty());
    types(map).iter().any(|allowed| *allowed == kind || (whole && *allowed == "integer"))
}

fn accepts_number(map: &Map<String, Value>, number: &serde_json::Number) -> Result<bool> {
    let Some(decimal) = Decimal::of(number) else { return Ok(false) };
    let (lower, upper) = number::bounds(map)?;
    let above = lower.is_none_or(|(bound, included)| decimal > bound || (included && decimal == bound));
    let below = upper.is_none_or(|(bound, included)| decimal < bound || (included && decimal == bound));
    let step = map.get("multipleOf").and_then(Value::as_number).and_then(Decimal::of);
    let multiple = step.is_none_or(|step| {
        let scale = step.fraction.len().max(decimal.fraction.len()).min(20);
        let (number, step) = (decimal.scaled(scale).0, step.magnitude().scaled(scale).0);
        step > 0 && number % step == 0
    });
    Ok(above && below && multiple)
}
