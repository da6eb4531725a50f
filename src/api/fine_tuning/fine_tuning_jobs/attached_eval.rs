//! The field `eval` of a job: which eval is run once the job has succeeded, on what, and when an alias moves to the new
//! model. `evals::attached` checks that the eval has what it names, and does all this.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::evals::attached::{ALL, Attached};
use crate::api::http::error::{Problem, Result};
use crate::jobs::evals::{JobEval, Promotion, Reference};

/// An eval of the new model beside another one.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttachedEval {
    /// `eval_…`
    pub id: String,
    /// Where the items come from and how models are asked, as for a run, without a model; by default as in the newest
    /// run of the eval that asked a model.
    #[schema(value_type = Option<Object>)]
    pub data_source: Option<Value>,
    /// When an alias moves to the new model; without it none does.
    pub promote_if: Option<PromoteIf>,
}

/// When an alias moves to the new model: all that is asked for must hold.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PromoteIf {
    /// The alias; made if there is none of the name.
    pub alias: String,
    /// Name of the criterion that counts, or `all`, the default.
    pub criterion: Option<String>,
    /// `current`, the default: the model that the alias stands for, or the base if there is no such alias. `base`:
    /// the model that the job trains.
    #[schema(value_type = Option<String>)]
    pub better_than: Option<Reference>,
    /// Least share of the items that the new model must pass; an item without a result counts as not passed.
    #[schema(minimum = 0, maximum = 1)]
    pub min_pass_rate: Option<f64>,
    /// Least difference between the shares of items that the new model and the other one pass.
    #[schema(minimum = -1, maximum = 1, default = 0.0)]
    pub min_gain: Option<f64>,
    /// Most that the p-value of the difference may be, by McNemar's exact test.
    #[schema(minimum = 0, maximum = 1)]
    pub max_p_value: Option<f64>,
}

impl AttachedEval {
    /// Checks the ranges of the numbers.
    pub(super) fn checked(self) -> Result<Attached> {
        let promote_if = self.promote_if.map(PromoteIf::checked).transpose()?;
        Ok(Attached { id: self.id, data_source: self.data_source, promote_if })
    }

    /// Returns the field as a job shows it.
    pub(super) fn of(eval: JobEval) -> Self {
        let shown = |promotion: Promotion| PromoteIf {
            alias: promotion.alias,
            criterion: Some(promotion.criterion.unwrap_or_else(|| ALL.into())),
            better_than: Some(promotion.better_than),
            min_pass_rate: promotion.min_pass_rate,
            min_gain: Some(promotion.min_gain),
            max_p_value: promotion.max_p_value,
        };
        Self { id: eval.id, data_source: Some(eval.data_source), promote_if: eval.promote_if.map(shown) }
    }
}

impl PromoteIf {
    fn checked(self) -> Result<Promotion> {
        let within = |name: &str, value: Option<f64>, least: f64| match value {
            Some(value) if !(least..=1.0).contains(&value) => {
                let message = format!("'{name}' must be between {least} and 1; it is {value}.");
                Err(Problem::invalid_code(format!("eval.promote_if.{name}"), "invalid_value", message))
            }
            value => Ok(value),
        };
        Ok(Promotion {
            alias: self.alias,
            criterion: self.criterion.filter(|criterion| criterion != ALL),
            better_than: self.better_than.unwrap_or_default(),
            min_pass_rate: within("min_pass_rate", self.min_pass_rate, 0.0)?,
            min_gain: within("min_gain", self.min_gain, -1.0)?.unwrap_or(0.0),
            max_p_value: within("max_p_value", self.max_p_value, 0.0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promotion_has_defaults_and_ranges() {
        let read = |json: &str| serde_json::from_str::<PromoteIf>(json).map_err(|error| error.to_string());
        let plain = read(r#"{"alias": "a", "criterion": "all"}"#).expect("read").checked().expect("in range");
        assert_eq!((plain.criterion, plain.better_than, plain.min_gain), (None, Reference::Current, 0.0));
        for field in [r#""min_pass_rate": 1.5"#, r#""min_gain": -2"#, r#""max_p_value": -0.1"#] {
            assert!(read(&format!(r#"{{"alias": "a", {field}}}"#)).expect("read").checked().is_err(), "{field}");
        }
        for other in [r#"{"alias": "a", "better_than": "best"}"#, r#"{"alias": "a", "model": "m"}"#, "{}"] {
            assert!(read(other).is_err(), "{other}");
        }
    }
}
