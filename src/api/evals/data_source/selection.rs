//! Which stored answers are the items of a run: the sources `stored_completions` and `responses`. The answers are
//! chosen once, when the run is made, so that a run that is gone on with has the same items.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{MAX_ITEMS, SOURCE, refusal};
use crate::api::ApiState;
use crate::api::http::error::{Problem, Result};
use crate::api::http::extract::parse_part;
use crate::api::http::values;
use crate::api::operations::stored_answers::StoredAnswers;
use crate::graders::spec::Fault;
use crate::store::responses::ResponseFilter;
use crate::store::stored_completions::{CompletionChoice, CompletionFilter};

/// A choice of stored answers.
#[derive(Debug)]
pub(in crate::api::evals) struct Selection {
    pub filter: Filter,
    /// Answers at the most, the newest.
    limit: i64,
}

/// What the answers have in common.
#[derive(Debug)]
pub(in crate::api::evals) enum Filter {
    /// Chats.
    Completions(CompletionFilter),
    /// Responses.
    Responses(ResponseFilter),
}

/// The fields that responses alone are chosen by.
#[derive(Debug, Default, Deserialize)]
struct OfResponses {
    #[serde(default, deserialize_with = "values::text")]
    instructions_search: Option<String>,
    #[serde(default, deserialize_with = "values::text")]
    reasoning_effort: Option<String>,
    #[serde(default, deserialize_with = "values::optional")]
    temperature: Option<f64>,
    #[serde(default, deserialize_with = "values::optional")]
    top_p: Option<f64>,
    users: Option<Vec<String>>,
    tools: Option<Vec<String>>,
}

impl OfResponses {
    /// Names of the fields.
    const FIELDS: [&str; 6] = ["instructions_search", "reasoning_effort", "temperature", "top_p", "users", "tools"];
}

impl Selection {
    /// Reads a source of the type `kind`, which is one of the two.
    pub(in crate::api::evals) fn read(source: &Map<String, Value>, kind: &str) -> Result<Self, Fault> {
        let own: &[&str] = if kind == "responses" { &OfResponses::FIELDS } else { &[] };
        let given = source.iter().filter(|(name, value)| *name != "type" && !value.is_null());
        let given = given.map(|(name, value)| (name.clone(), value.clone()));
        let (own, common): (Map<_, _>, Map<_, _>) = given.partition(|(name, _)| own.contains(&name.as_str()));
        let common: StoredAnswers = part(common, kind)?;
        // One more than a run takes: then there are too many.
        let choice = common.check(MAX_ITEMS as i64 + 1, MAX_ITEMS as i64).map_err(|problem| below_source(&problem))?;
        let CompletionChoice { filter: common, limit } = choice;
        if kind == "stored_completions" {
            return Ok(Self { filter: Filter::Completions(common), limit });
        }
        let own: OfResponses = part(own, kind)?;
        let filter = ResponseFilter {
            common,
            instructions: own.instructions_search,
            effort: own.reasoning_effort,
            temperature: own.temperature,
            top_p: own.top_p,
            users: own.users.unwrap_or_default(),
            tools: own.tools.unwrap_or_default(),
        };
        Ok(Self { filter: Filter::Responses(filter), limit })
    }

    /// Keeps only answers that have these notes of the eval among theirs, too.
    pub(in crate::api::evals) fn require(&mut self, notes: &Map<String, Value>) -> Result<(), Fault> {
        let own = match &mut self.filter {
            Filter::Completions(filter) => &mut filter.metadata,
            Filter::Responses(filter) => &mut filter.common.metadata,
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
        let limit = self.limit;
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

/// Reads some fields of a source of the type `kind`.
fn part<T: DeserializeOwned>(fields: Map<String, Value>, kind: &str) -> Result<T, Fault> {
    let read = parse_part(fields.into(), |field| {
        let own: &[&str] = if kind == "responses" { &OfResponses::FIELDS } else { &[] };
        let known = StoredAnswers::FIELDS.iter().chain(own).copied().collect::<Vec<_>>().join(", ");
        let message = format!("'{}' is not a field of a source of type '{kind}', which has {known}.", field.name);
        Problem::invalid(field.name.clone(), message)
    });
    read.map_err(|problem| below_source(&problem))
}

/// Turns what the common checks say into a fault of the data source.
fn below_source(problem: &Problem) -> Fault {
    let field = problem.error.param.as_deref().unwrap_or_default().split(['.', '[']).next().unwrap_or_default();
    refusal(&format!("source.{field}"), &problem.error.message)
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
        assert_eq!((filter.common.model.as_deref(), filter.temperature, limit), (Some("m"), Some(0.0), 3));
        assert_eq!((filter.tools, filter.users), (vec!["f".to_owned()], Vec::new()));
        for (kind, source, param) in [
            ("stored_completions", json!({"users": ["a"]}), "source.users"),
            ("stored_completions", json!({"limit": 0}), "source.limit"),
            ("stored_completions", json!({"created_after": "now"}), "source.created_after"),
            ("stored_completions", json!({"metadata": {"a": 1}}), "source.metadata"),
            ("stored_completions", json!({"created_before": 253_402_300_800_i64}), "source.created_before"),
            ("stored_completions", json!({"limit": 50_001}), "source.limit"),
            ("responses", json!({"limit": "3"}), "source.limit"),
            ("responses", json!({"temperature": "hot"}), "source.temperature"),
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
