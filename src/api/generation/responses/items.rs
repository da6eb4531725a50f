//! Items of a conversation, as clients write them and as they are kept, and the messages of a chat that they stand for.
//! Used by `conversation` for the input of a request and for what it goes on from, and by `conversations`.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::summary;
use crate::api::generation::chat::{ChatContent, ChatMessage, MessageFunction, MessageToolCall, arguments_of};
use crate::api::http::error::{Problem, Result};
use crate::datasets::parse::shorten;
use crate::store::new_id;

/// Types of items about tools that a server calls. This one has none of them, so they add nothing to a conversation.
const HOSTED: [&str; 19] = [
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "computer_call",
    "computer_call_output",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "mcp_call",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "tool_search_call",
    "tool_search_output",
    "additional_tools",
];

/// Largest length of an item's id: it stands in the paths of routes and in indexes.
const MAX_ID_BYTES: usize = 512;
/// What the model is shown before a summary.
const SUMMARY: &str = "Summary of the conversation so far:\n\n";

/// An item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// What somebody said.
    Message { role: String, text: String },
    /// What the model thought.
    Reasoning(String),
    /// A call of a function, or of a custom tool, whose input is then its argument.
    Call { id: String, name: String, arguments: String },
    /// What came of a call.
    Output { id: String, text: String },
    /// What stands for a conversation that was compacted.
    Summary(String),
    /// An item that is kept.
    Reference(String),
    /// Nothing that a model could be told.
    Nothing,
}

/// Reads an item; errors name fields below `place`, such as `input[0]`.
pub(super) fn read(item: &Value, place: &str) -> Result<Item> {
    let Some(fields) = item.as_object() else {
        return Err(Problem::wrong_type(place.to_owned(), "expected an object"));
    };
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Err(Problem::missing(format!("{place}.{name}"))),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Problem::wrong_type(format!("{place}.{name}"), "expected a string")),
    };
    let kind = match fields.get("type") {
        Some(Value::String(kind)) => kind.as_str(),
        None | Some(Value::Null) if fields.contains_key("role") => "message",
        None | Some(Value::Null) if fields.contains_key("id") => "item_reference",
        None | Some(Value::Null) => return Err(Problem::missing(format!("{place}.type"))),
        Some(_) => return Err(Problem::wrong_type(format!("{place}.type"), "expected a string")),
    };
    match kind {
        "message" => {
            let role = text("role")?;
            if !["user", "assistant", "system", "developer"].contains(&role.as_str()) {
                let message = format!("'{}' is not a role: use user, assistant, system or developer.", shorten(&role));
                return Err(Problem::invalid_code(format!("{place}.role"), "invalid_value", message));
            }
            Ok(Item::Message { role, text: content(fields.get("content"), &format!("{place}.content"))? })
        }
        "reasoning" => Ok(Item::Reasoning(reasoning(item))),
        "function_call" => Ok(Item::Call { id: text("call_id")?, name: text("name")?, arguments: text("arguments")? }),
        "custom_tool_call" => {
            let arguments = arguments_of(&text("input")?);
            Ok(Item::Call { id: text("call_id")?, name: text("name")?, arguments })
        }
        "function_call_output" | "custom_tool_call_output" => {
            Ok(Item::Output { id: text("call_id")?, text: content(fields.get("output"), &format!("{place}.output"))? })
        }
        "item_reference" => Ok(Item::Reference(text("id")?)),
        "compaction" => {
            let summary = summary::read(&text("encrypted_content")?);
            summary.map(Item::Summary).ok_or_else(|| {
                let message = "This compaction was made by another server or is damaged: only those of \
                               /v1/responses/compact of Attune can be read. Send the conversation itself instead.";
                Problem::invalid_code(format!("{place}.encrypted_content"), "invalid_value", message)
            })
        }
        kind if HOSTED.contains(&kind) => Ok(Item::Nothing),
        other => {
            let message = format!("'{}' is not a supported type of items.", shorten(other));
            Err(Problem::invalid_code(format!("{place}.type"), "invalid_value", message))
        }
    }
}

/// Refuses an item that a client sends with an id or a status that is no text, or an id that is too long to ask for.
pub(super) fn check_labels(item: &Value, place: &str) -> Result<()> {
    for name in ["id", "status"] {
        if item.get(name).is_some_and(|value| !value.is_null() && !value.is_string()) {
            return Err(Problem::wrong_type(format!("{place}.{name}"), "expected a string"));
        }
    }
    match item.get("id").and_then(Value::as_str) {
        Some(id) if id.len() > MAX_ID_BYTES => {
            let message = format!("'{place}.id' has {} bytes; it may have {MAX_ID_BYTES}.", id.len());
            Err(Problem::invalid_code(format!("{place}.id"), "string_above_max_length", message))
        }
        _ => Ok(()),
    }
}

/// True for messages of the roles user, system and developer.
pub(super) fn is_said_to_the_model(item: &Value) -> bool {
    item["type"] == "message" && ["user", "system", "developer"].iter().any(|role| item["role"] == *role)
}

/// Returns the items that are left of a conversation that the server keeps: of what stands before its last compaction
/// only what the user, the system and the developer said.
pub(super) fn pruned(items: Vec<Value>) -> Vec<Value> {
    let last = items.iter().rposition(|item| item["type"] == "compaction").unwrap_or(0);
    let is_left = |(index, item): &(usize, Value)| *index >= last || is_said_to_the_model(item);
    items.into_iter().enumerate().filter(is_left).map(|(_, item)| item).collect()
}

/// Reads a text, or the texts of parts, which are joined.
fn content(content: Option<&Value>, place: &str) -> Result<String> {
    let parts = match content {
        None | Some(Value::Null) => return Err(Problem::missing(place.to_owned())),
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(Problem::wrong_type(place.to_owned(), "expected a string or an array of parts")),
    };
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        let kind = part["type"].as_str().unwrap_or_default();
        let field = match kind {
            "input_text" | "output_text" | "text" => "text",
            "refusal" => "refusal",
            other => {
                let message =
                    format!("'{}' is not a supported type of parts: only texts are read here.", shorten(other));
                return Err(Problem::invalid_code(format!("{place}[{index}].type"), "invalid_value", message));
            }
        };
        let piece = part[field].as_str();
        text.push_str(piece.ok_or_else(|| Problem::missing(format!("{place}[{index}].{field}")))?);
    }
    Ok(text)
}

/// Returns the text of an item of reasoning, or else of its summary; nothing where another server has encrypted it.
fn reasoning(item: &Value) -> String {
    let texts = |field: &str| {
        let parts = item[field].as_array().into_iter().flatten();
        parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
    };
    let content = texts("content");
    if content.is_empty() { texts("summary") } else { content }
}

/// Brings an item of a request into the form in which it is kept and shown: with an id and a type, and with parts.
pub(crate) fn kept(mut item: Value) -> Value {
    let Some(fields) = item.as_object_mut() else { return item };
    let given = fields.get("type").and_then(Value::as_str).map(str::to_owned);
    let kind = given.unwrap_or_else(|| "message".into());
    let prefix = match kind.as_str() {
        "message" => "msg_",
        "function_call" => "fc_",
        "function_call_output" => "fco_",
        "custom_tool_call" => "ctc_",
        "custom_tool_call_output" => "ctco_",
        "reasoning" => "rs_",
        "compaction" => "cmp_",
        _ => "item_",
    };
    if fields.get("id").and_then(Value::as_str).is_none_or(str::is_empty) {
        fields.insert("id".into(), new_id(prefix).into());
    }
    match kind.as_str() {
        "message" => {
            let assistant = fields.get("role").is_some_and(|role| role == "assistant");
            if let Some(Value::String(text)) = fields.get("content") {
                let part = if assistant {
                    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
                } else {
                    json!({"type": "input_text", "text": text})
                };
                fields.insert("content".into(), json!([part]));
            }
            complete(fields);
        }
        "function_call" | "function_call_output" | "custom_tool_call" | "custom_tool_call_output" => complete(fields),
        "reasoning" => {
            let summary = fields.entry("summary").or_insert_with(|| json!([]));
            if summary.is_null() {
                *summary = json!([]);
            }
        }
        _ => {}
    }
    fields.insert("type".into(), kind.into());
    item
}

fn complete(fields: &mut serde_json::Map<String, Value>) {
    if fields.get("status").is_none_or(Value::is_null) {
        fields.insert("status".into(), "completed".into());
    }
}

/// Returns the messages of a chat that items stand for: the reasoning, the text and the calls of one turn are one
/// message. Refuses calls without a result, and results without their call before them.
pub(super) fn messages(items: Vec<Item>) -> Result<Vec<ChatMessage>> {
    let mut messages: Vec<ChatMessage> = Vec::new();
    // How many calls of an id wait for a result; and all ids, since the first one without any is named.
    let mut open: HashMap<String, usize> = HashMap::new();
    let mut called: Vec<String> = Vec::new();
    let mut thought = None;
    for item in items {
        match item {
            Item::Message { role, text } if role == "assistant" => {
                let turn = turn(&mut messages, &mut thought, |turn| turn.content.is_none());
                turn.content = Some(ChatContent::Text(text));
            }
            Item::Message { role, text } => {
                thought = None;
                messages.push(said(role, text));
            }
            Item::Reasoning(text) if text.is_empty() => {}
            // It belongs to what follows it; reasoning that nothing follows is left out.
            Item::Reasoning(text) => thought = Some(text),
            Item::Call { id, name, arguments } => {
                *open.entry(id.clone()).or_default() += 1;
                called.push(id.clone());
                let function = Some(MessageFunction { name, arguments });
                let call = MessageToolCall { id, kind: Some("function".into()), function, custom: None };
                turn(&mut messages, &mut thought, |_| true).tool_calls.get_or_insert_default().push(call);
            }
            Item::Output { id, text } => {
                let Some(calls) = open.get_mut(&id).filter(|calls| **calls > 0) else {
                    let message = format!("No tool call found for function call output with call_id {}.", shorten(&id));
                    return Err(Problem::invalid_code("input", "invalid_value", message));
                };
                *calls -= 1;
                thought = None;
                messages.push(ChatMessage { tool_call_id: Some(id), ..said("tool".into(), text) });
            }
            Item::Summary(text) => {
                thought = None;
                // The user's messages stand in a row before it, which templates that want turns to alternate refuse.
                join_last_of_user(&mut messages);
                messages.push(said("assistant".into(), format!("{SUMMARY}{text}")));
            }
            Item::Reference(_) | Item::Nothing => {}
        }
    }
    if let Some(id) = called.iter().find(|id| open.get(*id).is_some_and(|calls| *calls > 0)) {
        let message = format!("No tool output found for function call {}.", shorten(id));
        return Err(Problem::invalid_code("input", "invalid_value", message));
    }
    Ok(messages)
}

/// Makes one message of those of the user at the end.
fn join_last_of_user(messages: &mut Vec<ChatMessage>) {
    let start = messages.iter().rposition(|message| message.role != "user").map_or(0, |last| last + 1);
    let texts = messages.drain(start..).filter_map(|message| match message.content {
        Some(ChatContent::Text(text)) => Some(text),
        _ => None,
    });
    let text = texts.collect::<Vec<_>>().join("\n\n");
    if !text.is_empty() {
        messages.push(said("user".into(), text));
    }
}

fn said(role: String, text: String) -> ChatMessage {
    ChatMessage { role, content: Some(ChatContent::Text(text)), ..ChatMessage::default() }
}

/// Returns the assistant's last message if nothing stands behind it, nothing was thought since and it `takes` more, or
/// else a new one with what was `thought`.
fn turn<'a>(
    messages: &'a mut Vec<ChatMessage>,
    thought: &mut Option<String>,
    takes: impl Fn(&ChatMessage) -> bool,
) -> &'a mut ChatMessage {
    let last = messages.last().filter(|last| last.role == "assistant" && thought.is_none() && takes(last));
    if last.is_none() {
        let reasoning_content = thought.take();
        messages.push(ChatMessage { role: "assistant".into(), reasoning_content, ..ChatMessage::default() });
    }
    let last = messages.len() - 1;
    &mut messages[last]
}

#[cfg(test)]
#[path = "items_tests.rs"]
mod tests;
