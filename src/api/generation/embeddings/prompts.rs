//! The prompt before the texts of a request: the model's own texts, which it was trained with, by name. Called by
//! `embeddings`.

use crate::api::http::error::{Problem, Result};
use crate::model::vectors::VectorForm;

/// Values of `input_type` for questions, and names of prompts for them.
const QUERY: &[&str] = &["query", "search_query", "retrieval.query"];
/// The same for what is searched. Models whose questions alone have a prompt have none for these.
const DOCUMENT: &[&str] = &["document", "passage", "search_document", "corpus", "retrieval.passage"];
/// Values of `input_type` that have the name of their prompt.
const TASKS: &[&str] = &["classification", "clustering"];

/// A text of the model that stands before each text of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// The text; empty for none.
    pub text: String,
    /// The field of the request that asked for it; `None` if it is there without being asked for.
    pub asked_by: Option<&'static str>,
}

impl Prompt {
    /// Returns the prompt that the fields `prompt_name` and `input_type` ask a model of this `form` for.
    pub(crate) fn of(form: &VectorForm, name: Option<&str>, input_type: Option<&str>) -> Result<Self> {
        let text = |name: &str| form.prompts.get(name).cloned();
        match (name, input_type) {
            (Some(_), Some(_)) => {
                let message = "'prompt_name' and 'input_type' both choose the prompt: send one of them.";
                Err(Problem::invalid_code("input_type", "invalid_value", message))
            }
            (Some(name), None) => match text(name) {
                Some(text) => Ok(Self { text, asked_by: Some("prompt_name") }),
                None => Err(unknown(form, "prompt_name", name)),
            },
            (None, Some(kind)) => {
                let text = of_type(form, kind)?;
                Ok(Self { asked_by: (!text.is_empty()).then_some("input_type"), text })
            }
            (None, None) => Ok(Self { text: default(form).to_owned(), asked_by: None }),
        }
    }

    /// Returns the prompt for texts of the type `kind`, which nobody asked for; the model's default prompt if it has none
    /// for them.
    pub(crate) fn for_role(form: &VectorForm, kind: &str) -> Self {
        Self { text: of_type(form, kind).unwrap_or_else(|_| default(form).to_owned()), asked_by: None }
    }
}

fn default(form: &VectorForm) -> &str {
    let name = form.default_prompt.as_ref();
    name.and_then(|name| form.prompts.get(name)).map_or("", String::as_str)
}

/// Returns the prompt for texts of the type `kind`: that of the same name, else that of another name for the same, the
/// model's default prompt, or none.
fn of_type(form: &VectorForm, kind: &str) -> Result<String> {
    let known = [QUERY, DOCUMENT].into_iter().find(|names| names.contains(&kind));
    let names = match known {
        Some(names) => names,
        None if TASKS.contains(&kind) => &[],
        None => {
            let kinds: Vec<String> = [QUERY, DOCUMENT, TASKS].concat().iter().map(|kind| format!("'{kind}'")).collect();
            let message = format!("Invalid 'input_type': '{kind}' is none of {}.", kinds.join(", "));
            return Err(Problem::invalid_code("input_type", "invalid_value", message));
        }
    };
    let found = |name: &&str| form.prompts.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, text)| text);
    let texts: Vec<&String> = [kind].iter().chain(names).filter_map(found).collect();
    // An empty one says that there is none, which another name may know better.
    let text = texts.iter().find(|text| !text.is_empty()).or(texts.first()).map(|text| text.as_str());
    let has_prompts = form.prompts.values().any(|text| !text.is_empty());
    match text.unwrap_or_else(|| default(form)) {
        "" if text.is_none() && has_prompts && names != DOCUMENT => Err(unknown(form, "input_type", kind)),
        text => Ok(text.to_owned()),
    }
}

/// The refusal of a prompt that the model does not have.
fn unknown(form: &VectorForm, field: &'static str, value: &str) -> Problem {
    let names: Vec<String> = form.prompts.keys().map(|name| format!("'{name}'")).collect();
    let message = if names.is_empty() {
        format!("Invalid '{field}': this model has no prompts; leave it out.")
    } else {
        format!(
            "Invalid '{field}': this model has no prompt for '{value}'. 'prompt_name' can be one of {}.",
            names.join(", ")
        )
    };
    Problem::invalid_code(field, "invalid_value", message)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::vectors::Pooling;

    fn form(prompts: &[(&str, &str)], default: Option<&str>) -> VectorForm {
        VectorForm {
            poolings: vec![Pooling::Mean],
            pools_prompt: true,
            layers: Vec::new(),
            is_normalized: true,
            prompts: prompts
                .iter()
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                .collect::<BTreeMap<_, _>>(),
            default_prompt: default.map(str::to_owned),
            is_lower_cased: false,
            max_tokens: 8,
            shorter_widths: Vec::new(),
            hidden_size: 4,
        }
    }

    fn text(form: &VectorForm, name: Option<&str>, kind: Option<&str>) -> Result<String> {
        Prompt::of(form, name, kind).map(|prompt| prompt.text)
    }

    #[test]
    fn a_prompt_is_found_by_its_name() {
        let form = form(&[("query", "Q: "), ("code", "C: ")], Some("code"));
        assert_eq!(text(&form, Some("query"), None).expect("known"), "Q: ");
        assert_eq!(text(&form, None, None).expect("the default"), "C: ");
        let problem = text(&form, Some("document"), None).expect_err("unknown");
        assert_eq!(problem.error.param.as_deref(), Some("prompt_name"));
        assert!(problem.error.message.contains("'code', 'query'"), "{problem}");
        let both = text(&form, Some("query"), Some("query")).expect_err("both");
        assert_eq!(both.error.param.as_deref(), Some("input_type"));
    }

    #[test]
    fn types_of_inputs_find_the_prompt_for_the_same() {
        let e5 = form(&[("document", ""), ("passage", "passage: "), ("query", "query: ")], None);
        let nomic = form(&[("search_query", "sq: "), ("search_document", "sd: "), ("Clustering", "c: ")], None);
        for (form, kind, expected) in [
            (&e5, "query", "query: "),
            (&e5, "search_query", "query: "),
            (&e5, "document", "passage: "),
            (&e5, "passage", "passage: "),
            (&nomic, "query", "sq: "),
            (&nomic, "passage", "sd: "),
            (&nomic, "clustering", "c: "),
        ] {
            assert_eq!(text(form, None, Some(kind)).expect(kind), expected, "{kind}");
        }
    }

    #[test]
    fn a_type_without_a_prompt_is_as_the_model_says() {
        let questions = form(&[("query", "Q: ")], None);
        assert_eq!(text(&questions, None, Some("document")).expect("documents need none"), "");
        let empty = form(&[("query", ""), ("document", "D: ")], Some("document"));
        assert_eq!(text(&empty, None, Some("query")).expect("an empty one is none"), "");
        let default = form(&[("any", "A: ")], Some("any"));
        assert_eq!(text(&default, None, Some("query")).expect("the default"), "A: ");
        let none = form(&[], None);
        for kind in ["query", "passage", "clustering"] {
            let prompt = Prompt::of(&none, None, Some(kind)).expect("nothing to choose from");
            assert_eq!(prompt, Prompt::default(), "{kind}");
        }
    }

    #[test]
    fn a_type_that_the_model_has_no_prompt_for_is_refused() {
        let other = form(&[("s2p_query", "S: ")], None);
        for (form, kind) in [(&other, "query"), (&other, "classification"), (&form(&[], None), "image")] {
            let problem = text(form, None, Some(kind)).expect_err(kind);
            assert_eq!(problem.error.param.as_deref(), Some("input_type"), "{kind}");
        }
        let problem = text(&other, None, Some("query")).expect_err("none for questions");
        assert!(problem.error.message.contains("'s2p_query'"), "{problem}");
    }
}
