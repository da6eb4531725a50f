//! Mixtures of experts: what the comparisons with transformers in the other files cannot tell apart.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::Path;

use attune::model::ModelConfig;
use attune::model::decoder::{BaseAlone, Decoder, Experts};
use attune::model::kernels::Kernels;
use attune::model::linear::Storage;
use attune::model::weights::Weights;
use candle_core::{Device, Tensor};

use crate::fixtures::{EXPERT_FAMILIES, floats, folder, load, load_as, relative_difference};

/// Returns rows of about 1, the same in every run.
fn rows(count: usize, width: usize) -> Tensor {
    let values = (0..count * width).map(|i| ((i * 7919 + 13) as f32 * 0.618).sin() * 1.4).collect::<Vec<_>>();
    Tensor::from_vec(values, (count, width), &Device::Cpu).unwrap()
}

fn experts(decoder: &Decoder) -> impl Iterator<Item = &Experts> {
    decoder.blocks.iter().map(|block| block.experts().expect("every block has experts"))
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    floats(tensor).into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_row_alone_has_the_bits_that_it_has_among_others() {
    for family in EXPERT_FAMILIES {
        let (config, decoder) = load(family, &Device::Cpu);
        for experts in experts(&decoder) {
            let x = rows(37, config.hidden_size);
            let together = experts.forward(&x, &BaseAlone).unwrap();
            for row in 0..37 {
                let alone = experts.forward(&x.narrow(0, row, 1).unwrap(), &BaseAlone).unwrap();
                assert_eq!(bits(&alone), bits(&together.narrow(0, row, 1).unwrap()), "{family}, row {row}");
            }
        }
    }
}

#[test]
fn training_computes_what_serving_does_to_the_bit() {
    for family in EXPERT_FAMILIES {
        let (config, decoder) = load(family, &Device::Cpu);
        for experts in experts(&decoder) {
            let x = rows(9, config.hidden_size);
            let activations = experts.activations(&x, &BaseAlone).unwrap();
            let of_training = experts.output(&activations, &BaseAlone).unwrap();
            assert_eq!(bits(&of_training), bits(&experts.forward(&x, &BaseAlone).unwrap()), "{family}");
        }
    }
}

#[test]
fn experts_without_rows_and_experts_with_all_rows_are_no_special_cases() {
    let (config, decoder) = load("qwen3_moe", &Device::Cpu);
    let experts = experts(&decoder).next().unwrap();
    let one = rows(1, config.hidden_size);
    let same = Tensor::cat(&vec![one.clone(); 20], 0).unwrap();
    let routing = experts.route(&same).unwrap();
    assert_eq!(routing.groups.len(), routing.chosen, "all rows go to the same experts");
    assert!(routing.groups.iter().all(|group| group.rows.len() == 20));
    let together = experts.forward(&same, &BaseAlone).unwrap();
    for row in 0..20 {
        assert_eq!(bits(&together.narrow(0, row, 1).unwrap()), bits(&experts.forward(&one, &BaseAlone).unwrap()));
    }
}

/// Loads a fixture whose tensors were changed.
fn changed(
    family: &str,
    change: impl Fn(&mut HashMap<String, Tensor>, &ModelConfig),
) -> attune::model::Result<Decoder> {
    let target = tempfile::tempdir().unwrap();
    let config = ModelConfig::read(&folder(family)).unwrap();
    let mut tensors = candle_core::safetensors::load(folder(family).join("model.safetensors"), &Device::Cpu).unwrap();
    change(&mut tensors, &config);
    candle_core::safetensors::save(&tensors, target.path().join("model.safetensors")).unwrap();
    loaded(target.path(), &config)
}

fn loaded(folder: &Path, config: &ModelConfig) -> attune::model::Result<Decoder> {
    let weights = Weights::open(folder, &Device::Cpu)?;
    Decoder::load_on(config, &weights, &Storage::default(), &Kernels::Cpu)
}

/// Puts the layers of all experts into one tensor each, as transformers 5 holds them.
fn stack(tensors: &mut HashMap<String, Tensor>, config: &ModelConfig, names: [&str; 4]) {
    let [place, gate, up, down] = names;
    let count = config.experts.unwrap().count;
    for layer in 0..config.num_hidden_layers {
        let block = format!("model.layers.{layer}");
        let mut take = |expert: usize, name: &str| {
            tensors.remove(&format!("{block}.{place}.experts.{expert}.{name}.weight")).unwrap()
        };
        let halves = |expert: usize, take: &mut dyn FnMut(usize, &str) -> Tensor| {
            Tensor::cat(&[take(expert, gate), take(expert, up)], 0).unwrap()
        };
        let gate_up: Vec<Tensor> = (0..count).map(|expert| halves(expert, &mut take)).collect();
        let down: Vec<Tensor> = (0..count).map(|expert| take(expert, down)).collect();
        let router = tensors.remove(&format!("{block}.{place}.gate.weight")).unwrap();
        tensors.insert(format!("{block}.mlp.gate.weight"), router);
        tensors.insert(format!("{block}.mlp.experts.gate_up_proj"), Tensor::stack(&gate_up, 0).unwrap());
        tensors.insert(format!("{block}.mlp.experts.down_proj"), Tensor::stack(&down, 0).unwrap());
    }
}

#[test]
fn experts_in_one_tensor_are_those_in_many() {
    let qwen = ["mlp", "gate_proj", "up_proj", "down_proj"];
    for (family, names) in [("qwen3_moe", qwen), ("olmoe", qwen), ("mixtral", ["block_sparse_moe", "w1", "w3", "w2"])] {
        let (config, many) = load(family, &Device::Cpu);
        let one = changed(family, |tensors, config| stack(tensors, config, names)).unwrap();
        let x = rows(11, config.hidden_size);
        for (many, one) in experts(&many).zip(experts(&one)) {
            assert_eq!(
                bits(&many.forward(&x, &BaseAlone).unwrap()),
                bits(&one.forward(&x, &BaseAlone).unwrap()),
                "{family}"
            );
        }
    }
}

#[test]
fn a_missing_expert_is_named() {
    let error = changed("olmoe", |tensors, _| {
        tensors.remove("model.layers.1.mlp.experts.4.up_proj.weight").unwrap();
    });
    let said = error.expect_err("refused").to_string();
    assert!(said.contains("`model.layers.1.mlp.experts.4.up_proj.weight` is missing"), "{said}");
}

#[test]
fn experts_in_eight_bits_are_close_and_small() {
    let storage = Storage { quantize: Some("q8_0".into()), ..Storage::default() };
    for family in ["mixtral", "gpt_oss"] {
        let (config, exact) = load(family, &Device::Cpu);
        let (_, small) = load_as(family, &Device::Cpu, &storage);
        assert!(small.weight_bytes() < exact.weight_bytes() / 2, "{family}");
        let x = rows(11, config.hidden_size);
        for (exact, small) in experts(&exact).zip(experts(&small)) {
            assert_eq!(exact.route(&x).unwrap(), small.route(&x).unwrap(), "{family}: routers stay in f32");
            let difference = relative_difference(
                &floats(&small.forward(&x, &BaseAlone).unwrap()),
                &floats(&exact.forward(&x, &BaseAlone).unwrap()),
            );
            // The rounding of weights to 8 bits, in two layers.
            assert!(difference > 1e-4 && difference < 3e-2, "{family}: {difference}");
        }
    }
}
