//! Secret settings: they are never shown, neither by `Debug` nor by an error, and may stand in files of their own, as
//! containers are given them. Called by [`Config::load`].

use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{Config, Error, Result};

/// The settings whose values no message may show, each with what to write. The files' names are among them, since a
/// secret may have been written where the name of its file belongs.
const SECRETS: [(&str, &str); 6] = [
    ("api_keys", "write a list of texts, [\"KEY\", \"KEY\"], or one text with commas between the keys"),
    ("api_keys_file", "write the path of a file, as a text"),
    ("database_url", "write one text, postgres://USER:PASSWORD@HOST:PORT/DATABASE"),
    ("database_url_file", "write the path of a file, as a text"),
    ("webhooks", "write tables, each with a url, a secret and, if you like, a list of events and an organization"),
    (
        "teachers",
        "write tables [teachers.NAME], each with a base_url, a model and, if you like, api_key_env or api_key_file, \
         requests_per_minute, price_per_million, max_tokens, max_tokens_field, prompt_overhead_tokens and \
         timeout_seconds",
    ),
];

/// A text that its `Debug` hides.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns the text, for who needs it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(secret)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// Reads keys from a list, or from one text with commas between them, which is how one key is usually written into the
/// environment.
pub(super) fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Secret>, D::Error> {
    struct Keys;

    impl<'de> Visitor<'de> for Keys {
        type Value = Vec<Secret>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of texts, or one text")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let keys: Vec<&str> = text.split(',').map(str::trim).collect();
            // These are of a list that lost a bracket or kept the quotes of a shell: nobody would ever send such keys.
            let is_odd = |c: char| c.is_whitespace() || matches!(c, '[' | ']' | '{' | '}' | '"' | '\'' | '`');
            if keys.iter().any(|key| key.contains(is_odd)) {
                return Err(E::custom("neither a list nor keys"));
            }
            Ok(keys.into_iter().map(Secret::from).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut keys = Vec::new();
            while let Some(key) = list.next_element()? {
                keys.push(key);
            }
            Ok(keys)
        }
    }

    deserializer.deserialize_any(Keys)
}

/// Words an error of a secret setting; `None` for any other error.
pub(super) fn describe(error: &figment::Error) -> Option<String> {
    let (name, wanted) = SECRETS.iter().find(|(name, _)| error.path.first().is_some_and(|first| first == name))?;
    let place = error.metadata.as_ref().map(|place| match &place.source {
        Some(source) => format!(" in {source}"),
        None => format!(" in {}", place.name),
    });
    Some(format!("{name}{}: {wanted} (what is there now is not shown)", place.unwrap_or_default()))
}

/// Removes the lines of the file that a message of TOML quotes: the secret may be among them.
pub(super) fn without_quotes(message: &str) -> String {
    let quotes = |line: &&str| line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit()).starts_with('|');
    message.lines().filter(|line| !quotes(line)).collect::<Vec<_>>().join("\n")
}

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

/// Reads the one secret in `file`.
pub(super) fn first_line(setting: &str, file: &Path) -> Result<Secret> {
    Ok(secrets(setting, file)?.remove(0))
}

/// Reads the secrets in `file`, at least one, each in a line.
fn secrets(setting: &str, file: &Path) -> Result<Vec<Secret>> {
    let fault = |reason: &dyn fmt::Display| Error(format!("{setting}: {}: {reason}", shown(file)));
    let text = std::fs::read_to_string(file).map_err(|error| fault(&error))?;
    let lines: Vec<Secret> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Secret::from).collect();
    if lines.is_empty() { Err(fault(&"the file is empty")) } else { Ok(lines) }
}

/// Returns the path for a message. A text that leads nowhere may be the secret itself, written in the wrong place.
fn shown(file: &Path) -> String {
    let is_folder = |parent: &Path| parent.parent().is_some() && parent.is_dir();
    if file.exists() || file.parent().is_some_and(is_folder) {
        return file.display().to_string();
    }
    "the path that is set (it is not shown, as it may be the secret itself)".into()
}
