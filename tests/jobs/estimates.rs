//! Estimates of a job, before it runs and compared with its real cost, with the demo model and a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::training::{Fixture, ORG, spec, tickets};
use attune::jobs::worker::estimate::{Estimator, JobEstimate};
use attune::jobs::{Job, JobApi, JobSpec, JobStatus};
use attune::train::estimate::{Estimate, TrainingRate};
use attune::train::hyperparameters::{Classification, Hyperparameters, Method};
use attune::{adapters, jobs, store, system};
use attune_train::FileFault;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

async fn estimate(fixture: &Fixture, spec: &JobSpec) -> jobs::Result<JobEstimate> {
    estimate_of(ORG, fixture, spec).await
}

async fn estimate_of(organization: &str, fixture: &Fixture, spec: &JobSpec) -> jobs::Result<JobEstimate> {
    Estimator::new(fixture.parts()).estimate(organization, spec, &CancellationToken::new()).await
}

async fn rates(fixture: &Fixture) -> Vec<(String, TrainingRate)> {
    fixture.store().training_rates(&system::name(), "demo").await.unwrap().into_iter().collect()
}

/// Returns the data of the job's only event whose message has this beginning.
async fn told(fixture: &Fixture, job: &Job, beginning: &str) -> Value {
    let events = fixture.queue.events_after(job, 0, 1000).await.unwrap();
    let mut found = events.into_iter().filter(|event| event.message.starts_with(beginning));
    let event = found.next().unwrap_or_else(|| panic!("no event begins with {beginning}"));
    assert!(found.next().is_none(), "{beginning} is told twice");
    event.data.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_says_what_the_job_then_does_and_the_job_says_both() {
    let fixture = Fixture::new().await;
    let (file, held_out) = (fixture.upload(&tickets(30)).await, fixture.upload(&tickets(5)).await);
    let spec = JobSpec { validation_file: Some(held_out), ..spec(file) };
    let made = estimate(&fixture, &spec).await.unwrap();
    assert_eq!((made.base.as_str(), made.resolved.n_epochs, made.resolved.rank), ("demo", Some(3), Some(4)));
    assert_eq!((made.estimate.examples, made.estimate.epochs, made.estimate.steps), (30, 3, 24));
    assert!(made.estimate.validation_tokens > 0 && made.estimate.seconds > 0.0, "{made:?}");
    // 3.60 EUR an hour are a tenth of a cent for each second.
    assert!((made.cost.machine.unwrap() - made.estimate.seconds / 1000.0).abs() < 1e-9 && made.cost.tokens.is_none());
    let Estimate { low, seconds, present, high, .. } = made.estimate;
    assert!(low < seconds && seconds <= present && present < high, "{:?}", made.estimate);
    let bounds = made.cost_bounds.map(|cost| cost.machine.unwrap());
    assert!((bounds[0] - low / 1000.0).abs() < 1e-9 && (bounds[1] - high / 1000.0).abs() < 1e-9, "{bounds:?}");
    let memory = made.estimate.memory;
    let parts = memory.adapter + memory.activations + memory.loss + memory.allocator;
    assert_eq!(memory.peak, memory.process + parts);
    assert!(memory.weights > 1 << 20 && memory.process >= memory.weights, "{memory:?}");

    let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let worker = fixture.worker();
    let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    assert_eq!(done.trained_tokens, Some(made.estimate.trained_tokens as i64));
    assert_eq!(done.resolved, Some(made.resolved));
    assert!(done.estimated_finish.is_some());

    let expected = told(&fixture, &job, "Expected: ").await;
    assert_eq!(expected["estimate"]["steps"], 24);
    assert_eq!(expected["estimate"]["trained_tokens"].as_u64(), Some(made.estimate.trained_tokens));
    assert!(expected["cost"]["machine"].as_f64() > Some(0.0), "{expected}");
    let figure = |name: &str| expected[name].as_f64().unwrap();
    let (low, likely, high) =
        (figure("duration_low_seconds"), figure("duration_seconds"), figure("duration_high_seconds"));
    assert!(0.0 < low && low < likely && likely < high, "{expected}");
    assert!(expected["estimate"]["uncertainty"].as_str().unwrap().contains("machine"), "{expected}");
    let account = told(&fixture, &job, "Took ").await;
    for figure in ["duration_seconds", "tokens_per_second", "peak_resident_bytes"] {
        for side in ["estimated", "actual"] {
            assert!(account[side][figure].as_f64() > Some(0.0), "{side} {figure}: {account}");
        }
    }
    for bound in ["duration_low_seconds", "duration_high_seconds"] {
        assert_eq!(account["estimated"][bound], expected[bound], "the bounds that were told");
    }
    let actual = &account["actual"];
    let (seconds, cost) = (actual["duration_seconds"].as_f64().unwrap(), actual["cost"]["machine"].as_f64().unwrap());
    assert!((cost - seconds / 1000.0).abs() < 1e-9, "{account}");
    let events = fixture.queue.events_after(&job, 0, 1000).await.unwrap();
    let left: Vec<f64> = events
        .iter()
        .filter(|event| event.kind == "metrics")
        .map(|event| event.data.as_ref().unwrap()["remaining_seconds"].as_f64().unwrap())
        .collect();
    assert_eq!(left.len(), 24);
    assert!(left[0] > 0.0 && left[23].abs() < 1e-9, "{left:?}");
}

/// Trains a job to its end.
async fn train(fixture: &Fixture, spec: &JobSpec) -> Job {
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec.clone()).await;
    let worker = fixture.worker();
    let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_of_jobs_are_the_rate_of_later_estimates_which_measure_nothing() {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(20)).await;
    let spec = spec(file);
    // Whether the calibration before the job was kept depends on the load of the machine; the job's steps are, always.
    let first = train(&fixture, &spec).await;
    let known = rates(&fixture).await;
    assert_eq!(known.len(), 1, "{known:?}");
    let rate = known[0].1;
    assert!(rate.tokens >= first.trained_tokens.unwrap() as f64, "{rate:?}");
    assert!(0.0 < rate.idle_seconds && rate.idle_seconds <= rate.seconds + 1e-9, "{rate:?}");
    let made = estimate(&fixture, &spec).await.unwrap().estimate;
    assert!((made.tokens_per_second - rate.tokens_per_second()).abs() < 1e-6, "what is known is used");
    assert!(!made.uncertainty.in_words().contains("measured"), "{made:?}");
    assert_eq!(rates(&fixture).await, known, "what is known is not measured again");

    let second = train(&fixture, &spec).await;
    let after = rates(&fixture).await;
    assert_eq!(after.len(), 1);
    let added = after[0].1.tokens - rate.tokens;
    assert!((added - second.trained_tokens.unwrap() as f64).abs() < 1e-6, "{after:?}");
    assert!(after[0].1.seconds > rate.seconds && after[0].1.idle_seconds > rate.idle_seconds);

    // Another rank is another speed.
    let wider = Hyperparameters { rank: Some(8), ..spec.hyperparameters.clone() };
    estimate(&fixture, &JobSpec { hyperparameters: wider, ..spec }).await.unwrap();
    assert!(rates(&fixture).await.iter().all(|(setup, rate)| setup.contains("of rank 8") || *rate == after[0].1));
}

#[tokio::test(flavor = "multi_thread")]
async fn sorting_the_validation_file_into_classes_is_part_of_the_expected_time() {
    let fixture = Fixture::new().await;
    let class = |number: usize| if number.is_multiple_of(2) { " even" } else { " odd" };
    let line = |number| json!({"prompt": format!("{number} is"), "completion": class(number)});
    let lines = |numbers: std::ops::Range<usize>| numbers.map(|number| line(number).to_string() + "\n").collect();
    let (file, held_out): (String, String) = (lines(0..12), lines(12..20));
    let spec = JobSpec { validation_file: Some(fixture.upload(&held_out).await), ..spec(fixture.upload(&file).await) };
    let positive_class = Some(" even".to_owned());
    let sorted = Classification { compute: Some(true), n_classes: Some(2), positive_class, betas: None };
    let worker = fixture.worker();
    let mut read = Vec::new();
    for classification in [None, Some(sorted)] {
        let job = fixture.enqueue(JobApi::FineTunes, JobSpec { classification, ..spec.clone() }).await;
        fixture.wait_for(&job, JobStatus::Succeeded).await;
        let expected = &told(&fixture, &job, "Expected: ").await["estimate"];
        let figure = |name: &str| expected[name].as_f64().unwrap();
        // Reading a token is half the work of training on it.
        let beside = figure("duration_seconds") * figure("tokens_per_second") - figure("trained_tokens");
        read.push((2.0 * beside, figure("epochs") * figure("validation_tokens")));
    }
    worker.stop().await;
    let (extra, once) = (read[1].0 - read[0].0, read[0].1);
    // Each of the two classes follows each prompt once, at the end of each epoch; the end token is not among them.
    assert!(once < extra && extra < 2.5 * once, "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_of_answers_are_estimated_with_what_the_reference_reads() {
    let fixture = Fixture::new().await;
    let pair = |number| json!({"prompt": format!("{number} and"), "chosen": " more", "rejected": " no more of it"});
    let file = fixture.upload(&(0..12).map(|number| pair(number).to_string() + "\n").collect::<String>()).await;
    let spec = JobSpec { method: Method::Dpo, ..spec(file) };
    let made = estimate(&fixture, &spec).await.unwrap();
    let Estimate { steps, epochs, tokens_per_epoch, trained_tokens, tokens_per_second, seconds, .. } = made.estimate;
    assert_eq!((steps, epochs, trained_tokens), (9, 3, 3 * tokens_per_epoch as u64));
    // Without a validation file there is nothing else in the time, and the speed is that of the tokens of the file.
    assert!((seconds - trained_tokens as f64 / tokens_per_second).abs() < 1e-6 * seconds, "{:?}", made.estimate);
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let worker = fixture.worker();
    let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    assert_eq!(done.trained_tokens, Some(trained_tokens as i64));
    assert_eq!(told(&fixture, &job, "Expected: ").await["estimate"]["steps"], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_are_added_by_their_seconds_and_forget_what_is_long_past() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let rate = |tokens, seconds, idle_seconds, spread| TrainingRate { tokens, seconds, idle_seconds, spread };
    let add = async |shown| {
        store.add_training_rate("machine", "model", "setup", shown).await.unwrap();
        store.training_rates("machine", "model").await.unwrap()["setup"]
    };
    assert_eq!(add(rate(100.0, 1.0, 1.0, 0.25)).await, rate(100.0, 1.0, 1.0, 0.25));
    // Three seconds on a busy machine, half of which were for other work.
    let sum = add(rate(900.0, 3.0, 1.5, 0.1)).await;
    assert_eq!((sum.tokens, sum.seconds, sum.idle_seconds), (1000.0, 4.0, 2.5));
    assert!((sum.spread - (0.25 + 3.0 * 0.1) / 4.0).abs() < 1e-9, "{sum:?}");
    assert!((sum.tokens_per_second() - 400.0).abs() < 1e-9);
    // Invalid rates change nothing.
    for (tokens, seconds) in [(0.0, 1.0), (1.0, 0.0), (f64::NAN, 1.0), (1.0, f64::INFINITY)] {
        assert!((add(rate(tokens, seconds, seconds, 0.1)).await.seconds - 4.0).abs() < 1e-9);
    }
    assert!((add(rate(1.0, 1.0, 0.0, 0.1)).await.seconds - 4.0).abs() < 1e-9);
    add(rate(0.5 * 36_000.0, 36_000.0, 36_000.0, 0.1)).await;
    let faster = add(rate(3600.0 * 3.5, 3600.0, 3600.0, 0.1)).await;
    assert!((faster.tokens_per_second() - 2.0).abs() < 0.05, "an hour of the past counts at the most: {faster:?}");
    assert!(store.training_rates("another machine", "model").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_of_what_cannot_train_fails_as_the_job_would() {
    let fixture = Fixture::new().await;
    let faulty = fixture.upload(&tickets(12).replacen("\"messages\"", "\"mesages\"", 1)).await;
    let error = estimate(&fixture, &spec(faulty)).await.unwrap_err();
    assert!(
        matches!(&error, jobs::Error::Train(attune_train::Error::File { fault: FileFault::Content, .. })),
        "{error}"
    );
    assert!(error.to_string().contains("Line 1 "), "{error}");
    let file = fixture.upload(&tickets(12)).await;
    let elsewhere = estimate_of("others", &fixture, &spec(file.clone())).await;
    assert!(matches!(elsewhere, Err(jobs::Error::Store(store::Error::NotFound { .. }))));
    let unknown = JobSpec { model: "ft:demo:acme::00000000".into(), ..spec(file) };
    assert!(matches!(
        estimate(&fixture, &unknown).await,
        Err(jobs::Error::Adapters(adapters::Error::Store(store::Error::ModelNotFound(_))))
    ));
    assert!(rates(&fixture).await.is_empty());
}
