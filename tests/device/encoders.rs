//! Encoders on a GPU, or in the emulator: their engine, and vectors and gradients in the types of two bytes that a GPU
//! holds weights in. In f32 they go through the tests of the CPU (`tests/model/encoders.rs`, `tests/train/encoders.rs`).

use std::sync::Arc;

use attune::engine::encoder::EncoderEngine;
use attune::engine::{Backend as _, EmbedRequest, EngineLimits};
use attune::model::entry::ModelEntry;
use attune::model::linear::Dtype;
use attune::model::lora::AdapterLease;
use attune::model::{BaseModel, ModelConfig};

use crate::fixtures::{folder, max_difference};
use crate::kernels;
use crate::training_of_encoders::{Case, ENCODERS as TRAINED};
use crate::vectors::{ENCODERS, adapter_of, hidden, load_as, path, reference, texts, vector};

/// Types of two bytes, with the largest relative errors of a vector, a loss and a gradient. The models are of random
/// weights, whose errors grow from layer to layer more than those of trained ones.
const HALVES: [(Dtype, f32, f64, f64); 2] = [(Dtype::Bf16, 4e-2, 6e-2, 0.15), (Dtype::F16, 5e-3, 8e-3, 0.02)];

/// Returns true for families whose activations overflow in f16, which is refused.
fn overflows(family: &str, dtype: Dtype) -> bool {
    let folder = folder(&path(family));
    if dtype != Dtype::F16 || !ModelConfig::read(&folder).unwrap().overflows_f16 {
        return false;
    }
    let entry = ModelEntry { dtype: Some(dtype), ..ModelEntry::new("m", &folder) };
    let said = BaseModel::load_on(&entry, &kernels()).unwrap_err().to_string();
    assert!(said.contains("overflow in f16"), "{family}: {said}");
    true
}

fn length(values: &[f32]) -> f32 {
    values.iter().map(|value| value * value).sum::<f32>().sqrt()
}

#[test]
fn vectors_in_two_bytes_are_near_those_of_sentence_transformers() {
    for (dtype, most, ..) in HALVES {
        let mut largest = (0.0_f32, "");
        for family in ENCODERS.into_iter().filter(|family| !overflows(family, dtype)) {
            let folder = folder(&path(family));
            let model = load_as(&folder, dtype);
            let texts = texts(&folder, &model);
            let expected = reference(&folder).tensor("vectors").to_vec2::<f32>().unwrap();
            assert_eq!(texts.len(), expected.len());
            for ((text, states), expected) in texts.iter().zip(hidden(&model, &texts, None)).zip(&expected) {
                let own = vector(&model, text, &states);
                let difference: Vec<f32> = own.iter().zip(expected).map(|(own, exact)| own - exact).collect();
                let error = length(&difference) / length(expected);
                // A result that is not a number is no error that is small.
                assert!(error <= most, "{family} in {dtype:?}: a vector is off by {error:e}");
                largest = if error > largest.0 { (error, family) } else { largest };
            }
        }
        println!("measured: vectors in {dtype:?} are off by {:.2e} at most, of {}", largest.0, largest.1);
    }
}

#[test]
fn gradients_of_encoders_in_two_bytes_are_near_those_of_peft() {
    for (dtype, _, of_loss, most) in HALVES {
        let mut largest = (0.0_f64, "");
        for family in TRAINED {
            let errors = Case::load_as(family, "peft/pairs.json", dtype).first_errors();
            assert!(errors.loss <= of_loss, "{family} in {dtype:?}: the loss is off by {:e}", errors.loss);
            assert!(!errors.gradients.is_empty());
            for error in errors.gradients {
                assert!(error <= most, "{family} in {dtype:?}: a gradient is off by {error:e}");
                largest = if error > largest.0 { (error, family) } else { largest };
            }
        }
        println!("measured: gradients of encoders in {dtype:?} are off by {:.2e} at most, of {}", largest.0, largest.1);
    }
}

/// A batch of the engine has texts with an adapter and texts without one, and is warmed up for both.
#[test]
fn the_engine_of_an_encoder_gives_each_text_the_vector_of_its_adapter() {
    for (family, adapter) in [("bert", "peft"), ("mpnet", "peft"), ("modernbert", "peft"), ("nomic_bert", "peft_fused")]
    {
        let (base, own) = (folder(&path(family)), folder(&path(family)).join(adapter));
        let model = Arc::new(load_as(&base, Dtype::F32));
        let engine = EncoderEngine::start(model.clone(), &EngineLimits::default(), &Arc::default()).unwrap();
        let served: AdapterLease = Arc::new(model.decoder.served(&adapter_of(&own, &model)).unwrap());
        let ids: Vec<Vec<u32>> = texts(&base, &model).into_iter().map(|text| text.ids).collect();
        let request = |adapter: Option<&AdapterLease>| {
            engine.embed(EmbedRequest::of_texts("org".into(), ids.clone(), adapter.cloned()))
        };
        let both = async { futures::join!(request(None), request(Some(&served))) };
        let (plain, adapted) = futures::executor::block_on(both);
        for (found, place) in [(plain, &base), (adapted, &own)] {
            let expected = reference(place).tensor("vectors").to_vec2::<f32>().unwrap();
            let found = found.unwrap();
            assert_eq!(found.len(), expected.len());
            for (index, (own, expected)) in found.iter().zip(&expected).enumerate() {
                let difference = max_difference(own, expected);
                assert!(difference <= 1e-5, "{family}, text {index} of {}: {difference}", place.display());
            }
        }
    }
}
