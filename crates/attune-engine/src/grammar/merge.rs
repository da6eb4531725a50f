//! Merges the keywords of two schemas into those of the documents that follow both. Used by `flat`.

use serde_json::{Map, Number, Value, json};

use super::decimal::Decimal;
use super::keywords::{add_all_of, is_never};
use super::text;

type Result<T> = std::result::Result<T, String>;

const OBJECT: [&str; 4] = ["properties", "patternProperties", "additionalProperties", "propertyNames"];
const ARRAY: [&str; 2] = ["prefixItems", "items"];

/// Merges the keywords `b` into `a`; false if no document follows both.
pub(super) fn merge(a: &mut Map<String, Value>, mut b: Map<String, Value>) -> Result<bool> {
    merge_objects(a, &mut b)?;
    merge_arrays(a, &mut b);
    for (keyword, value) in b {
        let Some(own) = a.get_mut(&keyword) else {
            a.insert(keyword, value);
            continue;
        };
        if *own == value {
            continue;
        }
        match keyword.as_str() {
            "type" => {
                *own = common_types(own, &value);
                if own.as_array().is_some_and(Vec::is_empty) {
                    return Ok(false);
                }
            }
            "enum" => {
                let others = value.as_array().cloned().unwrap_or_default();
                if let Some(own) = own.as_array_mut() {
                    own.retain(|value| others.contains(value));
                }
            }
            "required" => {
                let names = value.as_array().into_iter().flatten();
                let new: Vec<Value> = names.filter(|name| !contains(own, name)).cloned().collect();
                if let Some(own) = own.as_array_mut() {
                    own.extend(new);
                }
            }
            "minimum" | "exclusiveMinimum" | "minLength" | "minItems" | "minProperties" => {
                *own = chosen(own, value, true);
            }
            "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" | "maxProperties" => {
                *own = chosen(own, value, false);
            }
            "multipleOf" => *own = common_multiple(own, &value)?,
            "anyOf" => {
                let both = |own: &Value| json!({"allOf": [own, {"anyOf": value}]});
                *own = own.as_array().into_iter().flatten().map(both).collect();
            }
            "allOf" => value.as_array().into_iter().flatten().for_each(|more| add_all_of(a, more.clone())),
            "pattern" | "format" => add_all_of(a, json!({keyword: value})),
            _ => return Err(format!("several schemas with '{keyword}' cannot be combined")),
        }
    }
    Ok(true)
}

fn contains(list: &Value, item: &Value) -> bool {
    list.as_array().is_some_and(|list| list.contains(item))
}

fn common_types(a: &Value, b: &Value) -> Value {
    let mut common = Vec::new();
    for (a, b) in [(a, b), (b, a)] {
        for kind in a.as_array().into_iter().flatten() {
            let fits = contains(b, kind) || (kind == "integer" && contains(b, &"number".into()));
            if fits && !common.contains(kind) {
                common.push(kind.clone());
            }
        }
    }
    common.into()
}

fn decimal(value: &Value) -> Option<Decimal> {
    Decimal::of(value.as_number()?)
}

fn chosen(a: &Value, b: Value, larger: bool) -> Value {
    if (decimal(a) < decimal(&b)) == larger { b } else { a.clone() }
}

fn common_multiple(a: &Value, b: &Value) -> Result<Value> {
    let failed = || format!("a number cannot be a multiple of both {a} and {b}");
    let (first, second) = (decimal(a).ok_or_else(failed)?, decimal(b).ok_or_else(failed)?);
    let scale = first.fraction.len().max(second.fraction.len()).min(9);
    let (first, second) = (first.magnitude().scaled(scale).0, second.magnitude().scaled(scale).0);
    let divisor = |mut a: i128, mut b: i128| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a.max(1)
    };
    let common = first.checked_mul(second).ok_or_else(failed)? / divisor(first, second);
    let whole = u64::try_from(common).map_err(|_| failed())?;
    if scale == 0 {
        return Ok(whole.into());
    }
    Number::from_f64(whole as f64 / 10_f64.powi(scale as i32)).map(Value::Number).ok_or_else(failed)
}

/// Writes the schema of what follows all of `schemas`.
pub(super) fn all_of(mut schemas: Vec<Value>) -> Value {
    schemas.dedup();
    if schemas.iter().any(is_never) {
        return Value::Bool(false);
    }
    schemas.retain(|schema| *schema != Value::Bool(true));
    match schemas.len() {
        0 => Value::Bool(true),
        1 => schemas.swap_remove(0),
        _ => json!({"allOf": schemas}),
    }
}

fn merge_arrays(a: &mut Map<String, Value>, b: &mut Map<String, Value>) {
    if !ARRAY.iter().any(|keyword| a.contains_key(*keyword)) || !ARRAY.iter().any(|keyword| b.contains_key(*keyword)) {
        return;
    }
    let list = |map: &Map<String, Value>| map.get("prefixItems").and_then(Value::as_array).cloned().unwrap_or_default();
    let rest = |map: &Map<String, Value>| map.get("items").cloned().unwrap_or(Value::Bool(true));
    let (first, second) = (list(a), list(b));
    let (first_rest, second_rest) = (rest(a), rest(b));
    let at = |list: &[Value], rest: &Value, index: usize| list.get(index).unwrap_or(rest).clone();
    let merged: Vec<Value> = (0..first.len().max(second.len()))
        .map(|index| all_of(vec![at(&first, &first_rest, index), at(&second, &second_rest, index)]))
        .collect();
    for keyword in ARRAY {
        b.shift_remove(keyword);
    }
    if !merged.is_empty() {
        a.insert("prefixItems".into(), merged.into());
    }
    a.insert("items".into(), all_of(vec![first_rest, second_rest]));
}

/// Returns the schemas that the object schema `map` has for the property `name`.
pub(super) fn property(map: &Map<String, Value>, name: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    if let Some(schema) = map.get("properties").and_then(|listed| listed.get(name)) {
        found.push(schema.clone());
    }
    for (pattern, schema) in map.get("patternProperties").and_then(Value::as_object).into_iter().flatten() {
        if text::matches(pattern, name)? {
            found.push(schema.clone());
        }
    }
    if found.is_empty() {
        found.extend(map.get("additionalProperties").cloned());
    }
    Ok(found)
}

fn merge_objects(a: &mut Map<String, Value>, b: &mut Map<String, Value>) -> Result<()> {
    if !OBJECT.iter().any(|keyword| a.contains_key(*keyword)) || !OBJECT.iter().any(|keyword| b.contains_key(*keyword))
    {
        return Ok(());
    }
    let keys = |map: &Map<String, Value>, keyword: &str| -> Vec<String> {
        map.get(keyword).and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let mut properties = Map::new();
    for name in keys(a, "properties").into_iter().chain(keys(b, "properties")) {
        if !properties.contains_key(&name) {
            let both = property(a, &name)?.into_iter().chain(property(b, &name)?).collect();
            properties.insert(name, all_of(both));
        }
    }
    let mut patterns = Map::new();
    for name in keys(a, "patternProperties").into_iter().chain(keys(b, "patternProperties")) {
        let of = |map: &Map<String, Value>| {
            let own = map.get("patternProperties").and_then(|listed| listed.get(&name));
            own.or_else(|| map.get("additionalProperties")).cloned()
        };
        let both = of(a).into_iter().chain(of(b)).collect();
        patterns.insert(name, all_of(both));
    }
    let mut merged = Map::new();
    for keyword in ["additionalProperties", "propertyNames"] {
        let both: Vec<Value> = [a.get(keyword), b.get(keyword)].into_iter().flatten().cloned().collect();
        if !both.is_empty() {
            merged.insert(keyword.into(), all_of(both));
        }
    }
    for (keyword, schemas) in [("properties", properties), ("patternProperties", patterns)] {
        if a.contains_key(keyword) || b.contains_key(keyword) {
            merged.insert(keyword.into(), schemas.into());
        }
    }
    for keyword in OBJECT {
        b.shift_remove(keyword);
    }
    merged.into_iter().for_each(|(keyword, value)| drop(a.insert(keyword, value)));
    Ok(())
}

/// Returns true if the object has no other properties than those that `map` lists. JSON Schema leaves it open then, and
/// a small model would go on inventing properties.
pub(super) fn is_closed(map: &Map<String, Value>) -> bool {
    let speaks_of_others =
        ["additionalProperties", "patternProperties", "minProperties"].iter().any(|keyword| map.contains_key(*keyword));
    map.contains_key("properties") && !speaks_of_others && required(map).iter().all(|name| lists(map, name))
}

/// Returns true if `map` lists the property `name`.
pub(super) fn lists(map: &Map<String, Value>, name: &str) -> bool {
    map.get("properties").is_some_and(|listed| listed.get(name).is_some())
}

/// Returns the names of the properties that `map` requires.
pub(super) fn required(map: &Map<String, Value>) -> Vec<String> {
    let names = map.get("required").and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str).map(str::to_owned).collect()
}
