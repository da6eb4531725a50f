//! `/evals/{eval_id}/comparison`: two runs over the same items, such as those of two models, side by side.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Path;
use crate::api::http::query::Query;
use crate::graders::statistics::mcnemar;
use crate::store::evals::items::PairCounts;

/// Which runs to compare.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ComparisonQuery {
    /// Id of a completed run.
    pub first: String,
    /// Id of another one.
    pub second: String,
}

/// Two runs side by side, over the items that are the same in both and have a result in both.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Comparison {
    /// Always `eval.comparison`.
    pub object: &'static str,
    /// `eval_…`
    pub eval_id: String,
    /// The first run.
    pub first: String,
    /// The second run.
    pub second: String,
    /// The counts.
    #[serde(flatten)]
    pub pairs: Pairs,
}

/// Answers of two to the same items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub(crate) struct Pairs {
    /// Items that are compared.
    pub items: i64,
    /// Items that passed with both.
    pub both_passed: i64,
    /// Items that passed with the first alone.
    pub only_first_passed: i64,
    /// Items that passed with the second alone.
    pub only_second_passed: i64,
    /// Items that passed with neither.
    pub neither_passed: i64,
    /// How probable a difference at least as large is if both are equally good: McNemar's exact test, two-sided.
    pub p_value: f64,
}

/// Compare two runs
///
/// Extension. Both runs must be completed, and neither may ask several models, whose own results compare them.
#[utoipa::path(
    get, path = "/evals/{eval_id}/comparison", operation_id = "compareEvalRuns", tag = "Evals",
    params(("eval_id" = String, Path), ComparisonQuery),
    responses((status = 200, body = Comparison), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    Path(eval_id): Path<String>,
    Query(query): Query<ComparisonQuery>,
) -> Result<Json<Comparison>, Problem> {
    let first = state.store.eval_run(&caller.organization, &eval_id, &query.first).await?;
    let second = state.store.eval_run(&caller.organization, &eval_id, &query.second).await?;
    for (param, run) in [("first", &first), ("second", &second)] {
        if run.status != "completed" {
            let message = format!("The run {} is {}: runs are compared once they are completed.", run.id, run.status);
            return Err(Problem::invalid_code(param, "invalid_value", message));
        }
        if run.models.len() > 1 {
            let message = format!("The run {} asks several models: 'per_model_results' of it compares them.", run.id);
            return Err(Problem::invalid_code(param, "invalid_value", message));
        }
    }
    let pairs = state.store.paired_counts(&first, &second).await?.into();
    Ok(Json(Comparison { object: "eval.comparison", eval_id, first: first.id, second: second.id, pairs }))
}

impl From<PairCounts> for Pairs {
    fn from(counts: PairCounts) -> Self {
        let number = |count: i64| u64::try_from(count).unwrap_or_default();
        Self {
            items: counts.both + counts.only_first + counts.only_second + counts.neither,
            both_passed: counts.both,
            only_first_passed: counts.only_first,
            only_second_passed: counts.only_second,
            neither_passed: counts.neither,
            p_value: mcnemar(number(counts.only_first), number(counts.only_second)),
        }
    }
}
