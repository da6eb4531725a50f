//! The messages of a chat request, and the form in which templates read them. Used by `chat::create` and `tokenize`.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::api::http::error::{Problem, Result};
use crate::model::tool_syntax::ToolSyntax;

/// One message.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatMessage {
    /// `system`, `developer` (the same as `system`), `user`, `assistant`, `tool`, or `function` (deprecated).
    pub role: String,
    /// What was said; an assistant that calls tools may have said nothing.
    pub content: Option<ChatContent>,
    /// The name of the function, in a message of the role `function`.
    pub name: Option<String>,
    /// The calls that the assistant made.
    pub tool_calls: Option<Vec<MessageToolCall>>,
    /// The call that a message of the role `tool` answers.
    pub tool_call_id: Option<String>,
    /// Deprecated: the one call that the assistant made.
    pub function_call: Option<MessageFunction>,
}

/// A text, or parts that are joined to one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of parts such as {\"type\": \"text\", \"text\": \"…\"}")]
pub(crate) enum ChatContent {
    /// The whole text.
    Text(String),
    /// Parts of it.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ContentPart {
    /// Only `text` is supported.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    pub text: Option<String>,
}

/// A call in an earlier message of the assistant.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MessageToolCall {
    /// The id that the answer to it names.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function_type")]
    pub kind: String,
    /// What was called.
    pub function: MessageFunction,
}

fn function_type() -> String {
    "function".into()
}

/// A function with its arguments.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MessageFunction {
    /// The function.
    pub name: String,
    /// Its arguments, as the text of a JSON object.
    pub arguments: String,
}

/// Returns the messages in the form that templates read, with calls in the form of `syntax`.
pub(crate) fn template_messages(messages: &[ChatMessage], syntax: ToolSyntax) -> Result<Vec<Value>> {
    if messages.is_empty() {
        return Err(Problem::invalid("messages", "'messages' must hold at least one message."));
    }
    let rendered = messages.iter().enumerate().map(|(index, message)| message.for_template(index, syntax));
    let rendered = rendered.collect::<Result<Vec<_>>>()?;
    Ok(if syntax.in_template { rendered } else { join_tool_answers(rendered) })
}

/// Appends `text` to the first message if that is a system message, else inserts a system message.
pub(super) fn add_to_system(messages: &mut Vec<Value>, text: &str) {
    match messages.first_mut() {
        Some(first) if first["role"] == "system" => {
            let content = first["content"].as_str().unwrap_or_default();
            first["content"] = format!("{content}\n\n{text}").trim_start().into();
        }
        _ => messages.insert(0, json!({"role": "system", "content": text})),
    }
}

impl ChatMessage {
    fn for_template(&self, index: usize, syntax: ToolSyntax) -> Result<Value> {
        let role = match self.role.as_str() {
            "developer" => "system",
            "function" => "tool",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            other => {
                let message =
                    format!("'{other}' is not a role: use system, developer, user, assistant, tool or function.");
                return Err(Problem::invalid_code(format!("messages[{index}].role"), "invalid_value", message));
            }
        };
        let missing = |field: &str, message: &str| {
            Problem::invalid_code(format!("messages[{index}].{field}"), "missing_required_parameter", message)
        };
        if self.role == "tool" && self.tool_call_id.is_none() {
            return Err(missing("tool_call_id", "A message of the role 'tool' must name the call that it answers."));
        }
        if self.role == "function" && self.name.is_none() {
            return Err(missing("name", "A message of the role 'function' must name its function."));
        }
        let calls = if role == "assistant" { self.calls(index)? } else { Vec::new() };
        let content = match &self.content {
            Some(ChatContent::Text(text)) => text.clone(),
            Some(ChatContent::Parts(parts)) => parts.iter().map(|part| part.text(index)).collect::<Result<String>>()?,
            None if role == "assistant" => String::new(),
            None => return Err(missing("content", "The message has no content.")),
        };
        if !syntax.in_template {
            return Ok(plain(role, &content, &calls, syntax));
        }
        let mut message = json!({"role": role, "content": content});
        if !calls.is_empty() {
            message["tool_calls"] = calls
                .iter()
                .map(|call| {
                    let function = json!({"name": call.function.name, "arguments": call.function.parsed_arguments()});
                    json!({"id": call_id(call.id, syntax), "type": "function", "function": function})
                })
                .collect();
        }
        if role == "tool" {
            if let Some(id) = &self.tool_call_id {
                message["tool_call_id"] = call_id(id, syntax).into();
            }
            if let Some(name) = &self.name {
                message["name"] = name.as_str().into();
            }
        }
        Ok(message)
    }

    /// Returns the calls of the message, including one in the older form.
    fn calls(&self, index: usize) -> Result<Vec<Call<'_>>> {
        let mut calls = Vec::new();
        for (number, call) in self.tool_calls.iter().flatten().enumerate() {
            if call.kind != "function" {
                let message = format!("'{}' is not a type of calls: only 'function' is supported.", call.kind);
                let param = format!("messages[{index}].tool_calls[{number}].type");
                return Err(Problem::invalid_code(param, "invalid_value", message));
            }
            calls.push(Call { id: &call.id, function: &call.function });
        }
        if let Some(function) = &self.function_call {
            calls.push(Call { id: &function.name, function });
        }
        Ok(calls)
    }
}

struct Call<'a> {
    id: &'a str,
    function: &'a MessageFunction,
}

impl MessageFunction {
    /// Returns the arguments as a JSON object for the templates, or as text if they are no JSON object or have whole
    /// numbers that reading would round.
    fn parsed_arguments(&self) -> Value {
        match self.object() {
            Some(object) if keeps_digits(&self.arguments) => object.into(),
            _ => self.arguments.as_str().into(),
        }
    }

    /// Writes the arguments as JSON: a string of them if they are no JSON object.
    fn written_arguments(&self) -> String {
        let rounded = self.object().is_some() && !keeps_digits(&self.arguments);
        if rounded { self.arguments.clone() } else { self.parsed_arguments().to_string() }
    }

    fn object(&self) -> Option<Map<String, Value>> {
        serde_json::from_str(&self.arguments).ok()
    }
}

/// Returns true if all whole numbers in the JSON `text` fit 64 bits, so that reading it keeps their digits.
fn keeps_digits(text: &str) -> bool {
    let (mut in_string, mut escaped) = (false, false);
    let outside = |character: char| {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = in_string,
            '"' => in_string = !in_string,
            _ if !in_string => return character,
            _ => {}
        }
        ' '
    };
    let numbers: String = text.chars().map(outside).collect();
    let mut numbers =
        numbers.split(|character: char| !(character.is_ascii_alphanumeric() || "+-.".contains(character)));
    numbers.all(|number| {
        let digits = number.strip_prefix('-').unwrap_or(number);
        let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        !whole || number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok()
    })
}

impl ContentPart {
    fn text(&self, index: usize) -> Result<&str> {
        match (self.kind.as_str(), &self.text) {
            ("text", Some(text)) => Ok(text),
            (kind, _) => {
                let message =
                    format!("A part of type '{kind}' is not supported: send {{\"type\": \"text\", \"text\": \"…\"}}.");
                Err(Problem::invalid_code(format!("messages[{index}].content"), "invalid_value", message))
            }
        }
    }
}

/// Returns the id of a call in the form that the template takes: shortened to 9 characters if `syntax.short_ids`.
fn call_id(id: &str, syntax: ToolSyntax) -> String {
    if !syntax.short_ids {
        return id.to_owned();
    }
    let last: Vec<char> = id.chars().rev().filter(char::is_ascii_alphanumeric).take(9).collect();
    let last: String = last.into_iter().rev().collect();
    format!("{last:0>9}")
}

/// Writes the message as text alone, for templates that know neither calls nor the role `tool`.
fn plain(role: &str, content: &str, calls: &[Call<'_>], syntax: ToolSyntax) -> Value {
    if role == "tool" {
        return json!({"role": role, "content": format!("<tool_response>\n{content}\n</tool_response>")});
    }
    if calls.is_empty() {
        return json!({"role": role, "content": content});
    }
    let calls: Vec<String> = calls
        .iter()
        .map(|Call { function, .. }| {
            let (name, arguments) = (Value::from(function.name.as_str()), function.written_arguments());
            format!("{{\"name\": {name}, \"{}\": {arguments}}}", syntax.arguments_key)
        })
        .collect();
    let calls = format!("{}{}{}{}", syntax.trigger, syntax.open, calls.join(syntax.separator), syntax.close);
    let content = if content.is_empty() { calls } else { format!("{content}\n{calls}") };
    json!({"role": role, "content": content})
}

/// Turns the answers of tools into messages of the user, with all answers to one turn in one message: many templates
/// allow no other role, and no two messages of one role in a row.
fn join_tool_answers(messages: Vec<Value>) -> Vec<Value> {
    let mut joined: Vec<Value> = Vec::with_capacity(messages.len());
    let mut after_tool = false;
    for mut message in messages {
        let is_tool = message["role"] == "tool";
        if is_tool {
            message["role"] = "user".into();
        }
        match joined.last_mut() {
            Some(last) if is_tool && after_tool => {
                let (before, more) = (last["content"].as_str(), message["content"].as_str());
                last["content"] = format!("{}\n{}", before.unwrap_or_default(), more.unwrap_or_default()).into();
            }
            _ => joined.push(message),
        }
        after_tool = is_tool;
    }
    joined
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
