//! Copies the folder into the local server, through its HTTP API: files with their old ids as metadata, evals with the answers of
//! the old models as runs, stored chats as training files, and what the server has no place for, such as the events of jobs over
//! there, as files of JSON. What is there is found by its old id, so that nothing is copied twice, whatever the ledger says.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::folder::{Content, Folder, OldCompletion, OldEval, OldFile, OldRun};
use super::ledger::{Carried, Ledger, OLD_ID};
use super::local::Local;
use crate::cli::client::Failure;
use crate::cli::output::note;
use crate::{Error, Result, format};

/// Metadata of a file: what it holds, where that is not a copy of a file.
const KIND: &str = "openai_kind";
const PURPOSE: &str = "openai_purpose";
/// Most entries of an object's metadata, and the longest value.
const MAX_NOTES: usize = 16;
const MAX_NOTE: usize = 512;
/// Fields of an answer that are learnt, as a training file has them.
const LEARNT: [&str; 4] = ["role", "content", "tool_calls", "function_call"];

/// Copies what is not on the server yet.
pub(super) async fn carry(folder: &Folder, ledger: &mut Ledger, local: &Local) -> Result<()> {
    let there = There::read(local).await?;
    // What is still so is noted again.
    ledger.change(|carried| carried.problems.clear())?;
    let mut carry = Carry { folder, ledger, local, there };
    carry.files().await?;
    carry.jobs().await?;
    carry.evals().await?;
    carry.completions().await?;
    let Carried { files, jobs, evals, completions, .. } = carry.ledger.carried();
    note(format_args!(
        "on the server: {} files, the history of {} jobs, {} evals, stored chats of {} models",
        format::count(files.len() as f64),
        format::count(jobs.len() as f64),
        format::count(evals.len() as f64),
        format::count(completions.len() as f64)
    ));
    Ok(())
}

/// What is on the server of the old account: old ids to ids there, by the paths of the lists.
struct There {
    files: RefCell<BTreeMap<String, String>>,
    evals: RefCell<BTreeMap<String, String>>,
}

impl There {
    async fn read(local: &Local) -> Result<Self> {
        Ok(Self {
            files: RefCell::new(by_old_id(local, &["files"]).await?),
            evals: RefCell::new(by_old_id(local, &["evals"]).await?),
        })
    }
}

/// Reads a list's objects that have an old id.
async fn by_old_id(local: &Local, path: &[&str]) -> Result<BTreeMap<String, String>, Failure> {
    let objects = local.list(path).await?;
    let ids = objects.iter().filter_map(|object| {
        Some((object["metadata"][OLD_ID].as_str()?.to_owned(), object["id"].as_str()?.to_owned()))
    });
    Ok(ids.collect())
}

struct Carry<'a> {
    folder: &'a Folder,
    ledger: &'a mut Ledger,
    local: &'a Local,
    there: There,
}

/// A file to be made on the server.
struct Upload<'a> {
    old_id: &'a str,
    filename: &'a str,
    purpose: &'a str,
    content: &'a [u8],
    /// Notes beside the old id.
    notes: Vec<(&'static str, String)>,
}

impl Carry<'_> {
    /// Copies the contents of files. What the server does not take for the same purpose it keeps as plain data.
    async fn files(&mut self) -> Result<()> {
        let mut files = self.folder.files()?;
        // Files that the account does not list, but gives.
        for job in self.folder.jobs()? {
            let of_job = job.training_file.iter().chain(&job.validation_file).chain(&job.result_files);
            for id in of_job.filter(|id| !self.folder.has_file(id)) {
                let content = self.folder.content_of(id)?;
                let purpose = if job.result_files.contains(id) { "fine-tune-results" } else { "fine-tune" };
                let filename = if job.result_files.contains(id) { format!("{id}.csv") } else { format!("{id}.jsonl") };
                files.push(OldFile { id: id.clone(), filename, purpose: purpose.into(), content });
            }
        }
        for file in files {
            let path = match &file.content {
                Content::Here(path) => path,
                Content::Missing(reason) => {
                    self.ledger.problem(&file.id, format!("not copied: {reason}"))?;
                    continue;
                }
                Content::NotFetched => {
                    self.ledger.problem(&file.id, "not copied: its content is not in the folder")?;
                    continue;
                }
            };
            let known = self.there.files.borrow().get(&file.id).cloned();
            let id = if known.is_some() {
                known
            } else {
                let content = std::fs::read(path).map_err(Error::io(format!("read {}", path.display())))?;
                self.copy(&file, &content).await?
            };
            if let Some(id) = id {
                self.done(|carried| &mut carried.files, &file.id, id)?;
            }
        }
        Ok(())
    }

    async fn copy(&mut self, file: &OldFile, content: &[u8]) -> Result<Option<String>> {
        let purpose = match file.purpose.as_str() {
            purpose @ ("fine-tune" | "evals" | "vision") => purpose,
            _ => "user_data",
        };
        let filename = if file.filename.is_empty() { &file.id } else { &file.filename };
        let upload = |purpose| Upload {
            old_id: &file.id,
            filename,
            purpose,
            content,
            notes: vec![(PURPOSE, file.purpose.clone())],
        };
        match self.upload(upload(purpose)).await? {
            Ok(id) => Ok(Some(id)),
            Err(reason) if purpose != "user_data" => {
                self.ledger.problem(&file.id, format!("kept as plain data, not as {purpose}: {reason}"))?;
                Ok(self.upload(upload("user_data")).await?.ok())
            }
            Err(reason) => {
                self.ledger.problem(&file.id, format!("not copied: {reason}"))?;
                Ok(None)
            }
        }
    }

    /// Keeps each job with its events and checkpoints as a file.
    async fn jobs(&mut self) -> Result<()> {
        for job in self.folder.jobs()? {
            if !job.is_specialist() {
                let fault = job.fault.as_deref().map(|fault| format!(": {fault}")).unwrap_or_default();
                self.ledger.problem(&job.id, format!("kept as history: it is {}{fault}", job.status))?;
            }
            let history = json!({
                "job": job.object,
                "events": self.folder.events(&job.id)?,
                "checkpoints": job.checkpoints,
                "files": self.ids_of([&job.training_file, &job.validation_file].into_iter().flatten()
                    .chain(&job.result_files)),
            });
            if let Some(id) = self.history(&job.id, "fine_tuning.job", &history).await? {
                self.done(|carried| &mut carried.jobs, &job.id, id)?;
            }
        }
        Ok(())
    }

    /// Returns what became of files: their old ids to ids of the server, or null.
    fn ids_of<'i>(&self, files: impl Iterator<Item = &'i String>) -> Map<String, Value> {
        let carried = &self.ledger.carried().files;
        files.map(|id| (id.clone(), carried.get(id).cloned().map_or(Value::Null, Value::String))).collect()
    }

    async fn evals(&mut self) -> Result<()> {
        for eval in self.folder.evals()? {
            let runs: Vec<Value> =
                eval.runs.iter().map(|run| json!({"run": run.object, "output_items": run.items})).collect();
            let history = json!({"eval": eval.object, "runs": runs});
            if let Some(id) = self.history(&eval.id, "eval", &history).await? {
                self.done(|carried| &mut carried.eval_histories, &eval.id, id)?;
            }
            let Some(id) = self.eval(&eval).await? else { continue };
            self.done(|carried| &mut carried.evals, &eval.id, id.clone())?;
            let there = RefCell::new(by_old_id(self.local, &["evals", &id, "runs"]).await?);
            for run in &eval.runs {
                self.run(&id, run, &there).await?;
            }
        }
        Ok(())
    }

    /// Makes an eval with the same criteria; `None` if the server does not take them.
    async fn eval(&mut self, eval: &OldEval) -> Result<Option<String>> {
        let known = self.there.evals.borrow().get(&eval.id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let body = match eval_request(eval) {
            Ok(body) => body,
            Err(reason) => {
                self.ledger.problem(&eval.id, format!("kept as history: {reason}"))?;
                return Ok(None);
            }
        };
        let there = &self.there.evals;
        let made = self.create(&["evals"], &body, &eval.id, there).await?;
        match made {
            Ok(id) => Ok(Some(id)),
            Err(reason) => {
                self.ledger.problem(&eval.id, format!("kept as history: {reason}"))?;
                Ok(None)
            }
        }
    }

    /// Lets the server judge the answers that the old model gave in a run.
    async fn run(&mut self, eval: &str, run: &OldRun, there: &RefCell<BTreeMap<String, String>>) -> Result<()> {
        let known = there.borrow().get(&run.id).cloned();
        if let Some(id) = known {
            return self.done(|carried| &mut carried.runs, &run.id, id);
        }
        let lines: Vec<Value> = run.items.iter().filter_map(given_line).collect();
        if lines.len() < run.items.len() || lines.is_empty() {
            let (lines, items) = (format::count(lines.len() as f64), format::count(run.items.len() as f64));
            self.ledger
                .problem(&run.id, format!("{lines} of {items} items have an answer of text to be judged anew"))?;
        }
        if lines.is_empty() {
            return Ok(());
        }
        let model = run.object["model"].as_str().unwrap_or("the old model");
        let name = run.object["name"].as_str().unwrap_or_default();
        let mut content = Vec::new();
        for line in &lines {
            content.extend_from_slice(line.to_string().as_bytes());
            content.push(b'\n');
        }
        let data_id = format!("{}:answers", run.id);
        let upload = Upload {
            old_id: &data_id,
            filename: &format!("{}.jsonl", run.id),
            purpose: "evals",
            content: &content,
            notes: vec![(KIND, "eval.run.output_items".into())],
        };
        let file = match self.upload(upload).await? {
            Ok(file) => file,
            Err(reason) => return self.ledger.problem(&run.id, format!("not judged anew: {reason}")),
        };
        let body = json!({
            "name": cut(&format!("{name} (answers of {model})"), MAX_NOTE),
            "metadata": with_old_id(&run.object["metadata"], &run.id),
            "data_source": {"type": "jsonl", "source": {"type": "file_id", "id": file}},
        });
        match self.create(&["evals", eval, "runs"], &body, &run.id, there).await? {
            Ok(id) => self.done(|carried| &mut carried.runs, &run.id, id),
            Err(reason) => self.ledger.problem(&run.id, format!("not judged anew: {reason}")),
        }
    }

    /// Makes a training file of the stored chats of each model, and keeps the chats as they were.
    async fn completions(&mut self) -> Result<()> {
        let mut models: BTreeMap<String, Vec<OldCompletion>> = BTreeMap::new();
        for chat in self.folder.completions()? {
            models.entry(chat.object["model"].as_str().unwrap_or("unknown").to_owned()).or_default().push(chat);
        }
        for (model, chats) in models {
            let (mut lines, mut kept) = (Vec::new(), Vec::new());
            for chat in &chats {
                let whole = json!({"completion": chat.object, "messages": chat.messages});
                kept.extend_from_slice(format!("{whole}\n").as_bytes());
                match training_line(chat) {
                    Ok(line) => lines.extend_from_slice(format!("{line}\n").as_bytes()),
                    Err(reason) => {
                        self.ledger.problem(&chat.id, format!("not in the training file of stored chats: {reason}"))?;
                    }
                }
            }
            // With what it is made of in its name: more chats make another file.
            let digest = digest(&kept);
            let name = cut(&model, 200);
            for (part, kind, purpose, content) in [
                ("", "chat.completions", "user_data", &kept),
                (":training", "chat.completions.training", "fine-tune", &lines),
            ] {
                if content.is_empty() {
                    continue;
                }
                let upload = Upload {
                    old_id: &format!("stored:{name}:{digest}{part}"),
                    filename: &format!("stored-{}{}.jsonl", name.replace(':', "-"), part.replace(':', "-")),
                    purpose,
                    content,
                    notes: vec![(KIND, kind.into()), ("openai_model", cut(&model, MAX_NOTE))],
                };
                match self.upload(upload).await? {
                    Ok(id) if purpose == "fine-tune" => self.done(|carried| &mut carried.completions, &model, id)?,
                    Ok(_) => {}
                    Err(reason) => self.ledger.problem(&model, format!("its stored chats are not copied: {reason}"))?,
                }
            }
        }
        Ok(())
    }

    /// Keeps JSON as a file.
    async fn history(&mut self, old_id: &str, kind: &str, history: &Value) -> Result<Option<String>> {
        let content = format!("{history:#}\n");
        let upload = Upload {
            old_id,
            filename: &format!("{old_id}.json"),
            purpose: "user_data",
            content: content.as_bytes(),
            notes: vec![(KIND, kind.into())],
        };
        match self.upload(upload).await? {
            Ok(id) => Ok(Some(id)),
            Err(reason) => {
                self.ledger.problem(old_id, format!("its history is not copied: {reason}"))?;
                Ok(None)
            }
        }
    }

    /// Uploads a file, unless the server has it; the inner error is the server's refusal.
    async fn upload(&self, upload: Upload<'_>) -> Result<Result<String, String>> {
        let there = &self.there.files;
        let known = there.borrow().get(upload.old_id).cloned();
        if let Some(id) = known {
            return Ok(Ok(id));
        }
        let mut notes = Map::new();
        notes.insert(OLD_ID.into(), cut(upload.old_id, MAX_NOTE).into());
        notes.extend(upload.notes.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value))));
        let file = (upload.filename, upload.content);
        let is_first = Cell::new(true);
        let find = async || self.find(&is_first, &["files"], upload.old_id, there).await;
        let made = self.local.upload(file, upload.purpose, &notes, find).await;
        settle(made, upload.old_id, there)
    }

    /// Makes an object, unless the server has it; the inner error is the server's refusal.
    async fn create(
        &self,
        path: &[&str],
        body: &Value,
        old_id: &str,
        there: &RefCell<BTreeMap<String, String>>,
    ) -> Result<Result<String, String>> {
        let is_first = Cell::new(true);
        let find = async || self.find(&is_first, path, old_id, there).await;
        let made = self.local.create(path, body, find).await;
        settle(made, old_id, there)
    }

    /// Tells attempts to make something apart: before the second and later ones, whose answers may have been lost, the list
    /// is read again.
    async fn find(
        &self,
        is_first: &Cell<bool>,
        path: &[&str],
        old_id: &str,
        there: &RefCell<BTreeMap<String, String>>,
    ) -> Result<Option<Value>, Failure> {
        if is_first.replace(false) {
            return Ok(None);
        }
        let now = by_old_id(self.local, path).await?;
        there.borrow_mut().extend(now);
        Ok(there.borrow().get(old_id).map(|id| json!({"id": id})))
    }

    fn done(
        &mut self,
        map: impl Fn(&mut Carried) -> &mut BTreeMap<String, String>,
        old: &str,
        new: String,
    ) -> Result<()> {
        self.ledger.note(map, old, new)
    }
}

/// Reads the answer to what was made: its id, or why the server does not take it.
fn settle(
    made: Result<Value, Failure>,
    old_id: &str,
    there: &RefCell<BTreeMap<String, String>>,
) -> Result<Result<String, String>> {
    match made {
        Ok(object) => {
            let id = object["id"]
                .as_str()
                .ok_or_else(|| Error::Setup("the server's answer has no id: is it Attune?".into()))?;
            there.borrow_mut().insert(old_id.to_owned(), id.to_owned());
            Ok(Ok(id.to_owned()))
        }
        Err(Failure::Refused { message, is_at_fault: true, .. }) => Ok(Err(message)),
        Err(failure) => Err(failure.into()),
    }
}

/// Returns the request for an eval like the old one.
fn eval_request(eval: &OldEval) -> Result<Value, String> {
    let config = &eval.object["data_source_config"];
    let kind = config["type"].as_str().unwrap_or_default();
    if kind != "custom" {
        return Err(format!("its data source has the type {kind}"));
    }
    // What was sent as `item_schema` is shown inside of `schema`.
    let properties = &config["schema"]["properties"];
    let schema = if config["item_schema"].is_object() { &config["item_schema"] } else { &properties["item"] };
    let mut criteria = eval.object["testing_criteria"].clone();
    for criterion in criteria.as_array_mut().into_iter().flatten() {
        if let Some(fields) = criterion.as_object_mut() {
            fields.shift_remove("id");
        }
    }
    Ok(json!({
        "name": eval.name,
        "data_source_config": {
            "type": "custom",
            "item_schema": schema,
            "include_sample_schema": properties["sample"].is_object(),
        },
        "testing_criteria": criteria,
        "metadata": with_old_id(&eval.object["metadata"], &eval.id),
    }))
}

/// Returns the metadata with the old id; of sixteen entries the last gives way.
fn with_old_id(metadata: &Value, id: &str) -> Map<String, Value> {
    let mut notes = metadata.as_object().cloned().unwrap_or_default();
    notes.retain(|name, value| name != OLD_ID && value.is_string());
    let surplus: Vec<String> = notes.keys().skip(MAX_NOTES - 1).cloned().collect();
    for name in surplus {
        notes.shift_remove(&name);
    }
    notes.insert(OLD_ID.into(), id.into());
    notes
}

/// Returns an item with the answer that it was given, for a run that asks nobody; `None` without an answer of text.
fn given_line(item: &Value) -> Option<Value> {
    let answers = item["sample"]["output"].as_array()?;
    let text = answers.iter().rev().find_map(|message| message["content"].as_str())?;
    item["datasource_item"]
        .is_object()
        .then(|| json!({"item": item["datasource_item"], "sample": {"output_text": text}}))
}

/// Returns a line of a training file of a stored chat; an error says why there is none.
fn training_line(chat: &OldCompletion) -> Result<Value, String> {
    let mut messages = Vec::new();
    for message in &chat.messages {
        let mut kept = Map::new();
        for name in ["role", "content", "name", "tool_calls", "tool_call_id", "function_call"] {
            if !message[name].is_null() {
                kept.insert(name.into(), message[name].clone());
            }
        }
        if let Some(parts) = message["content_parts"].as_array().filter(|_| message["content"].is_null()) {
            if let Some(part) = parts.iter().find(|part| part["type"] != "text") {
                return Err(format!("a message has a part of the type {}", part["type"]));
            }
            kept.insert("content".into(), parts.clone().into());
        }
        messages.push(Value::Object(kept));
    }
    if messages.is_empty() {
        return Err("what was asked is not known".into());
    }
    let choice = &chat.object["choices"][0];
    if !matches!(choice["finish_reason"].as_str(), Some("stop" | "tool_calls" | "function_call")) {
        return Err("the answer was not ended".into());
    }
    let mut answer = choice["message"].as_object().cloned().ok_or("there is no answer")?;
    answer.retain(|name, value| LEARNT.contains(&name.as_str()) && !value.is_null());
    messages.push(Value::Object(answer));
    let mut line = json!({"messages": messages});
    if chat.object["tools"].as_array().is_some_and(|tools| !tools.is_empty()) {
        line["tools"] = chat.object["tools"].clone();
    }
    Ok(line)
}

/// Returns the beginning of the checksum of `bytes`.
fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).iter().take(6).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(object: Value, messages: &Value) -> OldCompletion {
        OldCompletion { id: "chatcmpl-1".into(), object, messages: messages.as_array().cloned().unwrap_or_default() }
    }

    fn answered(message: &Value, finish_reason: &str) -> Value {
        json!({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], "tools": null})
    }

    #[test]
    fn a_stored_chat_becomes_a_line_without_what_is_not_learnt() {
        let asked = json!([
            {"id": "1-0", "role": "user", "content": null, "name": null, "content_parts": [{"type": "text", "text": "hi"}]},
        ]);
        let said = json!({"role": "assistant", "content": "hello", "refusal": null, "annotations": []});
        let line = training_line(&chat(answered(&said, "stop"), &asked)).expect("a line");
        let expected = json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "hello"},
        ]});
        assert_eq!(line, expected);
        assert!(training_line(&chat(answered(&said, "length"), &asked)).is_err());
        assert!(training_line(&chat(answered(&said, "stop"), &json!([]))).is_err());
        let image = json!([{"role": "user", "content": null, "content_parts": [{"type": "image_url"}]}]);
        let fault = training_line(&chat(answered(&said, "stop"), &image)).expect_err("a fault");
        assert!(fault.contains("image_url"), "{fault}");
    }

    #[test]
    fn an_eval_is_asked_for_in_the_form_that_is_sent() {
        let object = json!({
            "id": "eval_1", "name": "n", "metadata": {"team": "a"},
            "data_source_config": {"type": "custom", "schema": {"properties": {"item": {"type": "object"}, "sample": {}}}},
            "testing_criteria": [{"type": "string_check", "name": "c", "id": "c-1"}],
        });
        let eval = |object: Value| OldEval { id: "eval_1".into(), name: "n".into(), runs: Vec::new(), object };
        let request = eval_request(&eval(object)).expect("a request");
        assert_eq!(request["data_source_config"]["item_schema"], json!({"type": "object"}));
        assert_eq!(request["data_source_config"]["include_sample_schema"], true);
        assert_eq!(request["testing_criteria"], json!([{"type": "string_check", "name": "c"}]));
        assert_eq!(request["metadata"], json!({"team": "a", OLD_ID: "eval_1"}));
        let logs = json!({"id": "eval_1", "data_source_config": {"type": "logs"}});
        assert!(eval_request(&eval(logs)).is_err_and(|reason| reason.contains("logs")));
    }

    #[test]
    fn the_old_id_has_a_place_among_sixteen_notes() {
        let full: Map<String, Value> = (0..MAX_NOTES).map(|n| (format!("n{n}"), "v".into())).collect();
        let notes = with_old_id(&Value::Object(full), "eval_1");
        assert_eq!((notes.len(), &notes[OLD_ID]), (MAX_NOTES, &json!("eval_1")));
    }
}
