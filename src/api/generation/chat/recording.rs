//! Keeps an answer that its client asked to store: what was asked and what was answered go to the recorder of the
//! store, beside the answer's own path. Used by `chat::create`; `stored_completions` reads them.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::format::ResponseFormat;
use super::request::{ChatRequest, FunctionDefinition, Tool, ToolChoice};
use super::response::{AssistantMessage, ChatChoice, ChatCompletion, ChatCompletionChunk, Delta, Writer};
use super::tool_calls::{FunctionCall, ToolCall};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::generate::body::{Chunks, Usage};
use crate::api::generation::generate::logprobs::ChatLogprobs;
use crate::api::http::error::{Problem, Result};
use crate::api::http::transport::RequestId;
use crate::api::operations::checks::check_metadata;
use crate::engine::FinishReason;
use crate::engine::logprobs::TokenLogprobs;
use crate::store::completion_recorder::CompletionRecorder;
use crate::store::stored_completions::NewCompletion;

/// An answer that is to be stored once it is complete.
pub(super) struct Recording {
    recorder: CompletionRecorder,
    organization: Arc<str>,
    request: Arc<ChatRequest>,
    metadata: Map<String, Value>,
    request_id: Option<RequestId>,
    /// When the answer began, in Unix microseconds.
    began: i64,
}

/// The stored object: the answer, and of the request what shows how it came about. `null` stands for what the request
/// left out.
#[derive(Debug, Serialize)]
struct StoredBody<'a> {
    #[serde(flatten)]
    completion: &'a ChatCompletion,
    request_id: Option<&'a str>,
    tools: Option<&'a [Tool]>,
    tool_choice: Option<&'a ToolChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    functions: Option<&'a [FunctionDefinition]>,
    response_format: Option<&'a ResponseFormat>,
    seed: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    input_user: Option<&'a Value>,
}

impl Recording {
    /// Prepares to store the answer, which `began` then; `None` if the request does not ask for it.
    pub(super) fn wanted(
        state: &ApiState,
        caller: &Caller,
        request: &Arc<ChatRequest>,
        id: Option<RequestId>,
        began: i64,
    ) -> Result<Option<Self>> {
        if request.store != Some(true) {
            return Ok(None);
        }
        let metadata = match &request.metadata {
            None => Map::new(),
            Some(Value::Object(metadata)) => metadata.clone(),
            Some(_) => return Err(Problem::wrong_type("metadata", "expected an object of texts")),
        };
        check_metadata(Some(&metadata))?;
        Ok(Some(Self {
            recorder: state.completions.clone(),
            organization: Arc::clone(&caller.organization),
            request: Arc::clone(request),
            metadata,
            request_id: id,
            began,
        }))
    }

    /// Hands the answer to the recorder. It never fails the answer: what cannot be stored is logged and counted.
    pub(super) fn keep(self, completion: &ChatCompletion) {
        let request = &self.request;
        let body = StoredBody {
            completion,
            request_id: self.request_id.as_ref().map(|id| &*id.0),
            tools: request.tools.as_deref(),
            tool_choice: request.tool_choice.as_ref(),
            functions: request.functions.as_deref(),
            response_format: request.response_format.as_ref(),
            seed: request.seed,
            temperature: request.temperature,
            top_p: request.top_p,
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            input_user: request.user.as_ref(),
        };
        let written =
            serde_json::to_string(&body).and_then(|body| Ok((body, serde_json::to_string(&request.messages)?)));
        match written {
            Ok((body, messages)) => self.recorder.record(NewCompletion {
                id: completion.id.clone(),
                organization: self.organization.to_string(),
                model: completion.model.clone(),
                created_micros: self.began,
                metadata: self.metadata,
                completion: body,
                messages,
            }),
            Err(error) => self.recorder.lose(&completion.id, &error),
        }
    }
}

/// Writes the chunks of a streamed answer, and keeps what they add up to once all choices have ended. An answer whose
/// client hangs up, or that fails, is not stored.
pub(super) struct Recorded {
    writer: Writer,
    recording: parking_lot::Mutex<Option<Recording>>,
    choices: Vec<ChatChoice>,
}

impl Recorded {
    pub(super) fn new(writer: Writer, recording: Recording) -> Self {
        Self { writer, recording: parking_lot::Mutex::new(Some(recording)), choices: Vec::new() }
    }

    fn note(&mut self, chunks: &[ChatCompletionChunk]) {
        for choice in chunks.iter().flat_map(|chunk| &chunk.choices) {
            while self.choices.len() <= choice.index {
                let logprobs =
                    self.writer.tokens.is_some().then(|| ChatLogprobs { content: Vec::new(), refusal: None });
                let index = self.choices.len();
                self.choices.push(ChatChoice { index, message: AssistantMessage::EMPTY, logprobs, finish_reason: "" });
            }
            let whole = &mut self.choices[choice.index];
            whole.message.add(&choice.delta);
            if let (Some(whole), Some(more)) = (&mut whole.logprobs, &choice.logprobs) {
                whole.content.extend_from_slice(&more.content);
            }
            whole.finish_reason = choice.finish_reason.unwrap_or(whole.finish_reason);
        }
    }
}

impl AssistantMessage {
    /// Adds what is new in a chunk.
    fn add(&mut self, delta: &Delta) {
        if let Some(text) = &delta.content {
            self.content.get_or_insert_default().push_str(text);
        }
        for call in &delta.tool_calls {
            let function = call.function.as_ref().map(|function| (&function.name, &function.arguments));
            let custom = call.custom.as_ref().map(|custom| (&custom.name, &custom.input));
            let Some((name, text)) = function.or(custom) else { continue };
            if let (Some(id), Some(name)) = (&call.id, name) {
                self.tool_calls.push(ToolCall::new(id.clone(), name.clone(), custom.is_some()));
            }
            if let Some(whole) = self.tool_calls.get_mut(call.index) {
                whole.push(text);
            }
        }
        if let Some(call) = &delta.function_call {
            let whole = self.function_call.get_or_insert_with(|| {
                let name = call.name.clone().unwrap_or_default();
                FunctionCall { name, arguments: String::new() }
            });
            whole.arguments.push_str(&call.arguments);
        }
    }
}

impl Chunks for Recorded {
    type Chunk = ChatCompletionChunk;

    fn begin(&self, index: usize) -> Option<ChatCompletionChunk> {
        self.writer.begin(index)
    }

    fn text(&mut self, index: usize, text: String, token: Option<&TokenLogprobs>) -> Vec<ChatCompletionChunk> {
        let chunks = self.writer.text(index, text, token);
        self.note(&chunks);
        chunks
    }

    fn end(&mut self, index: usize, reason: FinishReason) -> Vec<ChatCompletionChunk> {
        let chunks = self.writer.end(index, reason);
        self.note(&chunks);
        let message = &mut self.choices[index].message;
        if message.tool_calls.is_empty() && message.function_call.is_none() {
            message.content.get_or_insert_default();
        }
        chunks
    }

    /// Called once, after the last end.
    fn usage(&self, usage: Usage) -> Option<ChatCompletionChunk> {
        if let Some(recording) = self.recording.lock().take() {
            recording.keep(&ChatCompletion::new(&self.writer, self.choices.clone(), usage));
        }
        self.writer.usage(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::generation::chat::response::{CustomDelta, FunctionDelta, ToolCallDelta};

    #[test]
    fn the_parts_of_a_streamed_message_add_up_to_the_whole() {
        let call = |index, id: Option<&str>, name: Option<&str>, arguments: &str| Delta {
            tool_calls: vec![ToolCallDelta {
                index,
                id: id.map(str::to_owned),
                kind: id.map(|_| "function"),
                function: Some(FunctionDelta { name: name.map(str::to_owned), arguments: arguments.into() }),
                custom: None,
            }],
            ..Delta::default()
        };
        let custom = |id: Option<&str>, name: Option<&str>, input: &str| Delta {
            tool_calls: vec![ToolCallDelta {
                index: 2,
                id: id.map(str::to_owned),
                kind: id.map(|_| "custom"),
                function: None,
                custom: Some(CustomDelta { name: name.map(str::to_owned), input: input.into() }),
            }],
            ..Delta::default()
        };
        let mut message = AssistantMessage::EMPTY;
        for delta in [
            Delta { role: Some("assistant"), content: Some("Wa".into()), ..Delta::default() },
            Delta { content: Some("it.".into()), ..Delta::default() },
            call(0, Some("call_1"), Some("f"), ""),
            call(0, None, None, "{\"a\":"),
            call(0, None, None, "1}"),
            call(1, Some("call_2"), Some("g"), ""),
            call(1, None, None, "{}"),
            custom(Some("call_3"), Some("c"), ""),
            custom(None, None, "a\""),
        ] {
            message.add(&delta);
        }
        let shown = serde_json::to_value(&message).expect("JSON");
        let call = |id: &str, name: &str, arguments: &str| serde_json::json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        assert_eq!(shown["content"], "Wait.");
        assert_eq!(
            shown["tool_calls"],
            serde_json::json!([
                call("call_1", "f", "{\"a\":1}"),
                call("call_2", "g", "{}"),
                {"id": "call_3", "type": "custom", "custom": {"name": "c", "input": "a\""}},
            ])
        );
    }
}
