//! Copies the folder into the local server, through its HTTP API: files with their old ids as metadata, evals with the
//! answers of the old models as runs, stored chats as training files, and what the server has no place for, such as the
//! events of jobs over there, as files of JSON. What is there is found by its old id, so that nothing is copied twice,
//! whatever the ledger says.
//!
//! [`evals`] and [`chats`] copy these, [`made`] makes each thing once, [`forms`] has the forms that the server takes.

mod chats;
mod evals;
mod forms;
mod made;

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use self::made::Upload;
use super::folder::{Content, Folder, OldFile};
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
}
