//! The body of a chat request. Used by `chat::create`; `tools` reads the fields of tools.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::format::ResponseFormat;
use super::messages::ChatMessage;
use super::template_fields::TemplateFields;
use crate::api::generation::foreign_fields::{Route, RouteBody};
use crate::api::generation::generate::bias::LogitBias;
use crate::api::generation::generate::fields::{SamplingFields, StreamOptions};
use crate::api::generation::generate::stops::{StopFields, StopTexts};
use crate::api::http::error::{Problem, Result};
use crate::api::http::values;
use crate::api::operations::checks::within;
use crate::graders::spec::EFFORTS;

/// A request for an answer in a conversation. The model's `defaults` say what holds for sampling fields that are left out
/// or null.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    /// A base model or a fine-tuned one.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// New tokens for each choice at the most; by default the model's `max_tokens`, or until the context is full.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub max_completion_tokens: Option<usize>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub max_tokens: Option<usize>,
    /// 0 takes the most probable token each time. 1 unless the model has another default.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Draw among the most probable tokens whose probabilities sum to this. 1 unless the model has another default.
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Extension: draw among this many of the most probable tokens; 0 and -1 mean all.
    #[schema(minimum = -1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub top_k: Option<i64>,
    /// Extension: draw among tokens that are at least this probable, relative to the most probable one.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f32>,
    /// Choices.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub n: Option<usize>,
    /// Send events as tokens are drawn.
    pub stream: Option<bool>,
    /// Options of the events.
    #[serde(default, deserialize_with = "values::object")]
    pub stream_options: Option<StreamOptions>,
    /// Texts that end a choice; they are not part of it.
    pub stop: Option<StopTexts>,
    /// Extension: token ids that end a choice.
    #[serde(default, deserialize_with = "values::optional_list")]
    #[schema(max_items = 128)]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Extension: go on where the model would end its answer.
    #[schema(default = false)]
    pub ignore_eos: Option<bool>,
    /// The same seed gives the same text.
    #[serde(default, deserialize_with = "values::optional")]
    pub seed: Option<i64>,
    /// Lowers tokens that have occurred.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f32>,
    /// Lowers tokens by how often they have occurred.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f32>,
    /// Extension: lowers tokens of the prompt and the answer where it is above 1, and raises them below 1.
    #[schema(exclusive_minimum = 0)]
    pub repetition_penalty: Option<f32>,
    /// Added to logits, by token id: -100 bans, 100 forces.
    #[schema(value_type = Option<HashMap<String, f32>>)]
    pub logit_bias: Option<LogitBias>,
    /// The form that the answer must have: text, any JSON object, or JSON that follows a schema.
    pub response_format: Option<ResponseFormat>,
    /// Tools that the model may call; at most 128.
    pub tools: Option<Vec<Tool>>,
    /// What it may do with them: `auto` by default.
    pub tool_choice: Option<ToolChoice>,
    /// The answer may have several calls.
    #[schema(default = true)]
    pub parallel_tool_calls: Option<bool>,
    /// Deprecated: the older form of `tools`.
    pub functions: Option<Vec<FunctionDefinition>>,
    /// Deprecated: the older form of `tool_choice`.
    pub function_call: Option<FunctionChoice>,
    /// Extension: variables of the chat template, such as `{"enable_thinking": false}`.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Extension: end the prompt where the assistant's answer begins.
    #[schema(default = true)]
    pub add_generation_prompt: Option<bool>,
    /// Extension: go on with the last message, which is the assistant's; the answer is what follows it.
    #[schema(default = false)]
    pub continue_final_message: Option<bool>,
    /// Not supported: the model's own template is used.
    pub chat_template: Option<String>,
    /// Not supported: a variable of the template, for `chat_template_kwargs`.
    pub enable_thinking: Option<bool>,
    /// `none` and `minimal` switch thinking off, every other word switches it on, where the model's template has a
    /// switch; `chat_template_kwargs` wins.
    pub reasoning_effort: Option<String>,
    /// Keep the answer, to be read later at `/chat/completions/{id}`.
    #[schema(default = false)]
    pub store: Option<bool>,
    /// Notes on a stored answer, to find it by: at most 16, with names of 64 and values of 512 characters.
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    pub metadata: Option<Value>,
    /// Deprecated: kept with a stored answer.
    #[schema(value_type = Option<String>)]
    pub user: Option<Value>,
    /// Answer with the log probability of each token.
    pub logprobs: Option<bool>,
    /// And with those of this many most probable tokens at its place; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    #[serde(default, deserialize_with = "values::optional")]
    pub top_logprobs: Option<usize>,
    /// Names of the tools that may be called; `None` for all that are shown. No field of the body: `responses` sets it.
    #[serde(skip)]
    #[schema(ignore)]
    pub callable: Option<Vec<String>>,
}

/// A tool that the model may call.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct Tool {
    /// `function`, or `custom`, which takes a text.
    #[serde(rename = "type")]
    pub kind: String,
    /// What a function is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionDefinition>,
    /// What a custom tool is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomDefinition>,
}

/// A custom tool that the model may call.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct CustomDefinition {
    /// Up to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The form of its input: `{"type": "text"}`, which is any text, or
    /// `{"type": "grammar", "grammar": {"syntax": "regex", "definition": "…"}}`, or the same with the syntax `lark`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub format: Option<Value>,
}

/// A function that the model may call.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct FunctionDefinition {
    /// Up to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments, an object; any object without one. Objects with `properties` get no others unless the
    /// schema says so.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// Refuse keywords of the schema that cannot be enforced, rather than drop them.
    #[schema(default = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// What the model may do with the tools.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected none, auto, required, {\"type\": \"function\", \"function\": {\"name\": \"…\"}}, the same \
                 with custom, or {\"type\": \"allowed_tools\", \"allowed_tools\": {\"mode\": \"auto\", \"tools\": […]}}"
)]
pub(crate) enum ToolChoice {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// Some of them.
    Allowed(AllowedChoice),
    /// This one.
    Named(NamedTool),
}

/// The tools that may be called, among those that the model is shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct AllowedChoice {
    /// Always `allowed_tools`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Which, and whether one must be called.
    pub allowed_tools: AllowedTools,
}

/// Which tools may be called.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct AllowedTools {
    /// `auto` or `required`.
    pub mode: String,
    /// At least one of the request's tools.
    pub tools: Vec<NamedTool>,
}

/// A tool by its type and name.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct NamedTool {
    /// `function` or `custom`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionName>,
    /// The custom tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom: Option<FunctionName>,
}

impl NamedTool {
    /// Returns the name under its type; errors name fields below `param`.
    pub(super) fn name(&self, param: &str) -> Result<&str> {
        let named = match self.kind.as_str() {
            "function" => &self.function,
            "custom" => &self.custom,
            other => {
                let message = format!("'{other}' is not a supported type of tools: use 'function' or 'custom'.");
                return Err(Problem::invalid_code(format!("{param}.type"), "invalid_value", message));
            }
        };
        let named = named.as_ref().ok_or_else(|| Problem::missing(format!("{param}.{}", self.kind)))?;
        Ok(&named.name)
    }
}

/// A function by its name.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct FunctionName {
    /// Its name.
    pub name: String,
}

/// Deprecated: what the model may do with the functions.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected none, auto or {\"name\": \"…\"}")]
pub(crate) enum FunctionChoice {
    /// `none` or `auto`.
    Mode(String),
    /// This one.
    Named(FunctionName),
}

impl RouteBody for ChatRequest {
    const ROUTE: Route = Route::Chat;
}

impl ChatRequest {
    /// Returns the largest number of new tokens, `None` if the request does not limit it, after the name of its field.
    pub(crate) fn max_tokens(&self) -> Result<(&'static str, Option<usize>)> {
        for (param, limit) in [("max_completion_tokens", self.max_completion_tokens), ("max_tokens", self.max_tokens)] {
            if limit == Some(0) {
                let message = format!("Invalid '{param}': expected a whole number of at least 1, got 0.");
                return Err(Problem::invalid_code(param, "invalid_value", message));
            }
        }
        Ok(match self.max_completion_tokens {
            None => ("max_tokens", self.max_tokens),
            limit => ("max_completion_tokens", limit),
        })
    }

    /// Returns the fields that say where an answer ends.
    pub(crate) fn stop_fields(&self) -> StopFields {
        let (stop, stop_token_ids) = (self.stop.clone(), self.stop_token_ids.clone());
        StopFields { stop, stop_token_ids, ignore_eos: self.ignore_eos == Some(true) }
    }

    /// Returns the fields that say how the messages are rendered.
    pub(super) fn template_fields(&self) -> TemplateFields<'_> {
        TemplateFields {
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            chat_template: self.chat_template.as_deref(),
            chat_template_kwargs: self.chat_template_kwargs.as_ref(),
            enable_thinking: self.enable_thinking,
            thinking: self.reasoning_effort.as_deref().map(|effort| !matches!(effort, "none" | "minimal")),
            now: None,
        }
    }

    /// Refuses an effort that is none of the API's: a misspelt one would switch thinking on.
    pub(super) fn check_effort(&self) -> Result<()> {
        match self.reasoning_effort.as_deref() {
            Some(effort) if !EFFORTS.contains(&effort) => {
                let message = format!("'{effort}' is not an effort: use one of {}.", EFFORTS.join(", "));
                Err(Problem::invalid_code("reasoning_effort", "invalid_value", message))
            }
            _ => Ok(()),
        }
    }

    /// Returns how many of the most probable tokens to show with each token; `None` if no log probabilities are wanted.
    pub(crate) fn logprobs(&self) -> Result<Option<usize>> {
        let top = within("top_logprobs", self.top_logprobs, 0, 20)?.unwrap_or(0);
        match self.logprobs {
            Some(true) => Ok(Some(top)),
            _ if top > 0 => {
                Err(Problem::invalid("top_logprobs", "'top_logprobs' needs 'logprobs': set 'logprobs' to true."))
            }
            _ => Ok(None),
        }
    }

    /// Returns the fields that say how tokens are drawn.
    pub(crate) fn sampling_fields(&self) -> SamplingFields<'_> {
        SamplingFields {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::extract::parse;

    fn request(json: &str) -> ChatRequest {
        parse(json.as_bytes()).expect("a request")
    }

    #[test]
    fn an_answer_has_at_least_one_token() {
        for (extra, expected) in [
            (r#""n":1.0"#, Some(None)),
            (r#""max_tokens":5.0"#, Some(Some(5))),
            (r#""max_tokens":5,"max_completion_tokens":7"#, Some(Some(7))),
            (r#""max_completion_tokens":0"#, None),
            (r#""max_tokens":0"#, None),
        ] {
            let request = request(&format!(r#"{{"model":"m","messages":[],{extra}}}"#));
            assert_eq!(request.max_tokens().ok().map(|(_, limit)| limit), expected, "{extra}");
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
    fn an_effort_switches_thinking_and_is_one_of_the_words() {
        for (effort, thinking) in [("none", false), ("minimal", false), ("low", true), ("max", true)] {
            let request = request(&format!(r#"{{"model":"m","messages":[],"reasoning_effort":"{effort}"}}"#));
            assert!(request.check_effort().is_ok(), "{effort}");
            assert_eq!(request.template_fields().thinking, Some(thinking), "{effort}");
        }
        let wrong = request(r#"{"model":"m","messages":[],"reasoning_effort":"non"}"#);
        assert_eq!(wrong.check_effort().expect_err("no effort").error.param.as_deref(), Some("reasoning_effort"));
        assert_eq!(request(r#"{"model":"m","messages":[]}"#).template_fields().thinking, None);
    }
}
