//! A worker that stands still for longer than its lease, at any step of a job, and wakes up when another one has the
//! job or has ended it: it changes nothing that anybody needs, on the disk as in the database.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use crate::faults::{Access, Faults};
use crate::training::{Fixture, ORG, catalog, spec, tickets};
use attune::adapters::registry::AdapterRegistry;
use attune::jobs::queue::{Queue, StopRequest};
use attune::jobs::worker::Worker;
use attune::jobs::{Job, JobApi, JobStatus};
use attune::store::Store;

/// When the worker wakes up.
#[derive(Debug, Clone, Copy)]
enum Woken {
    /// Its job waits for another worker.
    WhileTheJobWaits,
    /// Another worker has run the job to its end.
    AfterItsEnd,
}

/// Creates a worker over `store`, which does not run.
pub(crate) async fn worker_over(fixture: &Fixture, store: &Store) -> Worker {
    Worker {
        queue: Queue::open(store.clone()).await.unwrap(),
        store: store.clone(),
        registry: AdapterRegistry::new(store.clone(), catalog()),
        ..fixture.parts()
    }
}

/// Takes the job back as if its worker had not answered for longer than the lease.
async fn take_back(fixture: &Fixture, job: &Job) {
    let waiting = async {
        // The lease may be renewed between the two.
        loop {
            fixture
                .database
                .execute("update jobs set lease_expires_at = now() - interval '1 s' where status = 'running'")
                .await;
            if fixture.queue.reap().await.unwrap() == 1 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), waiting).await.unwrap_or_else(|_| panic!("{} stays", job.id));
}

async fn end_pauses(fixture: &Fixture) {
    fixture.database.execute("update jobs set run_after = now() where status = 'queued'").await;
}

/// Halts the first worker at the `nth` `access` to a blob with `part` in its key, and gives its job to another one.
async fn freeze_at(api: JobApi, (access, part, nth): (Access, &'static str, usize), woken: Woken) {
    let at = format!("{access:?} {nth} of {part}, woken {woken:?}");
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(12)).await;
    let (faults, store) = Faults::of(fixture.store(), fixture.database.data_dir.path());
    let gate = faults.halt(access, part, nth);
    let job = fixture.enqueue(api, spec(file)).await;
    let frozen = fixture.run(worker_over(&fixture, &store).await);
    gate.is_reached().await;
    take_back(&fixture, &job).await;
    let row = fixture.wait(&job, |_| true).await;
    assert_eq!((row.status, row.attempt), (JobStatus::Queued, 1), "{at}");
    let named = row.checkpoint.map(|checkpoint| checkpoint["key"].as_str().unwrap().to_owned());

    let (ended, frozen) = match woken {
        Woken::WhileTheJobWaits => {
            gate.open();
            frozen.stop().await;
            if let Some(named) = &named {
                assert!(
                    fixture.store().blobs.exists(named).await.unwrap(),
                    "{at}: the state that the row names is gone"
                );
            }
            end_pauses(&fixture).await;
            let next = fixture.worker();
            let ended = fixture.wait_for(&job, JobStatus::Succeeded).await;
            next.stop().await;
            (ended, None)
        }
        Woken::AfterItsEnd => {
            end_pauses(&fixture).await;
            let next = fixture.worker();
            let ended = fixture.wait_for(&job, JobStatus::Succeeded).await;
            next.stop().await;
            gate.open();
            (ended, Some(frozen))
        }
    };
    if let Some(frozen) = frozen {
        frozen.stop().await;
    }
    let messages = fixture.messages(&job).await;
    assert!(!messages.iter().any(|message| message.contains("starts over")), "{at}: {messages:?}");
    let resumed = messages.iter().any(|message| message.starts_with("Resumed after step"));
    assert_eq!(resumed, named.is_some(), "{at}: {messages:?}");
    assert_eq!(ended.attempt, 2, "{at}");
    nothing_is_lost_and_nothing_stays(&fixture, &ended, &at).await;
}

/// Checks that model and result file can be read, also after a sweep, and that what nobody names is gone then.
async fn nothing_is_lost_and_nothing_stays(fixture: &Fixture, ended: &Job, at: &str) {
    for swept in [false, true] {
        if swept {
            fixture.store().sweep_older_than(Duration::ZERO).await.unwrap();
        }
        let elsewhere = AdapterRegistry::new(fixture.store().clone(), catalog());
        for model in fixture.store().usable_models(ORG, &[], None, 100).await.unwrap().0 {
            let leased = elsewhere.lease(ORG, &model.name).await;
            assert!(leased.is_ok(), "{at}, swept {swept}: {} {:?}", model.name, leased.err());
        }
        for id in &ended.result_files {
            let file = fixture.store().file(ORG, id).await.unwrap();
            let content = fixture.store().blobs.get(&format!("files/{id}")).await.unwrap();
            assert_eq!(content.len() as i64, file.bytes, "{at}, swept {swept}");
        }
    }
    assert_eq!(fixture.database.value::<i64>("select count(*) from files").await, 2, "{at}: a second result file");
    let models = fixture.store().usable_models(ORG, &[], None, 100).await.unwrap().0;
    let adapters: BTreeSet<_> = models.into_iter().map(|model| model.adapter).collect();
    let left = ["checkpoints", "files", "adapters", "removed"].map(|kind| fixture.blobs(kind));
    assert_eq!(left, [0, 2, 2 * adapters.len(), 0], "{at}");
}

/// Freezes a worker at each of `moments` and wakes it both ways.
async fn freeze(api: JobApi, moments: &[(Access, &'static str, usize)]) {
    for moment in moments {
        for woken in [Woken::WhileTheJobWaits, Woken::AfterItsEnd] {
            freeze_at(api, *moment, woken).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_froze_while_it_stored_a_state_changes_nothing() {
    freeze(JobApi::FineTunes, &[(Access::Write, "checkpoints/", 1), (Access::Write, "checkpoints/", 2)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_froze_while_it_removed_a_state_takes_no_other() {
    freeze(JobApi::FineTunes, &[(Access::Delete, "checkpoints/", 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_froze_while_it_published_a_checkpoint_changes_nothing() {
    freeze(
        JobApi::FineTuningJobs,
        &[
            (Access::Write, "adapter_model", 1),
            (Access::Write, "adapter_config", 1),
            (Access::Write, "adapter_model", 3),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_froze_while_it_stored_the_model_or_its_result_file_changes_nothing() {
    freeze(
        JobApi::FineTunes,
        &[(Access::Write, "adapter_model", 1), (Access::Write, "adapter_config", 1), (Access::Write, "files/", 1)],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_froze_while_it_cleaned_up_takes_nothing_from_a_job_that_was_resumed() {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(12)).await;
    let (faults, store) = Faults::of(fixture.store(), fixture.database.data_dir.path());
    let gate = faults.halt(Access::Write, "checkpoints/", 2);
    let job = fixture.enqueue(JobApi::FineTunes, spec(file)).await;
    let frozen = fixture.run(worker_over(&fixture, &store).await);
    gate.is_reached().await;
    // The third loss in a row fails the job, and its client resumes it.
    fixture.database.execute("update jobs set failures = 2").await;
    take_back(&fixture, &job).await;
    let failed = fixture.wait_for(&job, JobStatus::Failed).await;
    assert!(failed.checkpoint.is_some());
    gate.open();
    frozen.stop().await;
    fixture.store().sweep_older_than(Duration::ZERO).await.unwrap();
    fixture.queue.resume(&failed).await.unwrap();
    let next = fixture.worker();
    let ended = fixture.wait_for(&job, JobStatus::Succeeded).await;
    next.stop().await;
    assert!(fixture.messages(&job).await.iter().any(|message| message.starts_with("Resumed after step")));
    nothing_is_lost_and_nothing_stays(&fixture, &ended, "resumed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_states_of_a_job_that_is_cancelled_while_it_is_paused_go_at_once() {
    let fixture = Fixture::new().await;
    let (worker, job) = fixture.begin_training(40, 50).await;
    fixture.queue.stop(&job, StopRequest::Pause).await.unwrap();
    let paused = fixture.wait_for(&job, JobStatus::Paused).await;
    assert_eq!(fixture.blobs("checkpoints"), 1);
    fixture.queue.stop(&paused, StopRequest::Cancel).await.unwrap();
    let gone = async {
        while fixture.blobs("checkpoints") > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), gone).await.expect("the states stay");
    worker.stop().await;
}
