//! Trains, publishes and serves in one process without a database: an adapter for the demo model's ticket task is
//! trained, its PEFT files are read back, and the engine answers with it while the base goes on serving. On the CPU,
//! and on the first GPU in a build with the feature `cuda`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use attune::adapters::peft;

use attune::datasets::{self, Purpose, RenderSettings, TextPrompts};
use attune::engine::EngineLimits;
use attune::engine::native::NativeEngine;
use attune::engine::{Backend, EmbedRequest, Event, GenerateRequest};
use attune::model::BaseModel;
use attune::model::chat::{self, Message, WrittenMessage};
use attune::model::chat_template::TemplateOptions;
use attune::model::entry::ModelEntry;
use attune::model::lora::Adapter;
use attune::train::hyperparameters::{Hyperparameters, Method};
use attune::train::settings::{Defaults, TrainSettings, resolve};
use attune::train::{Evaluation, HeldOut, Trainer};
use serde_json::Value;

fn demo_folder() -> PathBuf {
    let here = PathBuf::from("models/demo");
    if here.is_dir() { here } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo") }
}

fn lines(file: &str) -> Vec<String> {
    std::fs::read_to_string(demo_folder().join("tickets").join(file)).unwrap().lines().map(str::to_owned).collect()
}

fn read(model: &BaseModel, lines: &[String]) -> datasets::Dataset {
    let settings = RenderSettings {
        prompt_loss_weight: 0.0,
        max_tokens: 512,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    datasets::read(Cursor::new(lines.join("\n")), Purpose::Training, model, &settings).unwrap()
}

#[test]
fn train_then_serve_round_trip() {
    let entry = ModelEntry::new("demo", demo_folder());
    let model = Arc::new(BaseModel::load(&entry, &crate::fixtures::device()).unwrap());
    let dataset = read(&model, &lines("train.jsonl")[..160]);
    let asked = Hyperparameters {
        n_epochs: Some(2),
        batch_size: Some(8),
        learning_rate: Some(2e-3),
        learning_rate_multiplier: Some(1.0),
        ..Hyperparameters::default()
    };
    let resolved = resolve(&asked, Defaults::Current, Method::Supervised, &dataset.report, &model.config).unwrap();
    let settings = TrainSettings::new(&resolved, 7);
    let mut held_out = HeldOut::new(read(&model, &lines("heldout.jsonl")[..20]).examples, 1);

    let mut trainer = Trainer::new(Arc::clone(&model), settings, dataset.examples, None).unwrap();
    let mut nothing = || Ok(());
    let before = trainer.validate(&mut held_out, false, &mut nothing).unwrap().unwrap().sample;
    let (start, mut tokens) = (Instant::now(), 0);
    while let Some(report) = trainer.step(&mut nothing).unwrap() {
        tokens += report.tokens;
    }
    println!("measured: training {:.0} tokens/s", tokens as f64 / start.elapsed().as_secs_f64());
    let after: Evaluation = trainer.validate(&mut held_out, false, &mut nothing).unwrap().unwrap().sample;
    assert!(after.loss < before.loss / 4.0, "held-out loss went from {} to {}", before.loss, after.loss);

    // Through the files, as another process would load it.
    let files = peft::write(&trainer.adapter().unwrap(), "demo").unwrap();
    let adapter = peft::read(&files.config, &files.weights, &model.config, model.decoder.device()).unwrap();
    let adapter = Arc::new(adapter);

    let engine = NativeEngine::start(Arc::clone(&model), &EngineLimits::default(), Arc::default()).unwrap();
    let message: Value = serde_json::from_str(&lines("heldout.jsonl")[0]).unwrap();
    let question = &message["messages"].as_array().unwrap()[..1];
    let base_alone = answer(&engine, &model, question, None);
    let both =
        [answer_events(&engine, &model, question, None), answer_events(&engine, &model, question, Some(&adapter))];
    let [base, tuned] = both.map(collect);
    assert_eq!(base, base_alone, "the base's answer is not disturbed by an adapter in the same batch");
    let ticket: Value = serde_json::from_str(&tuned).unwrap_or_else(|_| panic!("not a ticket: {tuned}"));
    assert!(ticket["order"].is_number(), "{ticket}");
    assert!(serde_json::from_str::<Value>(&base).is_err(), "the base knows the task already: {base}");

    embeddings_are_unit_vectors(&engine, &model);
}

fn answer_events(
    engine: &NativeEngine,
    model: &BaseModel,
    messages: &[Value],
    adapter: Option<&Arc<Adapter>>,
) -> tokio::sync::mpsc::UnboundedReceiver<Event> {
    let messages: Vec<WrittenMessage> = serde_json::from_value(messages.into()).unwrap();
    let messages: Vec<_> = messages.into_iter().map(|message| Message::read(message).unwrap()).collect();
    let options = TemplateOptions { begin_answer: true, ..TemplateOptions::default() };
    let prompt = chat::render(model.chat_template.as_ref().unwrap(), &messages, &[], &options).unwrap();
    let prompt = model.tokenizer.encode(&prompt, false).unwrap();
    let request =
        GenerateRequest { stop_tokens: model.end_tokens.clone(), ..crate::fixtures::greedy(&prompt, 80, adapter) };
    engine.generate(request).unwrap()
}

fn answer(engine: &NativeEngine, model: &BaseModel, messages: &[Value], adapter: Option<&Arc<Adapter>>) -> String {
    collect(answer_events(engine, model, messages, adapter))
}

fn collect(mut events: tokio::sync::mpsc::UnboundedReceiver<Event>) -> String {
    let mut answer = String::new();
    loop {
        match events.blocking_recv().unwrap() {
            Event::Prompt { .. } => panic!("nobody asked for the prompt"),
            Event::Token { text, .. } => answer += &text,
            Event::Finished { text, .. } => return answer + &text,
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

fn embeddings_are_unit_vectors(engine: &NativeEngine, model: &BaseModel) {
    let encode = |text: &str| model.tokenizer.encode(text, false).unwrap();
    let inputs = vec![encode("A ship sails at dawn."), encode("Bread.")];
    let request = |inputs: Vec<Vec<u32>>| EmbedRequest::of_texts("org".into(), inputs, None);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let together = runtime.block_on(engine.embed(request(inputs.clone()))).unwrap();
    for (input, vector) in inputs.into_iter().zip(&together) {
        let norm: f32 = vector.iter().map(|x| x * x).sum();
        assert!((norm - 1.0).abs() < 1e-5, "norm² {norm}");
        let alone = runtime.block_on(engine.embed(request(vec![input]))).unwrap();
        assert!(crate::fixtures::max_difference(vector, &alone[0]) < 1e-5, "a text's vector depends on its neighbours");
    }
}
