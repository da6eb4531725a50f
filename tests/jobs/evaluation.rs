//! Measurements of a job on its validation file, and the final answers of the models to its prompts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use crate::training::{Fixture, catalog, spec, tickets};
use attune::engine::EngineLimits;
use attune::engine::catalog::{Catalog, CatalogEntry};
use attune::engine::native::NativeEngine;
use attune::jobs::{Job, JobApi, JobSpec, JobStatus};
use attune::train::hyperparameters::Hyperparameters;
use serde_json::Value;

/// Returns lines of the demo's training file from `skip` on.
fn lines(skip: usize, count: usize) -> String {
    tickets(skip + count).split_inclusive('\n').skip(skip).collect()
}

async fn data(fixture: &Fixture, job: &Job, kind: &str) -> Vec<Value> {
    let events = fixture.queue.events_after(job, 0, 1000).await.unwrap();
    events.into_iter().filter(|event| event.kind == kind).filter_map(|event| event.data).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_is_measured_between_epochs_and_the_whole_file_at_their_ends() {
    let fixture = Fixture::new().await;
    let (training, held_out) = (fixture.upload(&lines(0, 40)).await, fixture.upload(&lines(100, 60)).await);
    let settings = Hyperparameters { n_epochs: Some(5), ..spec(String::new()).hyperparameters };
    let spec = JobSpec { validation_file: Some(held_out), hyperparameters: settings, ..spec(training) };
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let worker = fixture.worker();
    let job = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;

    let metrics = data(&fixture, &job, "metrics").await;
    assert_eq!(metrics.len(), 50);
    let mut between = 0;
    for data in &metrics {
        let (step, sample, full) = (data["step"].as_u64().unwrap(), &data["valid_loss"], &data["full_valid_loss"]);
        assert_eq!(full.is_f64(), step % 10 == 0, "{data}");
        assert_eq!(sample.is_f64(), data["valid_mean_token_accuracy"].is_f64());
        if step % 10 == 0 {
            assert!(sample.is_f64() && sample != full, "60 examples are more than the sample: {data}");
        } else {
            between += u32::from(sample.is_f64());
        }
    }
    assert_eq!(between, 2, "its tokens are many beside the training file's");
    let messages = fixture.messages(&job).await;
    assert!(messages.iter().any(|message| message.contains(", full validation loss=")), "{messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_with_the_answers_of_both_models_to_validation_prompts() {
    let fixture = Fixture::new().await;
    let (training, held_out) = (fixture.upload(&lines(0, 120)).await, fixture.upload(&lines(200, 5)).await);
    let settings = Hyperparameters {
        n_epochs: Some(3),
        batch_size: Some(8),
        learning_rate: Some(2e-3),
        ..spec(String::new()).hyperparameters
    };
    let spec = JobSpec { validation_file: Some(held_out), hyperparameters: settings, ..spec(training) };
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let model = Arc::clone(&catalog().get("demo").unwrap().model);
    let engine = NativeEngine::start(Arc::clone(&model), &EngineLimits::default(), Arc::default()).unwrap();
    let worker = fixture.worker_with(Catalog::new(vec![CatalogEntry { model, backend: engine }]));
    let job = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;

    let messages = fixture.messages(&job).await;
    assert!(
        messages.iter().any(|message| message.starts_with("Answers to 3 validation prompts: (1) base: ")),
        "{messages:?}"
    );
    let answers =
        data(&fixture, &job, "message").await.into_iter().find_map(|data| Some(data["answers"].as_array()?.clone()));
    let answers = answers.unwrap();
    assert_eq!(answers.len(), 3);
    for (answer, line) in answers.iter().zip(lines(200, 3).lines()) {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| answer[name].as_str().unwrap();
        let message = |index: usize| line["messages"][index]["content"].as_str().unwrap();
        assert!(text("prompt").contains(message(0)), "{answer}");
        assert_eq!(text("expected"), message(1));
        assert!(text("fine_tuned").starts_with('{') && !text("base").starts_with('{'), "{answer}");
    }
}
