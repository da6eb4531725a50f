//! The body of a chat request. Used by `chat::create`.

use std::collections::HashMap;

use serde::Deserialize;
use utoipa::ToSchema;

use super::format::ResponseFormat;
use super::messages::ChatMessage;
use super::tools::{FunctionChoice, FunctionDefinition, Tool, ToolChoice};
use crate::Result;
use crate::api::checks::not_supported;
use crate::api::generate::fields::{SamplingFields, StopTexts, StreamOptions};

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
    /// Not supported yet.
    pub logprobs: Option<bool>,
    /// Not supported yet.
    pub top_logprobs: Option<usize>,
}

impl ChatRequest {
    /// Refuses what this server cannot honour yet.
    pub fn refuse_unsupported(&self) -> Result<()> {
        if self.logprobs == Some(true) || self.top_logprobs.is_some_and(|top| top > 0) {
            return Err(not_supported("logprobs"));
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::parse;

    fn request(json: &str) -> ChatRequest {
        parse(json.as_bytes()).expect("a request")
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (extra, refused) in [
            (r#""logprobs":true"#, true),
            (r#""top_logprobs":2"#, true),
            (r#""response_format":{"type":"text"},"tools":[],"logprobs":false,"store":true"#, false),
        ] {
            let request = request(&format!(r#"{{"model":"m","messages":[],{extra}}}"#));
            assert_eq!(request.refuse_unsupported().is_err(), refused, "{extra}");
        }
    }
}
