//! The messages of a chat request. Used by `chat::create` and `tokenize`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::custom_input::arguments_of;
use crate::api::http::error::{Problem, Result};
use crate::model::chat::{
    Message, MessageFault, WrittenCall, WrittenContent, WrittenFunction, WrittenMessage, WrittenPart,
};

/// One message.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct ChatMessage {
    /// `system`, `developer` (the same as `system`), `user`, `assistant`, `tool`, or `function` (deprecated).
    pub role: String,
    /// What was said; an assistant that calls tools may have said nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<ChatContent>,
    /// Extension: the assistant's reasoning, for templates that have a place for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// What an assistant said that refused; its content is then null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// The name of the function, in a message of the role `function`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The calls that the assistant made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<MessageToolCall>>,
    /// The call that a message of the role `tool` answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Deprecated: the one call that the assistant made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<MessageFunction>,
}

/// A text, or parts that are joined to one.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of parts such as {\"type\": \"text\", \"text\": \"…\"}")]
pub(crate) enum ChatContent {
    /// The whole text.
    Text(String),
    /// Parts of it.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ContentPart {
    /// `text`, or `refusal` in a message of the assistant.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The text of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// A call in an earlier message of the assistant.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct MessageToolCall {
    /// The id that the answer to it names.
    pub id: String,
    /// `function`, as it is without this, or `custom`.
    #[serde(rename = "type")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The function that was called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<MessageFunction>,
    /// The custom tool that was called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom: Option<MessageCustom>,
}

/// A custom tool with its input.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct MessageCustom {
    /// The tool.
    pub name: String,
    /// Its input.
    pub input: String,
}

impl MessageToolCall {
    /// Returns what was called as a function, and its type; an error is the name of the field that is missing.
    fn called(self) -> Result<(Option<String>, MessageFunction), &'static str> {
        match (self.kind.as_deref(), self.function, self.custom) {
            (Some("custom"), _, Some(MessageCustom { name, input })) => {
                Ok((None, MessageFunction { name, arguments: arguments_of(&input) }))
            }
            (Some("custom"), _, None) => Err("custom"),
            (_, Some(function), _) => Ok((self.kind, function)),
            (_, None, _) => Err("function"),
        }
    }
}

/// A function with its arguments.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct MessageFunction {
    /// The function.
    pub name: String,
    /// Its arguments, as the text of a JSON object.
    pub arguments: String,
}

/// Checks the messages of a request, and brings them into the form that training files have, too.
pub(crate) fn read_messages(messages: &[ChatMessage]) -> Result<Vec<Message>> {
    if messages.is_empty() {
        return Err(Problem::invalid("messages", "'messages' must hold at least one message."));
    }
    messages.iter().enumerate().map(|(index, message)| message.read(index)).collect()
}

impl ChatMessage {
    fn read(&self, index: usize) -> Result<Message> {
        let missing =
            |field: &str, message: &str| MessageFault { field: field.into(), missing: true, message: message.into() };
        for (number, call) in self.tool_calls.iter().flatten().enumerate() {
            if let Err(field) = call.clone().called() {
                return Err(Problem::missing(format!("messages[{index}].tool_calls[{number}].{field}")));
            }
        }
        let checked = match self.role.as_str() {
            "tool" if self.tool_call_id.is_none() => {
                Err(missing("tool_call_id", "A message of the role 'tool' must name the call that it answers."))
            }
            "function" if self.name.is_none() => {
                Err(missing("name", "A message of the role 'function' must name its function."))
            }
            _ => Message::read(self.clone().into()),
        };
        checked.map_err(|fault| {
            let code = if fault.missing { "missing_required_parameter" } else { "invalid_value" };
            Problem::invalid_code(format!("messages[{index}].{}", fault.field), code, fault.message)
        })
    }
}

impl From<ChatMessage> for WrittenMessage {
    fn from(message: ChatMessage) -> Self {
        let content = |content| match content {
            ChatContent::Text(text) => WrittenContent::Text(text),
            ChatContent::Parts(parts) => WrittenContent::Parts(parts.into_iter().map(Into::into).collect()),
        };
        // `read` has refused calls of nothing.
        let call = |call: MessageToolCall| {
            let id = Some(call.id.clone());
            call.called().ok().map(|(kind, function)| WrittenCall { id, kind, function: function.into() })
        };
        Self {
            role: message.role,
            content: message.content.map(content),
            reasoning_content: message.reasoning_content,
            refusal: message.refusal,
            name: message.name,
            tool_calls: message.tool_calls.map(|calls| calls.into_iter().filter_map(call).collect()),
            tool_call_id: message.tool_call_id,
            function_call: message.function_call.map(Into::into),
        }
    }
}

impl From<ContentPart> for WrittenPart {
    fn from(ContentPart { kind, text, refusal }: ContentPart) -> Self {
        Self { kind, text, refusal }
    }
}

impl From<MessageFunction> for WrittenFunction {
    fn from(MessageFunction { name, arguments }: MessageFunction) -> Self {
        Self { name, arguments: Some(arguments.into()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(json: Value) -> Result<Vec<Message>> {
        let messages: Vec<ChatMessage> = serde_json::from_value(json).expect("messages");
        read_messages(&messages)
    }

    #[test]
    fn what_cannot_be_rendered_is_refused_by_its_field() {
        let call = json!([{"id": "x", "type": "magic", "function": {"name": "g", "arguments": ""}}]);
        for (wrong, field) in [
            (json!([]), "messages"),
            (json!([{"role": "king", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
                "messages[0].content",
            ),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
            (json!([{"role": "function", "content": "x"}]), "messages[0].name"),
            (json!([{"role": "assistant", "tool_calls": call}]), "messages[0].tool_calls[0].type"),
        ] {
            let Err(problem) = read(wrong) else { panic!("{field} was not refused") };
            assert_eq!(problem.error.param.as_deref(), Some(field));
        }
    }

    #[test]
    fn a_call_of_a_custom_tool_is_one_of_a_function_of_one_text() {
        let said = |call: Value| json!([{"role": "assistant", "tool_calls": [call]}]);
        let custom = json!({"id": "x", "type": "custom", "custom": {"name": "f", "input": "a\"b"}});
        let arguments = "{\"input\":\"a\\\"b\"}";
        let function = json!({"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}});
        assert_eq!(read(said(custom)).expect("fine"), read(said(function)).expect("fine"));
        for (call, field) in [
            (json!({"id": "x", "type": "custom", "function": {"name": "f", "arguments": "{}"}}), "custom"),
            (json!({"id": "x", "custom": {"name": "f", "input": ""}}), "function"),
        ] {
            let problem = read(said(call)).expect_err(field);
            assert_eq!(problem.error.param, Some(format!("messages[0].tool_calls[0].{field}").into()));
        }
    }

    #[test]
    fn null_is_the_same_as_a_field_left_out() {
        let call = json!({"id": "x", "type": null, "function": {"name": "f", "arguments": "{}"}});
        let given = json!([
            {"role": "assistant", "content": null, "tool_calls": [call], "refusal": null, "reasoning_content": null,
             "name": null, "tool_call_id": null, "function_call": null},
            {"role": "function", "name": "f", "content": null},
        ]);
        let left_out = json!([
            {"role": "assistant",
             "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "function", "name": "f"},
        ]);
        assert_eq!(read(given).expect("fine"), read(left_out).expect("fine"));
    }
}
