//! Copies the folder into the local server, through its HTTP API: files with their old ids as metadata, evals with the
//! answers of the old models as runs, stored chats as training files, and what the server has no place for, such as the
//! events of jobs over there, as files of JSON. What is there is found by its old id, so that nothing is copied twice,
//! whatever the ledger says.

mod forms;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use self::forms::{eval_request, given_line, is_of_stored_answers, training_line, with_old_id};
use super::folder::{Content, Folder, OldCompletion, OldEval, OldFile, OldRun};
use super::ledger::{Carried, Ledger, OLD_ID};
use super::local::Local;
use crate::cli::client::Failure;
use crate::cli::output::note;
use crate::graders::item_schema::fault;
use crate::{Error, Result, format};

/// Metadata of a file: what it holds, where that is not a copy of a file.
const KIND: &str = "openai_kind";
const PURPOSE: &str = "openai_purpose";
/// Most entries of an object's metadata, and the longest value.
const MAX_NOTES: usize = 16;
const MAX_NOTE: usize = 512;

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

/// The answers of a run that this server can judge.
struct Answers {
    /// Items with their answers.
    lines: Vec<Value>,
    /// Why some, or all, are not among them.
    problem: Option<String>,
}

impl Answers {
    /// Takes the answers of text to items that follow the eval's `schema`: one that does not would fail the whole run.
    fn of(run: &OldRun, is_stored: bool, schema: &Value) -> Self {
        let (mut lines, mut of_text, mut unfit) = (Vec::new(), 0, None);
        for line in run.items.iter().filter_map(|item| given_line(item, is_stored)) {
            of_text += 1;
            match fault(schema, &line["item"], "item") {
                None => lines.push(line),
                Some(fault) => unfit = unfit.or(Some(fault)),
            }
        }
        let is_whole = lines.len() == run.items.len() && !lines.is_empty();
        let problem = (!is_whole).then(|| {
            let [all, of_text, fit] = [run.items.len(), of_text, lines.len()].map(|number| format::count(number as f64));
            match unfit {
                None => format!("{of_text} of {all} items have an answer of text to be judged anew"),
                Some(fault) => format!(
                    "{of_text} of {all} items have an answer of text, and {fit} the form of the eval's items, to be \
                     judged anew: {fault}"
                ),
            }
        });
        Self { lines, problem }
    }
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
            let made = self.local.get(&["evals", &id], &[]).await?;
            let (schema, is_stored) = (&made["data_source_config"]["schema"]["properties"]["item"], is_of_stored_answers(&eval));
            for run in &eval.runs {
                let answers = Answers::of(run, is_stored, schema);
                self.run(&id, run, answers, &there).await?;
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
    async fn run(
        &mut self,
        eval: &str,
        run: &OldRun,
        Answers { lines, problem }: Answers,
        there: &RefCell<BTreeMap<String, String>>,
    ) -> Result<()> {
        if let Some(problem) = problem {
            self.ledger.problem(&run.id, problem)?;
        }
        let known = there.borrow().get(&run.id).cloned();
        if let Some(id) = known {
            return self.done(|carried| &mut carried.runs, &run.id, id);
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

    /// Tells attempts to make something apart: before the second and later ones, whose answers may have been lost, the
    /// list is read again.
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

/// Returns the beginning of the checksum of `bytes`.
fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).iter().take(6).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}
