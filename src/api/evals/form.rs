//! The form of an eval's items, and its criteria. Read when an eval is created; a run reads the same again from the row.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::graders::check;
use crate::api::http::error::{Problem, Result};
use crate::graders::item_schema::check_schema;
use crate::graders::spec::{Grader, Purpose, normalized};

/// Most criteria of an eval.
const MAX_CRITERIA: usize = 32;
const CONFIG: &str = "data_source_config";

/// A criterion of an eval.
pub(super) struct Criterion {
    pub id: String,
    pub grader: Grader,
}

/// Returns the form of the items as it is shown, with the schema of items and samples.
pub(super) fn config(given: &Value) -> Result<Value> {
    let refused = |field: &str, code, message: &str| {
        let dot = if field.is_empty() { "" } else { "." };
        Err(Problem::invalid_code(format!("{CONFIG}{dot}{field}"), code, message))
    };
    let Some(config) = given.as_object() else {
        return refused("", "invalid_type", "'data_source_config' must be an object.");
    };
    let kind = config.get("type").and_then(Value::as_str).unwrap_or_default();
    let known: &[&str] = match kind {
        "custom" => &["type", "item_schema", "include_sample_schema", "schema"],
        "logs" | "stored_completions" => &["type", "metadata", "schema"],
        _ => {
            let message = "The type of a data source's form must be custom, logs or stored_completions.";
            return refused("type", "invalid_value", message);
        }
    };
    if let Some((name, _)) = config.iter().find(|(name, value)| !known.contains(&name.as_str()) && !value.is_null()) {
        let message = format!("'{name}' is not a field of a form of type '{kind}'.");
        return refused(name, "unsupported_parameter", &message);
    }
    if kind != "custom" {
        let notes = config.get("metadata").filter(|notes| !notes.is_null()).cloned().unwrap_or_else(|| json!({}));
        if !notes.as_object().is_some_and(|notes| notes.values().all(Value::is_string)) {
            return refused("metadata", "invalid_type", "'metadata' must be an object of texts.");
        }
        let schema = json!({"type": "object", "properties": {"item": stored_schema(), "sample": sample_schema()},
                            "required": ["item", "sample"]});
        return Ok(json!({"type": kind, "metadata": notes, "schema": schema}));
    }
    let Some(item) = config.get("item_schema").filter(|schema| schema.is_object()) else {
        return refused("item_schema", "missing_required_parameter", "'item_schema' must be a JSON schema: an object.");
    };
    if let Err(message) = check_schema(item) {
        return refused("item_schema", "invalid_value", &message);
    }
    let mut properties = Map::new();
    properties.insert("item".into(), item.clone());
    let with_sample = match config.get("include_sample_schema") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(with_sample)) => *with_sample,
        Some(_) => {
            return refused("include_sample_schema", "invalid_type", "'include_sample_schema' must be true or false.");
        }
    };
    if with_sample {
        properties.insert("sample".into(), sample_schema());
    }
    let required: Vec<String> = properties.keys().cloned().collect();
    Ok(json!({"type": "custom", "schema": {"type": "object", "properties": properties, "required": required}}))
}

/// Returns the schema of stored answers as items.
fn stored_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "input": {"type": "array", "items": {"type": "object"}},
            "id": {"type": "string"},
            "model": {"type": "string"},
            "created_at": {"type": "integer"},
            "metadata": {"type": "object"},
        },
        "required": ["input"],
    })
}

/// Returns the schema of an answer, which templates use as `sample`.
fn sample_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "output_text": {"type": "string"},
            "output_json": {},
            "output_tools": {"type": "array", "items": {"type": "object"}},
            "choices": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["output_text"],
    })
}

/// Checks the criteria and gives each an id.
pub(super) async fn criteria(state: &ApiState, caller: &Caller, given: Vec<Value>) -> Result<Value> {
    if given.is_empty() || given.len() > MAX_CRITERIA {
        let message = format!("'testing_criteria' must have 1 to {MAX_CRITERIA} graders.");
        return Err(Problem::invalid_code("testing_criteria", "invalid_value", message));
    }
    let mut criteria = Vec::new();
    for (index, value) in given.iter().enumerate() {
        let param = format!("testing_criteria[{index}]");
        let grader = check::whole(state, caller, value, &param, Purpose::Criterion).await?;
        let mut criterion = normalized(value);
        criterion["id"] = format!("{}-{}", grader.name, Uuid::new_v4()).into();
        criteria.push(criterion);
    }
    Ok(criteria.into())
}

/// Reads the criteria of a row; an error says which one this version of the server does not take.
pub(super) fn stored_criteria(criteria: &Value) -> Result<Vec<Criterion>, String> {
    let read = |value: &Value| {
        let grader = Grader::parse(value, Purpose::Criterion).map_err(|fault| fault.to_string())?;
        let id = value.get("id").and_then(Value::as_str).unwrap_or(&grader.name).to_owned();
        Ok(Criterion { id, grader })
    };
    criteria.as_array().into_iter().flatten().map(read).collect()
}

/// Returns the JSON schema of the items of a row's form.
pub(super) fn item_schema(config: &Value) -> &Value {
    &config["schema"]["properties"]["item"]
}

/// Returns the notes that stored answers must have to be items of a row's form; none for a form of the type `custom`.
pub(super) fn required_notes(config: &Value) -> Option<&Map<String, Value>> {
    config["metadata"].as_object()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_shown_with_the_schema_of_item_and_sample() {
        let given = json!({"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": true});
        let shown = config(&given).expect("a form");
        assert_eq!(item_schema(&shown), &given["item_schema"]);
        assert_eq!(shown["schema"]["required"], json!(["item", "sample"]));
        assert!(shown.get("item_schema").is_none());
    }

    #[test]
    fn stored_answers_have_a_form_of_their_own() {
        for kind in ["logs", "stored_completions"] {
            let shown = config(&json!({"type": kind, "metadata": {"a": "b"}})).expect("a form");
            assert_eq!((shown["type"].as_str(), shown["schema"]["required"][1].as_str()), (Some(kind), Some("sample")));
            assert_eq!(item_schema(&shown)["required"], json!(["input"]));
            assert_eq!(required_notes(&shown).expect("notes").len(), 1);
        }
        let custom = config(&json!({"type": "custom", "item_schema": {}})).expect("a form");
        assert!(required_notes(&custom).is_none());
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        for (given, param) in [
            (json!(3), "data_source_config"),
            (json!({}), "data_source_config.type"),
            (json!({"type": "other"}), "data_source_config.type"),
            (json!({"type": "logs", "item_schema": {}}), "data_source_config.item_schema"),
            (json!({"type": "logs", "metadata": {"a": 1}}), "data_source_config.metadata"),
            (json!({"type": "custom"}), "data_source_config.item_schema"),
            (json!({"type": "custom", "item_schema": {"$ref": "x"}}), "data_source_config.item_schema"),
            (
                json!({"type": "custom", "item_schema": {}, "include_sample_schema": 1}),
                "data_source_config.include_sample_schema",
            ),
            (json!({"type": "custom", "item_schema": {}, "metadata": {"a": "b"}}), "data_source_config.metadata"),
        ] {
            let problem = config(&given).expect_err("a fault");
            assert_eq!(problem.error.param.as_deref(), Some(param), "{given}");
        }
    }
}
