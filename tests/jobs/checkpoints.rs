//! Checkpoints that serve as models: made by a job, kept, leased, listed, deleted; and other organisations' permissions
//! to use them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use crate::training::{Fixture, ORG, catalog, spec, tickets};
use attune::adapters::registry::AdapterRegistry;
use attune::jobs::checkpoints::{ModelCheckpoint, NewCheckpoint};
use attune::jobs::queue::{Outcome, StopRequest};
use attune::jobs::{Job, JobApi, JobSpec, JobStatus};
use attune::store::files::Page;
use attune::train::hyperparameters::Hyperparameters;
use attune::{adapters, store};
use serde_json::json;

const RIVAL: &str = "rival";
const LEASE: Duration = Duration::from_mins(1);

fn page(after: Option<&str>, limit: i64) -> Page {
    Page { after: after.map(Into::into), limit, ascending: false }
}

/// Enqueues a job with three steps per epoch.
async fn enqueue(fixture: &Fixture, epochs: u32) -> Job {
    let file = fixture.upload(&tickets(12)).await;
    let settings = Hyperparameters { n_epochs: Some(epochs), ..spec(String::new()).hyperparameters };
    fixture.enqueue(JobApi::FineTuningJobs, JobSpec { hyperparameters: settings, ..spec(file) }).await
}

/// Enqueues a job and claims it as an imaginary worker.
async fn claimed(fixture: &Fixture) -> Job {
    fixture.enqueue(JobApi::FineTuningJobs, spec("file-x".into())).await;
    fixture.queue.claim("w", LEASE).await.unwrap().unwrap()
}

fn new_checkpoint(job: &Job, step: i64, adapter: &str) -> NewCheckpoint {
    let model = format!("ft:demo:{ORG}::{}:ckpt-step-{step}", job.id);
    NewCheckpoint { model, base: "demo".into(), adapter: adapter.into(), step, metrics: json!({"step": step}) }
}

async fn all(fixture: &Fixture, job: &Job) -> Vec<ModelCheckpoint> {
    fixture.queue.checkpoints(job, page(None, 100)).await.unwrap().0
}

fn steps(checkpoints: &[ModelCheckpoint]) -> Vec<i64> {
    checkpoints.iter().map(|checkpoint| checkpoint.step).collect()
}

/// Waits until the running job has a checkpoint.
async fn first_checkpoint(fixture: &Fixture, job: &Job) -> ModelCheckpoint {
    let mut changes = fixture.queue.changes();
    let waiting = async {
        loop {
            if let Some(checkpoint) = all(fixture, job).await.pop() {
                return checkpoint;
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), changes.recv()).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(4), waiting).await.expect("no checkpoint came")
}

fn is_unknown<T>(result: &Result<T, impl Clone + Into<adapters::Error>>) -> bool {
    let error = result.as_ref().err().cloned().map(Into::into);
    matches!(error, Some(adapters::Error::Store(store::Error::ModelNotFound(_))))
}

// --- Made by a job -----------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn the_last_three_epochs_of_a_job_are_models_and_the_last_one_is_the_final_model() {
    let fixture = Fixture::new().await;
    let training = fixture.upload(&tickets(12)).await;
    let held_out = fixture.upload(&tickets(3)).await;
    let settings = Hyperparameters { n_epochs: Some(5), ..spec(String::new()).hyperparameters };
    let spec = JobSpec { validation_file: Some(held_out), hyperparameters: settings, ..spec(training) };
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let worker = fixture.worker();
    let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;

    let checkpoints = all(&fixture, &job).await;
    assert_eq!(steps(&checkpoints), [15, 12, 9]);
    let name = done.fine_tuned_model.clone().unwrap();
    let elsewhere = AdapterRegistry::new(fixture.store().clone(), catalog());
    let mut generations = Vec::new();
    for checkpoint in &checkpoints {
        assert!(checkpoint.id.starts_with("ftckpt_"), "{}", checkpoint.id);
        assert_eq!(checkpoint.model, format!("{name}:ckpt-step-{}", checkpoint.step));
        assert_eq!(checkpoint.metrics["step"], checkpoint.step);
        for figure in ["train_loss", "train_mean_token_accuracy", "valid_loss", "full_valid_mean_token_accuracy"] {
            assert!(checkpoint.metrics[figure].is_f64(), "{figure} in {}", checkpoint.metrics);
        }
        let (base, lease) = elsewhere.lease(ORG, &checkpoint.model).await.unwrap();
        assert_eq!(base, "demo");
        generations.push(lease.id.clone());
    }
    assert_eq!(generations[0], fixture.generation(&done).await);
    assert!(generations[0] != generations[1] && generations[1] != generations[2]);
    assert_eq!(fixture.blobs("adapters"), 6, "the files of dropped checkpoints are gone");

    // Each can be deleted by its name alone.
    let store = fixture.store();
    store.delete_fine_tuned_model(ORG, &name).await.unwrap();
    assert!(fixture.registry.lease(ORG, &checkpoints[0].model).await.is_ok());
    for (left, checkpoint) in [2, 1, 0].into_iter().zip(&checkpoints) {
        store.delete_fine_tuned_model(ORG, &checkpoint.model).await.unwrap();
        assert!(is_unknown(&fixture.registry.lease(ORG, &checkpoint.model).await));
        assert_eq!(fixture.blobs("adapters"), 2 * left);
    }
    assert!(all(&fixture, &job).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_serves_while_its_job_runs_and_outlives_its_cancellation() {
    let fixture = Fixture::new().await;
    let job = enqueue(&fixture, 50).await;
    let worker = fixture.worker();
    let checkpoint = first_checkpoint(&fixture, &job).await;
    assert!(fixture.registry.lease(ORG, &checkpoint.model).await.is_ok());
    let running = fixture.queue.job(ORG, JobApi::FineTuningJobs, &job.id).await.unwrap();
    assert_eq!(running.status, JobStatus::Running);
    fixture.queue.stop(&running, StopRequest::Cancel).await.unwrap();
    fixture.wait_for(&job, JobStatus::Cancelled).await;
    worker.stop().await;
    let left = all(&fixture, &job).await;
    assert!(!left.is_empty());
    for checkpoint in left {
        assert!(fixture.registry.lease(ORG, &checkpoint.model).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_job_keeps_the_checkpoints_of_its_earlier_attempt() {
    let fixture = Fixture::new().await;
    let job = enqueue(&fixture, 3).await;
    let worker = fixture.worker();
    let first = first_checkpoint(&fixture, &job).await;
    let running = fixture.queue.job(ORG, JobApi::FineTuningJobs, &job.id).await.unwrap();
    // The job may have ended already; then there is nothing to resume and nothing to lose.
    if fixture.queue.stop(&running, StopRequest::Pause).await.is_ok() {
        let paused = fixture.wait(&job, |job| job.status == JobStatus::Paused || job.status.is_final()).await;
        if paused.status == JobStatus::Paused {
            fixture.queue.resume(&paused).await.unwrap();
        }
    }
    fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    let checkpoints = all(&fixture, &job).await;
    assert_eq!(steps(&checkpoints), [9, 6, 3]);
    assert_eq!(checkpoints[2].id, first.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_from_a_checkpoint() {
    let fixture = Fixture::new().await;
    let job = enqueue(&fixture, 2).await;
    let worker = fixture.worker();
    fixture.wait_for(&job, JobStatus::Succeeded).await;
    let first_epoch = all(&fixture, &job).await.pop().unwrap();
    let file = fixture.upload(&tickets(12)).await;
    let settings = Hyperparameters { rank: None, n_epochs: Some(1), ..spec(String::new()).hyperparameters };
    let spec = JobSpec { model: first_epoch.model, hyperparameters: settings, ..spec(file) };
    let next = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let next = fixture.wait_for(&next, JobStatus::Succeeded).await;
    worker.stop().await;
    assert_eq!(next.resolved.as_ref().unwrap().rank, Some(4), "it keeps the checkpoint's shape");
    assert!(next.fine_tuned_model.as_ref().unwrap().starts_with("ft:demo:acme::"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_resource_makes_no_checkpoints_since_it_cannot_list_them() {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(12)).await;
    let job = fixture.enqueue(JobApi::FineTunes, spec(file)).await;
    let worker = fixture.worker();
    fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    assert!(all(&fixture, &job).await.is_empty());
    assert_eq!(fixture.blobs("adapters"), 2);
}

// --- Rows and blobs ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_step_has_one_checkpoint_and_a_lost_lease_none() {
    let fixture = Fixture::new().await;
    let job = claimed(&fixture).await;
    assert_eq!(fixture.queue.add_checkpoint(&job, &new_checkpoint(&job, 3, "aa")).await.unwrap(), Some(Vec::new()));
    let first = all(&fixture, &job).await;
    assert_eq!(fixture.queue.add_checkpoint(&job, &new_checkpoint(&job, 3, "bb")).await.unwrap(), Some(Vec::new()));
    assert_eq!(all(&fixture, &job).await, first);
    assert_eq!(fixture.store().fine_tuned_model(ORG, &first[0].model).await.unwrap().adapter, "aa");

    let stale = Job { attempt: job.attempt - 1, ..job.clone() };
    assert_eq!(fixture.queue.add_checkpoint(&stale, &new_checkpoint(&job, 6, "cc")).await.unwrap(), None);
    fixture.queue.finish(&job, Outcome::Released).await.unwrap().unwrap();
    assert_eq!(fixture.queue.add_checkpoint(&job, &new_checkpoint(&job, 6, "cc")).await.unwrap(), None);
    assert_eq!(all(&fixture, &job).await, first);
}

#[tokio::test]
async fn the_best_by_loss_and_by_right_answers_stay_beside_the_newest() {
    let fixture = Fixture::new().await;
    let job = claimed(&fixture).await;
    let figures = [(1, 0.5, 9), (2, 0.2, 3), (3, 0.3, 9), (4, 0.6, 0), (5, 0.7, 2), (6, 0.8, 1)];
    for (step, loss, right) in figures {
        let metrics = json!({"step": step, "full_valid_loss": loss, "valid_right_answers": right});
        let new = NewCheckpoint { metrics, ..new_checkpoint(&job, step, &format!("a{step}")) };
        fixture.queue.add_checkpoint(&job, &new).await.unwrap().unwrap();
    }
    assert_eq!(
        steps(&all(&fixture, &job).await),
        [6, 5, 4, 3, 2],
        "of equally many right answers the lower loss stays"
    );
    // A better one takes their place.
    let metrics = json!({"step": 7, "full_valid_loss": 0.1, "valid_right_answers": 20});
    let new = NewCheckpoint { metrics, ..new_checkpoint(&job, 7, "a7") };
    assert_eq!(fixture.queue.add_checkpoint(&job, &new).await.unwrap().unwrap().len(), 3);
    assert_eq!(steps(&all(&fixture, &job).await), [7, 6, 5]);
}

#[tokio::test]
async fn older_checkpoints_make_room_with_the_files_that_nobody_else_needs() {
    let fixture = Fixture::new().await;
    let job = claimed(&fixture).await;
    let blobs = &fixture.store().blobs;
    let config = |adapter: &str| format!("adapters/{adapter}/adapter_config.json");
    let add = async |job: &Job, step: i64, adapter: &str| {
        blobs.put(&config(adapter), "x".into()).await.unwrap();
        fixture.queue.add_checkpoint(job, &new_checkpoint(job, step, adapter)).await.unwrap().unwrap()
    };
    let name = |step: i64| new_checkpoint(&job, step, "").model;
    for (step, adapter) in [(1, "aa"), (2, "bb"), (3, "bb")] {
        assert!(add(&job, step, adapter).await.is_empty());
    }
    assert_eq!(add(&job, 4, "dd").await, [name(1)]);
    assert!(blobs.get(&config("aa")).await.is_err());
    assert_eq!(add(&job, 5, "ee").await, [name(2)]);
    assert!(blobs.get(&config("bb")).await.is_ok(), "step 3 has the same adapter");
    assert_eq!(add(&job, 6, "bb").await, [name(3)]);
    assert!(blobs.get(&config("bb")).await.is_ok(), "so has the newest one");
    assert_eq!(steps(&all(&fixture, &job).await), [6, 5, 4]);
    // Another job is about to name the same content as step 4, and none that of step 5.
    let other = claimed(&fixture).await;
    assert!(add(&other, 1, "ff").await.is_empty());
    assert!(fixture.queue.hold_adapter(&other, "dd").await.unwrap());
    assert_eq!(add(&job, 7, "gg").await, [name(4)]);
    assert!(blobs.get(&config("dd")).await.is_ok(), "another job holds it");
    assert_eq!(add(&job, 8, "hh").await, [name(5)]);
    assert!(blobs.get(&config("ee")).await.is_err(), "another job runs, and has nothing to do with it");
    assert_eq!(steps(&all(&fixture, &other).await), [1], "each job has its own");
}

#[tokio::test]
async fn checkpoints_come_in_pages_newest_first() {
    let fixture = Fixture::new().await;
    let job = claimed(&fixture).await;
    for step in 1..=3 {
        fixture.queue.add_checkpoint(&job, &new_checkpoint(&job, step, &format!("a{step}"))).await.unwrap().unwrap();
    }
    let (whole, more) = fixture.queue.checkpoints(&job, page(None, 3)).await.unwrap();
    assert_eq!((steps(&whole), more), (vec![3, 2, 1], false), "a page that ends with the list has no more");
    let (first, more) = fixture.queue.checkpoints(&job, page(None, 2)).await.unwrap();
    assert_eq!((steps(&first), more), (vec![3, 2], true));
    let (second, more) = fixture.queue.checkpoints(&job, page(Some(&first[1].id), 2)).await.unwrap();
    assert_eq!((steps(&second), more), (vec![1], false));
    let (nothing, more) = fixture.queue.checkpoints(&job, page(Some("ftckpt_none"), 2)).await.unwrap();
    assert!(nothing.is_empty() && !more);
}

#[tokio::test]
async fn files_of_a_checkpoint_whose_row_was_never_written_are_swept_up() {
    let fixture = Fixture::new().await;
    let job = claimed(&fixture).await;
    let store = fixture.store();
    for adapter in ["aa", "bb"] {
        store.blobs.put(&format!("adapters/{adapter}/adapter_config.json"), "x".into()).await.unwrap();
    }
    fixture.queue.add_checkpoint(&job, &new_checkpoint(&job, 1, "aa")).await.unwrap().unwrap();
    assert_eq!(store.sweep_older_than(Duration::ZERO).await.unwrap().removed, 1);
    assert!(store.blobs.get("adapters/aa/adapter_config.json").await.is_ok());
    assert!(store.blobs.get("adapters/bb/adapter_config.json").await.is_err());
}

// --- Permissions -------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn another_organisation_uses_a_checkpoint_as_long_as_it_has_permission() {
    let fixture = Fixture::new().await;
    let job = enqueue(&fixture, 1).await;
    let worker = fixture.worker();
    let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    let (store, registry) = (fixture.store(), &fixture.registry);
    let checkpoint = all(&fixture, &job).await.remove(0).model;
    assert!(is_unknown(&registry.lease(RIVAL, &checkpoint).await));

    let permission = store.grant(ORG, &checkpoint, &[RIVAL.into()]).await.unwrap().remove(0);
    assert!(
        store.usable_models(RIVAL, &[], None, 100).await.unwrap().0.is_empty(),
        "what nobody asked for is not listed"
    );
    let (base, lease) = registry.lease(RIVAL, &checkpoint).await.unwrap();
    assert_eq!((base.as_str(), &lease.id), ("demo", &registry.lease(ORG, &checkpoint).await.unwrap().1.id));
    let names = |models: Vec<attune::store::models::FineTunedModel>| {
        models.into_iter().map(|model| model.name).collect::<Vec<_>>()
    };
    assert_eq!(names(store.usable_models(RIVAL, &[], None, 100).await.unwrap().0), std::slice::from_ref(&checkpoint));
    assert_eq!(names(store.usable_models(ORG, &[], None, 100).await.unwrap().0).len(), 2);
    // A permission covers only the use of this checkpoint: not the final model, and no ownership.
    assert!(is_unknown(&registry.lease(RIVAL, done.fine_tuned_model.as_ref().unwrap()).await));
    assert!(is_unknown(&registry.lease("third", &checkpoint).await));
    assert!(is_unknown(&store.fine_tuned_model(RIVAL, &checkpoint).await));
    assert!(is_unknown(&store.delete_fine_tuned_model(RIVAL, &checkpoint).await));
    assert!(is_unknown(&store.grant(RIVAL, &checkpoint, &["third".into()]).await));
    assert!(is_unknown(&store.permissions(RIVAL, &checkpoint, None, page(None, 9)).await));
    assert!(is_unknown(&store.revoke(RIVAL, &checkpoint, &permission.id).await));

    store.revoke(ORG, &checkpoint, &permission.id).await.unwrap();
    assert!(is_unknown(&registry.lease(RIVAL, &checkpoint).await));
    assert!(store.usable_models(RIVAL, &[], None, 100).await.unwrap().0.is_empty());
    assert!(matches!(store.revoke(ORG, &checkpoint, &permission.id).await, Err(store::Error::NotFound { .. })));
    assert!(registry.lease(ORG, &checkpoint).await.is_ok());

    // A new permission is as new as the first.
    store.grant(ORG, &checkpoint, &[RIVAL.into()]).await.unwrap();
    assert!(store.usable_models(RIVAL, &[], None, 100).await.unwrap().0.is_empty());
    assert!(store.usable_model(RIVAL, &checkpoint).await.is_ok());
    store.grant(ORG, &checkpoint, &[RIVAL.into()]).await.unwrap();
    assert_eq!(
        store.usable_models(RIVAL, &[], None, 100).await.unwrap().0.len(),
        1,
        "granting it again takes nothing back"
    );

    // A permission ends with its model, and does not return with another model of the same name.
    store.grant(ORG, &checkpoint, &[RIVAL.into()]).await.unwrap();
    store.delete_fine_tuned_model(ORG, &checkpoint).await.unwrap();
    assert_eq!(fixture.database.value::<i64>("select count(*) from model_permissions").await, 0);
}

#[tokio::test]
async fn permissions_are_granted_once_and_come_in_pages() {
    let fixture = Fixture::new().await;
    let job = claimed(&fixture).await;
    let new = new_checkpoint(&job, 1, "aa");
    fixture.queue.add_checkpoint(&job, &new).await.unwrap().unwrap();
    let (store, model) = (fixture.store(), new.model.as_str());
    let projects = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();

    let granted = store.grant(ORG, model, &projects(&["b", "a", "b"])).await.unwrap();
    assert_eq!(granted.iter().map(|permission| permission.project_id.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert!(granted.iter().all(|permission| permission.id.starts_with("cp_")));
    let again = store.grant(ORG, model, &projects(&["a", "c"])).await.unwrap();
    assert_eq!(again[0], granted[1], "who has permission keeps it");
    assert!(is_unknown(&store.grant(ORG, "ft:none", &projects(&["a"])).await));

    let read = async |project: Option<&str>, page: Page| {
        let (permissions, more) = store.permissions(ORG, model, project, page).await.unwrap();
        (permissions.into_iter().map(|permission| permission.id).collect::<Vec<_>>(), more)
    };
    let (newest_first, more) = read(None, page(None, 3)).await;
    assert!(newest_first.len() == 3 && !more);
    assert_eq!(newest_first[0], again[1].id);
    let ascending = Page { ascending: true, ..page(None, 2) };
    let (mut oldest_first, more) = read(None, ascending.clone()).await;
    assert!(more);
    let (rest, more) = read(None, Page { after: oldest_first.last().cloned(), ..ascending }).await;
    assert!(!more);
    oldest_first.extend(rest);
    oldest_first.reverse();
    assert_eq!(oldest_first, newest_first);
    assert_eq!(read(Some("a"), page(None, 9)).await, (vec![granted[1].id.clone()], false));
    assert_eq!(read(None, page(Some("cp_none"), 9)).await, (Vec::new(), false));
}

#[tokio::test]
async fn grants_at_the_same_time_give_each_organisation_one_permission() {
    let fixture = Fixture::new().await;
    let job = claimed(&fixture).await;
    let new = new_checkpoint(&job, 1, "aa");
    fixture.queue.add_checkpoint(&job, &new).await.unwrap().unwrap();
    let grants = (0..6).map(|turn| {
        let (store, model) = (fixture.store().clone(), new.model.clone());
        let mut projects: Vec<String> = (0..20).map(|number| format!("project-{number}")).collect();
        projects.rotate_left(3 * turn);
        tokio::spawn(async move { store.grant(ORG, &model, &projects).await.unwrap().len() })
    });
    for granted in futures::future::join_all(grants).await {
        assert_eq!(granted.unwrap(), 20);
    }
    assert_eq!(fixture.database.value::<i64>("select count(*) from model_permissions").await, 20);
}
