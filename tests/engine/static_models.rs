//! The engine of static models: vectors of a table of two-dimensional rows, whose means are known by hand.

use std::collections::HashMap;
use std::sync::Arc;

use attune::engine::static_engine::StaticEngine;
use attune::engine::stops::StopTexts;
use attune::engine::{Backend, EmbedInput, EmbedOutput, EmbedRequest, Error, GenerateRequest, Sampling};
use attune::model::BaseModel;
use attune::model::entry::ModelEntry;
use candle_core::{Device, Tensor};
use serde_json::json;

/// Loads a model of three tokens, whose texts have four of them at the most.
fn engine() -> StaticEngine {
    let folder = tempfile::tempdir().unwrap();
    let write =
        |name: &str, value: serde_json::Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    write("config.json", json!({"model_type": "model2vec", "normalize": true, "max_length": 4}));
    let words = json!({"[UNK]": 0, "a": 1, "b": 2});
    write(
        "tokenizer.json",
        json!({"version": "1.0", "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}}),
    );
    let rows = Tensor::new(&[[1_f32, 0.0], [3.0, 0.0], [1.0, 8.0]], &Device::Cpu).unwrap();
    let tensors = HashMap::from([("embeddings", rows)]);
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    let model = BaseModel::load(&ModelEntry::new("static", folder.path()), &Device::Cpu).unwrap();
    StaticEngine::new(Arc::new(model))
}

async fn vectors(engine: &StaticEngine, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, Error> {
    let texts = texts.iter().map(|text| text.to_vec()).collect();
    engine.embed(EmbedRequest::of_texts("o".into(), texts, None)).await
}

#[tokio::test]
async fn a_vector_is_the_mean_of_the_rows_of_length_1_and_nothing_has_no_direction() {
    let engine = engine();
    // The mean of (3, 0), (3, 0) and (1, 8) is (7, 8) / 3.
    let made = vectors(&engine, &[&[1, 1, 2], &[2], &[]]).await.unwrap();
    let expected =
        [[7.0 / 113_f32.sqrt(), 8.0 / 113_f32.sqrt()], [1.0 / 65_f32.sqrt(), 8.0 / 65_f32.sqrt()], [0.0, 0.0]];
    assert!(
        made.iter().flatten().zip(expected.iter().flatten()).all(|(value, wanted)| (value - wanted).abs() < 1e-7),
        "{made:?}"
    );
    // Tokens of a prompt that is not pooled.
    let input = EmbedInput { tokens: vec![1, 1, 2], unpooled: 2, ..EmbedInput::default() };
    let request = EmbedRequest { inputs: vec![input], ..EmbedRequest::of_texts("o".into(), Vec::new(), None) };
    assert_eq!(engine.embed(request).await.unwrap(), [made[1].clone()]);
}

#[tokio::test]
async fn what_a_table_cannot_do_is_refused_by_name() {
    let engine = engine();
    assert!(matches!(vectors(&engine, &[&[1], &[1; 5]]).await, Err(Error::ContextLength { limit: 4, prompt: 5, .. })));
    assert!(matches!(vectors(&engine, &[&[3]]).await, Err(Error::UnknownToken { id: 3, vocabulary: 3 })));
    let labels =
        EmbedRequest { output: EmbedOutput::Labels, ..EmbedRequest::of_texts("o".into(), vec![vec![1]], None) };
    assert!(matches!(engine.embed(labels).await, Err(Error::NoClassifier(_))));
    let text = engine.generate(GenerateRequest {
        organization: "o".into(),
        prompt: [1].into(),
        adapter: None,
        sampling: Sampling::default(),
        max_tokens: 1,
        stop: StopTexts::default(),
        stop_tokens: Vec::new(),
        logprobs: None,
        prompt_logprobs: None,
        grammar: None,
        background: false,
    });
    assert!(text.unwrap_err().to_string().contains("`static` makes vectors of texts and writes none"));
    engine.stop();
    assert!(matches!(vectors(&engine, &[&[1]]).await, Err(Error::Unavailable(_))));
}
