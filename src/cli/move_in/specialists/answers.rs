//! Answers of models, kept in the folder line by line, so that nobody is asked or paid twice. Used by
//! [`super::compare`] and [`super::figures`].

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The answer of a model to a prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    /// The model.
    pub model: String,
    /// The digest of the prompt.
    pub prompt: String,
    /// The text, or the calls of tools, as [`text_of`] writes them.
    pub text: String,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: String,
    /// Tokens, as the model counts them.
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Why there is no answer.
    pub fault: Option<String>,
}

/// The answers to the prompts of a job, of all models.
#[derive(Debug)]
pub(super) struct Answers {
    path: PathBuf,
    file: Option<File>,
    known: HashMap<(String, String), Answer>,
}

impl Answers {
    /// Reads the answers that are there.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io(format!("read {}", path.display()))(error)),
        };
        let mut known = HashMap::new();
        // A line that a killed run left half written is no answer.
        for answer in text.lines().filter_map(|line| serde_json::from_str::<Answer>(line).ok()) {
            known.insert((answer.model.clone(), answer.prompt.clone()), answer);
        }
        Ok(Self { path, file: None, known })
    }

    /// Returns the answer of a model to a prompt.
    pub(super) fn of(&self, model: &str, prompt: &str) -> Option<&Answer> {
        self.known.get(&(model.to_owned(), prompt.to_owned()))
    }

    /// Keeps an answer; it is on the disk when this returns.
    pub(super) fn add(&mut self, answer: Answer) -> Result<()> {
        let context = || format!("write {}", self.path.display());
        let mut file = match self.file.take() {
            Some(file) => file,
            None => open_for_lines(&self.path).map_err(Error::io(context()))?,
        };
        let line = serde_json::to_string(&answer);
        let line = line.map_err(|error| Error::Internal(format!("write an answer as JSON: {error}")))?;
        file.write_all((line + "\n").as_bytes()).and_then(|()| file.sync_data()).map_err(Error::io(context()))?;
        self.file = Some(file);
        self.known.insert((answer.model.clone(), answer.prompt.clone()), answer);
        Ok(())
    }
}

/// Opens a file to add lines to it; what a killed run left of a line is ended first.
fn open_for_lines(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let before = std::fs::read(path)?;
    if before.last().is_some_and(|last| *last != b'\n') {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// Returns what a message says: its text, or the calls of tools, one in each line, with their arguments in one form.
pub(super) fn text_of(message: &Value) -> String {
    let mut calls: Vec<&Value> = message["tool_calls"].as_array().into_iter().flatten().collect();
    if calls.is_empty() && message["function_call"].is_object() {
        calls.push(message);
    }
    if !calls.is_empty() {
        return calls.into_iter().map(call).collect::<Vec<_>>().join("\n");
    }
    match &message["content"] {
        Value::String(text) => text.trim().to_owned(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect::<String>().trim().to_owned()
        }
        _ => message["refusal"].as_str().unwrap_or_default().to_owned(),
    }
}

fn call(call: &Value) -> String {
    let function = if call["function"].is_object() { &call["function"] } else { &call["function_call"] };
    let written = function["arguments"].as_str().unwrap_or_default();
    let arguments =
        serde_json::from_str(written).map_or_else(|_| written.to_owned(), |read| in_one_form(read).to_string());
    format!("{} {arguments}", function["name"].as_str().unwrap_or_default())
}

/// Sorts the keys of JSON, so that the same value is written in the same way.
pub(super) fn in_one_form(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().map(|(name, value)| (name, in_one_form(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.into_iter().map(in_one_form).collect(),
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_stay_and_half_a_line_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("compare/a.jsonl");
        let answer = |prompt: &str| Answer {
            model: "m".into(),
            prompt: prompt.into(),
            text: "a\nb".into(),
            ..Answer::default()
        };
        let mut answers = Answers::open(path.clone()).expect("opened");
        answers.add(answer("1")).expect("written");
        drop(answers);
        std::fs::write(&path, std::fs::read_to_string(&path).expect("text") + "{\"model\":\"m\",\"prompt\":\"2\"")
            .expect("cut");
        let mut answers = Answers::open(path.clone()).expect("opened");
        assert_eq!((answers.of("m", "1"), answers.of("m", "2")), (Some(&answer("1")), None));
        answers.add(answer("2")).expect("written");
        let answers = Answers::open(path).expect("opened");
        assert_eq!((answers.of("m", "1"), answers.of("m", "2")), (Some(&answer("1")), Some(&answer("2"))));
        assert_eq!(answers.of("other", "1"), None);
    }

    #[test]
    fn a_message_says_its_text_or_its_calls_in_one_form() {
        let tools = json!({"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "find", "arguments": "{\"b\": 1, \"a\": {\"d\":2,\"c\":3}}"}}]});
        assert_eq!(text_of(&tools), r#"find {"a":{"c":3,"d":2},"b":1}"#);
        let older = json!({"function_call": {"name": "find", "arguments": "not JSON"}});
        assert_eq!(text_of(&older), "find not JSON");
        assert_eq!(text_of(&json!({"content": " yes\n"})), "yes");
        assert_eq!(text_of(&json!({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})), "ab");
    }
}
