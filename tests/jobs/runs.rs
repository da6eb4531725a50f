//! Fine-tune jobs from file to model, with the demo model and a real Postgres: results of a job, stopping and resuming,
//! and messages of failures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::training::{Fixture, ORG, catalog, spec, tickets};
use attune::adapters::registry::AdapterRegistry;
use attune::jobs::queue::StopRequest;
use attune::jobs::{Job, JobApi, JobSpec, JobStatus};
use attune::model::lora::{Adapter, Site};
use attune::train::hyperparameters::Hyperparameters;
use attune::{adapters, store};
use serde_json::json;

fn numbers(adapter: &Adapter) -> Vec<f32> {
    let pairs = adapter.layers.iter().flat_map(|layer| Site::USUAL.map(|site| layer.get(site).unwrap()));
    let tensors = pairs.flat_map(|pair| [&pair.a, &pair.b]);
    tensors.flat_map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_becomes_a_model_that_is_in_memory_and_in_the_store() {
    let fixture = Fixture::new().await;
    let (training, held_out) = (fixture.upload(&tickets(16)).await, fixture.upload(&tickets(3)).await);
    let spec = JobSpec { validation_file: Some(held_out), suffix: Some("desk".into()), ..spec(training) };
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let worker = fixture.worker();
    let done = fixture.wait_for(&job, JobStatus::Succeeded).await;

    let name = done.fine_tuned_model.clone().unwrap();
    assert!(name.starts_with("ft:demo:acme:desk:") && name.len() == "ft:demo:acme:desk:".len() + 8, "{name}");
    let (base, lease) = fixture.registry.lease(ORG, &name).await.unwrap();
    assert_eq!((base.as_str(), &lease.id), ("demo", &fixture.generation(&done).await));
    // Another process must read the same numbers from the files.
    let elsewhere = AdapterRegistry::new(fixture.store().clone(), catalog());
    assert_eq!(numbers(&elsewhere.lease(ORG, &name).await.unwrap().1), numbers(&lease));
    assert!(matches!(
        fixture.registry.lease("others", &name).await,
        Err(adapters::Error::Store(store::Error::ModelNotFound(_)))
    ));

    let resolved = done.resolved.unwrap();
    assert!(resolved.learning_rate.is_some() && resolved.alpha == Some(8.0) && resolved.n_epochs == Some(3));
    let events = fixture.queue.events_after(&job, 0, 1000).await.unwrap();
    let metrics: Vec<_> = events.iter().filter(|event| event.kind == "metrics").collect();
    assert_eq!(metrics.len(), 12);
    let (first, last) = (metrics[0].data.clone().unwrap(), metrics[11].data.clone().unwrap());
    assert!(last["train_loss"].as_f64() < first["train_loss"].as_f64(), "{first} {last}");
    assert!(last["full_valid_loss"].is_f64() && first["full_valid_loss"].is_null());
    let messages = fixture.messages(&job).await;
    for expected in ["Fine-tuning job started", "Completed epoch 1/3", "Completed epoch 3/3"] {
        assert!(messages.iter().any(|message| message == expected), "{expected} is not in {messages:?}");
    }
    let result = fixture.store().blobs.get(&format!("files/{}", done.result_files[0])).await.unwrap();
    let result = String::from_utf8(result.to_vec()).unwrap();
    let header = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy";
    let measured = "full_valid_loss,full_valid_mean_token_accuracy,valid_right_answers,valid_counted_answers";
    assert_eq!(result.lines().next().unwrap(), format!("{header},{measured}"));
    assert_eq!(result.lines().count(), 13);
    let file = fixture.store().file(ORG, &done.result_files[0]).await.unwrap();
    assert_eq!((file.filename.as_str(), file.purpose.as_str()), ("step_metrics.csv", "fine-tune-results"));
    assert!(done.trained_tokens.unwrap() > 0);
    worker.stop().await;
    assert_eq!(fixture.blobs("checkpoints"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_and_released_jobs_go_on_to_the_bit_identical_adapter() {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(40)).await;
    let spec = JobSpec {
        hyperparameters: Hyperparameters { n_epochs: Some(5), ..spec(file.clone()).hyperparameters },
        ..spec(file)
    };
    let whole = fixture.enqueue(JobApi::FineTuningJobs, spec.clone()).await;
    let worker = fixture.worker();
    let whole = fixture.wait_for(&whole, JobStatus::Succeeded).await;

    let paused = fixture.enqueue(JobApi::FineTuningJobs, spec.clone()).await;
    let running = fixture.wait(&paused, |job| job.checkpoint.is_some()).await;
    fixture.queue.stop(&running, StopRequest::Pause).await.unwrap();
    let stopped = fixture.wait_for(&paused, JobStatus::Paused).await;
    assert!(stopped.checkpoint.as_ref().unwrap()["step"].as_u64() > Some(0));
    assert_eq!(fixture.blobs("checkpoints"), 1);
    fixture.queue.resume(&stopped).await.unwrap();
    let resumed = fixture.wait_for(&paused, JobStatus::Succeeded).await;
    assert!(fixture.messages(&paused).await.iter().any(|message| message.starts_with("Resumed after step ")));

    let released = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    fixture.wait(&released, |job| job.checkpoint.is_some()).await;
    worker.stop().await;
    let waiting = fixture.queue.job(ORG, JobApi::FineTuningJobs, &released.id).await.unwrap();
    assert_eq!(waiting.status, JobStatus::Queued);
    let worker = fixture.worker();
    let released = fixture.wait_for(&released, JobStatus::Succeeded).await;

    let generation = fixture.generation(&whole).await;
    assert_eq!(fixture.generation(&resumed).await, generation);
    assert_eq!(fixture.generation(&released).await, generation);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_ends_soon_and_leaves_nothing() {
    let fixture = Fixture::new().await;
    let (worker, job) = fixture.begin_training(100, 50).await;
    fixture.queue.stop(&job, StopRequest::Cancel).await.unwrap();
    let cancelled = fixture.wait_for(&job, JobStatus::Cancelled).await;
    worker.stop().await;
    assert_eq!(cancelled.fine_tuned_model, None);
    assert_eq!((fixture.blobs("checkpoints"), fixture.blobs("adapters"), fixture.blobs("files")), (0, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_lease_writes_nothing() {
    let fixture = Fixture::new().await;
    let (worker, job) = fixture.begin_training(40, 20).await;
    // As if another worker had claimed the job.
    fixture.database.execute("update jobs set attempt = attempt + 1, lease_owner = 'another'").await;
    let events = fixture.messages(&job).await.len();
    worker.stop().await;
    let row = fixture.queue.job(ORG, JobApi::FineTunes, &job.id).await.unwrap();
    assert_eq!((row.status, row.attempt), (JobStatus::Running, job.attempt + 1));
    assert!(fixture.messages(&job).await.len() <= events + 1);
    assert_eq!((fixture.blobs("adapters"), fixture.blobs("files")), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_the_request_fails_the_job_with_a_message_that_helps() {
    let fixture = Fixture::new().await;
    let worker = fixture.worker();
    let short = fixture.upload(&tickets(3)).await;
    let broken = fixture.upload(&format!("{}{{\"messages\":[]}}\n", tickets(12))).await;
    let good = fixture.upload(&tickets(12)).await;
    let diverging = Hyperparameters { learning_rate: Some(1e30), ..spec(String::new()).hyperparameters };
    let cases = [
        (spec(short), "invalid_n_examples", Some("training_file"), "has 3 example(s)"),
        (spec(broken), "invalid_training_file", Some("training_file"), "Line 13 has no messages"),
        (spec("file-gone".into()), "file_not_found", Some("training_file"), "file-gone"),
        (
            JobSpec { model: "ft:demo:acme::gone".into(), ..spec(good.clone()) },
            "model_not_found",
            Some("model"),
            "gone",
        ),
        (
            JobSpec { hyperparameters: diverging, ..spec(good) },
            "non_finite_loss",
            Some("learning_rate_multiplier"),
            "try a smaller learning_rate_multiplier",
        ),
    ];
    for (spec, code, param, message) in cases {
        let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
        let failed = fixture.wait_for(&job, JobStatus::Failed).await;
        let error = failed.error.unwrap();
        assert_eq!((error.code.as_str(), error.param.as_deref()), (code, param), "{error:?}");
        assert!(error.message.contains(message), "{error:?}");
    }
    worker.stop().await;
    assert_eq!((fixture.blobs("checkpoints"), fixture.blobs("adapters")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fine_tuned_model_can_be_fine_tuned_again_at_its_own_rank() {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(12)).await;
    let worker = fixture.worker();
    let first = fixture.enqueue(JobApi::FineTuningJobs, spec(file.clone())).await;
    let first = fixture.wait_for(&first, JobStatus::Succeeded).await;
    let name = first.fine_tuned_model.clone().unwrap();
    let settings = Hyperparameters { rank: None, ..spec(String::new()).hyperparameters };
    let again = JobSpec { model: name.clone(), hyperparameters: settings, ..spec(file.clone()) };
    let second = fixture.enqueue(JobApi::FineTuningJobs, again).await;
    let second = fixture.wait_for(&second, JobStatus::Succeeded).await;
    assert_eq!(second.resolved.as_ref().unwrap().rank, Some(4));
    assert!(second.fine_tuned_model.as_ref().unwrap().starts_with("ft:demo:acme::"));
    let loss = |job: Job| {
        let queue = fixture.queue.clone();
        async move {
            let events = queue.events_after(&job, 0, 1000).await.unwrap();
            let metrics = events.into_iter().find(|event| event.kind == "metrics").unwrap();
            metrics.data.unwrap()["train_loss"].as_f64().unwrap()
        }
    };
    assert!(loss(second).await < loss(first).await);

    let wider = Hyperparameters { rank: Some(8), ..spec(String::new()).hyperparameters };
    let wider =
        fixture.enqueue(JobApi::FineTuningJobs, JobSpec { model: name, hyperparameters: wider, ..spec(file) }).await;
    let failed = fixture.wait_for(&wider, JobStatus::Failed).await;
    assert_eq!(failed.error.unwrap().param.as_deref(), Some("rank"));
    worker.stop().await;
    assert_eq!(json!(failed.fine_tuned_model), json!(null));
}
