//! The events of a streamed response. Made by `writer`.

use serde::Serialize;
use utoipa::ToSchema;

use super::object::{OutputItem, OutputPart, ResponseObject};
use crate::api::generation::generate::logprobs::ChatTokenLogprob;
use crate::api::http::error::{ErrorObject, Problem};
use crate::api::http::sse;

/// One event of a streamed response.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ResponseStreamEvent {
    /// Such as `response.output_text.delta`; also the name of the event.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Counted from 0.
    pub sequence_number: u64,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What happened.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum EventBody {
    /// `response.created`, `.queued`, `.in_progress`, `.completed`, `.incomplete` or `.failed`.
    Response { response: Box<ResponseObject> },
    /// `response.output_item.added` or `.done`.
    Item { output_index: usize, item: OutputItem },
    /// `response.content_part.added` or `.done`.
    Part { item_id: String, output_index: usize, content_index: usize, part: OutputPart },
    /// `response.output_text.delta`.
    TextDelta {
        item_id: String,
        output_index: usize,
        content_index: usize,
        delta: String,
        logprobs: Vec<ChatTokenLogprob>,
    },
    /// `response.output_text.done`.
    TextDone {
        item_id: String,
        output_index: usize,
        content_index: usize,
        text: String,
        logprobs: Vec<ChatTokenLogprob>,
    },
    /// `response.reasoning_text.delta`.
    ReasoningDelta { item_id: String, output_index: usize, content_index: usize, delta: String },
    /// `response.reasoning_text.done`.
    ReasoningDone { item_id: String, output_index: usize, content_index: usize, text: String },
    /// `response.function_call_arguments.delta` or `response.custom_tool_call_input.delta`.
    CallDelta { item_id: String, output_index: usize, delta: String },
    /// `response.function_call_arguments.done`.
    ArgumentsDone { item_id: String, output_index: usize, name: String, arguments: String },
    /// `response.custom_tool_call_input.done`.
    InputDone { item_id: String, output_index: usize, input: String },
    /// `error`.
    Error { error: ErrorObject },
}

/// Types of the events that end a stream.
pub(super) const LAST: [&str; 3] = ["response.completed", "response.incomplete", "response.failed"];

impl ResponseStreamEvent {
    /// Writes it as it is sent.
    pub(super) fn frame(&self) -> Result<sse::Named, Problem> {
        Ok(sse::Named { name: self.kind.into(), data: sse::json(self)? })
    }
}
