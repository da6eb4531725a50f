//! Prepares the JSON schemas of a request for the grammar compiler: checks their size and form, and closes their
//! objects. Used by `format` and `tools`.

use serde_json::Value;

use crate::api::http::error::{Problem, Result};

/// Largest size of the schemas of one request together, as bytes of text.
pub(super) const SCHEMA_BYTES: usize = 64 << 10;
/// Largest number of remainders of all divisors of a schema.
const MAX_REMAINDERS: f64 = 50_000.0;

/// Returns `schema` ready to be compiled; an error names the field `param`.
pub(super) fn prepare(mut schema: Value, param: &str) -> Result<Value> {
    if !schema.is_object() {
        return Err(Problem::invalid_code(
            param,
            "invalid_type",
            format!("'{param}' must be a JSON schema: an object."),
        ));
    }
    check_size(&schema, param)?;
    check_multiples(&schema, param)?;
    if !combines(&schema) {
        close(&mut schema);
    }
    Ok(schema)
}

/// Refuses divisors whose automata would take seconds and gigabytes to build: an automaton has a state per remainder,
/// and the states of combined schemas multiply.
fn check_multiples(schema: &Value, param: &str) -> Result<()> {
    let mut divisors = Vec::new();
    collect_divisors(schema, &mut divisors);
    let states = if combines(schema) { divisors.iter().product::<f64>() } else { divisors.iter().sum() };
    if states > MAX_REMAINDERS {
        let message = format!(
            "'{param}' has a 'multipleOf' that is too fine: all of them together may have {MAX_REMAINDERS} remainders."
        );
        return Err(Problem::invalid_code(param, "invalid_schema", message));
    }
    Ok(())
}

/// Collects every `multipleOf` as the whole number of its digits: 25 for 0.25.
fn collect_divisors(schema: &Value, divisors: &mut Vec<f64>) {
    match schema {
        Value::Object(object) => {
            if let Some(divisor) = object.get("multipleOf").and_then(Value::as_f64) {
                let scientific = format!("{:e}", divisor.abs());
                let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
                let decimals = digits.split_once('.').map_or(0, |(_, decimals)| decimals.len() as i32);
                let zeros = exponent.parse::<i32>().map_or(0, |exponent| (exponent - decimals).max(0));
                let digits: f64 = digits.replace('.', "").parse().unwrap_or(f64::INFINITY);
                divisors.push((digits * 10_f64.powi(zeros)).max(1.0));
            }
            object.values().for_each(|schema| collect_divisors(schema, divisors));
        }
        Value::Array(schemas) => schemas.iter().for_each(|schema| collect_divisors(schema, divisors)),
        _ => {}
    }
}

/// Refuses a schema that is too large to be compiled.
pub(super) fn check_size(schema: &Value, param: &str) -> Result<()> {
    let bytes = schema.to_string().len();
    if bytes > SCHEMA_BYTES {
        let message = format!("'{param}' has {bytes} bytes of JSON schema; at most {SCHEMA_BYTES} are allowed.");
        return Err(Problem::invalid_code(param, "string_above_max_length", message));
    }
    Ok(())
}

/// Keywords that combine schemas.
const COMBINING: [&str; 5] = ["allOf", "anyOf", "oneOf", "$ref", "not"];

/// Returns true if closing an object could contradict another schema that describes the same object.
fn combines(schema: &Value) -> bool {
    match schema {
        Value::Object(object) => {
            let describes_object = object.contains_key("properties") || object.contains_key("required");
            object.contains_key("allOf")
                || (describes_object && COMBINING.iter().any(|keyword| object.contains_key(*keyword)))
                || object.values().any(combines)
        }
        Value::Array(values) => values.iter().any(combines),
        _ => false,
    }
}

/// Forbids other properties in objects whose properties are listed, unless the schema mentions others. JSON Schema
/// leaves such objects open, and a small model would go on inventing properties.
fn close(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    let speaks_of_others = ["additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"]
        .iter()
        .any(|keyword| object.contains_key(*keyword));
    let listed = |name: &Value| {
        object["properties"]
            .as_object()
            .is_some_and(|listed| name.as_str().is_some_and(|name| listed.contains_key(name)))
    };
    let closable = object.get("properties").is_some_and(Value::is_object)
        && !speaks_of_others
        && object.get("required").and_then(Value::as_array).is_none_or(|names| names.iter().all(listed));
    if closable {
        object.insert("additionalProperties".into(), Value::Bool(false));
    }
    for (keyword, value) in object {
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(schemas)) => {
                schemas.values_mut().for_each(close);
            }
            ("anyOf" | "oneOf" | "prefixItems", Value::Array(schemas)) => schemas.iter_mut().for_each(close),
            ("items" | "additionalProperties", schema) => close(schema),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(schema: &Value) -> Value {
        prepare(schema.clone(), "p").expect("a schema")
    }

    #[test]
    fn listed_properties_are_all_there_are_unless_the_schema_speaks_of_others() {
        let nested = json!({"properties": {"a": {"items": {"properties": {}}}}});
        let expected = json!({"properties": {"a": {"items": {"properties": {}, "additionalProperties": false}}},
                              "additionalProperties": false});
        assert_eq!(closed(&nested), expected);
        for open in [
            json!({"type": "object"}),
            json!({"properties": {}, "additionalProperties": true}),
            json!({"properties": {}, "required": ["b"]}),
            json!({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
            json!({"properties": {"a": {}}, "anyOf": [{"required": ["b"]}]}),
            json!({"enum": [{"properties": {}}]}),
        ] {
            assert_eq!(closed(&open), open);
        }
    }

    #[test]
    fn divisors_have_a_bounded_number_of_remainders() {
        let multiple = |divisor: Value| json!({"type": "number", "multipleOf": divisor});
        for (schema, fine) in [
            (multiple(json!(0.01)), true),
            (multiple(json!(50_000)), true),
            (multiple(json!(1_234_567)), false),
            (multiple(json!(0.001_234_567)), false),
            (multiple(json!(1e300)), false),
            (json!({"items": multiple(json!(9973)), "properties": {"a": multiple(json!(9967))}}), true),
            (json!({"allOf": [multiple(json!(9973)), multiple(json!(9967))]}), false),
        ] {
            assert_eq!(prepare(schema.clone(), "p").is_ok(), fine, "{schema}");
        }
    }

    #[test]
    fn a_schema_is_an_object_of_bounded_size() {
        assert!(prepare(json!(true), "p").is_err());
        assert!(prepare(json!({"enum": ["x".repeat(SCHEMA_BYTES)]}), "p").is_err());
    }
}
