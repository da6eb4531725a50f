//! The body that creates a fine-tuning job, and its rules: what `fine_tuning_jobs::create` makes a [`JobSpec`] of.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::metadata::check_metadata;
use super::settings::{Settings, check_measured};
use crate::api::job_rules::{normal_suffix, seed};
use crate::jobs::JobSpec;
use crate::{Error, Result};

/// Integrations that a request may name.
const MAX_INTEGRATIONS: usize = 5;

/// A request for a fine-tuning job.
#[derive(Debug, Deserialize, ToSchema)]
pub struct CreateJob {
    /// A base model or an earlier fine-tuned one.
    pub model: String,
    /// Id of a file with the purpose `fine-tune`.
    pub training_file: String,
    /// Id of a file to measure on.
    pub validation_file: Option<String>,
    /// Part of the new model's name.
    #[schema(min_length = 1, max_length = 64)]
    pub suffix: Option<String>,
    /// The same seed and file give the same model.
    #[schema(minimum = 0, maximum = 2_147_483_647)]
    pub seed: Option<i64>,
    /// How to train.
    pub method: Option<Method>,
    /// The older place of `method.supervised.hyperparameters`.
    pub hyperparameters: Option<Settings>,
    /// At most 16 of the client's own notes, texts by name.
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    pub metadata: Option<Map<String, Value>>,
    /// Services to report to, 5 at the most. None is supported: they are taken and not used.
    #[schema(value_type = Option<Vec<Object>>, max_items = 5)]
    pub integrations: Option<Vec<Map<String, Value>>>,
}

/// How to train.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Method {
    /// Only `supervised` is supported.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its settings.
    pub supervised: Option<Supervised>,
}

/// Training on examples.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct Supervised {
    /// The settings.
    pub hyperparameters: Option<Settings>,
}

impl CreateJob {
    /// The job to queue, if every field is within its range.
    pub fn spec(self) -> Result<JobSpec> {
        let method = self.method;
        if let Some(other) = method.as_ref().map(|method| method.kind.as_str()).filter(|kind| *kind != "supervised") {
            let message = format!("The method '{other}' is not supported yet: use 'supervised'.");
            return Err(Error::invalid_code("method", "unsupported_value", message));
        }
        let supervised = method.and_then(|method| method.supervised?.hyperparameters);
        let settings = supervised.or(self.hyperparameters).unwrap_or_default();
        check_metadata(self.metadata.as_ref())?;
        if self.integrations.is_some_and(|integrations| integrations.len() > MAX_INTEGRATIONS) {
            let message = format!("'integrations' has more than {MAX_INTEGRATIONS} items.");
            return Err(Error::invalid_code("integrations", "array_above_max_length", message));
        }
        let hyperparameters = settings.check()?;
        check_measured(&hyperparameters, self.validation_file.as_deref())?;
        Ok(JobSpec {
            model: self.model,
            alias: None,
            training_file: self.training_file,
            validation_file: self.validation_file,
            suffix: normal_suffix(self.suffix.as_deref(), 64)?,
            seed: seed(self.seed)?,
            hyperparameters,
            metadata: self.metadata,
            classification: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::parse;

    fn spec(extra: &str) -> Result<JobSpec> {
        let json = format!(r#"{{"model":"m","training_file":"file-1"{extra}}}"#);
        parse::<CreateJob>(json.as_bytes()).expect("a request").spec()
    }

    #[test]
    fn settings_are_read_from_the_method_or_the_older_place() {
        let method =
            r#","method":{"type":"supervised","dpo":{"x":1},"supervised":{"hyperparameters":{"n_epochs":2,"rank":8}}}"#;
        let settings = spec(method).expect("fine").hyperparameters;
        assert_eq!((settings.n_epochs, settings.batch_size, settings.rank), (Some(2), None, Some(8)));
        let older = r#","hyperparameters":{"n_epochs":"auto","batch_size":4}"#;
        let settings = spec(older).expect("fine").hyperparameters;
        assert_eq!((settings.n_epochs, settings.batch_size), (None, Some(4)));
    }

    #[test]
    fn what_is_out_of_range_or_not_supported_is_refused() {
        for extra in [
            r#","hyperparameters":{"n_epochs":0}"#,
            r#","hyperparameters":{"batch_size":257}"#,
            r#","hyperparameters":{"learning_rate_multiplier":0}"#,
            r#","method":{"type":"dpo","dpo":{}}"#,
            r#","method":{"type":"reinforcement"}"#,
            r#","seed":-1"#,
            r#","suffix":"""#,
            r#","metadata":{"a":1}"#,
            r#","integrations":[{},{},{},{},{},{}]"#,
        ] {
            assert!(spec(extra).is_err(), "{extra}");
        }
        assert!(spec(r#","integrations":[{"type":"wandb"}],"metadata":{"a":"b"},"validation_file":null"#).is_ok());
    }
}
