//! The body of a request for a response. Used by `responses::create` and `responses::count_tokens`, and kept for what
//! is written in the background. `asked` makes a request for a chat of it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::generation::foreign_fields::{Route, RouteBody};
use crate::api::generation::generate::bias::LogitBias;
use crate::api::generation::generate::stops::StopTexts;
use crate::api::http::values;

/// A request for a response. The model's `defaults` say what holds for sampling fields that are left out or null.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct CreateResponse {
    /// A base model or a fine-tuned one.
    pub model: String,
    /// What the user says, or items of a conversation: messages, calls with their results, reasoning, references to
    /// items that are kept.
    pub input: Option<Input>,
    /// A system message before all others; not taken over from an earlier response.
    pub instructions: Option<Input>,
    /// The response that this one goes on from; it must be kept.
    pub previous_response_id: Option<String>,
    /// The conversation that this one goes on from, and to which its items are added; its id, or an object with it.
    pub conversation: Option<ConversationParam>,
    /// Keep the response, so that it can be read, deleted and gone on from.
    #[schema(default = true)]
    pub store: Option<bool>,
    /// Send events as tokens are drawn.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// Answer at once and write the response afterwards; needs `store`.
    #[schema(default = false)]
    pub background: Option<bool>,
    /// `message.output_text.logprobs` adds the log probability of each token. Other names change nothing.
    pub include: Option<Vec<String>>,
    /// New tokens at the most, those of the reasoning included; by default the model's `max_tokens`, or until the
    /// context is full.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub max_output_tokens: Option<usize>,
    /// Repeated in the response; there are no tools that the server calls.
    #[serde(default, deserialize_with = "values::optional")]
    pub max_tool_calls: Option<usize>,
    /// 0 takes the most probable token each time. 1 unless the model has another default.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Draw among the most probable tokens whose probabilities sum to this. 1 unless the model has another default.
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Show the log probabilities of this many most probable tokens at each place.
    #[schema(minimum = 0, maximum = 20)]
    #[serde(default, deserialize_with = "values::optional")]
    pub top_logprobs: Option<usize>,
    /// Extension: draw among this many of the most probable tokens; 0 and -1 mean all.
    #[schema(minimum = -1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub top_k: Option<i64>,
    /// Extension: draw among tokens that are at least this probable, relative to the most probable one.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f32>,
    /// Extension: lowers tokens that have occurred.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f32>,
    /// Extension: lowers tokens by how often they have occurred.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f32>,
    /// Extension: lowers tokens of the prompt and the answer where it is above 1, and raises them below 1.
    #[schema(exclusive_minimum = 0)]
    pub repetition_penalty: Option<f32>,
    /// Extension: added to logits, by token id: -100 bans, 100 forces.
    #[schema(value_type = Option<HashMap<String, f32>>)]
    pub logit_bias: Option<LogitBias>,
    /// Extension: the same seed gives the same text.
    #[serde(default, deserialize_with = "values::optional")]
    pub seed: Option<i64>,
    /// Extension: texts that end the answer; they are not part of it.
    pub stop: Option<StopTexts>,
    /// Extension: variables of the chat template, such as `{"enable_thinking": false}`.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// The form of the text.
    pub text: Option<TextSettings>,
    /// Tools that the model may call; at most 128.
    pub tools: Option<Vec<ResponseTool>>,
    /// `none`, `auto`, `required`, `{"type": "function", "name": "…"}`, `{"type": "custom", "name": "…"}`, or
    /// `{"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "…"}]}`.
    #[schema(value_type = Option<Value>)]
    pub tool_choice: Option<Value>,
    /// The answer may have several calls.
    #[schema(default = true)]
    pub parallel_tool_calls: Option<bool>,
    /// How the model thinks before it answers.
    pub reasoning: Option<ReasoningSettings>,
    /// `disabled`: a conversation that does not fit the context is refused. `auto`: it loses its oldest messages.
    pub truncation: Option<String>,
    /// `[{"type": "compaction", "compact_threshold": 8000}]`: a conversation whose prompt has more tokens is made short
    /// before it is answered, and the output begins with what stands for it.
    #[schema(value_type = Option<Vec<Object>>)]
    pub context_management: Option<Value>,
    /// Notes of the client: at most 16.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Repeated in the response.
    pub prompt_cache_key: Option<String>,
    /// Repeated in the response.
    pub safety_identifier: Option<String>,
    /// Repeated in the response.
    pub user: Option<String>,
}

/// A text, or items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of items")]
pub(crate) enum Input {
    /// One message.
    Text(String),
    /// Items, such as `{"role": "user", "content": "…"}`.
    Items(Vec<Value>),
}

/// A conversation by its id.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected the id of a conversation or {\"id\": \"…\"}")]
pub(crate) enum ConversationParam {
    /// `conv_…`
    Id(String),
    /// An object with the id.
    Object(ConversationReference),
}

/// A conversation by its id.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ConversationReference {
    /// `conv_…`
    pub id: String,
}

/// The form of the text.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct TextSettings {
    /// Text, any JSON object, or JSON that follows a schema.
    pub format: Option<TextFormat>,
    /// `low`, `medium` or `high`: repeated in the response, and changes nothing.
    pub verbosity: Option<String>,
}

/// The form that the answer must have.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct TextFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of the schema: up to 64 letters, digits, `_` and `-`.
    pub name: Option<String>,
    /// What the answer is for. Not shown to the model.
    pub description: Option<String>,
    /// The schema, for `json_schema`; any JSON object without one.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// Ignored: the answer always follows the schema.
    pub strict: Option<bool>,
    /// The form that a chat has: refused, since its schema would be lost.
    #[schema(ignore)]
    pub json_schema: Option<Value>,
}

/// A tool that the model may call.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ResponseTool {
    /// `function`, or `custom`, which takes a text.
    #[serde(rename = "type")]
    pub kind: String,
    /// Up to 64 letters, digits, `_` and `-`.
    pub name: Option<String>,
    /// What it does, for the model to read.
    pub description: Option<String>,
    /// JSON schema of its arguments, an object; any object without one.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Refuse keywords of the schema that cannot be enforced, rather than drop them.
    pub strict: Option<bool>,
    /// Of a custom tool: `{"type": "text"}`, or `{"type": "grammar", "syntax": "regex", "definition": "…"}`, or the same
    /// with the syntax `lark`.
    #[schema(value_type = Option<Object>)]
    pub format: Option<Value>,
    /// The function, where it is written as in a chat.
    #[schema(value_type = Option<Object>)]
    pub function: Option<Value>,
}

/// How the model thinks before it answers.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct ReasoningSettings {
    /// `none` switches thinking off where the chat template can; all others leave it as the template has it.
    pub effort: Option<String>,
    /// Repeated in the response: the reasoning is shown as it is.
    pub summary: Option<String>,
}

impl RouteBody for CreateResponse {
    const ROUTE: Route = Route::Responses;
}

impl CreateResponse {
    /// Returns the id of the conversation to go on from.
    pub(super) fn conversation(&self) -> Option<&str> {
        let id = match self.conversation.as_ref()? {
            ConversationParam::Id(id) => id,
            ConversationParam::Object(conversation) => &conversation.id,
        };
        Some(id.as_str()).filter(|id| !id.is_empty())
    }

    /// True if the response is to be kept.
    pub(super) fn is_kept(&self) -> bool {
        self.store.unwrap_or(true)
    }

    /// Returns how many of the most probable tokens to show with each token; `None` if no log probabilities are wanted.
    pub(super) fn logprobs(&self) -> Option<usize> {
        let included = self.include.iter().flatten().any(|name| name == "message.output_text.logprobs");
        let top = self.top_logprobs.unwrap_or(0);
        (included || top > 0).then_some(top)
    }
}
