//! What of the old account is where on the local server: `carried.json` in the folder, written after every step, so
//! that a run that was killed goes on with what is left. Holds ids and names only, no contents and no keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::folder::{Folder, write_whole};
use crate::{Error, Result};

/// The metadata under which the local server keeps an old id.
pub(super) const OLD_ID: &str = "openai_id";

/// Ids over there with what they became.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Carried {
    /// Old file to new file.
    pub(super) files: BTreeMap<String, String>,
    /// Old job to the new file that holds its history: settings, events, checkpoints' metrics.
    pub(super) jobs: BTreeMap<String, String>,
    /// Old eval to new eval.
    pub(super) evals: BTreeMap<String, String>,
    /// Old run of an eval to the new run that judges the answers of the old model.
    pub(super) runs: BTreeMap<String, String>,
    /// Old eval to the new file that holds its history: runs and scores.
    pub(super) eval_histories: BTreeMap<String, String>,
    /// Old model to the new training file of the chats that were stored of it.
    pub(super) completions: BTreeMap<String, String>,
    /// Old job to the model that takes its place.
    pub(super) specialists: BTreeMap<String, Specialist>,
    /// Old id to the reason why it, or a part of it, could not be carried over.
    pub(super) problems: BTreeMap<String, String>,
}

/// A model that takes the place of an old one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Specialist {
    /// The old model's name.
    pub(super) old_model: String,
    /// The local base model.
    pub(super) base: String,
    /// The local job.
    pub(super) new_job: Option<String>,
    /// The local model.
    pub(super) new_model: Option<String>,
    /// The report, relative to the folder.
    pub(super) report: Option<PathBuf>,
}

/// The ledger in a folder.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    carried: Carried,
}

impl Ledger {
    /// Reads the ledger of `folder`; an empty one if there is none. It may be older than the server that it is used
    /// with, or of another one: whoever takes an id of it asks the server whether it has it.
    pub(super) fn open(folder: &Folder) -> Result<Self> {
        let path = folder.root().join("carried.json");
        let carried = match folder.read(&path)? {
            Some(value) => serde_json::from_value(value)
                .map_err(|error| Error::Setup(format!("{} is not a ledger: {error}", path.display())))?,
            None => Carried::default(),
        };
        Ok(Self { path, carried })
    }

    /// Returns what was carried so far.
    pub(super) fn carried(&self) -> &Carried {
        &self.carried
    }

    /// Changes the ledger, and writes it before it returns.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Carried)) -> Result<()> {
        change(&mut self.carried);
        let text = serde_json::to_string_pretty(&self.carried);
        let text = text.map_err(|error| Error::Internal(format!("write a ledger as JSON: {error}")))?;
        write_whole(&self.path, (text + "\n").as_bytes()).map_err(Error::io(format!("write {}", self.path.display())))
    }

    /// Notes what an old id has become in one of the lists.
    pub(super) fn note(
        &mut self,
        list: impl Fn(&mut Carried) -> &mut BTreeMap<String, String>,
        old: &str,
        new: String,
    ) -> Result<()> {
        // Most of what a later run notes is there.
        if list(&mut self.carried).get(old) == Some(&new) {
            return Ok(());
        }
        self.change(|carried| {
            list(carried).insert(old.to_owned(), new);
        })
    }

    /// Notes why something could not be carried over, or was so in part only.
    pub(super) fn problem(&mut self, id: &str, reason: impl Into<String>) -> Result<()> {
        let reason = reason.into();
        if self.carried.problems.get(id) == Some(&reason) {
            return Ok(());
        }
        self.change(|carried| {
            carried.problems.insert(id.to_owned(), reason);
        })
    }
}
