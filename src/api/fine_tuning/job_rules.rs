//! The checks that both fine-tune resources make before a job is queued: files, model, suffix, seed, ranges of
//! settings.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{Problem, Result};
use crate::api::http::faults::is_number;
use crate::api::http::values::{self, Number};
use crate::api::models::names::real_name;
use crate::api::operations::checks::{no_longer_than, within};
use crate::datasets::parse::shorten;
use crate::jobs::queue::Admission;
use crate::jobs::{Job, JobApi, JobSpec};
use crate::store;
use crate::train::settings::{check_experts, max_sequence_tokens, target_modules};

/// Bytes of the name of a model that a job may ask for; no model has a longer one.
const MAX_MODEL_NAME: usize = 4096;

/// A number, or `"auto"` to let the server choose.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum AutoOr<T> {
    /// `"auto"`
    Word(Auto),
    /// The number.
    Number(#[serde(deserialize_with = "values::number")] T),
}

/// The word `"auto"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Auto {
    /// The server chooses.
    Auto,
}

impl<'de, T: Number> Deserialize<'de> for AutoOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let reason = match &value {
            Value::String(text) if text == "auto" => return Ok(Self::Word(Auto::Auto)),
            Value::String(text) if is_number(text) => format!("write {text} without quotation marks"),
            Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() != 0.0) => {
                "expected \"auto\" or a whole number in range".into()
            }
            _ => "expected \"auto\" or a number in range".into(),
        };
        if value.is_number() {
            return values::number(value).map(Self::Number).map_err(|_| D::Error::custom(reason));
        }
        Err(D::Error::custom(reason))
    }
}

impl<T> AutoOr<T> {
    /// Returns the number, or `None` for `"auto"`.
    pub(crate) fn number(self) -> Option<T> {
        match self {
            Self::Word(_) => None,
            Self::Number(number) => Some(number),
        }
    }
}

impl<T> From<Option<T>> for AutoOr<T> {
    fn from(number: Option<T>) -> Self {
        number.map_or(Self::Word(Auto::Auto), Self::Number)
    }
}

/// Adds the job that the caller asks for to the queue. What was checked is looked at again by the statement that adds
/// it, since a file or a model may be deleted in between.
pub(crate) async fn enqueue(state: &ApiState, caller: &Caller, api: JobApi, spec: JobSpec) -> Result<Job, Problem> {
    let spec = admitted(state, caller, spec).await?;
    let admission = Admission {
        key: Some(&caller.key),
        files: true,
        fine_tuned: state.catalog.get(&spec.model).is_err(),
        max_unfinished: Some(state.config.training.max_unfinished_jobs()),
    };
    Ok(state.queue.admit(&caller.organization, api, spec, admission).await?)
}

/// Returns the job as it may be queued: an alias of the model is resolved, and files and model are checked to be the
/// caller's.
pub(crate) async fn admitted(state: &ApiState, caller: &Caller, mut spec: JobSpec) -> Result<JobSpec, Problem> {
    no_longer_than("model", Some(&spec.model), MAX_MODEL_NAME)?;
    follow_alias(state, caller, &mut spec).await?;
    check_inputs(state, caller, &spec).await?;
    Ok(spec)
}

/// Replaces an alias by the model that it stands for, so that workers need not know aliases.
async fn follow_alias(state: &ApiState, caller: &Caller, spec: &mut JobSpec) -> Result<()> {
    let real = real_name(state, &caller.organization, &spec.model).await?;
    if real != spec.model {
        spec.alias = Some(std::mem::replace(&mut spec.model, real));
    }
    Ok(())
}

/// Checks that the files and the model are the caller's own (or a base model) and that no setting exceeds what the
/// model can do.
async fn check_inputs(state: &ApiState, caller: &Caller, spec: &JobSpec) -> Result<(), Problem> {
    let base = check_model(state, caller, spec).await.map_err(|problem| problem.param("model"))?;
    // The base of a fine-tuned model may not be served any more; the job reports that.
    if let Ok(entry) = state.catalog.get(&base) {
        if entry.model.is_static() {
            let message = format!(
                "The model `{base}` is a table of vectors of tokens: it has no layers that fine-tuning changes."
            );
            return Err(Problem::invalid("model", message));
        }
        if entry.model.runs_elsewhere {
            let message = format!(
                "The model `{base}` runs on the second engine, which does not train: choose a model of Attune's own engine."
            );
            return Err(Problem::invalid("model", message));
        }
        max_sequence_tokens(&spec.hyperparameters, &entry.model.config)?;
        target_modules(&spec.hyperparameters, &entry.model.config)?;
        check_experts(&spec.hyperparameters, &entry.model.config)?;
    }
    if let Some((param, file)) = spec.input_file() {
        check_file(state, caller, param, file).await?;
    }
    if let Some(file) = &spec.validation_file {
        check_file(state, caller, "validation_file", file).await?;
    }
    Ok(())
}

/// Checks that the file is the caller's and has the purpose `fine-tune`; an error names the field `param`.
async fn check_file(state: &ApiState, caller: &Caller, param: &'static str, id: &str) -> Result<()> {
    let file = match state.store.file(&caller.organization, id).await {
        Err(store::Error::NotFound { .. }) => {
            let id = shorten(id);
            let message = format!("The file '{id}' does not exist: upload it with the purpose 'fine-tune' first.");
            return Err(Problem::invalid_code(param, "invalid_training_file", message));
        }
        file => file?,
    };
    if file.purpose != "fine-tune" {
        let message = format!(
            "The file '{id}' has the purpose '{}': upload it again with the purpose 'fine-tune'.",
            file.purpose
        );
        return Err(Problem::invalid_code(param, "invalid_training_file", message));
    }
    Ok(())
}

/// Checks that the model is a base model or a fine-tuned one of the caller; returns the id of its base model.
async fn check_model(state: &ApiState, caller: &Caller, spec: &JobSpec) -> Result<String> {
    if state.catalog.get(&spec.model).is_ok() {
        return Ok(spec.model.clone());
    }
    let found = state.store.fine_tuned_model(&caller.organization, &spec.model).await;
    let named = |error| {
        let problem = Problem::from(error).about_model(spec.asked_model());
        if problem.is_model_not_found() { naming_models(state, problem) } else { problem }
    };
    Ok(found.map_err(named)?.base)
}

/// Adds the base models of this server to the message, for a client that knows another one's names.
fn naming_models(state: &ApiState, mut problem: Problem) -> Problem {
    const SHOWN: usize = 10;
    let entries = state.catalog.entries();
    let mut named: Vec<String> = entries.iter().take(SHOWN).map(|entry| format!("`{}`", entry.model.id)).collect();
    if entries.len() > SHOWN {
        named.push(format!("{} more", entries.len() - SHOWN));
    }
    let message = &mut problem.error.message;
    *message = format!("{message} Base models of this server: {}.", named.join(", "));
    problem
}

/// Normalises a suffix for the name of a model: lower case, with each run of other characters as one `-`.
pub(crate) fn normal_suffix(suffix: Option<&str>, max: usize) -> Result<Option<String>> {
    let Some(suffix) = suffix else { return Ok(None) };
    let length = suffix.chars().count();
    if !(1..=max).contains(&length) {
        let message = format!("'suffix' must have 1 to {max} characters; it has {length}.");
        return Err(Problem::invalid_code("suffix", "invalid_value", message));
    }
    let words = suffix.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let normal = words.collect::<Vec<_>>().join("-").to_ascii_lowercase();
    if normal.is_empty() {
        let message = "'suffix' must hold at least one letter (a to z) or digit.";
        return Err(Problem::invalid_code("suffix", "invalid_value", message));
    }
    Ok(Some(normal))
}

/// Returns the seed that was asked for, or a random one if `None`; the client is told it in either case.
pub(crate) fn seed(asked: Option<i64>) -> Result<u64> {
    let asked = within("seed", asked, 0, i64::from(i32::MAX))?;
    Ok(asked.map_or_else(|| u64::from(rand::random::<u32>() >> 1), |seed| seed as u64))
}

/// Returns `value` if it is `None` or a positive finite number; else an error that names the field `param`.
pub(crate) fn positive(param: &str, value: Option<f64>) -> Result<Option<f64>> {
    match value {
        Some(value) if !(value > 0.0 && value.is_finite()) => {
            let message = format!("Invalid '{param}': {value} is not greater than 0.");
            Err(Problem::invalid_code(param, "invalid_value", message))
        }
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_is_made_fit_for_a_models_name() {
        let normal = |suffix| normal_suffix(Some(suffix), 40);
        assert_eq!(normal("My  Model: v2!").expect("fine").as_deref(), Some("my-model-v2"));
        assert_eq!(normal_suffix(None, 40).expect("none"), None);
        assert!(normal("").is_err() && normal("!!!").is_err() && normal(&"x".repeat(41)).is_err());
    }

    #[test]
    fn auto_is_a_word_or_a_number() {
        let read = |json: &str| serde_json::from_str::<AutoOr<u32>>(json).map(AutoOr::number);
        assert_eq!(read(r#""auto""#).expect("auto"), None);
        assert_eq!(read("3").expect("a number"), Some(3));
        assert_eq!(read("3.0").expect("a number"), Some(3));
        for (json, says) in [
            (r#""often""#, "\"auto\" or a number"),
            (r#""3""#, "write 3 without quotation marks"),
            ("-1", "a number in range"),
            ("1.5", "a whole number"),
            ("{}", "\"auto\" or a number"),
        ] {
            let message = read(json).expect_err(json).to_string();
            assert!(message.contains(says), "{json}: {message}");
        }
        assert_eq!(serde_json::to_string(&AutoOr::<u32>::from(None)).expect("JSON"), r#""auto""#);
        assert_eq!(serde_json::to_string(&AutoOr::from(Some(3))).expect("JSON"), "3");
    }

    #[test]
    fn seeds_and_settings_have_ranges() {
        assert_eq!(seed(Some(42)).expect("in range"), 42);
        assert!(seed(None).expect("random") <= 0x7fff_ffff);
        assert!(seed(Some(-1)).is_err() && seed(Some(1 << 31)).is_err());
        assert!(within("n", Some(51), 1, 50).is_err() && within("n", Some(50), 1, 50).is_ok());
        assert!(positive("x", Some(0.0)).is_err() && positive("x", Some(0.1)).is_ok());
    }
}
