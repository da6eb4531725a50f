//! `POST /files/from_stored_completions`: makes a training file of stored answers, each with the messages that it
//! answers and the tools that there were. An extension.

use std::path::Path;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Body;
use crate::api::http::upload::upload_file;
use crate::api::http::values;
use crate::api::operations::files::{FileObject, check_name};
use crate::api::operations::stored_answers::{DEFAULT, MOST, StoredAnswers, with_stored_answers};
use crate::datasets::parse::example;
use crate::off_thread::off_thread;
use crate::store::files::NewFile;
use crate::store::stored_completions::{CompletionChoice, StoredCompletion};

/// Name of a file whose maker gives it none.
const FILENAME: &str = "stored_completions.jsonl";

with_stored_answers! {
    /// Which stored answers to make a training file of. Without filters: the newest.
    #[derive(Debug, Deserialize, ToSchema)]
    pub(crate) struct CreateTrainingFile {
        /// Name of the file.
        #[schema(default = "stored_completions.jsonl")]
        #[serde(default, deserialize_with = "values::text")]
        pub filename: Option<String>,
    }
}

/// A training file, and what it was made of.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TrainingFile {
    /// The file, with the purpose `fine-tune`.
    #[serde(flatten)]
    pub file: FileObject,
    /// Stored answers that were read.
    pub completions: usize,
    /// Lines of the file: one for each choice that can be trained on.
    pub lines: usize,
    /// Choices that cannot be trained on: cut off by their length, empty, or continuing a message of the request.
    pub skipped: usize,
}

/// Make a training file of stored answers
///
/// An extension of this server. Each line has the messages of a request with the answer to them, and the tools.
#[utoipa::path(
    post, path = "/files/from_stored_completions", operation_id = "createFileFromStoredCompletions", tag = "Files",
    request_body = CreateTrainingFile,
    responses((status = 200, body = TrainingFile), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<CreateTrainingFile>,
) -> Result<Json<TrainingFile>, Problem> {
    let CreateTrainingFile { model, metadata, created_after, created_before, limit, filename } = request;
    let choice = StoredAnswers { model, metadata, created_after, created_before, limit }.check(DEFAULT, MOST)?;
    let filename = filename.unwrap_or_else(|| FILENAME.to_owned());
    check_name(&filename, "filename")?;
    state.completions.flush().await?;
    let folder = &state.store.scratch;
    let context = || format!("write a training file to {}", folder.display());
    tokio::fs::create_dir_all(folder).await.map_err(Problem::io(context()))?;
    let (file, path) = upload_file(folder).map_err(Problem::io(context()))?.into_parts();
    let made = Made::write(&state, &caller.organization, &choice, (file, &path)).await?;
    if made.lines == 0 {
        let message = if made.completions == 0 {
            "No stored completion matches: nothing would be in the file."
        } else {
            "None of the stored completions that match can be trained on: nothing would be in the file."
        };
        return Err(Problem::bad_request(message));
    }
    let organization = caller.organization.to_string();
    let new = NewFile { organization, filename, purpose: "fine-tune".into() };
    let file = state.store.add_file(new, path.to_path_buf()).await?.into();
    let Made { completions, lines, skipped } = made;
    Ok(Json(TrainingFile { file, completions, lines, skipped }))
}

/// What became of the answers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Made {
    completions: usize,
    lines: usize,
    skipped: usize,
}

impl Made {
    /// Writes the lines of the answers, the newest first.
    async fn write(
        state: &ApiState,
        organization: &str,
        choice: &CompletionChoice,
        (file, path): (std::fs::File, &Path),
    ) -> Result<Self> {
        let most_bytes = state.config.limits.max_file_bytes;
        let mut file = tokio::fs::File::from_std(file);
        let (mut made, mut bytes) = (Self::default(), 0);
        let mut chosen = state.store.chosen_completions(organization, choice);
        loop {
            let answers = chosen.next().await?;
            if answers.is_empty() {
                break;
            }
            made.completions += answers.len();
            let work = move || {
                let mut written = (Self::default(), String::new());
                for answer in answers {
                    written.0.add(answer, &mut written.1);
                }
                Ok::<_, Problem>(written)
            };
            let (part, text) = off_thread("write a training file", work).await?;
            made.lines += part.lines;
            made.skipped += part.skipped;
            bytes += text.len();
            if bytes > most_bytes {
                return Err(Problem::too_large("The file", most_bytes).param("limit"));
            }
            file.write_all(text.as_bytes()).await.map_err(Problem::io(format!("write {}", path.display())))?;
        }
        file.flush().await.map_err(Problem::io(format!("write {}", path.display())))?;
        Ok(made)
    }

    /// Appends a line for each choice that can be trained on.
    fn add(&mut self, mut answer: StoredCompletion, text: &mut String) {
        let is_continued = answer.messages.last().is_some_and(|message| message["role"] == "assistant");
        let choices = match answer.completion["choices"].take() {
            Value::Array(choices) => choices,
            _ => Vec::new(),
        };
        let mut tools = Map::new();
        for name in ["tools", "functions"] {
            let given = answer.completion[name].take();
            if given.as_array().is_some_and(|given| !given.is_empty()) {
                tools.insert(name.into(), given);
            }
        }
        for mut choice in choices {
            let is_whole = choice["finish_reason"] != "length" && !is_continued;
            let line = is_whole.then(|| line(&answer.messages, &tools, choice["message"].take()));
            // As strict as training is: what the file holds must be fit for it.
            match line.map(|line| line.to_string()).filter(|line| example(line).is_ok()) {
                Some(line) => {
                    self.lines += 1;
                    text.push_str(&line);
                    text.push('\n');
                }
                None => self.skipped += 1,
            }
        }
    }
}

/// Returns the line of one choice, in the form of training files.
fn line(messages: &[Value], tools: &Map<String, Value>, mut message: Value) -> Value {
    const LEARNT: [&str; 4] = ["role", "content", "tool_calls", "function_call"];
    if let Some(fields) = message.as_object_mut() {
        fields.retain(|name, value| LEARNT.contains(&name.as_str()) && !value.is_null());
    }
    let mut line = Map::new();
    line.insert("messages".into(), messages.iter().cloned().chain([message]).collect());
    line.extend(tools.clone());
    json!(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(messages: Value, choices: &Value, tools: &Value) -> StoredCompletion {
        let Value::Array(messages) = messages else { panic!("messages") };
        let completion = json!({"id": "chatcmpl-1", "choices": choices, "tools": tools, "tool_choice": null});
        StoredCompletion { id: "chatcmpl-1".into(), completion, messages }
    }

    fn choice(finish_reason: &str, message: &Value) -> Value {
        json!({"index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason})
    }

    fn said(content: &str) -> Value {
        json!({"role": "assistant", "content": content, "refusal": null, "annotations": []})
    }

    fn lines(answer: StoredCompletion) -> (Vec<Value>, usize) {
        let (mut made, mut text) = (Made::default(), String::new());
        made.add(answer, &mut text);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), made.lines);
        (lines, made.skipped)
    }

    #[test]
    fn a_line_has_the_messages_the_answer_and_the_tools() {
        let question = json!({"role": "user", "content": "What is the time?"});
        let call = json!([{"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}}]);
        let tools = json!([{"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}]);
        let calls =
            json!({"role": "assistant", "content": null, "refusal": null, "annotations": [], "tool_calls": call});
        let (made, skipped) = lines(stored(json!([question]), &json!([choice("tool_calls", &calls)]), &tools));
        let answer = json!({"role": "assistant", "tool_calls": call});
        assert_eq!((made, skipped), (vec![json!({"messages": [question, answer], "tools": tools})], 0));
    }

    #[test]
    fn choices_that_cannot_be_trained_on_are_left_out_and_counted() {
        let question = json!({"role": "user", "content": "a"});
        let choices = json!([
            choice("stop", &said("whole")),
            choice("length", &said("cut o")),
            choice("stop", &said("")),
            choice("stop", &said("another")),
        ]);
        let (made, skipped) = lines(stored(json!([question]), &choices, &Value::Null));
        let answers: Vec<_> = made.iter().map(|line| line["messages"][1]["content"].clone()).collect();
        assert_eq!((answers, skipped), (vec![json!("whole"), json!("another")], 2));
        assert!(made.iter().all(|line| line.get("tools").is_none()));
        let begun = json!([question, {"role": "assistant", "content": "It is"}]);
        assert_eq!(lines(stored(begun, &json!([choice("stop", &said(" late."))]), &Value::Null)), (Vec::new(), 1));
    }
}
