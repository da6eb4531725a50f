//! The chat templates of a GGUF file: `tokenizer.chat_template`, and those with names, such as
//! `tokenizer.chat_template.tool_use`.

use std::collections::BTreeMap;

use super::metadata::{Metadata, Value};
use super::tokenizer;
use crate::Result;
use crate::chat_template::{ChatTemplate, TemplateSource};

/// Key of the template that renders chats for which there is no other.
const KEY: &str = "tokenizer.chat_template";

/// Compiles the templates of the file with these keys; `None` if it has none.
pub fn read(metadata: &Metadata) -> Result<Option<ChatTemplate>> {
    let sources = find(metadata)?.into_iter().map(|(name, text)| {
        let origin = metadata.origin().to_owned();
        (name, TemplateSource { text, origin })
    });
    ChatTemplate::new(sources.collect(), &tokenizer::special_tokens(metadata)?)
}

/// Returns the keys of templates with these texts by name.
pub(crate) fn keys(templates: BTreeMap<String, String>) -> Vec<(String, Value)> {
    let key = |name: &str| if name == "default" { KEY.to_owned() } else { format!("{KEY}.{name}") };
    let texts = templates.into_iter().map(|(name, text)| (key(&name), Value::from(text)));
    texts.collect()
}

/// Returns the templates' texts by name.
pub fn find(metadata: &Metadata) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    found.extend(metadata.text(KEY)?.map(|text| ("default".to_owned(), text.to_owned())));
    for (key, value) in metadata.iter() {
        let Some(name) = key.strip_prefix(KEY).and_then(|rest| rest.strip_prefix('.')) else { continue };
        let Value::Text(text) = value else {
            return Err(metadata.fault(&format!("the key `{key}` must be a text")));
        };
        found.entry(name.to_owned()).or_insert_with(|| text.clone());
    }
    Ok(found)
}
