//! The bodies that `chat::create` answers with: one for all answers, or chunks of them.

use serde::Serialize;
use utoipa::ToSchema;

use crate::api::generate::body::{Chunks, SYSTEM_FINGERPRINT, Usage, UsageKey};
use crate::api::generate::logprobs::{ChatLogprobs, TokenTexts};
use crate::engine::logprobs::TokenLogprobs;

/// The answers to a conversation.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-…`
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// The model as asked for.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens used.
    pub usage: Usage,
    /// Changes when the same seed may give another text.
    pub system_fingerprint: &'static str,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Its number.
    pub index: usize,
    /// The assistant's message.
    pub message: AssistantMessage,
    /// Of its tokens, where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
}

/// The assistant's message.
#[derive(Debug, Serialize, ToSchema)]
pub struct AssistantMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// Always null.
    pub refusal: Option<()>,
}

/// One event of a streamed answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletionChunk {
    /// The same in all events of an answer.
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// The model as asked for.
    pub model: String,
    /// Changes when the same seed may give another text.
    pub system_fingerprint: &'static str,
    /// What is new.
    pub choices: Vec<ChatChunkChoice>,
    /// Tokens used, in the last event, where asked for.
    #[serde(skip_serializing_if = "UsageKey::is_absent")]
    #[schema(value_type = Option<Usage>)]
    pub usage: UsageKey,
}

/// What is new in one answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunkChoice {
    /// The number of the answer.
    pub index: usize,
    /// What is new in its message.
    pub delta: Delta,
    /// Of the tokens that are new, where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`; null while the answer goes on.
    pub finish_reason: Option<&'static str>,
}

/// What is new in a message.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Delta {
    /// `assistant`, in the first event of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Writes the answers of one request.
pub struct Writer {
    pub id: String,
    pub created: i64,
    pub model: String,
    pub stream_usage: bool,
    /// Shows tokens, where log probabilities are wanted.
    pub tokens: Option<TokenTexts>,
}

impl Writer {
    /// The log probabilities of these tokens, where they are wanted.
    pub fn logprobs(&self, tokens: &[TokenLogprobs]) -> Option<ChatLogprobs> {
        self.tokens.as_ref().map(|texts| texts.chat(tokens))
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: UsageKey) -> ChatCompletionChunk {
        ChatCompletionChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage,
        }
    }

    fn delta(&self, index: usize, delta: Delta, finish_reason: Option<&'static str>) -> ChatCompletionChunk {
        let choice = ChatChunkChoice { index, delta, logprobs: None, finish_reason };
        self.chunk(vec![choice], UsageKey::before_the_last(self.stream_usage))
    }
}

impl Chunks for Writer {
    type Chunk = ChatCompletionChunk;

    fn begin(&self, index: usize) -> Option<ChatCompletionChunk> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
        Some(self.delta(index, delta, None))
    }

    fn text(&mut self, index: usize, text: String, token: Option<&TokenLogprobs>) -> ChatCompletionChunk {
        let mut chunk = self.delta(index, Delta { role: None, content: Some(text) }, None);
        if let Some(token) = token {
            chunk.choices[0].logprobs = self.logprobs(std::slice::from_ref(token));
        }
        chunk
    }

    fn end(&self, index: usize, reason: &'static str) -> ChatCompletionChunk {
        self.delta(index, Delta::default(), Some(reason))
    }

    fn usage(&self, usage: Usage) -> Option<ChatCompletionChunk> {
        self.stream_usage.then(|| self.chunk(Vec::new(), UsageKey::Now(usage)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stream_begins_with_the_role_and_ends_with_an_empty_delta() {
        let writer =
            Writer { id: "chatcmpl-1".into(), created: 1, model: "m".into(), stream_usage: false, tokens: None };
        let first = serde_json::to_value(writer.begin(0)).expect("JSON");
        assert_eq!(first["choices"][0]["delta"], json!({"role":"assistant","content":""}));
        let last = serde_json::to_value(writer.end(0, "stop")).expect("JSON");
        assert_eq!(last["choices"][0], json!({"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}));
    }
}
