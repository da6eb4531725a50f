//! The life of a job, from its request to its end.

use attune::api::event_text;
use attune::jobs::Error;
use attune::jobs::queue::Outcome;
use attune::jobs::{JobApi, JobStatus, MetadataFilter};
use attune::train::hyperparameters::Hyperparameters;

use super::{Fixture, LEASE, ORG, fault, page, spec, success};

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
async fn success_publishes_the_model_with_the_job_and_tells_so() {
    let legacy = ["Uploaded model: ft:demo", "Uploaded result file: file-ft:demo", "Fine-tune succeeded"];
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
        assert_eq!(finished.result_files, ["file-ft:demo"]);
        assert_eq!(finished.resolved, Some(resolved));
        assert_eq!(finished.estimated_finish, Some(2_000_000_000));
        assert!(finished.finished_at.is_some());
        let model = queue.database.store.fine_tuned_model(ORG, "ft:demo").await.unwrap();
        assert_eq!((model.base.as_str(), model.adapter, model.job), ("demo", "a".repeat(64), Some(job.id.clone())));
        let file = queue.database.store.file(ORG, "file-ft:demo").await.unwrap();
        assert_eq!(
            (file.filename.as_str(), file.purpose.as_str(), file.bytes),
            ("step_metrics.csv", "fine-tune-results", 12)
        );
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
    assert_eq!(queue.database.value::<i64>("select count(*) from files").await, 1, "nor does a result file");
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
    assert_eq!(event_text(&job, &last), "Fine-tuning job failed: invalid_training_file happened");
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
