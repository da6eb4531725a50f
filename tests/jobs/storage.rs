//! Jobs on storage that is full, can only be read, fails or is slow: they wait and lose nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use crate::faults::{Access, Effect, Faults};
use crate::fences::worker_over;
use crate::training::{Fixture, ORG, catalog, spec, tickets};
use attune::adapters::registry::AdapterRegistry;
use attune::jobs::{Error, Job, JobApi, JobStatus};
use nix::errno::Errno;

/// Waits until an event of the job has `part` in it.
async fn told(fixture: &Fixture, job: &Job, part: &str) {
    let waiting = async {
        while !fixture.messages(job).await.iter().any(|message| message.contains(part)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_mins(4), waiting).await;
    assert!(waited.is_ok(), "no `{part}` in {:?}", fixture.messages(job).await);
}

/// Runs a job whose writes to keys with `part` in them fail until its client was told so in a text with `what` in it.
async fn waits_and_ends_well(api: JobApi, part: &'static str, fault: Errno, what: &str) {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(12)).await;
    let (faults, store) = Faults::of(fixture.store(), fixture.database.data_dir.path());
    faults.fail(Access::Write, part, fault as i32);
    let job = fixture.enqueue(api, spec(file)).await;
    let worker = fixture.run(worker_over(&fixture, &store).await);
    told(&fixture, &job, what).await;
    faults.mend();
    let ended = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    assert_eq!(ended.attempt, 1, "{part}: it goes on where it was");
    let model = ended.fine_tuned_model.unwrap();
    let elsewhere = AdapterRegistry::new(fixture.store().clone(), catalog());
    assert!(elsewhere.lease(ORG, &model).await.is_ok());
    assert!(fixture.store().blobs.exists(&format!("files/{}", ended.result_files[0])).await.unwrap());
    if api == JobApi::FineTuningJobs {
        let models = fixture.store().usable_models(ORG, &[], None, 100).await.unwrap().0;
        assert_eq!(models.len(), 4, "{part}: three epochs and the result");
        for model in models {
            assert!(elsewhere.lease(ORG, &model.name).await.is_ok(), "{part}: {}", model.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_room_for_its_adapter_and_its_result_file() {
    let (adapter, result) = ("cannot store the adapter: its disk is full", "cannot store the result file");
    tokio::join!(
        waits_and_ends_well(JobApi::FineTunes, "adapter_model", Errno::ENOSPC, adapter),
        waits_and_ends_well(JobApi::FineTunes, "adapter_config", Errno::EROFS, "its disk can only be read"),
        waits_and_ends_well(JobApi::FineTunes, "files/", Errno::EDQUOT, result),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_room_for_a_checkpoint_and_goes_on_without_a_state() {
    tokio::join!(
        waits_and_ends_well(JobApi::FineTuningJobs, "adapter_model", Errno::EIO, "its disk fails to read or write"),
        waits_and_ends_well(JobApi::FineTuningJobs, "checkpoints/", Errno::ENOSPC, "cannot store the state of step 3"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_files_cannot_be_read_waits_in_the_queue_without_losing_an_attempt() {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(12)).await;
    let (faults, store) = Faults::of(fixture.store(), fixture.database.data_dir.path());
    faults.fail(Access::Read, "files/", Errno::EIO as i32);
    let job = fixture.enqueue(JobApi::FineTunes, spec(file)).await;
    let worker = fixture.run(worker_over(&fixture, &store).await);
    for attempt in 1..=4 {
        let waiting = fixture.wait(&job, |job| job.attempt == attempt && job.status != JobStatus::Running).await;
        assert_eq!(waiting.status, JobStatus::Queued, "more than three attempts are not too many");
        let pause = "select extract(epoch from run_after - updated_at)::bigint from jobs";
        let expected = 5 << attempt;
        assert_eq!(fixture.database.value::<i64>(pause).await, expected, "it waits longer each time");
        if attempt == 4 {
            faults.mend();
        }
        fixture.database.execute("update jobs set run_after = now()").await;
    }
    fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    let messages = fixture.messages(&job).await;
    let fault = "The server cannot store or read the job's files: its disk fails to read or write.";
    let told = format!("Fine-tune waits for a worker: {fault}");
    assert_eq!(messages.iter().filter(|message| **message == told).count(), 4, "{messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waited_in_vain_keeps_its_state_and_is_resumed() {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(12)).await;
    let (faults, store) = Faults::of(fixture.store(), fixture.database.data_dir.path());
    faults.fail(Access::Write, "adapters/", Errno::ENOSPC as i32);
    let job = fixture.enqueue(JobApi::FineTunes, spec(file)).await;
    let worker = fixture.run(worker_over(&fixture, &store).await);
    told(&fixture, &job, "cannot store the adapter").await;
    fixture.database.execute("update jobs set waiting_since = now() - interval '25 hours'").await;
    let failed = fixture.wait_for(&job, JobStatus::Failed).await;
    let error = failed.error.clone().unwrap();
    assert_eq!(error.code, "server_error");
    assert_eq!(error.message, "The server cannot store or read the job's files: its disk is full.");
    assert_eq!(
        fixture.database.value::<i32>("select extract(day from resumable_until - finished_at)::int from jobs").await,
        7
    );
    fixture.store().sweep_older_than(Duration::ZERO).await.unwrap();
    assert_eq!(fixture.blobs("checkpoints"), 1, "its state stays");

    faults.mend();
    assert_eq!(fixture.queue.resume(&failed).await.unwrap().status, JobStatus::Queued);
    let ended = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    assert!(ended.error.is_none() && ended.finished_at.is_some());
    let messages = fixture.messages(&job).await;
    assert!(messages.iter().any(|message| message.starts_with("Resumed after step ")), "{messages:?}");
    assert_eq!(fixture.blobs("checkpoints"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_failed_job_goes_when_its_time_is_over_and_then_it_is_not_resumed() {
    let fixture = Fixture::new().await;
    let (worker, job) = fixture.begin_training(40, 50).await;
    worker.stop().await;
    let released = fixture.wait_for(&job, JobStatus::Queued).await;
    fixture.queue.claim("w", Duration::from_mins(1)).await.unwrap().unwrap();
    fixture.database.execute("update jobs set failures = 2").await;
    fixture.queue.reap_all().await.unwrap();
    let failed = fixture.wait_for(&released, JobStatus::Failed).await;
    assert_eq!(failed.error.as_ref().unwrap().code, "worker_lost");
    fixture.store().sweep_older_than(Duration::ZERO).await.unwrap();
    assert_eq!(fixture.blobs("checkpoints"), 1);
    fixture.database.execute("update jobs set resumable_until = now() - interval '1 s'").await;
    assert!(matches!(fixture.queue.resume(&failed).await, Err(Error::Conflict { .. })));
    fixture.store().sweep_older_than(Duration::ZERO).await.unwrap();
    assert_eq!(fixture.blobs("checkpoints"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_storage_only_makes_a_job_slow() {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(12)).await;
    let (faults, store) = Faults::of(fixture.store(), fixture.database.data_dir.path());
    faults.set(|_, _| Effect::Delay(Duration::from_millis(400)));
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec(file)).await;
    let worker = fixture.run(worker_over(&fixture, &store).await);
    let ended = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    assert_eq!(ended.attempt, 1);
    assert_eq!(fixture.blobs("checkpoints"), 0);
}
