//! What a download tells whoever shows it. Implemented by the command line, as a bar or as lines, and by the server's
//! start, as lines of its log.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use attune_support::format;

use crate::Error;

/// A download, as it is told to whoever shows it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the model.
    pub name: String,
    /// Commit that is fetched.
    pub commit: String,
    /// Files of the model.
    pub files: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes that are there already.
    pub there: u64,
}

/// Counts the bytes of all files together.
#[derive(Debug, Default)]
pub struct Tally {
    /// All bytes of the model.
    total: u64,
    /// Bytes of each file that are there.
    files: BTreeMap<String, u64>,
    /// When [`Tally::line`] last had something to say.
    told: Option<Instant>,
}

impl Tally {
    /// Notes how many bytes there will be.
    pub fn planned(&mut self, plan: &Plan) {
        self.total = plan.bytes;
        self.told.get_or_insert_with(Instant::now);
    }

    /// Notes that the first `bytes` of `file` are there, and returns the bytes of all files.
    pub fn reached(&mut self, file: &str, bytes: u64) -> u64 {
        match self.files.get_mut(file) {
            Some(known) => *known = bytes,
            None => drop(self.files.insert(file.to_owned(), bytes)),
        }
        self.files.values().sum()
    }

    /// Returns a line about all files together, if the last one is `pause` old.
    pub fn line(&mut self, pause: Duration) -> Option<String> {
        let told = self.told.filter(|told| told.elapsed() >= pause);
        told?;
        self.told = Some(Instant::now());
        let there: u64 = self.files.values().sum();
        Some(format!("{} of {}", format::bytes(there), format::bytes(self.total)))
    }
}

impl Plan {
    /// Returns the plan as a line for people.
    pub fn line(&self) -> String {
        let Self { name, commit, files, bytes, there } = self;
        let (bytes, there) = (format::bytes(*bytes), format::bytes(*there));
        format!("{name} at commit {commit}: {files} files, {bytes}, {there} of it here already")
    }
}

/// Shows how a download goes on.
pub trait Progress: Send + Sync {
    /// Tells what will be fetched. Called again when the parts of large weights are known.
    fn planned(&self, plan: &Plan);

    /// Tells that the first `bytes` of `file` are there: fewer than before if it has to be fetched anew.
    fn reached(&self, file: &str, bytes: u64);

    /// Tells that another process is fetching `file`.
    fn waiting(&self, file: &str);

    /// Tells that `file` is asked for again after `pause`.
    fn retrying(&self, file: &str, error: &Error, pause: Duration);

    /// Returns why the model with this `config.json` is of no use; it stops the download.
    fn refuse(&self, config: &Path) -> Option<String>;
}
