//! Notifications of changed jobs.

use attune::jobs::queue::Queue;
use attune::train::hyperparameters::Hyperparameters;
use serde_json::json;
use uuid::Uuid;

use super::{Fixture, LEASE, SOON};

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
    // A heartbeat sends no hint: the next hint is the marker's.
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
