//! Checkpoints whose tensors and configuration do not match, read as transformers reads them.

use std::collections::HashMap;

use attune::model::decoder::Decoder;
use attune::model::linear::Storage;
use attune::model::weights::Weights;
use attune::model::{BaseModel, ModelConfig};
use candle_core::{Device, Tensor};

use crate::fixtures::{Reference, device, floats, folder, max_difference, one_sequence, whole_model_of};
use attune::train::backward::hidden_states;

fn logits(model: &BaseModel, family: &str) -> Vec<f32> {
    let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
    let hidden = hidden_states(&model.decoder, None, &one_sequence(&tokens)).unwrap();
    floats(&model.decoder.logits(&hidden).unwrap())
}

fn assert_as_transformers(family: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let model = whole_model_of(family, |weights, _| change(weights));
    let expected = Reference::read(family, "reference.safetensors").floats("logits");
    let difference = max_difference(&logits(&model, family), &expected);
    assert!(difference <= 1e-4, "{family}: logits differ by {difference:e}");
}

#[test]
fn a_head_of_its_own_is_kept_beside_tied_embeddings() {
    let random = Tensor::rand(-1f32, 1f32, (160, 64), &Device::Cpu).unwrap();
    let head = random.clone();
    let model = whole_model_of("qwen3", |weights, _| drop(weights.insert("lm_head.weight".into(), head)));
    let tokens = Reference::read("qwen3", "reference.safetensors").ids("input_ids");
    let hidden = hidden_states(&model.decoder, None, &one_sequence(&tokens)).unwrap();
    let expected = hidden.matmul(&random.to_device(&device()).unwrap().t().unwrap()).unwrap();
    assert!(max_difference(&logits(&model, "qwen3"), &floats(&expected)) <= 1e-4);
    // The same head again is the embedding.
    assert_as_transformers("qwen3", |weights| {
        let embedding = weights["model.embed_tokens.weight"].clone();
        weights.insert("lm_head.weight".into(), embedding);
    });
}

#[test]
fn biases_that_the_configuration_does_not_have_are_not_read() {
    for (family, name, width) in
        [("llama", "self_attn.q_proj", 64), ("llama", "mlp.down_proj", 64), ("qwen2", "self_attn.o_proj", 64)]
    {
        assert_as_transformers(family, |weights| {
            let bias = Tensor::ones(width, candle_core::DType::F32, &Device::Cpu).unwrap();
            weights.insert(format!("model.layers.1.{name}.bias"), bias);
        });
    }
}

#[test]
fn tensors_without_the_prefix_of_a_causal_model_are_found() {
    assert_as_transformers("qwen3", |weights| {
        let named = weights.drain().collect::<Vec<_>>();
        weights.extend(
            named
                .into_iter()
                .map(|(name, tensor)| (name.strip_prefix("model.").map_or(name.clone(), str::to_owned), tensor)),
        );
    });
}

/// Renames the tensors of Gemma 3 as transformers writes them inside a model with images, now and as it did before.
#[test]
fn tensors_of_a_text_model_inside_a_model_with_images_are_found() {
    for (decoder, head) in [("model.language_model.", ""), ("language_model.model.", "language_model.")] {
        let renamed = move |name: &str| match name.strip_prefix("model.") {
            Some(inside) => format!("{decoder}{inside}"),
            None => format!("{head}{name}"),
        };
        assert_as_transformers("gemma3", |weights| {
            let named = weights.drain().collect::<Vec<_>>();
            weights.extend(named.into_iter().map(|(name, tensor)| (renamed(&name), tensor)));
            let image = Tensor::ones(3, candle_core::DType::F32, &Device::Cpu).unwrap();
            weights.insert("vision_tower.patch.weight".into(), image);
        });
    }
}

/// Writes the fixture of Ministral 3 as the text part of a model that sees images, with tensors named by `renamed`.
fn inside_mistral3(renamed: impl Fn(&str) -> String) -> tempfile::TempDir {
    let (from, target) = (folder("ministral3"), tempfile::tempdir().unwrap());
    let text: serde_json::Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    let config = serde_json::json!({"model_type": "mistral3", "text_config": text, "vision_config": {}});
    std::fs::write(target.path().join("config.json"), config.to_string()).unwrap();
    let weights = candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    let weights: HashMap<String, Tensor> = weights.into_iter().map(|(name, tensor)| (renamed(&name), tensor)).collect();
    candle_core::safetensors::save(&weights, target.path().join("model.safetensors")).unwrap();
    target
}

#[test]
fn ministral_3_is_read_inside_a_model_that_sees_images() {
    let reference = Reference::read("ministral3", "reference.safetensors");
    let target = inside_mistral3(|name| match name.strip_prefix("model.") {
        Some(inside) => format!("language_model.model.{inside}"),
        None => format!("language_model.{name}"),
    });
    let config = ModelConfig::read(target.path()).unwrap();
    let decoder =
        Decoder::load(&config, &Weights::open(target.path(), &device()).unwrap(), &Storage::default()).unwrap();
    let hidden = hidden_states(&decoder, None, &one_sequence(&reference.ids("input_ids"))).unwrap();
    let logits = floats(&decoder.logits(&hidden).unwrap());
    assert!(max_difference(&logits, &reference.floats("logits")) <= 1e-4);
}

#[test]
fn tensors_under_names_of_mistrals_own_are_refused() {
    let target = inside_mistral3(|name| match name {
        "model.embed_tokens.weight" => "tok_embeddings.weight".to_owned(),
        other => other.replace("model.layers", "layers"),
    });
    let error = Weights::open(target.path(), &device()).unwrap_err().to_string();
    assert!(error.contains("tok_embeddings.weight"), "{error}");
}
