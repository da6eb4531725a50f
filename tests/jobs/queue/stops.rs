//! Cancel, pause and resume.

use attune::jobs::Error;
use attune::jobs::JobStatus;
use attune::jobs::queue::{HeartbeatAnswer, Outcome, StopRequest};
use serde_json::json;

use super::{Fixture, LEASE, assert_conflict, fault, other_organization, success};

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
        assert_eq!(answer, Some(HeartbeatAnswer { stop: Some(what), replaced: None }));
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
