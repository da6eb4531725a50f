//! The prompts of a job: the lines of a file, or chats that the organisation has stored, each conversation once.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::api::ApiState;
use crate::api::http::error::Problem;
use crate::jobs::Job;
use crate::jobs::collections::Prompts;
use crate::off_thread::in_background;
use crate::store::stored_completions::{CompletionChoice, StoredCompletion};

/// Prompts of one job, and bytes of all of them.
pub(crate) const MAX_PROMPTS: usize = 100_000;
const MAX_BYTES: usize = 256 << 20;
/// Fields of a line that say how it is answered, which no teacher is told.
const UNSUPPORTED: [&str; 4] = ["tools", "functions", "parallel_tool_calls", "response_format"];

/// A conversation that wants an answer.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    /// What graders know as `item`.
    pub item: Value,
    /// Names it; the same conversation has the same one.
    pub digest: String,
    /// The conversation.
    pub messages: Vec<Value>,
    /// Answers that are there already, each with how it ended.
    pub given: Vec<(String, String)>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub prompts: Vec<Prompt>,
    /// Conversations that stand there again.
    pub duplicates: usize,
    /// Stored chats that no teacher can be asked for: with tools, or with something else than text.
    pub unusable: usize,
}

/// Why there are none.
#[derive(Debug)]
pub(crate) enum Unread {
    /// What the client gave cannot be used.
    Request(String),
    /// The store failed.
    Store(Problem),
}

impl From<Problem> for Unread {
    fn from(problem: Problem) -> Self {
        Self::Store(problem)
    }
}

impl From<crate::off_thread::Lost> for Unread {
    fn from(lost: crate::off_thread::Lost) -> Self {
        Self::Store(lost.into())
    }
}

/// Reads the prompts of a job of `organization`. Of stored chats only those up to the second `until`: a later attempt
/// at the job finds the same ones.
pub(crate) async fn read(
    state: &ApiState,
    organization: &str,
    prompts: &Prompts,
    until: i64,
    with_answers: bool,
) -> Result<Source, Unread> {
    let source = match prompts {
        Prompts::File(id) => read_file(state, organization, id).await?,
        Prompts::StoredCompletions(wanted) => stored(state, organization, wanted, until, with_answers).await?,
    };
    if source.prompts.is_empty() {
        return Err(Unread::Request("There is no prompt that a teacher could be asked.".into()));
    }
    Ok(source)
}

/// As [`read`], for a job that runs.
pub(super) async fn of_job(state: &ApiState, job: &Job) -> Result<Source, Unread> {
    let Some(plan) = &job.spec.distillation else {
        return Err(Unread::Request("The job has no prompts.".into()));
    };
    read(state, &job.organization, &plan.prompts, job.created_at, plan.teacher.is_none()).await
}

async fn read_file(state: &ApiState, organization: &str, id: &str) -> Result<Source, Unread> {
    let gone = |problem: Problem| match problem.status {
        StatusCode::NOT_FOUND => Unread::Request(format!("The file {id} is not there any more.")),
        _ => Unread::Store(problem),
    };
    let file = state.store.file(organization, id).await.map_err(|error| gone(error.into()))?;
    let content = state.store.open_file(&file).await.map_err(|error| gone(error.into()))?;
    in_background("read the prompts of a job", move || lines_of(content)).await
}

fn lines_of(content: File) -> Result<Source, Unread> {
    let (mut gathered, mut bytes) = (Gathered::default(), 0);
    for (number, line) in BufReader::new(content).lines().enumerate() {
        let line = line.map_err(|error| Problem::io("read the prompts of a job")(error))?;
        if line.trim().is_empty() {
            continue;
        }
        bytes += line.len();
        if bytes > MAX_BYTES || gathered.source.prompts.len() == MAX_PROMPTS {
            return Err(Unread::Request(format!(
                "A job has {MAX_PROMPTS} prompts at the most, of {} MiB in all: divide the file.",
                MAX_BYTES >> 20
            )));
        }
        let prompt = prompt_of(&line).map_err(|fault| Unread::Request(format!("Line {}: {fault}", number + 1)))?;
        gathered.add(prompt);
    }
    Ok(gathered.source)
}

/// Prompts, each once.
#[derive(Default)]
struct Gathered {
    source: Source,
    seen: HashMap<String, usize>,
}

impl Gathered {
    fn add(&mut self, prompt: Prompt) {
        let prompts = &mut self.source.prompts;
        if let Some(first) = self.seen.get(&prompt.digest).and_then(|index| prompts.get_mut(*index)) {
            first.given.extend(prompt.given);
            self.source.duplicates += 1;
        } else {
            self.seen.insert(prompt.digest.clone(), prompts.len());
            prompts.push(prompt);
        }
    }
}

/// Reads a line: `messages`, or a `prompt`. All other fields are for graders.
fn prompt_of(line: &str) -> Result<Prompt, String> {
    let item: Value = serde_json::from_str(line).map_err(|error| format!("is not JSON: {error}"))?;
    let Some(object) = item.as_object() else { return Err("is not a JSON object".into()) };
    if let Some(name) = UNSUPPORTED.iter().find(|name| object.get(**name).is_some_and(|value| !value.is_null())) {
        return Err(format!("has `{name}`, which distillation does not support: leave it out"));
    }
    let messages = match (object.get("messages"), object.get("prompt")) {
        (Some(Value::Array(messages)), None) => messages.clone(),
        (None, Some(Value::String(prompt))) => vec![json!({"role": "user", "content": prompt})],
        _ => return Err("needs `messages`, a list, or a `prompt`, a text".into()),
    };
    let messages = question(messages)?;
    Ok(Prompt { digest: digest(&messages), item, messages, given: Vec::new() })
}

/// Returns the conversation up to the last message of a user; an answer that stands after it is left out.
fn question(mut messages: Vec<Value>) -> Result<Vec<Value>, String> {
    if messages.last().is_some_and(|last| last["role"] == "assistant") {
        messages.pop();
    }
    if messages.last().is_none_or(|last| last["role"] != "user") {
        return Err("does not end with a message of a user (or of an assistant after one)".into());
    }
    let mut plain = Vec::new();
    for message in &messages {
        let role = message["role"].as_str().unwrap_or_default();
        let text = message["content"].as_str().filter(|text| !text.contains('\0'));
        match (role, text) {
            ("system" | "developer" | "user" | "assistant", Some(text)) if !message["tool_calls"].is_array() => {
                plain.push(json!({"role": role, "content": text}));
            }
            _ => return Err("has a message that is not a `content` of text from a system, user or assistant".into()),
        }
    }
    Ok(plain)
}

async fn stored(
    state: &ApiState,
    organization: &str,
    wanted: &CompletionChoice,
    until: i64,
    with_answers: bool,
) -> Result<Source, Unread> {
    let mut wanted = wanted.clone();
    let before = &mut wanted.filter.created_before;
    *before = Some(before.map_or(until, |before| before.min(until)));
    let (mut gathered, mut chosen) = (Gathered::default(), state.store.chosen_completions(organization, &wanted));
    loop {
        let chats = chosen.next().await.map_err(Problem::from)?;
        if chats.is_empty() {
            return Ok(gathered.source);
        }
        for chat in chats {
            match of_stored(chat, with_answers) {
                Some(prompt) => gathered.add(prompt),
                None => gathered.source.unusable += 1,
            }
        }
    }
}

/// Makes a prompt of a stored chat; `None` if it is not one of texts alone.
fn of_stored(chat: StoredCompletion, with_answers: bool) -> Option<Prompt> {
    let StoredCompletion { id, completion, messages } = chat;
    let has_tools =
        ["tools", "functions"].iter().any(|name| completion[*name].as_array().is_some_and(|of| !of.is_empty()));
    if has_tools || messages.last()?["role"] != "user" {
        return None;
    }
    let messages = question(messages).ok()?;
    let mut given = Vec::new();
    if with_answers {
        for choice in completion["choices"].as_array()? {
            let text = choice["message"]["content"].as_str().unwrap_or_default().replace('\0', "");
            given.push((text, choice["finish_reason"].as_str().unwrap_or_default().to_owned()));
        }
    }
    let mut item = Map::new();
    item.insert("id".into(), id.into());
    item.insert("messages".into(), messages.clone().into());
    item.insert("metadata".into(), completion["metadata"].clone());
    Some(Prompt { item: item.into(), digest: digest(&messages), messages, given })
}

/// Returns a text without the differences that nobody means: case, the kind of apostrophes, and how much room there is
/// between words.
pub(super) fn normalised(text: &str) -> String {
    let lower = text.to_lowercase().replace(['\u{2019}', '\u{2018}'], "'");
    lower.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the digest of a conversation, the same for those that differ in nothing that anybody means.
pub(super) fn digest(messages: &[Value]) -> String {
    let mut hash = Sha256::new();
    for message in messages {
        let content = match &message["content"] {
            Value::String(text) => normalised(text),
            other => other.to_string(),
        };
        hash.update(format!("{}\0{content}\0", message["role"].as_str().unwrap_or_default()));
    }
    format!("{:x}", hash.finalize())[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    #[test]
    fn a_line_is_a_conversation_or_a_prompt_and_keeps_its_other_fields_for_graders() {
        let read =
            prompt_of(r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"label":3}"#);
        let read = read.expect("a prompt");
        assert_eq!(read.messages, [json!({"role": "user", "content": "a"})]);
        assert_eq!(read.item["label"], 3);
        assert_eq!(prompt_of(r#"{"prompt":"a"}"#).expect("a prompt").messages, read.messages);
        for (line, says) in [
            ("[]", "not a JSON object"),
            ("{", "not JSON"),
            ("{}", "needs `messages`"),
            (r#"{"prompt":"a","tools":[]}"#, "`tools`"),
            (r#"{"messages":[{"role":"system","content":"a"}]}"#, "does not end"),
            (r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}]}"#, "not a `content` of text"),
        ] {
            let said = prompt_of(line).expect_err(says);
            assert!(said.contains(says), "{line}: {said}");
        }
    }

    #[test]
    fn prompts_that_mean_the_same_have_one_digest() {
        let digest_of = |text: &str| digest(&[json!({"role": "user", "content": text})]);
        assert_eq!(digest_of("What  is it?"), digest_of("what is it?\n"));
        assert_ne!(digest_of("What is it?"), digest_of("What is that?"));
    }

    #[test]
    fn a_conversation_that_stands_there_again_is_asked_once() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"{\"prompt\":\"a\"}\n\n{\"prompt\":\"A \"}\n{\"prompt\":\"b\"}\n").expect("written");
        file.rewind().expect("rewound");
        let source = lines_of(file).expect("prompts");
        assert_eq!((source.prompts.len(), source.duplicates), (2, 1));
    }
}
