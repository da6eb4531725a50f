//! `response_format`: the form that an answer must have. Read by `chat::create`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::schema::checked;
use crate::api::http::error::{Problem, Result};
use crate::datasets::parse::shorten;

/// The form that the answer must have.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The schema, for `json_schema`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json_schema: Option<JsonSchemaFormat>,
    /// Extension: the schema, for `json_object`.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Not supported: the schema of other servers.
    #[schema(ignore)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// A named JSON schema.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct JsonSchemaFormat {
    /// Up to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What the answer is for. Not shown to the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The schema; any JSON object without one. Objects with `properties` get no others unless the schema says so.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Ignored: the answer always follows the schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

impl ResponseFormat {
    /// Returns the schema that the answer must follow; `None` if any text will do.
    pub(crate) fn schema(&self) -> Result<Option<Value>> {
        self.refuse_misplaced()?;
        match self.kind.as_str() {
            "text" => Ok(None),
            "json_object" => match &self.schema {
                None => Ok(Some(json!({"type": "object"}))),
                Some(schema) => checked(schema.clone(), "response_format.schema").map(Some),
            },
            "json_schema" => {
                let format = self.json_schema.as_ref().ok_or_else(|| {
                    let message = "'response_format' of type 'json_schema' needs the field 'json_schema'.";
                    Problem::invalid_code("response_format.json_schema", "missing_required_parameter", message)
                })?;
                check_name("response_format.json_schema.name", &format.name)?;
                let schema = format.schema.clone().unwrap_or_else(|| json!({"type": "object"}));
                checked(schema, "response_format.json_schema.schema").map(Some)
            }
            other => {
                let message = format!("'{other}' is not a form of answers: use text, json_object or json_schema.");
                Err(Problem::invalid_code("response_format.type", "invalid_value", message))
            }
        }
    }

    /// Refuses a schema where the type has no place for it, since the answer would not follow it.
    fn refuse_misplaced(&self) -> Result<()> {
        for (field, given, home) in [
            ("json_schema", self.json_schema.is_some(), Some("json_schema")),
            ("schema", self.schema.is_some(), Some("json_object")),
            ("value", self.value.is_some(), None),
        ] {
            if given && home != Some(self.kind.as_str()) {
                let param = format!("response_format.{field}");
                let message = format!(
                    "'{param}' is not supported with the type '{}': send the schema as 'json_schema' with the type \
                     'json_schema'.",
                    shorten(&self.kind)
                );
                return Err(Problem::invalid_code(param, "unsupported_parameter", message));
            }
        }
        Ok(())
    }
}

/// Checks the name of a schema or a function: 1 to 64 letters, digits, `_` and `-`.
pub(crate) fn check_name(param: &str, name: &str) -> Result<()> {
    let fits = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        let message = format!("'{param}' must be 1 to 64 letters, digits, underscores and dashes.");
        return Err(Problem::invalid_code(param.to_owned(), "invalid_value", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(format: Value) -> Result<Option<Value>> {
        let format: ResponseFormat = serde_json::from_value(format).expect("a format");
        format.schema()
    }

    #[test]
    fn each_type_has_its_schema() {
        assert_eq!(schema(json!({"type": "text"})).expect("fine"), None);
        assert_eq!(schema(json!({"type": "json_object"})).expect("fine"), Some(json!({"type": "object"})));
        let beside = json!({"type": "json_object", "schema": {"type": "null"}});
        assert_eq!(schema(beside).expect("fine"), Some(json!({"type": "null"})));
        let given =
            json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "null"}}});
        assert_eq!(schema(given).expect("fine"), Some(json!({"type": "null"})));
    }

    #[test]
    fn what_is_wrong_is_blamed_by_its_field() {
        for (format, field) in [
            (json!({"type": "xml"}), "response_format.type"),
            (json!({"type": "json_schema"}), "response_format.json_schema"),
            (json!({"type": "text", "schema": {}}), "response_format.schema"),
            (json!({"type": "json_object", "json_schema": {"name": "a"}}), "response_format.json_schema"),
            (json!({"type": "json_object", "value": {}}), "response_format.value"),
            (json!({"type": "json_schema", "json_schema": {"name": "a b"}}), "response_format.json_schema.name"),
            (
                json!({"type": "json_schema", "json_schema": {"name": "a".repeat(65)}}),
                "response_format.json_schema.name",
            ),
            (
                json!({"type": "json_schema", "json_schema": {"name": "a", "schema": []}}),
                "response_format.json_schema.schema",
            ),
        ] {
            let Err(problem) = schema(format) else { panic!("{field} was not refused") };
            assert_eq!(problem.error.param.as_deref(), Some(field));
        }
    }
}
