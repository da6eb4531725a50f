//! The texts of a folder's chat templates, found where transformers finds them. Those of a GGUF file are found by
//! [`gguf::template`](crate::gguf::template).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::tokenizer::read_json;
use crate::{Error, Result};

/// A template's text, and the file it came from for messages about it.
pub(crate) struct Source {
    pub(crate) text: String,
    pub(crate) origin: String,
}

/// Finds the templates by name; one without a name is called `default`. The files `chat_template.jinja` and
/// `additional_chat_templates/NAME.jinja` win over `chat_template` of `tokenizer_config.json`, which is a text, a list
/// of named ones or a dictionary of them; `chat_template.json`, which processors have, is read if there is nothing
/// else.
pub(super) fn find(folder: &Path) -> Result<BTreeMap<String, Source>> {
    let found = from_files(folder)?;
    if !found.is_empty() {
        return Ok(found);
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let file = folder.join(name);
        let Some(config) = read_json(&file)? else { continue };
        let found = from_config(&config["chat_template"], &file)?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(BTreeMap::new())
}

fn from_files(folder: &Path) -> Result<BTreeMap<String, Source>> {
    let mut found = BTreeMap::new();
    let mut add = |name: &str, file: &Path| {
        let text = std::fs::read_to_string(file).map_err(Error::io(format!("read {}", file.display())))?;
        found.insert(name.to_owned(), Source { text, origin: file.display().to_string() });
        Ok::<_, Error>(())
    };
    let file = folder.join("chat_template.jinja");
    if file.is_file() {
        add("default", &file)?;
    }
    let additional = folder.join("additional_chat_templates");
    if additional.is_dir() {
        let listing = || Error::io(format!("list {}", additional.display()));
        for entry in std::fs::read_dir(&additional).map_err(listing())? {
            let file = entry.map_err(listing())?.path();
            let name = file.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jinja"));
            if let Some(name) = name {
                add(name, &file)?;
            }
        }
    }
    Ok(found)
}

fn from_config(value: &Value, file: &Path) -> Result<BTreeMap<String, Source>> {
    let fault = |message: &str| Error::Setup(format!("{}: chat_template {message}", file.display()));
    let named: Vec<(&str, &Value)> = match value {
        Value::Null => Vec::new(),
        Value::String(_) => vec![("default", value)],
        Value::Object(named) => named.iter().map(|(name, text)| (name.as_str(), text)).collect(),
        Value::Array(entries) => {
            let named = entries.iter().map(|entry| Some((entry["name"].as_str()?, &entry["template"])));
            named.collect::<Option<_>>().ok_or_else(|| fault("is a list without `name` and `template`"))?
        }
        _ => return Err(fault("is neither text nor a list")),
    };
    let sources = named.into_iter().map(|(name, text)| {
        let text = text.as_str().ok_or_else(|| fault(&format!("`{name}` is no text")))?;
        Ok((name.to_owned(), Source { text: text.to_owned(), origin: file.display().to_string() }))
    });
    sources.collect()
}
