//! Merged models whose experts an adapter changes: from each form that checkpoints have experts in, into each.

use std::path::Path;

use attune::model::ModelConfig;
use attune::model::linear::{Dtype, Storage};
use attune::model::lora::{Adapter, LoraPair, Site};
use attune::model::merge::{self, Base, WeightType};
use candle_core::{Device, Tensor};

use crate::export::logits;
use crate::export_forms::{TOLERANCE, adapter_of, decoder, said, with_texts};
use crate::fixtures::{EXPERT_FAMILIES, Reference, folder, load_as, max_difference};
use crate::kernels;

/// Writes the experts of the model in `base` as one tensor for all of them, as transformers holds them in memory.
fn stack_experts(base: &Path) {
    let file = base.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let config = ModelConfig::read(base).unwrap();
    let experts = config.experts.as_ref().unwrap();
    let (prefix, names) = config.single_expert_names();
    for block in 0..config.num_hidden_layers {
        let mut take = |expert: usize, name: &str| {
            tensors.remove(&format!("model.layers.{block}.{prefix}.{expert}.{name}.weight")).unwrap()
        };
        let mut both = Vec::new();
        let mut down = Vec::new();
        for expert in 0..experts.count {
            both.push(Tensor::cat(&[take(expert, names[0]), take(expert, names[1])], 0).unwrap());
            down.push(take(expert, names[2]));
        }
        for (name, layers) in [("gate_up_proj", both), ("down_proj", down)] {
            let stack = Tensor::stack(&layers, 0).unwrap();
            tensors.insert(format!("model.layers.{block}.mlp.experts.{name}"), stack);
        }
    }
    candle_core::safetensors::save(&tensors, &file).unwrap();
}

#[test]
fn changes_of_experts_are_merged_from_every_form_into_both() {
    let files = tempfile::tempdir().unwrap();
    for family in EXPERT_FAMILIES {
        let original = said(family, &files.path().join(family));
        let config = ModelConfig::read(&original).unwrap();
        let read = |file: &str| std::fs::read(folder(family).join("peft_experts").join(file)).unwrap();
        let (settings, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
        let adapter = attune::adapters::peft::read(&settings, &weights, &config, &Device::Cpu).unwrap();
        let nothing = Adapter::zero(&config).unwrap();
        let file = files.path().join(format!("{family}.gguf"));
        merge::write_gguf(&Base::new(&original), &nothing, &file, None).unwrap();
        let mut bases = vec![original.clone(), file];
        if family != "gpt_oss" {
            let stacked = said(family, &files.path().join(format!("{family}-stacked")));
            stack_experts(&stacked);
            bases.push(stacked);
        }
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let expected = logits(&decoder(&original), Some(&adapter), &tokens);
        assert!(max_difference(&logits(&decoder(&original), None, &tokens), &expected) > 0.1, "{family}");
        for (number, base) in bases.iter().enumerate() {
            for form in ["folder", "gguf"] {
                let output = files.path().join(format!("{family}-{number}.{form}"));
                let base = Base::new(base);
                if form == "folder" {
                    merge::write_folder(&base, &adapter, &output, None, merge::FILE_BYTES).unwrap();
                } else {
                    merge::write_gguf(&base, &adapter, &output, None).unwrap();
                }
                let difference = max_difference(&logits(&decoder(&output), None, &tokens), &expected);
                assert!(difference <= TOLERANCE, "{family} {number} {form}: logits differ by {difference:e}");
            }
        }
    }
}

#[test]
fn experts_in_mxfp4_are_merged_as_the_numbers_that_they_stand_for() {
    let files = tempfile::tempdir().unwrap();
    let family = "quantized/model_mxfp4";
    let base = with_texts(family, &files.path().join("base"));
    let in_f32 = Storage { dtype: Some(Dtype::F32), quantize: None };
    let (config, original) = load_as(family, kernels().device(), &in_f32);
    let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
    let mut adapter = adapter_of(&config);
    let experts = config.experts.as_ref().unwrap();
    let (hidden, width) = (config.hidden_size, experts.intermediate_size);
    let numbers = |rows: usize, columns: usize, seed: usize| {
        let value = |index: usize| ((index * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5;
        Tensor::from_vec((0..rows * columns).map(value).collect::<Vec<_>>(), (rows, columns), &Device::Cpu).unwrap()
    };
    for (block, layer) in adapter.layers.iter_mut().enumerate() {
        for expert in 0..experts.count {
            for (number, site) in [Site::Gate, Site::Up, Site::Down].into_iter().enumerate() {
                let (output, input) = if site == Site::Down { (hidden, width) } else { (width, hidden) };
                let seed = (block * experts.count + expert) * 3 + number;
                let pair = LoraPair { a: numbers(2, input, seed), b: numbers(output, 2, seed + 500), scale: 0.25 };
                layer.set_expert(expert, site, pair).unwrap();
            }
        }
    }
    let expected = logits(&original, Some(&adapter), &tokens);
    for form in ["folder", "gguf"] {
        let output = files.path().join(format!("out.{form}"));
        if form == "folder" {
            merge::write_folder(&Base::new(&base), &adapter, &output, Some(WeightType::F32), merge::FILE_BYTES)
                .unwrap();
        } else {
            merge::write_gguf(&Base::new(&base), &adapter, &output, Some(WeightType::F32)).unwrap();
        }
        let difference = max_difference(&logits(&decoder(&output), None, &tokens), &expected);
        assert!(difference <= TOLERANCE, "{form}: logits differ by {difference:e}");
    }
}
