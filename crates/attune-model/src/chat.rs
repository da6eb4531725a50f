//! Conversations, from messages and tools to the text that a model reads. Requests (`api`) and training files
//! (`datasets`) both come through [`render`], so that a model is trained on exactly the prompts that it is sent.
//!
//! A [`Message`] has one form, whichever way it was written. [`render`] gives it to the template in the form of the
//! model's [`ToolSyntax`](crate::tool_syntax::ToolSyntax): with tools and calls as data, or, for templates that know
//! none, as text.

mod arguments;
mod message;
mod plain;
mod tools;

use serde_json::Value;

pub use message::{
    Call, Message, MessageFault, Role, WrittenCall, WrittenContent, WrittenFunction, WrittenMessage, WrittenPart,
};
pub use tools::ToolDefinition;

use crate::chat_template::{ChatTemplate, TemplateOptions};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Renders a conversation with the tools that its model is shown.
pub fn render(
    template: &ChatTemplate,
    messages: &[Message],
    tools: &[ToolDefinition],
    options: &TemplateOptions,
) -> Result<String> {
    let syntax = template.tool_syntax();
    if !syntax.in_template {
        return template.apply(&plain::messages(messages, tools, syntax, template.writes_system()), None, options);
    }
    let messages: Vec<Value> = messages.iter().map(|message| message.for_template(syntax.short_ids)).collect();
    let tools: Vec<Value> = tools.iter().map(ToolDefinition::for_template).collect();
    template.apply(&messages, (!tools.is_empty()).then_some(tools.as_slice()), options)
}

/// Renders a conversation up to the end of its last message's text, which the model is to go on with. As in
/// transformers, blanks around that text stay only where the template keeps them. An error if the last message is no
/// text, or if the template does not write it.
pub fn render_unfinished(
    template: &ChatTemplate,
    messages: &[Message],
    tools: &[ToolDefinition],
    options: &TemplateOptions,
) -> Result<String> {
    let mut text = render(template, messages, tools, options)?;
    let last = messages.last().map(|last| last.content.as_str()).unwrap_or_default();
    let (kept, trimmed) = (last.trim_start(), last.trim());
    let start = (!trimmed.is_empty()).then(|| text.rfind(trimmed)).flatten().ok_or_else(|| {
        let message = "The chat template does not write the text of the last message, so it cannot be continued.";
        Error::Template(message.into())
    })?;
    let length = if text[start..].starts_with(kept) { kept.len() } else { trimmed.len() };
    text.truncate(start + length);
    Ok(text)
}

/// Returns the added token that the template writes behind an answer; `None` if there is none, or if one of `end_tokens`
/// always stands there too. Not all tokenizers call theirs special. Base models that end their texts with another token
/// learn to end answers with it.
pub(crate) fn end_mark(template: &ChatTemplate, tokenizer: &Tokenizer, end_tokens: &[u32]) -> Option<u32> {
    const ANSWER: &str = "An answer.";
    const NEXT: &str = "And another?";
    let message = |role, content: &str| Message { content: content.into(), ..Message::new(role) };
    let chat = [message(Role::User, "A question?"), message(Role::Assistant, ANSWER), message(Role::User, NEXT)];
    let behind = |chat: &[Message]| {
        let text = render(template, chat, &[], &TemplateOptions::default()).ok()?;
        let (_, behind) = text.rsplit_once(ANSWER)?;
        let behind = behind.split(NEXT).next().unwrap_or_default();
        tokenizer.encode(behind.trim_start(), false).ok()
    };
    let ends = |tokens: &[u32]| tokens.iter().any(|token| end_tokens.contains(token));
    let last = behind(&chat[..2])?;
    let mark = last.first().copied().filter(|mark| tokenizer.is_added(*mark) && !end_tokens.contains(mark))?;
    if !ends(&last) {
        return Some(mark);
    }
    // Some templates write an end token behind the last answer alone; others end with the mark.
    let inside = behind(&chat)?;
    (inside.first() == Some(&mark) && !ends(&inside)).then_some(mark)
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "chat_rendering_tests.rs"]
mod rendering_tests;
