//! `/responses/compact`: a conversation made short. What its user, system and developer said stays as it is, and one item
//! stands for all of it: a summary that the model itself writes. A response whose `input` begins with these items goes
//! on from there.
//!
//! The model reads the conversation as a transcript. One that does not fit its context is read in pieces, each with the
//! summary of those before it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::asked::{Names, complete, without_thinking};
use super::conversation::{Conversation, gather, instructions};
use super::items::{self, is_said_to_the_model};
use super::object::ResponseUsage;
use super::request::{ConversationParam, CreateResponse, Input};
use super::thinking::{Piece, ThoughtSplitter};
use super::{summary, thinks};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::chat::{ChatContent, ChatMessage, ChatRequest};
use crate::api::generation::foreign_fields::{KnownBody, Route, RouteBody};
use crate::api::generation::generate::body::{Usage, now};
use crate::api::generation::generate::{GenerationPlan, Piece as Drawn};
use crate::api::generation::target::Target;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::share::Share;
use crate::api::http::values;
use crate::store::new_id;

/// Tokens of a summary at the most, unless the request or the model says otherwise; and the part of the context.
const SUMMARY_TOKENS: usize = 1024;
const SUMMARY_PART: usize = 4;
/// What the model is asked to do.
const TASK: &str = "Below is a conversation. Summarize it, so that it can go on from your summary alone. Keep what was \
                    asked, what was answered, found out and decided, all names and numbers that matter, and what is \
                    still to be done. Write the summary and nothing else.";

/// A conversation to be made short.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct CompactResponse {
    /// The model that writes the summary.
    pub model: String,
    /// Items of the conversation, or what the user says.
    pub input: Option<Input>,
    /// A system message, for what matters in the summary.
    pub instructions: Option<Input>,
    /// The response that the conversation ends with.
    pub previous_response_id: Option<String>,
    /// Extension: a conversation that is kept; it stays as it is.
    pub conversation: Option<ConversationParam>,
    /// Extension: tokens of the summary at the most; by default 1,024, or a quarter of the context if that is less.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub max_output_tokens: Option<usize>,
    /// Refused: the conversation is made short here in any case.
    #[schema(ignore)]
    pub context_management: Option<Value>,
}

impl RouteBody for CompactResponse {
    const ROUTE: Route = Route::Responses;
}

/// A conversation that was made short.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompactedResponse {
    /// `resp_…`; it is not kept.
    pub id: String,
    /// Always `response.compaction`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    /// What to send instead of the conversation: its messages of the roles user, system and developer, and an item of the
    /// type `compaction`.
    #[schema(value_type = Vec<Object>)]
    pub output: Vec<Value>,
    /// Tokens of the summary and of what the model read for it.
    pub usage: ResponseUsage,
}

/// Make a conversation short
#[utoipa::path(
    post, path = "/responses/compact", operation_id = "compactResponse", tag = "Responses",
    request_body = CompactResponse,
    responses((status = 200, body = CompactedResponse), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn compact(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    body: Result<KnownBody<CompactResponse>, Problem>,
) -> Result<Json<CompactedResponse>, Problem> {
    let KnownBody(request) = body.map_err(complete)?;
    let names = Names::default();
    let done = Box::pin(shorten(&state, &caller, share, request)).await;
    done.map(Json).map_err(|problem| names.tell(problem))
}

async fn shorten(
    state: &ApiState,
    caller: &Caller,
    share: Share,
    request: CompactResponse,
) -> Result<CompactedResponse> {
    if request.context_management.is_some_and(|given| given.as_array().is_none_or(|entries| !entries.is_empty())) {
        let message = "'context_management' is not supported here: leave it out, or send it to /v1/responses.";
        return Err(Problem::invalid_code("context_management", "unsupported_parameter", message));
    }
    let goes_on = request.previous_response_id.is_some() || request.conversation.is_some();
    let said = CreateResponse {
        input: request.input.or_else(|| goes_on.then(|| Input::Items(Vec::new()))),
        previous_response_id: request.previous_response_id,
        conversation: request.conversation,
        ..CreateResponse::default()
    };
    let Conversation { before, own, messages, .. } = gather(state, caller, &share, &said).await?;
    let target = Target::resolve(state, caller, share, &request.model).await?;
    let advice = "allow more by 'max_output_tokens'";
    let mut summarizer = Summarizer::new(state, target, request.model, advice);
    summarizer.instructions = items::messages(instructions(request.instructions.as_ref())?)?;
    summarizer.max_tokens = request.max_output_tokens.unwrap_or(summarizer.max_tokens);
    let summary = summarizer.summarize(&messages).await?;
    let all = before.into_iter().map(items::kept).chain(own);
    let mut output: Vec<Value> = all.filter(is_said_to_the_model).collect();
    output.push(json!({"id": new_id("cmp_"), "type": "compaction", "encrypted_content": summary::write(&summary)}));
    Ok(CompactedResponse {
        id: new_id("resp_"),
        object: "response.compaction",
        created_at: now(),
        output,
        usage: ResponseUsage::new(summarizer.used, summarizer.reasoning_tokens),
    })
}

/// Asks the model for summaries.
pub(super) struct Summarizer<'a> {
    state: &'a ApiState,
    target: Target,
    instructions: Vec<ChatMessage>,
    model: String,
    max_tokens: usize,
    /// What may help if the model writes nothing.
    advice: &'static str,
    /// Tokens so far.
    used: Usage,
    reasoning_tokens: usize,
}

impl<'a> Summarizer<'a> {
    /// Prepares to ask the model for a summary of the default length.
    pub(super) fn new(state: &'a ApiState, target: Target, model: String, advice: &'static str) -> Self {
        let longest = target.model().generation.max_answer_tokens.unwrap_or(usize::MAX);
        let max_tokens = SUMMARY_TOKENS.min(target.context() / SUMMARY_PART).clamp(1, longest.max(1));
        let (instructions, used, reasoning_tokens) = (Vec::new(), Usage::new(0, 0, 0), 0);
        Self { state, target, instructions, model, max_tokens, advice, used, reasoning_tokens }
    }

    /// Returns the tokens that were used, and how many of them were for reasoning.
    pub(super) fn used(&self) -> (Usage, usize) {
        (self.used, self.reasoning_tokens)
    }

    /// Summarizes a conversation, in as few pieces as it takes.
    pub(super) async fn summarize(&mut self, messages: &[ChatMessage]) -> Result<String> {
        let lines: Vec<String> = messages.iter().map(line).collect();
        let (mut summary, mut start) = (None, 0);
        while start < lines.len() {
            let (end, plan) = self.longest(summary.as_deref(), &lines, start).await?;
            summary = Some(self.ask(plan).await?);
            start = end;
        }
        Ok(summary.unwrap_or_default())
    }

    /// Plans the summary of as many lines from number `start` on as fit; returns the number behind the last one, too.
    async fn longest(&self, before: Option<&str>, lines: &[String], start: usize) -> Result<(usize, GenerationPlan)> {
        let too_long = match self.plan(before, &lines[start..]).await {
            Err(problem) if problem.is_context_length() => problem,
            plan => return plan.map(|plan| (lines.len(), plan)),
        };
        let (mut fits, mut end, mut longest) = (start, lines.len(), None);
        while end - fits > 1 {
            let middle = fits + (end - fits) / 2;
            match self.plan(before, &lines[start..middle]).await {
                Ok(plan) => (fits, longest) = (middle, Some((middle, plan))),
                Err(problem) if problem.is_context_length() => end = middle,
                Err(problem) => return Err(problem),
            }
        }
        longest.ok_or(too_long)
    }

    async fn plan(&self, before: Option<&str>, lines: &[String]) -> Result<GenerationPlan> {
        let before = before.map(|summary| format!("Summary of what came before:\n{summary}\n\n")).unwrap_or_default();
        let text = format!("{TASK}\n\n{before}Conversation:\n\n{}", lines.join("\n\n"));
        let mut messages = self.instructions.clone();
        messages.push(ChatMessage {
            role: "user".into(),
            content: Some(ChatContent::Text(text)),
            ..ChatMessage::default()
        });
        let chat = ChatRequest {
            model: self.model.clone(),
            messages,
            max_completion_tokens: Some(self.max_tokens),
            temperature: Some(0.0),
            chat_template_kwargs: Some(without_thinking(None)),
            ..ChatRequest::default()
        };
        Ok(Arc::new(chat).plan(self.state, self.target.clone()).await?.0)
    }

    async fn ask(&mut self, plan: GenerationPlan) -> Result<String> {
        let prompt = plan.prompts.first().map(AsRef::as_ref).unwrap_or_default();
        let mut splitter = ThoughtSplitter::new(thinks(self.target.model(), prompt, false, None));
        let mut running = plan.start()?;
        let (mut pieces, mut thought) = (Vec::new(), 0);
        while let Some(piece) = running.next().await {
            if let (_, Drawn::Text { text, .. }) = piece? {
                pieces.extend(splitter.push(&text));
            }
            if splitter.is_thinking() {
                thought = running.usage().completion_tokens;
            }
        }
        pieces.extend(splitter.finish());
        let usage = running.usage();
        self.reasoning_tokens += thought;
        let said = pieces.into_iter().filter_map(|piece| match piece {
            Piece::Answer(text) => Some(text),
            Piece::Thought(_) => None,
        });
        let summary = said.collect::<String>().trim().to_owned();
        self.used = self.used.and(usage);
        if summary.is_empty() {
            // An item that stands for nothing would lose the conversation without a word.
            let message = format!(
                "The model wrote no summary of the conversation in up to {} tokens: {}, or use another model.",
                self.max_tokens, self.advice
            );
            return Err(Problem::invalid_code("model", "invalid_value", message));
        }
        Ok(summary)
    }
}

/// Writes a message as a line of a transcript.
fn line(message: &ChatMessage) -> String {
    let who = match message.role.as_str() {
        "assistant" => "Assistant",
        "tool" => "Result",
        "user" => "User",
        _ => "Instructions",
    };
    let text = match &message.content {
        Some(ChatContent::Text(text)) => Some(format!("{who}: {text}")),
        _ => None,
    };
    let calls = message.tool_calls.iter().flatten();
    let calls = calls.filter_map(|call| call.function.as_ref());
    let calls = calls.map(|function| format!("Assistant calls {} with {}", function.name, function.arguments));
    text.into_iter().chain(calls).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_tells_who_said_and_called_what() {
        let items = json!([
            {"role": "developer", "content": "D"},
            {"role": "user", "content": "U"},
            {"role": "assistant", "content": "A"},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{\"x\":1}"},
            {"type": "function_call_output", "call_id": "a", "output": "R"},
        ]);
        let items = items.as_array().expect("items").iter().map(|item| items::read(item, "input[0]"));
        let messages = items::messages(items.collect::<Result<_>>().expect("items")).expect("messages");
        assert_eq!(
            messages.iter().map(line).collect::<Vec<_>>(),
            ["Instructions: D", "User: U", "Assistant: A\nAssistant calls f with {\"x\":1}", "Result: R"]
        );
    }
}
