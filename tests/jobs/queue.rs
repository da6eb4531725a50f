//! The job queue against a real Postgres: the life of a job, leases and fences, what clients may ask, and what they see.

#![allow(clippy::unwrap_used, reason = "a test that fails should panic")]

use std::collections::HashSet;
use std::ops::Deref;
use std::time::Duration;

use crate::postgres::TestDatabase;
use attune::jobs::Error;
use attune::jobs::events::JobEvent;
use attune::jobs::queue::{HeartbeatAnswer, Outcome, Queue, StopRequest};
use attune::jobs::{Job, JobApi, JobFault, JobSpec, JobStatus, MetadataFilter};
use attune::store::files::Page;
use attune::train::hyperparameters::Hyperparameters;
use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

const LEASE: Duration = Duration::from_mins(1);
const SOON: Duration = Duration::from_secs(20);
const ORG: &str = "acme";

/// A queue on an empty database.
struct Fixture {
    queue: Queue,
    database: TestDatabase,
}

impl Deref for Fixture {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}

impl Fixture {
    async fn new() -> Self {
        let database = TestDatabase::new().await;
        Self { queue: Queue::open(database.store.clone()).await.unwrap(), database }
    }

    async fn enqueued(&self) -> Job {
        self.enqueue(ORG, JobApi::FineTuningJobs, spec()).await.unwrap()
    }

    /// A new job that worker `w` runs.
    async fn running(&self) -> Job {
        let job = self.enqueued().await;
        let claimed = self.claimed().await;
        assert_eq!(claimed.key, job.key);
        claimed
    }

    async fn claimed(&self) -> Job {
        self.claim("w", LEASE).await.unwrap().expect("a job to claim")
    }

    async fn again(&self, job: &Job) -> Job {
        self.job(&job.organization, job.api, &job.id).await.unwrap()
    }

    /// Lets every lease run out.
    async fn expire_leases(&self) {
        self.database
            .execute("update jobs set lease_expires_at = now() - interval '1 s' where status = 'running'")
            .await;
    }

    /// Ends every pause before another attempt.
    async fn end_pauses(&self) {
        self.database.execute("update jobs set run_after = now() where status = 'queued'").await;
    }

    async fn messages(&self, job: &Job) -> Vec<String> {
        self.events_after(job, 0, 1000).await.unwrap().into_iter().map(|event| event.message).collect()
    }
}

fn spec() -> JobSpec {
    JobSpec {
        model: "demo".into(),
        alias: None,
        training_file: "file-train".into(),
        validation_file: None,
        suffix: Some("mine".into()),
        seed: u64::MAX,
        hyperparameters: Hyperparameters { n_epochs: Some(3), learning_rate: Some(1.234e-5), ..Default::default() },
        metadata: Some(json!({"note": "héllo"}).as_object().unwrap().clone()),
        classification: None,
        method: attune::train::hyperparameters::Method::Supervised,
    }
}

fn fault(code: &str) -> JobFault {
    JobFault { code: code.into(), message: format!("{code} happened"), param: Some("training_file".into()) }
}

fn success(model: &str) -> Outcome {
    Outcome::Succeeded {
        model: model.into(),
        base: "demo".into(),
        adapter: "a".repeat(64),
        trained_tokens: 1234,
        result_files: vec!["file-result".into()],
    }
}

fn other_organization(job: &Job) -> Job {
    Job { organization: "rival".into(), ..job.clone() }
}

fn assert_conflict<T: std::fmt::Debug>(result: &Result<T, Error>) {
    assert!(matches!(result, Err(Error::Conflict { .. })), "expected a conflict, got {result:?}");
}

// --- The life of a job -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_job_is_stored_as_it_was_asked_for() {
    let queue = Fixture::new().await;
    let job = queue.enqueued().await;
    assert!(job.id.starts_with("ftjob-") && job.id.len() == "ftjob-".len() + 24, "{}", job.id);
    assert_eq!((job.status, job.attempt, job.organization.as_str()), (JobStatus::Queued, 0, ORG));
    let read = queue.again(&job).await;
    assert_eq!(serde_json::to_value(&read.spec).unwrap(), serde_json::to_value(spec()).unwrap());
    assert_eq!(queue.messages(&job).await, [format!("Created fine-tuning job: {}", job.id)]);

    let legacy = queue.enqueue(ORG, JobApi::FineTunes, spec()).await.unwrap();
    assert!(legacy.id.starts_with("ft-") && legacy.id.len() == "ft-".len() + 24, "{}", legacy.id);
    assert_eq!(
        queue.messages(&legacy).await,
        [format!("Created fine-tune: {}", legacy.id), "Fine-tune enqueued. Queue number: 1".into()]
    );
}

#[tokio::test]
async fn a_job_is_seen_only_by_its_organisation_and_through_its_own_resource() {
    let queue = Fixture::new().await;
    let job = queue.enqueued().await;
    for (organization, api) in [("rival", JobApi::FineTuningJobs), (ORG, JobApi::FineTunes)] {
        let error = queue.job(organization, api, &job.id).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { kind, .. } if kind == api.kind()), "{error:?}");
        assert!(queue.jobs(organization, api, MetadataFilter::Any, page(None, 10)).await.unwrap().0.is_empty());
    }
}

#[tokio::test]
async fn a_heartbeat_renews_the_lease_and_saves_the_checkpoint() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    queue.expire_leases().await;
    // Late, but nobody has taken the job back yet.
    let answer = queue.heartbeat(&job, LEASE, Some(json!({"step": 10}))).await.unwrap();
    assert_eq!(answer, Some(HeartbeatAnswer { stop: None }));
    assert_eq!(queue.reap().await.unwrap(), 0);
    queue.heartbeat(&job, LEASE, None).await.unwrap().unwrap();
    assert_eq!(queue.again(&job).await.checkpoint, Some(json!({"step": 10})), "no checkpoint means: keep the last");
}

#[tokio::test]
async fn a_lost_job_is_claimed_again_with_its_checkpoint_after_a_pause() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    queue.heartbeat(&job, LEASE, Some(json!({"step": 10}))).await.unwrap();
    queue.expire_leases().await;
    assert_eq!(queue.reap().await.unwrap(), 1);
    assert_eq!(queue.again(&job).await.status, JobStatus::Queued);
    assert!(queue.claim("w2", LEASE).await.unwrap().is_none(), "it must wait before the next attempt");
    queue.end_pauses().await;
    let again = queue.claimed().await;
    assert_eq!((again.key, again.attempt, again.checkpoint), (job.key, 2, Some(json!({"step": 10}))));
}

#[tokio::test]
async fn a_stale_attempt_cannot_write() {
    let queue = Fixture::new().await;
    let stale = queue.running().await;
    queue.expire_leases().await;
    queue.reap().await.unwrap();
    for reclaimed in [false, true] {
        if reclaimed {
            queue.end_pauses().await;
            queue.claimed().await;
        }
        let before = (queue.again(&stale).await, queue.messages(&stale).await);
        assert_eq!(queue.heartbeat(&stale, LEASE, Some(json!({"step": 99}))).await.unwrap(), None);
        queue.record_plan(&stale, &Hyperparameters::default(), Some(1)).await.unwrap();
        queue.add_event(&stale, "info", "message", "from the past", None).await.unwrap();
        for outcome in [
            success("ft:x"),
            Outcome::Failed(fault("a")),
            Outcome::Retry(fault("a")),
            Outcome::Stopped,
            Outcome::Released,
        ] {
            assert!(queue.finish(&stale, outcome).await.unwrap().is_none());
        }
        let after = (queue.again(&stale).await, queue.messages(&stale).await);
        assert_eq!(format!("{before:?}"), format!("{after:?}"));
        assert!(queue.database.store.usable_models(ORG).await.unwrap().is_empty(), "nothing may be published");
    }
}

#[tokio::test]
async fn success_publishes_the_model_with_the_job_and_tells_so() {
    let legacy = ["Uploaded model: ft:demo", "Uploaded result file: file-result", "Fine-tune succeeded"];
    let current = ["New fine-tuned model created: ft:demo", "The job has successfully completed"];
    for (api, told) in [(JobApi::FineTunes, legacy.as_slice()), (JobApi::FineTuningJobs, &current)] {
        let queue = Fixture::new().await;
        queue.enqueue(ORG, api, spec()).await.unwrap();
        let job = queue.claimed().await;
        let resolved = Hyperparameters { batch_size: Some(4), ..spec().hyperparameters };
        queue.record_plan(&job, &resolved, Some(2_000_000_000)).await.unwrap();
        let finished = queue.finish(&job, success("ft:demo")).await.unwrap().unwrap();
        assert_eq!(finished.status, JobStatus::Succeeded);
        assert_eq!(finished.fine_tuned_model.as_deref(), Some("ft:demo"));
        assert_eq!(finished.trained_tokens, Some(1234));
        assert_eq!(finished.result_files, ["file-result"]);
        assert_eq!(finished.resolved, Some(resolved));
        assert_eq!(finished.estimated_finish, Some(2_000_000_000));
        assert!(finished.finished_at.is_some());
        let model = queue.database.store.fine_tuned_model(ORG, "ft:demo").await.unwrap();
        assert_eq!((model.base.as_str(), model.adapter, model.job), ("demo", "a".repeat(64), Some(job.id.clone())));
        let messages = queue.messages(&job).await;
        assert_eq!(messages[messages.len() - told.len()..], *told);
        assert!(queue.finish(&job, success("ft:demo")).await.unwrap().is_none(), "a job ends once");
    }
}

#[tokio::test]
async fn a_model_that_cannot_be_published_leaves_the_job_running() {
    let queue = Fixture::new().await;
    let first = queue.running().await;
    queue.finish(&first, success("ft:taken")).await.unwrap().unwrap();
    let second = queue.running().await;
    let before = queue.messages(&second).await;
    assert!(queue.finish(&second, success("ft:taken")).await.is_err());
    assert_eq!(queue.again(&second).await.status, JobStatus::Running);
    assert_eq!(queue.messages(&second).await, before);
    assert!(queue.finish(&second, success("ft:free")).await.unwrap().is_some());
}

#[tokio::test]
async fn the_requests_fault_fails_the_job_at_once() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    let failed = queue.finish(&job, Outcome::Failed(fault("invalid_training_file"))).await.unwrap().unwrap();
    assert_eq!((failed.status, failed.error), (JobStatus::Failed, Some(fault("invalid_training_file"))));
    let last = queue.events_page(&job, None, 1).await.unwrap().0.remove(0);
    assert_eq!(last.level, "error");
    assert_eq!(last.message, "Fine-tuning job failed: invalid_training_file happened");
}

#[tokio::test]
async fn another_fault_is_tried_again_three_times_in_all() {
    let queue = Fixture::new().await;
    let mut job = queue.running().await;
    for _ in 0..2 {
        let waiting = queue.finish(&job, Outcome::Retry(fault("storage"))).await.unwrap().unwrap();
        assert_eq!((waiting.status, waiting.error), (JobStatus::Queued, None));
        assert!(queue.claim("w", LEASE).await.unwrap().is_none(), "the next attempt waits");
        queue.end_pauses().await;
        job = queue.claimed().await;
    }
    let failed = queue.finish(&job, Outcome::Retry(fault("storage"))).await.unwrap().unwrap();
    assert_eq!((failed.status, failed.error), (JobStatus::Failed, Some(fault("storage"))));
}

#[tokio::test]
async fn a_job_that_kills_every_worker_fails_after_three() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    for _ in 0..2 {
        queue.expire_leases().await;
        assert_eq!(queue.reap().await.unwrap(), 1);
        queue.end_pauses().await;
        queue.claimed().await;
    }
    queue.expire_leases().await;
    assert_eq!(queue.reap().await.unwrap(), 1);
    let failed = queue.again(&job).await;
    assert_eq!(failed.status, JobStatus::Failed);
    assert_eq!(failed.error.unwrap().code, "worker_lost");
    assert!(failed.finished_at.is_some());
}

#[tokio::test]
async fn a_job_that_gets_further_in_each_attempt_is_tried_for_as_long_as_it_does() {
    let queue = Fixture::new().await;
    let mut job = queue.running().await;
    for step in 1..=6 {
        assert!(queue.heartbeat(&job, LEASE, Some(json!({"step": step}))).await.unwrap().is_some());
        queue.expire_leases().await;
        assert_eq!(queue.reap().await.unwrap(), 1);
        queue.end_pauses().await;
        job = queue.claimed().await;
        assert_eq!(job.checkpoint, Some(json!({"step": step})));
    }
    // A heartbeat without a state is no progress.
    for _ in 0..2 {
        assert!(queue.heartbeat(&job, LEASE, None).await.unwrap().is_some());
        queue.expire_leases().await;
        queue.reap().await.unwrap();
        queue.end_pauses().await;
        if let Some(next) = queue.claim("w", LEASE).await.unwrap() {
            job = next;
        }
    }
    assert_eq!(queue.again(&job).await.status, JobStatus::Failed);
}

#[tokio::test]
async fn the_jobs_of_a_server_that_was_killed_are_free_at_once_when_it_starts_again() {
    let queue = Fixture::new().await;
    let jobs = [queue.running().await, queue.running().await];
    let waiting = queue.enqueued().await;
    assert_eq!(queue.reap().await.unwrap(), 0, "their leases have not run out");
    assert_eq!(queue.reap_all().await.unwrap(), 2);
    assert_eq!(queue.reap_all().await.unwrap(), 0);
    for job in &jobs {
        assert_eq!(queue.again(job).await.status, JobStatus::Queued);
        assert_eq!(queue.heartbeat(job, LEASE, None).await.unwrap(), None, "the fence has moved");
    }
    for _ in 0..3 {
        queue.claimed().await;
    }
    assert_eq!(queue.again(&waiting).await.status, JobStatus::Running);
    // Each of these counts as a lost attempt: a job that kills its server must not do so for ever.
    for _ in 0..2 {
        assert_eq!(queue.reap_all().await.unwrap(), 3);
        while queue.claim("w", LEASE).await.unwrap().is_some() {}
    }
    assert_eq!(queue.again(&jobs[0]).await.status, JobStatus::Failed);
    assert_eq!(queue.again(&waiting).await.status, JobStatus::Running, "it has been tried once less");
}

#[tokio::test]
async fn a_released_job_is_free_at_once_and_loses_no_attempt_but_the_fence_moves() {
    let queue = Fixture::new().await;
    let mut job = queue.running().await;
    for _ in 0..5 {
        let released = queue.finish(&job, Outcome::Released).await.unwrap().unwrap();
        assert_eq!(released.status, JobStatus::Queued);
        let next = queue.claimed().await;
        assert!(next.attempt > job.attempt);
        assert_eq!(queue.heartbeat(&job, LEASE, None).await.unwrap(), None);
        job = next;
    }
}

#[tokio::test]
async fn reaping_again_and_at_the_same_time_takes_each_job_back_once() {
    let queue = Fixture::new().await;
    for _ in 0..5 {
        queue.running().await;
    }
    queue.expire_leases().await;
    let reapers =
        (0..4).map(|_| queue.queue.clone()).map(|queue| tokio::spawn(async move { queue.reap().await.unwrap() }));
    let counts = futures::future::join_all(reapers).await;
    assert_eq!(counts.into_iter().map(Result::unwrap).sum::<usize>(), 5);
    assert_eq!(queue.reap().await.unwrap(), 0);
    assert_eq!(queue.database.value::<i64>("select sum(failures)::bigint from jobs").await, 5);
}

// --- Claims ------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn claim_is_exclusive() {
    let queue = Fixture::new().await;
    for _ in 0..30 {
        queue.enqueued().await;
    }
    let workers = (0..8).map(|worker| {
        let queue = queue.queue.clone();
        tokio::spawn(async move {
            let mut keys = Vec::new();
            while let Some(job) = queue.claim(&format!("w{worker}"), LEASE).await.unwrap() {
                assert_eq!(job.attempt, 1);
                keys.push(job.key);
            }
            keys
        })
    });
    let claimed: Vec<Uuid> = futures::future::join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(claimed.len(), 30, "every job is claimed");
    assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), 30, "no job is claimed twice");
}

#[tokio::test]
async fn one_organisation_cannot_keep_the_others_waiting() {
    let queue = Fixture::new().await;
    for organization in ["many", "many", "many", "few", "other"] {
        queue.enqueue(organization, JobApi::FineTuningJobs, spec()).await.unwrap();
    }
    // With many workers the least busy goes first; with one, whose turn is the longest ago.
    let mut order = Vec::new();
    for _ in 0..4 {
        let job = queue.claimed().await;
        order.push(job.organization.clone());
        if order.len() > 3 {
            queue.finish(&job, Outcome::Failed(fault("x"))).await.unwrap();
        }
    }
    assert_eq!(order, ["many", "few", "other", "many"]);

    let queue = Fixture::new().await;
    for organization in ["many", "many", "many", "few"] {
        queue.enqueue(organization, JobApi::FineTuningJobs, spec()).await.unwrap();
    }
    let mut order = Vec::new();
    while let Some(job) = queue.claim("w", LEASE).await.unwrap() {
        queue.finish(&job, Outcome::Failed(fault("x"))).await.unwrap();
        order.push(job.organization);
    }
    assert_eq!(order, ["many", "few", "many", "many"]);
}

// --- Stop and resume ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_waiting_job_is_cancelled_or_paused_at_once() {
    let queue = Fixture::new().await;
    let job = queue.enqueued().await;
    assert_eq!(queue.stop(&job, StopRequest::Pause).await.unwrap().status, JobStatus::Paused);
    assert!(queue.claim("w", LEASE).await.unwrap().is_none(), "a paused job is not claimed");
    assert_conflict(&queue.stop(&job, StopRequest::Pause).await);
    assert_eq!(queue.resume(&job).await.unwrap().status, JobStatus::Queued);
    assert_conflict(&queue.resume(&job).await);
    queue.stop(&job, StopRequest::Pause).await.unwrap();
    let cancelled = queue.stop(&job, StopRequest::Cancel).await.unwrap();
    assert_eq!(cancelled.status, JobStatus::Cancelled);
    assert!(cancelled.finished_at.is_some());
    assert!(queue.claim("w", LEASE).await.unwrap().is_none(), "a cancelled job is not claimed");
    assert_eq!(
        queue.messages(&job).await[1..],
        [
            "Fine-tuning job paused",
            "Fine-tuning job waits for a worker",
            "Fine-tuning job paused",
            "Fine-tuning job cancelled"
        ]
    );
}

#[tokio::test]
async fn a_running_job_hears_of_the_request_at_its_heartbeat_and_stops() {
    let queue = Fixture::new().await;
    for (what, status, messages) in [
        (StopRequest::Cancel, JobStatus::Cancelled, ["is being cancelled", "cancelled"]),
        (StopRequest::Pause, JobStatus::Paused, ["is being paused", "paused"]),
    ] {
        let job = queue.running().await;
        let asked = queue.stop(&job, what).await.unwrap();
        assert_eq!(asked.status, JobStatus::Running, "only its worker stops it");
        let answer = queue.heartbeat(&job, LEASE, Some(json!({"step": 5}))).await.unwrap();
        assert_eq!(answer, Some(HeartbeatAnswer { stop: Some(what) }));
        let stopped = queue.finish(&job, Outcome::Stopped).await.unwrap().unwrap();
        assert_eq!((stopped.status, stopped.stop_request), (status, None));
        assert_eq!(stopped.finished_at.is_some(), status.is_final());
        assert_eq!(stopped.checkpoint, Some(json!({"step": 5})));
        assert_eq!(queue.messages(&job).await[2..], messages.map(|message| format!("Fine-tuning job {message}")));
    }
}

#[tokio::test]
async fn cancel_overrides_pause_and_is_never_turned_back_into_it() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    queue.stop(&job, StopRequest::Pause).await.unwrap();
    let asked = queue.stop(&job, StopRequest::Cancel).await.unwrap();
    assert_eq!(asked.stop_request.as_deref(), Some("cancel"));
    assert_conflict(&queue.stop(&job, StopRequest::Pause).await);
    assert_conflict(&queue.resume(&job).await);
    let stop = queue.heartbeat(&job, LEASE, None).await.unwrap().unwrap().stop;
    assert_eq!(stop, Some(StopRequest::Cancel));
    assert_eq!(queue.finish(&job, Outcome::Stopped).await.unwrap().unwrap().status, JobStatus::Cancelled);
}

#[tokio::test]
async fn asking_again_for_what_is_asked_already_changes_nothing() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    for what in [StopRequest::Pause, StopRequest::Cancel] {
        queue.stop(&job, what).await.unwrap();
        let before = queue.messages(&job).await;
        assert_eq!(queue.stop(&job, what).await.unwrap().status, JobStatus::Running);
        assert_eq!(queue.messages(&job).await, before);
    }
}

#[tokio::test]
async fn a_pause_can_be_withdrawn_before_the_worker_carries_it_out() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    queue.stop(&job, StopRequest::Pause).await.unwrap();
    let resumed = queue.resume(&job).await.unwrap();
    assert_eq!((resumed.status, resumed.stop_request), (JobStatus::Running, None));
    // A worker that has stopped already gives the job back.
    assert_eq!(queue.finish(&job, Outcome::Stopped).await.unwrap().unwrap().status, JobStatus::Queued);
}

#[tokio::test]
async fn a_requested_stop_wins_over_another_attempt() {
    for (what, status) in [(StopRequest::Cancel, JobStatus::Cancelled), (StopRequest::Pause, JobStatus::Paused)] {
        let queue = Fixture::new().await;
        for outcome in [Some(Outcome::Released), Some(Outcome::Retry(fault("x"))), None] {
            let job = queue.running().await;
            queue.stop(&job, what).await.unwrap();
            if let Some(outcome) = outcome {
                queue.finish(&job, outcome).await.unwrap().unwrap();
            } else {
                // The worker died instead.
                queue.expire_leases().await;
                assert_eq!(queue.reap().await.unwrap(), 1);
            }
            assert_eq!(queue.again(&job).await.status, status);
        }
    }
}

#[tokio::test]
async fn a_finished_job_cannot_be_stopped_or_resumed() {
    let queue = Fixture::new().await;
    for outcome in [success("ft:demo"), Outcome::Failed(fault("x")), Outcome::Stopped] {
        let job = queue.running().await;
        if matches!(outcome, Outcome::Stopped) {
            queue.stop(&job, StopRequest::Cancel).await.unwrap();
        }
        let finished = queue.finish(&job, outcome).await.unwrap().unwrap();
        assert!(finished.status.is_final());
        assert_conflict(&queue.stop(&job, StopRequest::Cancel).await);
        assert_conflict(&queue.stop(&job, StopRequest::Pause).await);
        assert_conflict(&queue.resume(&job).await);
    }
}

#[tokio::test]
async fn another_organisation_can_neither_stop_nor_resume() {
    let queue = Fixture::new().await;
    let job = other_organization(&queue.enqueued().await);
    for result in [
        queue.stop(&job, StopRequest::Cancel).await,
        queue.stop(&job, StopRequest::Pause).await,
        queue.resume(&job).await,
    ] {
        assert!(matches!(result, Err(Error::NotFound { .. })), "{result:?}");
    }
}

#[tokio::test]
async fn a_request_to_stop_is_never_lost_to_the_end_of_an_attempt() {
    let queue = Fixture::new().await;
    for _ in 0..50 {
        let job = queue.running().await;
        let (stopped, finished) =
            tokio::join!(queue.stop(&job, StopRequest::Cancel), queue.finish(&job, Outcome::Released));
        // In either order: a job that is being released can be cancelled before and after.
        assert!(finished.unwrap().is_some());
        stopped.unwrap();
        assert_eq!(queue.again(&job).await.status, JobStatus::Cancelled);
    }
}

// --- Events and pages --------------------------------------------------------------------------------------------------

fn page(after: Option<&str>, limit: i64) -> Page {
    Page { after: after.map(Into::into), limit, ascending: false }
}

#[tokio::test]
async fn events_come_in_order_and_in_pages() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    for step in 0..5 {
        let data = json!({"step": step});
        queue.add_event(&job, "info", "metrics", &format!("Step {step}"), Some(data)).await.unwrap();
    }
    let all = queue.events_after(&job, 0, 100).await.unwrap();
    assert_eq!(all.len(), 7);
    assert!(all.is_sorted_by(|first, second| first.seq < second.seq));
    assert_eq!((all[6].kind.as_str(), &all[6].data), ("metrics", &Some(json!({"step": 4}))));
    assert!(all.iter().all(|event| event.created_at > 1_700_000_000));
    assert_eq!(queue.events_after(&job, all[3].seq, 2).await.unwrap(), all[4..6]);

    let mut newest_first = Vec::<JobEvent>::new();
    loop {
        let before = newest_first.last().map(|event| event.seq);
        let (events, more) = queue.events_page(&job, before, 3).await.unwrap();
        newest_first.extend(events);
        if !more {
            break;
        }
    }
    newest_first.reverse();
    assert_eq!(newest_first, all);
    assert!(!queue.events_page(&job, None, 7).await.unwrap().1, "a page that ends with the list has no more");
}

#[tokio::test]
async fn a_reader_that_follows_the_numbers_misses_no_event_of_concurrent_writers() {
    const WRITERS: usize = 4;
    const EACH: usize = 40;
    let queue = Fixture::new().await;
    let job = queue.running().await;
    let writers = (0..WRITERS).map(|_| {
        let (queue, job) = (queue.queue.clone(), job.clone());
        tokio::spawn(async move {
            for _ in 0..EACH {
                queue.add_event(&job, "info", "message", "x", None).await.unwrap();
            }
        })
    });
    let writing = futures::future::join_all(writers);
    let reading = async {
        let (mut seen, mut cursor) = (0, 0);
        while seen < WRITERS * EACH + 2 {
            for event in queue.events_after(&job, cursor, 10).await.unwrap() {
                cursor = event.seq;
                seen += 1;
            }
        }
        seen
    };
    let (_, seen) = tokio::join!(writing, tokio::time::timeout(SOON, reading));
    assert_eq!(seen.expect("an event was missed"), WRITERS * EACH + 2);
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages_that_meet() {
    let queue = Fixture::new().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.insert(0, queue.enqueued().await.id);
    }
    let (first, more) = queue.jobs(ORG, JobApi::FineTuningJobs, MetadataFilter::Any, page(None, 3)).await.unwrap();
    assert!(more);
    let (second, more) =
        queue.jobs(ORG, JobApi::FineTuningJobs, MetadataFilter::Any, page(Some(&first[2].id), 3)).await.unwrap();
    assert!(!more);
    assert_eq!(first.into_iter().chain(second).map(|job| job.id).collect::<Vec<_>>(), ids);
    let ascending = Page { ascending: true, ..page(Some(&ids[4]), 1) };
    let (next, more) = queue.jobs(ORG, JobApi::FineTuningJobs, MetadataFilter::Any, ascending).await.unwrap();
    assert_eq!((next[0].id.as_str(), more), (ids[3].as_str(), true));
    let unknown =
        queue.jobs(ORG, JobApi::FineTuningJobs, MetadataFilter::Any, page(Some("ftjob-none"), 3)).await.unwrap();
    assert!(unknown.0.is_empty() && !unknown.1, "a reader of pages comes to an end");
}

// --- Notifications -----------------------------------------------------------------------------------------------------

/// Waits for a hint about `key`.
async fn hint(changes: &mut tokio::sync::broadcast::Receiver<Uuid>, key: Uuid) {
    let heard = async { while changes.recv().await.unwrap() != key {} };
    tokio::time::timeout(SOON, heard).await.expect("no notification came");
}

#[tokio::test]
async fn a_new_job_a_new_event_and_a_change_wake_listeners_in_every_process() {
    let queue = Fixture::new().await;
    let elsewhere = Queue::open(queue.database.store.clone()).await.unwrap();
    let mut changes = elsewhere.changes();
    let job = queue.enqueued().await;
    hint(&mut changes, job.key).await;
    let job = queue.claimed().await;
    hint(&mut changes, job.key).await;
    queue.record_plan(&job, &Hyperparameters::default(), Some(1)).await.unwrap();
    hint(&mut changes, job.key).await;
    queue.add_event(&job, "info", "message", "x", None).await.unwrap();
    hint(&mut changes, job.key).await;
    // A heartbeat is nobody's news: the next hint is the marker's.
    queue.heartbeat(&job, LEASE, Some(json!({"step": 1}))).await.unwrap();
    let marker = queue.enqueued().await;
    assert_eq!(tokio::time::timeout(SOON, changes.recv()).await.unwrap().unwrap(), marker.key);
}

#[tokio::test]
async fn a_listener_that_lost_its_connection_says_so_and_hears_again() {
    let queue = Fixture::new().await;
    let mut changes = queue.changes();
    let killed: i64 = queue
        .database
        .value(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
              where datname = current_database() and query ilike 'listen%'",
        )
        .await;
    assert_eq!(killed, 1);
    hint(&mut changes, Uuid::nil()).await;
    let job = queue.enqueued().await;
    hint(&mut changes, job.key).await;
}

// --- A model of the state machine --------------------------------------------------------------------------------------

/// What may happen to a job; `stale` operations come from a worker that lost its lease.
#[derive(Debug, Clone, Copy)]
enum Step {
    Claim,
    Heartbeat { stale: bool },
    LoseWorker,
    Stop(StopRequest),
    Resume,
    Finish { how: &'static str, stale: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stale = prop::bool::weighted(0.2);
    let how = prop::sample::select(vec!["succeeded", "failed", "retry", "retry", "stopped", "released", "released"]);
    let step = prop_oneof![
        4 => Just(Step::Claim),
        1 => stale.prop_map(|stale| Step::Heartbeat { stale }),
        1 => Just(Step::LoseWorker),
        1 => Just(Step::Stop(StopRequest::Cancel)),
        2 => Just(Step::Stop(StopRequest::Pause)),
        2 => Just(Step::Resume),
        3 => (how, stale).prop_map(|(how, stale)| Step::Finish { how, stale }),
    ];
    prop::collection::vec(step, 1..25)
}

/// The state machine in thirty lines. Each method returns whether the queue should accept the step.
#[derive(Debug, PartialEq)]
struct Model {
    status: JobStatus,
    stop: Option<StopRequest>,
    attempt: i32,
    failures: i32,
}

impl Model {
    fn apply(&mut self, step: Step) -> bool {
        use JobStatus::{Cancelled, Failed, Paused, Queued, Running, Succeeded};
        let running = self.status == Running;
        let next = match step {
            Step::Heartbeat { stale } => return running && !stale,
            Step::Finish { stale: true, .. } => return false,
            Step::Claim if self.status == Queued => {
                self.attempt += 1;
                Running
            }
            Step::Stop(what) if running && self.stop != Some(StopRequest::Cancel) => {
                self.stop = Some(what);
                return true;
            }
            Step::Stop(what) if running => return what == StopRequest::Cancel,
            Step::Stop(StopRequest::Cancel) if matches!(self.status, Queued | Paused) => Cancelled,
            Step::Stop(StopRequest::Pause) if self.status == Queued => Paused,
            Step::Resume if self.status == Paused => Queued,
            Step::Resume if running && self.stop == Some(StopRequest::Pause) => Running,
            Step::LoseWorker | Step::Finish { .. } if running => {
                let how = if let Step::Finish { how, .. } = step { how } else { "retry" };
                self.failures += i32::from(matches!(how, "retry" | "failed"));
                match (how, self.stop) {
                    ("succeeded", _) => Succeeded,
                    (_, Some(StopRequest::Cancel)) => Cancelled,
                    ("failed", _) => Failed,
                    (_, Some(StopRequest::Pause)) => Paused,
                    ("retry", None) if self.failures >= 3 => Failed,
                    _ => Queued,
                }
            }
            _ => return false,
        };
        (self.status, self.stop) = (next, None);
        true
    }
}

/// Does `step` to the job and tells whether the queue accepted it.
async fn perform(queue: &Fixture, job: &Job, claims: &mut Vec<Job>, step: Step) -> bool {
    // A stale worker holds an earlier claim; before any claim, the job as it was enqueued.
    let worker = |stale| match claims.as_slice() {
        [] => job,
        [.., previous, _] if stale => previous,
        [_] if stale => job,
        [.., last] => last,
    };
    match step {
        Step::Claim => {
            queue.end_pauses().await;
            let claimed = queue.claim("w", LEASE).await.unwrap();
            let accepted = claimed.is_some();
            claims.extend(claimed);
            accepted
        }
        Step::Heartbeat { stale } => queue.heartbeat(worker(stale), LEASE, None).await.unwrap().is_some(),
        Step::LoseWorker => {
            queue.expire_leases().await;
            queue.reap().await.unwrap() == 1
        }
        Step::Stop(what) => accepted(queue.stop(job, what).await),
        Step::Resume => accepted(queue.resume(job).await),
        Step::Finish { how, stale } => {
            let outcome = match how {
                "succeeded" => success(&format!("ft:{}", job.id)),
                "failed" => Outcome::Failed(fault("x")),
                "retry" => Outcome::Retry(fault("x")),
                "stopped" => Outcome::Stopped,
                _ => Outcome::Released,
            };
            queue.finish(worker(stale), outcome).await.unwrap().is_some()
        }
    }
}

fn accepted(result: Result<Job, Error>) -> bool {
    match result {
        Ok(_) => true,
        Err(Error::Conflict { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn any_order_of_operations_agrees_with_the_state_machine() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let queue = runtime.block_on(Fixture::new());
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() };
    proptest!(config, |(steps in steps())| {
        runtime.block_on(async {
            queue.database.execute("truncate jobs, job_events, fine_tuned_models cascade").await;
            let job = queue.enqueued().await;
            let mut model = Model { status: JobStatus::Queued, stop: None, attempt: 0, failures: 0 };
            let mut claims = Vec::new();
            for step in steps {
                let before = (model.status, model.stop, queue.messages(&job).await.len());
                let expected = model.apply(step);
                let done = perform(&queue, &job, &mut claims, step).await;
                prop_assert_eq!(done, expected, "{:?} on {:?}", step, before);
                let row = queue.again(&job).await;
                prop_assert_eq!((row.status, row.attempt), (model.status, model.attempt), "after {:?}", step);
                let stop = model.stop.map(|what| format!("{what:?}").to_lowercase());
                prop_assert_eq!(row.stop_request, stop, "after {:?}", step);
                let told = queue.messages(&job).await.len() > before.2;
                let changed = (before.0, before.1) != (model.status, model.stop);
                prop_assert_eq!(told, changed, "clients hear of changes and of nothing else: {:?}", step);
                let failures: i32 = queue.database.value("select failures from jobs").await;
                prop_assert_eq!(failures, model.failures);
            }
            Ok(())
        })?;
    });
    drop(queue);
}
