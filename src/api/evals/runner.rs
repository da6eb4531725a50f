//! Works on runs in the background. A run is claimed with a lease, so that the run of a process that was killed is gone on
//! with by another one; each item is stored once it is done, and done once.

use std::collections::HashSet;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::answering::{self, Answered};
use super::data_source::{DataSource, Items, Line, Question, read_file};
use super::form::{Criterion, item_schema, stored_criteria};
use crate::api::ApiState;
use crate::api::access::auth::Gate;
use crate::api::access::inside::Inside;
use crate::api::graders::ask::{Asker, Tokens};
use crate::api::graders::check::embedding_model;
use crate::api::graders::judge::Judge;
use crate::api::graders::outcome::{Failure, Judged};
use crate::off_thread::in_background;
use crate::store;
use crate::store::evals::items::NewOutputItem;
use crate::store::evals::runs::EvalRun;

/// Runs at a time, and items of a run at a time.
const RUNS: usize = 2;
const ITEMS: usize = 8;
/// A lease without a sign of life, in seconds, and the time between two signs.
const LEASE: f64 = 30.0;
const SIGN: Duration = Duration::from_secs(3);
/// Time without a sign after which the lease may be another's.
const LOST: Duration = Duration::from_secs(25);
/// Time between two looks for a run, and after a failure of the database.
const LOOK: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_secs(5);

/// Why a run is not done.
enum Unfinished {
    /// It never will be: a word for programs and a message.
    Failed(&'static str, String),
    /// It was cancelled or taken over.
    Lost,
    /// The store failed: the lease runs out and the run begins again.
    Store(store::Error),
}

/// What is needed for the items of one run.
struct Work {
    criteria: Vec<Criterion>,
    question: Option<Question>,
    asker: Asker,
    judge: Judge,
}

/// Works on runs until the server stops.
pub(crate) async fn run(state: ApiState, inside: Inside) {
    let gate = Gate::new(&state.config, state.keys.clone(), state.usage.clone());
    let workers = (0..RUNS).map(|_| work(&state, &inside, &gate));
    futures::future::join_all(workers).await;
}

async fn work(state: &ApiState, inside: &Inside, gate: &Gate) {
    while !state.shutdown.is_cancelled() {
        let rest = match state.store.claim_eval_run(LEASE).await {
            Ok(Some(run)) => {
                attempt(state, inside, gate, &run).await;
                continue;
            }
            Ok(None) => LOOK,
            Err(error) => {
                tracing::warn!(%error, "runs of evals wait for the database");
                PAUSE
            }
        };
        tokio::select! {
            () = state.shutdown.cancelled() => {}
            () = sleep(rest) => {}
        }
    }
}

/// Does what is left of a run, and writes down how it ends.
async fn attempt(state: &ApiState, inside: &Inside, gate: &Gate, run: &EvalRun) {
    // The database has given it up.
    if run.status != "in_progress" {
        return;
    }
    let ended = tokio::select! {
        biased;
        () = state.shutdown.cancelled() => {
            let released = state.store.release_eval_run(run).await;
            return report(run, released);
        }
        () = keep(state, run) => Err(Unfinished::Lost),
        ended = process(state, inside, gate, run) => ended,
    };
    match ended {
        Ok(()) => report(run, state.store.finish_eval_run(run, None).await),
        Err(Unfinished::Failed(code, message)) => {
            report(run, state.store.finish_eval_run(run, Some((code, &message))).await);
        }
        Err(Unfinished::Lost) => {}
        Err(Unfinished::Store(error)) => report(run, Err(error)),
    }
}

fn report(run: &EvalRun, result: store::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(run = run.id, %error, "the run of an eval begins again when its lease has run out");
    }
}

/// Keeps the lease, and returns once it is lost.
async fn keep(state: &ApiState, run: &EvalRun) {
    let mut last = Instant::now();
    loop {
        sleep(SIGN).await;
        let asked = Instant::now();
        match state.store.renew_eval_run(run, LEASE).await {
            Ok(true) => last = asked,
            Ok(false) => return,
            Err(_) if last.elapsed() > LOST => return,
            Err(_) => {}
        }
    }
}

async fn process(state: &ApiState, inside: &Inside, gate: &Gate, run: &EvalRun) -> Result<(), Unfinished> {
    let failed = |code, message: String| Unfinished::Failed(code, message);
    let holder = gate.holder_of_id(&state.store, &run.key).await;
    let caller = holder.map_err(|problem| failed("server_error", problem.error.message))?;
    let caller = caller
        .filter(|caller| *caller.organization == *run.organization)
        .ok_or_else(|| failed("invalid_api_key", "The API key that created the run does not count any more.".into()))?;
    let eval = state.store.eval(&run.organization, &run.eval).await?;
    let criteria = stored_criteria(&eval.criteria).map_err(|message| failed("invalid_grader", message))?;
    let source = DataSource::parse(&run.data_source).map_err(|fault| failed("invalid_data_source", fault.message))?;
    let lines = match source.items {
        Items::Given(lines) => lines,
        Items::File(id) => lines_of(state, run, &id, item_schema(&eval.config).clone()).await?,
    };
    let asker = Asker::patient(inside.clone(), caller);
    let judge = Judge::new(asker.clone(), embedding_model(state).map(str::to_owned));
    let work = Work { criteria, question: source.question, asker, judge };
    let done: HashSet<i32> = state.store.done_items(run).await?.into_iter().collect();
    let left = lines.into_iter().zip(0_i32..).filter(|(_, number)| !done.contains(number));
    let mut items = stream::iter(left).map(|(line, number)| work.item(number, line)).buffer_unordered(ITEMS);
    while let Some(item) = items.next().await {
        if !state.store.add_output_item(run, item).await? {
            return Err(Unfinished::Lost);
        }
    }
    Ok(())
}

async fn lines_of(state: &ApiState, run: &EvalRun, id: &str, schema: Value) -> Result<Vec<Line>, Unfinished> {
    let gone = || Unfinished::Failed("invalid_file", format!("The file {id} is not there any more."));
    let file = match state.store.file(&run.organization, id).await {
        Err(store::Error::NotFound { .. }) => return Err(gone()),
        file => file?,
    };
    let content = match state.store.open_file(&file).await {
        Err(store::Error::BlobNotFound(_)) => return Err(gone()),
        content => content?,
    };
    let read = move || read_file(content, &schema).map_err(|message| Unfinished::Failed("invalid_file", message));
    in_background("read the items of an eval", read).await
}

impl Work {
    /// Answers and judges an item.
    async fn item(&self, number: i32, line: Line) -> NewOutputItem {
        let answered = match &self.question {
            None => answering::given(line.sample.as_ref()).map_err(|message| (Vec::new(), message)),
            Some(question) => answering::asked(&self.asker, question, &line.item).await,
        };
        let Answered { sample, shown, usage } = match answered {
            Ok(answered) => answered,
            Err((messages, message)) => {
                let sample = answering::failed(&messages, &message);
                let (results, usage) = (json!([]), json!([]));
                return NewOutputItem { number, status: "error", item: line.item, results, sample, usage };
            }
        };
        let mut usage: Vec<Value> = usage.into_iter().map(|(model, tokens)| entry(&model, tokens)).collect();
        let mut results = Vec::new();
        let (mut passed, mut errored) = (true, false);
        for criterion in &self.criteria {
            let judged = self.judge.judge(&criterion.grader, &line.item, &sample).await;
            usage.extend(judged.calls.iter().map(|call| entry(&call.model, call.tokens)));
            let passes = judged.failures.is_empty() && criterion.grader.passes(judged.score);
            errored |= !judged.failures.is_empty();
            passed &= passes;
            results.push(result(criterion, &judged, passes));
        }
        let status = match (errored, passed) {
            (true, _) => "error",
            (false, true) => "pass",
            (false, false) => "fail",
        };
        NewOutputItem { number, status, item: line.item, results: results.into(), sample: shown, usage: usage.into() }
    }
}

/// Returns what an output item shows of a criterion.
fn result(criterion: &Criterion, judged: &Judged, passed: bool) -> Value {
    let samples: Vec<&Value> =
        judged.calls.iter().map(|call| &call.sample).filter(|sample| !sample.is_null()).collect();
    let messages: Vec<&str> = judged.failures.iter().map(Failure::message).collect();
    json!({
        "name": criterion.id,
        "type": format!("{}-grader", criterion.grader.type_name().replace('_', "-")),
        "score": judged.score,
        "passed": passed,
        "scores": if judged.parts.is_empty() { None } else { Some(&judged.parts) },
        "sample": if samples.len() == 1 { Some(samples[0]) } else { None },
        "error": if messages.is_empty() { None } else { Some(messages.join(" ")) },
    })
}

fn entry(model: &str, tokens: Tokens) -> Value {
    json!({"model": model, "prompt": tokens.prompt, "completion": tokens.completion, "cached": tokens.cached})
}

impl From<store::Error> for Unfinished {
    fn from(error: store::Error) -> Self {
        match error {
            // Deleted while it was going on.
            store::Error::NotFound { .. } => Self::Lost,
            error => Self::Store(error),
        }
    }
}

impl From<crate::off_thread::Lost> for Unfinished {
    fn from(lost: crate::off_thread::Lost) -> Self {
        Self::Store(lost.into())
    }
}
