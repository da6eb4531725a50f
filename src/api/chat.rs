//! `POST /chat/completions`: the assistant's answer to a conversation, rendered with the model's own template.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::api::auth::Caller;
use crate::api::error::{ErrorBody, Problem};
use crate::api::extract::Body;
use crate::api::generate::{
    Chunks, Plan, SYSTEM_FINGERPRINT, SamplingFields, StopTexts, StreamOptions, Usage, UsageKey, check_n, new_id,
    not_supported, now, reason_name, stream_chunks,
};
use crate::api::target::Target;
use crate::api::{ApiState, sse};
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
    /// Not supported yet.
    pub logprobs: Option<bool>,
    /// Not supported yet.
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
    /// Always null.
    pub logprobs: Option<()>,
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
    /// Always null.
    pub logprobs: Option<()>,
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

/// Answer a conversation
///
/// With `stream` the answer is `text/event-stream`: each event holds one `ChatCompletionChunk`, the last one is `[DONE]`.
#[utoipa::path(
    post, path = "/chat/completions", operation_id = "createChatCompletion", tag = "Chat",
    request_body = ChatRequest,
    responses(
        (status = 200, content((ChatCompletion = "application/json"), (ChatCompletionChunk = "text/event-stream"))),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody),
    ),
)]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<ChatRequest>,
) -> Result<Response, Problem> {
    request.refuse_unsupported()?;
    let target = Target::resolve(&state, &caller, &request.model).await?;
    let running = request.plan(&state, target).await.and_then(Plan::start).map_err(blame_messages)?;
    let stream_usage = StreamOptions::wants_usage(request.stream_options.as_ref());
    let writer = Writer { id: new_id("chatcmpl"), created: now(), model: request.model, stream_usage };
    if request.stream == Some(true) {
        return Ok(sse::respond(stream_chunks(running, writer)));
    }
    let (answers, usage) = running.collect().await?;
    let choices = answers.into_iter().enumerate().map(|(index, answer)| ChatChoice {
        index,
        message: AssistantMessage { role: "assistant", content: answer.text, refusal: None },
        logprobs: None,
        finish_reason: reason_name(answer.reason),
    });
    let completion = ChatCompletion {
        id: writer.id,
        object: "chat.completion",
        created: writer.created,
        model: writer.model,
        choices: choices.collect(),
        usage,
        system_fingerprint: SYSTEM_FINGERPRINT,
    };
    Ok(Json(completion).into_response())
}

/// In a chat the messages are what is too long.
fn blame_messages(error: Error) -> Problem {
    let too_long = matches!(error, Error::ContextLength { .. });
    let problem = Problem::from(error);
    if too_long { problem.param("messages") } else { problem }
}

impl ChatRequest {
    fn refuse_unsupported(&self) -> Result<()> {
        let given = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|list| !list.is_empty());
        if given(&self.tools) {
            return Err(not_supported("tools"));
        }
        if given(&self.functions) {
            return Err(not_supported("functions"));
        }
        if self.logprobs == Some(true) || self.top_logprobs.is_some_and(|top| top > 0) {
            return Err(not_supported("logprobs"));
        }
        match &self.response_format {
            Some(format) if format.kind != "text" => {
                let message = format!("'response_format' of type '{}' is not supported yet: use 'text'.", format.kind);
                Err(Error::invalid_code("response_format", "unsupported_value", message))
            }
            _ => Ok(()),
        }
    }

    async fn plan(&self, state: &ApiState, target: Target) -> Result<Plan> {
        let stop = StopTexts::check(self.stop.clone())?;
        let sampling = self.sampling_fields().check(target.model().config.vocab_size)?;
        let n = check_n(self.n, 1, state.config.limits.max_waiting)?;
        let messages = template_messages(&self.messages)?;
        let template = target.model().chat_template.as_ref().ok_or_else(|| {
            let message = format!("The model `{}` has no chat template: use /v1/completions with it.", self.model);
            Error::invalid("model", message)
        })?;
        let text = template.render(&messages, None, true)?;
        // The template has written the special tokens itself.
        let prompts = target.encode(vec![text], false).await?;
        let used = prompts.iter().map(Vec::len).max().unwrap_or_default();
        if used == 0 {
            return Err(Error::invalid("messages", "'messages' render to an empty prompt: send some content."));
        }
        let rest = target.context().saturating_sub(used).max(1);
        let max_tokens = self.max_completion_tokens.or(self.max_tokens).unwrap_or(rest);
        Ok(Plan { target, prompts, n, max_tokens, sampling, stop })
    }

    fn sampling_fields(&self) -> SamplingFields<'_> {
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
fn template_messages(messages: &[ChatMessage]) -> Result<Vec<Value>> {
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

/// Writes the answers of one request.
struct Writer {
    id: String,
    created: i64,
    model: String,
    stream_usage: bool,
}

impl Writer {
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

    fn text(&self, index: usize, text: String) -> ChatCompletionChunk {
        self.delta(index, Delta { role: None, content: Some(text) }, None)
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
    fn what_is_not_supported_is_refused_by_name() {
        for (extra, refused) in [
            (r#""tools":[{}]"#, true),
            (r#""functions":[{}]"#, true),
            (r#""logprobs":true"#, true),
            (r#""response_format":{"type":"json_object"}"#, true),
            (r#""response_format":{"type":"text"},"tools":[],"logprobs":false,"store":true"#, false),
        ] {
            let request = request(&format!(r#"{{"model":"m","messages":[],{extra}}}"#));
            assert_eq!(request.refuse_unsupported().is_err(), refused, "{extra}");
        }
    }

    #[test]
    fn a_stream_begins_with_the_role_and_ends_with_an_empty_delta() {
        let writer = Writer { id: "chatcmpl-1".into(), created: 1, model: "m".into(), stream_usage: false };
        let first = serde_json::to_value(writer.begin(0)).expect("JSON");
        assert_eq!(first["choices"][0]["delta"], json!({"role":"assistant","content":""}));
        let last = serde_json::to_value(writer.end(0, "stop")).expect("JSON");
        assert_eq!(last["choices"][0], json!({"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}));
    }
}
