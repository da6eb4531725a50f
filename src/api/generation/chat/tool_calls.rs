//! Finds the calls in an answer as its text arrives, so that their arguments stream. The grammar has made sure that the
//! text has the form of the syntax, so only the positions of its parts are left to find. Used by `chat` for streamed
//! and whole answers alike, so both agree, and by `responses`.

use serde::Serialize;
use utoipa::ToSchema;

use crate::model::tool_syntax::ToolSyntax;

/// A call in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct ToolCall {
    /// `call_…`
    pub id: String,
    /// `function` or `custom`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The function that is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionCall>,
    /// The custom tool that is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomCall>,
}

/// A custom tool with its input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct CustomCall {
    /// The tool.
    pub name: String,
    /// Its input, cut short where the answer was.
    pub input: String,
}

impl ToolCall {
    /// Begins a call.
    pub(super) fn new(id: String, name: String, is_custom: bool) -> Self {
        if is_custom {
            let custom = Some(CustomCall { name, input: String::new() });
            Self { id, kind: "custom", function: None, custom }
        } else {
            let function = Some(FunctionCall { name, arguments: String::new() });
            Self { id, kind: "function", function, custom: None }
        }
    }

    /// Adds to the arguments of a function, or to the input of a custom tool.
    pub(super) fn push(&mut self, text: &str) {
        let call = self.function.as_mut().map(|function| &mut function.arguments);
        if let Some(whole) = call.or(self.custom.as_mut().map(|custom| &mut custom.input)) {
            whole.push_str(text);
        }
    }
}

/// A function with its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct FunctionCall {
    /// The function.
    pub name: String,
    /// Its arguments: the text of a JSON object, cut short where the answer was.
    pub arguments: String,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text before the calls.
    Content(String),
    /// The beginning of a call of the function `name`; calls are numbered from 0.
    Call { index: usize, name: String },
    /// More of the arguments of a call.
    Arguments { index: usize, text: String },
}

/// The format of calls, the same for all answers to a request.
#[derive(Debug, Clone)]
pub(crate) struct CallFormat {
    /// The markup.
    pub syntax: ToolSyntax,
    /// Functions that may be called.
    pub names: Vec<String>,
    /// Those that are custom tools.
    pub custom: Vec<String>,
    /// True if the answer has nothing but calls.
    pub required: bool,
    /// True if the answer may be JSON, which can look like a call at first.
    pub json_answers: bool,
    /// True if answers have the older form, `function_call`.
    pub legacy: bool,
}

/// Parses one answer, character by character.
#[derive(Debug)]
pub(crate) struct CallParser {
    state: State,
    /// Text that may still become either markup or content.
    held: String,
    /// Calls so far.
    calls: usize,
    /// True once the trigger was seen, which ends the text.
    triggered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the trigger.
    Text,
    /// Between the trigger and the first arguments.
    Head,
    /// In the arguments.
    Arguments { depth: usize, in_string: bool, escaped: bool },
    /// Between the arguments of a call and those of the next.
    Between,
    /// All the rest is text.
    OnlyText,
}

const BEFORE_ARGUMENTS: State = State::Arguments { depth: 0, in_string: false, escaped: false };

impl CallParser {
    /// Creates a parser before the first character.
    pub(crate) fn new(format: &CallFormat) -> Self {
        // Calls that come at the beginning or not at all need no search, and JSON may hold the trigger in a string.
        let at_start = format.syntax.trigger.is_empty() || format.json_answers;
        let state = if at_start { State::Head } else { State::Text };
        Self { state, held: String::new(), calls: 0, triggered: false }
    }

    /// Returns true if the answer has calls and the last one is whole.
    pub(crate) fn has_whole_calls(&self) -> bool {
        self.calls > 0 && self.state == State::Between
    }

    /// Parses more text, and returns the parts that are certain now.
    pub(crate) fn push(&mut self, format: &CallFormat, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        for character in text.chars() {
            self.take(format, character, &mut parts);
        }
        parts
    }

    /// Ends the answer, and returns the text that was held back and is no markup.
    pub(crate) fn finish(&mut self, format: &CallFormat) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let is_text = match self.state {
            State::Text => !format.required,
            State::Head => !self.triggered && format.json_answers && format.syntax.trigger.is_empty(),
            _ => false,
        };
        if is_text && !held.is_empty() { vec![Part::Content(held)] } else { Vec::new() }
    }

    fn take(&mut self, format: &CallFormat, character: char, parts: &mut Vec<Part>) {
        match self.state {
            State::OnlyText => push_content(parts, &character.to_string()),
            State::Text => {
                self.held.push(character);
                let trigger = format.syntax.trigger;
                if self.held.ends_with(trigger) {
                    self.held.truncate(self.held.len() - trigger.len());
                    push_content(parts, &std::mem::take(&mut self.held));
                    (self.state, self.triggered) = (State::Head, true);
                } else {
                    let open = longest_open(&self.held, trigger);
                    let rest = self.held.split_off(self.held.len() - open);
                    push_content(parts, &std::mem::replace(&mut self.held, rest));
                }
            }
            State::Head => {
                self.held.push(character);
                let trigger = if self.triggered { "" } else { format.syntax.trigger };
                self.match_head(format, &[trigger, format.syntax.open], parts);
            }
            State::Between => {
                self.held.push(character);
                self.match_head(format, &["}", format.syntax.separator], parts);
            }
            State::Arguments { depth, in_string, escaped } => {
                push_arguments(parts, self.calls - 1, character);
                let next = match (in_string, escaped, character) {
                    (true, true, _) => (depth, true, false),
                    (true, false, '\\') => (depth, true, true),
                    (_, false, '"') => (depth, !in_string, false),
                    (false, _, '{' | '[') => (depth + 1, false, false),
                    (false, _, '}' | ']') => (depth.saturating_sub(1), false, false),
                    _ => (depth, in_string, false),
                };
                self.state = State::Arguments { depth: next.0, in_string: next.1, escaped: next.2 };
                if depth > 0 && next.0 == 0 {
                    self.state = State::Between;
                }
            }
        }
    }

    /// Looks for the beginning of a call in the held text, after the markup `before`.
    fn match_head(&mut self, format: &CallFormat, before: &[&str; 2], parts: &mut Vec<Part>) {
        let key = format.syntax.arguments_key;
        let mut may_become_one = false;
        for name in &format.names {
            // Compared piece by piece: this runs for every character of the markup and every tool.
            let pieces = [before[0], before[1], "{\"name\": \"", name, "\", \"", key, "\": "];
            match begins(&self.held, &pieces) {
                Some(true) => {
                    self.held.clear();
                    self.state = BEFORE_ARGUMENTS;
                    parts.push(Part::Call { index: self.calls, name: name.clone() });
                    self.calls += 1;
                    return;
                }
                Some(false) => may_become_one = true,
                None => {}
            }
        }
        // Only an answer of JSON can begin like a call and not be one; after a trigger or a call there is only markup.
        if !may_become_one && self.state == State::Head && !self.triggered {
            self.state = State::OnlyText;
            push_content(parts, &std::mem::take(&mut self.held));
        }
    }
}

/// Returns true if `text` is all of the pieces in a row, false if it is a beginning of them, `None` if it is neither.
fn begins(text: &str, pieces: &[&str]) -> Option<bool> {
    let mut rest = text;
    for piece in pieces {
        match rest.strip_prefix(piece) {
            Some(after) => rest = after,
            None => return piece.starts_with(rest).then_some(false),
        }
    }
    rest.is_empty().then_some(true)
}

/// Counts the bytes at the end of `text` that may become `trigger`.
fn longest_open(text: &str, trigger: &str) -> usize {
    (1..trigger.len())
        .rev()
        .find(|length| trigger.is_char_boundary(*length) && text.ends_with(&trigger[..*length]))
        .unwrap_or(0)
}

fn push_content(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Content(last)) => last.push_str(text),
        _ => parts.push(Part::Content(text.to_owned())),
    }
}

fn push_arguments(parts: &mut Vec<Part>, call: usize, character: char) {
    match parts.last_mut() {
        Some(Part::Arguments { index, text }) if *index == call => text.push(character),
        _ => parts.push(Part::Arguments { index: call, text: character.into() }),
    }
}

/// Makes a new id of a call.
pub(crate) fn new_call_id() -> String {
    format!("call_{}", &uuid::Uuid::new_v4().simple().to_string()[..24])
}

#[cfg(test)]
#[path = "tool_calls_tests.rs"]
mod tests;
