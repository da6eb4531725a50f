//! The body that creates a fine-tune, and its rules. `fine_tunes::create` turns it into a [`JobSpec`].

use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::fine_tuning::fields::JobRequest;
use crate::api::fine_tuning::job_rules::{AutoOr, normal_suffix, positive, seed};
use crate::api::http::error::{Problem, Result};
use crate::api::http::values;
use crate::api::operations::checks::{no_longer_than, within};
use crate::datasets::classes::MAX_CLASSES;
use crate::jobs::JobSpec;
use crate::train::hyperparameters::{Classification, Hyperparameters, Method};

/// Settings that apply if the client gives none.
pub(super) const DEFAULT_EPOCHS: u32 = 4;
pub(super) const DEFAULT_PROMPT_LOSS_WEIGHT: f64 = 0.01;

/// Bytes of the positive class. It is a completion, which the model writes as an answer.
const MAX_CLASS: usize = 1024;
/// Largest number of F-beta scores that a fine-tune may ask for.
const MAX_BETAS: usize = 10;

/// A request for a fine-tune.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateFineTune {
    /// Id of a file with the purpose `fine-tune`.
    pub training_file: String,
    /// Id of a file to measure on.
    #[serde(default, deserialize_with = "values::text")]
    pub validation_file: Option<String>,
    /// A base model or an earlier fine-tuned one; by default the first base model.
    #[serde(default, deserialize_with = "values::text")]
    pub model: Option<String>,
    /// Passes over the training file.
    #[schema(minimum = 1, maximum = 50, default = 4)]
    #[serde(default, deserialize_with = "values::optional")]
    pub n_epochs: Option<u32>,
    /// Examples per step; by default chosen from the size of the file.
    #[schema(maximum = 256)]
    #[serde(default, deserialize_with = "values::optional")]
    pub batch_size: Option<u32>,
    /// Factor on the learning rate.
    pub learning_rate_multiplier: Option<f64>,
    /// Weight of the prompt's tokens in the loss.
    #[schema(minimum = 0, maximum = 1, default = 0.01)]
    pub prompt_loss_weight: Option<f64>,
    /// Part of the new model's name.
    #[schema(min_length = 1, max_length = 40)]
    #[serde(default, deserialize_with = "values::text")]
    pub suffix: Option<String>,
    /// Measure at the end of each epoch how well the model sorts the validation file's prompts into classes. Needs
    /// `validation_file`, and `classification_n_classes` or `classification_positive_class`.
    pub compute_classification_metrics: Option<bool>,
    /// How many different completions the training file has.
    #[schema(minimum = 2, maximum = 100)]
    #[serde(default, deserialize_with = "values::optional")]
    pub classification_n_classes: Option<u32>,
    /// The completion that is the positive one of two, with the space that it begins with; 1024 bytes at the most.
    pub classification_positive_class: Option<String>,
    /// The betas of the F-beta scores, with a positive class; 1 by default.
    #[schema(max_items = 10)]
    pub classification_betas: Option<Vec<f64>>,
    /// Another place for `n_epochs`.
    pub hyperparameters: Option<NestedSettings>,
}

/// Settings that some clients send in an object of their own.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NestedSettings {
    /// Passes over the training file.
    pub n_epochs: Option<AutoOr<u32>>,
}

impl JobRequest for CreateFineTune {
    fn inner() -> Vec<(&'static str, Vec<String>)> {
        Vec::new()
    }

    const HINT: &'static str = "/fine_tuning/jobs has more settings.";
}

impl CreateFineTune {
    /// Returns the job to queue, or the fault of the first field that is out of its range.
    pub(crate) fn spec(self, state: &ApiState) -> Result<JobSpec> {
        let hyperparameters = self.settings()?;
        let classification = self.classification()?;
        let suffix = normal_suffix(self.suffix.as_deref(), 40)?;
        let first = || state.catalog.entries().first().map(|entry| entry.model.id.clone());
        let model =
            self.model.or_else(first).ok_or_else(|| Problem::invalid("model", "'model' must name a base model."))?;
        Ok(JobSpec {
            model,
            alias: None,
            training_file: self.training_file,
            validation_file: self.validation_file,
            suffix,
            seed: seed(None)?,
            method: Method::Supervised,
            hyperparameters,
            metadata: None,
            classification,
            eval: None,
            distillation: None,
        })
    }

    /// Returns the metrics of classification to measure; `None` if the request mentions none.
    fn classification(&self) -> Result<Option<Classification>> {
        let asked = Classification {
            compute: self.compute_classification_metrics,
            n_classes: within("classification_n_classes", self.classification_n_classes, 2, MAX_CLASSES as u32)?,
            positive_class: self.classification_positive_class.clone(),
            betas: self.classification_betas.clone(),
        };
        let invalid = |param: &str, message: &str| Err(Problem::invalid_code(param, "invalid_value", message));
        no_longer_than("classification_positive_class", asked.positive_class.as_deref(), MAX_CLASS)?;
        if asked.positive_class.as_deref() == Some("") {
            return invalid("classification_positive_class", "'classification_positive_class' must not be empty.");
        }
        if asked.positive_class.is_some() && asked.n_classes.is_some_and(|classes| classes != 2) {
            let message = "'classification_positive_class' is for two classes: leave it out, or set \
                           'classification_n_classes' to 2.";
            return invalid("classification_n_classes", message);
        }
        if let Some(betas) = &asked.betas {
            if betas.len() > MAX_BETAS {
                let message = format!("'classification_betas' has more than {MAX_BETAS} items.");
                return Err(Problem::invalid_code("classification_betas", "array_above_max_length", message));
            }
            for beta in betas {
                positive("classification_betas", Some(*beta))?;
            }
        }
        if asked.compute == Some(true) {
            let param = "compute_classification_metrics";
            if self.validation_file.is_none() {
                return invalid(param, "'compute_classification_metrics' needs a 'validation_file' to measure on.");
            }
            if asked.n_classes.is_none() && asked.positive_class.is_none() {
                let message = "'compute_classification_metrics' needs 'classification_n_classes', or \
                               'classification_positive_class' for two classes.";
                return invalid(param, message);
            }
        }
        Ok((asked != Classification::default()).then_some(asked))
    }

    /// Returns the settings, checked. Old clients send 0 for a setting that the server shall choose.
    fn settings(&self) -> Result<Hyperparameters> {
        let chosen = |number: Option<u32>| number.filter(|number| *number > 0);
        let nested = self.hyperparameters.as_ref().and_then(|nested| nested.n_epochs?.number());
        if let (Some(one), Some(other)) = (chosen(self.n_epochs), nested)
            && one != other
        {
            let message = format!("'n_epochs' is given twice, as {one} and as {other} in 'hyperparameters': keep one.");
            return Err(Problem::invalid_code("n_epochs", "invalid_value", message));
        }
        let n_epochs = within("n_epochs", chosen(self.n_epochs).or(nested), 1, 50)?;
        let multiplier = self.learning_rate_multiplier.filter(|multiplier| *multiplier != 0.0);
        let weight = within("prompt_loss_weight", self.prompt_loss_weight, 0.0, 1.0)?;
        Ok(Hyperparameters {
            n_epochs: n_epochs.or(Some(DEFAULT_EPOCHS)),
            batch_size: within("batch_size", chosen(self.batch_size), 1, 256)?,
            learning_rate_multiplier: positive("learning_rate_multiplier", multiplier)?,
            prompt_loss_weight: weight.or(Some(DEFAULT_PROMPT_LOSS_WEIGHT)),
            ..Hyperparameters::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fine_tuning::fields::parse;

    fn settings(extra: &str) -> Result<Hyperparameters> {
        let request: CreateFineTune =
            parse(format!(r#"{{"training_file":"file-1"{extra}}}"#).as_bytes()).expect("a request");
        request.settings()
    }

    #[test]
    fn settings_have_the_resources_own_defaults() {
        let defaults = settings("").expect("defaults");
        assert_eq!((defaults.n_epochs, defaults.prompt_loss_weight), (Some(4), Some(0.01)));
        assert_eq!((defaults.batch_size, defaults.learning_rate_multiplier), (None, None));
        let zeros = settings(r#","n_epochs":0,"batch_size":0,"learning_rate_multiplier":0,"suffix":null"#);
        assert_eq!(zeros.expect("zero lets the server choose"), defaults);
    }

    #[test]
    fn an_empty_text_is_as_if_absent_and_a_whole_number_may_have_a_point() {
        let json = br#"{"training_file":"file-1","validation_file":"","suffix":"","model":"","n_epochs":3.0}"#;
        let request: CreateFineTune = parse(json).expect("a request");
        assert_eq!((request.validation_file, request.suffix, request.model), (None, None, None));
        assert_eq!(request.n_epochs, Some(3));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for extra in [
            r#","n_epochs":51"#,
            r#","batch_size":257"#,
            r#","learning_rate_multiplier":-1"#,
            r#","prompt_loss_weight":2"#,
        ] {
            assert!(settings(extra).is_err(), "{extra}");
        }
    }

    #[test]
    fn epochs_may_stand_in_an_object_of_their_own() {
        assert_eq!(settings(r#","hyperparameters":{"n_epochs":7}"#).expect("fine").n_epochs, Some(7));
        assert_eq!(settings(r#","hyperparameters":{"n_epochs":"auto"}"#).expect("fine").n_epochs, Some(4));
        assert!(settings(r#","n_epochs":3,"hyperparameters":{"n_epochs":7}"#).is_err());
    }

    #[test]
    fn a_field_that_is_not_known_is_refused_with_the_one_that_was_meant() {
        let said = |extra: &str| {
            let json = format!(r#"{{"training_file":"file-1"{extra}}}"#);
            parse::<CreateFineTune>(json.as_bytes()).expect_err(extra).error.message
        };
        for (extra, expected) in [
            (r#","epochs":3"#, "'epochs'. Did you mean 'n_epochs'?"),
            (r#","hyperparameters":{"batch_size":3}"#, "'hyperparameters.batch_size'. It belongs at the top level"),
            (r#","rank":3"#, "/fine_tuning/jobs has more settings."),
            (r#","n_epochs":"3""#, "write 3 without quotation marks"),
        ] {
            let message = said(extra);
            assert!(message.contains(expected), "{message}");
        }
    }

    fn classification(extra: &str) -> Result<Option<Classification>> {
        let json = format!(r#"{{"training_file":"file-1"{extra}}}"#);
        parse::<CreateFineTune>(json.as_bytes()).expect("a request").classification()
    }

    #[test]
    fn classes_are_measured_only_where_there_is_something_to_measure_on() {
        let compute = r#","compute_classification_metrics":true"#;
        for extra in ["", r#","validation_file":"file-2""#, r#","classification_n_classes":3"#] {
            assert!(classification(&format!("{compute}{extra}")).is_err(), "{extra}");
        }
        for extra in [
            r#","classification_n_classes":1"#,
            r#","classification_n_classes":101"#,
            r#","classification_positive_class":"""#,
            r#","classification_positive_class":" yes","classification_n_classes":3"#,
            r#","classification_betas":[0]"#,
            r#","classification_betas":[1,1,1,1,1,1,1,1,1,1,1]"#,
        ] {
            assert!(classification(extra).is_err(), "{extra}");
        }
        let class = |length: usize| format!(r#","classification_positive_class":"{}""#, "x".repeat(length));
        let long = classification(&class(1025)).expect_err("too long");
        assert_eq!(long.error.param.as_deref(), Some("classification_positive_class"));
        assert!(classification(&class(1024)).is_ok());
        let asked =
            r#","validation_file":"file-2","classification_positive_class":" yes","classification_betas":[0.5]"#;
        let asked = classification(&format!("{compute}{asked}")).expect("fine").expect("given");
        assert_eq!((asked.compute, asked.n_classes, asked.betas), (Some(true), None, Some(vec![0.5])));
        assert_eq!(asked.positive_class.as_deref(), Some(" yes"));
        assert_eq!(classification(r#","classification_n_classes":null"#).expect("fine"), None);
    }
}
