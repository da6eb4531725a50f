//! The settings of a job that are extensions of this server, from the request to the published model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;

use crate::training::{Fixture, ORG, catalog, spec, tickets};
use attune::adapters::registry::AdapterRegistry;
use attune::jobs::{Job, JobApi, JobSpec, JobStatus};
use attune::model::lora::Site;
use attune::train::hyperparameters::Hyperparameters;
use attune::train::schedule::Schedule;
use serde_json::Value;

/// Returns hyperparameters that all differ from their defaults.
fn unusual() -> Hyperparameters {
    Hyperparameters {
        target_modules: Some(vec!["q_proj".into(), "v_proj".into()]),
        lr_scheduler: Some(Schedule::Cosine),
        warmup_ratio: Some(0.25),
        weight_decay: Some(0.1),
        max_grad_norm: Some(0.5),
        lora_dropout: Some(0.1),
        use_rslora: Some(true),
        max_seq_length: Some(64),
        alpha: Some(8.0),
        ..spec(String::new()).hyperparameters
    }
}

fn sites(adapter: &attune::model::lora::Adapter) -> Vec<Site> {
    let has = |site: &Site| adapter.layers.iter().all(|layer| layer.get(*site).is_some());
    Site::ALL.into_iter().filter(has).collect()
}

async fn metrics(fixture: &Fixture, job: &Job) -> Vec<Value> {
    let events = fixture.queue.events_after(job, 0, 1000).await.unwrap();
    events.into_iter().filter(|event| event.kind == "metrics").map(|event| event.data.unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_shape_the_adapter_and_its_training() {
    let fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(16)).await;
    let worker = fixture.worker();
    let unusual = JobSpec { hyperparameters: unusual(), ..spec(file.clone()) };
    let done = fixture.enqueue(JobApi::FineTuningJobs, unusual.clone()).await;
    let done = fixture.wait_for(&done, JobStatus::Succeeded).await;

    // Returned as requested, and as resolved.
    let resolved = done.resolved.clone().unwrap();
    assert_eq!(resolved.target_modules.unwrap(), ["q_proj", "v_proj"]);
    assert_eq!((resolved.lr_scheduler, resolved.warmup_ratio), (Some(Schedule::Cosine), Some(0.25)));
    assert_eq!((resolved.alpha, resolved.use_rslora, resolved.max_seq_length), (Some(8.0), Some(true), Some(64)));
    assert_eq!((resolved.early_stopping_patience, resolved.keep_best), (Some(0), Some(false)));
    let rates: Vec<f64> =
        metrics(&fixture, &done).await.iter().map(|data| data["learning_rate"].as_f64().unwrap()).collect();
    assert_eq!(rates.len(), 12);
    let peak = resolved.learning_rate.unwrap();
    for (step, rate) in rates.iter().enumerate() {
        assert!((rate - peak * Schedule::Cosine.factor(step, 3, 12)).abs() < 1e-12, "step {step}");
    }

    // The files of the model, as other programs read them.
    let name = done.fine_tuned_model.clone().unwrap();
    let (_, lease) = AdapterRegistry::new(fixture.store().clone(), catalog()).lease(ORG, &name).await.unwrap();
    assert_eq!(sites(&lease), [Site::Query, Site::Value]);
    let config = fixture.store().blobs.get(&format!("adapters/{}/adapter_config.json", lease.id)).await.unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "v_proj"]));
    assert_eq!((&config["lora_alpha"], &config["use_rslora"]), (&16.into(), &false.into()), "8 · √4, as plain LoRA");

    // It can only be continued in its own shape.
    let again = Hyperparameters { rank: None, ..spec(String::new()).hyperparameters };
    let again = JobSpec { model: name.clone(), hyperparameters: again, ..spec(file.clone()) };
    let next = fixture.enqueue(JobApi::FineTuningJobs, again).await;
    let next = fixture.wait_for(&next, JobStatus::Succeeded).await;
    let resolved = next.resolved.unwrap();
    assert_eq!(resolved.target_modules.unwrap(), ["q_proj", "v_proj"]);
    assert_eq!((resolved.alpha, resolved.use_rslora), (Some(16.0), Some(false)));
    for (wrong, param) in [
        (
            Hyperparameters { target_modules: Some(vec!["k_proj".into()]), ..Hyperparameters::default() },
            "target_modules",
        ),
        (Hyperparameters { use_rslora: Some(true), ..Hyperparameters::default() }, "use_rslora"),
        (Hyperparameters { max_seq_length: Some(2048), ..Hyperparameters::default() }, "max_seq_length"),
    ] {
        let wrong = JobSpec { model: name.clone(), hyperparameters: wrong, ..spec(file.clone()) };
        let failed = fixture.enqueue(JobApi::FineTuningJobs, wrong).await;
        let failed = fixture.wait_for(&failed, JobStatus::Failed).await;
        assert_eq!(failed.error.unwrap().param.as_deref(), Some(param));
    }

    // A pause in the middle changes no bit.
    let paused = fixture.enqueue(JobApi::FineTuningJobs, unusual).await;
    fixture.interrupt(&paused).await;
    let resumed = fixture.wait_for(&paused, JobStatus::Succeeded).await;
    assert_eq!(fixture.generation(&resumed).await, fixture.generation(&done).await);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_where_it_learns_nothing_more_and_publishes_its_best_adapter() {
    let fixture = Fixture::new().await;
    let training = fixture.upload(&tickets(12)).await;
    // The answers belong to other letters: learning them by heart soon makes the loss worse.
    let all = tickets(60);
    let lines: Vec<Value> = all.lines().skip(40).map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut wrong = String::new();
    for (line, other) in lines.iter().zip(lines.iter().rev()) {
        let messages = [&line["messages"][0], &other["messages"][1]];
        writeln!(wrong, "{}", serde_json::json!({ "messages": messages })).unwrap();
    }
    let held_out = fixture.upload(&wrong).await;
    let settings = Hyperparameters {
        n_epochs: Some(50),
        learning_rate: Some(1e-2),
        early_stopping_patience: Some(3),
        keep_best: Some(true),
        ..spec(String::new()).hyperparameters
    };
    let spec = JobSpec { validation_file: Some(held_out), hyperparameters: settings, ..spec(training) };
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let worker = fixture.worker();
    let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;

    let metrics = metrics(&fixture, &done).await;
    let losses: Vec<(u64, f64)> = metrics
        .iter()
        .filter_map(|data| Some((data["step"].as_u64().unwrap(), data["valid_loss"].as_f64()?)))
        .collect();
    let (best, _) = losses.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let (last, _) = *losses.last().unwrap();
    assert!(best < last && last < 150, "{losses:?}");
    assert_eq!(losses.iter().filter(|(step, _)| *step > best).count(), 3);
    let messages = fixture.messages(&done).await;
    assert!(messages.iter().any(|message| message.starts_with(&format!("Training ended early after step {last}"))));
    assert!(messages.iter().any(|message| message.starts_with(&format!("The model is the adapter of step {best},"))));
    let checkpoint = format!("{}:ckpt-step-{best}", done.fine_tuned_model.as_ref().unwrap());
    if let Ok(checkpoint) = fixture.store().fine_tuned_model(ORG, &checkpoint).await {
        assert_eq!(checkpoint.adapter, fixture.generation(&done).await, "the checkpoint of that step is the same");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_name_the_lines_of_both_files() {
    let fixture = Fixture::new().await;
    let training = fixture.upload(&format!("{}{}", tickets(10), tickets(2))).await;
    let held_out = fixture.upload(&format!("{}{}", tickets(3), tickets(1))).await;
    let settings =
        Hyperparameters { n_epochs: Some(1), max_seq_length: Some(80), ..spec(String::new()).hyperparameters };
    let spec = JobSpec { validation_file: Some(held_out), hyperparameters: settings, ..spec(training) };
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let worker = fixture.worker();
    let job = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    let messages = fixture.messages(&job).await;
    for expected in [
        "2 of the training examples repeat an earlier one (lines 11 and 12)",
        "1 of the validation examples repeats an earlier one (line 4)",
        "Every example of the validation file is in the training file, too: the validation figures show what the model \
         knows by heart, not what it does with new examples",
    ] {
        assert!(messages.iter().any(|message| message == expected), "{expected} is not in {messages:?}");
    }
    let cut = "of the training examples were cut at the end to fit the model's context (line";
    assert!(messages.iter().any(|message| message.contains(cut)), "{messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn contradictions_known_validation_examples_and_unusual_rates_are_warned_of() {
    let fixture = Fixture::new().await;
    let line = |prompt: usize, answer: usize| {
        serde_json::json!({"prompt": format!("Number {prompt}:"), "completion": format!(" {answer}")}).to_string()
            + "\n"
    };
    let training: String = (0..12).map(|number| line(number % 10, number)).collect();
    let held_out = [line(3, 3), line(50, 50), line(51, 51)].concat();
    let (training, held_out) = (fixture.upload(&training).await, fixture.upload(&held_out).await);
    let settings = Hyperparameters {
        n_epochs: Some(1),
        learning_rate_multiplier: Some(50.0),
        ..spec(String::new()).hyperparameters
    };
    let spec = JobSpec { validation_file: Some(held_out), hyperparameters: settings, ..spec(training) };
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let worker = fixture.worker();
    fixture.wait(&job, |job| job.status.is_final()).await;
    worker.stop().await;
    let messages = fixture.messages(&job).await;
    for expected in [
        "2 of the training examples contradict an earlier one: the same prompt has different answers (on line 1 and line 11, \
         for example), and the model cannot learn both (lines 11 and 12)",
        "1 of the validation examples is in the training file, too (line 1): it measures nothing new",
    ] {
        assert!(messages.iter().any(|message| message == expected), "{expected} is not in {messages:?}");
    }
    assert!(messages.iter().any(|message| message.contains("50 times as high as the automatic one")), "{messages:?}");
}
