//! Evals that are attached to jobs: one run and one event, however often they are tried, and an alias that moves with
//! it.

use std::time::Duration;

use attune::jobs::collections::{Distillation, Keep, Prompts};
use attune::jobs::evals::{JobEval, Move, NewRun, Origin, Told};
use attune::jobs::queue::{Outcome, Queue, TrainedModel};
use attune::jobs::{Job, JobApi};
use attune::store::response_changes::ResponseChanges;
use attune::store::work_changes::{WorkChanges, WorkKind, WorkWatch};
use serde_json::json;

use crate::postgres::TestDatabase;
use crate::queue::{ORG, spec};

struct Fixture {
    database: TestDatabase,
    queue: Queue,
}

impl Fixture {
    async fn new() -> Self {
        let database = TestDatabase::new().await;
        let queue = Queue::open(database.store.clone()).await.unwrap();
        Self { database, queue }
    }

    /// Returns a job that has succeeded, with its eval.
    async fn succeeded(&self, model: &str) -> (Job, JobEval) {
        let store = &self.database.store;
        let eval = store.create_eval(ORG, "e", &json!({}), &json!([]), &json!({})).await.unwrap();
        let eval = JobEval { id: eval.id, data_source: json!({"source": {"id": "file-items"}}), promote_if: None };
        let mut spec = spec();
        spec.eval = Some(eval.clone());
        self.queue.enqueue(ORG, JobApi::FineTuningJobs, spec).await.unwrap();
        let job = self.queue.claim("w", Duration::from_mins(1)).await.unwrap().unwrap();
        assert!(self.queue.waiting_evals().await.unwrap().is_empty(), "the job runs");
        let outcome = Outcome::Succeeded(TrainedModel {
            model: model.into(),
            base: "demo".into(),
            adapter: "a".into(),
            trained_tokens: 1,
            result_files: Vec::new(),
        });
        (self.queue.finish(&job, outcome).await.unwrap().unwrap(), eval)
    }

    fn begin<'a>(&'a self, job: &'a Job, eval: &'a JobEval) -> impl Future<Output = bool> + 'a {
        let models = vec!["demo".to_owned(), job.fine_tuned_model.clone().unwrap()];
        let new = NewRun { models, inputs: Some(vec!["c1".into()]), expected: Some("demo".into()) };
        async move { self.queue.begin_eval(job, eval, new).await.unwrap() }
    }

    async fn tell(&self, job: &Job, from: Origin) -> Option<bool> {
        let moves = Move { alias: "support".into(), from, otherwise: "It stays.".into() };
        let told = Told { level: "info", message: "It moves.".into(), data: json!({"x": 1}), moves: Some(moves) };
        self.queue.tell_eval(job, told).await.unwrap()
    }

    async fn target(&self) -> Option<String> {
        self.database.store.alias_target(ORG, "support").await.unwrap()
    }

    /// Returns the last event of the job.
    async fn last(&self, job: &Job) -> (String, serde_json::Value) {
        let (events, _) = self.queue.events_page(job, None, 1).await.unwrap();
        let event = events.into_iter().next().unwrap();
        (event.message, event.data.unwrap_or_default())
    }
}

#[tokio::test]
async fn a_job_has_one_run_and_one_result_however_often_they_are_tried() {
    let fixture = Fixture::new().await;
    let (job, eval) = fixture.succeeded("ft:demo:acme::1").await;
    let waiting = fixture.queue.waiting_evals().await.unwrap();
    assert_eq!(waiting.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), [job.id.as_str()]);
    let (first, second) = tokio::join!(fixture.begin(&job, &eval), fixture.begin(&job, &eval));
    assert!(first != second, "one of both");
    assert!(!fixture.begin(&job, &eval).await && fixture.queue.waiting_evals().await.unwrap().is_empty());
    assert!(fixture.queue.ended_evals().await.unwrap().is_empty(), "the run goes on");
    let store = &fixture.database.store;
    let run = store.claim_eval_run(30.0).await.unwrap().unwrap();
    assert_eq!(
        (run.models.as_slice(), run.name.as_str()),
        (&["demo".to_owned(), "ft:demo:acme::1".into()][..], &*job.id)
    );
    assert_eq!(store.eval_run_inputs(&run).await.unwrap(), ["c1"]);
    assert_eq!(store.claim_eval_run(30.0).await.unwrap(), None, "there is one run");
    store.finish_eval_run(&run, None).await.unwrap();
    let ended = fixture.queue.ended_evals().await.unwrap();
    assert_eq!((ended[0].run.as_str(), ended[0].expected.as_deref()), (run.id.as_str(), Some("demo")));
    let (first, second) = tokio::join!(fixture.tell(&job, Origin::Any), fixture.tell(&job, Origin::Any));
    assert!(matches!((first, second), (Some(true), None) | (None, Some(true))), "{first:?} {second:?}");
    assert_eq!(fixture.tell(&job, Origin::Any).await, None);
    assert_eq!(fixture.target().await.as_deref(), Some("ft:demo:acme::1"));
    assert_eq!(fixture.last(&job).await, ("It moves.".into(), json!({"x": 1, "promoted": true})));
    assert_eq!(fixture.database.value::<i64>("select count(*) from job_events where message = 'It moves.'").await, 1);
    assert!(fixture.queue.ended_evals().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_alias_moves_only_from_what_the_new_model_was_compared_with() {
    let fixture = Fixture::new().await;
    let store = &fixture.database.store;
    let only = |model: Option<&str>| Origin::Only(model.map(str::to_owned));
    // What it stands for, what it was compared with, and whether it moves.
    for (number, (now, from, moves)) in [
        (Some("demo"), only(Some("demo")), true),
        (Some("another"), only(Some("demo")), false),
        (None, only(Some("demo")), false),
        (None, only(None), true),
        (Some("another"), only(None), false),
        (Some("another"), Origin::Any, true),
        (None, Origin::Any, true),
    ]
    .into_iter()
    .enumerate()
    {
        let model = format!("ft:demo:acme::{number}");
        let (job, eval) = fixture.succeeded(&model).await;
        assert!(fixture.begin(&job, &eval).await);
        fixture.database.execute("delete from model_aliases").await;
        if let Some(now) = now {
            store.set_alias(ORG, "support", now, false).await.unwrap();
        }
        assert_eq!(fixture.tell(&job, from.clone()).await, Some(moves), "{now:?} {from:?}");
        let expected = if moves { Some(model.as_str()) } else { now };
        assert_eq!(fixture.target().await.as_deref(), expected);
        let text = if moves { "It moves." } else { "It stays." };
        assert_eq!(fixture.last(&job).await, (text.into(), json!({"x": 1, "promoted": moves})));
    }
}

#[tokio::test]
async fn an_alias_never_moves_to_a_model_that_is_gone() {
    let fixture = Fixture::new().await;
    let (job, eval) = fixture.succeeded("ft:demo:acme::1").await;
    assert!(fixture.begin(&job, &eval).await);
    fixture.database.store.delete_fine_tuned_model(ORG, "ft:demo:acme::1").await.unwrap();
    assert_eq!(fixture.tell(&job, Origin::Any).await, Some(false));
    assert_eq!(fixture.target().await, None);
}

#[tokio::test]
async fn an_eval_or_a_run_that_is_deleted_leaves_nothing_waiting_for_ever() {
    let fixture = Fixture::new().await;
    let (job, eval) = fixture.succeeded("ft:demo:acme::1").await;
    assert!(fixture.begin(&job, &eval).await);
    fixture.database.store.delete_eval(ORG, &eval.id).await.unwrap();
    assert_eq!(fixture.queue.ended_evals().await.unwrap().len(), 1);
    let told = Told { level: "warn", message: "Gone.".into(), data: json!({}), moves: None };
    assert_eq!(fixture.queue.tell_eval(&job, told).await.unwrap(), Some(false));
    assert_eq!(fixture.last(&job).await.0, "Gone.");
}

#[tokio::test]
async fn the_items_of_an_eval_stay_until_its_run_was_made() {
    let fixture = Fixture::new().await;
    let needed = "select job_with_file('acme', 'file-items')";
    let (job, eval) = fixture.succeeded("ft:demo:acme::1").await;
    assert_eq!(fixture.database.value::<Option<String>>(needed).await, Some(job.id.clone()));
    assert!(fixture.begin(&job, &eval).await);
    let run = fixture.database.store.claim_eval_run(30.0).await.unwrap().unwrap();
    assert_eq!(fixture.database.value::<Option<String>>(needed).await, Some(run.id.clone()));
    fixture.database.store.finish_eval_run(&run, None).await.unwrap();
    assert_eq!(fixture.database.value::<Option<String>>(needed).await, None);
}

/// Waits until a notification has come.
async fn told(watch: &mut WorkWatch, of: &str) {
    let told = tokio::time::timeout(Duration::from_mins(1), watch.told()).await;
    assert!(told.is_ok(), "nobody was told of {of}");
}

#[tokio::test]
async fn whoever_does_work_in_the_background_is_told_of_it() {
    let fixture = Fixture::new().await;
    let (store, queue) = (&fixture.database.store, &fixture.queue);
    let changes = WorkChanges::open(store, &ResponseChanges::default()).await.unwrap();
    let [mut runs, mut evals, mut collections] =
        [WorkKind::EvalRuns, WorkKind::JobEvals, WorkKind::Collections].map(|work| changes.watch(work));
    let (job, eval) = fixture.succeeded("ft:demo:acme::1").await;
    told(&mut evals, "a job that has succeeded").await;
    assert!(fixture.begin(&job, &eval).await);
    told(&mut runs, "a run that was made").await;
    let run = store.claim_eval_run(30.0).await.unwrap().unwrap();
    store.release_eval_run(&run).await.unwrap();
    told(&mut runs, "a run that was given back").await;
    let run = store.claim_eval_run(30.0).await.unwrap().unwrap();
    store.finish_eval_run(&run, None).await.unwrap();
    told(&mut evals, "a run that has ended").await;
    store.delete_eval(ORG, &eval.id).await.unwrap();
    told(&mut evals, "a run that is gone").await;

    let mut spec = spec();
    spec.distillation = Some(Distillation {
        teacher: Some("demo".into()),
        prompts: Prompts::File("file-prompts".into()),
        samples: 1,
        temperature: None,
        max_tokens: None,
        graders: Vec::new(),
        min_score: 1.0,
        max_teacher_cost: None,
        keep: Keep::Best,
        report_file: "file-report".into(),
    });
    queue.enqueue(ORG, JobApi::FineTuningJobs, spec).await.unwrap();
    told(&mut collections, "a job that was made").await;
    let (job, _) = queue.claim_collection("c", Duration::from_mins(1)).await.unwrap().unwrap();
    queue.finish(&job, Outcome::Released).await.unwrap().unwrap();
    told(&mut collections, "a job that was given back").await;
}
