//! The fields of one grader, each read by its type; a fault names the field.

use serde_json::{Map, Value};

use super::Fault;
use crate::graders::template::Template;

/// Fields of every grader. `id` is what the server gave a criterion that comes back.
const SHARED: [&str; 4] = ["type", "name", "pass_threshold", "id"];
/// Longest text of a template, in bytes.
const MAX_TEMPLATE: usize = 256 << 10;

/// The fields of an object within a grader.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    parent: String,
}

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value, parent: &str) -> Result<Self, Fault> {
        match value.as_object() {
            Some(object) => Ok(Self { object, parent: parent.to_owned() }),
            None => Err(Fault { param: parent.to_owned(), message: "A grader must be an object.".into() }),
        }
    }

    /// Returns the path of a field from the outermost grader.
    pub(super) fn path(&self, field: &str) -> String {
        if self.parent.is_empty() { field.to_owned() } else { format!("{}.{field}", self.parent) }
    }

    pub(super) fn refusal(&self, field: &str, message: &str) -> Fault {
        Fault { param: self.path(field), message: message.to_owned() }
    }

    /// Refuses a field that a grader of the type does not have, unless it is null.
    pub(super) fn check_known(&self, kind: &str, own: &[&str]) -> Result<(), Fault> {
        let known = |name: &str| SHARED.contains(&name) || own.contains(&name);
        match self.object.iter().find(|(name, value)| !value.is_null() && !known(name)) {
            None => Ok(()),
            Some((name, _)) => Err(self
                .refusal(name, &format!("'{name}' is not a field of a {kind} grader, which has {}.", own.join(", ")))),
        }
    }

    /// Returns the field's value; null is as if absent.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn required(&self, field: &str) -> Result<&'a Value, Fault> {
        self.get(field)
            .ok_or_else(|| self.refusal(field, &format!("Missing required parameter: '{}'.", self.path(field))))
    }

    pub(super) fn optional_text(&self, field: &str) -> Result<Option<&'a str>, Fault> {
        let text =
            |value: &'a Value| value.as_str().ok_or_else(|| self.refusal(field, &format!("'{field}' must be a text.")));
        self.get(field).map(text).transpose()
    }

    pub(super) fn text(&self, field: &str) -> Result<&'a str, Fault> {
        self.required(field)?;
        Ok(self.optional_text(field)?.unwrap_or_default())
    }

    pub(super) fn number(&self, field: &str) -> Result<Option<f64>, Fault> {
        let number =
            |value: &Value| value.as_f64().ok_or_else(|| self.refusal(field, &format!("'{field}' must be a number.")));
        self.get(field).map(number).transpose()
    }

    /// Returns a list of at least one text.
    pub(super) fn texts(&self, field: &str) -> Result<Vec<String>, Fault> {
        let texts: Option<Vec<String>> = self
            .required(field)?
            .as_array()
            .and_then(|texts| texts.iter().map(|text| text.as_str().map(str::to_owned)).collect());
        texts
            .filter(|texts| !texts.is_empty())
            .ok_or_else(|| self.refusal(field, &format!("'{field}' must be an array of at least one text.")))
    }

    pub(super) fn template(&self, field: &str) -> Result<Template, Fault> {
        read_template(self.text(field)?).map_err(|message| self.refusal(field, &message))
    }
}

/// Reads a template of bounded length.
pub(super) fn read_template(text: &str) -> Result<Template, String> {
    if text.len() > MAX_TEMPLATE {
        return Err(format!("A template has {MAX_TEMPLATE} bytes at the most."));
    }
    Template::parse(text).map_err(|fault| fault.to_string())
}
