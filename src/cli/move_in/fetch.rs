//! Copies an account into the folder: the lists first, page by page, then what stands behind each object. How far the
//! lists are is written after every page; of the rest, what is in the folder is there whole and is not asked for again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::account::{Account, Refusal};
use super::folder::{
    CHECKPOINTS, COMPLETIONS, Content, EVALS, EVENTS, FILES, Folder, ITEMS, JOBS, MESSAGES, MISSING, MODELS,
};
use crate::cli::output::note;
use crate::{Error, Result, format};

/// Items of a page.
const PAGE: &str = "100";
/// How often a list is begun anew because the item that a page ended with was deleted meanwhile.
const FRESH_STARTS: usize = 3;
/// Purposes of files whose contents the account never gives.
const SEALED: [&str; 2] = ["assistants", "user_data"];
/// The purpose of files with what was measured during a training.
const RESULTS: &str = "fine-tune-results";

/// What to copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Contents of files, events, checkpoints, runs of evals: everything behind the lists.
    pub(super) contents: bool,
    /// Stored chats.
    pub(super) completions: bool,
    /// Look at all lists again.
    pub(super) afresh: bool,
}

/// How far the copy is: `progress.json`.
#[derive(Debug)]
pub(super) struct Progress {
    path: PathBuf,
    state: Map<String, Value>,
}

impl Progress {
    /// Reads how far the folder is.
    pub(super) fn read(folder: &Folder) -> Result<Self> {
        let path = folder.root().join("progress.json");
        let state = folder.read(&path)?.and_then(|value| value.as_object().cloned()).unwrap_or_default();
        Ok(Self { path, state })
    }

    /// Returns when the lists were begun.
    pub(super) fn begun(&self) -> Option<&str> {
        self.state.get("begun").and_then(Value::as_str)
    }

    /// Returns lists that the account did not give, each with the reason.
    pub(super) fn refused(&self) -> Vec<(String, String)> {
        let refused = self.state.get("refused").and_then(Value::as_object).into_iter().flatten();
        refused.map(|(list, reason)| (list.clone(), reason.as_str().unwrap_or_default().to_owned())).collect()
    }

    fn is_complete(&self) -> bool {
        self.state.get("complete") == Some(&Value::Bool(true))
    }

    /// Forgets how far the lists are; what is in the folder stays there.
    fn begin_anew(&mut self, folder: &Folder) -> Result<()> {
        self.state = Map::new();
        self.state.insert("begun".into(), Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into());
        self.write(folder)
    }

    fn set(&mut self, folder: &Folder, field: &str, name: &str, value: Value) -> Result<()> {
        self.state.entry(field).or_insert_with(|| json!({}))[name] = value;
        self.write(folder)
    }

    fn write(&self, folder: &Folder) -> Result<()> {
        folder.write(&self.path, &Value::Object(self.state.clone()))
    }
}

/// Returns true if the folder holds everything.
pub(super) fn is_complete(folder: &Folder) -> Result<bool> {
    Ok(Progress::read(folder)?.is_complete())
}

/// Copies what is not in the folder yet.
pub(super) async fn fetch(folder: &Folder, account: &Account, extent: Extent) -> Result<()> {
    let mut progress = Progress::read(folder)?;
    // Lists are shown as they are now; and a copy that is complete is begun anew to find what is new.
    if !progress.state.contains_key("lists") || progress.is_complete() || extent.afresh || !extent.contents {
        progress.begin_anew(folder)?;
    }
    let mut fetch = Fetch { folder, account, progress, is_afresh: extent.afresh };
    fetch.models().await?;
    fetch.list(JOBS, &["fine_tuning", "jobs"], &[EVENTS, CHECKPOINTS]).await?;
    fetch.list(FILES, &["files"], &[MISSING]).await?;
    fetch.list(EVALS, &["evals"], &[]).await?;
    if extent.completions {
        fetch.list(COMPLETIONS, &["chat", "completions"], &[MESSAGES]).await?;
    }
    if !extent.contents {
        // Whoever copies later, reads the lists as they are then.
        fetch.progress.state.shift_remove("lists");
        return fetch.progress.write(folder);
    }
    fetch.jobs().await?;
    fetch.contents().await?;
    fetch.evals().await?;
    fetch.completions().await?;
    fetch.progress.state.insert("complete".into(), true.into());
    fetch.progress.write(folder)
}

struct Fetch<'a> {
    folder: &'a Folder,
    account: &'a Account,
    progress: Progress,
    /// Ask again for what was refused before.
    is_afresh: bool,
}

/// What a list of the account gave.
enum Listed {
    All(Vec<Value>),
    Refused(String),
}

impl Fetch<'_> {
    async fn models(&mut self) -> Result<()> {
        match self.account.page(&["models"], &[]).await {
            Ok(list) => self.folder.write(&self.folder.root().join(MODELS), &list),
            Err(refusal) => self.refused(MODELS, refusal),
        }
    }

    /// Copies a list, from where the run before ended on. An object that has changed loses its `parts`, to be fetched
    /// anew.
    async fn list(&mut self, kind: &str, path: &[&str], parts: &[&str]) -> Result<()> {
        let state = self.progress.state.get("lists").map(|lists| lists[kind].clone()).unwrap_or_default();
        if state["done"] == true {
            return Ok(());
        }
        let mut after = state["after"].as_str().map(str::to_owned);
        let (mut seen, mut ends, mut fresh_starts) = (BTreeSet::new(), BTreeSet::new(), 0);
        loop {
            let mut query = vec![("limit", PAGE)];
            query.extend(after.as_deref().map(|after| ("after", after)));
            let page = match self.account.page(path, &query).await {
                Ok(page) => page,
                // The item that the page before ended with is gone.
                Err(Refusal::No { status: 400 | 404, .. }) if after.is_some() && fresh_starts < FRESH_STARTS => {
                    (after, fresh_starts) = (None, fresh_starts + 1);
                    ends.clear();
                    note(format_args!("{kind}: the list has changed meanwhile, and is read from its beginning"));
                    continue;
                }
                Err(refusal) => return self.refused(kind, refusal),
            };
            let items = page["data"].as_array().map_or(&[] as &[Value], Vec::as_slice);
            for (id, item) in items.iter().filter_map(|item| Some((item["id"].as_str()?, item))) {
                // Pages overlap while objects come and go.
                if seen.insert(id.to_owned()) {
                    self.keep(kind, id, item, parts)?;
                }
            }
            let last = items.last().and_then(|item| item["id"].as_str()).map(str::to_owned);
            // Where all of a page was seen before, more may still follow; a page that ends as another one did goes round.
            if page["has_more"] != true || last.clone().is_none_or(|last| !ends.insert(last)) {
                note(format_args!("{kind}: {}", format::count(self.folder.number_of(kind)? as f64)));
                return self.progress.set(self.folder, "lists", kind, json!({"done": true}));
            }
            after = last;
            self.progress.set(self.folder, "lists", kind, json!({"after": after}))?;
        }
    }

    /// Writes an object of a list.
    fn keep(&self, kind: &str, id: &str, item: &Value, parts: &[&str]) -> Result<()> {
        let path = self.folder.place(kind, id, "");
        let before = self.folder.read(&path)?;
        if before.as_ref() == Some(item) {
            return Ok(());
        }
        if before.is_some() {
            for part in parts {
                remove(&self.folder.place(kind, id, part))?;
            }
        }
        self.folder.write(&path, item)
    }

    /// Reads all pages of a list that stands behind an object.
    async fn whole(&self, path: &[&str]) -> Result<Listed> {
        let (mut all, mut seen, mut ends, mut fresh_starts) = (Vec::new(), BTreeSet::new(), BTreeSet::new(), 0);
        let mut after: Option<String> = None;
        loop {
            let mut query = vec![("limit", PAGE)];
            query.extend(after.as_deref().map(|after| ("after", after)));
            let page = match self.account.page(path, &query).await {
                Ok(page) => page,
                Err(Refusal::No { status: 400 | 404, .. }) if after.is_some() && fresh_starts < FRESH_STARTS => {
                    (after, fresh_starts) = (None, fresh_starts + 1);
                    ends.clear();
                    continue;
                }
                Err(refusal) => return Ok(Listed::Refused(lasting(refusal)?)),
            };
            let items = page["data"].as_array().cloned().unwrap_or_default();
            let last = items.last().and_then(|item| item["id"].as_str()).map(str::to_owned);
            all.extend(items.into_iter().filter(|item| {
                let id = item["id"].as_str().map(str::to_owned);
                id.is_none_or(|id| seen.insert(id))
            }));
            if page["has_more"] != true || last.clone().is_none_or(|last| !ends.insert(last)) {
                return Ok(Listed::All(all));
            }
            after = last;
        }
    }

    /// Copies a list that stands behind an object, unless it is there.
    async fn part(&self, place: &Path, path: &[&str]) -> Result<()> {
        if place.exists() {
            let was_refused = self.folder.read(place)?.is_some_and(|list| !list["refused"].is_null());
            if !(was_refused && self.is_afresh) {
                return Ok(());
            }
        }
        let list = match self.whole(path).await? {
            Listed::All(data) => json!({"object": "list", "data": data}),
            Listed::Refused(reason) => json!({"object": "list", "data": [], "refused": reason}),
        };
        self.folder.write(place, &list)
    }

    async fn jobs(&self) -> Result<()> {
        for id in self.folder.ids(JOBS)? {
            self.part(&self.folder.place(JOBS, &id, EVENTS), &["fine_tuning", "jobs", &id, "events"]).await?;
            self.part(&self.folder.place(JOBS, &id, CHECKPOINTS), &["fine_tuning", "jobs", &id, "checkpoints"]).await?;
        }
        Ok(())
    }

    /// Copies what is in the files, those that jobs name and that no list has included.
    async fn contents(&self) -> Result<()> {
        let jobs = self.folder.jobs()?;
        let results: BTreeSet<&String> = jobs.iter().flat_map(|job| &job.result_files).collect();
        let of_jobs = jobs.iter().flat_map(|job| {
            job.training_file.iter().chain(&job.validation_file).chain(&job.result_files).map(|id| (id.clone(), ""))
        });
        let files = self.folder.files()?;
        let listed = files.iter().map(|file| (file.id.clone(), file.purpose.as_str()));
        let mut wanted: Vec<(String, &str)> = listed.chain(of_jobs).collect();
        let mut seen = BTreeSet::new();
        wanted.retain(|(id, _)| seen.insert(id.clone()));
        let (mut bytes, mut count) = (0_u64, 0_usize);
        for (id, purpose) in &wanted {
            match self.folder.content_of(id)? {
                Content::Here(_) => continue,
                Content::Missing(_) if !self.is_afresh => continue,
                Content::Missing(_) | Content::NotFetched => {}
            }
            if SEALED.contains(purpose) {
                self.missing(id, &format!("files for {purpose} cannot be downloaded"))?;
                continue;
            }
            match self.account.content(id).await {
                Ok(content) => {
                    let is_result = *purpose == RESULTS || results.contains(id);
                    let content = if is_result { plain(content) } else { content };
                    (bytes, count) = (bytes + content.len() as u64, count + 1);
                    self.folder.write_bytes(&self.folder.content(id), &content)?;
                    remove(&self.folder.place(FILES, id, MISSING))?;
                }
                Err(refusal) => self.missing(id, &lasting(refusal)?)?,
            }
        }
        note(format_args!("contents of {} files: {}", format::count(count as f64), format::bytes(bytes)));
        Ok(())
    }

    fn missing(&self, id: &str, reason: &str) -> Result<()> {
        self.folder.write(&self.folder.place(FILES, id, MISSING), &json!({"file": id, "reason": reason}))
    }

    async fn evals(&mut self) -> Result<()> {
        for eval in self.folder.ids(EVALS)? {
            let kind = Folder::runs(&eval);
            let runs = match self.whole(&["evals", &eval, "runs"]).await? {
                Listed::All(runs) => runs,
                Listed::Refused(reason) => {
                    self.progress.set(self.folder, "refused", &format!("runs of {eval}"), reason.into())?;
                    continue;
                }
            };
            for run in runs {
                let Some(id) = run["id"].as_str() else { continue };
                self.keep(&kind, id, &run, &[ITEMS])?;
                let path = ["evals", &eval, "runs", id, "output_items"];
                self.part(&self.folder.place(&kind, id, ITEMS), &path).await?;
            }
        }
        Ok(())
    }

    async fn completions(&self) -> Result<()> {
        for id in self.folder.ids(COMPLETIONS)? {
            let path = ["chat", "completions", &id, "messages"];
            self.part(&self.folder.place(COMPLETIONS, &id, MESSAGES), &path).await?;
        }
        Ok(())
    }

    /// Notes that a whole list cannot be read, such as that of a part of the platform that is off.
    fn refused(&mut self, list: &str, refusal: Refusal) -> Result<()> {
        let reason = lasting(refusal)?;
        note(format_args!("{list}: cannot be fetched: {reason}"));
        self.progress.set(self.folder, "refused", list, reason.into())
    }
}

/// Returns the reason of a refusal that lasts. Not that the account is away for a while, or that the key is wrong: with
/// these the run ends, to be started again.
fn lasting(refusal: Refusal) -> Result<String> {
    match refusal {
        Refusal::No { status, message } if status != 401 => Ok(message),
        refusal => Err(Error::from(refusal)),
    }
}

/// Returns a table of results as it is; where it comes in base64, what that holds.
fn plain(content: Vec<u8>) -> Vec<u8> {
    let has_columns =
        |content: &[u8]| content.split(|byte| *byte == b'\n').next().is_some_and(|head| head.contains(&b','));
    if has_columns(&content) {
        return content;
    }
    let text: Vec<u8> = content.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).ok().filter(|decoded| has_columns(decoded)).unwrap_or(content)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_in_base64_becomes_plain_and_a_plain_one_stays() {
        let table = b"step,train_loss\n1,0.5\n".to_vec();
        assert_eq!(plain(table.clone()), table);
        assert_eq!(plain(STANDARD.encode(&table).into_bytes()), table);
        let mut wrapped = STANDARD.encode(&table).into_bytes();
        wrapped.insert(8, b'\n');
        assert_eq!(plain(wrapped), table);
        for other in [&b"no table"[..], b"", b"AAAA"] {
            assert_eq!(plain(other.to_vec()), other);
        }
    }
}
