//! The method `distillation` in requests and answers: who answers which prompts, what is kept of the answers, and what
//! they may cost. `api::distillation` does what this asks for.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::settings::Settings;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::distillation::teacher::price;
use crate::api::graders::check;
use crate::api::http::error::{Problem, Result};
use crate::api::http::values;
use crate::api::operations::checks::within;
use crate::api::operations::stored_answers::{DEFAULT, MOST, StoredAnswers};
use crate::graders::spec::{Grader, Purpose};
use crate::jobs::JobSpec;
use crate::jobs::collections::{Distillation, Keep, Prompts};
use crate::store::files::new_file_id;
use crate::store::stored_completions::CompletionChoice;
use crate::teachers::money::Money;

const PLACE: &str = "method.distillation";
/// Answers to a prompt, tokens of one, and graders at the most.
const MAX_SAMPLES: u32 = 16;
const MAX_TOKENS: u32 = 1 << 17;
const MAX_GRADERS: usize = 16;

/// The settings of `distillation`: an extension of this server.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DistillationSettings {
    /// Who answers: `teacher:NAME`, one that the operator of this server has named, or a model of this server. Left
    /// out, the stored answers themselves are judged and trained on.
    #[serde(default, deserialize_with = "values::text", skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// Id of a file of prompts, with the purpose `fine-tune`; the same as `training_file` of the job. Each line has
    /// `messages` or a `prompt`; its other fields are for graders.
    #[serde(default, deserialize_with = "values::text", skip_serializing_if = "Option::is_none")]
    pub prompts: Option<String>,
    /// Stored chats, in place of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_completions: Option<StoredAnswers>,
    /// Answers to each prompt, 1 to 16.
    #[schema(minimum = 1, maximum = 16, default = 1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub samples: Option<u32>,
    /// Temperature of the answers, 0 to 2; left out, it is the teacher's own.
    #[serde(default, deserialize_with = "values::optional", skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Tokens of an answer at the most.
    #[serde(default, deserialize_with = "values::optional", skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Not supported: answers are trained on as texts.
    #[serde(default, deserialize_with = "values::optional", skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<i64>,
    /// Graders of the answers, 16 at the most; the line of a prompt is their `item`.
    #[schema(value_type = Option<Vec<Object>>, max_items = 16)]
    #[serde(default)]
    pub graders: Option<Vec<Value>>,
    /// The score that an answer must have from each grader.
    #[schema(default = 1.0)]
    #[serde(default, deserialize_with = "values::optional")]
    pub min_score: Option<f64>,
    /// The most that teacher and graders may cost, in the server's currency. Needed where they have a price.
    #[serde(default, deserialize_with = "values::optional")]
    pub max_teacher_cost: Option<f64>,
    /// Which of the answers to a prompt are kept, of those that pass: `best` or `all`.
    #[schema(default = "best")]
    #[serde(default, deserialize_with = "values::text")]
    pub keep: Option<String>,
    /// The settings of training.
    #[serde(default)]
    pub hyperparameters: Option<Settings>,
    /// In answers: id of the report, which is there once the answers are.
    #[serde(default, skip_deserializing, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub report_file: Option<String>,
}

/// Returns a field's path.
fn at(field: &str) -> String {
    format!("{PLACE}.{field}")
}

fn invalid(field: &str, message: impl Into<String>) -> Problem {
    Problem::invalid_code(at(field), "invalid_value", message)
}

/// Checks a choice of stored chats.
fn choice(stored: &StoredAnswers) -> Result<CompletionChoice> {
    stored.clone().check(DEFAULT, MOST).map_err(|problem| {
        let field = problem.error.param.clone().unwrap_or_default();
        problem.param(at(&format!("stored_completions.{field}")))
    })
}

/// Blames a fault on the field's path.
fn located<T>(field: &str, checked: Result<T>) -> Result<T> {
    checked.map_err(|problem| problem.param(at(field)))
}

impl DistillationSettings {
    /// Returns what is to be collected; `training_file` is the older place of `prompts`.
    pub(super) fn check(&self, training_file: Option<&str>) -> Result<Distillation> {
        if self.top_logprobs.is_some_and(|number| number != 0) {
            let message = "'top_logprobs' is not supported: answers are trained on as texts, not as distributions. Leave \
                           it out.";
            return Err(Problem::invalid_code(at("top_logprobs"), "unsupported_parameter", message));
        }
        let file = match (self.prompts.as_deref(), training_file) {
            (Some(one), Some(other)) if one != other => {
                let message =
                    "There are two files of prompts: give one of 'training_file' and 'method.distillation.prompts'.";
                return Err(invalid("prompts", message));
            }
            (one, other) => one.or(other),
        };
        let prompts = match (file, &self.stored_completions) {
            (Some(_), Some(_)) => {
                let message = "There are a file of prompts and 'stored_completions': give one of them.";
                return Err(invalid("stored_completions", message));
            }
            (Some(file), None) => Prompts::File(file.to_owned()),
            (None, Some(stored)) => Prompts::StoredCompletions(choice(stored)?),
            (None, None) => {
                let message =
                    format!("Missing required parameter: '{}' or '{}'.", at("prompts"), at("stored_completions"));
                return Err(Problem::bad_request(message).param(at("prompts")));
            }
        };
        let is_stored = matches!(prompts, Prompts::StoredCompletions(_));
        if self.teacher.is_none() && !is_stored {
            return Err(Problem::missing(at("teacher")));
        }
        let answering = [
            ("samples", self.samples.is_some()),
            ("temperature", self.temperature.is_some()),
            ("max_tokens", self.max_tokens.is_some()),
        ];
        if let (None, Some((field, _))) = (&self.teacher, answering.iter().find(|(_, given)| *given)) {
            return Err(invalid(
                field,
                format!("'{field}' is for a teacher that answers: give a 'teacher', or leave it out."),
            ));
        }
        let max_teacher_cost = self.max_teacher_cost.map(|units| {
            Money::of_units(units).ok_or_else(|| {
                let message =
                    "'max_teacher_cost' is a number of at least 0, with 6 digits behind the point at the most.";
                invalid("max_teacher_cost", message)
            })
        });
        let min_score = self.min_score.unwrap_or(1.0);
        if !min_score.is_finite() {
            return Err(invalid("min_score", "'min_score' must be a number."));
        }
        let keep = match self.keep.as_deref() {
            None | Some("best") => Keep::Best,
            Some("all") => Keep::All,
            Some(_) => return Err(invalid("keep", "'keep' must be 'best' or 'all'.")),
        };
        let graders = self.graders.clone().unwrap_or_default();
        if graders.len() > MAX_GRADERS {
            return Err(invalid("graders", format!("'graders' has more than {MAX_GRADERS} items.")));
        }
        for (index, grader) in graders.iter().enumerate() {
            let place = at(&format!("graders[{index}]"));
            Grader::parse(grader, Purpose::Reward).map_err(|fault| check::refusal(&place, &fault))?;
        }
        Ok(Distillation {
            teacher: self.teacher.clone(),
            prompts,
            samples: located("samples", within("samples", self.samples, 1, MAX_SAMPLES))?.unwrap_or(1),
            temperature: located("temperature", within("temperature", self.temperature, 0.0, 2.0))?,
            max_tokens: located("max_tokens", within("max_tokens", self.max_tokens, 1, MAX_TOKENS))?,
            graders,
            min_score,
            max_teacher_cost: max_teacher_cost.transpose()?,
            keep,
            report_file: new_file_id(),
        })
    }

    /// Returns what a job was asked for.
    pub(super) fn of(plan: &Distillation, hyperparameters: Settings) -> Self {
        let (prompts, stored_completions) = match &plan.prompts {
            Prompts::File(file) => (Some(file.clone()), None),
            Prompts::StoredCompletions(stored) => (None, Some(StoredAnswers::of(stored))),
        };
        let asks = plan.teacher.is_some();
        Self {
            teacher: plan.teacher.clone(),
            prompts,
            stored_completions,
            samples: asks.then_some(plan.samples),
            temperature: plan.temperature,
            max_tokens: plan.max_tokens,
            top_logprobs: None,
            graders: Some(plan.graders.clone()),
            min_score: Some(plan.min_score),
            max_teacher_cost: plan.max_teacher_cost.map(Money::units),
            keep: Some(plan.keep.word().into()),
            hyperparameters: Some(hyperparameters),
            report_file: Some(plan.report_file.clone()),
        }
    }
}

/// Checks what needs the server: that the caller may use teacher and graders, and that there is a budget if they cost
/// anything.
pub(super) async fn admit(state: &ApiState, caller: &Caller, spec: &JobSpec) -> Result<()> {
    let Some(plan) = &spec.distillation else { return Ok(()) };
    let mut models = Vec::new();
    if let Some(teacher) = &plan.teacher {
        check::model_of(state, caller, teacher, check::Task::Texts, at("teacher")).await?;
        models.push(teacher.clone());
    }
    for (index, grader) in plan.graders.iter().enumerate() {
        let place = at(&format!("graders[{index}]"));
        let grader = check::whole(state, caller, grader, &place, Purpose::Reward).await?;
        models.extend(grader.models().into_iter().map(|(_, model)| model.to_owned()));
    }
    if plan.max_teacher_cost.is_some() {
        return Ok(());
    }
    for model in models {
        if !price(state, &caller.organization, &model).await.is_free() {
            let message = format!("`{model}` has a price: say in 'max_teacher_cost' how much the answers may cost.");
            return Err(Problem::invalid_code(at("max_teacher_cost"), "missing_budget", message));
        }
    }
    Ok(())
}
