//! Jobs that train on preferences, with the demo model and a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::f64::consts::LN_2;

use attune::jobs::{Job, JobApi, JobSpec, JobStatus};

use crate::training::{Fixture, spec, tickets};
use attune::train::hyperparameters::{Hyperparameters, Method};
use serde_json::{Value, json};

/// Returns letters with their own ticket as the preferred answer and the next letter's as the other one.
fn preferences(skip: usize, count: usize) -> String {
    let lines: Vec<Value> =
        tickets(skip + count + 1).lines().skip(skip).map(|line| serde_json::from_str(line).unwrap()).collect();
    let pair = |pair: &[Value]| {
        json!({
            "input": {"messages": [pair[0]["messages"][0]]},
            "preferred_output": [pair[0]["messages"][1]],
            "non_preferred_output": [pair[1]["messages"][1]],
        })
    };
    lines.windows(2).map(|lines| pair(lines).to_string()).collect::<Vec<_>>().join("\n")
}

fn settings() -> Hyperparameters {
    Hyperparameters { learning_rate: Some(1e-3), ..spec(String::new()).hyperparameters }
}

async fn metrics(fixture: &Fixture, job: &Job) -> Vec<Value> {
    let events = fixture.queue.events_after(job, 0, 1000).await.unwrap();
    events.into_iter().filter(|event| event.kind == "metrics").map(|event| event.data.unwrap()).collect()
}

fn number(data: &Value, name: &str) -> f64 {
    data[name].as_f64().unwrap_or_else(|| panic!("{name} in {data}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_learns_what_is_preferred_beginning_from_indifference() {
    let fixture = Fixture::new().await;
    let training = fixture.upload(&preferences(0, 16)).await;
    let held_out = fixture.upload(&preferences(40, 4)).await;
    let job = JobSpec {
        method: Method::Dpo,
        validation_file: Some(held_out),
        hyperparameters: settings(),
        ..spec(training.clone())
    };
    let worker = fixture.worker();
    let whole = fixture.enqueue(JobApi::FineTuningJobs, job.clone()).await;
    let whole = fixture.wait_for(&whole, JobStatus::Succeeded).await;
    assert_eq!(whole.resolved.as_ref().unwrap().beta, Some(0.1));
    let data = metrics(&fixture, &whole).await;
    let (first, last) = (data.first().unwrap(), data.last().unwrap());
    assert!((number(first, "train_loss") - LN_2).abs() < 1e-12, "{first}");
    assert_eq!((number(first, "train_reward_margin"), number(first, "train_reward_accuracy")), (0.0, 0.0));
    assert!(number(last, "train_loss") < LN_2 && number(last, "train_reward_margin") > 0.0, "{last}");
    assert!(number(last, "train_reward_accuracy") > 0.7, "{last}");
    let messages = fixture.messages(&whole).await;
    let said = |words: &str| messages.iter().any(|message| message.contains(words));
    assert!(said("Right answers are not counted: a preference says which of two answers is better"), "{messages:?}");
    assert!(
        said(", reward accuracy=") && said("Best by full validation loss: ") && !said("answers right"),
        "{messages:?}"
    );
    assert!(number(last, "valid_loss") < LN_2 && number(last, "valid_reward_accuracy") > 0.5, "{last}");
    let messages = fixture.messages(&whole).await;
    assert!(
        messages.iter().any(|message| message.starts_with("Training on 16 pairs of answers with ")),
        "{messages:?}"
    );
    let result = fixture.store().blobs.get(&format!("files/{}", whole.result_files[0])).await.unwrap();
    let result = String::from_utf8(result.to_vec()).unwrap();
    assert!(result.lines().next().unwrap().ends_with("valid_reward_accuracy"), "{result}");

    // A pause in the middle changes no bit.
    let paused = fixture.enqueue(JobApi::FineTuningJobs, job.clone()).await;
    fixture.interrupt(&paused).await;
    let resumed = fixture.wait_for(&paused, JobStatus::Succeeded).await;
    assert_eq!(fixture.generation(&resumed).await, fixture.generation(&whole).await);

    // A continued model is its own reference.
    let again = Hyperparameters { rank: None, ..settings() };
    let next = JobSpec { model: whole.fine_tuned_model.unwrap(), hyperparameters: again, ..job };
    let next = fixture.enqueue(JobApi::FineTuningJobs, next).await;
    let next = fixture.wait_for(&next, JobStatus::Succeeded).await;
    let first = metrics(&fixture, &next).await.remove(0);
    assert!((number(&first, "train_loss") - LN_2).abs() < 1e-12, "{first}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_for_another_method_fails_the_job_and_says_which_one_it_is_for() {
    let fixture = Fixture::new().await;
    let worker = fixture.worker();
    for (file, method, expected) in [
        (preferences(0, 12), Method::Supervised, "use the method `dpo`"),
        (tickets(12), Method::Dpo, "train it with the method `supervised`"),
    ] {
        let file = fixture.upload(&file).await;
        let job = fixture.enqueue(JobApi::FineTuningJobs, JobSpec { method, ..spec(file) }).await;
        let error = fixture.wait_for(&job, JobStatus::Failed).await.error.unwrap();
        assert_eq!((error.code.as_str(), error.param.as_deref()), ("invalid_training_file", Some("training_file")));
        assert!(error.message.contains("Lines 1, 2, ") && error.message.contains(expected), "{}", error.message);
    }
    worker.stop().await;
}
