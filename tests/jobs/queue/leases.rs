//! Leases and fences: permissions of a worker that lives, dies or comes too late.

use attune::jobs::JobStatus;
use attune::jobs::queue::{HeartbeatAnswer, Outcome};
use attune::train::hyperparameters::Hyperparameters;
use serde_json::json;

use super::{Fixture, LEASE, ORG, fault, success};

#[tokio::test]
async fn a_heartbeat_renews_the_lease_and_saves_the_checkpoint() {
    let queue = Fixture::new().await;
    let job = queue.running().await;
    queue.expire_leases().await;
    // Late, but nobody has taken the job back yet.
    let answer = queue.heartbeat(&job, LEASE, Some(json!({"step": 10}))).await.unwrap();
    assert_eq!(answer, Some(HeartbeatAnswer::default()));
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
        assert!(
            queue.database.store.usable_models(ORG, &[], None, 100).await.unwrap().0.is_empty(),
            "nothing may be published"
        );
    }
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
    // Each of these counts as a lost attempt: a job that kills its server must not be retried for ever.
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
