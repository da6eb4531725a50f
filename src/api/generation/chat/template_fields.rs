//! The fields that say how a conversation is rendered, in vLLM's form. Read by `chat::create` and `tokenize` alike.

use serde_json::{Map, Value};

use super::messages::{ChatMessage, read_messages};
use crate::api::http::error::{Problem, Result};
use crate::api::operations::checks::not_supported;
use crate::model::chat::{self, Role, ToolDefinition};
use crate::model::chat_template::{ChatTemplate, TemplateOptions};

/// What a template reads beside its own variables.
const RESERVED: [&str; 5] = ["messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template"];

/// Names under which templates read whether the model is to think first.
const THINKING: [&str; 2] = ["enable_thinking", "thinking"];

/// Fields of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TemplateFields<'a> {
    pub add_generation_prompt: Option<bool>,
    pub continue_final_message: Option<bool>,
    pub chat_template: Option<&'a str>,
    pub chat_template_kwargs: Option<&'a Map<String, Value>>,
    pub enable_thinking: Option<bool>,
    /// Whether the model is to think first, for templates with a switch; `None` leaves it as the template has it.
    pub thinking: Option<bool>,
    /// Unix second that the template takes for the present; `None` for the clock.
    pub now: Option<i64>,
}

impl TemplateFields<'_> {
    /// Renders the messages with the tools that the model is shown.
    pub(crate) fn render(
        &self,
        template: &ChatTemplate,
        messages: &[ChatMessage],
        tools: &[ToolDefinition],
    ) -> Result<String> {
        let unfinished = self.continue_final_message == Some(true);
        let options = self.options(unfinished)?;
        let messages = read_messages(messages)?;
        if !unfinished {
            return Ok(chat::render(template, &messages, tools, &options)?);
        }
        let text = messages.last().filter(|last| last.role == Role::Assistant && last.calls.is_empty());
        if text.is_none_or(|last| last.content.trim().is_empty()) {
            let message = "'continue_final_message' needs a last message that is a text of the assistant.";
            return Err(Problem::invalid_code("continue_final_message", "invalid_value", message));
        }
        Ok(chat::render_unfinished(template, &messages, tools, &options)?)
    }

    fn options(&self, unfinished: bool) -> Result<TemplateOptions> {
        if self.chat_template.is_some() {
            return Err(not_supported("chat_template"));
        }
        if let Some(value) = self.enable_thinking {
            let message = format!(
                "'enable_thinking' is a variable of the chat template: send 'chat_template_kwargs': \
                 {{\"enable_thinking\": {value}}}."
            );
            return Err(Problem::invalid_code("enable_thinking", "unsupported_parameter", message));
        }
        if unfinished && self.add_generation_prompt == Some(true) {
            let message = "'continue_final_message' and 'add_generation_prompt' exclude each other: set one of them.";
            return Err(Problem::invalid_code("continue_final_message", "invalid_value", message));
        }
        let mut variables = self.chat_template_kwargs.cloned().unwrap_or_default();
        if let Some(name) = RESERVED.iter().find(|name| variables.contains_key(**name)) {
            let message =
                format!("'chat_template_kwargs' must not hold '{name}', which is no variable of the template.");
            return Err(Problem::invalid_code("chat_template_kwargs", "invalid_value", message));
        }
        if let Some(thinking) = self.thinking
            && !THINKING.iter().any(|name| variables.contains_key(*name))
        {
            // A template does not see variables that it does not read.
            variables.extend(THINKING.map(|name| (name.to_owned(), thinking.into())));
        }
        let begin_answer = !unfinished && self.add_generation_prompt.unwrap_or(true);
        Ok(TemplateOptions { begin_answer, variables, now: self.now })
    }
}
