//! The body that creates a fine-tuning job, and its rules. `fine_tuning_jobs::create` turns it into a [`JobSpec`].

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::metadata::check_metadata;
use super::settings::{Settings, check_measured};
use crate::api::fine_tuning::job_rules::{normal_suffix, seed};
use crate::api::http::error::{Problem, Result};
use crate::api::http::values;
use crate::datasets::parse::shorten;
use crate::jobs::JobSpec;
use crate::train::hyperparameters;

/// Largest number of integrations that a request may name.
const MAX_INTEGRATIONS: usize = 5;

/// A request for a fine-tuning job.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CreateJob {
    /// A base model or an earlier fine-tuned one.
    pub model: String,
    /// Id of a file with the purpose `fine-tune`.
    pub training_file: String,
    /// Id of a file to measure on.
    #[serde(default, deserialize_with = "values::text")]
    pub validation_file: Option<String>,
    /// Part of the new model's name.
    #[schema(min_length = 1, max_length = 64)]
    #[serde(default, deserialize_with = "values::text")]
    pub suffix: Option<String>,
    /// The same seed and file give the same model.
    #[schema(minimum = 0, maximum = 2_147_483_647)]
    #[serde(default, deserialize_with = "values::optional")]
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
pub(crate) struct Method {
    /// `supervised` trains on answers, or on pairs of texts where the file has them, `dpo` on pairs of answers of which one is preferred.
    #[serde(rename = "type")]
    pub kind: String,
    /// The settings of `supervised`.
    pub supervised: Option<MethodSettings>,
    /// The settings of `dpo`.
    pub dpo: Option<MethodSettings>,
}

/// The settings of a method.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
pub(crate) struct MethodSettings {
    /// The settings.
    pub hyperparameters: Option<Settings>,
}

impl CreateJob {
    /// Returns the job to queue, or the fault of the first field that is out of its range.
    pub(crate) fn spec(self) -> Result<JobSpec> {
        let (method, settings) = match self.method {
            None => (hyperparameters::Method::Supervised, None),
            Some(Method { kind, supervised, dpo }) => match kind.as_str() {
                "supervised" => (hyperparameters::Method::Supervised, supervised),
                "dpo" => (hyperparameters::Method::Dpo, dpo),
                other => {
                    let message =
                        format!("The method '{}' is not supported: use 'supervised' or 'dpo'.", shorten(other));
                    return Err(Problem::invalid_code("method", "unsupported_value", message));
                }
            },
        };
        let settings = settings.and_then(|settings| settings.hyperparameters).or(self.hyperparameters);
        check_metadata(self.metadata.as_ref())?;
        if self.integrations.is_some_and(|integrations| integrations.len() > MAX_INTEGRATIONS) {
            let message = format!("'integrations' has more than {MAX_INTEGRATIONS} items.");
            return Err(Problem::invalid_code("integrations", "array_above_max_length", message));
        }
        let hyperparameters = settings.unwrap_or_default().check(method)?;
        check_measured(&hyperparameters, self.validation_file.as_deref())?;
        Ok(JobSpec {
            model: self.model,
            alias: None,
            training_file: self.training_file,
            validation_file: self.validation_file,
            suffix: normal_suffix(self.suffix.as_deref(), 64)?,
            seed: seed(self.seed)?,
            method,
            hyperparameters,
            metadata: self.metadata,
            classification: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::extract::parse;

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
    fn each_method_has_its_own_settings() {
        let both = r#","method":{"type":"dpo","dpo":{"hyperparameters":{"beta":0.5,"n_epochs":2}},
            "supervised":{"hyperparameters":{"n_epochs":9}}}"#;
        let asked = spec(both).expect("fine");
        assert_eq!((asked.method, asked.hyperparameters.beta), (hyperparameters::Method::Dpo, Some(0.5)));
        assert_eq!(asked.hyperparameters.n_epochs, Some(2));
        let auto = spec(r#","method":{"type":"dpo","dpo":{"hyperparameters":{"beta":"auto"}}}"#);
        assert_eq!(auto.expect("fine").hyperparameters.beta, None);
        assert_eq!(spec(r#","method":{"type":"dpo"}"#).expect("fine").method, hyperparameters::Method::Dpo);
        assert_eq!(spec("").expect("fine").method, hyperparameters::Method::Supervised);
    }

    #[test]
    fn an_empty_text_is_as_if_absent_and_a_whole_number_may_have_a_point() {
        let extra = r#","validation_file":"","suffix":"","seed":7.0,"hyperparameters":{"n_epochs":2.0}"#;
        let asked = spec(extra).expect("fine");
        assert_eq!((asked.validation_file, asked.suffix, asked.seed), (None, None, 7));
        assert_eq!(asked.hyperparameters.n_epochs, Some(2));
    }

    #[test]
    fn what_is_out_of_range_or_not_supported_is_refused() {
        for extra in [
            r#","hyperparameters":{"n_epochs":0}"#,
            r#","hyperparameters":{"batch_size":257}"#,
            r#","hyperparameters":{"learning_rate_multiplier":0}"#,
            r#","method":{"type":"dpo","dpo":{"hyperparameters":{"beta":0}}}"#,
            r#","method":{"type":"dpo","dpo":{"hyperparameters":{"beta":2.1}}}"#,
            r#","method":{"type":"dpo","dpo":{"hyperparameters":{"prompt_loss_weight":0.5}}}"#,
            r#","method":{"type":"supervised","supervised":{"hyperparameters":{"beta":0.1}}}"#,
            r#","method":{"type":"dpo","dpo":{"hyperparameters":{"scale":20}}}"#,
            r#","method":{"type":"reinforcement"}"#,
            r#","seed":-1"#,
            r#","metadata":{"a":1}"#,
            r#","integrations":[{},{},{},{},{},{}]"#,
        ] {
            assert!(spec(extra).is_err(), "{extra}");
        }
        assert!(spec(r#","integrations":[{"type":"wandb"}],"metadata":{"a":"b"},"validation_file":null"#).is_ok());
    }
}
