//! Stored answers as the items of a run: what was asked, what was answered then, and what another model needs besides
//! the messages to be asked the same.

use serde_json::{Map, Value, json};

use super::answering::{Answered, Told, shown};
use super::data_source::as_chat;
use crate::api::ApiState;
use crate::api::generation::responses::messages_of;
use crate::api::graders::ask::Tokens;
use crate::api::http::error::{Problem, Result};
use crate::graders::template::Sample;
use crate::store;
use crate::store::stored_completions::StoredCompletion;

/// A stored answer.
pub(super) struct Stored {
    /// `id`, `input` (the messages of a chat), `model`, `metadata` and `created_at`.
    pub item: Value,
    /// What was answered then.
    pub answered: Answered,
    /// Fields of a request for chat beside the messages: the tools and the form of the answer. An error if this
    /// server's chat has no such fields.
    pub request: Result<Map<String, Value>, String>,
}

/// Reads a chat; the inner error says why it is no item.
pub(super) async fn completion(state: &ApiState, organization: &str, id: &str) -> Result<Result<Stored, String>> {
    match state.store.stored_completion(organization, id).await {
        Ok(found) => Ok(Ok(Stored::of_chat(found))),
        Err(store::Error::NotFound { .. }) => Ok(Err(gone(id))),
        Err(error) => Err(error.into()),
    }
}

/// Reads a response; the inner error says why it is no item.
pub(super) async fn response(state: &ApiState, organization: &str, id: &str) -> Result<Result<Stored, String>> {
    let Some(found) = state.store.response(organization, id).await? else { return Ok(Err(gone(id))) };
    let object: Value = serde_json::from_str(&found.response)
        .map_err(|error| Problem::defect(format_args!("a response that is kept: {error}")))?;
    match messages_of(state, organization, &found, &object).await {
        Ok(messages) => Ok(Ok(Stored::of_response(id, &json!(messages), &object))),
        Err(problem) if problem.status.is_server_error() => Err(problem),
        Err(problem) => Ok(Err(problem.error.message)),
    }
}

fn gone(id: &str) -> String {
    format!("The stored answer {id} is not there any more.")
}

impl Stored {
    fn of_chat(StoredCompletion { id, completion, messages }: StoredCompletion) -> Self {
        let item = json!({
            "id": id,
            "input": &messages,
            "model": completion["model"],
            "metadata": completion["metadata"],
            "created_at": completion["created"],
        });
        // The first choice is the answer; templates find the others in `sample.choices`.
        let choice = &completion["choices"][0];
        let message = &choice["message"];
        let usage = &completion["usage"];
        let told = Told {
            model: completion["model"].as_str(),
            finish_reason: choice["finish_reason"].as_str(),
            tokens: usage.is_object().then(|| Tokens::read(usage)),
            settings: completion.as_object(),
        };
        let answered = Answered {
            sample: Sample {
                text: Some(message["content"].as_str().unwrap_or_default().to_owned()),
                tools: Some(
                    message.get("tool_calls").filter(|calls| calls.is_array()).cloned().unwrap_or_else(|| json!([])),
                ),
                choices: Some(completion["choices"].clone()),
            },
            shown: shown(&messages, std::slice::from_ref(message), Some(told)),
            usage: None,
        };
        let mut request = Map::new();
        for name in ["tools", "tool_choice", "functions", "response_format"] {
            if let Some(value) = completion.get(name).filter(|value| !value.is_null()) {
                request.insert(name.into(), value.clone());
            }
        }
        let is_continued = messages.last().is_some_and(|message| message["role"] == "assistant");
        let why = || "The answer continues a message of the assistant, which cannot be asked for again.".to_owned();
        let request = if is_continued { Err(why()) } else { Ok(request) };
        Self { item, answered, request }
    }

    fn of_response(id: &str, messages: &Value, object: &Value) -> Self {
        let item = json!({
            "id": id,
            "input": messages,
            "model": object["model"],
            "metadata": object["metadata"],
            "created_at": object["created_at"],
        });
        let (mut text, mut calls) = (String::new(), Vec::new());
        for output in object["output"].as_array().into_iter().flatten() {
            match output["type"].as_str().unwrap_or_default() {
                "message" => {
                    let parts = output["content"].as_array().into_iter().flatten();
                    parts.filter_map(|part| part["text"].as_str()).for_each(|part| text.push_str(part));
                }
                "function_call" => calls.push(json!({"id": output["call_id"], "type": "function",
                    "function": {"name": output["name"], "arguments": output["arguments"]}})),
                "custom_tool_call" => calls.push(json!({"id": output["call_id"], "type": "custom",
                    "custom": {"name": output["name"], "input": output["input"]}})),
                _ => {}
            }
        }
        let finish_reason = match object["status"].as_str() {
            Some("incomplete") => "length",
            _ if calls.is_empty() => "stop",
            _ => "tool_calls",
        };
        let mut message = json!({"role": "assistant", "content": text});
        if !calls.is_empty() {
            message["tool_calls"] = calls.clone().into();
        }
        let count = |value: &Value| value.as_u64().unwrap_or_default();
        let usage = &object["usage"];
        let tokens = Tokens {
            prompt: count(&usage["input_tokens"]),
            completion: count(&usage["output_tokens"]),
            cached: count(&usage["input_tokens_details"]["cached_tokens"]),
        };
        let mut settings = object.as_object().cloned().unwrap_or_default();
        settings.insert("max_completion_tokens".into(), object["max_output_tokens"].clone());
        let told = Told {
            model: object["model"].as_str(),
            finish_reason: Some(finish_reason),
            tokens: usage.is_object().then_some(tokens),
            settings: Some(&settings),
        };
        let input = messages.as_array().map(Vec::as_slice).unwrap_or_default();
        let shown = shown(input, std::slice::from_ref(&message), Some(told));
        let choices = json!([{"index": 0, "message": message, "finish_reason": finish_reason}]);
        let sample = Sample { text: Some(text), tools: Some(calls.into()), choices: Some(choices) };
        Self { item, answered: Answered { sample, shown, usage: None }, request: request_of(object) }
    }
}

/// Returns the fields of a request for chat that a response stands for, beside its messages.
fn request_of(object: &Value) -> Result<Map<String, Value>, String> {
    let mut given = Map::new();
    given.insert("text".into(), object["text"].clone());
    if object["tools"].as_array().is_some_and(|tools| !tools.is_empty()) {
        let tools = object["tools"].as_array().into_iter().flatten().cloned().map(|mut tool| {
            if let Some(fields) = tool.as_object_mut() {
                fields.retain(|_, value| !value.is_null());
            }
            tool
        });
        given.insert("tools".into(), tools.collect());
    }
    let mut request = as_chat(given).map_err(|fault| format!("The request cannot be made again: {}", fault.message))?;
    if request.contains_key("tools") {
        request.insert("tool_choice".into(), tool_choice(&object["tool_choice"]));
    }
    Ok(request)
}

/// Turns a choice of tools into the one of a chat, where names stand one level below.
fn tool_choice(choice: &Value) -> Value {
    let named = |tool: &Value| json!({"type": "function", "function": {"name": tool["name"]}});
    match choice["type"].as_str() {
        Some("function") if choice["name"].is_string() => named(choice),
        Some("allowed_tools") if choice["tools"].is_array() => {
            let tools: Vec<Value> = choice["tools"].as_array().into_iter().flatten().map(named).collect();
            json!({"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": tools}})
        }
        _ => choice.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_has_its_first_choice_as_the_answer_and_its_tools_for_others() {
        let call = json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
        let completion = json!({
            "model": "m", "created": 5, "metadata": {"a": "b"}, "tools": [{"type": "function"}], "tool_choice": null,
            "choices": [{"message": {"content": null, "tool_calls": call}, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "temperature": 0.5, "seed": 7,
        });
        let messages = vec![json!({"role": "user", "content": "x"})];
        let stored = Stored::of_chat(StoredCompletion { id: "i".into(), completion, messages: messages.clone() });
        assert_eq!(stored.item["input"], json!(messages));
        assert_eq!(stored.answered.sample.tools, Some(call));
        assert_eq!(
            (&stored.answered.shown["usage"]["total_tokens"], &stored.answered.shown["seed"]),
            (&json!(5), &json!(7))
        );
        assert_eq!(Value::from(stored.request.expect("fields")), json!({"tools": [{"type": "function"}]}));
        let messages = vec![json!({"role": "assistant", "content": "It is"})];
        let continued = StoredCompletion { id: "i".into(), completion: json!({}), messages };
        assert!(Stored::of_chat(continued).request.is_err());
    }

    #[test]
    fn a_response_is_an_answer_of_a_chat() {
        let object = json!({
            "model": "m", "status": "completed", "metadata": {}, "tool_choice": {"type": "function", "name": "f"},
            "output": [
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "message", "content": [{"type": "output_text", "text": "yes"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            ],
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
            "tools": [{"type": "function", "name": "f", "description": null, "parameters": {}}],
        });
        let stored = Stored::of_response("r", &json!([]), &object);
        assert_eq!(stored.answered.sample.text.as_deref(), Some("yes"));
        assert_eq!(stored.answered.shown["finish_reason"], "tool_calls");
        let request = stored.request.expect("fields");
        assert_eq!(request["response_format"]["json_schema"], json!({"name": "n", "schema": {}}));
        assert_eq!(request["tools"], json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]));
        assert_eq!(request["tool_choice"], json!({"type": "function", "function": {"name": "f"}}));
        let custom = json!({"text": {}, "tools": [{"type": "custom", "name": "f"}]});
        assert!(request_of(&custom).is_err());
    }
}
