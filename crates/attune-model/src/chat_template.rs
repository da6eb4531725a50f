//! Renders chats with the model's own Jinja template, as Hugging Face's tokenizers do.
//!
//! Called by `api` (chat completions) and by `datasets` (chats of a training file). `sources.rs` finds the templates,
//! `engine.rs` sets up minijinja as transformers sets up Jinja2; the other files give it Python's values, filters and
//! methods.

mod arguments;
mod data;
mod engine;
mod filters;
mod json;
mod kinds;
mod methods;
mod python;
mod sequences;
mod sources;

use std::path::Path;

use minijinja::{Environment, context};
use serde_json::Value;

use super::tokenizer::special_tokens;
use super::tool_syntax::ToolSyntax;
use crate::{Error, Result};

/// Name of the template that renders chats for which there is no other.
const DEFAULT: &str = "default";
/// Name of the template that renders chats with tools, if the model has one.
const TOOL_USE: &str = "tool_use";

/// A model's compiled chat templates: most have one, some another for chats with tools.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: Vec<String>,
    tool_syntax: ToolSyntax,
}

impl ChatTemplate {
    /// Reads the folder's templates: `chat_template.jinja` and `additional_chat_templates/*.jinja`, or `chat_template`
    /// of `tokenizer_config.json`; `None` if there are none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let sources = sources::find(folder)?;
        if sources.is_empty() {
            return Ok(None);
        }
        let mut environment = engine::environment();
        for (role, token) in special_tokens(folder)? {
            environment.add_global(role, token);
        }
        let mut tool_syntax = ToolSyntax::PLAIN;
        // The one for tools, if there is one, tells how the model writes calls.
        for (name, source) in sources.iter().filter(|(name, _)| [DEFAULT, TOOL_USE].contains(&name.as_str())) {
            environment
                .add_template_owned(name.clone(), engine::prepare(&source.text))
                .map_err(|error| Error::Setup(format!("{}: chat template: {error}", source.origin)))?;
            let variables = environment.get_template(name).map(|template| template.undeclared_variables(false));
            let reads_tools = variables.is_ok_and(|variables| variables.contains("tools"));
            tool_syntax = ToolSyntax::of_template(&source.text, reads_tools);
        }
        Ok(Some(Self { environment, names: sources.into_keys().collect(), tool_syntax }))
    }

    /// Returns the syntax in which the model writes tool calls.
    pub fn tool_syntax(&self) -> ToolSyntax {
        self.tool_syntax
    }

    /// Renders the prompt for `messages` (objects with `role` and `content`), ending where the assistant's answer
    /// begins if `add_generation_prompt`. With tools it is the template `tool_use` that renders, if the model has one;
    /// an empty list of tools is none. A template's own complaint (`raise_exception`) is an
    /// [`crate::Error::Template`].
    pub fn render(&self, messages: &[Value], tools: Option<&[Value]>, add_generation_prompt: bool) -> Result<String> {
        let tools = tools.filter(|tools| !tools.is_empty());
        let has_tool_use = self.names.iter().any(|name| name == TOOL_USE);
        let name = if tools.is_some() && has_tool_use { TOOL_USE } else { DEFAULT };
        let template = self.environment.get_template(name).map_err(|_| {
            let names = self.names.join(", ");
            Error::Template(format!("The model has no chat template for this chat: it has {names}, but no {name}."))
        })?;
        let list = |items: &[Value]| data::list(items.iter().map(data::from_json).collect());
        let (messages, tools) = (list(messages), tools.map(list));
        // `tools` and `documents` are always defined, `none` if absent, as in transformers: templates test both ways.
        let variables = context! { messages, tools, documents => (), add_generation_prompt };
        template.render(variables).map_err(|error| {
            // Any other failure is due to these messages too: a missing `content`, a list instead of a text.
            let message = engine::complaint(&error).unwrap_or_else(|| {
                format!("The model's chat template cannot render these messages: {error}. Check roles and contents.")
            });
            Error::Template(message)
        })
    }
}

#[cfg(test)]
#[path = "chat_template_tests.rs"]
mod tests;
