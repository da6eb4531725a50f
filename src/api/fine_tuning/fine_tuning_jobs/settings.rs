//! The settings of a fine-tuning job in requests and answers, and their ranges.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::fine_tuning::job_rules::{AutoOr, positive};
use crate::api::http::error::{Problem, Result};
use crate::api::operations::checks::within;
use crate::datasets::parse::shorten;
use crate::jobs::Job;
use crate::model::lora::modules::{KNOWN, Module};
use crate::train::hyperparameters::{ALL_LINEAR, Hyperparameters, Method, TextLoss};
use crate::train::schedule::Schedule;
use crate::train::settings::MAX_SEQUENCE_TOKENS;

/// Smallest `max_seq_length`: fewer tokens have no room for a prompt and an answer.
const MIN_SEQUENCE_TOKENS: u32 = 16;
/// Largest `max_grad_norm`: a larger limit limits nothing.
const MAX_GRAD_NORM: f64 = 1000.0;
/// Largest `lora_dropout`: above it an adapter sees too little of its input to learn.
const MAX_DROPOUT: f64 = 0.9;
/// Largest `beta`, as in OpenAI's API.
const MAX_BETA: f64 = 2.0;
/// Largest `scale`, which is a temperature of 1/1000: with a larger one only the nearest text counts.
const MAX_SCALE: f64 = 1000.0;
/// Largest `hard_negatives`: as many as a line may have of its own.
const MAX_NEGATIVES: u32 = 16;
/// Largest `early_stopping_patience`: no job has more evaluations.
const MAX_PATIENCE: u32 = 1000;

/// Settings of training. The numbers may also be `"auto"`, which is the same as leaving one out. All after `beta` are
/// extensions of this server.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Passes over the training file, 1 to 50.
    pub n_epochs: Option<AutoOr<u32>>,
    /// Examples per step, 1 to 256.
    pub batch_size: Option<AutoOr<u32>>,
    /// Factor on the learning rate, above 0.
    pub learning_rate_multiplier: Option<AutoOr<f64>>,
    /// How strongly the method `dpo` holds the model to what it was, above 0 and at most 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<AutoOr<f64>>,
    /// Factor on the cosine similarities, where the training file has pairs of texts, above 0 and at most 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<AutoOr<f64>>,
    /// How texts are learned: `ranking` (pairs), `cosine_similarity` (pairs with a `score`) or `binary_cross_entropy`
    /// (pairs with a `label`). The training file decides; a request that names another loss than the file's fails.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<TextLoss>,
    /// Name of the model's prompt that stands before each anchor of a pair; `""` for none. Left out, it is the model's
    /// usual prompt, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_prompt: Option<String>,
    /// Name of the model's prompt that stands before each other text of a pair; `""` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document_prompt: Option<String>,
    /// Hard negatives that are searched in the file itself for each pair of texts, 0 to 16: positives of other pairs that
    /// the model takes for nearly as good as the own one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_negatives: Option<AutoOr<u32>>,
    /// Weight of the prompt's tokens in the loss, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_loss_weight: Option<AutoOr<f64>>,
    /// Rank of the adapter, 1 to 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<AutoOr<u32>>,
    /// Alpha of the adapter, above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<AutoOr<f64>>,
    /// The learning rate before the factor, above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<AutoOr<f64>>,
    /// The linear layers that the adapter changes: `"all-linear"`, or a list of the model's names of them, such as
    /// `q_proj` and `down_proj`; Phi-3 has `qkv_proj` and `gate_up_proj`. In a mixture of experts, `gate_up_proj` and
    /// `down_proj` mean the layers of all experts, which `"all-linear"` leaves out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<TargetModules>,
    /// How the learning rate falls after its rise: `linear`, `cosine` or `constant`.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_scheduler: Option<Schedule>,
    /// Share of the steps in which the learning rate rises, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<AutoOr<f64>>,
    /// Weight decay of the optimizer, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<AutoOr<f64>>,
    /// Largest norm of a step's gradient, 0 to 1000; 0 does not limit it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<AutoOr<f64>>,
    /// Share of the adapter's inputs that a step leaves out, 0 to 0.9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_dropout: Option<AutoOr<f64>>,
    /// Scale the adapter by alpha / √rank in place of alpha / rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_rslora: Option<bool>,
    /// Tokens of an example at the most, 16 to 4096; longer ones are cut at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_length: Option<AutoOr<u32>>,
    /// Evaluations without a lower validation loss after which training ends, 0 to 1000; 0 goes on to the end. Needs a
    /// validation file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_patience: Option<AutoOr<u32>>,
    /// The model is the adapter of the lowest validation loss, not the last one. Needs a validation file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_best: Option<bool>,
}

/// All linear layers, or some.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "expected \"all-linear\" or a list of layers' names, such as q_proj")]
pub(crate) enum TargetModules {
    /// The word `"all-linear"`.
    All(AllLinear),
    /// Some of them by name.
    Some(Vec<String>),
}

/// The word `"all-linear"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AllLinear {
    /// Every linear layer.
    AllLinear,
}

impl TargetModules {
    /// Returns the names, or the word for all. The model's own layers are checked with the model.
    fn names(self) -> Result<Vec<String>> {
        match self {
            Self::All(AllLinear::AllLinear) => Ok(vec![ALL_LINEAR.to_owned()]),
            Self::Some(named) if named.is_empty() => {
                let message = "'target_modules' is empty: name at least one layer, or use \"all-linear\".";
                Err(Problem::invalid_code("target_modules", "invalid_value", message))
            }
            Self::Some(named) => {
                let known = KNOWN.iter().copied().flatten().map(Module::name);
                let known: Vec<&str> = known.collect::<BTreeSet<_>>().into_iter().collect();
                if let Some(other) = named.iter().find(|name| !known.contains(&name.as_str())) {
                    let message =
                        format!("Invalid 'target_modules': '{}' is none of {}.", shorten(other), known.join(", "));
                    return Err(Problem::invalid_code("target_modules", "invalid_value", message));
                }
                Ok(named)
            }
        }
    }

    fn of(names: &[String]) -> Self {
        if names == [ALL_LINEAR] { Self::All(AllLinear::AllLinear) } else { Self::Some(names.to_vec()) }
    }
}

impl Settings {
    /// Returns the settings as hyperparameters, or the fault of the first one that is out of its range.
    pub(super) fn check(self, method: Method) -> Result<Hyperparameters> {
        fn number<T>(setting: Option<AutoOr<T>>) -> Option<T> {
            setting.and_then(AutoOr::number)
        }
        let beta = number(self.beta);
        if beta.is_some() && method != Method::Dpo {
            let message = "'beta' is a setting of the method 'dpo': leave it out.";
            return Err(Problem::invalid_code("beta", "invalid_value", message));
        }
        let scale = number(self.scale);
        if scale.is_some() && method == Method::Dpo {
            let message = "'scale' is for pairs of texts, which the method 'dpo' does not take: leave it out.";
            return Err(Problem::invalid_code("scale", "invalid_value", message));
        }
        let hard_negatives = number(self.hard_negatives);
        let of_texts = [
            ("loss", self.loss.is_some()),
            ("query_prompt", self.query_prompt.is_some()),
            ("document_prompt", self.document_prompt.is_some()),
            ("hard_negatives", hard_negatives.is_some()),
        ];
        if let Some((name, _)) = of_texts.into_iter().find(|(_, asked)| *asked && method == Method::Dpo) {
            let message =
                format!("'{name}' is for pairs of texts, which the method 'dpo' does not take: leave it out.");
            return Err(Problem::invalid_code(name, "invalid_value", message));
        }
        let prompt_loss_weight = number(self.prompt_loss_weight);
        if method == Method::Dpo && prompt_loss_weight.is_some_and(|weight| weight != 0.0) {
            let message =
                "'prompt_loss_weight' is no setting of the method 'dpo', which compares answers: leave it out.";
            return Err(Problem::invalid_code("prompt_loss_weight", "invalid_value", message));
        }
        Ok(Hyperparameters {
            n_epochs: within("n_epochs", number(self.n_epochs), 1, 50)?,
            batch_size: within("batch_size", number(self.batch_size), 1, 256)?,
            learning_rate_multiplier: positive("learning_rate_multiplier", number(self.learning_rate_multiplier))?,
            prompt_loss_weight: within("prompt_loss_weight", prompt_loss_weight, 0.0, 1.0)?,
            beta: within("beta", positive("beta", beta)?, 0.0, MAX_BETA)?,
            scale: within("scale", positive("scale", scale)?, 0.0, MAX_SCALE)?,
            loss: self.loss,
            query_prompt: self.query_prompt,
            document_prompt: self.document_prompt,
            hard_negatives: within("hard_negatives", hard_negatives, 0, MAX_NEGATIVES)?,
            rank: within("rank", number(self.rank), 1, 256)?,
            alpha: positive("alpha", number(self.alpha))?,
            learning_rate: positive("learning_rate", number(self.learning_rate))?,
            target_modules: self.target_modules.map(TargetModules::names).transpose()?,
            lr_scheduler: self.lr_scheduler,
            warmup_ratio: within("warmup_ratio", number(self.warmup_ratio), 0.0, 1.0)?,
            weight_decay: within("weight_decay", number(self.weight_decay), 0.0, 1.0)?,
            max_grad_norm: within("max_grad_norm", number(self.max_grad_norm), 0.0, MAX_GRAD_NORM)?,
            lora_dropout: within("lora_dropout", number(self.lora_dropout), 0.0, MAX_DROPOUT)?,
            use_rslora: self.use_rslora,
            max_seq_length: within(
                "max_seq_length",
                number(self.max_seq_length),
                MIN_SEQUENCE_TOKENS,
                MAX_SEQUENCE_TOKENS,
            )?,
            early_stopping_patience: within(
                "early_stopping_patience",
                number(self.early_stopping_patience),
                0,
                MAX_PATIENCE,
            )?,
            keep_best: self.keep_best,
        })
    }

    /// Returns the settings that the job trains with, or those of its request until training has resolved them.
    pub(super) fn of(job: &Job) -> Self {
        let Hyperparameters {
            n_epochs,
            batch_size,
            learning_rate_multiplier,
            prompt_loss_weight,
            beta,
            scale,
            loss,
            query_prompt,
            document_prompt,
            hard_negatives,
            rank,
            alpha,
            learning_rate,
            target_modules,
            lr_scheduler,
            warmup_ratio,
            weight_decay,
            max_grad_norm,
            lora_dropout,
            use_rslora,
            max_seq_length,
            early_stopping_patience,
            keep_best,
        } = job.resolved.as_ref().unwrap_or(&job.spec.hyperparameters).clone();
        Self {
            n_epochs: Some(n_epochs.into()),
            batch_size: Some(batch_size.into()),
            learning_rate_multiplier: Some(learning_rate_multiplier.into()),
            prompt_loss_weight: prompt_loss_weight.map(AutoOr::Number),
            beta: beta.map(AutoOr::Number),
            scale: scale.map(AutoOr::Number),
            loss,
            query_prompt,
            document_prompt,
            hard_negatives: hard_negatives.map(AutoOr::Number),
            rank: rank.map(AutoOr::Number),
            alpha: alpha.map(AutoOr::Number),
            learning_rate: learning_rate.map(AutoOr::Number),
            target_modules: target_modules.as_deref().map(TargetModules::of),
            lr_scheduler,
            warmup_ratio: warmup_ratio.map(AutoOr::Number),
            weight_decay: weight_decay.map(AutoOr::Number),
            max_grad_norm: max_grad_norm.map(AutoOr::Number),
            lora_dropout: lora_dropout.map(AutoOr::Number),
            use_rslora,
            max_seq_length: max_seq_length.map(AutoOr::Number),
            early_stopping_patience: early_stopping_patience.map(AutoOr::Number),
            keep_best,
        }
    }
}

/// Refuses settings that need a validation loss if there is no `validation_file` to measure it on.
pub(super) fn check_measured(settings: &Hyperparameters, validation_file: Option<&str>) -> Result<()> {
    let patience = settings.early_stopping_patience.is_some_and(|patience| patience > 0);
    let needing = [("early_stopping_patience", patience), ("keep_best", settings.keep_best == Some(true))];
    match needing.into_iter().find(|(_, asked)| *asked) {
        Some((param, _)) if validation_file.is_none() => {
            let message = format!("'{param}' needs a 'validation_file' to measure on.");
            Err(Problem::invalid_code(param, "invalid_value", message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::extract::parse;

    fn check(json: &str) -> Result<Hyperparameters> {
        parse::<Settings>(json.as_bytes()).expect("settings").check(Method::Supervised)
    }

    #[test]
    fn layers_are_all_or_named_in_any_order() {
        let names = |json| check(json).expect("fine").target_modules.expect("names");
        let all = names(r#"{"target_modules":"all-linear"}"#);
        assert_eq!(all, [ALL_LINEAR]);
        assert_eq!(TargetModules::of(&all), TargetModules::All(AllLinear::AllLinear));
        assert_eq!(names(r#"{"target_modules":["v_proj","qkv_proj"]}"#), ["v_proj", "qkv_proj"]);
        assert!(check(r#"{"target_modules":[]}"#).is_err());
        assert!(check(r#"{"target_modules":["lm_head"]}"#).is_err());
        for json in [r#"{"target_modules":"q_proj"}"#, r#"{"lr_scheduler":"wsd"}"#] {
            assert!(parse::<Settings>(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn every_setting_has_its_range_and_is_blamed_by_its_name() {
        for (name, wrong) in [
            ("warmup_ratio", "1.1"),
            ("weight_decay", "-0.1"),
            ("max_grad_norm", "-1"),
            ("lora_dropout", "0.95"),
            ("max_seq_length", "15"),
            ("max_seq_length", "4097"),
            ("early_stopping_patience", "1001"),
            ("scale", "0"),
            ("scale", "1001"),
            ("hard_negatives", "17"),
        ] {
            let Err(problem) = check(&format!("{{\"{name}\":{wrong}}}")) else {
                panic!("{name} may be {wrong}");
            };
            assert_eq!(problem.error.param.as_deref(), Some(name));
        }
        let fine = r#"{"warmup_ratio":0,"weight_decay":0.1,"max_grad_norm":"auto","lora_dropout":0.05,"lr_scheduler":"cosine",
            "use_rslora":true,"max_seq_length":16,"early_stopping_patience":2,"keep_best":true}"#;
        let fine = check(fine).expect("fine");
        assert_eq!((fine.lr_scheduler, fine.max_grad_norm), (Some(Schedule::Cosine), None));
        assert!(check_measured(&fine, None).is_err() && check_measured(&fine, Some("file-1")).is_ok());
        assert!(check_measured(&Hyperparameters::default(), None).is_ok());
    }
}
