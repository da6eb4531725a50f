//! Renders chats with the model's own Jinja template, as Hugging Face's tokenizers do.
//!
//! Called by [`super::chat`] alone, which brings messages and tools into the form that templates read. `sources.rs`
//! finds the templates, `engine.rs` sets up minijinja as transformers sets up Jinja2; the other files give it Python's
//! values, filters and methods.

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

use std::collections::BTreeMap;
use std::path::Path;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use minijinja::value::Value as JinjaValue;
use minijinja::{Environment, context};
use serde_json::{Map, Value, json};

pub(crate) use self::sources::Source as TemplateSource;
use super::tokenizer::special_tokens;
use super::tool_syntax::ToolSyntax;
use crate::{Error, Result};

/// Name of the template that renders chats for which there is no other.
const DEFAULT: &str = "default";
/// Name of the template that renders chats with tools, if the model has one.
const TOOL_USE: &str = "tool_use";

/// Inputs of a rendering beside the conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateOptions {
    /// True to end where the assistant's answer begins.
    pub begin_answer: bool,
    /// The template's own variables, such as `enable_thinking`.
    pub variables: Map<String, Value>,
    /// Unix second that the template takes for the present, in UTC; `None` for the clock and time zone of this machine.
    pub now: Option<i64>,
}

impl TemplateOptions {
    fn present(&self) -> Result<Zoned> {
        let Some(second) = self.now else { return Ok(Zoned::now()) };
        let timestamp = Timestamp::from_second(second).map_err(|error| Error::Internal(format!("a time: {error}")))?;
        Ok(timestamp.to_zoned(TimeZone::UTC))
    }
}

/// A model's compiled chat templates: most have one, some another for chats with tools.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: Vec<String>,
    tool_syntax: ToolSyntax,
    writes_system: bool,
}

impl ChatTemplate {
    /// Reads the folder's templates: `chat_template.jinja` and `additional_chat_templates/*.jinja`, or `chat_template`
    /// of `tokenizer_config.json`; `None` if there are none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        Self::new(sources::find(folder)?, &special_tokens(folder)?)
    }

    /// Returns the texts of the folder's templates by name.
    pub(crate) fn texts(folder: &Path) -> Result<BTreeMap<String, String>> {
        Ok(sources::find(folder)?.into_iter().map(|(name, source)| (name, source.text)).collect())
    }

    /// Compiles the templates of `sources`, by name, for a model with these special tokens by role; `None` if there are
    /// none.
    pub(crate) fn new(
        sources: BTreeMap<String, TemplateSource>,
        special_tokens: &BTreeMap<&'static str, String>,
    ) -> Result<Option<Self>> {
        if sources.is_empty() {
            return Ok(None);
        }
        let mut environment = engine::environment();
        for (role, token) in special_tokens {
            environment.add_global(*role, token.clone());
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
        let mut template = Self { environment, names: sources.into_keys().collect(), tool_syntax, writes_system: true };
        template.writes_system = template.finds_system();
        if tool_syntax.in_template && !template.writes_calls() {
            template.tool_syntax = ToolSyntax::PLAIN;
        }
        Ok(Some(template))
    }

    /// Returns true if the template writes the calls of earlier turns as its model is asked to write them: else
    /// answers, histories and training files would have different forms.
    fn writes_calls(&self) -> bool {
        let function = json!({"name": "probe", "arguments": {"a": 1}});
        let call = json!({"id": "call00001", "type": "function", "function": function});
        let chat = [
            json!({"role": "user", "content": "A question?"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        ];
        let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let function = json!({"name": "probe", "description": "Tries.", "parameters": parameters});
        let tools = [json!({"type": "function", "function": function})];
        let text = self.apply(&chat, Some(&tools), &TemplateOptions::default());
        text.is_ok_and(|text| text.contains(&self.tool_syntax.beginning("probe", "{\"a\": 1}")))
    }

    /// Returns true if the template writes what a system message before the first of a user says. Some refuse such
    /// messages, others leave them out.
    pub fn writes_system(&self) -> bool {
        self.writes_system
    }

    fn finds_system(&self) -> bool {
        const SAID: &str = "Instructions of a system.";
        let chat = [json!({"role": "system", "content": SAID}), json!({"role": "user", "content": "A question?"})];
        let options = TemplateOptions { begin_answer: true, ..TemplateOptions::default() };
        self.apply(&chat, None, &options).is_ok_and(|text| text.contains(SAID))
    }

    /// Returns the syntax in which the model writes tool calls.
    pub fn tool_syntax(&self) -> ToolSyntax {
        self.tool_syntax
    }

    /// Renders `messages` (objects with `role` and `content`) and `tools` as they are. With tools it is the template
    /// `tool_use` that renders, if the model has one; an empty list of tools is none. A template's own complaint
    /// (`raise_exception`) is an [`crate::Error::Template`].
    pub(crate) fn apply(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        options: &TemplateOptions,
    ) -> Result<String> {
        let tools = tools.filter(|tools| !tools.is_empty());
        let has_tool_use = self.names.iter().any(|name| name == TOOL_USE);
        let name = if tools.is_some() && has_tool_use { TOOL_USE } else { DEFAULT };
        let template = self.environment.get_template(name).map_err(|_| {
            let names = self.names.join(", ");
            Error::Template(format!("The model has no chat template for this chat: it has {names}, but no {name}."))
        })?;
        let list = |items: &[Value]| data::list(items.iter().map(data::from_json).collect());
        let (messages, tools) = (list(messages), tools.map(list));
        let add_generation_prompt = options.begin_answer;
        let now = options.present()?;
        // A variable, and not a function of the environment: a job's examples must render alike on any day.
        let clock = JinjaValue::from_function(move |format: String| engine::strftime(&format, &now));
        // `tools` and `documents` are always defined, `none` if absent, as in transformers: templates test both ways.
        let documents = options.variables.get("documents").map_or_else(|| JinjaValue::from(()), data::from_json);
        let usual = context! { messages, tools, documents, add_generation_prompt, strftime_now => clock };
        let own = options.variables.iter().map(|(name, value)| (name.clone(), data::from_json(value)));
        let own: BTreeMap<String, JinjaValue> = own.collect();
        let variables = context! { ..usual, ..JinjaValue::from(own) };
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
