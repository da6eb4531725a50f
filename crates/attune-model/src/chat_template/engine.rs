//! The Jinja environment of chat templates, as `transformers/utils/chat_template_utils.py` sets it up: blocks are
//! trimmed, loop controls are on, nothing is escaped, and values behave as Python's.

use minijinja::value::Rest;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::{data, filters, json, kinds, methods, sequences};

/// Makes the environment, without templates.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|output, _, value| {
        let written = match value.as_str() {
            Some(text) => output.write_str(text),
            None => output.write_str(&data::to_text(value)),
        };
        written.map_err(Error::from)
    });
    filters::add_to(&mut environment);
    sequences::add_to(&mut environment);
    kinds::add_to(&mut environment);
    environment.add_filter("tojson", json::to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment
}

/// Rewrites what the engine reads otherwise than Jinja2: all line ends become line feeds, and `{% generation %}` tags
/// conditions that always hold, which keeps their whitespace control. transformers marks the assistant's part with
/// these tags, which only its mask of training tokens reads.
pub(super) fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut output = String::with_capacity(source.len());
    let mut rest = source.as_str();
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

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Complaint(message)))
}

/// Returns the template's own complaint in `error`; `None` for any other failure.
pub(super) fn complaint(error: &Error) -> Option<String> {
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
pub(super) fn strftime(format: &str, now: &jiff::Zoned) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}
