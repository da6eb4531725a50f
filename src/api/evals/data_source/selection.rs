//! Which stored answers are the items of a run: the sources `stored_completions` and `responses`. The answers are
//! chosen once, when the run is made, so that a run that is gone on with has the same items.

use serde_json::{Map, Value};

use super::{MAX_ITEMS, SOURCE, refusal};
use crate::api::ApiState;
use crate::api::http::error::{Problem, Result};
use crate::graders::spec::Fault;
use crate::store::responses::ResponseFilter;
use crate::store::stored_completions::CompletionFilter;

/// The last second of the year 9999.
const LAST_SECOND: i64 = 253_402_300_799;

/// A choice of stored answers.
#[derive(Debug)]
pub(in crate::api::evals) struct Selection {
    pub filter: Filter,
    /// Answers at the most, the newest.
    limit: Option<i64>,
}

/// What the answers have in common.
#[derive(Debug)]
pub(in crate::api::evals) enum Filter {
    /// Chats.
    Completions(CompletionFilter),
    /// Responses.
    Responses(ResponseFilter),
}

/// The fields of a source.
struct Fields<'a>(&'a Map<String, Value>);

impl Selection {
    /// Reads a source of the type `kind`, which is one of the two.
    pub(in crate::api::evals) fn read(source: &Map<String, Value>, kind: &str) -> Result<Self, Fault> {
        let fields = Fields(source);
        let filter = if kind == "stored_completions" {
            fields.check(kind, &["model", "metadata", "created_after", "created_before", "limit"])?;
            Filter::Completions(CompletionFilter {
                model: fields.text("model")?,
                metadata: fields.metadata()?,
                created_after: fields.whole("created_after", 0)?,
                created_before: fields.whole("created_before", 0)?,
            })
        } else {
            let known = [
                "model",
                "metadata",
                "created_after",
                "created_before",
                "limit",
                "instructions_search",
                "reasoning_effort",
                "temperature",
                "top_p",
                "users",
                "tools",
            ];
            fields.check(kind, &known)?;
            Filter::Responses(ResponseFilter {
                model: fields.text("model")?,
                instructions: fields.text("instructions_search")?,
                metadata: fields.metadata()?,
                created_after: fields.whole("created_after", 0)?,
                created_before: fields.whole("created_before", 0)?,
                effort: fields.text("reasoning_effort")?,
                temperature: fields.number("temperature")?,
                top_p: fields.number("top_p")?,
                users: fields.texts("users")?,
                tools: fields.texts("tools")?,
            })
        };
        Ok(Self { filter, limit: fields.whole("limit", 1)? })
    }

    /// Keeps only answers that have these notes of the eval among theirs, too.
    pub(in crate::api::evals) fn require(&mut self, notes: &Map<String, Value>) -> Result<(), Fault> {
        let own = match &mut self.filter {
            Filter::Completions(filter) => &mut filter.metadata,
            Filter::Responses(filter) => &mut filter.metadata,
        };
        for (name, value) in notes {
            match own.insert(name.clone(), value.clone()) {
                Some(before) if before != *value => {
                    let message =
                        format!("The eval is about answers whose note '{name}' is {value}; no answer has two of them.");
                    return Err(refusal("source.metadata", &message));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the ids of the answers, the oldest first; an error if there are none or too many.
    pub(in crate::api::evals) async fn ids(&self, state: &ApiState, organization: &str) -> Result<Vec<String>> {
        let limit = self.limit.unwrap_or(MAX_ITEMS as i64 + 1);
        let ids = match &self.filter {
            Filter::Completions(filter) => {
                // What was answered a moment ago may still be on its way.
                state.completions.flush().await?;
                state.store.completion_ids(organization, filter, limit).await?
            }
            Filter::Responses(filter) => state.store.response_ids(organization, filter, limit).await?,
        };
        let fault = |field: &str, message: String| {
            Err(Problem::invalid_code(format!("{SOURCE}.source{field}"), "invalid_value", message))
        };
        match ids.len() {
            0 => fault("", "No stored answer matches: the run would have no items.".into()),
            1..=MAX_ITEMS => Ok(ids),
            _ => {
                fault(".limit", format!("More than {MAX_ITEMS} stored answers match: set a 'limit', or choose fewer."))
            }
        }
    }
}

impl Fields<'_> {
    fn check(&self, kind: &str, known: &[&str]) -> Result<(), Fault> {
        let unknown =
            |(name, value): &(&String, &Value)| *name != "type" && !known.contains(&name.as_str()) && !value.is_null();
        match self.0.iter().find(unknown) {
            None => Ok(()),
            Some((name, _)) => {
                let message =
                    format!("'{name}' is not a field of a source of type '{kind}', which has {}.", known.join(", "));
                Err(refusal(&format!("source.{name}"), &message))
            }
        }
    }

    /// Reads a field by `read`; null is as if absent.
    fn get<T>(&self, name: &str, form: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, Fault> {
        let Some(value) = self.0.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| refusal(&format!("source.{name}"), &format!("'{name}' must be {form}.")))
    }

    fn text(&self, name: &str) -> Result<Option<String>, Fault> {
        self.get(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, Fault> {
        self.get(name, "a number", Value::as_f64)
    }

    fn whole(&self, name: &str, least: i64) -> Result<Option<i64>, Fault> {
        let most = if name == "limit" { MAX_ITEMS as i64 } else { LAST_SECOND };
        let within = |value: &Value| value.as_i64().filter(|number| (least..=most).contains(number));
        self.get(name, &format!("a whole number from {least} to {most}"), within)
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, Fault> {
        let texts = |value: &Value| value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect();
        Ok(self.get(name, "an array of texts", texts)?.unwrap_or_default())
    }

    fn metadata(&self) -> Result<Map<String, Value>, Fault> {
        let notes = |value: &Value| value.as_object().filter(|notes| notes.values().all(Value::is_string)).cloned();
        Ok(self.get("metadata", "an object of texts", notes)?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(source: &Value, kind: &str) -> Result<Selection, Fault> {
        Selection::read(source.as_object().expect("an object"), kind)
    }

    #[test]
    fn filters_are_read_and_others_refused_by_name() {
        let source =
            json!({"type": "responses", "model": "m", "tools": ["f"], "temperature": 0, "limit": 3, "users": null});
        let Selection { filter: Filter::Responses(filter), limit } = read(&source, "responses").expect("a choice")
        else {
            panic!("responses")
        };
        assert_eq!((filter.model.as_deref(), filter.temperature, limit), (Some("m"), Some(0.0), Some(3)));
        assert_eq!((filter.tools, filter.users), (vec!["f".to_owned()], Vec::new()));
        for (kind, source, param) in [
            ("stored_completions", json!({"users": ["a"]}), "source.users"),
            ("stored_completions", json!({"limit": 0}), "source.limit"),
            ("stored_completions", json!({"created_after": "now"}), "source.created_after"),
            ("stored_completions", json!({"metadata": {"a": 1}}), "source.metadata"),
            ("responses", json!({"tools": [1]}), "source.tools"),
            ("responses", json!({"content": []}), "source.content"),
        ] {
            assert_eq!(read(&source, kind).expect_err("a fault").param, param, "{source}");
        }
    }

    #[test]
    fn the_notes_of_the_eval_hold_beside_those_of_the_run() {
        let notes = |value: &Value| value.as_object().cloned().expect("notes");
        let mut choice = read(&json!({"metadata": {"a": "1"}}), "stored_completions").expect("a choice");
        choice.require(&notes(&json!({"a": "1", "b": "2"}))).expect("the same");
        let Filter::Completions(filter) = &choice.filter else { panic!("completions") };
        assert_eq!(filter.metadata, notes(&json!({"a": "1", "b": "2"})));
        assert!(choice.require(&notes(&json!({"a": "2"}))).is_err());
    }
}
