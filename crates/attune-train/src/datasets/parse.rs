//! One line of a training file: checked key by key, and turned into an [`Example`]. Called by [`super::read`]. Every
//! fault says what is wrong and what to change; [`super::faults`] adds the line number.

use serde_json::{Map, Value};

use super::foreign_keys::{unknown_key, unknown_layout, unknown_message_key, unknown_role};
use super::json;
use super::words::kind;
pub use super::words::shorten;
use attune_model::chat::{Message, Role, ToolDefinition, WrittenMessage};

/// The formats of a training file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"prompt": …, "completion": …}`
    Completion,
    /// `{"messages": […]}`
    Chat,
    /// `{"anchor": …, "positive": …}`
    Pair,
    /// `{"sentence1": …, "sentence2": …, "score": …}`
    ScoredPair,
    /// `{"query": …, "document": …, "label": …}`
    LabelledPair,
}

impl Format {
    /// Returns true if vectors are learned from the texts of each line.
    pub const fn is_of_vectors(self) -> bool {
        matches!(self, Self::Pair | Self::ScoredPair)
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Completion => "a prompt and completion",
            Self::Chat => "a chat",
            Self::Pair => "a pair of texts",
            Self::ScoredPair => "a pair of texts with a score",
            Self::LabelledPair => "a pair of texts with a label",
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
        /// Messages, in the form that requests have, too.
        messages: Vec<Message>,
        /// Whether each message is trained on (an assistant message of weight 1).
        trained: Vec<bool>,
        /// Tools that the model is shown.
        tools: Vec<ToolDefinition>,
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
    let messages = match object.remove("messages") {
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
    let (messages, trained) = read_messages(messages)?;
    if !messages.iter().any(|message| message.role == Role::Assistant) {
        return Err("has no assistant message: there is nothing to learn".into());
    }
    if !trained.contains(&true) {
        return Err("has only assistant messages of weight 0: there is nothing to learn".into());
    }
    let tools = take_tools(object)?;
    Ok(Example::Chat { messages, trained, tools })
}

/// Reads messages; returns for each whether it is trained on.
pub(super) fn read_messages(messages: Vec<Value>) -> Result<(Vec<Message>, Vec<bool>), String> {
    let read = |(index, message)| read_message(message).map_err(|fault| format!("message {}: {fault}", index + 1));
    messages.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>().map(|read| read.into_iter().unzip())
}

/// Takes the tools of a chat.
pub(super) fn take_tools(object: &mut Map<String, Value>) -> Result<Vec<ToolDefinition>, String> {
    let mut take = |key: &str| object.remove(key).filter(|tools| !tools.is_null());
    let (key, tools) = match (take("tools"), take("functions")) {
        (Some(_), Some(_)) => return Err("has both `tools` and `functions`: keep `tools`".into()),
        (Some(tools), None) => ("tools", tools),
        (None, Some(functions)) => ("functions", functions),
        (None, None) => return Ok(Vec::new()),
    };
    let Value::Array(tools) = tools else { return Err(format!("has `{key}` that is not an array")) };
    let read = |(index, tool)| ToolDefinition::read(tool).map_err(|fault| format!("`{key}[{index}]` {fault}"));
    tools.into_iter().enumerate().map(read).collect()
}

/// Reads a message; returns whether it is trained on, too.
fn read_message(message: Value) -> Result<(Message, bool), String> {
    const KEYS: [&str; 9] = [
        "role",
        "content",
        "name",
        "weight",
        "function_call",
        "tool_calls",
        "tool_call_id",
        "refusal",
        "reasoning_content",
    ];
    let Value::Object(mut message) = message else {
        return Err(format!("is {}, not an object", kind(&message)));
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
    let content = message.get("content").filter(|content| !content.is_null());
    let has_content = content.is_some();
    match content {
        Some(Value::Array(parts)) if !parts.iter().all(|part| is_text(part, assistant)) => {
            return Err("has a content part that is not text: use `{\"type\": \"text\", \"text\": …}`".into());
        }
        Some(Value::String(_) | Value::Array(_)) => {}
        None if assistant || role == "function" => {}
        None => return Err("has no `content`".into()),
        Some(other) => return Err(format!("has {} as `content`: give a string", kind(other))),
    }
    let trained = match message.remove("weight") {
        None | Some(Value::Null) => assistant,
        Some(_) if !assistant => {
            return Err("has a `weight`, which only assistant messages may have: remove it".into());
        }
        Some(weight) if weight.as_f64() == Some(0.0) => false,
        Some(weight) if weight.as_f64() == Some(1.0) => true,
        Some(_) => return Err("has a `weight` that is neither 0 nor 1".into()),
    };
    let written: WrittenMessage = serde_json::from_value(Value::Object(message))
        .map_err(|error| format!("has a field that is not of its type ({error})"))?;
    let read = Message::read(written).map_err(|fault| format!("`{}`: {}", fault.field, fault.message))?;
    if trained && read.is_empty() {
        let fault = if has_content { "has an empty answer: there is nothing to learn" } else { "has no `content`" };
        return Err(fault.into());
    }
    Ok((read, trained))
}

/// Returns true if a part of a content is text; an assistant may also refuse.
fn is_text(part: &Value, assistant: bool) -> bool {
    match part["type"].as_str() {
        Some("text") => part["text"].is_string(),
        Some("refusal") => assistant && part["refusal"].is_string(),
        _ => false,
    }
}

/// Returns true if an object is meant as a pair of answers (it has `preferred_output` or `chosen`).
pub fn is_preference(object: &Map<String, Value>) -> bool {
    ["preferred_output", "non_preferred_output", "preferred_completion", "chosen", "rejected"]
        .iter()
        .any(|key| object.contains_key(*key))
}
