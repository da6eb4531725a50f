//! Checks the JSON schemas of a request before they go to the grammar compiler. Used by `format` and `tools`.

use serde_json::Value;

use crate::api::http::error::{Problem, Result};

/// Largest size of the schemas of one request together, as bytes of text.
pub(super) const SCHEMA_BYTES: usize = 64 << 10;

/// Returns `schema` if it is an object that is not too large to be compiled; an error names the field `param`.
pub(super) fn checked(schema: Value, param: &str) -> Result<Value> {
    if !schema.is_object() {
        let message = format!("'{param}' must be a JSON schema: an object.");
        return Err(Problem::invalid_code(param, "invalid_type", message));
    }
    let bytes = schema.to_string().len();
    if bytes > SCHEMA_BYTES {
        let message = format!("'{param}' has {bytes} bytes of JSON schema; at most {SCHEMA_BYTES} are allowed.");
        return Err(Problem::invalid_code(param, "string_above_max_length", message));
    }
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_is_an_object_of_bounded_size() {
        assert!(checked(json!({}), "p").is_ok());
        assert!(checked(json!(true), "p").is_err());
        assert!(checked(json!({"enum": ["x".repeat(SCHEMA_BYTES)]}), "p").is_err());
    }
}
