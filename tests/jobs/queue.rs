//! The job queue against a real Postgres: the life of a job, leases and fences, and the requests and views of clients.

#![allow(clippy::unwrap_used, reason = "a test that fails should panic")]

mod admission;
mod claims;
mod collections;
mod events;
mod leases;
mod life;
mod lists;
mod notifications;
mod progress;
mod state_machine;
mod stops;

use std::ops::Deref;
use std::time::Duration;

use crate::postgres::TestDatabase;
use attune::api::event_text;
use attune::jobs::Error;
use attune::jobs::queue::{Outcome, Queue, ResultFile, TrainedModel};
use attune::jobs::{Job, JobApi, JobFault, JobSpec};
use attune::store::files::Page;
use attune::train::hyperparameters::Hyperparameters;
use serde_json::json;

const LEASE: Duration = Duration::from_mins(1);
const SOON: Duration = Duration::from_secs(20);
pub(crate) const ORG: &str = "acme";

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

    /// Returns a new job that worker `w` runs.
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
        self.events_after(job, 0, 1000).await.unwrap().iter().map(|event| event_text(job, event)).collect()
    }
}

pub(crate) fn spec() -> JobSpec {
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
        eval: None,
        distillation: None,
        method: attune::train::hyperparameters::Method::Supervised,
    }
}

fn fault(code: &str) -> JobFault {
    JobFault { code: code.into(), message: format!("{code} happened"), param: Some("training_file".into()) }
}

/// Returns a success with a result file of the name `file-{model}`, as far as ids go.
fn success(model: &str) -> Outcome {
    let id = format!("file-{model}");
    Outcome::Succeeded(TrainedModel {
        model: model.into(),
        base: "demo".into(),
        adapter: "a".repeat(64),
        trained_tokens: 1234,
        result_files: vec![ResultFile { id, filename: "step_metrics.csv".into(), bytes: 12 }],
    })
}

fn other_organization(job: &Job) -> Job {
    Job { organization: "rival".into(), ..job.clone() }
}

fn assert_conflict<T: std::fmt::Debug>(result: &Result<T, Error>) {
    assert!(matches!(result, Err(Error::Conflict { .. })), "expected a conflict, got {result:?}");
}

fn page(after: Option<&str>, limit: i64) -> Page {
    Page { after: after.map(Into::into), limit, ascending: false }
}
