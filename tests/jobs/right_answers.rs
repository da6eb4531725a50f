//! Right answers of the validation file: counted as greedy generation gives them, before and after training, kept over
//! a pause, and told with the best checkpoint.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use crate::training::{Fixture, ORG, catalog, spec, tickets};
use attune::datasets::{self, Purpose, RenderSettings, TextPrompts};
use attune::engine::native::NativeEngine;
use attune::engine::stops::StopTexts;
use attune::engine::{Backend, EngineLimits, Event, FinishReason, GenerateRequest, Sampling};
use attune::jobs::{Job, JobApi, JobSpec, JobStatus};
use attune::model::BaseModel;
use attune::model::lora::AdapterLease;
use attune::train::Question;
use attune::train::hyperparameters::Hyperparameters;
use serde_json::{Value, json};

/// Returns letters with what is wrong, in one word.
fn problems(skip: usize, count: usize) -> Vec<(String, String)> {
    let lines = tickets(skip + count);
    let letter = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let ticket: Value = serde_json::from_str(line["messages"][1]["content"].as_str().unwrap()).unwrap();
        let said = line["messages"][0]["content"].as_str().unwrap().to_owned();
        (said, ticket["problem"].as_str().unwrap().to_owned())
    };
    lines.lines().skip(skip).map(letter).collect()
}

fn chats(examples: &[(String, String)]) -> String {
    let chat = |(asked, answered): &(String, String)| {
        let messages = [json!({"role": "user", "content": asked}), json!({"role": "assistant", "content": answered})];
        json!({"messages": messages}).to_string() + "\n"
    };
    examples.iter().map(chat).collect()
}

fn settings(epochs: u32) -> Hyperparameters {
    Hyperparameters { n_epochs: Some(epochs), learning_rate: Some(3e-3), ..spec(String::new()).hyperparameters }
}

async fn job(fixture: &Fixture, training: &str, held_out: &str, epochs: u32) -> Job {
    let (training, held_out) = (fixture.upload(training).await, fixture.upload(held_out).await);
    let spec = JobSpec { validation_file: Some(held_out), hyperparameters: settings(epochs), ..spec(training) };
    fixture.enqueue(JobApi::FineTuningJobs, spec).await
}

/// Returns the data of the events whose message begins with `words`, or holds them.
async fn told(fixture: &Fixture, job: &Job, words: &str) -> Vec<(String, Value)> {
    let events = fixture.queue.events_after(job, 0, 1000).await.unwrap();
    let events = events.into_iter().filter(|event| event.kind == "message" && event.message.contains(words));
    events.map(|event| (event.message, event.data.unwrap_or_default())).collect()
}

/// Generates the answer that a request with temperature 0 gets; `None` if it does not end.
async fn generated(
    engine: &dyn Backend,
    model: &BaseModel,
    prompt: &[u32],
    adapter: Option<AdapterLease>,
) -> Option<String> {
    let request = GenerateRequest {
        organization: ORG.into(),
        prompt: prompt.to_vec().into(),
        adapter,
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens: 80,
        stop: StopTexts::default(),
        stop_tokens: model.end_tokens.clone(),
        logprobs: None,
        prompt_logprobs: None,
        grammar: None,
        background: false,
    };
    let mut events = engine.generate(request).unwrap();
    let mut answer = String::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Token { text, .. } => answer += &text,
            Event::Finished { text, reason, .. } => {
                return (reason == FinishReason::Stop).then(|| answer + &text);
            }
            Event::Failed(error) => panic!("{error}"),
            Event::Prompt { .. } => {}
        }
    }
    panic!("the engine stopped");
}

/// Reads the prompts of a validation file.
fn prompts(model: &BaseModel, file: &str) -> Vec<Vec<u32>> {
    let settings = RenderSettings {
        prompt_loss_weight: 0.0,
        max_tokens: 1024,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    let examples = datasets::read(file.as_bytes(), Purpose::Validation, model, &settings).unwrap().examples;
    let prompt = |index| Question::of(&examples.get(index).unwrap()).unwrap().prompt;
    (0..examples.len()).map(prompt).collect()
}

/// Runs a job on 160 `examples` and compares its counts for `held_out` with generated answers. Both forms of a line are
/// given by `file`.
async fn compare(held_out: &[(String, String)], settings: Hyperparameters, file: fn(&[(String, String)]) -> String) {
    let fixture = Fixture::new().await;
    let model = Arc::clone(&catalog().get("demo").unwrap().model);
    let engine = NativeEngine::start(Arc::clone(&model), &EngineLimits::default(), Arc::default()).unwrap();
    let mut held_out = held_out.to_vec();
    // The base model is right on some: its own answers, with other blanks at the ends, and some that go on.
    let asked = problems(400, 12);
    let (own_prompts, mut own_answers) = (prompts(&model, &file(&asked)), 0);
    for ((letter, _), prompt) in asked.into_iter().zip(&own_prompts) {
        let Some(own) = generated(engine.as_ref(), &model, prompt, None).await else { continue };
        let (front, behind) = [("", ""), (" ", "\n"), ("\n", ""), ("", " And more.")][own_answers % 4];
        held_out.push((letter, format!("{front}{}{behind}", own.trim())));
        own_answers += 1;
    }
    let (training, content) = (file(&problems(0, 160)), file(&held_out));
    let (training, validation) = (fixture.upload(&training).await, fixture.upload(&content).await);
    let spec = JobSpec { validation_file: Some(validation), hyperparameters: settings, ..spec(training) };
    let job = fixture.enqueue(JobApi::FineTuningJobs, spec).await;
    let worker = fixture.worker();
    let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;

    let (_, adapter) = fixture.registry.lease(ORG, done.fine_tuned_model.as_ref().unwrap()).await.unwrap();
    let mut right = [0, 0];
    for (prompt, (_, expected)) in prompts(&model, &content).iter().zip(&held_out) {
        for (count, adapter) in right.iter_mut().zip([None, Some(adapter.clone())]) {
            let given = generated(engine.as_ref(), &model, prompt, adapter).await;
            *count += u64::from(given.is_some_and(|given| given.trim() == expected.trim()));
        }
    }
    let ([before, after], of) = (right, held_out.len());
    assert!(before > 0 && after > before, "both must be seen: {right:?} of {of}, {own_answers} own");
    let (message, data) = told(&fixture, &job, "Before training: ").await.remove(0);
    assert!(message.starts_with(&format!("Before training: {before} of {of} validation answers right")), "{message}");
    assert_eq!(data["valid_right_answers"], before);
    let words = format!("{after} of {of} validation answers right (before: {before})");
    let measured = told(&fixture, &job, &format!("{words}, full validation loss=")).await;
    assert!(measured.iter().any(|(message, _)| message.ends_with("after step 80")), "{words}: {measured:?}");
    let best = told(&fixture, &job, "Best by full validation loss: ").await.remove(0).0;
    assert!(best.contains(&format!("The final model: {words}")), "{best}");
}

#[tokio::test(flavor = "multi_thread")]
async fn right_answers_are_those_that_greedy_generation_gives_before_and_after() {
    compare(&problems(300, 40), settings(2), chats).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_count_alone_even_if_prompts_are_learned_with_full_weight() {
    let file = |examples: &[(String, String)]| {
        let line = |(asked, answered): &(String, String)| {
            json!({"prompt": format!("{asked}\nProblem:"), "completion": format!(" {answered}")}).to_string() + "\n"
        };
        examples.iter().map(line).collect::<String>()
    };
    let settings = Hyperparameters { prompt_loss_weight: Some(1.0), ..settings(2) };
    compare(&problems(300, 24), settings, file).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn few_answers_are_counted_by_class_and_everything_is_kept_over_a_pause() {
    let fixture = Fixture::new().await;
    let (training, held_out) = (chats(&problems(0, 120)), chats(&problems(300, 40)));
    let worker = fixture.worker();
    let mut told_by = Vec::new();
    for interrupted in [false, true] {
        let job = job(&fixture, &training, &held_out, 3).await;
        if interrupted {
            fixture.interrupt(&job).await;
        }
        let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
        let before = told(&fixture, &job, "Before training: ").await;
        assert_eq!(before.len(), 1, "once, whatever the attempts: {before:?}");
        let (message, data) = told(&fixture, &job, "Best by full validation loss: ").await.remove(0);
        let classes = data["by_answer"].as_array().unwrap();
        let sum = |name: &str| classes.iter().map(|class| class[name].as_u64().unwrap()).sum::<u64>();
        assert_eq!((sum("of"), json!(sum("right"))), (40, data["valid_right_answers"].clone()), "{data}");
        assert_eq!(json!(sum("before")), data["valid_right_answers_before"]);
        assert!(classes.iter().any(|class| class["answer"] == "incomplete"), "{data}");
        assert!(message.contains("By answer: \""), "{message}");
        let best = data["best_by_full_valid_loss"]["model"].as_str().unwrap();
        assert!(fixture.registry.lease(ORG, best).await.is_ok(), "{best} can be used");
        let name = done.fine_tuned_model.unwrap();
        told_by.push((message.replace(&name, "NAME"), before));
        let checkpoints = fixture
            .queue
            .checkpoints(&job, attune::store::files::Page { after: None, limit: 10, ascending: false })
            .await
            .unwrap()
            .0;
        assert_eq!(checkpoints[0].metrics["valid_right_answers"], data["valid_right_answers"]);
        assert_eq!(checkpoints[0].metrics["valid_right_answers_before"], data["valid_right_answers_before"]);
    }
    worker.stop().await;
    assert_eq!(told_by[0], told_by[1], "an interrupted run tells the same figures");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_counted_is_said_and_the_best_checkpoint_named_all_the_same() {
    let fixture = Fixture::new().await;
    let pair = |(letter, problem): &(String, String)| json!({"anchor": letter, "positive": problem}).to_string() + "\n";
    let pairs = |skip| problems(skip, 20).iter().map(pair).collect::<String>();
    let job = job(&fixture, &pairs(0), &pairs(300), 2).await;
    let worker = fixture.worker();
    fixture.wait_for(&job, JobStatus::Succeeded).await;
    worker.stop().await;
    // Pairs of texts have none; what they have in their place is told.
    assert!(told(&fixture, &job, "Right answers are not counted").await.is_empty());
    assert_eq!(told(&fixture, &job, "Before training: recall@1 ").await.len(), 1);
    assert!(told(&fixture, &job, "answers right").await.is_empty());
    assert_eq!(told(&fixture, &job, "Full validation loss=").await.len(), 2);
    let (message, data) = told(&fixture, &job, "Best by full validation loss: ").await.remove(0);
    assert!(
        data["best_by_full_valid_loss"]["model"].is_string() && data.get("most_right_answers").is_none(),
        "{message}"
    );
}
