//! One line of a training file: read with a bound on its length, checked key by key, and turned into an [`Example`].
//! Called by [`super::read`]. Every fault says what is wrong and what to change; the caller adds the line number.

use std::fmt::Write as _;
use std::io::{BufRead, Read as _};

use serde_json::{Map, Value};

use crate::{Error, Result};
use attune_model::chat::{Message, Role, ToolDefinition, WrittenMessage};

/// Bytes that one line may have. A line is held in memory as a whole; no model's context holds more text.
pub const MAX_LINE_BYTES: u64 = 8 << 20;

/// Faults that an error lists before it only counts.
const MAX_LISTED_FAULTS: usize = 20;

/// The formats of a training file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"prompt": …, "completion": …}`
    Completion,
    /// `{"messages": […]}`
    Chat,
    /// `{"anchor": …, "positive": …}`
    Pair,
}

impl std::fmt::Display for Format {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Completion => "a prompt and completion",
            Self::Chat => "a chat",
            Self::Pair => "a pair of texts",
        })
    }
}

/// A checked example.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// Text and its continuation.
    Completion {
        /// Prompt; may be empty.
        prompt: String,
        /// Completion; never empty.
        completion: String,
    },
    /// Conversation.
    Chat {
        /// Messages, in the form that requests have, too.
        messages: Vec<Message>,
        /// Whether each message is trained on (an assistant message of weight 1).
        trained: Vec<bool>,
        /// Tools that the model is shown.
        tools: Vec<ToolDefinition>,
    },
}

impl Example {
    /// Returns the format of the example.
    pub const fn format(&self) -> Format {
        match self {
            Self::Completion { .. } => Format::Completion,
            Self::Chat { .. } => Format::Chat,
        }
    }
}

/// Faults by line: all are counted, the first ones are kept as text.
#[derive(Debug, Default)]
pub struct Faults {
    listed: Vec<(usize, String)>,
    count: usize,
}

impl Faults {
    /// Notes the fault of line `number`.
    pub fn push(&mut self, number: usize, fault: String) {
        self.count += 1;
        if self.listed.len() < MAX_LISTED_FAULTS {
            self.listed.push((number, fault));
        }
    }

    /// Returns true if no line has a fault.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the message for the client.
    pub fn describe(&self, title: &str) -> String {
        let mut text = format!("{title} has {} fault(s).", self.count);
        for (number, fault) in &self.listed {
            let _ = write!(text, " Line {number} {fault}.");
        }
        if self.count > self.listed.len() {
            let _ = write!(text, " And {} more.", self.count - self.listed.len());
        }
        text
    }
}

/// Reads a file's lines as bytes, one line in memory at a time. Uploads check them by rules of their own, [`Lines`] by
/// those of training files.
pub struct RawLines<R> {
    reader: R,
    buffer: Vec<u8>,
    number: usize,
}

impl<R: BufRead> RawLines<R> {
    /// Creates a reader of the lines of `reader`.
    pub fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), number: 0 }
    }

    /// Reads the next line; returns false at the end of the file. A line above [`MAX_LINE_BYTES`] is cut one byte after
    /// the limit.
    pub fn advance(&mut self) -> std::io::Result<bool> {
        self.buffer.clear();
        let read = (&mut self.reader).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut self.buffer)?;
        self.number += usize::from(read > 0);
        Ok(read > 0)
    }

    /// Returns the line that was read last, with its line break.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Returns the number of that line, counted from 1.
    pub const fn number(&self) -> usize {
        self.number
    }
}

/// Reads the lines of a file with their numbers from 1, without byte order mark, line ends and blank lines at the end.
pub struct Lines<R> {
    raw: RawLines<R>,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    /// Creates a reader of the lines of `reader`.
    pub fn new(reader: R) -> Self {
        Self { raw: RawLines::new(reader), ended: false }
    }

    /// Returns the next line with its number, or its fault; `None` at the end of the file.
    pub fn next_line(&mut self) -> Result<Option<(usize, Result<&str, String>)>> {
        if self.ended {
            return Ok(None);
        }
        let mut blank = None;
        loop {
            if !self.raw.advance().map_err(Error::io("read the training file"))? {
                self.ended = true;
                return Ok(None);
            }
            let number = self.raw.number();
            if self.raw.bytes().len() as u64 > MAX_LINE_BYTES {
                self.ended = true;
                let limit = MAX_LINE_BYTES >> 20;
                return Ok(Some((number, Err(format!("is longer than {limit} MiB: split the example")))));
            }
            let content = self.raw.bytes().trim_ascii();
            if !content.is_empty() && content != b"\xef\xbb\xbf" {
                break;
            }
            blank.get_or_insert(number);
        }
        if let Some(blank) = blank {
            // The rest of an overlong line would be read as another line; an exact count of faults matters less than
            // the first one.
            self.ended = true;
            return Ok(Some((blank, Err("is empty: remove it".into()))));
        }
        let (number, mut bytes) = (self.raw.number(), self.raw.bytes());
        if number == 1 {
            bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        }
        let line = std::str::from_utf8(bytes)
            .map(str::trim)
            .map_err(|error| format!("is not UTF-8 (byte {}): save the file as UTF-8", error.valid_up_to() + 1));
        Ok(Some((number, line)))
    }
}

/// Parses a line as a JSON object.
pub(super) fn object(line: &str) -> Result<Map<String, Value>, String> {
    let value: Value =
        serde_json::from_str(line).map_err(|error| format!("is not JSON ({error}): write one JSON object per line"))?;
    match value {
        Value::Object(object) => Ok(object),
        other => Err(format!("is {}, not a JSON object", kind(&other))),
    }
}

/// Checks one line.
pub fn example(line: &str) -> Result<Example, String> {
    example_of(object(line)?)
}

/// Checks a line's object.
pub(super) fn example_of(mut object: Map<String, Value>) -> Result<Example, String> {
    let chat = object.contains_key("messages");
    if chat && (object.contains_key("prompt") || object.contains_key("completion")) {
        return Err("has both `messages` and `prompt` or `completion`: keep one format".into());
    }
    if is_preference(&object) {
        return Err(
            "is a preference pair, which supervised training cannot use: give `messages`, or use the method `dpo`"
                .into(),
        );
    }
    let known: &[&str] =
        if chat { &["messages", "tools", "functions", "parallel_tool_calls"] } else { &["prompt", "completion"] };
    if !chat && !known.iter().any(|key| object.contains_key(*key)) {
        return Err("has neither `messages` nor `prompt` and `completion`, nor `anchor` and `positive`".into());
    }
    if let Some(key) = object.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("has the unknown key `{}`: remove it", shorten(key)));
    }
    if chat { chat_example(&mut object) } else { completion_example(&mut object) }
}

fn completion_example(object: &mut Map<String, Value>) -> Result<Example, String> {
    let mut text = |key: &str| match object.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("has {} as `{key}`: give a string", kind(&other))),
        None => Err(format!("has no `{key}`")),
    };
    let (prompt, completion) = (text("prompt")?, text("completion")?);
    if completion.is_empty() {
        return Err("has an empty `completion`: there is nothing to learn".into());
    }
    Ok(Example::Completion { prompt, completion })
}

fn chat_example(object: &mut Map<String, Value>) -> Result<Example, String> {
    let Some(Value::Array(messages)) = object.remove("messages") else {
        return Err("has `messages` that is not an array".into());
    };
    if messages.is_empty() {
        return Err("has no messages".into());
    }
    let (messages, trained) = read_messages(messages)?;
    if !messages.iter().any(|message| message.role == Role::Assistant) {
        return Err("has no assistant message: there is nothing to learn".into());
    }
    if !trained.contains(&true) {
        return Err("has only assistant messages of weight 0: there is nothing to learn".into());
    }
    let tools = take_tools(object)?;
    Ok(Example::Chat { messages, trained, tools })
}

/// Reads messages; returns for each whether it is trained on.
pub(super) fn read_messages(messages: Vec<Value>) -> Result<(Vec<Message>, Vec<bool>), String> {
    let read = |(index, message)| read_message(message).map_err(|fault| format!("message {}: {fault}", index + 1));
    messages.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>().map(|read| read.into_iter().unzip())
}

/// Takes the tools of a chat.
pub(super) fn take_tools(object: &mut Map<String, Value>) -> Result<Vec<ToolDefinition>, String> {
    let mut take = |key: &str| object.remove(key).filter(|tools| !tools.is_null());
    let (key, tools) = match (take("tools"), take("functions")) {
        (Some(_), Some(_)) => return Err("has both `tools` and `functions`: keep `tools`".into()),
        (Some(tools), None) => ("tools", tools),
        (None, Some(functions)) => ("functions", functions),
        (None, None) => return Ok(Vec::new()),
    };
    let Value::Array(tools) = tools else { return Err(format!("has `{key}` that is not an array")) };
    let read = |(index, tool)| ToolDefinition::read(tool).map_err(|fault| format!("`{key}[{index}]` {fault}"));
    tools.into_iter().enumerate().map(read).collect()
}

/// Reads a message; returns whether it is trained on, too.
fn read_message(message: Value) -> Result<(Message, bool), String> {
    const KEYS: [&str; 9] = [
        "role",
        "content",
        "name",
        "weight",
        "function_call",
        "tool_calls",
        "tool_call_id",
        "refusal",
        "reasoning_content",
    ];
    let Value::Object(mut message) = message else {
        return Err(format!("is {}, not an object", kind(&message)));
    };
    if let Some(key) = message.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("has the unknown key `{}`: remove it", shorten(key)));
    }
    let role = match message.get("role") {
        Some(Value::String(role)) => role.clone(),
        Some(other) => return Err(format!("has {} as `role`: give a string", kind(other))),
        None => return Err("has no `role`".into()),
    };
    if !["system", "developer", "user", "assistant", "tool", "function"].contains(&role.as_str()) {
        return Err(format!(
            "has the role `{}`: use system, developer, user, assistant, tool or function",
            shorten(&role)
        ));
    }
    let assistant = role == "assistant";
    let content = message.get("content").filter(|content| !content.is_null());
    let has_content = content.is_some();
    match content {
        Some(Value::Array(parts)) if !parts.iter().all(|part| is_text(part, assistant)) => {
            return Err("has a content part that is not text: use `{\"type\": \"text\", \"text\": …}`".into());
        }
        Some(Value::String(_) | Value::Array(_)) => {}
        None if assistant || role == "function" => {}
        None => return Err("has no `content`".into()),
        Some(other) => return Err(format!("has {} as `content`: give a string", kind(other))),
    }
    let trained = match message.remove("weight") {
        None | Some(Value::Null) => assistant,
        Some(_) if !assistant => {
            return Err("has a `weight`, which only assistant messages may have: remove it".into());
        }
        Some(weight) if weight.as_f64() == Some(0.0) => false,
        Some(weight) if weight.as_f64() == Some(1.0) => true,
        Some(_) => return Err("has a `weight` that is neither 0 nor 1".into()),
    };
    let written: WrittenMessage = serde_json::from_value(Value::Object(message))
        .map_err(|error| format!("has a field that is not of its type ({error})"))?;
    let read = Message::read(written).map_err(|fault| format!("`{}`: {}", fault.field, fault.message))?;
    if trained && read.is_empty() {
        let fault = if has_content { "has an empty answer: there is nothing to learn" } else { "has no `content`" };
        return Err(fault.into());
    }
    Ok((read, trained))
}

/// Returns true if a part of a content is text; an assistant may also refuse.
fn is_text(part: &Value, assistant: bool) -> bool {
    match part["type"].as_str() {
        Some("text") => part["text"].is_string(),
        Some("refusal") => assistant && part["refusal"].is_string(),
        _ => false,
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Returns true if an object is meant as a pair of answers (it has `preferred_output` or `chosen`).
pub(super) fn is_preference(object: &Map<String, Value>) -> bool {
    ["preferred_output", "non_preferred_output", "preferred_completion", "chosen", "rejected"]
        .iter()
        .any(|key| object.contains_key(*key))
}

/// Shortens the client's text for a message.
pub fn shorten(text: &str) -> String {
    const LENGTH: usize = 40;
    let mut short: String = text.chars().take(LENGTH).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
