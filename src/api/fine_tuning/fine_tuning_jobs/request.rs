//! The body that creates a fine-tuning job, and its rules. `fine_tuning_jobs::create` turns it into a [`JobSpec`].

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::attached_eval::AttachedEval;
use super::distillation::DistillationSettings;
use super::settings::{Settings, check_measured};
use crate::api::evals::attached::Attached;
use crate::api::fine_tuning::fields::{JobRequest, fields_of};
use crate::api::fine_tuning::job_rules::{normal_suffix, seed};
use crate::api::http::error::{Problem, Result};
use crate::api::http::values;
use crate::api::operations::checks::check_metadata;
use crate::datasets::parse::shorten;
use crate::jobs::JobSpec;
use crate::jobs::collections::Distillation;
use crate::store::files::new_file_id;
use crate::train::hyperparameters;

/// Largest number of integrations that a request may name.
const MAX_INTEGRATIONS: usize = 5;

/// A request for a fine-tuning job.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateJob {
    /// A base model or an earlier fine-tuned one.
    pub model: String,
    /// Id of a file with the purpose `fine-tune`. With the method `distillation`: that of the prompts, if it is not
    /// named there.
    #[serde(default, deserialize_with = "values::text")]
    pub training_file: Option<String>,
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
    #[schema(max_items = 5)]
    pub integrations: Option<Vec<Integration>>,
    /// Extension: an eval that compares the new model with another one once the job has succeeded.
    pub eval: Option<AttachedEval>,
}

/// A service to report to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "services are taken and not used")]
pub(crate) struct Integration {
    /// The service, such as `wandb`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Where to report to at Weights and Biases.
    pub wandb: Option<WeightsAndBiases>,
}

/// Where to report to at Weights and Biases.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "services are taken and not used")]
pub(crate) struct WeightsAndBiases {
    /// The project.
    pub project: Option<String>,
    /// The name of the run.
    pub name: Option<String>,
    /// The team or user.
    pub entity: Option<String>,
    /// Tags of the run.
    pub tags: Option<Vec<String>>,
}

/// How to train.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Method {
    /// `supervised` trains on answers, or on pairs of texts where the file has them, `dpo` on pairs of answers of which
    /// one is preferred, `distillation` on the answers of another model.
    #[serde(rename = "type")]
    pub kind: String,
    /// The settings of `supervised`.
    #[serde(default, deserialize_with = "values::object")]
    pub supervised: Option<MethodSettings>,
    /// The settings of `dpo`.
    #[serde(default, deserialize_with = "values::object")]
    pub dpo: Option<MethodSettings>,
    /// The settings of `distillation`, an extension.
    #[serde(default, deserialize_with = "values::object")]
    pub distillation: Option<DistillationSettings>,
    /// The settings of `reinforcement`, which is not supported.
    #[schema(value_type = Option<Object>)]
    pub reinforcement: Option<Map<String, Value>>,
}

/// The settings of a method.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MethodSettings {
    /// The settings.
    pub hyperparameters: Option<Settings>,
}

impl JobRequest for CreateJob {
    fn inner() -> Vec<(&'static str, Vec<String>)> {
        vec![
            ("method.supervised", fields_of::<MethodSettings>()),
            ("method.supervised.hyperparameters", fields_of::<Settings>()),
            ("method.distillation", fields_of::<DistillationSettings>()),
        ]
    }

    const HINT: &'static str = "";
}

impl CreateJob {
    /// Takes the eval out of the request, which `evals` checks; an error names the field that is out of its range.
    pub(crate) fn take_eval(&mut self) -> Result<Option<Attached>> {
        self.eval.take().map(AttachedEval::checked).transpose()
    }

    /// Returns the job to queue, without its eval, or the fault of the first field that is out of its range.
    pub(crate) fn spec(mut self) -> Result<JobSpec> {
        let distillation = self.take_distillation()?;
        let (method, settings) = asked_method(self.method, self.hyperparameters)?;
        check_metadata(self.metadata.as_ref())?;
        if self.integrations.is_some_and(|integrations| integrations.len() > MAX_INTEGRATIONS) {
            let message = format!("'integrations' has more than {MAX_INTEGRATIONS} items.");
            return Err(Problem::invalid_code("integrations", "array_above_max_length", message));
        }
        let hyperparameters = settings.check(method)?;
        check_measured(&hyperparameters, self.validation_file.as_deref())?;
        let training_file = match &distillation {
            // The file that will be made.
            Some(_) => new_file_id(),
            None => self.training_file.ok_or_else(|| Problem::missing("training_file"))?,
        };
        Ok(JobSpec {
            model: self.model,
            alias: None,
            training_file,
            validation_file: self.validation_file,
            suffix: normal_suffix(self.suffix.as_deref(), 64)?,
            seed: seed(self.seed)?,
            method,
            hyperparameters,
            metadata: self.metadata,
            classification: None,
            eval: None,
            distillation,
        })
    }

    /// Takes what the method `distillation` asks for; the rest is the request of the training that follows it.
    fn take_distillation(&mut self) -> Result<Option<Distillation>> {
        let Some(method) = self.method.as_mut().filter(|method| method.kind == "distillation") else { return Ok(None) };
        let settings = method.distillation.take().unwrap_or_default();
        let plan = settings.check(self.training_file.as_deref())?;
        let others = [
            ("supervised", method.supervised.take().and_then(|settings| settings.hyperparameters)),
            ("dpo", method.dpo.take().and_then(|settings| settings.hyperparameters)),
        ];
        let none = Settings::default();
        if let Some((name, _)) =
            others.iter().find(|(_, settings)| settings.as_ref().is_some_and(|asked| *asked != none))
        {
            let message = format!(
                "'method.type' is 'distillation', but the settings are in 'method.{name}': put them into \
                 'method.distillation.hyperparameters', or change the type."
            );
            return Err(Problem::invalid_code(format!("method.{name}"), "invalid_value", message));
        }
        method.kind = "supervised".into();
        method.supervised = Some(MethodSettings { hyperparameters: settings.hyperparameters });
        Ok(Some(plan))
    }
}

/// Returns the method and its settings, which stand in the method or in the older place. Settings that would not be
/// used are refused.
fn asked_method(asked: Option<Method>, older: Option<Settings>) -> Result<(hyperparameters::Method, Settings)> {
    let settings =
        |method: Option<MethodSettings>| method.and_then(|method| method.hyperparameters).unwrap_or_default();
    let older = older.unwrap_or_default();
    let Some(Method { kind, supervised, dpo, distillation, reinforcement }) = asked else {
        return Ok((hyperparameters::Method::Supervised, older));
    };
    if distillation.is_some_and(|settings| settings != DistillationSettings::default()) {
        let message = format!(
            "'method.type' is '{kind}', but there are settings in 'method.distillation': leave them out, or change the \
             type."
        );
        return Err(Problem::invalid_code("method.distillation", "invalid_value", message));
    }
    let (method, own, others, elsewhere) = match kind.as_str() {
        "supervised" => (hyperparameters::Method::Supervised, settings(supervised), settings(dpo), "dpo"),
        "dpo" => (hyperparameters::Method::Dpo, settings(dpo), settings(supervised), "supervised"),
        other => {
            let message =
                format!("The method '{}' is not supported: use 'supervised', 'dpo' or 'distillation'.", shorten(other));
            return Err(Problem::invalid_code("method", "unsupported_value", message));
        }
    };
    let none = Settings::default();
    let unsupported = reinforcement.is_some_and(|settings| !settings.is_empty());
    let elsewhere = if unsupported { "reinforcement" } else { elsewhere };
    if own == none && older == none && (others != none || unsupported) {
        let message = format!(
            "'method.type' is '{kind}', but the settings are in 'method.{elsewhere}': put them into 'method.{kind}', or \
             change the type."
        );
        return Err(Problem::invalid_code(format!("method.{elsewhere}"), "invalid_value", message));
    }
    if own != none && older != none && own != older {
        let message = format!(
            "There are settings in 'hyperparameters' and in 'method.{kind}.hyperparameters': put all of them into \
             'method.{kind}.hyperparameters'."
        );
        return Err(Problem::invalid_code("hyperparameters", "invalid_value", message));
    }
    Ok((method, if own == none { older } else { own }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fine_tuning::fields::parse;
    use crate::jobs::collections::Prompts;
    use crate::teachers::money::Money;

    fn spec(extra: &str) -> Result<JobSpec> {
        let json = format!(r#"{{"model":"m","training_file":"file-1"{extra}}}"#);
        parse::<CreateJob>(json.as_bytes()).expect("a request").spec()
    }

    #[test]
    fn settings_are_read_from_the_method_or_the_older_place() {
        let method =
            r#","method":{"type":"supervised","dpo":{},"supervised":{"hyperparameters":{"n_epochs":2,"rank":8}}}"#;
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
    fn a_distillation_has_a_teacher_prompts_and_settings_of_training() {
        let ask = |settings: &str| spec(&format!(r#","method":{{"type":"distillation","distillation":{settings}}}"#));
        let asked =
            ask(r#"{"teacher":"teacher:big","max_teacher_cost":0.29,"samples":2,"hyperparameters":{"n_epochs":3}}"#);
        let asked = asked.expect("fine");
        let plan = asked.distillation.expect("a plan");
        assert_eq!(plan.prompts, Prompts::File("file-1".into()));
        assert_eq!((plan.samples, plan.max_teacher_cost.map(Money::millionths)), (2, Some(290_000)));
        assert_eq!((asked.method, asked.hyperparameters.n_epochs), (hyperparameters::Method::Supervised, Some(3)));
        assert!(asked.training_file.starts_with("file-") && asked.training_file != "file-1");
        for (settings, param) in [
            ("{}", "method.distillation.teacher"),
            (r#"{"teacher":"m","top_logprobs":20}"#, "method.distillation.top_logprobs"),
            (r#"{"teacher":"m","prompts":"file-2"}"#, "method.distillation.prompts"),
            (r#"{"teacher":"m","stored_completions":{}}"#, "method.distillation.stored_completions"),
            (r#"{"teacher":"m","samples":17}"#, "method.distillation.samples"),
            (r#"{"teacher":"m","keep":"some"}"#, "method.distillation.keep"),
            (r#"{"teacher":"m","max_teacher_cost":-1}"#, "method.distillation.max_teacher_cost"),
            (r#"{"teacher":"m","graders":[{"type":"other"}]}"#, "method.distillation.graders[0].type"),
        ] {
            let problem = ask(settings).expect_err(settings);
            assert_eq!(problem.error.param.as_deref(), Some(param), "{settings}");
        }
        let elsewhere = r#","method":{"type":"supervised","distillation":{"teacher":"m"}}"#;
        assert_eq!(spec(elsewhere).expect_err("elsewhere").error.param.as_deref(), Some("method.distillation"));
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
            r#","method":{"type":"dpo","dpo":{"hyperparameters":{"loss":"ranking"}}}"#,
            r#","method":{"type":"dpo","dpo":{"hyperparameters":{"query_prompt":"query"}}}"#,
            r#","method":{"type":"reinforcement"}"#,
            r#","method":{"type":"supervised","dpo":{"hyperparameters":{"n_epochs":2}}}"#,
            r#","method":{"type":"supervised","reinforcement":{"hyperparameters":{"n_epochs":2}}}"#,
            r#","hyperparameters":{"rank":4},"method":{"type":"dpo","dpo":{"hyperparameters":{"n_epochs":2}}}"#,
            r#","seed":-1"#,
            r#","metadata":{"a":1}"#,
            r#","integrations":[{},{},{},{},{},{}]"#,
        ] {
            assert!(spec(extra).is_err(), "{extra}");
        }
        let same = r#","hyperparameters":{"rank":4},"method":{"type":"dpo","dpo":{"hyperparameters":{"rank":4}}}"#;
        assert_eq!(spec(same).expect("said twice").hyperparameters.rank, Some(4));
        assert!(spec(r#","integrations":[{"type":"wandb"}],"metadata":{"a":"b"},"validation_file":null"#).is_ok());
    }

    #[test]
    fn a_field_that_is_not_known_is_refused_at_every_level_and_those_of_openai_are_taken() {
        for (extra, expected) in [
            (r#""method":{"type":"supervised","supervised":{"hyperparameters":{"epochs":5}}}"#, "'n_epochs'?"),
            (r#""hyperparameters":{"n_epochs":2,"lr":1e-4}"#, "'hyperparameters.lr'. Did you mean 'learning_rate'?"),
            (r#""hyperparameters":{"loraRank":2}"#, "Did you mean 'rank'?"),
            (r#""n_epochs":3"#, "It belongs inside 'method.supervised.hyperparameters'."),
            (r#""method":{"type":"dpo","dpo":{"beta":1}}"#, "It belongs inside 'method.dpo.hyperparameters'."),
            (r#""method":{"type":"dpo","hyperparameters":{}}"#, "It belongs inside 'method.supervised'."),
            (r#""method":{"type":"dpo","supervized":{}}"#, "Did you mean 'supervised'?"),
            (r#""hyperparams":{}"#, "Did you mean 'hyperparameters'?"),
            (r#""validationFile":"file-2""#, "Did you mean 'validation_file'?"),
            (r#""eval":{"id":"eval_1","promote_iff":{}}"#, "Did you mean 'promote_if'?"),
            (r#""eval":{"id":"eval_1","promote_if":{"alias":"a","min_passrate":1}}"#, "Did you mean 'min_pass_rate'?"),
            (r#""hyperparameters":{"suffix":"x"}"#, "It belongs at the top level"),
            (
                r#""integrations":[{"type":"wandb","wandb":{"projekt":"x"}}]"#,
                "'integrations[0].wandb.projekt'. Did you",
            ),
            (r#""hyperparameters":{"n_epochs":"3"}"#, "write 3 without quotation marks"),
            (r#""hyperparameters":{"keep_best":"true"}"#, "write true without quotation marks"),
        ] {
            let json = format!(r#"{{"model":"m","training_file":"file-1",{extra}}}"#);
            let message = parse::<CreateJob>(json.as_bytes()).expect_err(extra).error.message;
            assert!(message.contains(expected), "{message}");
        }
        let all = r#","suffix":"x","seed":1,"validation_file":null,"metadata":{"a":"b"},"hyperparameters":{},
            "integrations":[{"type":"wandb","wandb":{"project":"p","name":null,"entity":"e","tags":["t"]}}],
            "method":{"type":"supervised","dpo":null,"reinforcement":null,"supervised":{"hyperparameters":
            {"n_epochs":"auto","batch_size":"auto","learning_rate_multiplier":"auto"}}}"#;
        assert!(spec(all).is_ok());
    }
}
