//! Makes files and other objects on the server, each once: what has the old id of one is there already.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Carry, KIND, MAX_NOTE, by_old_id};
use crate::cli::client::Failure;
use crate::cli::move_in::ledger::{Carried, OLD_ID};
use crate::{Error, Result};

/// A file to be made on the server.
pub(super) struct Upload<'a> {
    pub old_id: &'a str,
    pub filename: &'a str,
    pub purpose: &'a str,
    pub content: &'a [u8],
    /// Notes beside the old id.
    pub notes: Vec<(&'static str, String)>,
}

impl Carry<'_> {
    /// Keeps JSON as a file.
    pub(super) async fn history(&mut self, old_id: &str, kind: &str, history: &Value) -> Result<Option<String>> {
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
    pub(super) async fn upload(&self, upload: Upload<'_>) -> Result<Result<String, String>> {
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
    pub(super) async fn create(
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

    pub(super) fn done(
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

/// Returns the beginning of a text.
pub(super) fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}
