//! One message: as it may be written, and in the one form that all ways of writing it mean.

use serde::Deserialize;
use serde_json::{Value, json};

use super::arguments;

/// Message as clients write it, in a request or on a line of a training file. `None` is the same as a field left out.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct WrittenMessage {
    /// `system`, `developer`, `user`, `assistant`, `tool` or `function`.
    pub role: String,
    /// What was said.
    pub content: Option<WrittenContent>,
    /// Reasoning before the answer, for templates that have a place for it.
    pub reasoning_content: Option<String>,
    /// What an assistant said that refused; its content is then `None`.
    pub refusal: Option<String>,
    /// Name of the function, in a message of the role `function` or `tool`.
    pub name: Option<String>,
    /// Calls that the assistant made.
    pub tool_calls: Option<Vec<WrittenCall>>,
    /// Id of the call that a message of the role `tool` answers.
    pub tool_call_id: Option<String>,
    /// The one call that the assistant made, in the older form.
    pub function_call: Option<WrittenFunction>,
}

/// Content of a message: a text, or parts that are joined to one.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of parts such as {\"type\": \"text\", \"text\": \"…\"}")]
pub enum WrittenContent {
    /// The whole text.
    Text(String),
    /// Parts of it.
    Parts(Vec<WrittenPart>),
}

/// Part of a content.
#[derive(Debug, Clone, Deserialize)]
pub struct WrittenPart {
    /// `text`, or `refusal` in a message of the assistant.
    #[serde(rename = "type")]
    pub kind: String,
    /// Text of a part of the type `text`.
    pub text: Option<String>,
    /// Text of a part of the type `refusal`.
    pub refusal: Option<String>,
}

/// Call of a tool.
#[derive(Debug, Clone, Deserialize)]
pub struct WrittenCall {
    /// Id that the answer to it names.
    pub id: Option<String>,
    /// `function`, also if it is left out.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Called function.
    pub function: WrittenFunction,
}

/// Function with its arguments.
#[derive(Debug, Clone, Deserialize)]
pub struct WrittenFunction {
    /// Name of the function.
    pub name: String,
    /// Arguments, as a JSON object or as the text of one; no text and `None` are no arguments.
    pub arguments: Option<Value>,
}

/// Speaker of a message. A developer is [`Role::System`], a function [`Role::Tool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions.
    System,
    /// Whoever asks.
    User,
    /// The model.
    Assistant,
    /// Result of a call.
    Tool,
}

/// Message in its one form.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Speaker.
    pub role: Role,
    /// Text; empty if nothing was said beside calls.
    pub content: String,
    /// Reasoning of the assistant before its answer; `None` if it is not told apart from the content.
    pub reasoning: Option<String>,
    /// Calls of the assistant.
    pub calls: Vec<Call>,
    /// Id of the call that a tool answers.
    pub tool_call_id: Option<String>,
    /// Name of the tool.
    pub name: Option<String>,
}

/// Call of a tool, in its one form.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Id that the answer to it names.
    pub id: Option<String>,
    /// Name of the function.
    pub name: String,
    /// Arguments: an object, or the text that was given if that is none or would be rounded.
    pub arguments: Value,
}

/// Reason why a message cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageFault {
    /// Path of the field inside the message.
    pub field: String,
    /// True if the field is missing, false if its value is wrong.
    pub missing: bool,
    /// Sentence that says what to change.
    pub message: String,
}

impl MessageFault {
    fn wrong(field: impl Into<String>, message: String) -> Self {
        Self { field: field.into(), missing: false, message }
    }
}

impl Role {
    /// Returns the role as templates know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    fn read(name: &str) -> Result<Self, MessageFault> {
        match name {
            "system" | "developer" => Ok(Self::System),
            "user" => Ok(Self::User),
            "assistant" => Ok(Self::Assistant),
            "tool" | "function" => Ok(Self::Tool),
            other => {
                let message =
                    format!("'{other}' is not a role: use system, developer, user, assistant, tool or function.");
                Err(MessageFault::wrong("role", message))
            }
        }
    }
}

impl Message {
    /// Makes a message that says nothing.
    pub const fn new(role: Role) -> Self {
        Self { role, content: String::new(), reasoning: None, calls: Vec::new(), tool_call_id: None, name: None }
    }

    /// Brings a message into its one form. Calls, reasoning and refusals belong to the assistant alone, names and the
    /// ids of answered calls to tools.
    pub fn read(written: WrittenMessage) -> Result<Self, MessageFault> {
        let role = Role::read(&written.role)?;
        let mut message = Self::new(role);
        let assistant = role == Role::Assistant;
        message.content = match written.content {
            Some(WrittenContent::Text(text)) => text,
            Some(WrittenContent::Parts(parts)) => {
                parts.into_iter().map(|part| part.text(assistant)).collect::<Result<String, _>>()?
            }
            // A function may have returned nothing.
            None if assistant || written.role == "function" => String::new(),
            None => {
                let message = "The message has no content.".into();
                return Err(MessageFault { field: "content".into(), missing: true, message });
            }
        };
        match role {
            Role::Assistant => {
                if message.content.is_empty() {
                    message.content = written.refusal.unwrap_or_default();
                }
                message.reasoning = written.reasoning_content;
                message.calls = calls(written.tool_calls.unwrap_or_default(), written.function_call)?;
            }
            Role::Tool => (message.tool_call_id, message.name) = (written.tool_call_id, written.name),
            Role::System | Role::User => {}
        }
        Ok(message)
    }

    /// Returns true if nothing was said and nothing called.
    pub fn is_empty(&self) -> bool {
        self.content.is_empty() && self.calls.is_empty() && self.reasoning.as_ref().is_none_or(String::is_empty)
    }

    /// Returns the message as templates read it; `short_ids` shortens the ids of calls to 9 characters.
    pub(super) fn for_template(&self, short_ids: bool) -> Value {
        let id = |id: &str| if short_ids { short_id(id) } else { id.to_owned() };
        let mut message = self.text_for_template(&self.content);
        if !self.calls.is_empty() {
            let call = |call: &Call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                match call.id.as_deref().map(id) {
                    Some(id) => json!({"id": id, "type": "function", "function": function}),
                    None => json!({"type": "function", "function": function}),
                }
            };
            message["tool_calls"] = self.calls.iter().map(call).collect();
        }
        if let Some(call) = &self.tool_call_id {
            message["tool_call_id"] = id(call).into();
        }
        if let Some(name) = &self.name {
            message["name"] = name.as_str().into();
        }
        message
    }

    /// Returns the message with the text `content` and without calls, as templates read it.
    pub(super) fn text_for_template(&self, content: &str) -> Value {
        let mut message = json!({"role": self.role.name(), "content": content});
        if let Some(reasoning) = &self.reasoning {
            message["reasoning_content"] = reasoning.as_str().into();
        }
        message
    }
}

impl WrittenPart {
    fn text(self, assistant: bool) -> Result<String, MessageFault> {
        match (self.kind.as_str(), self.text, self.refusal) {
            ("text", Some(text), _) => Ok(text),
            ("refusal", _, Some(text)) if assistant => Ok(text),
            ("text", None, _) => {
                Err(MessageFault::wrong("content", "A part of type 'text' needs its text in 'text'.".into()))
            }
            (kind, ..) => {
                let message =
                    format!("A part of type '{kind}' is not supported: send {{\"type\": \"text\", \"text\": \"…\"}}.");
                Err(MessageFault::wrong("content", message))
            }
        }
    }
}

fn calls(written: Vec<WrittenCall>, older: Option<WrittenFunction>) -> Result<Vec<Call>, MessageFault> {
    let mut calls = Vec::with_capacity(written.len());
    for (number, call) in written.into_iter().enumerate() {
        if let Some(kind) = call.kind.filter(|kind| kind != "function") {
            let message = format!("'{kind}' is not a type of calls: only 'function' is supported.");
            return Err(MessageFault::wrong(format!("tool_calls[{number}].type"), message));
        }
        calls.push(Call { id: call.id, ..call.function.into() });
    }
    if let Some(function) = older {
        calls.push(Call { id: Some(function.name.clone()), ..function.into() });
    }
    Ok(calls)
}

impl From<WrittenFunction> for Call {
    fn from(function: WrittenFunction) -> Self {
        Self { id: None, name: function.name, arguments: arguments::read(function.arguments) }
    }
}

/// Shortens the id of a call to the 9 letters or digits that Mistral's templates insist on.
fn short_id(id: &str) -> String {
    let last: Vec<char> = id.chars().rev().filter(char::is_ascii_alphanumeric).take(9).collect();
    let last: String = last.into_iter().rev().collect();
    format!("{last:0>9}")
}
