//! The committed API document equals the one that the routes yield.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;

use serde_json::Value;

fn document() -> Value {
    serde_json::from_str(&attune::api::document_text().expect("a document")).expect("JSON")
}

#[test]
fn the_committed_document_is_up_to_date() {
    let committed = include_str!("../../openapi/openapi.json");
    let current = attune::api::document_text().expect("a document");
    assert!(
        committed == current,
        "openapi/openapi.json differs from the routes. Write it anew and commit it:\n\n    \
         cargo run -- openapi > openapi/openapi.json\n"
    );
}

#[test]
fn every_operation_has_its_own_id_a_summary_and_documented_failures() {
    let document = document();
    let mut ids = HashSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{id} names two operations");
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
            if path.starts_with("/v1/") {
                let failure = &operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"];
                assert_eq!(failure, "#/components/schemas/ErrorBody", "{method} {path}");
            }
        }
    }
    assert!(ids.len() > 25, "only {} operations", ids.len());
}

#[test]
fn every_schema_that_is_named_exists() {
    fn names(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                let name = object.get("$ref").and_then(Value::as_str);
                found.extend(name.and_then(|name| name.strip_prefix("#/components/schemas/")).map(str::to_owned));
                object.values().for_each(|value| names(value, found));
            }
            Value::Array(array) => array.iter().for_each(|value| names(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    names(&document, &mut found);
    for name in found {
        assert!(document["components"]["schemas"].get(&name).is_some(), "the schema {name} is missing");
    }
}
