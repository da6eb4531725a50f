//! One line of a training file: checked key by key, and turned into an [`Example`]. Called by [`super::read`]. Every
//! fault says what is wrong and what to change; [`super::faults`] adds the line number.

use serde_json::{Map, Value, json};

use super::foreign_keys::{unknown_key, unknown_layout, unknown_message_key, unknown_role};
use super::json;
use super::words::kind;
pub use super::words::shorten;

/// The formats of a training file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"prompt": …, "completion": …}`
    Completion,
    /// `{"messages": […]}`
    Chat,
    /// `{"anchor": …, "positive": …}`
    Pair,
}

impl std::fmt::Display for Format {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Completion => "a prompt and completion",
            Self::Chat => "a chat",
            Self::Pair => "a pair of texts",
        })
    }
}

/// A checked example.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// Text and its continuation.
    Completion {
        /// Prompt; may be empty.
        prompt: String,
        /// Completion; never empty.
        completion: String,
    },
    /// Conversation.
    Chat {
        /// Objects as the chat template takes them, `weight` removed and text parts joined.
        messages: Vec<Value>,
        /// Whether each message is trained on (an assistant message of weight 1).
        trained: Vec<bool>,
        /// Tool definitions for the template.
        tools: Option<Vec<Value>>,
    },
}

impl Example {
    /// Returns the format of the example.
    pub const fn format(&self) -> Format {
        match self {
            Self::Completion { .. } => Format::Completion,
            Self::Chat { .. } => Format::Chat,
        }
    }
}

/// Checks one line.
pub fn example(line: &str) -> Result<Example, String> {
    example_of(json::object(line)?)
}

/// Checks a line's object.
pub(super) fn example_of(mut object: Map<String, Value>) -> Result<Example, String> {
    let chat = object.contains_key("messages");
    if chat && (object.contains_key("prompt") || object.contains_key("completion")) {
        return Err("has both `messages` and `prompt` or `completion`: keep one format".into());
    }
    if is_preference(&object) {
        return Err(
            "is a preference pair, which supervised training cannot use: give `messages`, or use the method `dpo`"
                .into(),
        );
    }
    let known: &[&str] =
        if chat { &["messages", "tools", "functions", "parallel_tool_calls"] } else { &["prompt", "completion"] };
    if !chat && !known.iter().all(|key| object.contains_key(*key)) {
        return Err(unknown_layout(&object));
    }
    if let Some(key) = object.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(unknown_key(key, chat));
    }
    if chat { chat_example(&mut object) } else { completion_example(&mut object) }
}

fn completion_example(object: &mut Map<String, Value>) -> Result<Example, String> {
    let mut text = |key: &str| match object.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(_)) => {
            Err(format!("has an array as `{key}`: give a string, or write all messages into one list, `messages`"))
        }
        Some(other) => Err(format!("has {} as `{key}`: give a string", kind(&other))),
        None => Err(format!("has no `{key}`")),
    };
    let (prompt, completion) = (text("prompt")?, text("completion")?);
    if completion.is_empty() {
        return Err("has an empty `completion`: there is nothing to learn".into());
    }
    Ok(Example::Completion { prompt, completion })
}

fn chat_example(object: &mut Map<String, Value>) -> Result<Example, String> {
    let mut messages = match object.remove("messages") {
        Some(Value::Array(messages)) => messages,
        Some(Value::String(_)) => {
            return Err(
                "has `messages` that is not an array but a text: write the list itself, without quotation marks \
                        around it"
                    .into(),
            );
        }
        _ => return Err("has `messages` that is not an array".into()),
    };
    if messages.is_empty() {
        return Err("has no messages".into());
    }
    let trained = check_messages(&mut messages)?;
    if !messages.iter().any(|message| message["role"] == "assistant") {
        return Err("has no assistant message: there is nothing to learn".into());
    }
    if !trained.contains(&true) {
        return Err("has only assistant messages of weight 0: there is nothing to learn".into());
    }
    let tools = take_tools(object)?;
    Ok(Example::Chat { messages, trained, tools })
}

/// Brings messages into the template's form; returns for each whether it is trained on.
pub(super) fn check_messages(messages: &mut [Value]) -> Result<Vec<bool>, String> {
    let checked = |(index, message)| check_message(message).map_err(|fault| format!("message {}: {fault}", index + 1));
    messages.iter_mut().enumerate().map(checked).collect()
}

/// Takes the tools of a chat.
pub(super) fn take_tools(object: &mut Map<String, Value>) -> Result<Option<Vec<Value>>, String> {
    match (object.remove("tools"), object.remove("functions")) {
        (Some(_), Some(_)) => Err("has both `tools` and `functions`: keep `tools`".into()),
        (Some(Value::Array(tools)), None) => Ok(Some(tools)),
        (None, Some(Value::Array(functions))) => {
            Ok(Some(functions.into_iter().map(|function| json!({"type": "function", "function": function})).collect()))
        }
        (Some(Value::Null), None) | (None, Some(Value::Null) | None) => Ok(None),
        _ => Err("has `tools` that is not an array".into()),
    }
}

/// Checks a message and brings it into the template's form; returns whether it is trained on.
fn check_message(message: &mut Value) -> Result<bool, String> {
    const KEYS: [&str; 8] =
        ["role", "content", "name", "weight", "function_call", "tool_calls", "tool_call_id", "refusal"];
    let Value::Object(message) = message else {
        return Err(format!("is {}, not an object", kind(message)));
    };
    if let Some(key) = message.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(unknown_message_key(key, &KEYS));
    }
    let role = match message.get("role") {
        Some(Value::String(role)) => role.clone(),
        Some(other) => return Err(format!("has {} as `role`: give a string", kind(other))),
        None => return Err("has no `role`".into()),
    };
    if !["system", "developer", "user", "assistant", "tool", "function"].contains(&role.as_str()) {
        return Err(unknown_role(&role));
    }
    let assistant = role == "assistant";
    let calls = assistant && ["tool_calls", "function_call"].iter().any(|key| !is_absent(message.get(*key)));
    match message.get("content") {
        Some(Value::String(text)) if text.is_empty() && assistant && !calls => {
            return Err("has an empty answer: there is nothing to learn".into());
        }
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let text = join_text_parts(parts)?;
            message.insert("content".into(), Value::String(text));
        }
        None | Some(Value::Null) if calls => {}
        None | Some(Value::Null) => return Err("has no `content`".into()),
        Some(other) => return Err(format!("has {} as `content`: give a string", kind(other))),
    }
    // The server does the same with requests, so that training and inference render alike.
    if role == "developer" {
        message.insert("role".into(), "system".into());
    }
    for key in ["name", "refusal"] {
        message.remove(key);
    }
    match message.remove("weight") {
        None | Some(Value::Null) => Ok(assistant),
        Some(_) if !assistant => Err("has a `weight`, which only assistant messages may have: remove it".into()),
        Some(weight) if weight.as_f64() == Some(0.0) => Ok(false),
        Some(weight) if weight.as_f64() == Some(1.0) => Ok(true),
        Some(_) => Err("has a `weight` that is neither 0 nor 1".into()),
    }
}

fn join_text_parts(parts: &[Value]) -> Result<String, String> {
    let texts = parts.iter().map(|part| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        _ => Err("has a content part that is not text: use `{\"type\": \"text\", \"text\": …}`".to_string()),
    });
    texts.collect()
}

fn is_absent(value: Option<&Value>) -> bool {
    value.is_none_or(|value| value.is_null() || value.as_array().is_some_and(Vec::is_empty))
}

/// Returns true if an object is meant as a pair of answers (it has `preferred_output` or `chosen`).
pub(super) fn is_preference(object: &Map<String, Value>) -> bool {
    ["preferred_output", "non_preferred_output", "preferred_completion", "chosen", "rejected"]
        .iter()
        .any(|key| object.contains_key(*key))
}
