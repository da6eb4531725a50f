//! What the old account tells, in the forms in which this server takes it: evals, items with answers, lines of training
//! files.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{MAX_NOTES, OLD_ID};
use crate::cli::move_in::folder::{OldCompletion, OldEval};

/// Fields of an answer that are learnt, as a training file has them.
const LEARNT: [&str; 4] = ["role", "content", "tool_calls", "function_call"];
/// Fields of an item that is a stored answer, on this server.
const STORED: [&str; 5] = ["id", "input", "model", "metadata", "created_at"];

/// Returns the request for an eval like the old one; an error says why this server cannot hold it.
pub(super) fn eval_request(eval: &OldEval) -> Result<Value, String> {
    let mut criteria = eval.object["testing_criteria"].clone();
    for criterion in criteria.as_array_mut().into_iter().flatten() {
        if let Some(fields) = criterion.as_object_mut() {
            fields.shift_remove("id");
        }
    }
    let config = &eval.object["data_source_config"];
    let config = match config["type"].as_str().unwrap_or_default() {
        "custom" => custom_form(config),
        kind if is_of_stored_answers(eval) => {
            let mut places = BTreeSet::new();
            places_of_item(&criteria, &mut places);
            let known = |place: &&String| STORED.iter().any(|field| place.strip_prefix("item.") == Some(field));
            if let Some(place) = places.iter().find(|place| !known(place)) {
                return Err(format!("a criterion asks for {{{{{place}}}}}, which stored answers do not have here"));
            }
            json!({"type": kind, "metadata": config["metadata"]})
        }
        kind => return Err(format!("its data source has the type {kind}")),
    };
    Ok(json!({
        "name": eval.name,
        "data_source_config": config,
        "testing_criteria": criteria,
        "metadata": with_old_id(&eval.object["metadata"], &eval.id),
    }))
}

/// Returns true if the items of an eval are answers that the account stored.
pub(super) fn is_of_stored_answers(eval: &OldEval) -> bool {
    matches!(eval.object["data_source_config"]["type"].as_str(), Some("logs" | "stored_completions"))
}

fn custom_form(config: &Value) -> Value {
    // What was sent as `item_schema` is shown inside of `schema`.
    let properties = &config["schema"]["properties"];
    let schema = if config["item_schema"].is_object() { &config["item_schema"] } else { &properties["item"] };
    json!({"type": "custom", "item_schema": schema, "include_sample_schema": properties["sample"].is_object()})
}

/// Collects what templates ask of an item, as far as its own fields: `item.input`.
fn places_of_item(value: &Value, places: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            let written = text.split("{{").skip(1).filter_map(|rest| rest.split_once("}}"));
            for (place, _) in written {
                let mut steps = place.split(['.', '[']).map(str::trim);
                if steps.next() == Some("item") {
                    places.insert(steps.next().map_or_else(|| "item".to_owned(), |field| format!("item.{field}")));
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| places_of_item(value, places)),
        Value::Object(fields) => fields.values().for_each(|value| places_of_item(value, places)),
        _ => {}
    }
}

/// Returns the metadata with the old id; of sixteen entries the last gives way.
pub(super) fn with_old_id(metadata: &Value, id: &str) -> Map<String, Value> {
    let mut notes = metadata.as_object().cloned().unwrap_or_default();
    notes.retain(|name, value| name != OLD_ID && value.is_string());
    let surplus: Vec<String> = notes.keys().skip(MAX_NOTES - 1).cloned().collect();
    for name in surplus {
        notes.shift_remove(&name);
    }
    notes.insert(OLD_ID.into(), id.into());
    notes
}

/// Returns an item with the answer that it was given, for a run that asks nobody; `None` without an answer of text. Where
/// the items are stored answers, what was asked stands beside the answer, too.
pub(super) fn given_line(item: &Value, is_stored: bool) -> Option<Value> {
    let sample = &item["sample"];
    let answers = sample["output"].as_array()?;
    let text = answers.iter().rev().find_map(|message| message["content"].as_str())?;
    let mut fields = match &item["datasource_item"] {
        Value::Object(fields) => fields.clone(),
        _ if is_stored => Map::new(),
        _ => return None,
    };
    if is_stored {
        fields.retain(|_, value| !value.is_null());
        fields.entry("input").or_insert_with(|| sample["input"].clone());
    }
    Some(json!({"item": fields, "sample": {"output_text": text}}))
}

/// Returns a line of a training file of a stored chat; an error says why there is none.
pub(super) fn training_line(chat: &OldCompletion) -> Result<Value, String> {
    let mut messages = Vec::new();
    for message in &chat.messages {
        let mut kept = Map::new();
        for name in ["role", "content", "name", "tool_calls", "tool_call_id", "function_call"] {
            if !message[name].is_null() {
                kept.insert(name.into(), message[name].clone());
            }
        }
        if let Some(parts) = message["content_parts"].as_array().filter(|_| message["content"].is_null()) {
            if let Some(part) = parts.iter().find(|part| part["type"] != "text") {
                return Err(format!("a message has a part of the type {}", part["type"]));
            }
            kept.insert("content".into(), parts.clone().into());
        }
        messages.push(Value::Object(kept));
    }
    if messages.is_empty() {
        return Err("what was asked is not known".into());
    }
    let choice = &chat.object["choices"][0];
    if !matches!(choice["finish_reason"].as_str(), Some("stop" | "tool_calls" | "function_call")) {
        return Err("the answer was not ended".into());
    }
    let mut answer = choice["message"].as_object().cloned().ok_or("there is no answer")?;
    answer.retain(|name, value| LEARNT.contains(&name.as_str()) && !value.is_null());
    messages.push(Value::Object(answer));
    let mut line = json!({"messages": messages});
    if chat.object["tools"].as_array().is_some_and(|tools| !tools.is_empty()) {
        line["tools"] = chat.object["tools"].clone();
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(object: Value, messages: &Value) -> OldCompletion {
        OldCompletion { id: "chatcmpl-1".into(), object, messages: messages.as_array().cloned().unwrap_or_default() }
    }

    fn answered(message: &Value, finish_reason: &str) -> Value {
        json!({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], "tools": null})
    }

    #[test]
    fn a_stored_chat_becomes_a_line_without_what_is_not_learnt() {
        let asked = json!([
            {"id": "1-0", "role": "user", "content": null, "name": null,
             "content_parts": [{"type": "text", "text": "hi"}]},
        ]);
        let said = json!({"role": "assistant", "content": "hello", "refusal": null, "annotations": []});
        let line = training_line(&chat(answered(&said, "stop"), &asked)).expect("a line");
        let expected = json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "hello"},
        ]});
        assert_eq!(line, expected);
        assert!(training_line(&chat(answered(&said, "length"), &asked)).is_err());
        assert!(training_line(&chat(answered(&said, "stop"), &json!([]))).is_err());
        let image = json!([{"role": "user", "content": null, "content_parts": [{"type": "image_url"}]}]);
        let fault = training_line(&chat(answered(&said, "stop"), &image)).expect_err("a fault");
        assert!(fault.contains("image_url"), "{fault}");
    }

    #[test]
    fn an_eval_is_asked_for_in_the_form_that_is_sent() {
        let object = json!({
            "id": "eval_1", "name": "n", "metadata": {"team": "a"},
            "data_source_config":
                {"type": "custom", "schema": {"properties": {"item": {"type": "object"}, "sample": {}}}},
            "testing_criteria": [{"type": "string_check", "name": "c", "id": "c-1"}],
        });
        let eval = |object: Value| OldEval { id: "eval_1".into(), name: "n".into(), runs: Vec::new(), object };
        let request = eval_request(&eval(object)).expect("a request");
        assert_eq!(request["data_source_config"]["item_schema"], json!({"type": "object"}));
        assert_eq!(request["data_source_config"]["include_sample_schema"], true);
        assert_eq!(request["testing_criteria"], json!([{"type": "string_check", "name": "c"}]));
        assert_eq!(request["metadata"], json!({"team": "a", OLD_ID: "eval_1"}));
        let other = json!({"id": "eval_1", "data_source_config": {"type": "traces"}});
        assert!(eval_request(&eval(other)).is_err_and(|reason| reason.contains("traces")));
    }

    #[test]
    fn an_eval_over_stored_answers_keeps_its_type_and_its_notes() {
        let eval = |kind: &str, input: &str| OldEval {
            id: "eval_1".into(),
            name: "n".into(),
            runs: Vec::new(),
            object: json!({
                "id": "eval_1",
                "data_source_config": {"type": kind, "metadata": {"app": "desk"}, "schema": {"type": "object"}},
                "testing_criteria": [{"type": "score_model", "name": "c", "id": "c-1", "input": [
                    {"role": "user", "content": {"type": "input_text", "text": input}}]}],
            }),
        };
        for kind in ["logs", "stored_completions"] {
            let request =
                eval_request(&eval(kind, "{{ item.input[0].content }} {{item.metadata.app}}: {{sample.output_text}}"));
            let request = request.expect("a request");
            assert_eq!(request["data_source_config"], json!({"type": kind, "metadata": {"app": "desk"}}));
            assert!(request["testing_criteria"][0].get("id").is_none());
        }
        for (input, named) in [("{{item.input}} {{item.tools[0]}}", "{{item.tools}}"), ("{{item}}", "{{item}}")] {
            let reason = eval_request(&eval("logs", input)).expect_err("a reason");
            assert!(reason.contains(named), "{reason}");
        }
    }

    #[test]
    fn an_item_has_its_answer_and_a_stored_answer_what_was_asked() {
        let asked = json!([{"role": "user", "content": "hi"}]);
        let item = |given: Value| {
            let output = json!([{"role": "assistant", "content": "hello"}]);
            json!({"datasource_item": given, "sample": {"input": asked, "output": output}})
        };
        let line = |item: &Value| json!({"item": item, "sample": {"output_text": "hello"}});
        for (given, is_stored, expected) in [
            (json!({"x": null}), false, Some(line(&json!({"x": null})))),
            (Value::Null, false, None),
            (Value::Null, true, Some(line(&json!({"input": asked})))),
            (json!({"input": "hi", "metadata": null}), true, Some(line(&json!({"input": "hi"})))),
        ] {
            assert_eq!(given_line(&item(given.clone()), is_stored), expected, "{given}");
        }
        assert!(given_line(&json!({"datasource_item": {}, "sample": {"output": [{"content": null}]}}), true).is_none());
    }

    #[test]
    fn the_old_id_has_a_place_among_sixteen_notes() {
        let full: Map<String, Value> = (0..MAX_NOTES).map(|n| (format!("n{n}"), "v".into())).collect();
        let notes = with_old_id(&Value::Object(full), "eval_1");
        assert_eq!((notes.len(), &notes[OLD_ID]), (MAX_NOTES, &json!("eval_1")));
    }
}
