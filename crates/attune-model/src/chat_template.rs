//! Renders chats with the model's own Jinja template, as Hugging Face's tokenizers do.
//!
//! Called by [`super::chat`] alone, which brings messages and tools into the form that templates read. The environment
//! follows `transformers/utils/chat_template_utils.py`: blocks are trimmed, loop controls are on, Python's methods on
//! strings, lists and dictionaries work, `tojson` writes what `json.dumps(ensure_ascii=False)` writes.

use std::path::Path;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use minijinja::value::{Kwargs, Value as JinjaValue};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize as _;
use serde_json::{Map, Value};

use super::tokenizer::{read_json, special_tokens};
use super::tool_syntax::ToolSyntax;
use crate::{Error, Result};

/// Name of the one template in the environment.
const TEMPLATE: &str = "chat";

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

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tool_syntax: ToolSyntax,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`; `None` if there is neither.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let Some((source, origin)) = find_source(folder)? else { return Ok(None) };
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        for (role, token) in special_tokens(folder)? {
            environment.add_global(role, token);
        }
        environment
            .add_template_owned(TEMPLATE, without_generation_tags(&source))
            .map_err(|error| Error::Setup(format!("{origin}: chat template: {error}")))?;
        let variables = environment.get_template(TEMPLATE).map(|template| template.undeclared_variables(false));
        let reads_tools = variables.is_ok_and(|variables| variables.contains("tools"));
        let tool_syntax = ToolSyntax::of_template(&source, reads_tools);
        Ok(Some(Self { environment, tool_syntax }))
    }

    /// Returns the syntax in which the model writes tool calls.
    pub fn tool_syntax(&self) -> ToolSyntax {
        self.tool_syntax
    }

    /// Renders `messages` (objects with `role` and `content`) and `tools` as they are. A template's own complaint
    /// (`raise_exception`) is an [`crate::Error::Template`].
    pub(crate) fn apply(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        options: &TemplateOptions,
    ) -> Result<String> {
        let template = self
            .environment
            .get_template(TEMPLATE)
            .map_err(|error| Error::Internal(format!("chat template: {error}")))?;
        let add_generation_prompt = options.begin_answer;
        // `tools` and `documents` are always defined, `none` if absent, as in transformers: templates test both ways.
        let documents = options.variables.get("documents").unwrap_or(&Value::Null);
        let now = options.present()?;
        // A variable, and not a function of the environment: a job's examples must render alike on any day.
        let clock = move |format: String| strftime(&format, &now);
        let variables = context! { messages, tools, documents, add_generation_prompt };
        let clock = context! { strftime_now => JinjaValue::from_function(clock) };
        let variables = context! { ..clock, ..variables, ..JinjaValue::from_serialize(&options.variables) };
        template.render(variables).map_err(|error| {
            // Any other failure is due to these messages too: a missing `content`, a list instead of a text.
            let message = complaint(&error).unwrap_or_else(|| {
                format!("The model's chat template cannot render these messages: {error}. Check roles and contents.")
            });
            Error::Template(message)
        })
    }
}

/// Returns the template's text and the file it came from; of a list of named templates, the one named `default`.
fn find_source(folder: &Path) -> Result<Option<(String, String)>> {
    let file = folder.join("chat_template.jinja");
    if file.is_file() {
        let source = std::fs::read_to_string(&file).map_err(Error::io(format!("read {}", file.display())))?;
        return Ok(Some((source, file.display().to_string())));
    }
    let file = folder.join("tokenizer_config.json");
    let Some(config) = read_json(&file)? else { return Ok(None) };
    let source = match &config["chat_template"] {
        Value::Null => return Ok(None),
        Value::String(source) => source.clone(),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default").or_else(|| named.first());
            let source = default.and_then(|entry| entry["template"].as_str());
            source.map(str::to_owned).ok_or_else(|| {
                Error::Setup(format!("{}: chat_template is a list without `name` and `template`", file.display()))
            })?
        }
        _ => return Err(Error::Setup(format!("{}: chat_template is neither text nor a list", file.display()))),
    };
    Ok(Some((source, file.display().to_string())))
}

/// Replaces `{% generation %}` tags by conditions that always hold, which keeps their whitespace control. transformers
/// marks the assistant's part with these tags, which only its mask of training tokens reads.
fn without_generation_tags(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else { break };
        let tag = &rest[open + 2..open + length];
        let name = tag.trim_matches(|character: char| matches!(character, '-' | '+') || character.is_whitespace());
        output.push_str(&rest[..open + 2]);
        match name {
            "generation" => output.push_str(&tag.replace(name, " if true ")),
            "endgeneration" => output.push_str(&tag.replace(name, " endif ")),
            _ => output.push_str(tag),
        }
        output.push_str("%}");
        rest = &rest[open + length + 2..];
    }
    output.push_str(rest);
    output
}

/// Message of a template's `raise_exception`, kept as the source of the engine's error to tell it from other failures.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Complaint(String);

fn raise_exception(message: String) -> Result<JinjaValue, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Complaint(message)))
}

fn complaint(error: &minijinja::Error) -> Option<String> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(Complaint(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        source = error.source();
    }
    None
}

/// Writes a date and time in C's format, like Python's `datetime.now().strftime`.
fn strftime(format: &str, now: &Zoned) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, now)
        .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// Serializes like `json.dumps(value, ensure_ascii=False, indent=indent)`: minijinja's own `tojson` escapes for HTML
/// and writes no blanks.
#[allow(clippy::needless_pass_by_value, reason = "the engine hands a filter its options by value")]
fn to_json(value: &JinjaValue, indent: Option<usize>, options: Kwargs) -> Result<JinjaValue, minijinja::Error> {
    let failed = |error: &dyn std::fmt::Display| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("cannot serialize to JSON: {error}"))
    };
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    let mut output = Vec::new();
    match indent {
        Some(indent) => {
            let blanks = vec![b' '; indent];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&blanks);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut output, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut output, PythonJson)),
    }
    .map_err(|error| failed(&error))?;
    let text = String::from_utf8(output).map_err(|error| failed(&error))?;
    Ok(JinjaValue::from_safe_string(text))
}

/// JSON formatter with Python's separators, `", "` and `": "`.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
#[path = "chat_template_tests.rs"]
mod tests;
