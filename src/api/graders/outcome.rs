//! What comes of a grader: a score, or a failure by its kind.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::graders::ask::Tokens;
use crate::graders::template::Unfilled;

/// Why a grader has no score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A template asks for a value that is not there.
    NoValue(String),
    /// A template needs an answer that is JSON.
    NotJson(String),
    /// The model that grades could not be asked.
    ModelUnavailable(String),
    /// The model's answer is not of the form that it was asked for.
    ModelAnswer(String),
    /// The grader's code has no score: it raised an exception, returned no number, or took too much.
    Code(String),
    /// The grader's code could not be run: a word for programs and a message.
    CodeUnavailable(&'static str, String),
    /// Anything else.
    Other(String),
}

/// What a grader says of an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Judged {
    /// 0 where the grader failed.
    pub score: f64,
    /// The scores of the parts of a grader that has some.
    pub parts: Map<String, Value>,
    /// Empty if all went well.
    pub failures: Vec<Failure>,
    /// The models that were asked.
    pub calls: Vec<Call>,
}

/// A request to a model.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub model: String,
    pub tokens: Tokens,
    /// What the model was asked and answered; null for embeddings.
    pub sample: Value,
}

impl Failure {
    /// Returns the words for people.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::NoValue(message)
            | Self::NotJson(message)
            | Self::ModelUnavailable(message)
            | Self::ModelAnswer(message)
            | Self::Code(message)
            | Self::CodeUnavailable(_, message)
            | Self::Other(message) => message,
        }
    }
}

impl From<Unfilled> for Failure {
    fn from(unfilled: Unfilled) -> Self {
        let message = unfilled.to_string();
        match unfilled {
            Unfilled::NoValue(_) => Self::NoValue(message),
            Unfilled::NotJson(_) => Self::NotJson(message),
            Unfilled::TooLong => Self::Other(message),
        }
    }
}

impl Judged {
    /// Makes the outcome of a grader with this score.
    pub(crate) fn of(score: f64) -> Self {
        Self { score, ..Self::default() }
    }

    /// Returns the tokens that each model used.
    pub(crate) fn tokens_by_model(&self) -> Map<String, Value> {
        let mut all = Map::new();
        for Call { model, tokens, .. } in &self.calls {
            let before = all.get(model).and_then(Value::as_u64).unwrap_or_default();
            all.insert(model.clone(), (before + tokens.total()).into());
        }
        all
    }
}

/// What went wrong in a grader.
#[expect(clippy::struct_excessive_bools, reason = "the contract's names")]
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct GraderErrors {
    /// Always false: formulas are checked before.
    pub formula_parse_error: bool,
    /// A template needs an answer that is JSON.
    pub sample_parse_error: bool,
    /// Always false.
    pub truncated_observation_error: bool,
    /// Always false.
    pub unresponsive_reward_error: bool,
    /// A template asks for a value that is not there.
    pub invalid_variable_error: bool,
    /// Something else.
    pub other_error: bool,
    /// The grader's code could not be run.
    pub python_grader_server_error: bool,
    /// Why: `not_allowed`, `busy` or `sandbox_error`.
    pub python_grader_server_error_type: Option<String>,
    /// The grader's code has no score: it raised an exception, returned no number, or took too much.
    pub python_grader_runtime_error: bool,
    /// What the code said, with the lines where it was.
    pub python_grader_runtime_error_details: Option<String>,
    /// The model that grades could not be asked.
    pub model_grader_server_error: bool,
    /// Always false: models here have no refusals of their own.
    pub model_grader_refusal_error: bool,
    /// The model's answer has no score.
    pub model_grader_parse_error: bool,
    /// What the server said about the model.
    pub model_grader_server_error_details: Option<String>,
    /// Extension: the failures in words.
    pub details: Vec<String>,
}

impl GraderErrors {
    /// Sorts failures by their kinds.
    pub(crate) fn of(failures: &[Failure]) -> Self {
        let mut errors = Self::default();
        for failure in failures {
            match failure {
                Failure::NoValue(_) => errors.invalid_variable_error = true,
                Failure::NotJson(_) => errors.sample_parse_error = true,
                Failure::ModelUnavailable(message) => {
                    errors.model_grader_server_error = true;
                    errors.model_grader_server_error_details.get_or_insert_with(|| message.clone());
                }
                Failure::ModelAnswer(_) => errors.model_grader_parse_error = true,
                Failure::Code(message) => {
                    errors.python_grader_runtime_error = true;
                    errors.python_grader_runtime_error_details.get_or_insert_with(|| message.clone());
                }
                Failure::CodeUnavailable(kind, _) => {
                    errors.python_grader_server_error = true;
                    errors.python_grader_server_error_type.get_or_insert_with(|| (*kind).to_owned());
                }
                Failure::Other(_) => errors.other_error = true,
            }
            errors.details.push(failure.message().to_owned());
        }
        errors
    }
}
