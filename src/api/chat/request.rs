//! The body of a chat request, and its messages in the form that templates read. Used by `chat::create`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::api::checks::{not_supported, within};
use crate::api::generate::fields::{SamplingFields, StopTexts, StreamOptions};
use crate::{Error, Result};

/// A request for an answer in a conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ChatRequest {
    /// A base model or a fine-tuned one.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// New tokens for each choice at the most; by default until the model ends its answer or the context is full.
    pub max_completion_tokens: Option<usize>,
    /// The older name of `max_completion_tokens`.
    pub max_tokens: Option<usize>,
    /// 0 takes the most probable token each time.
    #[schema(minimum = 0, maximum = 2, default = 1)]
    pub temperature: Option<f32>,
    /// Draw among the most probable tokens whose probabilities sum to this.
    #[schema(minimum = 0, maximum = 1, default = 1)]
    pub top_p: Option<f32>,
    /// Choices.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    pub n: Option<usize>,
    /// Send events as tokens are drawn.
    pub stream: Option<bool>,
    /// Options of the events.
    pub stream_options: Option<StreamOptions>,
    /// Texts that end a choice; they are not part of it.
    pub stop: Option<StopTexts>,
    /// The same seed gives the same text.
    pub seed: Option<i64>,
    /// Lowers tokens that have occurred.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub presence_penalty: Option<f32>,
    /// Lowers tokens by how often they have occurred.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub frequency_penalty: Option<f32>,
    /// Added to logits, by token id: -100 bans, 100 forces.
    pub logit_bias: Option<HashMap<String, f32>>,
    /// `{"type": "text"}`; JSON forms are not supported yet.
    pub response_format: Option<ResponseFormat>,
    /// Not supported yet.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// Not supported yet.
    #[schema(value_type = Option<Vec<Object>>)]
    pub functions: Option<Vec<Value>>,
    /// Answer with the log probability of each token.
    pub logprobs: Option<bool>,
    /// And with those of this many most probable tokens at its place; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<usize>,
}

/// One message.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// `system`, `developer` (the same as `system`), `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said.
    pub content: Option<ChatContent>,
    /// Not supported yet.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tool_calls: Option<Vec<Value>>,
}

/// A text, or parts that are joined to one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of parts such as {\"type\": \"text\", \"text\": \"…\"}")]
pub enum ChatContent {
    /// The whole text.
    Text(String),
    /// Parts of it.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ContentPart {
    /// Only `text` is supported.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    pub text: Option<String>,
}

/// The form that the answer must have.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// Only `text` is supported.
    #[serde(rename = "type")]
    pub kind: String,
}

impl ChatRequest {
    /// Refuses what this server cannot honour yet.
    pub fn refuse_unsupported(&self) -> Result<()> {
        let given = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|list| !list.is_empty());
        if given(&self.tools) {
            return Err(not_supported("tools"));
        }
        if given(&self.functions) {
            return Err(not_supported("functions"));
        }
        match &self.response_format {
            Some(format) if format.kind != "text" => {
                let message = format!("'response_format' of type '{}' is not supported yet: use 'text'.", format.kind);
                Err(Error::invalid_code("response_format", "unsupported_value", message))
            }
            _ => Ok(()),
        }
    }

    /// Most probable tokens to tell with each token; none where no log probabilities are wanted.
    pub fn logprobs(&self) -> Result<Option<usize>> {
        let top = within("top_logprobs", self.top_logprobs, 0, 20)?.unwrap_or(0);
        match self.logprobs {
            Some(true) => Ok(Some(top)),
            _ if top > 0 => {
                Err(Error::invalid("top_logprobs", "'top_logprobs' needs 'logprobs': set 'logprobs' to true."))
            }
            _ => Ok(None),
        }
    }

    /// How tokens are drawn.
    pub fn sampling_fields(&self) -> SamplingFields<'_> {
        SamplingFields {
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.as_ref(),
        }
    }
}

/// The messages in the form that templates read.
pub fn template_messages(messages: &[ChatMessage]) -> Result<Vec<Value>> {
    if messages.is_empty() {
        return Err(Error::invalid("messages", "'messages' must hold at least one message."));
    }
    messages.iter().enumerate().map(|(index, message)| message.for_template(index)).collect()
}

impl ChatMessage {
    fn for_template(&self, index: usize) -> Result<Value> {
        let role = match self.role.as_str() {
            "developer" => "system",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            other => {
                let message = format!("'{other}' is not a role: use system, developer, user, assistant or tool.");
                return Err(Error::invalid_code(format!("messages[{index}].role"), "invalid_value", message));
            }
        };
        if self.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty()) {
            return Err(not_supported(&format!("messages[{index}].tool_calls")));
        }
        let content = match &self.content {
            Some(ChatContent::Text(text)) => text.clone(),
            Some(ChatContent::Parts(parts)) => parts.iter().map(|part| part.text(index)).collect::<Result<String>>()?,
            None if role == "assistant" => String::new(),
            None => {
                let param = format!("messages[{index}].content");
                return Err(Error::invalid_code(param, "missing_required_parameter", "The message has no content."));
            }
        };
        Ok(json!({"role": role, "content": content}))
    }
}

impl ContentPart {
    fn text(&self, index: usize) -> Result<&str> {
        match (self.kind.as_str(), &self.text) {
            ("text", Some(text)) => Ok(text),
            (kind, _) => {
                let message =
                    format!("A part of type '{kind}' is not supported: send {{\"type\": \"text\", \"text\": \"…\"}}.");
                Err(Error::invalid_code(format!("messages[{index}].content"), "invalid_value", message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::parse;

    fn request(json: &str) -> ChatRequest {
        parse(json.as_bytes()).expect("a request")
    }

    #[test]
    fn contents_are_texts_or_text_parts_and_developer_means_system() {
        let request = request(
            r#"{"model":"m","messages":[{"role":"developer","content":"d"},{"role":"user","name":"x","content":
               [{"type":"text","text":"a"},{"type":"text","text":"b"}]},{"role":"assistant","content":null}]}"#,
        );
        let messages = template_messages(&request.messages).expect("fine");
        assert_eq!(messages[0], json!({"role":"system","content":"d"}));
        assert_eq!(messages[1], json!({"role":"user","content":"ab"}));
        assert_eq!(messages[2], json!({"role":"assistant","content":""}));
    }

    #[test]
    fn what_cannot_be_rendered_is_refused() {
        for messages in [
            "[]",
            r#"[{"role":"king","content":"x"}]"#,
            r#"[{"role":"user"}]"#,
            r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]"#,
            r#"[{"role":"assistant","tool_calls":[{}]}]"#,
        ] {
            let request = request(&format!(r#"{{"model":"m","messages":{messages}}}"#));
            assert!(template_messages(&request.messages).is_err(), "{messages}");
        }
    }

    #[test]
    fn log_probabilities_are_asked_for_by_two_fields() {
        for (extra, expected) in [
            (r#""n":1"#, Some(None)),
            (r#""logprobs":false,"top_logprobs":0"#, Some(None)),
            (r#""logprobs":true"#, Some(Some(0))),
            (r#""logprobs":true,"top_logprobs":20"#, Some(Some(20))),
            (r#""logprobs":true,"top_logprobs":21"#, None),
            (r#""top_logprobs":2"#, None),
        ] {
            let request = request(&format!(r#"{{"model":"m","messages":[],{extra}}}"#));
            assert_eq!(request.logprobs().ok(), expected, "{extra}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (extra, refused) in [
            (r#""tools":[{}]"#, true),
            (r#""functions":[{}]"#, true),
            (r#""response_format":{"type":"json_object"}"#, true),
            (r#""response_format":{"type":"text"},"tools":[],"logprobs":false,"store":true"#, false),
        ] {
            let request = request(&format!(r#"{{"model":"m","messages":[],{extra}}}"#));
            assert_eq!(request.refuse_unsupported().is_err(), refused, "{extra}");
        }
    }
}
