//! Which stored answers a request is about: the fields that prompts of distillation, training files and items of evals are
//! chosen by, with their checks. `store::stored_completions` reads what is chosen.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::http::error::Result;
use crate::api::operations::checks::{check_metadata, within};
use crate::store::stored_completions::{CompletionChoice, CompletionFilter};

/// Answers of a choice by default, and at the most.
pub(crate) const DEFAULT: i64 = 10_000;
pub(crate) const MOST: i64 = 100_000;
/// The last second of the year 9999.
const LAST_SECOND: i64 = 253_402_300_799;

/// Declares a part of a request with the fields that stored answers are chosen by, and further ones after them: serde's
/// `flatten` would lose which field an error is about.
macro_rules! with_stored_answers {
    ($(#[$about:meta])* pub(crate) struct $name:ident { $($further:tt)* }) => {
        $(#[$about])*
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            /// Only answers of this model, as it was asked for.
            #[serde(default, deserialize_with = "crate::api::http::values::text")]
            pub model: Option<String>,
            /// Only answers that have these notes among theirs.
            #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
            #[serde(default)]
            pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
            /// Unix seconds: only answers of this time or later.
            #[serde(default, deserialize_with = "crate::api::http::values::optional")]
            pub created_after: Option<i64>,
            /// Unix seconds: only answers of this time or earlier.
            #[serde(default, deserialize_with = "crate::api::http::values::optional")]
            pub created_before: Option<i64>,
            /// Answers at the most, the newest.
            #[schema(minimum = 1, maximum = 100_000, default = 10_000)]
            #[serde(default, deserialize_with = "crate::api::http::values::optional")]
            pub limit: Option<i64>,
            $($further)*
        }
    };
}
pub(crate) use with_stored_answers;

with_stored_answers! {
    /// Which stored answers. Without filters: the newest.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
    pub(crate) struct StoredAnswers {}
}

impl StoredAnswers {
    /// Names of the fields.
    pub(crate) const FIELDS: [&str; 5] = ["model", "metadata", "created_after", "created_before", "limit"];

    /// Returns the choice, of `most` answers at the most; an error names the field.
    pub(crate) fn check(self, default: i64, most: i64) -> Result<CompletionChoice> {
        let time = |param, seconds| within(param, seconds, 0, LAST_SECOND);
        check_metadata(self.metadata.as_ref())?;
        Ok(CompletionChoice {
            limit: within("limit", self.limit, 1, most)?.unwrap_or(default),
            filter: CompletionFilter {
                created_after: time("created_after", self.created_after)?,
                created_before: time("created_before", self.created_before)?,
                model: self.model,
                metadata: self.metadata.unwrap_or_default(),
            },
        })
    }

    /// Returns what was asked for.
    pub(crate) fn of(CompletionChoice { filter, limit }: &CompletionChoice) -> Self {
        Self {
            model: filter.model.clone(),
            metadata: (!filter.metadata.is_empty()).then(|| filter.metadata.clone()),
            created_after: filter.created_after,
            created_before: filter.created_before,
            limit: Some(*limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> StoredAnswers {
        serde_json::from_value(value).expect("a choice")
    }

    #[test]
    fn a_choice_is_checked_and_shown_as_it_was_asked_for() {
        let asked =
            json!({"model": "m", "metadata": {"a": "1"}, "created_after": 5.0, "created_before": null, "limit": 3});
        let choice = read(asked).check(DEFAULT, MOST).expect("a choice");
        let shown =
            json!({"model": "m", "metadata": {"a": "1"}, "created_after": 5, "created_before": null, "limit": 3});
        assert_eq!(json!(StoredAnswers::of(&choice)), shown);
        // As jobs keep it.
        assert_eq!(json!(choice), shown);
        assert_eq!(serde_json::from_value::<CompletionChoice>(shown).expect("a choice"), choice);
        let newest = read(json!({"model": ""})).check(DEFAULT, MOST).expect("a choice");
        assert_eq!((newest.filter, newest.limit), (CompletionFilter::default(), DEFAULT));
    }

    #[test]
    fn a_fault_names_its_field() {
        for (asked, param) in [
            (json!({"limit": 0}), "limit"),
            (json!({"limit": MOST + 1}), "limit"),
            (json!({"created_after": -1}), "created_after"),
            (json!({"created_before": LAST_SECOND + 1}), "created_before"),
            (json!({"metadata": {"a": 1}}), "metadata"),
        ] {
            let problem = read(asked.clone()).check(DEFAULT, MOST).expect_err("a fault");
            assert_eq!(problem.error.param.as_deref(), Some(param), "{asked}");
        }
        assert!(serde_json::from_value::<StoredAnswers>(json!({"modle": "m"})).is_err());
    }
}
