//! Classification metrics of a fine-tune, from the files to the result file, against metrics computed one sequence at a
//! time; and messages for files with other classes than requested.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::training::{Fixture, ORG, catalog, spec};
use attune::jobs::{Job, JobApi, JobSpec, JobStatus};
use attune::model::BaseModel;
use attune::model::lora::Adapter;
use attune::train::backward::{self, PackedBatch, Target};
use attune::train::hyperparameters::{Classification, Hyperparameters};
use serde_json::json;

/// Things and the words for them: the class is the word that follows.
const THINGS: [(&str, usize); 12] = [
    ("lamp", 0),
    ("table", 0),
    ("rain", 1),
    ("chair", 0),
    ("wind", 1),
    ("snow", 1),
    ("spoon", 0),
    ("sun", 1),
    ("mouse", 2),
    ("horse", 2),
    ("dog", 2),
    ("bird", 2),
];
const WORDS: [&str; 3] = [" thing", " weather", " animal"];

fn line(prompt: &str, class: usize) -> String {
    json!({"prompt": prompt, "completion": WORDS[class]}).to_string()
}

/// Returns lines of the first `classes` classes, with prompts that no two files share.
fn file(classes: usize, question: &str) -> (String, Vec<(String, usize)>) {
    let (mut text, mut examples) = (String::new(), Vec::new());
    for (thing, class) in THINGS.iter().filter(|(_, class)| *class < classes) {
        for kind in ["a small", "a big"] {
            let prompt = format!("{question} {kind} {thing} ->");
            writeln!(text, "{}", line(&prompt, *class)).unwrap();
            examples.push((prompt, *class));
        }
    }
    (text, examples)
}

/// Enqueues a fine-tune of three epochs in batches of 6.
async fn enqueue(fixture: &Fixture, training: &str, validation: &str, asked: Classification) -> Job {
    let (training, validation) = (fixture.upload(training).await, fixture.upload(validation).await);
    let hyperparameters = Hyperparameters {
        n_epochs: Some(3),
        batch_size: Some(6),
        rank: Some(4),
        learning_rate: Some(3e-3),
        ..Hyperparameters::default()
    };
    let classification = Some(Classification { compute: Some(true), ..asked });
    let spec = JobSpec { validation_file: Some(validation), hyperparameters, classification, ..spec(training) };
    fixture.enqueue(JobApi::FineTunes, spec).await
}

/// Reads the rows of the job's result file, by column.
async fn results(fixture: &Fixture, job: &Job) -> Vec<HashMap<String, String>> {
    let content = fixture.store().blobs.get(&format!("files/{}", job.result_files[0])).await.unwrap();
    let text = String::from_utf8(content.to_vec()).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let header = lines.next().unwrap();
    lines.map(|cells| header.iter().cloned().zip(cells).collect()).collect()
}

/// Computes the log probability of a class after a prompt, with its end token, as one sequence.
fn log_probability(model: &BaseModel, adapter: &Adapter, prompt: &str, class: usize) -> f64 {
    let mut tokens = model.tokenizer.encode(prompt, true).unwrap();
    let begin = tokens.len();
    tokens.extend(model.tokenizer.encode(WORDS[class], false).unwrap());
    tokens.push(model.end_tokens[0]);
    let targets = (begin..tokens.len()).map(|index| Target { row: index - 1, token: tokens[index], weight: 1.0 });
    let targets = targets.collect();
    tokens.pop();
    #[allow(clippy::single_range_in_vec_init, reason = "one sequence is meant")]
    let sequences = vec![0..tokens.len()];
    let batch = PackedBatch { tokens, sequences, targets, ..PackedBatch::default() };
    -backward::loss(&model.decoder, Some(adapter), &batch).unwrap().loss_sum
}

/// Returns for each example the true class, and the log probabilities of all classes under the finished model.
async fn judged(fixture: &Fixture, job: &Job, examples: &[(String, usize)], classes: usize) -> Vec<(usize, Vec<f64>)> {
    let name = job.fine_tuned_model.as_deref().unwrap();
    let (base, adapter) = fixture.registry.original(ORG, name).await.unwrap();
    let model = catalog().get(&base).unwrap().model.clone();
    let judge = |(prompt, class): &(String, usize)| {
        (*class, (0..classes).map(|other| log_probability(&model, &adapter, prompt, other)).collect())
    };
    examples.iter().map(judge).collect()
}

fn best(row: &[f64]) -> usize {
    (0..row.len()).max_by(|left, right| row[*left].total_cmp(&row[*right])).unwrap()
}

fn assert_cell(row: &HashMap<String, String>, column: &str, expected: f64) {
    let cell = &row[&format!("classification/{column}")];
    let figure: f64 = cell.parse().unwrap();
    assert!((figure - expected).abs() < 1e-4, "{column} is {cell}, not {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_classes_are_measured_at_the_end_of_each_epoch() {
    let fixture = Fixture::new().await;
    let ((training, _), (validation, examples)) = (file(2, "What is"), file(2, "Tell me about"));
    let asked = Classification {
        positive_class: Some(WORDS[1].into()),
        betas: Some(vec![0.5, 2.0]),
        ..Classification::default()
    };
    let job = enqueue(&fixture, &training, &validation, asked).await;
    let worker = fixture.worker();
    let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;

    let rows = results(&fixture, &done).await;
    assert_eq!(rows.len(), 9);
    for (index, row) in rows.iter().enumerate() {
        let measured = (index + 1) % 3 == 0;
        for column in ["accuracy", "precision", "recall", "auroc", "auprc", "f0.5", "f2.0"] {
            assert_eq!(
                row[&format!("classification/{column}")].is_empty(),
                !measured,
                "{column} of step {}",
                index + 1
            );
        }
        for column in ["training_sequence_accuracy", "training_token_accuracy"] {
            assert!((0.0..=1.0).contains(&row[column].parse::<f64>().unwrap()));
        }
        assert_eq!(row["validation_sequence_accuracy"].is_empty(), !measured);
    }
    let last = &rows[8];
    let judged = judged(&fixture, &done, &examples, 2).await;
    let (mut right, mut hits, mut predicted) = (0.0, 0.0, 0.0);
    for (class, row) in &judged {
        right += f64::from(u8::from(best(row) == *class));
        predicted += f64::from(u8::from(best(row) == 1));
        hits += f64::from(u8::from(best(row) == 1 && *class == 1));
    }
    let positives = judged.iter().filter(|(class, _)| *class == 1).count() as f64;
    let (precision, recall) = (if predicted > 0.0 { hits / predicted } else { 0.0 }, hits / positives);
    assert_cell(last, "accuracy", right / judged.len() as f64);
    assert_cell(last, "precision", precision);
    assert_cell(last, "recall", recall);
    for beta in [0.5_f64, 2.0] {
        let below = beta * beta * precision + recall;
        let expected = if below > 0.0 { (1.0 + beta * beta) * precision * recall / below } else { 0.0 };
        assert_cell(last, &format!("f{beta:?}"), expected);
    }
    // The area under the ROC curve is the share of pairs in the right order.
    let scores =
        |wanted: usize| judged.iter().filter(move |(class, _)| *class == wanted).map(|(_, row)| row[1] - row[0]);
    let ordered = scores(1).map(|high| scores(0).filter(|low| high > *low).count()).sum::<usize>();
    assert_cell(last, "auroc", ordered as f64 / (positives * (judged.len() as f64 - positives)));
    let messages = fixture.messages(&job).await;
    assert!(messages.iter().filter(|message| message.starts_with("Classification: accuracy=")).count() == 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_classes_have_accuracy_and_weighted_f1() {
    let fixture = Fixture::new().await;
    let ((training, _), (validation, examples)) = (file(3, "What is"), file(3, "Tell me about"));
    let asked = Classification { n_classes: Some(3), ..Classification::default() };
    let job = enqueue(&fixture, &training, &validation, asked).await;
    let worker = fixture.worker();
    let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    let rows = results(&fixture, &done).await;
    assert!(!rows[0].contains_key("classification/auroc"));
    let judged = judged(&fixture, &done, &examples, 3).await;
    let right = judged.iter().filter(|(class, row)| best(row) == *class).count();
    assert_cell(&rows[11], "accuracy", right as f64 / judged.len() as f64);
    let weighted: f64 = (0..3)
        .map(|wanted| {
            let support = judged.iter().filter(|(class, _)| *class == wanted).count() as f64;
            let predicted = judged.iter().filter(|(_, row)| best(row) == wanted).count() as f64;
            let hits = judged.iter().filter(|(class, row)| *class == wanted && best(row) == wanted).count() as f64;
            support / judged.len() as f64 * 2.0 * hits / (support + predicted)
        })
        .sum();
    assert_cell(&rows[11], "weighted_f1_score", weighted);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_classes_than_were_asked_for_fail_the_job_before_it_trains() {
    let fixture = Fixture::new().await;
    let ((two, _), (three, _)) = (file(2, "What is"), file(3, "What is"));
    let chat = (0..12).fold(String::new(), |mut text, number| {
        let messages =
            json!([{"role": "user", "content": format!("{number}?")}, {"role": "assistant", "content": "a"}]);
        writeln!(text, "{}", json!({"messages": messages})).unwrap();
        text
    });
    let number = |n_classes| Classification { n_classes: Some(n_classes), ..Classification::default() };
    let positive = |text: &str| Classification { positive_class: Some(text.into()), ..Classification::default() };
    let cases = [
        (&two, &two, number(3), "classification_n_classes", "has 2 different completion(s) (\" thing\", \" weather\")"),
        (&three, &two, positive(" animal"), "classification_positive_class", "3 different completion(s)"),
        (&two, &two, positive("weather"), "classification_positive_class", "with the space that it begins with"),
        (&two, &three, number(2), "validation_file", "\" animal\", which the training file does not have"),
        (&chat, &chat, number(2), "training_file", "Line 1 is a chat"),
    ];
    let worker = fixture.worker();
    for (training, validation, asked, param, message) in cases {
        let job = enqueue(&fixture, training, validation, asked).await;
        let failed = fixture.wait_for(&job, JobStatus::Failed).await;
        let error = failed.error.unwrap();
        assert_eq!((error.code.as_str(), error.param.as_deref()), ("invalid_classes", Some(param)), "{error:?}");
        assert!(error.message.contains(message), "{error:?}");
        assert!(!fixture.messages(&job).await.iter().any(|message| message.starts_with("Training on")));
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_validation_file_is_measured_in_part_and_said_to_be() {
    let fixture = Fixture::new().await;
    let (training, _) = file(2, "What is");
    let mut validation = String::new();
    for number in 0..1_010 {
        writeln!(validation, "{}", line(&format!("{number}"), number % 2)).unwrap();
    }
    let asked = Classification { n_classes: Some(2), ..Classification::default() };
    let job = enqueue(&fixture, &training, &validation, asked).await;
    let worker = fixture.worker();
    fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    let messages = fixture.messages(&job).await;
    let expected = "Classification metrics are measured on 1000 of the validation examples; 10 are beyond the limit or too \
                    long";
    assert!(messages.iter().any(|message| message == expected), "{messages:?}");
}
