//! What must hold for a job to be added: places for it, its files, its model. Each holds also while others change it.

use attune::jobs::checkpoints::NewCheckpoint;
use attune::jobs::queue::{Admission, StopRequest};
use attune::jobs::{Error, Job, JobApi, JobSpec};
use attune::store::files::NewFile;
use attune::store::models::NewModel;
use attune::store::{self, Store};

use crate::add_file;

use super::{Fixture, LEASE, ORG, spec, success};

/// Races of each kind.
const RACES: usize = 60;

const INPUTS: Admission<'_> = Admission { key: None, files: true, fine_tuned: false, max_unfinished: None };

async fn file(store: &Store) -> String {
    let new = NewFile { organization: ORG.into(), filename: "a".into(), purpose: "fine-tune".into() };
    add_file(store, new).await.id
}

async fn model(store: &Store, name: &str) {
    let new = NewModel { organization: ORG.into(), name: name.into(), base: "demo".into(), adapter: "ab".into() };
    store.add_model(new, vec![("adapters/ab/adapter_config.json".into(), "{}".into())], false).await.unwrap();
}

async fn admit(queue: &Fixture, spec: JobSpec, admission: Admission<'_>) -> Result<Job, Error> {
    queue.admit(ORG, JobApi::FineTuningJobs, spec, admission).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn either_a_file_is_deleted_or_the_job_that_names_it_is_added() {
    let queue = Fixture::new().await;
    let store = &queue.database.store;
    let other = file(store).await;
    for race in 0..RACES {
        let raced = file(store).await;
        let (training, validation) = if race % 2 == 0 { (&raced, &other) } else { (&other, &raced) };
        let spec = JobSpec { training_file: training.clone(), validation_file: Some(validation.clone()), ..spec() };
        let (deleted, added) = if race % 4 < 2 {
            tokio::join!(store.delete_file(ORG, &raced), admit(&queue, spec, INPUTS))
        } else {
            let (added, deleted) = tokio::join!(admit(&queue, spec, INPUTS), store.delete_file(ORG, &raced));
            (deleted, added)
        };
        match (deleted, added) {
            (Ok(()), Err(Error::FileGone { id, param })) => {
                assert_eq!((id, param), (raced, if race % 2 == 0 { "training_file" } else { "validation_file" }));
            }
            (Err(store::Error::FileInUse { job, .. }), Ok(added)) => {
                assert_eq!(job, added.id);
                queue.stop(&added, StopRequest::Cancel).await.unwrap();
            }
            (deleted, added) => panic!("exactly one must succeed: {deleted:?}, {added:?}"),
        }
    }
    let unfinished: i64 = queue.database.value("select count(*) from jobs where status <> 'cancelled'").await;
    assert_eq!(unfinished, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn either_a_model_is_deleted_or_the_job_that_continues_it_is_added() {
    let queue = Fixture::new().await;
    let store = &queue.database.store;
    let training_file = file(store).await;
    for race in 0..RACES {
        let name = format!("mine-{race}");
        model(store, &name).await;
        let spec = JobSpec { model: name.clone(), training_file: training_file.clone(), ..spec() };
        let admission = Admission { fine_tuned: true, ..INPUTS };
        let (deleted, added) = if race % 2 == 0 {
            tokio::join!(store.delete_fine_tuned_model(ORG, &name), admit(&queue, spec, admission))
        } else {
            let (added, deleted) =
                tokio::join!(admit(&queue, spec, admission), store.delete_fine_tuned_model(ORG, &name));
            (deleted, added)
        };
        match (deleted, added) {
            (Ok(_), Err(Error::ModelGone(gone))) => assert_eq!(gone, name),
            (Err(store::Error::ModelInUse { job, .. }), Ok(added)) => {
                assert_eq!(job, added.id);
                queue.stop(&added, StopRequest::Cancel).await.unwrap();
                store.delete_fine_tuned_model(ORG, &name).await.unwrap();
            }
            (deleted, added) => panic!("exactly one must succeed: {deleted:?}, {added:?}"),
        }
    }
}

/// Begins a transaction that holds what `sql` locks, and returns once it does.
async fn holding(queue: &Fixture, sql: &'static str) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut transaction = queue.database.store.pool().begin().await.unwrap();
    sqlx::query(sql).execute(&mut *transaction).await.unwrap();
    transaction
}

/// Waits until as many statements wait for a lock.
async fn until_waiting(queue: &Fixture, statements: i64) {
    for _ in 0..1_000 {
        let waiting: i64 = queue
            .database
            .value(
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
            )
            .await;
        if waiting >= statements {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{statements} statements should wait");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_deletion_that_waited_for_an_enqueue_sees_its_job() {
    let queue = Fixture::new().await;
    let store = queue.database.store.clone();
    let training_file = file(&store).await;
    // The enqueue has locked the file and waits for the organisation's row; the deletion waits for the file.
    queue.enqueued().await;
    let held = holding(&queue, "select from job_turns for update").await;
    let spec = JobSpec { training_file: training_file.clone(), ..spec() };
    let adding = queue.queue.clone();
    let added = tokio::spawn(async move { adding.admit(ORG, JobApi::FineTuningJobs, spec, INPUTS).await });
    until_waiting(&queue, 1).await;
    let deleting = store.clone();
    let id = training_file.clone();
    let deleted = tokio::spawn(async move { deleting.delete_file(ORG, &id).await });
    held.commit().await.unwrap();
    match (deleted.await.unwrap(), added.await.unwrap()) {
        (Ok(()), Err(Error::FileGone { .. })) | (Err(store::Error::FileInUse { .. }), Ok(_)) => {}
        (deleted, added) => panic!("exactly one must succeed: {deleted:?}, {added:?}"),
    }
}

#[tokio::test]
async fn a_job_needs_its_files_and_its_model() {
    let queue = Fixture::new().await;
    let training_file = file(&queue.database.store).await;
    let there = JobSpec { training_file: training_file.clone(), validation_file: Some(training_file), ..spec() };
    admit(&queue, there.clone(), INPUTS).await.expect("one file for both");
    let none = JobSpec { training_file: "file-none".into(), ..there.clone() };
    assert!(matches!(admit(&queue, none, INPUTS).await, Err(Error::FileGone { param: "training_file", .. })));
    let foreign = queue.admit("rival", JobApi::FineTuningJobs, there.clone(), INPUTS).await;
    assert!(matches!(foreign, Err(Error::FileGone { .. })), "{foreign:?}");
    let missing = admit(&queue, there, Admission { fine_tuned: true, ..INPUTS }).await;
    assert!(matches!(missing, Err(Error::ModelGone(_))), "{missing:?}");
    let jobs: i64 = queue.database.value("select count(*) from jobs").await;
    assert_eq!(jobs, 1, "nothing is left of what was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_organisation_has_exactly_as_many_unfinished_jobs_as_it_may() {
    const MOST: usize = 7;
    let queue = Fixture::new().await;
    let limited = Admission { max_unfinished: Some(MOST as u32), ..Admission::default() };
    let enqueues = (0..40).map(|_| {
        let queue = queue.queue.clone();
        tokio::spawn(async move { queue.admit(ORG, JobApi::FineTuningJobs, spec(), limited).await })
    });
    let mut added = Vec::new();
    for answer in futures::future::join_all(enqueues).await {
        match answer.unwrap() {
            Ok(job) => added.push(job),
            Err(Error::TooManyJobs { unfinished, most }) => assert_eq!((unfinished, most), (7, 7)),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(added.len(), MOST);
    queue.admit("rival", JobApi::FineTuningJobs, spec(), limited).await.expect("its own count");
    // Running and paused jobs count as well, ended ones do not.
    let running = queue.claimed().await;
    let paused = added.iter().find(|job| job.key != running.key).unwrap();
    queue.stop(paused, StopRequest::Pause).await.unwrap();
    assert!(matches!(admit(&queue, spec(), limited).await, Err(Error::TooManyJobs { .. })));
    queue.finish(&running, success("ft:a")).await.unwrap();
    admit(&queue, spec(), limited).await.expect("a place is free");
    assert!(matches!(admit(&queue, spec(), limited).await, Err(Error::TooManyJobs { .. })));
    queue.stop(paused, StopRequest::Cancel).await.unwrap();
    admit(&queue, spec(), limited).await.expect("a place is free");
}

#[tokio::test]
async fn the_count_of_jobs_follows_every_change() {
    let queue = Fixture::new().await;
    let counted = || async {
        let count = |sql: &'static str| queue.database.value::<bool>(sql);
        count(
            "select not exists (
                 select organization, count(*) filter (where status = 'queued'),
                        count(*) filter (where status = 'running'), count(*) filter (where status = 'paused')
                   from jobs group by organization
                 except select organization, waiting, running, paused from job_turns)",
        )
        .await
    };
    for organization in ["a", "b", "a", "c"] {
        queue.enqueue(organization, JobApi::FineTuningJobs, spec()).await.unwrap();
        assert!(counted().await);
    }
    for _ in 0..3 {
        queue.claim("w", LEASE).await.unwrap().unwrap();
        assert!(counted().await);
    }
    queue.expire_leases().await;
    assert_eq!(queue.reap().await.unwrap(), 3);
    assert!(counted().await);
    queue.end_pauses().await;
    queue.claim("w", LEASE).await.unwrap().unwrap();
    queue.database.execute("delete from jobs where status = 'queued'").await;
    assert!(counted().await);
    let left: i64 = queue.database.value("select sum(waiting + running + paused)::bigint from job_turns").await;
    assert_eq!(left, 1);
}

#[tokio::test]
async fn a_checkpoint_that_an_unfinished_job_continues_outlives_the_newer_ones() {
    let queue = Fixture::new().await;
    let training = queue.running().await;
    let checkpoint = async |step: i64| {
        let new = NewCheckpoint {
            model: format!("ft:x:ckpt-step-{step}"),
            base: "demo".into(),
            adapter: "aa".into(),
            step,
            metrics: serde_json::json!({}),
        };
        queue.add_checkpoint(&training, &new).await.unwrap().expect("the lease is held")
    };
    for step in 1..=3 {
        assert!(checkpoint(step).await.is_empty());
    }
    let spec = JobSpec { model: "ft:x:ckpt-step-1".into(), ..spec() };
    let admission = Admission { fine_tuned: true, ..Admission::default() };
    let further = admit(&queue, spec, admission).await.unwrap();
    assert!(checkpoint(4).await.is_empty(), "the first one is needed");
    assert_eq!(checkpoint(5).await, ["ft:x:ckpt-step-2"]);
    queue.stop(&further, StopRequest::Cancel).await.unwrap();
    let mut dropped = checkpoint(6).await;
    dropped.sort();
    assert_eq!(dropped, ["ft:x:ckpt-step-1", "ft:x:ckpt-step-3"]);
}
