//! Writes one response: takes the pieces of the answer as they come, and makes the events and the whole object of them,
//! so that streamed and whole responses agree. Used by `responses` and by nothing else.

use std::mem::take;

use super::asked::complete;
use super::context::Compacted;
use super::events::{EventBody, ResponseStreamEvent};
use super::object::{IncompleteDetails, OutputItem, OutputPart, ResponseError, ResponseObject, ResponseUsage};
use super::thinking::{Piece, Thinks, ThoughtSplitter};
use crate::api::generation::chat::{CallFormat, CallParser, InputReader, Part, new_call_id};
use crate::api::generation::generate::body::{Usage, now};
use crate::api::generation::generate::logprobs::{ChatTokenLogprob, TokenTexts};
use crate::api::http::error::Problem;
use crate::engine::FinishReason;
use crate::engine::logprobs::TokenLogprobs;
use crate::store::new_id;

const IN_PROGRESS: &str = "in_progress";
const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

/// How the text of an answer is read.
pub(super) struct Reading {
    /// Where the model thinks.
    pub thinks: Thinks,
    /// The format of calls; `None` if the answer may have none.
    pub calls: Option<CallFormat>,
    /// Shows tokens; `None` if no log probabilities are wanted.
    pub tokens: Option<TokenTexts>,
}

/// Writes one response.
pub(super) struct Writer {
    /// The response so far.
    pub response: ResponseObject,
    reading: Reading,
    splitter: ThoughtSplitter,
    parser: Option<CallParser>,
    /// The item that is being written.
    open: Option<OpenItem>,
    /// Tokens whose text has not come yet.
    tokens: Vec<TokenLogprobs>,
    reasoning_tokens: usize,
    /// Tokens that making the conversation short took, and how many of them were for reasoning.
    spent: (Usage, usize),
    sequence: u64,
    events: Vec<ResponseStreamEvent>,
}

/// An item that is being written.
enum OpenItem {
    Reasoning { id: String, text: String },
    Message { id: String, text: String, logprobs: Vec<ChatTokenLogprob> },
    Call { id: String, call_id: String, name: String, arguments: String },
    Custom { id: String, call_id: String, name: String, input: String, reader: InputReader },
}

impl Writer {
    /// Creates the writer of `response`, of which nothing is written yet.
    pub(super) fn new(response: ResponseObject, reading: Reading) -> Self {
        Self {
            response,
            splitter: ThoughtSplitter::new(reading.thinks),
            parser: reading.calls.as_ref().map(CallParser::new),
            reading,
            open: None,
            tokens: Vec::new(),
            reasoning_tokens: 0,
            spent: (Usage::new(0, 0, 0), 0),
            sequence: 0,
            events: Vec::new(),
        }
    }

    /// Returns the events since it was asked last.
    pub(super) fn events(&mut self) -> Vec<ResponseStreamEvent> {
        take(&mut self.events)
    }

    /// Tells that the response begins.
    pub(super) fn begin(&mut self) {
        self.tell_response("response.created");
        self.tell_response("response.in_progress");
    }

    /// Takes what stands for the conversation, which was made short.
    pub(super) fn compacted(&mut self, compacted: Compacted) {
        self.spent = (compacted.used, compacted.reasoning_tokens);
        let output_index = self.output_index();
        self.begin_item(compacted.item.clone());
        self.tell("response.output_item.done", EventBody::Item { output_index, item: compacted.item.clone() });
        self.response.output.push(compacted.item);
    }

    /// Returns the tokens of the response, of whose answer `usage` are.
    fn usage(&self, usage: Usage) -> ResponseUsage {
        let (spent, thought) = self.spent;
        ResponseUsage::new(usage.and(spent), self.reasoning_tokens.min(usage.completion_tokens) + thought)
    }

    /// Takes more text, which `token` brought, `None` if no log probabilities are wanted. `drawn` tokens were drawn so
    /// far.
    pub(super) fn text(&mut self, text: &str, token: Option<TokenLogprobs>, drawn: usize) {
        self.tokens.extend(token);
        let thought = self.splitter.is_thinking();
        let pieces = self.splitter.push(text);
        if thought || self.splitter.is_thinking() || matches!(pieces.first(), Some(Piece::Thought(_))) {
            self.reasoning_tokens = drawn;
        }
        self.pieces(pieces);
    }

    /// Takes the end of the answer.
    pub(super) fn end(&mut self, reason: FinishReason, usage: Usage) {
        let pieces = self.splitter.finish();
        if self.splitter.is_thinking() {
            self.reasoning_tokens = usage.completion_tokens;
        }
        self.pieces(pieces);
        if let (Some(parser), Some(format)) = (&mut self.parser, &self.reading.calls) {
            let parts = parser.finish(format);
            self.parts(parts);
        }
        let has_said =
            |item: &OutputItem| !matches!(item, OutputItem::Reasoning { .. } | OutputItem::Compaction { .. });
        let is_silent =
            !self.response.output.iter().any(has_said) && matches!(self.open, None | Some(OpenItem::Reasoning { .. }));
        if is_silent && reason == FinishReason::Stop {
            self.say(String::new());
        }
        let is_cut = reason == FinishReason::Length || self.has_broken_call();
        self.close(if is_cut { INCOMPLETE } else { COMPLETED });
        self.response.usage = Some(self.usage(usage));
        if reason == FinishReason::Length {
            self.response.status = INCOMPLETE;
            self.response.incomplete_details = Some(IncompleteDetails { reason: "max_output_tokens" });
        } else {
            self.response.status = COMPLETED;
            self.response.completed_at = Some(now());
        }
    }

    /// True if a text that ends the answer has ended it in the middle of a call.
    fn has_broken_call(&self) -> bool {
        let is_call = matches!(self.open, Some(OpenItem::Call { .. } | OpenItem::Custom { .. }));
        is_call && self.parser.as_ref().is_some_and(|parser| !parser.has_whole_calls())
    }

    /// Tells that the response has ended.
    pub(super) fn tell_end(&mut self) {
        let kind = match self.response.status {
            COMPLETED => "response.completed",
            INCOMPLETE => "response.incomplete",
            _ => "response.failed",
        };
        self.tell_response(kind);
    }

    /// Takes a failure: what was written until now stays.
    pub(super) fn fail(&mut self, problem: Problem, usage: Usage) {
        self.close(INCOMPLETE);
        let problem = complete(problem);
        self.response.status = "failed";
        self.response.completed_at = None;
        self.response.incomplete_details = None;
        self.response.usage = Some(self.usage(usage));
        self.response.error = Some(ResponseError::of(&problem));
        self.tell("error", EventBody::Error { error: problem.error });
        self.tell_response("response.failed");
    }

    /// Takes that the client has left.
    pub(super) fn cancel(&mut self, usage: Usage) {
        self.close(INCOMPLETE);
        self.response.status = "cancelled";
        self.response.usage = Some(self.usage(usage));
    }

    fn pieces(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match (piece, &mut self.parser, &self.reading.calls) {
                (Piece::Thought(text), ..) => self.think(text),
                (Piece::Answer(text), Some(parser), Some(format)) => {
                    let parts = parser.push(format, &text);
                    self.parts(parts);
                }
                (Piece::Answer(text), ..) => self.say(text),
            }
        }
    }

    fn parts(&mut self, parts: Vec<Part>) {
        for part in parts {
            match part {
                Part::Content(text) => self.say(text),
                Part::Call { name, .. } => self.call(name),
                Part::Arguments { text, .. } => self.argue(text),
            }
        }
    }

    /// Returns the number of the open item.
    fn output_index(&self) -> usize {
        self.response.output.len()
    }

    fn think(&mut self, delta: String) {
        self.tokens.clear();
        if !matches!(self.open, Some(OpenItem::Reasoning { .. })) {
            self.close(COMPLETED);
            let id = new_id("rs_");
            let item = OutputItem::Reasoning { id: id.clone(), summary: [], content: Vec::new(), status: IN_PROGRESS };
            self.begin_item(item);
            self.begin_part(&id, OutputPart::ReasoningText { text: String::new() });
            self.open = Some(OpenItem::Reasoning { id, text: String::new() });
        }
        let output_index = self.output_index();
        if let Some(OpenItem::Reasoning { id, text }) = &mut self.open {
            text.push_str(&delta);
            let body = EventBody::ReasoningDelta { item_id: id.clone(), output_index, content_index: 0, delta };
            self.tell("response.reasoning_text.delta", body);
        }
    }

    fn say(&mut self, delta: String) {
        let new: Vec<ChatTokenLogprob> = match &self.reading.tokens {
            Some(texts) => texts.chat(&take(&mut self.tokens)).content,
            None => Vec::new(),
        };
        if !matches!(self.open, Some(OpenItem::Message { .. })) {
            self.close(COMPLETED);
            let id = new_id("msg_");
            let content = Vec::new();
            let item = OutputItem::Message { id: id.clone(), status: IN_PROGRESS, role: "assistant", content };
            self.begin_item(item);
            let (text, annotations, logprobs) = (String::new(), [], Vec::new());
            self.begin_part(&id, OutputPart::OutputText { text, annotations, logprobs });
            self.open = Some(OpenItem::Message { id, text: String::new(), logprobs: Vec::new() });
        }
        let output_index = self.output_index();
        if let Some(OpenItem::Message { id, text, logprobs }) = &mut self.open {
            text.push_str(&delta);
            logprobs.extend(new.iter().cloned());
            if delta.is_empty() && new.is_empty() {
                return;
            }
            let (item_id, content_index) = (id.clone(), 0);
            let body = EventBody::TextDelta { item_id, output_index, content_index, delta, logprobs: new };
            self.tell("response.output_text.delta", body);
        }
    }

    fn call(&mut self, name: String) {
        self.tokens.clear();
        self.close(COMPLETED);
        let is_custom = self.reading.calls.as_ref().is_some_and(|calls| calls.custom.contains(&name));
        let call_id = new_call_id();
        let call = if is_custom {
            let (id, input, reader) = (new_id("ctc_"), String::new(), InputReader::default());
            OpenItem::Custom { id, call_id, name, input, reader }
        } else {
            OpenItem::Call { id: new_id("fc_"), call_id, name, arguments: String::new() }
        };
        self.begin_item(call.item(IN_PROGRESS));
        self.open = Some(call);
    }

    fn argue(&mut self, delta: String) {
        self.tokens.clear();
        let output_index = self.output_index();
        match &mut self.open {
            Some(OpenItem::Call { id, arguments, .. }) => {
                arguments.push_str(&delta);
                let body = EventBody::CallDelta { item_id: id.clone(), output_index, delta };
                self.tell("response.function_call_arguments.delta", body);
            }
            Some(OpenItem::Custom { id, input, reader, .. }) => {
                let delta = reader.push(&delta);
                if !delta.is_empty() {
                    input.push_str(&delta);
                    let body = EventBody::CallDelta { item_id: id.clone(), output_index, delta };
                    self.tell("response.custom_tool_call_input.delta", body);
                }
            }
            _ => {}
        }
    }

    /// Ends the open item, if there is one, with this status.
    fn close(&mut self, status: &'static str) {
        // Tokens that add nothing to the text belong to it all the same.
        if !self.tokens.is_empty() && matches!(self.open, Some(OpenItem::Message { .. })) {
            self.say(String::new());
        }
        let Some(open) = self.open.take() else { return };
        let output_index = self.output_index();
        let item = open.item(status);
        match open {
            OpenItem::Reasoning { id: item_id, text } => {
                let part = OutputPart::ReasoningText { text: text.clone() };
                let id = item_id.clone();
                let body = EventBody::ReasoningDone { item_id, output_index, content_index: 0, text };
                self.tell("response.reasoning_text.done", body);
                self.end_part(id, part);
            }
            OpenItem::Message { id: item_id, text, logprobs } => {
                let part = OutputPart::OutputText { text: text.clone(), annotations: [], logprobs: logprobs.clone() };
                let id = item_id.clone();
                let body = EventBody::TextDone { item_id, output_index, content_index: 0, text, logprobs };
                self.tell("response.output_text.done", body);
                self.end_part(id, part);
            }
            OpenItem::Custom { id: item_id, input, .. } => {
                let body = EventBody::InputDone { item_id, output_index, input };
                self.tell("response.custom_tool_call_input.done", body);
            }
            OpenItem::Call { id: item_id, name, arguments, .. } => {
                let body = EventBody::ArgumentsDone { item_id, output_index, name, arguments };
                self.tell("response.function_call_arguments.done", body);
            }
        }
        self.tell("response.output_item.done", EventBody::Item { output_index, item: item.clone() });
        self.response.output.push(item);
    }

    fn begin_item(&mut self, item: OutputItem) {
        let output_index = self.output_index();
        self.tell("response.output_item.added", EventBody::Item { output_index, item });
    }

    fn begin_part(&mut self, id: &str, part: OutputPart) {
        let (item_id, output_index) = (id.to_owned(), self.output_index());
        self.tell("response.content_part.added", EventBody::Part { item_id, output_index, content_index: 0, part });
    }

    fn end_part(&mut self, item_id: String, part: OutputPart) {
        let output_index = self.output_index();
        self.tell("response.content_part.done", EventBody::Part { item_id, output_index, content_index: 0, part });
    }

    fn tell_response(&mut self, kind: &'static str) {
        self.tell(kind, EventBody::Response { response: Box::new(self.response.clone()) });
    }

    fn tell(&mut self, kind: &'static str, body: EventBody) {
        self.events.push(ResponseStreamEvent { kind, sequence_number: self.sequence, body });
        self.sequence += 1;
    }
}

impl OpenItem {
    /// Returns the item with this status; one that has just begun has no parts yet.
    fn item(&self, status: &'static str) -> OutputItem {
        match self {
            Self::Reasoning { id, text } => {
                let content = vec![OutputPart::ReasoningText { text: text.clone() }];
                OutputItem::Reasoning { id: id.clone(), summary: [], content, status }
            }
            Self::Message { id, text, logprobs } => {
                let (text, logprobs) = (text.clone(), logprobs.clone());
                let content = vec![OutputPart::OutputText { text, annotations: [], logprobs }];
                OutputItem::Message { id: id.clone(), status, role: "assistant", content }
            }
            Self::Call { id, call_id, name, arguments } => {
                let (id, call_id, name) = (id.clone(), call_id.clone(), name.clone());
                OutputItem::FunctionCall { id, call_id, name, arguments: arguments.clone(), status }
            }
            Self::Custom { id, call_id, name, input, .. } => {
                let (id, call_id, name) = (id.clone(), call_id.clone(), name.clone());
                OutputItem::CustomToolCall { id, call_id, name, input: input.clone(), status }
            }
        }
    }
}

impl ResponseError {
    /// Tells a failure as a response does.
    pub(super) fn of(problem: &Problem) -> Self {
        let code = if problem.is_bad_request() {
            "invalid_prompt"
        } else if problem.error.code == Some("rate_limit_exceeded") {
            "rate_limit_exceeded"
        } else {
            "server_error"
        };
        Self { code, message: problem.error.message.clone() }
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
