//! The JSON schema of an eval's items: the usual keywords, checked on every item. A keyword that is not checked is refused
//! by name when the eval is created, so that an item which passes follows the whole schema.

use serde_json::{Map, Value};

/// Deepest nesting of a schema.
const MAX_DEPTH: usize = 32;
/// Keywords that say nothing about which values are right.
const NOTES: [&str; 12] = [
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "format",
    "deprecated",
    "readOnly",
    "writeOnly",
    "strict",
];
const CHECKED: [&str; 16] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
];
const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];

/// Refuses a schema that is not one, or that has a keyword which is not checked.
pub fn check_schema(schema: &Value) -> Result<(), String> {
    check(schema, MAX_DEPTH)
}

fn check(schema: &Value, depth: usize) -> Result<(), String> {
    let keywords = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(keywords) => keywords,
        _ => return Err("A schema must be an object.".into()),
    };
    if depth == 0 {
        return Err(format!("The schema is nested deeper than {MAX_DEPTH} levels."));
    }
    for (keyword, value) in keywords {
        let right = match keyword.as_str() {
            "type" => names(value).is_some_and(|types| types.iter().all(|name| TYPES.contains(name))),
            "required" => value.is_array() && names(value).is_some(),
            "properties" => match value {
                Value::Object(fields) => {
                    fields.values().try_for_each(|schema| check(schema, depth - 1))?;
                    true
                }
                _ => false,
            },
            "items" | "additionalProperties" => {
                check(value, depth - 1)?;
                true
            }
            "anyOf" | "oneOf" | "allOf" => match value {
                Value::Array(schemas) => {
                    schemas.iter().try_for_each(|schema| check(schema, depth - 1))?;
                    !schemas.is_empty()
                }
                _ => false,
            },
            "enum" => value.is_array(),
            "minimum" | "maximum" => value.is_number(),
            "minLength" | "maxLength" | "minItems" | "maxItems" => value.is_u64(),
            other if NOTES.contains(&other) || CHECKED.contains(&other) => true,
            other => return Err(format!("The keyword '{other}' of a schema is not supported: leave it out.")),
        };
        if !right {
            return Err(format!("The value of '{keyword}' in the schema is not of the right form."));
        }
    }
    Ok(())
}

/// Says what is wrong with `value`; `None` if it follows the schema. `path` is the name of the value.
pub fn fault(schema: &Value, value: &Value, path: &str) -> Option<String> {
    let keywords = match schema {
        Value::Bool(true) => return None,
        Value::Object(keywords) => keywords,
        _ => return Some(format!("'{path}' must not be there")),
    };
    let wrong = |what: String| Some(format!("'{path}' {what}"));
    if let Some(types) = keywords.get("type").and_then(names)
        && !types.iter().any(|name| is(name, value))
    {
        return wrong(format!("is not of the type {}", types.join(" or ")));
    }
    if keywords.get("enum").and_then(Value::as_array).is_some_and(|values| !values.contains(value)) {
        return wrong("is none of the values that are allowed".into());
    }
    if keywords.get("const").is_some_and(|constant| constant != value) {
        return wrong("is not the value that is asked for".into());
    }
    sizes(keywords, value)
        .and_then(wrong)
        .or_else(|| within(keywords, value, path))
        .or_else(|| ways(keywords, value, path))
}

/// Says what is wrong with a number, or with the length of a text or an array.
fn sizes(keywords: &Map<String, Value>, value: &Value) -> Option<String> {
    let (size, low, high) = match value {
        Value::Number(number) => (number.as_f64()?, "minimum", "maximum"),
        Value::String(text) => (text.chars().count() as f64, "minLength", "maxLength"),
        Value::Array(values) => (values.len() as f64, "minItems", "maxItems"),
        _ => return None,
    };
    let limit = |name: &str| keywords.get(name).and_then(Value::as_f64);
    if limit(low).is_some_and(|limit| size < limit) {
        return Some(format!("is below '{low}'"));
    }
    limit(high).is_some_and(|limit| size > limit).then(|| format!("is above '{high}'"))
}

/// Says what is wrong within an object or an array.
fn within(keywords: &Map<String, Value>, value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Object(fields) => {
            let required = keywords.get("required").and_then(names).unwrap_or_default();
            if let Some(name) = required.into_iter().find(|name| !fields.contains_key(*name)) {
                return Some(format!("'{path}.{name}' is missing"));
            }
            let properties = keywords.get("properties").and_then(Value::as_object);
            let others = keywords.get("additionalProperties");
            fields.iter().find_map(|(name, value)| {
                let schema = properties.and_then(|properties| properties.get(name)).or(others)?;
                fault(schema, value, &format!("{path}.{name}"))
            })
        }
        Value::Array(values) => {
            let schema = keywords.get("items")?;
            values.iter().enumerate().find_map(|(index, value)| fault(schema, value, &format!("{path}[{index}]")))
        }
        _ => None,
    }
}

/// Says what is wrong by the schemas of which all, any, or exactly one must hold.
fn ways(keywords: &Map<String, Value>, value: &Value, path: &str) -> Option<String> {
    let schemas = |name: &str| keywords.get(name).and_then(Value::as_array);
    let holding = |schemas: &Vec<Value>| schemas.iter().filter(|schema| fault(schema, value, path).is_none()).count();
    if let Some(found) = schemas("allOf").and_then(|all| all.iter().find_map(|schema| fault(schema, value, path))) {
        return Some(found);
    }
    if schemas("anyOf").is_some_and(|any| holding(any) == 0) {
        return Some(format!("'{path}' follows no schema of 'anyOf'"));
    }
    let one = schemas("oneOf").is_some_and(|one| holding(one) != 1);
    one.then(|| format!("'{path}' does not follow exactly one schema of 'oneOf'"))
}

/// Returns the one name, or the list of names.
fn names(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(name) => Some(vec![name]),
        Value::Array(names) => names.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "boolean" => value.is_boolean(),
        _ => value.is_null(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_follow_the_schema_or_the_fault_says_where_not() {
        let schema = json!({
            "type": "object",
            "properties": {
                "question": {"type": "string", "minLength": 1, "maxLength": 9},
                "count": {"type": "integer", "minimum": 1, "maximum": 3},
                "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "either": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
            },
            "required": ["question"],
            "additionalProperties": false,
        });
        assert_eq!(check_schema(&schema), Ok(()));
        for (item, part) in [
            (json!({"question": "why", "count": 2.0, "tags": ["a"], "note": null, "either": 1.5}), None),
            (json!(3), Some("not of the type object")),
            (json!({}), Some("'item.question' is missing")),
            (json!({"question": 1}), Some("'item.question' is not of the type string")),
            (json!({"question": ""}), Some("below 'minLength'")),
            (json!({"question": "0123456789"}), Some("above 'maxLength'")),
            (json!({"question": "x", "count": 1.5}), Some("integer")),
            (json!({"question": "x", "count": 4}), Some("above 'maximum'")),
            (json!({"question": "x", "tags": ["a", "c"]}), Some("'item.tags[1]' is none of")),
            (json!({"question": "x", "tags": ["a", "b", "a"]}), Some("above 'maxItems'")),
            (json!({"question": "x", "note": 3}), Some("no schema of 'anyOf'")),
            (json!({"question": "x", "either": 3}), Some("exactly one")),
            (json!({"question": "x", "more": 3}), Some("'item.more' must not be there")),
        ] {
            let found = fault(&schema, &item, "item");
            match part {
                None => assert_eq!(found, None, "{item}"),
                Some(part) => assert!(found.as_ref().is_some_and(|found| found.contains(part)), "{item}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_keyword_that_is_not_checked_is_refused() {
        for (schema, part) in [
            (json!("x"), "must be an object"),
            (json!({"properties": {"a": {"pattern": "x"}}}), "'pattern'"),
            (json!({"$ref": "#/a"}), "'$ref'"),
            (json!({"type": "text"}), "'type'"),
            (json!({"properties": []}), "'properties'"),
            (json!({"items": {"items": {"if": {}}}}), "'if'"),
        ] {
            let fault = check_schema(&schema).expect_err("a fault");
            assert!(fault.contains(part), "{schema}: {fault}");
        }
        let deep = (0..40).fold(json!({}), |schema, _| json!({"items": schema}));
        assert!(check_schema(&deep).is_err());
    }
}
