//! A run as it is shown: its object, and the counts and shares of what the database has of its items.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::evals::comparison::Pairs;
use crate::api::evals::form::stored_criteria;
use crate::api::http::error::{Problem, Result};
use crate::graders::statistics::wilson;
use crate::store;
use crate::store::evals::items::{Counts, CriterionCounts, ModelPairs, PairCounts};

/// A run of an eval.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EvalRun {
    /// `evalrun_…`
    pub id: String,
    /// Always `eval.run`.
    pub object: &'static str,
    /// `eval_…`
    pub eval_id: String,
    /// `queued`, `in_progress`, `completed`, `canceled` or `failed`.
    pub status: String,
    /// The model that answers; null where the answers are given, or where several models answer.
    pub model: Option<String>,
    /// Extension: the models that answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// A name for people.
    pub name: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Always null: there is no page of a run.
    pub report_url: Option<String>,
    /// Answers by what came of them, so far.
    pub result_counts: ResultCounts,
    /// Tokens by model; null until an item is done.
    pub per_model_usage: Option<Vec<ModelUsage>>,
    /// Results by criterion; null until an item is done.
    pub per_testing_criteria_results: Option<Vec<CriterionResults>>,
    /// Extension: the share of items that passed, of those with a result; null without any, and where several models
    /// answer.
    pub pass_rate: Option<PassRate>,
    /// Extension: results of each model, where several answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_model_results: Option<Vec<ModelResults>>,
    /// Where the items come from.
    #[schema(value_type = Object)]
    pub data_source: Value,
    /// The client's own notes.
    #[schema(value_type = Object)]
    pub metadata: Value,
    /// Why it failed.
    pub error: Option<RunError>,
}

/// Items by what came of them.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResultCounts {
    /// All that are done.
    pub total: i64,
    /// That could not be answered or graded.
    pub errored: i64,
    /// That did not pass every criterion.
    pub failed: i64,
    /// That did.
    pub passed: i64,
}

/// Tokens that were used of a model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelUsage {
    /// Its name.
    pub model_name: String,
    /// Requests.
    pub invocation_count: i64,
    /// Of prompts.
    pub prompt_tokens: i64,
    /// Of answers.
    pub completion_tokens: i64,
    /// Of both.
    pub total_tokens: i64,
    /// Of prompts that were found in the cache.
    pub cached_tokens: i64,
}

/// Results of one of several models.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelResults {
    /// Its name.
    pub model: String,
    /// Its answers by what came of them.
    pub result_counts: ResultCounts,
    /// The share that passed; null without results.
    pub pass_rate: Option<PassRate>,
    /// Beside the first model, over the items that have a result with both; null for the first model.
    pub comparison: Option<Pairs>,
    /// By criterion.
    pub per_testing_criteria_results: Vec<ComparedResults>,
}

/// Results of one criterion with one of several models.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ComparedResults {
    /// The results.
    #[serde(flatten)]
    pub results: CriterionResults,
    /// Beside the first model; null for that one.
    pub comparison: Option<Pairs>,
}

/// Results of one criterion.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CriterionResults {
    /// Its id.
    pub testing_criteria: String,
    /// Items that passed.
    pub passed: i64,
    /// Items that did not.
    pub failed: i64,
    /// Extension: the share that passed; null without results, and where several models answer.
    pub pass_rate: Option<PassRate>,
}

/// A share with its 95 % interval.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct PassRate {
    /// The share of items that passed.
    pub value: f64,
    /// Lower end of Wilson's interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Why a run failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunError {
    /// A stable word for programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Returns the run with its counts.
pub(super) async fn show(
    state: &ApiState,
    eval: &store::evals::Eval,
    run: store::evals::runs::EvalRun,
) -> Result<EvalRun> {
    let results = Results::read(state, eval, &run).await?;
    let error = run.error_code.zip(run.error).map(|(code, message)| RunError { code, message });
    let is_single = run.models.len() < 2;
    let result_counts = ResultCounts::of(&results.counts);
    let (usage, criteria, rate) = if result_counts.total == 0 {
        (None, None, None)
    } else {
        let rate = PassRate::of(result_counts.passed, result_counts.failed);
        (Some(results.usage.iter().map(ModelUsage::from).collect()), Some(results.by_criterion(None)), rate)
    };
    Ok(EvalRun {
        object: "eval.run",
        model: run.models.first().filter(|_| is_single).cloned(),
        per_model_results: (!is_single).then(|| results.by_model(&run.models)),
        id: run.id,
        eval_id: run.eval,
        status: run.status,
        models: run.models,
        name: run.name,
        created_at: run.created_at,
        report_url: None,
        result_counts,
        per_model_usage: usage,
        per_testing_criteria_results: criteria.map(|criteria| without_rates(criteria, !is_single)),
        pass_rate: rate.filter(|_| is_single),
        data_source: run.data_source.0,
        metadata: run.metadata.0,
        error,
    })
}

/// Leaves out the shares where they would mix answers of `several` models to the same items: their interval would
/// claim too much.
fn without_rates(criteria: Vec<CriterionResults>, several: bool) -> Vec<CriterionResults> {
    criteria.into_iter().map(|one| CriterionResults { pass_rate: one.pass_rate.filter(|_| !several), ..one }).collect()
}

/// What the database counts of a run.
pub(in crate::api::evals) struct Results {
    /// Ids of the criteria, in their order.
    criteria: Vec<String>,
    counts: Vec<Counts>,
    by_criterion: Vec<CriterionCounts>,
    pairs: Vec<ModelPairs>,
    usage: Vec<store::evals::items::ModelUsage>,
}

impl Results {
    pub(in crate::api::evals) async fn read(
        state: &ApiState,
        eval: &store::evals::Eval,
        run: &store::evals::runs::EvalRun,
    ) -> Result<Self> {
        let criteria = stored_criteria(&eval.criteria).map_err(Problem::defect)?;
        let pairs = if run.models.len() > 1 { state.store.model_pairs(run).await? } else { Vec::new() };
        Ok(Self {
            criteria: criteria.into_iter().map(|criterion| criterion.id).collect(),
            counts: state.store.item_counts(run).await?,
            by_criterion: state.store.criterion_counts(run).await?,
            pairs,
            usage: state.store.run_usage(run).await?,
        })
    }

    /// Returns what came of the answers of the model at this place.
    pub(in crate::api::evals) fn counts(&self, model: usize) -> ResultCounts {
        let of_model: Vec<Counts> = self.counts.iter().filter(|one| one.model as usize == model).copied().collect();
        ResultCounts::of(&of_model)
    }

    /// Returns the counts of every criterion, also of those without results; of one model or of all together.
    pub(in crate::api::evals) fn by_criterion(&self, model: Option<usize>) -> Vec<CriterionResults> {
        let results = self.criteria.iter().zip(1..).map(|(id, place)| {
            let counted =
                |one: &&CriterionCounts| one.place == place && model.is_none_or(|model| one.model as usize == model);
            let found = self.by_criterion.iter().filter(counted);
            let (passed, failed) = found.fold((0, 0), |sum, one| (sum.0 + one.passed, sum.1 + one.failed));
            let pass_rate = PassRate::of(passed, failed);
            CriterionResults { testing_criteria: id.clone(), passed, failed, pass_rate }
        });
        results.collect()
    }

    /// Sets the model at this place beside the first one, by the criterion at `place`, from 1, or by all (0).
    pub(in crate::api::evals) fn pairs(&self, model: usize, place: usize) -> Pairs {
        let found = self.pairs.iter().find(|one| one.model as usize == model && one.place as usize == place);
        Pairs::from(found.map_or(PairCounts::default(), |found| found.counts))
    }

    fn by_model(&self, models: &[String]) -> Vec<ModelResults> {
        let of_model = |(place, model): (usize, &String)| {
            let beside_first = |criterion| (place > 0).then(|| self.pairs(place, criterion));
            let result_counts = self.counts(place);
            let criteria = self.by_criterion(Some(place)).into_iter().zip(1..);
            ModelResults {
                model: model.clone(),
                pass_rate: PassRate::of(result_counts.passed, result_counts.failed),
                result_counts,
                comparison: beside_first(0),
                per_testing_criteria_results: criteria
                    .map(|(results, criterion)| ComparedResults { results, comparison: beside_first(criterion) })
                    .collect(),
            }
        };
        models.iter().enumerate().map(of_model).collect()
    }
}

impl ResultCounts {
    fn of(counts: &[Counts]) -> Self {
        let sum = |part: fn(&Counts) -> i64| counts.iter().map(part).sum::<i64>();
        let (passed, failed, errored) = (sum(|one| one.passed), sum(|one| one.failed), sum(|one| one.errored));
        Self { total: passed + failed + errored, errored, failed, passed }
    }
}

impl PassRate {
    /// Returns the share of `passed`; `None` without results.
    pub(in crate::api::evals) fn of(passed: i64, failed: i64) -> Option<Self> {
        let (passed, all) = (u64::try_from(passed).ok()?, u64::try_from(passed + failed).ok()?);
        let (low, high) = wilson(passed, all)?;
        Some(Self { value: passed as f64 / all as f64, low, high })
    }
}

impl From<&store::evals::items::ModelUsage> for ModelUsage {
    fn from(usage: &store::evals::items::ModelUsage) -> Self {
        Self {
            model_name: usage.model.clone(),
            invocation_count: usage.requests,
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            total_tokens: usage.prompt + usage.completion,
            cached_tokens: usage.cached,
        }
    }
}
