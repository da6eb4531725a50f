//! Evals that are attached to fine-tune jobs: checked when the job is created, run on the new model and another one
//! when it has succeeded, and told as an event of the job with the figures. If the job asks for it and the new model
//! is better, an alias moves to it. Every step is one statement of `jobs::evals` that counts once, so that a process
//! can be killed between any two.

use std::time::Duration;

use serde_json::{Value, json};

use super::comparison::Pairs;
use super::form::stored_criteria;
use super::runs::shown::{PassRate, ResultCounts, Results};
use super::runs::source::Source;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{Problem, Result};
use crate::api::models::aliases;
use crate::jobs::evals::{EndedEval, JobEval, Move, NewRun, Origin, Promotion, Reference, Told, WaitingEval};
use crate::jobs::{Job, JobApi};
use crate::store;
use crate::store::evals::Eval;
use crate::store::evals::runs::EvalRun;
use crate::store::work_changes::WorkKind;

/// Time after a failure of the database.
const PAUSE: Duration = Duration::from_secs(5);
/// All criteria together, as a criterion's name.
pub(crate) const ALL: &str = "all";

/// An eval as a request attaches it to a job, its items yet to be found if the request has none.
#[derive(Debug)]
pub(crate) struct Attached {
    pub id: String,
    pub data_source: Option<Value>,
    pub promote_if: Option<Promotion>,
}

/// Checks what can be checked before the job has succeeded; errors name fields below `eval`.
pub(crate) async fn check(state: &ApiState, caller: &Caller, attached: Attached) -> Result<JobEval> {
    let Attached { id, data_source, promote_if } = attached;
    let organization = &caller.organization;
    let refusal =
        |param: &str, message: String| Problem::invalid_code(format!("eval.{param}"), "invalid_value", message);
    let eval = match state.store.eval(organization, &id).await {
        Err(store::Error::NotFound { .. }) => return Err(refusal("id", format!("The eval '{id}' does not exist."))),
        eval => eval?,
    };
    let data_source = match data_source {
        Some(data_source) if data_source.get("model").is_some_and(|model| !model.is_null()) => {
            let message = "The models that are asked are the new one and the other: leave 'model' out.";
            return Err(refusal("data_source.model", message.into()));
        }
        Some(data_source) => data_source,
        None => {
            let newest = state.store.newest_asking_source(organization, &id).await?.ok_or_else(|| {
                let message =
                    "No run of the eval has asked a model yet: say in 'data_source' what the models are asked.";
                refusal("data_source", message.into())
            })?;
            without_model(newest)
        }
    };
    let asked = ["reference".to_owned(), "result".to_owned()];
    let below = |problem: Problem| match problem.error.param.clone() {
        Some(param) if problem.is_bad_request() => problem.param(format!("eval.{param}")),
        _ => problem,
    };
    Source::check(state, organization, &eval, &data_source, &asked).await.map_err(below)?;
    if let Some(promotion) = &promote_if {
        aliases::check_name(state, caller, "eval.promote_if.alias", &promotion.alias).await?;
        if let Some(criterion) = &promotion.criterion {
            place_of(&eval, criterion).map_err(|message| refusal("promote_if.criterion", message))?;
        }
    }
    Ok(JobEval { id, data_source, promote_if })
}

/// Returns the data source of a run without the model that it asked.
fn without_model(mut data_source: Value) -> Value {
    if let Some(fields) = data_source.as_object_mut() {
        fields.shift_remove("model");
    }
    data_source
}

/// Runs and tells evals of jobs until the server stops.
pub(crate) async fn run(state: ApiState) {
    let mut waiting = state.work.watch(WorkKind::JobEvals);
    while !state.shutdown.is_cancelled() {
        waiting.look();
        if let Err(problem) = look(&state).await {
            tracing::warn!("evals of jobs wait for the database: {problem}");
            state.shutdown.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
        } else {
            state.shutdown.run_until_cancelled(waiting.rest()).await;
        }
    }
}

/// Does what can be done now. A job that fails is tried again on the next look, and keeps no other from its turn.
async fn look(state: &ApiState) -> Result<()> {
    let mut looked = Ok(());
    for waiting in state.queue.waiting_evals().await? {
        if let Err(problem) = go_on(state, waiting).await {
            looked = Err(problem);
        }
    }
    for ended in state.queue.ended_evals().await? {
        if let Err(problem) = end(state, ended).await {
            looked = Err(problem);
        }
    }
    looked
}

async fn go_on(state: &ApiState, waiting: WaitingEval) -> Result<()> {
    let Some((job, eval)) = job_of(state, &waiting.organization, waiting.api, &waiting.id).await? else {
        return Ok(());
    };
    match begin(state, &job, &eval).await {
        Err(problem) if !problem.status.is_server_error() => {
            tell(state, &job, failed(&eval, None, &problem.error.message)).await
        }
        begun => begun,
    }
}

async fn end(state: &ApiState, ended: EndedEval) -> Result<()> {
    let Some((job, eval)) = job_of(state, &ended.organization, ended.api, &ended.id).await? else { return Ok(()) };
    let told = result(state, &job, &eval, &ended).await?;
    tell(state, &job, told).await
}

/// Reads a job with its eval; `None` if it was removed meanwhile.
async fn job_of(state: &ApiState, organization: &str, api: JobApi, id: &str) -> Result<Option<(Job, JobEval)>> {
    match state.queue.job(organization, api, id).await {
        Ok(job) => Ok(job.spec.eval.clone().map(|eval| (job, eval))),
        Err(crate::jobs::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes the run of a job that has succeeded.
async fn begin(state: &ApiState, job: &Job, attached: &JobEval) -> Result<()> {
    let organization = &job.organization;
    let eval = state.store.eval(organization, &attached.id).await?;
    let expected = match &attached.promote_if {
        None => None,
        Some(promotion) => match state.store.alias(organization, &promotion.alias).await {
            Ok(alias) => Some(alias.model),
            Err(store::Error::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        },
    };
    let is_current = attached.promote_if.as_ref().is_some_and(|promotion| promotion.better_than == Reference::Current);
    let reference = expected.clone().filter(|_| is_current).unwrap_or_else(|| job.spec.model.clone());
    let result = job.fine_tuned_model.clone().ok_or_else(|| Problem::defect("a job has succeeded without a model"))?;
    let models = vec![reference, result];
    let source = Source::read(state, organization, &eval, &attached.data_source, &models).await?;
    let new = NewRun { models: source.models, inputs: source.inputs, expected };
    // If it was not made, another process has made it, or the eval is gone, which is seen on the next look.
    state.queue.begin_eval(job, attached, new).await?;
    Ok(())
}

async fn tell(state: &ApiState, job: &Job, told: Told) -> Result<()> {
    let alias = told.moves.as_ref().map(|moves| moves.alias.clone());
    if let (Some(true), Some(alias)) = (state.queue.tell_eval(job, told).await?, alias) {
        let model = job.fine_tuned_model.as_deref();
        tracing::info!(alias, organization = job.organization, job = job.id, model, "an alias was moved by an eval");
    }
    Ok(())
}

/// Returns what came of a run that has ended, or is gone.
async fn result(state: &ApiState, job: &Job, attached: &JobEval, ended: &EndedEval) -> Result<Told> {
    let organization = &job.organization;
    let found = async {
        let eval = state.store.eval(organization, &attached.id).await?;
        let run = state.store.eval_run(organization, &attached.id, &ended.run).await?;
        Ok::<_, store::Error>((eval, run))
    };
    let (eval, run): (Eval, EvalRun) = match found.await {
        Ok(found) => found,
        Err(store::Error::NotFound { .. }) => {
            return Ok(failed(attached, Some(&ended.run), "The eval or its run was deleted."));
        }
        Err(error) => return Err(error.into()),
    };
    if run.status != "completed" {
        let why = run.error.unwrap_or_else(|| "The run was canceled.".into());
        return Ok(failed(attached, Some(&ended.run), &why));
    }
    let results = Results::read(state, &eval, &run).await?;
    let criterion = attached.promote_if.as_ref().and_then(|promotion| promotion.criterion.as_deref());
    let figures = match criterion.map(|name| place_of(&eval, name)).transpose() {
        Ok(place) => Figures::of(&results, &run.models, place),
        Err(why) => return Ok(failed(attached, Some(&ended.run), &why)),
    };
    Ok(figures.told(attached, ended))
}

/// Returns what is told of an eval that came to nothing.
fn failed(attached: &JobEval, run: Option<&str>, why: &str) -> Told {
    let stays = match &attached.promote_if {
        Some(promotion) => format!(" The alias '{}' stays as it is.", promotion.alias),
        None => String::new(),
    };
    Told {
        level: "warn",
        message: format!("The eval {} has no result: {why}{stays}", attached.id),
        data: json!({"eval_id": attached.id, "eval_run_id": run, "error": why}),
        moves: None,
    }
}

/// Returns the place of the eval's criterion with this name, from 1.
fn place_of(eval: &Eval, name: &str) -> Result<usize, String> {
    let criteria = stored_criteria(&eval.criteria)?;
    let place = criteria.iter().position(|criterion| criterion.grader.name == name);
    place.map(|place| place + 1).ok_or_else(|| {
        let names: Vec<String> = criteria.iter().map(|criterion| format!("'{}'", criterion.grader.name)).collect();
        format!("'{name}' is not a criterion of the eval, which has {}; '{ALL}' means all of them.", names.join(", "))
    })
}

/// What a run found of one model.
struct Figure {
    model: String,
    passed: i64,
    failed: i64,
    errored: i64,
}

/// What a run found of the two models.
struct Figures {
    reference: Figure,
    result: Figure,
    pairs: Pairs,
}

impl Figures {
    /// Reads the figures of all criteria together, or of the one at this place.
    fn of(results: &Results, models: &[String], criterion: Option<usize>) -> Self {
        let figure = |model: usize| {
            let ResultCounts { total, passed, failed, .. } = results.counts(model);
            let (passed, failed) = match criterion {
                None => (passed, failed),
                Some(place) => {
                    let of_one = results.by_criterion(Some(model)).into_iter().nth(place - 1);
                    of_one.map_or((0, 0), |one| (one.passed, one.failed))
                }
            };
            let errored = total - passed - failed;
            Figure { model: models.get(model).cloned().unwrap_or_default(), passed, failed, errored }
        };
        let pairs = results.pairs(1, criterion.unwrap_or(0));
        Self { reference: figure(0), result: figure(1), pairs }
    }

    fn told(&self, attached: &JobEval, ended: &EndedEval) -> Told {
        let summary = format!(
            "Eval {}: {}; {}; the difference has a p-value of {:.3}.",
            attached.id, self.result, self.reference, self.pairs.p_value
        );
        let shown = |figure: &Figure| {
            json!({
                "model": figure.model,
                "passed": figure.passed,
                "failed": figure.failed,
                "errored": figure.errored,
                "pass_rate": PassRate::of(figure.passed, figure.failed),
            })
        };
        let mut data = json!({
            "eval_id": attached.id,
            "eval_run_id": ended.run,
            "reference": shown(&self.reference),
            "result": shown(&self.result),
            "comparison": self.pairs,
        });
        let Some(promotion) = &attached.promote_if else {
            return Told { level: "info", message: summary, data, moves: None };
        };
        data["alias"] = promotion.alias.as_str().into();
        data["criterion"] = promotion.criterion.as_deref().unwrap_or(ALL).into();
        let alias = &promotion.alias;
        if let Err(why) = self.verdict(promotion) {
            data["reason"] = why.as_str().into();
            let message = format!("{summary} The alias '{alias}' stays as it is: {why}.");
            return Told { level: "info", message, data, moves: None };
        }
        let is_current = promotion.better_than == Reference::Current;
        let why = "it was moved while the eval ran, or the new model is gone";
        let moves = Move {
            alias: alias.clone(),
            from: if is_current { Origin::Only(ended.expected.clone()) } else { Origin::Any },
            otherwise: format!("{summary} The alias '{alias}' stays as it is: {why}."),
        };
        let message = format!("{summary} The alias '{alias}' stands for {} now.", self.result.model);
        Told { level: "info", message, data, moves: Some(moves) }
    }

    /// Decides whether the new model is good enough; an error says what it lacks.
    fn verdict(&self, promotion: &Promotion) -> Result<(), String> {
        let Pairs { items, only_first_passed, only_second_passed, p_value, .. } = self.pairs;
        if items == 0 {
            return Err("no item has a result with both models".into());
        }
        // What it could not answer or what could not be graded, it did not pass.
        let all = self.result.passed + self.result.failed + self.result.errored;
        let rate = self.result.passed as f64 / all as f64;
        if let Some(least) = promotion.min_pass_rate.filter(|least| rate < *least) {
            return Err(format!("the new model passes {rate:.3} of all items, less than {least}"));
        }
        let gain = (only_second_passed - only_first_passed) as f64 / items as f64;
        if gain < promotion.min_gain {
            return Err(format!(
                "the gain over {} is {gain:.3}, less than {}",
                self.reference.model, promotion.min_gain
            ));
        }
        if let Some(most) = promotion.max_p_value.filter(|most| p_value > *most) {
            return Err(format!("the p-value of the difference is {p_value:.3}, more than {most}"));
        }
        Ok(())
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { model, passed, failed, errored } = self;
        write!(formatter, "{model} passed {passed} of {}", passed + failed)?;
        if let Some(PassRate { value, low, high }) = PassRate::of(*passed, *failed) {
            write!(formatter, " ({value:.2}, {low:.2} to {high:.2})")?;
        }
        if *errored > 0 { write!(formatter, " and has no result for {errored}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::evals::items::PairCounts;

    fn figures(both: i64, only_first: i64, only_second: i64, neither: i64, errored: i64) -> Figures {
        let figure = |model: &str, passed, failed, errored| Figure { model: model.into(), passed, failed, errored };
        Figures {
            reference: figure("old", both + only_first, only_second + neither, 0),
            result: figure("new", both + only_second, only_first + neither, errored),
            pairs: PairCounts { both, only_first, only_second, neither }.into(),
        }
    }

    fn promotion(min_pass_rate: Option<f64>, min_gain: f64, max_p_value: Option<f64>) -> Promotion {
        let (alias, better_than) = ("support".into(), Reference::Current);
        Promotion { alias, criterion: None, better_than, min_pass_rate, min_gain, max_p_value }
    }

    #[test]
    fn a_model_is_promoted_if_it_passes_enough_gains_enough_and_not_by_chance() {
        let any = promotion(None, 0.0, None);
        assert!(figures(5, 0, 0, 5, 0).verdict(&any).is_ok(), "as good is not worse");
        assert!(figures(5, 1, 0, 4, 0).verdict(&any).expect_err("worse").contains("gain"));
        assert!(figures(0, 0, 0, 0, 9).verdict(&any).expect_err("nothing").contains("no item"));
        let gain = promotion(None, 0.2, None);
        assert!(figures(5, 0, 2, 3, 0).verdict(&gain).is_ok());
        assert!(figures(5, 0, 1, 4, 0).verdict(&gain).is_err());
        let rate = promotion(Some(0.7), 0.0, None);
        assert!(figures(5, 0, 2, 3, 0).verdict(&rate).is_ok());
        assert!(figures(5, 0, 2, 3, 1).verdict(&rate).expect_err("errors count").contains("0.636"));
        let sure = promotion(None, 0.0, Some(0.05));
        assert!(figures(5, 0, 6, 0, 0).verdict(&sure).is_ok());
        assert!(figures(5, 0, 5, 0, 0).verdict(&sure).expect_err("chance").contains("0.062"));
    }

    #[test]
    fn what_is_told_has_the_figures_and_says_what_the_alias_does() {
        let eval = |promote_if| JobEval { id: "eval_1".into(), data_source: json!({}), promote_if };
        let ended = EndedEval {
            organization: "a".into(),
            api: JobApi::FineTuningJobs,
            id: "ftjob-1".into(),
            run: "evalrun_1".into(),
            expected: Some("old".into()),
        };
        let told = figures(5, 0, 3, 2, 1).told(&eval(Some(promotion(None, 0.0, None))), &ended);
        assert_eq!(
            told.message,
            "Eval eval_1: new passed 8 of 10 (0.80, 0.49 to 0.94) and has no result for 1; old passed 5 of 10 (0.50, 0.24 to \
             0.76); the difference has a p-value of 0.250. The alias 'support' stands for new now."
        );
        assert_eq!(told.moves.expect("a move").from, Origin::Only(Some("old".into())));
        assert_eq!((&told.data["result"]["errored"], &told.data["criterion"]), (&json!(1), &json!("all")));
        let told = figures(5, 1, 0, 2, 0).told(&eval(Some(promotion(None, 0.0, None))), &ended);
        assert!(told.moves.is_none() && told.message.contains("stays as it is: the gain"), "{}", told.message);
        let told = figures(5, 1, 0, 2, 0).told(&eval(None), &ended);
        assert!(told.moves.is_none() && !told.message.contains("alias"), "{}", told.message);
    }
}
