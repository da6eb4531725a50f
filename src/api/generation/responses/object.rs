//! The response as clients read it. All keys are always there. Made by `writer`, kept as JSON.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::request::{ConversationReference, Input, TextFormat};
use crate::api::generation::generate::body::Usage;
use crate::api::generation::generate::logprobs::ChatTokenLogprob;

/// The answer to a request.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ResponseObject {
    /// `resp_…`
    pub id: String,
    /// Always `response`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds; null unless it is completed.
    pub completed_at: Option<i64>,
    /// `completed`, `incomplete`, `failed`, `cancelled`, `queued` or `in_progress`.
    pub status: &'static str,
    /// True if nobody waited for it.
    pub background: bool,
    /// Why it failed.
    pub error: Option<ResponseError>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// As asked for.
    pub instructions: Option<Input>,
    /// As asked for.
    pub max_output_tokens: Option<usize>,
    /// As asked for.
    pub max_tool_calls: Option<usize>,
    /// The model as asked for.
    pub model: String,
    /// The reasoning, the message and the calls of the model.
    pub output: Vec<OutputItem>,
    /// True if it may have several calls.
    pub parallel_tool_calls: bool,
    /// The response that it goes on from.
    pub previous_response_id: Option<String>,
    /// The conversation that it goes on from, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<ConversationReference>,
    /// As asked for.
    pub prompt_cache_key: Option<String>,
    /// How the model was to think.
    pub reasoning: ReasoningEcho,
    /// As asked for.
    pub safety_identifier: Option<String>,
    /// Always `default`.
    pub service_tier: &'static str,
    /// True if it is kept.
    pub store: bool,
    /// As the answer was drawn.
    pub temperature: f32,
    /// The form of the text.
    pub text: TextEcho,
    /// What the model might do with the tools.
    #[schema(value_type = Object)]
    pub tool_choice: Value,
    /// The tools that the model was shown.
    pub tools: Vec<ToolEcho>,
    /// As asked for.
    pub top_logprobs: usize,
    /// As the answer was drawn.
    pub top_p: f32,
    /// `disabled` or `auto`.
    pub truncation: &'static str,
    /// As the answer was drawn.
    pub presence_penalty: f32,
    /// As the answer was drawn.
    pub frequency_penalty: f32,
    /// Tokens used; null until it has ended.
    pub usage: Option<ResponseUsage>,
    /// As asked for.
    pub user: Option<String>,
    /// As asked for.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
}

/// Why a response failed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ResponseError {
    /// `server_error`, `rate_limit_exceeded` or `invalid_prompt`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Why a response is incomplete.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct IncompleteDetails {
    /// Always `max_output_tokens`: the answer was cut there, or where the context was full.
    pub reason: &'static str,
}

/// An item of an answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputItem {
    /// What the model says.
    Message {
        /// `msg_…`
        id: String,
        /// `completed`, `incomplete` or `in_progress`.
        status: &'static str,
        /// Always `assistant`.
        role: &'static str,
        /// One part, once it has begun.
        content: Vec<OutputPart>,
    },
    /// A function that the model calls.
    FunctionCall {
        /// `fc_…`
        id: String,
        /// `call_…`: what the result names.
        call_id: String,
        /// The function.
        name: String,
        /// Its arguments: the text of a JSON object, cut short where the answer was.
        arguments: String,
        /// As of a message.
        status: &'static str,
    },
    /// A custom tool that the model calls.
    CustomToolCall {
        /// `ctc_…`
        id: String,
        /// `call_…`: what the result names.
        call_id: String,
        /// The tool.
        name: String,
        /// Its input.
        input: String,
        /// As of a message.
        status: &'static str,
    },
    /// What stands for the conversation so far, which was made short.
    Compaction {
        /// `cmp_…`
        id: String,
        /// The summary, as `/v1/responses/compact` writes it.
        encrypted_content: String,
    },
    /// What the model thinks before it answers.
    Reasoning {
        /// `rs_…`
        id: String,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        summary: [(); 0],
        /// One part, once it has begun.
        content: Vec<OutputPart>,
        /// As of a message.
        status: &'static str,
    },
}

/// A part of an item.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputPart {
    /// Of a message.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        annotations: [(); 0],
        /// Of its tokens; empty unless asked for.
        logprobs: Vec<ChatTokenLogprob>,
    },
    /// Of reasoning.
    ReasoningText {
        /// The text.
        text: String,
    },
}

/// A tool that the model was shown.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ToolEcho {
    /// `function` or `custom`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// As asked for.
    pub strict: Option<bool>,
    /// Of a custom tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub format: Option<Value>,
}

/// The form of the text.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct TextEcho {
    /// As asked for.
    #[schema(value_type = Object)]
    pub format: Value,
    /// As asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verbosity: Option<String>,
}

/// How the model was to think.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct ReasoningEcho {
    /// As asked for.
    pub effort: Option<String>,
    /// As asked for.
    pub summary: Option<String>,
}

/// Tokens used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct ResponseUsage {
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// Where they came from.
    pub input_tokens_details: InputTokensDetails,
    /// Tokens drawn.
    pub output_tokens: usize,
    /// What they were for.
    pub output_tokens_details: OutputTokensDetails,
    /// Both together.
    pub total_tokens: usize,
}

/// A part of [`ResponseUsage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct InputTokensDetails {
    /// Tokens that needed no computing.
    pub cached_tokens: usize,
    /// Always 0: what the cache takes up costs nothing.
    pub cache_write_tokens: usize,
}

/// A part of [`ResponseUsage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct OutputTokensDetails {
    /// Tokens of the reasoning.
    pub reasoning_tokens: usize,
}

impl ResponseUsage {
    /// Turns the usage of a chat into that of a response, of which `reasoning_tokens` were for reasoning.
    pub(super) fn new(usage: Usage, reasoning_tokens: usize) -> Self {
        let cached_tokens = usage.prompt_tokens_details.cached_tokens;
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails { cached_tokens, cache_write_tokens: 0 },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens },
            total_tokens: usage.total_tokens,
        }
    }
}

impl TextEcho {
    /// Repeats what was asked for; `is_json` if the text follows a form.
    pub(super) fn of(format: Option<&TextFormat>, is_json: bool, verbosity: Option<&str>) -> Self {
        let format = match format.filter(|_| is_json) {
            None => serde_json::json!({"type": "text"}),
            Some(format) => match &format.schema {
                Some(schema) if format.kind == "json_schema" => serde_json::json!({
                    "type": "json_schema",
                    "name": format.name.as_deref().unwrap_or("response"),
                    "description": format.description,
                    "schema": schema,
                    "strict": format.strict.unwrap_or(true),
                }),
                _ => serde_json::json!({"type": "json_object"}),
            },
        };
        Self { format, verbosity: verbosity.map(str::to_owned) }
    }
}

impl OutputItem {
    /// Returns its id.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Message { id, .. }
            | Self::FunctionCall { id, .. }
            | Self::CustomToolCall { id, .. }
            | Self::Compaction { id, .. }
            | Self::Reasoning { id, .. } => id,
        }
    }
}
