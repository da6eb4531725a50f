//! The objects of the account, as far as later stages look into them.

use std::path::PathBuf;

use serde_json::{Map, Value};

/// A model of the account's list.
#[derive(Debug, Clone)]
pub(in crate::cli::move_in) struct OldModel {
    /// Its name, such as `ft:gpt-4o-mini-2024-07-18:acme:tickets:AbC`.
    pub(in crate::cli::move_in) id: String,
    /// The day on which it stops, as it was told: `2027-01-14`.
    pub(in crate::cli::move_in) shutdown_date: Option<String>,
}

/// A fine-tuning job of the account.
#[derive(Debug, Clone)]
pub(in crate::cli::move_in) struct OldJob {
    /// `ftjob-…` over there.
    pub(in crate::cli::move_in) id: String,
    /// The model that was trained.
    pub(in crate::cli::move_in) base: String,
    /// The model that came of it; `None` if none did.
    pub(in crate::cli::move_in) model: Option<String>,
    /// The suffix that was asked for.
    pub(in crate::cli::move_in) suffix: Option<String>,
    /// As it was told, unknown ones included.
    pub(in crate::cli::move_in) status: String,
    /// `supervised`, `dpo`, `reinforcement`, or what the account says.
    pub(in crate::cli::move_in) method: String,
    /// The settings of the method; numbers or `auto`.
    pub(in crate::cli::move_in) hyperparameters: Map<String, Value>,
    /// The seed, if it is known.
    pub(in crate::cli::move_in) seed: Option<u64>,
    /// Ids of files over there.
    pub(in crate::cli::move_in) training_file: Option<String>,
    pub(in crate::cli::move_in) validation_file: Option<String>,
    pub(in crate::cli::move_in) result_files: Vec<String>,
    /// Tokens over all epochs, if they are known.
    pub(in crate::cli::move_in) trained_tokens: Option<u64>,
    /// Unix seconds.
    pub(in crate::cli::move_in) created_at: i64,
    /// Why it failed, in the account's words.
    pub(in crate::cli::move_in) fault: Option<String>,
    /// The checkpoints, newest first, as they were told.
    pub(in crate::cli::move_in) checkpoints: Vec<Value>,
    /// The job as it was told.
    pub(in crate::cli::move_in) object: Value,
}

impl OldJob {
    /// Returns true if the job made a model that can be trained anew.
    pub(in crate::cli::move_in) fn is_specialist(&self) -> bool {
        self.status == "succeeded" && self.model.is_some()
    }

    /// Reads a job as the account tells it; `None` if it has no id.
    pub(in crate::cli::move_in) fn read(object: Value, checkpoints: Vec<Value>) -> Option<Self> {
        let text = |name: &str| object[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        // Old jobs have no method, and newer ones their settings inside of it only.
        let method = object["method"]["type"].as_str().unwrap_or("supervised").to_owned();
        let within = object["method"][&method]["hyperparameters"].as_object();
        let hyperparameters = within.or_else(|| object["hyperparameters"].as_object()).cloned().unwrap_or_default();
        let results = object["result_files"].as_array().into_iter().flatten();
        // The older resource has files as objects.
        let result_files =
            results.filter_map(|file| file.as_str().or_else(|| file["id"].as_str()).map(str::to_owned)).collect();
        Some(Self {
            id: text("id")?,
            base: text("model").unwrap_or_default(),
            model: text("fine_tuned_model"),
            suffix: text("user_provided_suffix"),
            status: text("status").unwrap_or_else(|| "unknown".into()),
            hyperparameters,
            method,
            seed: object["seed"].as_u64(),
            training_file: text("training_file"),
            validation_file: text("validation_file"),
            result_files,
            trained_tokens: object["trained_tokens"].as_u64(),
            created_at: object["created_at"].as_i64().unwrap_or_default(),
            fault: object["error"]["message"].as_str().map(str::to_owned),
            checkpoints,
            object,
        })
    }
}

/// A file of the account.
#[derive(Debug, Clone)]
pub(in crate::cli::move_in) struct OldFile {
    /// `file-…` over there.
    pub(in crate::cli::move_in) id: String,
    pub(in crate::cli::move_in) filename: String,
    pub(in crate::cli::move_in) purpose: String,
    pub(in crate::cli::move_in) content: Content,
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli::move_in) enum Content {
    /// It is in the folder, at this path; plain where the account sent base64.
    Here(PathBuf),
    /// It cannot be fetched, for this reason.
    Missing(String),
    /// It was not asked for, or not yet.
    NotFetched,
}

/// An eval of the account.
#[derive(Debug, Clone)]
pub(in crate::cli::move_in) struct OldEval {
    /// `eval_…` over there.
    pub(in crate::cli::move_in) id: String,
    pub(in crate::cli::move_in) name: String,
    pub(in crate::cli::move_in) runs: Vec<OldRun>,
    /// The eval as it was told, with `data_source_config` and `testing_criteria`.
    pub(in crate::cli::move_in) object: Value,
}

/// A run of an eval of the account.
#[derive(Debug, Clone)]
pub(in crate::cli::move_in) struct OldRun {
    /// `evalrun_…` over there.
    pub(in crate::cli::move_in) id: String,
    /// The run as it was told.
    pub(in crate::cli::move_in) object: Value,
    /// Its output items, as they were told.
    pub(in crate::cli::move_in) items: Vec<Value>,
}

/// A stored chat of the account.
#[derive(Debug, Clone)]
pub(in crate::cli::move_in) struct OldCompletion {
    /// `chatcmpl-…` over there.
    pub(in crate::cli::move_in) id: String,
    /// The answer as it was told.
    pub(in crate::cli::move_in) object: Value,
    /// What was asked, as it was told.
    pub(in crate::cli::move_in) messages: Vec<Value>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_read_from_the_method_first_and_old_jobs_have_none() {
        let read = |object: Value| OldJob::read(object, Vec::new()).expect("a job");
        let method = json!({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}});
        let job = read(json!({"id": "a", "method": method, "hyperparameters": {"n_epochs": 1}, "result_files": ["r"]}));
        assert_eq!((job.method.as_str(), &job.hyperparameters["beta"]), ("dpo", &json!(0.1)));
        assert_eq!(job.result_files, ["r"]);
        let job = read(json!({"id": "a", "hyperparameters": {"n_epochs": 1}, "result_files": [{"id": "r"}]}));
        assert_eq!((job.method.as_str(), &job.hyperparameters["n_epochs"]), ("supervised", &json!(1)));
        assert_eq!((job.result_files, job.fault, job.model), (vec!["r".to_owned()], None, None));
        assert!(read(json!({"id": "a", "hyperparameters": null})).hyperparameters.is_empty());
        assert!(OldJob::read(json!({}), Vec::new()).is_none());
    }
}
