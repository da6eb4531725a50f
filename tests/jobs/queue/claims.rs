//! Claims: which job a worker gets.

use std::collections::HashSet;

use attune::jobs::JobApi;
use attune::jobs::queue::Outcome;
use uuid::Uuid;

use super::{Fixture, LEASE, fault, spec};

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
    // With many workers the least busy one goes first; with one worker, the one whose last turn is longest ago.
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
