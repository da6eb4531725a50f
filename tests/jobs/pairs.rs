//! Jobs that train embeddings on pairs of texts, with the demo model and a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::training::{Fixture, spec, tickets};
use attune::jobs::queue::StopRequest;
use attune::jobs::{Job, JobApi, JobSpec, JobStatus};
use attune::train::hyperparameters::{Classification, Hyperparameters, Method};
use serde_json::{Value, json};

/// Returns letters with their tickets; each third one twice, so that batches have to keep them apart.
fn pairs(skip: usize, count: usize) -> String {
    let lines = tickets(skip + count);
    let line = |(index, line): (usize, &str)| {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |message: usize| line["messages"][message]["content"].as_str().unwrap().to_owned();
        let pair = json!({"anchor": text(0), "positive": text(1)}).to_string() + "\n";
        if index % 3 == 0 { pair.repeat(2) } else { pair }
    };
    lines.lines().skip(skip).enumerate().map(line).collect()
}

async fn metrics(fixture: &Fixture, job: &Job) -> Vec<Value> {
    let events = fixture.queue.events_after(job, 0, 1000).await.unwrap();
    events.into_iter().filter(|event| event.kind == "metrics").map(|event| event.data.unwrap()).collect()
}

fn settings() -> Hyperparameters {
    Hyperparameters { batch_size: Some(8), learning_rate: Some(1e-3), ..spec(String::new()).hyperparameters }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_learns_which_texts_belong_together() {
    let fixture = Fixture::new().await;
    let (training, held_out) = (fixture.upload(&pairs(0, 24)).await, fixture.upload(&pairs(40, 6)).await);
    let job = JobSpec { validation_file: Some(held_out), hyperparameters: settings(), ..spec(training) };
    let worker = fixture.worker();
    let whole = fixture.enqueue(JobApi::FineTuningJobs, job.clone()).await;
    let whole = fixture.wait_for(&whole, JobStatus::Succeeded).await;
    let resolved = whole.resolved.as_ref().unwrap();
    assert_eq!((resolved.scale, resolved.prompt_loss_weight), (Some(20.0), Some(0.0)));
    let data = metrics(&fixture, &whole).await;
    assert_eq!(data.len(), 12, "32 pairs in batches of 8, three times");
    let (first, last) = (data.first().unwrap(), data.last().unwrap());
    assert!(last["train_loss"].as_f64() < first["train_loss"].as_f64(), "{first} {last}");
    for name in ["train_accuracy", "valid_accuracy", "full_valid_accuracy"] {
        assert!(last[name].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)), "{name}: {last}");
    }
    assert!(last.get("train_mean_token_accuracy").is_none());
    let messages = fixture.messages(&whole).await;
    for expected in [
        "Training on 32 pairs of texts with ",
        "8 of the training examples repeat an earlier one",
        "Step 1/12: training loss=",
    ] {
        assert!(messages.iter().any(|message| message.starts_with(expected)), "{expected} is not in {messages:?}");
    }
    let result = fixture.store().blobs.get(&format!("files/{}", whole.result_files[0])).await.unwrap();
    let result = String::from_utf8(result.to_vec()).unwrap();
    let header = "step,train_loss,train_accuracy,valid_loss,valid_accuracy,full_valid_loss,full_valid_accuracy";
    assert_eq!((result.lines().next(), result.lines().count()), (Some(header), 13));

    // A pause in the middle changes no bit.
    let paused = fixture.enqueue(JobApi::FineTuningJobs, job.clone()).await;
    let running = fixture.wait(&paused, |job| job.checkpoint.is_some()).await;
    if fixture.queue.stop(&running, StopRequest::Pause).await.is_ok() {
        let stopped = fixture.wait(&paused, |job| job.status == JobStatus::Paused || job.status.is_final()).await;
        if stopped.status == JobStatus::Paused {
            fixture.queue.resume(&stopped).await.unwrap();
        }
    }
    let resumed = fixture.wait_for(&paused, JobStatus::Succeeded).await;
    assert_eq!(fixture.generation(&resumed).await, fixture.generation(&whole).await);

    // The older resource accepts the same files.
    let legacy = fixture.enqueue(JobApi::FineTunes, job).await;
    let legacy = fixture.wait_for(&legacy, JobStatus::Succeeded).await;
    let result = fixture.store().blobs.get(&format!("files/{}", legacy.result_files[0])).await.unwrap();
    assert!(
        String::from_utf8(result.to_vec()).unwrap().starts_with("step,elapsed_tokens,elapsed_examples,training_loss")
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_to_pairs_of_texts_fails_and_says_what_to_change() {
    let fixture = Fixture::new().await;
    let worker = fixture.worker();
    let (pairs, chats) = (fixture.upload(&pairs(0, 12)).await, fixture.upload(&tickets(12)).await);
    let one_text: String =
        (0..12).map(|i| json!({"anchor": format!("letter {i}"), "positive": "yes"}).to_string() + "\n").collect();
    let one_text = fixture.upload(&one_text).await;
    let asked = |more: Hyperparameters| Hyperparameters { n_epochs: Some(1), batch_size: Some(4), ..more };
    let plain = || asked(Hyperparameters::default());
    let with_scale = || asked(Hyperparameters { scale: Some(10.0), ..Hyperparameters::default() });
    let with_weight = || asked(Hyperparameters { prompt_loss_weight: Some(0.5), ..Hyperparameters::default() });
    let of = |file: &String, hyperparameters| JobSpec { hyperparameters, ..spec(file.clone()) };
    let on = |file: &String| Some(file.clone());
    let classes = Some(Classification { compute: Some(true), n_classes: Some(2), ..Classification::default() });
    let cases = [
        (
            JobSpec { validation_file: on(&chats), ..of(&pairs, plain()) },
            "validation_file",
            "each line of the training file is a pair of texts",
        ),
        (JobSpec { validation_file: on(&pairs), ..of(&chats, plain()) }, "validation_file", "give the same format"),
        (of(&chats, with_scale()), "scale", "leave it out"),
        (of(&pairs, with_weight()), "prompt_loss_weight", "leave it out"),
        (JobSpec { method: Method::Dpo, ..of(&pairs, plain()) }, "training_file", "no preference pair"),
        (of(&one_text, plain()), "training_file", "any two of its pairs share a text"),
        (
            JobSpec { validation_file: on(&pairs), classification: classes, ..of(&pairs, plain()) },
            "compute_classification_metrics",
            "leave it out",
        ),
    ];
    for (spec, param, expected) in cases {
        let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
        let error = fixture.wait_for(&job, JobStatus::Failed).await.error.unwrap();
        assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        assert!(error.message.contains(expected), "{error:?}");
    }
    worker.stop().await;
}
