//! Masks from the line of a file to the gradient: targets, weights of prompts, end tokens, tools.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use attune::datasets::{self, Purpose, RenderSettings, TextPrompts, TokenizedExample};
use attune::model::BaseModel;
use attune::model::entry::ModelEntry;
use attune::model::lora::{Adapter, LoraLayer, LoraPair, Site};
use attune::train::backward::{self, Gradients, LossReport};
use attune::train::packing::pack;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

fn model() -> &'static Arc<BaseModel> {
    static MODEL: OnceLock<Arc<BaseModel>> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        Arc::new(BaseModel::load(&ModelEntry::new("demo", path), &Device::Cpu).unwrap())
    })
}

/// Returns an adapter of the demo model with an effect.
fn adapter() -> Adapter {
    let config = &model().config;
    let matrix = |rows: usize, columns: usize, seed: f32| {
        let values = (0..rows * columns).map(|i| (i as f32 * 0.37 + seed).sin() * 0.05).collect::<Vec<_>>();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let layer = |index: usize| {
        let mut layer = LoraLayer::default();
        for site in Site::USUAL {
            let (output, input) = site.shape(config);
            let (a, b) = (matrix(2, input, index as f32), matrix(output, 2, 0.5 + index as f32));
            layer.set(site, LoraPair { a, b, scale: 1.0 });
        }
        layer
    };
    Adapter::new(String::new(), (0..config.num_hidden_layers).map(layer).collect())
}

fn render(line: &Value, prompt_loss_weight: f32) -> TokenizedExample {
    let settings = RenderSettings {
        prompt_loss_weight,
        max_tokens: 512,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    let file = Cursor::new(line.to_string());
    let data = datasets::read(file, Purpose::Validation, &**model(), &settings).unwrap();
    assert_eq!(data.examples.len(), 1);
    data.examples.get(0).unwrap()
}

/// Returns sums of loss and weights, and the gradient of the sum.
fn learn(example: &TokenizedExample) -> (LossReport, Gradients) {
    let batch = pack(std::slice::from_ref(example), 1, 512).remove(0).batch;
    backward::loss_and_gradients(&model().decoder, &adapter(), &batch, 1.0).unwrap()
}

fn numbers(gradients: &Gradients) -> Vec<f32> {
    let pairs = gradients.iter().flat_map(|layer| Site::ALL.into_iter().filter_map(|site| layer.get(site)));
    pairs.flat_map(|pair| [crate::fixtures::floats(&pair.a), crate::fixtures::floats(&pair.b)].concat()).collect()
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{a} is not {b}");
}

fn text(example: &TokenizedExample, learned: bool) -> String {
    let tokens = example.tokens.iter().zip(&example.weights).filter(|(_, weight)| (**weight > 0.0) == learned);
    model().tokenizer.decode(&tokens.map(|(token, _)| *token).collect::<Vec<_>>(), false).unwrap()
}

fn end_token() -> String {
    model().tokenizer.decode(&model().end_tokens[..1], false).unwrap()
}

#[test]
fn tokens_behind_the_last_answer_change_no_bit() {
    let mut example = render(&json!({"prompt": "The lamp is", "completion": " broken"}), 0.0);
    let (report, gradients) = learn(&example);
    for token in [5, 77, 1999] {
        example.tokens.push(token);
        example.weights.push(0.0);
        let (other, others) = learn(&example);
        assert_eq!(other, report);
        assert_eq!(numbers(&others), numbers(&gradients));
    }
}

#[test]
fn a_masked_token_is_context_and_no_target() {
    let mut example = render(&json!({"prompt": "The lamp is", "completion": " broken and old"}), 0.0);
    let whole = learn(&example).0;
    let answer = example.weights.iter().position(|weight| *weight > 0.0).unwrap();
    // Each target alone, the others masked: together they are the whole.
    let mut sum = LossReport::default();
    let weights = example.weights.clone();
    for target in answer..example.tokens.len() {
        example.weights.fill(0.0);
        example.weights[target] = 1.0;
        let one = learn(&example).0;
        assert_eq!((one.targets, one.weight_sum), (1, 1.0));
        sum.loss_sum += one.loss_sum;
        sum.correct += one.correct;
    }
    close(sum.loss_sum, whole.loss_sum);
    assert_eq!((sum.correct, whole.targets), (whole.correct, weights.len() - answer));
}

#[test]
fn prompts_count_with_their_weight_in_loss_and_gradient() {
    let line = json!({"prompt": "The lamp from order 4172 is", "completion": " broken"});
    let (nothing, hundredth, whole) = (render(&line, 0.0), render(&line, 0.01), render(&line, 1.0));
    let [(none, none_gradients), (some, some_gradients), (all, all_gradients)] =
        [&nothing, &hundredth, &whole].map(learn);
    let answer = nothing.targets() as f64;
    let prompt = whole.targets() as f64 - answer;
    assert!(prompt > 3.0 && answer > 0.0);
    for (report, weight) in [(&none, 0.0), (&some, 0.01), (&all, 1.0)] {
        close(report.weight_sum, answer + weight * prompt);
        close(report.loss_sum, none.loss_sum + weight * (all.loss_sum - none.loss_sum));
    }
    assert_eq!((none.targets, some.targets), (some.targets, answer as usize), "accuracy is that of answers");
    let (none, some, all) = (numbers(&none_gradients), numbers(&some_gradients), numbers(&all_gradients));
    let expected: Vec<f32> = none.iter().zip(&all).map(|(none, all)| none + 0.01 * (all - none)).collect();
    assert!(crate::fixtures::relative_difference(&some, &expected) < 1e-4);
}

#[test]
fn answers_of_weight_zero_are_read_and_not_learned() {
    let chat = |first: u8, second: u8| {
        json!({"messages": [
            {"role": "user", "content": "Where is my lamp?"}, {"role": "assistant", "content": "Here.", "weight": first},
            {"role": "user", "content": "And the chair?"}, {"role": "assistant", "content": "There.", "weight": second}]})
    };
    let (both, first, second) = (render(&chat(1, 1), 0.0), render(&chat(1, 0), 0.0), render(&chat(0, 1), 0.0));
    assert_eq!(text(&both, true), format!("Here.{end}There.{end}", end = end_token()));
    assert_eq!(text(&first, true), format!("Here.{}", end_token()));
    assert_eq!(text(&second, true), format!("There.{}", end_token()));
    assert_eq!(both.tokens, second.tokens, "the first answer is still read");
    close(learn(&first).0.loss_sum + learn(&second).0.loss_sum, learn(&both).0.loss_sum);
}

#[test]
fn every_answer_ends_with_the_token_that_ends_answers() {
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]});
    for line in [chat, json!({"prompt": "a", "completion": " b"})] {
        let example = render(&line, 0.0);
        let last = example.weights.iter().rposition(|weight| *weight > 0.0).unwrap();
        assert!(model().end_tokens.contains(&example.tokens[last]), "{line}");
    }
}

#[test]
fn an_example_that_is_cut_before_its_answer_is_left_out_and_a_file_of_them_refused() {
    let long = json!({"prompt": "order ".repeat(300), "completion": " yes"});
    let good = json!({"prompt": "order", "completion": " yes"});
    let settings = RenderSettings {
        prompt_loss_weight: 1.0,
        max_tokens: 100,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    let read = |file: String| datasets::read(Cursor::new(file), Purpose::Validation, &**model(), &settings);
    let data = read(format!("{good}\n{long}\n{good}")).unwrap();
    // With weight on prompts the cut example still has targets: its whole prompt.
    assert_eq!((data.examples.len(), data.report.truncated.first.as_slice()), (3, [2].as_slice()));
    let settings = RenderSettings { prompt_loss_weight: 0.0, ..settings };
    let read = |file: String| datasets::read(Cursor::new(file), Purpose::Validation, &**model(), &settings);
    let data = read(format!("{good}\n{long}\n{good}")).unwrap();
    assert_eq!((data.examples.len(), data.report.dropped.first.as_slice()), (2, [2].as_slice()));
    assert!(read(format!("{long}\n{long}")).is_err());
}
