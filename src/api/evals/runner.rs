//! Works on runs in the background. A run is claimed with a lease, so that the run of a process that was killed is gone on
//! with by another one; each item is stored once it is done, and done once.

use std::collections::HashSet;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::answering::{self, Answered};
use super::data_source::selection::Filter;
use super::data_source::{DataSource, Items, Line, Question, read_file};
use super::form::{Criterion, item_schema, stored_criteria};
use super::stored::{self, Stored};
use crate::api::ApiState;
use crate::api::access::auth::Gate;
use crate::api::access::inside::Inside;
use crate::api::graders::ask::{Asker, Tokens};
use crate::api::graders::check::still_allowed;
use crate::api::graders::judge::Judge;
use crate::api::graders::outcome::{Failure, Judged};
use crate::api::http::error::Problem;
use crate::off_thread::in_background;
use crate::store;
use crate::store::evals::items::NewOutputItem;
use crate::store::evals::runs::EvalRun;
use crate::store::work_changes::WorkKind;

/// Runs at a time, and items of a run at a time.
const RUNS: usize = 2;
const ITEMS: usize = 8;
/// A lease without a sign of life, in seconds, and the time between two signs.
const LEASE: f64 = 30.0;
const SIGN: Duration = Duration::from_secs(3);
/// Time without a sign after which the lease may be another's.
const LOST: Duration = Duration::from_secs(25);
/// Time after a failure of the database.
const PAUSE: Duration = Duration::from_secs(5);

/// Why a run is not done.
enum Unfinished {
    /// It never will be: a word for programs and a message.
    Failed(&'static str, String),
    /// It was cancelled or taken over.
    Lost,
    /// The store failed: the lease runs out and the run begins again.
    Fault(Problem),
}

/// What is needed for the items of one run.
struct Work<'a> {
    state: &'a ApiState,
    organization: &'a str,
    criteria: Vec<Criterion>,
    question: Option<Question>,
    models: Vec<String>,
    schema: &'a Value,
    asker: Asker,
    judge: Judge,
}

/// An item, or the id of the stored answer that is one.
#[derive(Debug)]
enum Entry {
    Line(Line),
    Completion(String),
    Response(String),
}

/// What is known of an item before a model is asked.
struct Ready {
    item: Value,
    /// What was answered then.
    answered: Result<Answered, String>,
    /// Further fields of the request.
    request: Result<Map<String, Value>, String>,
}

/// Works on runs until the server stops.
pub(crate) async fn run(state: ApiState, inside: Inside) {
    let gate = Gate::new(&state.config, state.keys.clone(), state.usage.clone());
    let workers = (0..RUNS).map(|_| work(&state, &inside, &gate));
    futures::future::join_all(workers).await;
}

async fn work(state: &ApiState, inside: &Inside, gate: &Gate) {
    let mut waiting = state.work.watch(WorkKind::EvalRuns);
    while !state.shutdown.is_cancelled() {
        waiting.look();
        match state.store.claim_eval_run(LEASE).await {
            Ok(Some(run)) => attempt(state, inside, gate, &run).await,
            Ok(None) => {
                state.shutdown.run_until_cancelled(waiting.rest()).await;
            }
            Err(error) => {
                tracing::warn!(%error, "runs of evals wait for the database");
                state.shutdown.run_until_cancelled(sleep(PAUSE)).await;
            }
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
        Err(Unfinished::Fault(problem)) => report(run, Err(problem)),
    }
}

fn report(run: &EvalRun, result: Result<(), impl std::fmt::Display>) {
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
    let graders = criteria.iter().map(|criterion| &criterion.grader);
    still_allowed(state, graders).map_err(|message| failed("invalid_grader", message))?;
    let source = DataSource::parse(&run.data_source, &run.models);
    let DataSource { items, question, models } =
        source.map_err(|fault| failed("invalid_data_source", fault.message))?;
    let schema = item_schema(&eval.config);
    let entries: Vec<Entry> = match items {
        Items::Given(lines) => lines.into_iter().map(Entry::Line).collect(),
        Items::File(id) => lines_of(state, run, &id, schema.clone()).await?.into_iter().map(Entry::Line).collect(),
        Items::Stored(selection) => {
            let ids = state.store.eval_run_inputs(run).await?.into_iter();
            match selection.filter {
                Filter::Completions(_) => ids.map(Entry::Completion).collect(),
                Filter::Responses(_) => ids.map(Entry::Response).collect(),
            }
        }
    };
    let asker = Asker::patient(inside.clone(), state.teachers.clone(), caller);
    let judge = Judge::new(state, asker.clone());
    let organization = &run.organization;
    let work = Work { state, organization, criteria, question, models, schema, asker, judge };
    let done: HashSet<i32> = state.store.done_items(run).await?.into_iter().collect();
    // The answers of all models to an item stand next to each other.
    let answers = run.answers();
    let all = i32::try_from(entries.len()).unwrap_or(i32::MAX).saturating_mul(answers);
    let left: Vec<i32> = (0..all).filter(|number| !done.contains(number)).collect();
    let answer = |number: i32| {
        let (entry, model) = (&entries[(number / answers) as usize], (number % answers) as usize);
        work.item(number, model, entry)
    };
    let mut items = stream::iter(left).map(answer).buffer_unordered(ITEMS);
    while let Some(item) = items.next().await {
        if !state.store.add_output_item(run, item?).await? {
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

impl Work<'_> {
    /// Lets the model at this place answer an item, unless the answer is there, and judges it.
    async fn item(&self, number: i32, model: usize, entry: &Entry) -> Result<NewOutputItem, Unfinished> {
        let model = self.models.get(model).map(String::as_str);
        let Ready { item, answered, request } = match self.ready(entry).await? {
            Ok(ready) => ready,
            Err((id, message)) => {
                let sample = answering::failed(&[], model, &message);
                return Ok(unanswered(number, json!({"id": id}), sample));
            }
        };
        let answered = match (&self.question, model) {
            (Some(question), Some(model)) => {
                let request = if question.repeats_request() { request } else { Ok(Map::new()) };
                match request {
                    Ok(request) => answering::asked(&self.asker, question, model, &item, request).await,
                    Err(message) => Err((Vec::new(), message)),
                }
            }
            _ => answered.map_err(|message| (Vec::new(), message)),
        };
        let Answered { sample, shown, usage } = match answered {
            Ok(answered) => answered,
            Err((messages, message)) => {
                let sample = answering::failed(&messages, model, &message);
                return Ok(unanswered(number, item, sample));
            }
        };
        let mut usage: Vec<Value> = usage.into_iter().map(|(model, tokens)| used(&model, tokens)).collect();
        let mut results = Vec::new();
        let (mut passed, mut errored) = (true, false);
        for criterion in &self.criteria {
            let judged = self.judge.judge(&criterion.grader, &item, &sample).await;
            usage.extend(judged.calls.iter().map(|call| used(&call.model, call.tokens)));
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
        Ok(NewOutputItem { number, status, item, results: results.into(), sample: shown, usage: usage.into() })
    }

    /// Reads an item; the inner error is the id of a stored answer that is none, and why.
    async fn ready(&self, entry: &Entry) -> Result<Result<Ready, (String, String)>, Unfinished> {
        let (id, stored) = match entry {
            Entry::Line(Line { item, sample }) => {
                let answered = answering::given(sample.as_ref());
                return Ok(Ok(Ready { item: item.clone(), answered, request: Ok(Map::new()) }));
            }
            Entry::Completion(id) => {
                let stored = stored::completion(self.state, self.organization, id).await;
                (id, stored)
            }
            Entry::Response(id) => {
                let stored = stored::response(self.state, self.organization, id).await;
                (id, stored)
            }
        };
        let checked = stored.map_err(Unfinished::Fault)?.and_then(|Stored { item, answered, request }| {
            let line = Line { item, sample: None };
            line.check(self.schema).map(|()| Ready { item: line.item, answered: Ok(answered), request })
        });
        Ok(checked.map_err(|message| (id.clone(), message)))
    }
}

/// Returns what comes of an item that was not answered.
fn unanswered(number: i32, item: Value, sample: Value) -> NewOutputItem {
    NewOutputItem { number, status: "error", item, results: json!([]), sample, usage: json!([]) }
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

/// Returns what an output item keeps of a request to a model.
fn used(model: &str, tokens: Tokens) -> Value {
    json!({"model": model, "prompt": tokens.prompt, "completion": tokens.completion, "cached": tokens.cached})
}

impl From<store::Error> for Unfinished {
    fn from(error: store::Error) -> Self {
        match error {
            // Deleted while it was going on.
            store::Error::NotFound { .. } => Self::Lost,
            error => Self::Fault(error.into()),
        }
    }
}

impl From<crate::off_thread::Lost> for Unfinished {
    fn from(lost: crate::off_thread::Lost) -> Self {
        Self::Fault(lost.into())
    }
}
