//! `/evals/{eval_id}/runs`: runs of an eval, with their counts.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use super::comparison::Pairs;
use super::data_source::{DataSource, Items, MAX_FILE, SOURCE};
use super::form::{item_schema, required_notes, stored_criteria};
use super::{Direction, name_of, notes, page};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::graders::check::{model_of, refusal};
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::{Body, Path};
use crate::api::http::list::BoundedPageOf;
use crate::api::http::query::Query;
use crate::graders::statistics::wilson;
use crate::store;
use crate::store::evals::items::{Counts, CriterionCounts, ModelPairs, PairCounts};
use crate::store::evals::runs::NewEvalRun;

/// Most models of a run.
const MAX_MODELS: usize = 8;

/// A run to be made.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CreateRun {
    /// A name for people.
    pub name: Option<String>,
    /// Up to 16 notes of the client's own.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Where the items come from, and who answers: of type `jsonl`, `completions` or `responses`.
    #[schema(value_type = Object)]
    pub data_source: Value,
    /// Extension: several models that answer the same items, in place of the data source's `model`.
    #[schema(min_items = 1, max_items = 8)]
    pub models: Option<Vec<String>>,
}

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

/// A run that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedRun {
    /// Always `eval.run.deleted`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
    /// `evalrun_…`
    pub run_id: String,
}

/// Which runs to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RunQuery {
    /// Id of the last run of the page before.
    pub after: Option<String>,
    /// Runs at the most, 1 to 100.
    pub limit: Option<i64>,
    /// `asc` (oldest first, the default) or `desc`.
    #[param(inline)]
    pub order: Option<Direction>,
    /// Only runs with this status.
    #[param(inline)]
    pub status: Option<RunStatus>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RunStatus {
    /// Nothing was done yet.
    Queued,
    /// Items are being done.
    InProgress,
    /// All items are done.
    Completed,
    /// It was cancelled.
    Canceled,
    /// It could not be done.
    Failed,
}

impl RunStatus {
    fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Canceled => "canceled",
            Self::Failed => "failed",
        }
    }
}

/// Run an eval
///
/// The run is worked on in the background; its requests to models count for the key that created it.
#[utoipa::path(
    post, path = "/evals/{eval_id}/runs", operation_id = "createEvalRun", tag = "Evals",
    params(("eval_id" = String, Path)), request_body = CreateRun,
    responses((status = 201, body = EvalRun), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Path(eval_id): Path<String>,
    Body(request): Body<CreateRun>,
) -> Result<(StatusCode, Json<EvalRun>), Problem> {
    let eval = state.store.eval(&caller.organization, &eval_id).await?;
    let (name, metadata) = (name_of(request.name)?, notes(request.metadata)?);
    let models = models_of(request.models)?;
    let source = Source::read(&state, &caller.organization, &eval, &request.data_source, &models).await?;
    if source.models.is_empty() && !models.is_empty() {
        let message = "The items come with their answers: no model is asked.";
        return Err(Problem::invalid_code("models", "invalid_value", message));
    }
    for (index, model) in source.models.iter().enumerate() {
        let param = if models.is_empty() { format!("{SOURCE}.model") } else { format!("models[{index}]") };
        model_of(&state, &caller, model, param).await?;
    }
    let new = NewEvalRun {
        eval: eval_id,
        organization: caller.organization.to_string(),
        key: caller.key.to_string(),
        name: name.unwrap_or_default(),
        models: source.models,
        data_source: request.data_source,
        inputs: source.inputs,
        file: source.file,
        metadata: metadata.unwrap_or_else(|| json!({})),
    };
    let run = state.store.create_eval_run(new).await?;
    Ok((StatusCode::CREATED, Json(show(&state, &eval, run).await?)))
}

/// List an eval's runs
#[utoipa::path(
    get, path = "/evals/{eval_id}/runs", operation_id = "getEvalRuns", tag = "Evals",
    params(("eval_id" = String, Path), RunQuery),
    responses((status = 200, body = BoundedPageOf<EvalRun>), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Path(eval_id): Path<String>,
    Query(query): Query<RunQuery>,
) -> Result<Json<BoundedPageOf<EvalRun>>, Problem> {
    let eval = state.store.eval(&caller.organization, &eval_id).await?;
    let page = page(query.after, query.limit, query.order);
    let status = query.status.map(RunStatus::word);
    let (runs, has_more) = state.store.eval_runs(&caller.organization, &eval_id, status, page).await?;
    let mut shown = Vec::new();
    for run in runs {
        shown.push(show(&state, &eval, run).await?);
    }
    Ok(Json(BoundedPageOf::new(shown, has_more, |run| run.id.clone())))
}

/// Read a run
#[utoipa::path(
    get, path = "/evals/{eval_id}/runs/{run_id}", operation_id = "getEvalRun", tag = "Evals",
    params(("eval_id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = EvalRun), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn retrieve(
    State(state): State<ApiState>,
    caller: Caller,
    Path((eval_id, id)): Path<(String, String)>,
) -> Result<Json<EvalRun>, Problem> {
    let eval = state.store.eval(&caller.organization, &eval_id).await?;
    let run = state.store.eval_run(&caller.organization, &eval_id, &id).await?;
    Ok(Json(show(&state, &eval, run).await?))
}

/// Cancel a run
///
/// What came of the items that are done stays. A run that has ended stays as it is.
#[utoipa::path(
    post, path = "/evals/{eval_id}/runs/{run_id}", operation_id = "cancelEvalRun", tag = "Evals",
    params(("eval_id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = EvalRun), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    Path((eval_id, id)): Path<(String, String)>,
) -> Result<Json<EvalRun>, Problem> {
    let eval = state.store.eval(&caller.organization, &eval_id).await?;
    let run = state.store.cancel_eval_run(&caller.organization, &eval_id, &id).await?;
    Ok(Json(show(&state, &eval, run).await?))
}

/// Delete a run
#[utoipa::path(
    delete, path = "/evals/{eval_id}/runs/{run_id}", operation_id = "deleteEvalRun", tag = "Evals",
    params(("eval_id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = DeletedRun), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path((eval_id, id)): Path<(String, String)>,
) -> Result<Json<DeletedRun>, Problem> {
    state.store.delete_eval_run(&caller.organization, &eval_id, &id).await?;
    Ok(Json(DeletedRun { object: "eval.run.deleted", deleted: true, run_id: id }))
}

/// Checks the models of a request: a few, each once.
fn models_of(models: Option<Vec<String>>) -> Result<Vec<String>> {
    let Some(models) = models else { return Ok(Vec::new()) };
    let fault = |message: String| Err(Problem::invalid_code("models", "invalid_value", message));
    if !(1..=MAX_MODELS).contains(&models.len()) {
        return fault(format!("'models' must name 1 to {MAX_MODELS} models."));
    }
    let twice = models.iter().enumerate().find(|(index, model)| models[..*index].contains(model));
    match twice {
        Some((_, model)) => fault(format!("'models' names `{model}` twice.")),
        None => Ok(models),
    }
}

/// The data source of a run that may be made.
pub(super) struct Source {
    /// The models that are asked.
    pub models: Vec<String>,
    /// Ids of the stored answers that are the items.
    pub inputs: Option<Vec<String>>,
    /// The file with the items.
    pub file: Option<String>,
}

impl Source {
    /// Reads the data source of a run of `eval` that asks `models`, if it names any beside it. Given items must
    /// follow the eval's schema, a file must be there, and stored answers are chosen.
    pub(super) async fn read(
        state: &ApiState,
        organization: &str,
        eval: &store::evals::Eval,
        data_source: &Value,
        models: &[String],
    ) -> Result<Self> {
        let DataSource { items, models, .. } = parsed(eval, data_source, models)?;
        check_items(state, organization, &items, item_schema(&eval.config)).await?;
        let (inputs, file) = match items {
            Items::Given(_) => (None, None),
            Items::File(id) => (None, Some(id)),
            Items::Stored(selection) => (Some(selection.ids(state, organization).await?), None),
        };
        Ok(Self { models, inputs, file })
    }

    /// Does the checks of [`Self::read`] that can be done before the time of the run has come.
    pub(super) async fn check(
        state: &ApiState,
        organization: &str,
        eval: &store::evals::Eval,
        data_source: &Value,
        models: &[String],
    ) -> Result<()> {
        let source = parsed(eval, data_source, models)?;
        check_items(state, organization, &source.items, item_schema(&eval.config)).await
    }
}

/// Reads a data source; stored answers must have the notes that the eval asks for, too.
fn parsed(eval: &store::evals::Eval, data_source: &Value, models: &[String]) -> Result<DataSource> {
    let mut source = DataSource::parse(data_source, models).map_err(|fault| refusal(SOURCE, &fault))?;
    if let (Items::Stored(selection), Some(notes)) = (&mut source.items, required_notes(&eval.config)) {
        selection.require(notes).map_err(|fault| refusal(SOURCE, &fault))?;
    }
    Ok(source)
}

/// Checks that given items follow the eval's schema, or that the file is there.
async fn check_items(state: &ApiState, organization: &str, items: &Items, schema: &Value) -> Result<()> {
    match items {
        Items::Stored(_) => Ok(()),
        Items::Given(lines) => {
            for (index, line) in lines.iter().enumerate() {
                line.check(schema).map_err(|message| {
                    Problem::invalid_code(format!("{SOURCE}.source.content[{index}].item"), "invalid_value", message)
                })?;
            }
            Ok(())
        }
        Items::File(id) => {
            let param = format!("{SOURCE}.source.id");
            match state.store.file(organization, id).await {
                Ok(file) if u64::try_from(file.bytes).is_ok_and(|bytes| bytes <= MAX_FILE) => Ok(()),
                Ok(_) => {
                    let message = format!("A file of items has {MAX_FILE} bytes at the most.");
                    Err(Problem::invalid_code(param, "invalid_value", message))
                }
                // The route exists: what is missing is a part of the body.
                Err(error @ store::Error::NotFound { .. }) => Err(Problem::invalid(param, error.to_string())),
                Err(error) => Err(error.into()),
            }
        }
    }
}

/// Returns the run with its counts.
async fn show(state: &ApiState, eval: &store::evals::Eval, run: store::evals::runs::EvalRun) -> Result<EvalRun> {
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
pub(super) struct Results {
    /// Ids of the criteria, in their order.
    criteria: Vec<String>,
    counts: Vec<Counts>,
    by_criterion: Vec<CriterionCounts>,
    pairs: Vec<ModelPairs>,
    usage: Vec<store::evals::items::ModelUsage>,
}

impl Results {
    pub(super) async fn read(
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
    pub(super) fn counts(&self, model: usize) -> ResultCounts {
        let of_model: Vec<Counts> = self.counts.iter().filter(|one| one.model as usize == model).copied().collect();
        ResultCounts::of(&of_model)
    }

    /// Returns the counts of every criterion, also of those without results; of one model or of all together.
    pub(super) fn by_criterion(&self, model: Option<usize>) -> Vec<CriterionResults> {
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
    pub(super) fn pairs(&self, model: usize, place: usize) -> Pairs {
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
    pub(super) fn of(passed: i64, failed: i64) -> Option<Self> {
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
