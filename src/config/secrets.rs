//! Settings that stand in files of their own, as containers are given their secrets. Called by [`Config::load`].

use std::path::Path;

use super::{Config, Error, Result};

impl Config {
    /// Takes the secrets that stand in files of their own.
    pub(super) fn with_secrets(mut self) -> Result<Self> {
        let twice = |name: &str| Error(format!("{name} and {name}_file are both set: remove one"));
        if let Some(file) = &self.database_url_file {
            if self.database_url.is_some() {
                return Err(twice("database_url"));
            }
            self.database_url = Some(secrets("database_url_file", file)?.remove(0));
        }
        if let Some(file) = &self.api_keys_file {
            if !self.api_keys.is_empty() {
                return Err(twice("api_keys"));
            }
            self.api_keys = secrets("api_keys_file", file)?;
        }
        Ok(self)
    }
}

/// Reads the secrets in `file`, at least one, each in a line.
fn secrets(setting: &str, file: &Path) -> Result<Vec<String>> {
    let fault = |reason: &dyn std::fmt::Display| Error(format!("{setting}: {}: {reason}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| fault(&error))?;
    let lines: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if lines.is_empty() { Err(fault(&"the file is empty")) } else { Ok(lines) }
}
