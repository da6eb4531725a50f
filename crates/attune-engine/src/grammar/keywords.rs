//! Reads the keywords of one JSON schema: leaves out what says nothing, writes what can be said in several ways in one,
//! and refuses by name what cannot be followed, or drops it with a note. Used by `flat`.

use serde_json::{Map, Value, json};

use super::text;

type Result<T> = std::result::Result<T, String>;

/// Keywords that count characters, items or properties.
const COUNTS: [&str; 6] = ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"];
const NUMBERS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
/// Keywords of JSON Schema that no grammar here can follow, unless their value says nothing.
const UNSUPPORTED: [&str; 14] = [
    "not",
    "if",
    "contains",
    "uniqueItems",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "disallow",
    "extends",
    "divisibleBy",
];

/// What to do with keywords that cannot be followed.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// True if they are dropped rather than refused.
    pub loosen: bool,
    /// What was dropped.
    pub notes: Vec<String>,
}

impl Reader {
    /// Refuses `keyword` because of `reason`, or drops it with a note.
    pub(super) fn give_up(&mut self, keyword: &str, reason: &str) -> Result<()> {
        if !self.loosen {
            return Err(format!("'{keyword}' {reason}"));
        }
        if !self.notes.iter().any(|note| note == keyword) {
            self.notes.push(keyword.to_owned());
        }
        Ok(())
    }

    /// Returns the keywords of `schema` that bound a document, each in one form: `type` is a list, `const` an `enum`.
    pub(super) fn read(&mut self, schema: &Map<String, Value>) -> Result<Map<String, Value>> {
        let mut map = Map::new();
        for (keyword, value) in schema {
            if value.is_null() && keyword != "const" {
                continue;
            }
            match keyword.as_str() {
                "type" => self.types(value, &mut map)?,
                "const" if schema.get("enum").is_none_or(Value::is_null) => {
                    map.insert("enum".into(), json!([value]));
                }
                "const" => add_all_of(&mut map, json!({"enum": [value]})),
                "enum" => insert(&mut map, keyword, value, Value::is_array, "a list of values")?,
                "$ref" => insert(&mut map, keyword, value, Value::is_string, "a text")?,
                "pattern" => self.pattern(value, &mut map)?,
                "format" => {
                    let name = value.as_str().ok_or("'format' must be a text")?;
                    if text::is_format(name) {
                        map.insert(keyword.clone(), value.clone());
                    }
                }
                "anyOf" | "oneOf" | "allOf" => {
                    let given = value.as_array().ok_or_else(|| format!("'{keyword}' must be a list of schemas"))?;
                    if keyword == "allOf" {
                        for schema in given {
                            add_all_of(&mut map, schema.clone());
                        }
                    } else {
                        map.insert(keyword.clone(), value.clone());
                    }
                }
                "items" | "prefixItems" | "additionalItems" | "additionalProperties" => {
                    map.insert(keyword.clone(), value.clone());
                }
                "properties" => insert(&mut map, keyword, value, Value::is_object, "an object of schemas")?,
                "patternProperties" => self.pattern_properties(value, &mut map)?,
                // Draft 3 marks single properties as required.
                "required" if value.is_boolean() => {}
                "required" => {
                    let names = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
                    insert(&mut map, keyword, value, names, "a list of names")?;
                }
                "propertyNames" if !is_any(value) && *value != json!({"type": "string"}) => {
                    map.insert(keyword.clone(), value.clone());
                }
                keyword if COUNTS.contains(&keyword) => count(keyword, value, &mut map)?,
                keyword if NUMBERS.contains(&keyword) => number(keyword, value, schema, &mut map)?,
                keyword if UNSUPPORTED.contains(&keyword) => self.unsupported(keyword, value, schema, &mut map)?,
                _ => {}
            }
        }
        tuple(&mut map);
        Ok(map)
    }

    fn types(&mut self, value: &Value, map: &mut Map<String, Value>) -> Result<()> {
        let given: &[Value] = match value {
            Value::String(_) => std::slice::from_ref(value),
            Value::Array(types) => types,
            _ => return Err("'type' must be a text or a list of texts".into()),
        };
        let mut types: Vec<Value> = Vec::new();
        for kind in given {
            match kind.as_str() {
                // Every document is of the type "any" of draft 3.
                Some("any") => return Ok(()),
                Some(name) if TYPES.contains(&name) => {
                    if !types.contains(kind) {
                        types.push(kind.clone());
                    }
                }
                _ => return self.give_up("type", &format!("has the invalid type {kind}")),
            }
        }
        if types.iter().any(|kind| kind == "number") {
            types.retain(|kind| kind != "integer");
        }
        map.insert("type".into(), types.into());
        Ok(())
    }

    fn pattern(&mut self, value: &Value, map: &mut Map<String, Value>) -> Result<()> {
        let pattern = value.as_str().ok_or("'pattern' must be a text")?;
        if let Err(reason) = text::check(pattern) {
            return self.give_up("pattern", &format!("cannot be followed: {reason}"));
        }
        map.insert("pattern".into(), value.clone());
        Ok(())
    }

    fn pattern_properties(&mut self, value: &Value, map: &mut Map<String, Value>) -> Result<()> {
        let patterns = value.as_object().ok_or("'patternProperties' must be an object of schemas")?;
        let mut kept = Map::new();
        for (pattern, schema) in patterns {
            match text::check(pattern) {
                Ok(()) => {
                    kept.insert(pattern.clone(), schema.clone());
                }
                Err(reason) => self.give_up("patternProperties", &format!("cannot be followed: {reason}"))?,
            }
        }
        // Properties of a dropped pattern are not among the additional ones.
        if kept.len() < patterns.len() {
            map.insert("additionalProperties".into(), Value::Bool(true));
        }
        if !kept.is_empty() {
            map.insert("patternProperties".into(), kept.into());
        }
        Ok(())
    }

    fn unsupported(
        &mut self,
        keyword: &str,
        value: &Value,
        schema: &Map<String, Value>,
        map: &mut Map<String, Value>,
    ) -> Result<()> {
        let has = |name: &str| schema.get(name).is_some_and(|value| !value.is_null());
        let combined = ["allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas"].iter().any(|name| has(name));
        let all_empty = |value: &Value| {
            value.as_object().is_some_and(|object| {
                object.values().all(|value| is_any(value) || value.as_array().is_some_and(Vec::is_empty))
            })
        };
        match keyword {
            "not" if is_any(value) => map.insert("enum".into(), json!([])),
            "not" if is_never(value) => None,
            "if" if !has("then") && !has("else") => None,
            "if" if is_any_or_absent(schema.get("then")) && is_any_or_absent(schema.get("else")) => None,
            "contains" if schema.get("minContains") == Some(&json!(0)) && !has("maxContains") => None,
            "contains" if is_any(value) && !has("minContains") && !has("maxContains") => {
                let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0).max(1);
                add_all_of(map, json!({"minItems": least}));
                None
            }
            "uniqueItems" if *value == Value::Bool(false) => None,
            "uniqueItems" if schema.get("maxItems").and_then(Value::as_f64).is_some_and(|most| most <= 1.0) => None,
            "dependentRequired" | "dependentSchemas" | "dependencies" if all_empty(value) => None,
            "unevaluatedItems" | "unevaluatedProperties" if is_any(value) => None,
            "unevaluatedProperties" if !combined && has("additionalProperties") => None,
            // After merging, an object has no properties but those of all its schemas unless it speaks of others.
            "unevaluatedProperties" if combined && is_never(value) => None,
            "unevaluatedProperties" if !combined => map.insert("additionalProperties".into(), value.clone()),
            "unevaluatedItems" if !combined && has("items") => None,
            "unevaluatedItems" if !combined => map.insert("items".into(), value.clone()),
            "$recursiveRef" | "$dynamicRef" if value == "#" => map.insert("$ref".into(), value.clone()),
            _ => {
                self.give_up(keyword, "cannot be enforced while the answer is written: leave it out")?;
                None
            }
        };
        Ok(())
    }
}

/// Returns true if every document follows `schema`, at first sight.
pub(super) fn is_any(schema: &Value) -> bool {
    match schema {
        Value::Bool(any) => *any,
        Value::Object(keywords) => keywords.iter().all(|(keyword, value)| match keyword.as_str() {
            "not" => is_never(value),
            _ => value.is_null() || is_annotation(keyword),
        }),
        _ => false,
    }
}

/// Returns true if no document follows `schema`, at first sight.
pub(super) fn is_never(schema: &Value) -> bool {
    match schema {
        Value::Bool(any) => !any,
        Value::Object(keywords) => keywords.get("not").is_some_and(is_any),
        _ => false,
    }
}

fn is_any_or_absent(schema: Option<&Value>) -> bool {
    schema.is_none_or(is_any)
}

fn is_annotation(keyword: &str) -> bool {
    ["title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"]
        .contains(&keyword)
        || keyword.starts_with("x-")
}

pub(super) fn add_all_of(map: &mut Map<String, Value>, schema: Value) {
    if let Some(list) = map.entry("allOf").or_insert_with(|| json!([])).as_array_mut() {
        list.push(schema);
    }
}

fn insert(
    map: &mut Map<String, Value>,
    keyword: &str,
    value: &Value,
    fits: impl Fn(&Value) -> bool,
    form: &str,
) -> Result<()> {
    if !fits(value) {
        return Err(format!("'{keyword}' must be {form}"));
    }
    map.insert(keyword.into(), value.clone());
    Ok(())
}

/// Reads a keyword that counts: a whole number, also in the form `5.0`.
fn count(keyword: &str, value: &Value, map: &mut Map<String, Value>) -> Result<()> {
    let number = value.as_f64().filter(|number| number.fract() == 0.0 && *number >= 0.0);
    let number = number.ok_or_else(|| format!("'{keyword}' must be a whole number that is not negative"))?;
    // No answer reaches such a maximum.
    if keyword.starts_with("max") && number > f64::from(u32::MAX) {
        return Ok(());
    }
    map.insert(keyword.into(), (number as u64).into());
    Ok(())
}

/// Reads a keyword that bounds numbers. In draft 4 the excluding ones are flags of the others.
fn number(keyword: &str, value: &Value, schema: &Map<String, Value>, map: &mut Map<String, Value>) -> Result<()> {
    let excluded = match keyword {
        "exclusiveMinimum" => "minimum",
        "exclusiveMaximum" => "maximum",
        _ => "",
    };
    match value {
        Value::Number(_) => map.insert(keyword.into(), value.clone()),
        Value::Bool(true) if !excluded.is_empty() => match schema.get(excluded) {
            Some(bound @ Value::Number(_)) => map.insert(keyword.into(), bound.clone()),
            _ => None,
        },
        Value::Bool(false) if !excluded.is_empty() => None,
        _ => return Err(format!("'{keyword}' must be a number")),
    };
    Ok(())
}

/// Writes the tuples of older drafts, lists in `items`, as `prefixItems`.
fn tuple(map: &mut Map<String, Value>) {
    let additional = map.shift_remove("additionalItems");
    if map.get("items").is_some_and(Value::is_array)
        && let Some(items) = map.shift_remove("items")
    {
        map.insert("prefixItems".into(), items);
        if let Some(additional) = additional {
            map.insert("items".into(), additional);
        }
    }
}
