//! The engine over a model on a GPU, or in the emulator: steps, adapters and draws together.

use std::sync::Arc;

use attune::engine::EngineLimits;
use attune::engine::native::NativeEngine;
use attune::engine::{Backend as _, EmbedRequest, Event, GenerateRequest, Sampling};
use attune::model::BaseModel;
use attune::model::kv_cache::BLOCK_TOKENS;
use attune::model::lora::AdapterLease;

use crate::fixtures::{Reference, TRAINED_FAMILIES, device, greedy, max_difference, whole_model_on};
use crate::kernels;

fn tokens(engine: &NativeEngine, request: GenerateRequest) -> Vec<u32> {
    let mut events = engine.generate(request).unwrap();
    let mut tokens = Vec::new();
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Token { id, .. } => tokens.push(id),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    tokens
}

fn start(family: &str) -> (Arc<BaseModel>, Arc<NativeEngine>) {
    let model = whole_model_on(family, &kernels());
    let engine = NativeEngine::start(model.clone(), &EngineLimits::default(), Arc::default()).unwrap();
    (model, engine)
}

#[test]
fn tokens_drawn_on_the_device_are_those_of_transformers() {
    let (_, engine) = start("qwen3");
    let reference = Reference::read("qwen3", "reference.safetensors");
    let prompt = &reference.ids("input_ids")[..12];
    let drawn = tokens(&engine, greedy(prompt, 24, None));
    assert_eq!(drawn, reference.ids("greedy")[..drawn.len()]);
    assert!(drawn.len() > 4);
    // With log probabilities the logits are read back, and the host draws.
    let read = GenerateRequest { logprobs: Some(1), ..greedy(prompt, 24, None) };
    assert_eq!(tokens(&engine, read), drawn);
    let sampled = |seed| GenerateRequest {
        sampling: Sampling { seed: Some(seed), ..Sampling::default() },
        ..greedy(prompt, 16, None)
    };
    assert_eq!(tokens(&engine, sampled(1)), tokens(&engine, sampled(1)));
    // Draws among the most probable tokens are the same, too.
    let cut = Sampling { seed: Some(3), temperature: 1.2, top_k: 20, top_p: 0.9, min_p: 0.02, ..Sampling::default() };
    let on_device = GenerateRequest { sampling: cut, ..greedy(prompt, 16, None) };
    let on_host = GenerateRequest { logprobs: Some(1), ..on_device.clone() };
    assert_eq!(tokens(&engine, on_device), tokens(&engine, on_host));
    assert_ne!(tokens(&engine, sampled(1)), tokens(&engine, sampled(2)));
}

/// A convolution's share of the cache is that of the model: the second answer begins with blocks that the first one left
/// there, and the third one adds an adapter to the layers of its convolutions.
#[test]
fn models_with_convolutions_answer_as_transformers_do() {
    for family in ["lfm2", "lfm2_bias"] {
        let (model, engine) = start(family);
        let reference = Reference::read(family, "reference.safetensors");
        let prompt = reference.ids("input_ids");
        let prompt = &prompt[..2 * BLOCK_TOKENS + 5];
        let [first, second] = [(); 2].map(|()| tokens(&engine, greedy(prompt, 24, None)));
        assert_eq!(first, second, "{family}");
        let alone = tokens(&engine, greedy(&reference.ids("input_ids")[..12], 24, None));
        assert_eq!(alone, reference.ids("greedy")[..alone.len()], "{family}");
        assert!(alone.len() > 4);
        if TRAINED_FAMILIES.contains(&family) {
            let adapter = Reference::read(family, "peft/adapter_model.safetensors");
            let adapter = model.decoder.served(&adapter.adapter("", &model.config, 2.0, &device())).unwrap();
            let adapted: AdapterLease = Arc::new(adapter);
            assert_ne!(tokens(&engine, greedy(prompt, 24, Some(&adapted))), first, "{family}");
        }
    }
}

#[test]
fn an_adapter_answers_the_same_as_it_was_trained_and_as_it_is_served() {
    let (model, engine) = start("llama");
    let trained = Reference::read("llama", "peft/adapter_model.safetensors").adapter("", &model.config, 2.0, &device());
    let served = model.decoder.served(&trained).unwrap();
    let prompt = &Reference::read("llama", "reference.safetensors").ids("input_ids")[..12];
    let [trained, served] = [trained, served].map(|adapter| -> AdapterLease { Arc::new(adapter) });
    let answers = [None, Some(&trained), Some(&served)].map(|adapter| tokens(&engine, greedy(prompt, 12, adapter)));
    assert_eq!(answers[1], answers[2]);
    assert_ne!(answers[0], answers[1]);
}

#[test]
fn embeddings_are_the_means_of_the_hidden_states_of_transformers() {
    for family in ["llama", "qwen3"] {
        let (_, engine) = start(family);
        let reference = Reference::read(family, "reference.safetensors");
        let (ids, hidden) = (reference.ids("input_ids"), reference.tensor("hidden").to_vec2::<f32>().unwrap());
        // Attention looks only back, so the beginning of the text has the same hidden states.
        let lengths = [ids.len(), 7, 1];
        let inputs = lengths.iter().map(|length| ids[..*length].to_vec()).collect();
        let request = EmbedRequest::of_texts("org".into(), inputs, None);
        let vectors = futures::executor::block_on(engine.embed(request)).unwrap();
        for (vector, length) in vectors.iter().zip(lengths) {
            let mut mean = vec![0.0; vector.len()];
            for row in &hidden[..length] {
                mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            let norm = mean.iter().map(|value| value * value).sum::<f32>().sqrt();
            let unit: Vec<f32> = mean.into_iter().map(|value| value / norm).collect();
            assert!(max_difference(vector, &unit) < 1e-4, "{family}, {length} tokens");
        }
    }
}
