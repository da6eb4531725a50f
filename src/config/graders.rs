//! Graders whose code is run: the settings under `graders`. `sandbox` runs it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// An interpreter and a library or two need this much address space, in MiB.
const LEAST_MEMORY: u64 = 64;
/// Longest time of one item, in seconds, and most memory and disk, in MiB, that can be meant.
const MAX_SECONDS: u64 = 3600;
const MAX_MIB: u64 = 1 << 20;
/// Interpreters at a time.
const AT_ONCE: std::ops::RangeInclusive<usize> = 2..=64;

/// Who runs the code of graders of the type `python`, and what it may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Graders {
    /// The interpreter, which may be one of a virtual environment; `None`: such graders are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub python: Option<PathBuf>,
    /// Further files and folders that their code may read.
    pub folders: Vec<PathBuf>,
    /// Seconds for one item, and for loading a source.
    pub seconds: u64,
    /// Address space of an interpreter, in MiB.
    pub memory_mib: u64,
    /// What an interpreter may keep in its folder, in MiB.
    pub disk_mib: u64,
    /// Interpreters at a time; an organisation has half of them.
    pub at_once: usize,
}

impl Default for Graders {
    fn default() -> Self {
        Self { python: None, folders: Vec::new(), seconds: 120, memory_mib: 2048, disk_mib: 1024, at_once: 2 }
    }
}

impl Graders {
    /// Refuses what cannot work.
    pub(super) fn check(&self) -> Result<()> {
        let fault = |what: String| Err(Error(format!("graders: {what}")));
        if !(1..=MAX_SECONDS).contains(&self.seconds) {
            return fault(format!("seconds must be 1 to {MAX_SECONDS}"));
        }
        if !(LEAST_MEMORY..=MAX_MIB).contains(&self.memory_mib) {
            return fault(format!("memory_mib must be {LEAST_MEMORY} to {MAX_MIB}"));
        }
        if !(1..=MAX_MIB).contains(&self.disk_mib) {
            return fault(format!("disk_mib must be 1 to {MAX_MIB}"));
        }
        if !AT_ONCE.contains(&self.at_once) {
            return fault(format!("at_once must be {} to {}", AT_ONCE.start(), AT_ONCE.end()));
        }
        if self.python.is_none() && !self.folders.is_empty() {
            return fault("folders are for the code of graders: set python as well".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named() {
        let fine = Graders { python: Some("/usr/bin/python3".into()), ..Graders::default() };
        assert!(Graders::default().check().is_ok() && fine.check().is_ok());
        for (wrong, name) in [
            (Graders { seconds: 0, ..fine.clone() }, "seconds"),
            (Graders { seconds: 3601, ..fine.clone() }, "seconds"),
            (Graders { memory_mib: 63, ..fine.clone() }, "memory_mib"),
            (Graders { disk_mib: 0, ..fine.clone() }, "disk_mib"),
            (Graders { at_once: 1, ..fine.clone() }, "at_once"),
            (Graders { at_once: 65, ..fine.clone() }, "at_once"),
            (Graders { folders: vec!["/opt".into()], ..Graders::default() }, "python"),
        ] {
            let said = wrong.check().expect_err(name).to_string();
            assert!(said.contains(name), "{said}");
        }
    }
}
