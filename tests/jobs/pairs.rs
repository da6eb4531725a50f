//! Jobs that train embeddings on pairs of texts, with the demo model and a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::training::{Fixture, spec, tickets};
use attune::jobs::queue::StopRequest;
use attune::jobs::{Job, JobApi, JobSpec, JobStatus};
use attune::train::hyperparameters::{Classification, Hyperparameters, Method, TextLoss};
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
        "Before training: recall@1 ",
        "Training on 32 pairs of texts with ",
        "8 of the training examples repeat an earlier one",
        "Step 1/12: training loss=",
    ] {
        assert!(messages.iter().any(|message| message.starts_with(expected)), "{expected} is not in {messages:?}");
    }
    for name in ["valid_recall_at_1", "valid_recall_at_10", "valid_recall_at_1_before", "valid_recall_at_10_before"] {
        assert!(last[name].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)), "{name}: {last}");
    }
    assert_eq!(last["valid_recall_at_10"], 1.0, "there are six different texts");
    assert!(messages.iter().any(|message| message.contains("The final model: recall@1 ")), "{messages:?}");
    let result = fixture.store().blobs.get(&format!("files/{}", whole.result_files[0])).await.unwrap();
    let result = String::from_utf8(result.to_vec()).unwrap();
    let header = "step,train_loss,train_accuracy,valid_loss,valid_accuracy,full_valid_loss,full_valid_accuracy,\
                  valid_recall_at_1,valid_recall_at_10";
    assert_eq!((result.lines().next(), result.lines().count()), (Some(header), 13));

    // A pause in the middle changes no bit.
    let paused = fixture.enqueue(JobApi::FineTuningJobs, job.clone()).await;
    let resumed = pause_once(&fixture, &paused).await;
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

/// Pauses a job after a checkpoint and lets it go on; a job that ends before is as good.
async fn pause_once(fixture: &Fixture, job: &Job) -> Job {
    let running = fixture.wait(job, |job| job.checkpoint.is_some()).await;
    if fixture.queue.stop(&running, StopRequest::Pause).await.is_ok() {
        let stopped = fixture.wait(job, |job| job.status == JobStatus::Paused || job.status.is_final()).await;
        if stopped.status == JobStatus::Paused {
            fixture.queue.resume(&stopped).await.unwrap();
        }
    }
    fixture.wait_for(job, JobStatus::Succeeded).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_negatives_are_searched_once_and_kept_over_a_pause() {
    let fixture = Fixture::new().await;
    let training = fixture.upload(&pairs(0, 24)).await;
    let hyperparameters = Hyperparameters { hard_negatives: Some(2), ..settings() };
    let job = JobSpec { hyperparameters, ..spec(training.clone()) };
    let worker = fixture.worker();
    let whole = fixture.enqueue(JobApi::FineTuningJobs, job.clone()).await;
    let whole = fixture.wait_for(&whole, JobStatus::Succeeded).await;
    assert_eq!(whole.resolved.as_ref().unwrap().hard_negatives, Some(2));
    let found = |messages: &[String]| messages.iter().filter(|message| message.starts_with("Found ")).count();
    let messages = fixture.messages(&whole).await;
    assert!(
        messages.iter().any(|message| message.contains("hard negatives in the training file, for ")),
        "{messages:?}"
    );
    let paused = fixture.enqueue(JobApi::FineTuningJobs, job.clone()).await;
    let resumed = pause_once(&fixture, &paused).await;
    assert_eq!(fixture.generation(&resumed).await, fixture.generation(&whole).await);
    assert_eq!(found(&fixture.messages(&resumed).await), 1, "a second attempt has them from the checkpoint");
    // They change what is learned.
    let without = JobSpec { hyperparameters: settings(), ..spec(training) };
    let without = fixture.enqueue(JobApi::FineTuningJobs, without).await;
    let without = fixture.wait_for(&without, JobStatus::Succeeded).await;
    assert_ne!(fixture.generation(&without).await, fixture.generation(&whole).await);
    worker.stop().await;
}

/// Returns letters with their own tickets, and with those of others: alike and unlike texts.
fn scored(count: usize) -> String {
    let lines: Vec<Value> = pairs(0, count).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |(index, line): (usize, &Value)| {
        let other = &lines[(index * 7 + 3) % lines.len()];
        let (second, score) = if index % 2 == 0 { (line, 0.9) } else { (other, 0.1) };
        json!({"sentence1": line["anchor"], "sentence2": second["positive"], "score": score}).to_string() + "\n"
    };
    lines.iter().enumerate().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_learns_scores_and_a_pause_changes_no_bit() {
    let fixture = Fixture::new().await;
    let (training, held_out) = (fixture.upload(&scored(24)).await, fixture.upload(&scored(12)).await);
    let job = JobSpec { validation_file: Some(held_out), hyperparameters: settings(), ..spec(training) };
    let worker = fixture.worker();
    let whole = fixture.enqueue(JobApi::FineTuningJobs, job.clone()).await;
    let whole = fixture.wait_for(&whole, JobStatus::Succeeded).await;
    let resolved = whole.resolved.as_ref().unwrap();
    assert_eq!((resolved.loss, resolved.scale), (Some(TextLoss::CosineSimilarity), None));
    let data = metrics(&fixture, &whole).await;
    let (first, last) = (data.first().unwrap(), data.last().unwrap());
    assert!(last["train_loss"].as_f64() < first["train_loss"].as_f64(), "{first} {last}");
    let order = |name: &str| last[name].as_f64().unwrap();
    assert!(order("valid_rank_correlation") > order("valid_rank_correlation_before"), "{last}");
    let messages = fixture.messages(&whole).await;
    for expected in ["Before training: rank correlation ", "Training on 32 pairs of texts with scores with "] {
        assert!(messages.iter().any(|message| message.starts_with(expected)), "{expected} is not in {messages:?}");
    }
    let paused = fixture.enqueue(JobApi::FineTuningJobs, job).await;
    let resumed = pause_once(&fixture, &paused).await;
    assert_eq!(fixture.generation(&resumed).await, fixture.generation(&whole).await);
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
    let with_loss = || asked(Hyperparameters { loss: Some(TextLoss::CosineSimilarity), ..Hyperparameters::default() });
    let with_prompt = || asked(Hyperparameters { query_prompt: Some("query".into()), ..Hyperparameters::default() });
    let mined = || asked(Hyperparameters { hard_negatives: Some(2), ..Hyperparameters::default() });
    let labelled: String = (0..12)
        .map(|i| json!({"query": format!("letter {i}"), "document": "yes", "label": i % 2}).to_string() + "\n")
        .collect();
    let labelled = fixture.upload(&labelled).await;
    let scored = fixture.upload(&scored(12)).await;
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
        (of(&scored, with_scale()), "scale", "leave it out"),
        (of(&pairs, with_loss()), "loss", "whose lines have a `score`: leave loss out"),
        (of(&pairs, with_prompt()), "query_prompt", "the model has no prompt 'query'; it has none"),
        (of(&scored, mined()), "hard_negatives", "leave it out"),
        (of(&labelled, plain()), "training_file", "has no classification head that could score pairs of texts"),
        (
            JobSpec { validation_file: on(&scored), ..of(&pairs, plain()) },
            "validation_file",
            "each of its lines is a pair of texts with a score",
        ),
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
