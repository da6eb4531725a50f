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

/// Fills the queue behind the back of the triggers, which count job by job.
async fn fill(queue: &Fixture, organizations: u32) {
    let sql = format!(
        "begin;
         alter table jobs disable trigger user;
         insert into jobs (id, api, organization, spec, created_at)
         select 'ftjob-' || n, 'fine_tuning_jobs', 'org-' || n % {organizations},
                '{{\"model\":\"demo\",\"training_file\":\"f\",\"seed\":1,\"hyperparameters\":{{}}}}',
                now() - interval '1 day' + n * interval '1 ms'
           from generate_series(1, 100000) n;
         insert into job_turns (organization, waiting)
         select organization, count(*) from jobs where status = 'queued' group by organization
         on conflict (organization) do update set waiting = excluded.waiting;
         alter table jobs enable trigger user;
         commit"
    );
    queue.database.execute(&sql).await;
}

#[tokio::test]
async fn a_claim_costs_the_same_however_many_jobs_wait() {
    for organizations in [1, 100, 20_000] {
        let queue = Fixture::new().await;
        // The plan is made while the queue is empty, and no statistics know of the jobs.
        assert!(queue.claim("w", LEASE).await.unwrap().is_none());
        fill(&queue, organizations).await;
        let mut fastest = std::time::Duration::MAX;
        let mut seen = HashSet::new();
        for _ in 0..20 {
            let begin = std::time::Instant::now();
            let job = queue.claimed().await;
            fastest = fastest.min(begin.elapsed());
            seen.insert(job.organization);
        }
        assert_eq!(seen.len(), organizations.min(20) as usize, "each organisation has its turn");
        // A generous bound: looking through the queue takes a second.
        assert!(fastest < std::time::Duration::from_millis(200), "{organizations} organisations: {fastest:?}");
        let pages = pages_of_a_claim(&queue).await;
        assert!(pages < 500, "{organizations} organisations: a claim looked at {pages} pages");
    }
}

/// Returns how many pages of the database a claim looks at, on a connection that has claimed before.
async fn pages_of_a_claim(queue: &Fixture) -> i64 {
    let mut connection = queue.database.store.pool().acquire().await.unwrap();
    let mut pages = 0;
    for _ in 0..3 {
        let plan: serde_json::Value =
            sqlx::query_scalar("explain (analyze, buffers, format json) select * from claim_job('w', interval '60 s')")
                .fetch_one(&mut *connection)
                .await
                .unwrap();
        let counts = &plan[0]["Plan"];
        pages = counts["Shared Hit Blocks"].as_i64().unwrap() + counts["Shared Read Blocks"].as_i64().unwrap();
    }
    pages
}

#[tokio::test]
async fn an_organisation_whose_jobs_all_wait_for_another_attempt_is_passed_over() {
    let queue = Fixture::new().await;
    for organization in ["first", "second"] {
        queue.enqueue(organization, JobApi::FineTuningJobs, spec()).await.unwrap();
    }
    queue.database.execute("update jobs set run_after = now() + interval '1 hour' where organization = 'first'").await;
    assert_eq!(queue.claimed().await.organization, "second");
    assert!(queue.claim("w", LEASE).await.unwrap().is_none());
    queue.end_pauses().await;
    assert_eq!(queue.claimed().await.organization, "first");
}
