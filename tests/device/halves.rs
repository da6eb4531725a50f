//! Models in bf16 and f16, as a GPU holds them: on a GPU in a build with the feature `cuda`, else in the emulator.

use attune::model::ModelConfig;
use attune::model::decoder::{Decoder, SequenceRows};
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::linear::Dtype;
use attune::model::linear::Storage;
use attune::model::weights::Weights;
use attune::train::backward::{self, hidden_states};
use candle_core::{DType, Device, Tensor};

use crate::fixtures::{
    FAMILIES, Reference, TRAINED_FAMILIES, bears_rounding, device, folder, load_on, one_sequence, relative_difference,
    tensor_name,
};
use crate::kernels;

/// A type of two bytes, with its allowed error relative to that of bf16.
struct Half {
    storage: Storage,
    dtype: DType,
    share: f64,
}

fn halves() -> [Half; 2] {
    [(Dtype::Bf16, DType::BF16, 1.0), (Dtype::F16, DType::F16, 0.25)].map(|(held, dtype, share)| Half {
        storage: Storage { dtype: Some(held), quantize: None },
        dtype,
        share,
    })
}

/// Returns each of `families` with the types that it takes: Gemma's activations overflow in f16, which is refused.
/// Those with experts have a test of their own.
fn with_halves(families: &[&'static str]) -> Vec<(&'static str, Half)> {
    let mut pairs = Vec::new();
    for family in families.iter().filter(|family| bears_rounding(family)) {
        let folder = folder(family);
        let config = ModelConfig::read(&folder).unwrap();
        for half in halves() {
            if config.overflows_f16 && half.dtype == DType::F16 {
                let weights = Weights::open(&folder, &device()).unwrap();
                let error = Decoder::load_on(&config, &weights, &half.storage, &kernels()).unwrap_err().to_string();
                assert!(error.contains("overflow in f16"), "{family}: {error}");
            } else {
                pairs.push((*family, half));
            }
        }
    }
    pairs
}

fn wide(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest relative errors of transformers and PEFT in bf16 on these models of random weights.
const LOGITS: f64 = 5.1e-2;
const GRADIENTS: f64 = 0.15;

/// Prints the errors of a test's values in percent, from the best family to the worst.
fn say(what: &str, dtype: DType, differences: &[(DType, f64)]) {
    let of_type = differences.iter().filter(|(of, _)| *of == dtype).map(|(_, difference)| 100.0 * difference);
    let least = of_type.clone().fold(f64::INFINITY, f64::min);
    println!("measured: {what} in {dtype:?} are off by {least:.1} to {:.1} %", of_type.fold(0.0, f64::max));
}

#[test]
fn logits_in_two_bytes_are_near_those_of_transformers_in_training_and_in_serving() {
    let mut differences = Vec::new();
    for (family, half) in with_halves(&FAMILIES) {
        let Half { storage, dtype, share } = half;
        let (config, decoder) = load_on(family, &kernels(), &storage);
        let reference = Reference::read(family, "reference.safetensors");
        let tokens = reference.ids("input_ids");
        let expected = reference.floats("logits");
        let hidden = hidden_states(&decoder, None, &one_sequence(&tokens)).unwrap();
        assert_eq!(hidden.dtype(), dtype);
        let difference = relative_difference(&wide(&decoder.logits(&hidden).unwrap()), &expected);
        assert!(difference <= LOGITS * share, "{family}, {dtype:?}, training: logits differ by {difference:e}");
        differences.push((dtype, difference));

        let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).rev().collect();
        let cache = KvCache::new(&config, blocks.len(), dtype, &device()).unwrap();
        let mut hidden = Vec::new();
        for rows in [0..7, 7..8, 8..28, 28..tokens.len()] {
            let sequence = SequenceRows {
                rows: 0..rows.len(),
                start: rows.start,
                blocks: &blocks,
                adapter: None,
                rope: decoder.rope_table(tokens.len()),
            };
            hidden.push(decoder.step(&tokens[rows], &[sequence], &cache).unwrap());
        }
        let logits = decoder.logits(&Tensor::cat(&hidden, 0).unwrap()).unwrap();
        let difference = relative_difference(&wide(&logits), &expected);
        assert!(difference <= LOGITS * share, "{family}, {dtype:?}, serving: logits differ by {difference:e}");
        differences.push((dtype, difference));
    }
    for half in halves() {
        say("logits", half.dtype, &differences);
    }
}

#[test]
fn gradients_in_two_bytes_are_near_those_of_peft() {
    let mut differences = Vec::new();
    for (family, half) in with_halves(&TRAINED_FAMILIES) {
        let Half { storage, dtype, share } = half;
        let (config, decoder) = load_on(family, &kernels(), &storage);
        let adapter = Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
        let reference = Reference::read(family, "peft/reference.safetensors");
        let batch = reference.batch();
        let (report, gradients) =
            backward::loss_and_gradients(&decoder, &adapter, &batch, batch.targets.len() as f64).unwrap();
        let (loss, expected) = (report.loss_sum / report.weight_sum, f64::from(reference.scalar("loss")));
        assert!((loss - expected).abs() / expected <= 1e-2, "{family}, {dtype:?}: loss {loss} instead of {expected}");
        for (index, layer) in gradients.iter().enumerate() {
            for module in config.modules_of(index) {
                let pair = layer.whole_gradient(module).unwrap().unwrap();
                let name = tensor_name(index, module);
                for (tensor, part) in [(&pair.a, "lora_A"), (&pair.b, "lora_B")] {
                    assert_eq!(tensor.dtype(), DType::F32);
                    let expected = reference.floats(&format!("grad.{name}.{part}.weight"));
                    let difference = relative_difference(&wide(tensor), &expected);
                    assert!(
                        difference <= GRADIENTS * share,
                        "{family}, {dtype:?}: gradient of {name}.{part} differs by {difference:e}"
                    );
                    differences.push((dtype, difference));
                }
            }
        }
    }
    for half in halves() {
        say("gradients", half.dtype, &differences);
    }
}

#[test]
fn adapters_served_in_two_bytes_are_near_those_of_peft() {
    for (family, half) in with_halves(&TRAINED_FAMILIES) {
        let Half { storage, dtype, share } = half;
        let (config, decoder) = load_on(family, &kernels(), &storage);
        let adapter = Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
        let adapter = decoder.served(&adapter).unwrap();
        let reference = Reference::read(family, "peft/reference.safetensors");
        let tokens = reference.ids("input_ids");
        let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
        let cache = KvCache::new(&config, blocks.len(), dtype, &device()).unwrap();
        let sequence = SequenceRows {
            rows: 0..tokens.len(),
            start: 0,
            blocks: &blocks,
            adapter: Some(&adapter),
            rope: decoder.rope_table(tokens.len()),
        };
        let hidden = decoder.step(&tokens, &[sequence], &cache).unwrap();
        let difference = relative_difference(&wide(&decoder.logits(&hidden).unwrap()), &reference.floats("logits"));
        assert!(difference <= LOGITS * share, "{family}, {dtype:?}: logits differ by {difference:e}");
    }
}
