//! Mixtures of experts as a GPU computes them, in each type of activations, beside the CPU's in f32. Gradients and whole
//! models in f32 are compared in `model/decoder.rs`.

use attune::adapters::peft;
use attune::model::decoder::{BaseAlone, SequenceRows};
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::linear::{Dtype, Storage};
use attune::model::rope::RopeTable;
use candle_core::{DType, Device, Tensor};

use crate::fixtures::{
    EXPERT_FAMILIES, Reference, device, floats, folder, load, load_on, max_difference, relative_difference,
};
use crate::kernels;

const ROWS: usize = 40;

#[test]
fn experts_compute_what_the_cpu_does() {
    for family in EXPERT_FAMILIES {
        let (config, exact) = load(family, &Device::Cpu);
        let values = (0..ROWS * config.hidden_size).map(|i| ((i * 7919 + 13) as f32 * 0.618).sin() * 1.4);
        let x = Tensor::from_vec(values.collect::<Vec<_>>(), (ROWS, config.hidden_size), &Device::Cpu).unwrap();
        // Activations are rounded between the layers of an expert.
        for (held, bound) in [(Dtype::F32, 1e-5), (Dtype::Bf16, 3e-2), (Dtype::F16, 5e-3)] {
            let (_, decoder) = load_on(family, &kernels(), &Storage { dtype: Some(held), quantize: None });
            let own_x = x.to_device(&device()).unwrap().to_dtype(decoder.activation_dtype()).unwrap();
            for (exact, experts) in exact.blocks.iter().zip(&decoder.blocks) {
                let (exact, experts) = (exact.experts().unwrap(), experts.experts().unwrap());
                let (wanted, chosen) = (exact.route(&x).unwrap(), experts.route(&own_x).unwrap());
                let (wanted_y, y) =
                    (exact.forward(&x, &BaseAlone).unwrap(), experts.forward(&own_x, &BaseAlone).unwrap());
                let wide = |row: usize, y: &Tensor| -> Vec<f32> {
                    let row = y.narrow(0, row, 1).unwrap().to_dtype(DType::F32).unwrap();
                    row.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
                };
                let same = |row: &usize| wanted.indices[wanted.choices(*row)] == chosen.indices[chosen.choices(*row)];
                let rows: Vec<usize> = (0..ROWS).filter(same).collect();
                assert!(rows.len() > ROWS / 2, "{family}, {held:?}: {} rows choose alike", rows.len());
                let all = |y: &Tensor| rows.iter().flat_map(|row| wide(*row, y)).collect::<Vec<f32>>();
                let difference = relative_difference(&all(&y), &all(&wanted_y));
                assert!(difference < bound, "{family}, {held:?}: {difference:e}");
            }
        }
    }
}

#[test]
fn adapters_of_experts_change_their_own_rows() {
    for family in EXPERT_FAMILIES {
        let (config, decoder) = load_on(family, &kernels(), &Storage::default());
        let read = |file: &str| std::fs::read(folder(family).join("peft_experts").join(file)).unwrap();
        let (settings, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
        let adapter = decoder.served(&peft::read(&settings, &weights, &config, &device()).unwrap()).unwrap();
        let reference = Reference::read(family, "peft_experts/reference.safetensors");
        let (tokens, base) = (reference.ids("input_ids"), Reference::read(family, "reference.safetensors"));
        let (count, blocks) = (tokens.len(), tokens.len().div_ceil(BLOCK_TOKENS));
        let cache = KvCache::new(&config, 3 * blocks, DType::F32, &device()).unwrap();
        let all: Vec<u32> = (0..3 * blocks as u32).collect();
        let sequence = |index: usize| SequenceRows {
            rows: index * count..(index + 1) * count,
            start: 0,
            blocks: &all[index * blocks..(index + 1) * blocks],
            adapter: (index != 1).then_some(&adapter),
            rope: RopeTable::Short,
        };
        let hidden = decoder.step(&tokens.repeat(3), &[0, 1, 2].map(sequence), &cache).unwrap();
        let logits = decoder.logits(&hidden).unwrap();
        for (index, expected) in [&reference, &base, &reference].into_iter().enumerate() {
            let found = floats(&logits.narrow(0, index * count, count).unwrap());
            let difference = max_difference(&found, &expected.floats("logits"));
            assert!(difference <= 1e-3, "{family}: logits of sequence {index} differ by {difference:e}");
        }
    }
}
