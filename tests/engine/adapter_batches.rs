//! Many adapters in one step: the kernel's sums equal those of plain loops, a row has the same bits as alone, and an
//! adapter beside its base equals the base with the adapter merged into it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
// A GPU promises close numbers, not equal bits; `model.rs` has its tests.
#![cfg(not(feature = "cuda"))]

use std::ops::Range;
use std::sync::Arc;

use crate::fixtures::{
    FAMILIES, Reference, TRAINED_FAMILIES, add_to_weight, floats, load, load_as, max_difference, one_sequence,
};
use attune::engine::EngineLimits;
use attune::engine::native::NativeEngine;
use attune::engine::{Backend as _, EmbedRequest};
use attune::model::ModelConfig;
use attune::model::decoder::{Decoder, SequenceRows};
use attune::model::kernels::{LoraRows, cpu};
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::linear::Dtype;
use attune::model::linear::Storage;
use attune::model::lora::{Adapter, AdapterLease, LoraLayer, LoraPair, Site};
use attune::model::rope::RopeTable;
use attune::train::backward::hidden_states;
use candle_core::{DType, Device, Tensor};
use futures::executor::block_on;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const CPU: Device = Device::Cpu;
/// Ranks that fill no lane, one lane, some lanes in part, and many lanes.
const RANKS: [usize; 10] = [1, 2, 3, 7, 8, 9, 12, 33, 64, 256];

fn random(random: &mut ChaCha8Rng, shape: (usize, usize), most: f32) -> Tensor {
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| random.random_range(-most..most)).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    floats(tensor).into_iter().map(f32::to_bits).collect()
}

/// Computes `y + scale · B(A x)` of one row, by the definition, with the matrices' own rounding.
fn naive(y: &[f32], x: &[f32], pair: &LoraPair) -> Vec<f64> {
    let wide = |matrix: &Tensor| matrix.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    let dot = |a: &[f32], b: &[f64]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum::<f64>();
    let x: Vec<f64> = x.iter().map(|value| f64::from(*value)).collect();
    let shrunk: Vec<f64> = wide(&pair.a).iter().map(|row| dot(row, &x)).collect();
    let expanded = wide(&pair.b).into_iter().map(|row| f64::from(pair.scale) * dot(&row, &shrunk));
    y.iter().zip(expanded).map(|(y, more)| f64::from(*y) + more).collect()
}

#[test]
fn adapters_of_every_rank_and_precision_add_what_a_plain_loop_adds() {
    let mut seed = ChaCha8Rng::seed_from_u64(1);
    for precision in [DType::F32, DType::BF16] {
        for (input, output) in [(77, 93), (64, 40), (5, 1)] {
            // Groups of one row, many rows and no row, with rows of the base before, between and behind them.
            let mut groups: Vec<(Range<usize>, usize)> = Vec::new();
            let mut end = 1;
            for (index, rank) in RANKS.into_iter().enumerate() {
                let start = end + index % 2;
                end = start + [1, 0, 33, 4][index % 4];
                groups.push((start..end, rank));
            }
            let rows = end + 2;
            let (x, y) = (random(&mut seed, (rows, input), 1.0), random(&mut seed, (rows, output), 1.0));
            let pairs: Vec<LoraPair> = RANKS
                .iter()
                .map(|rank| LoraPair {
                    a: random(&mut seed, (*rank, input), 1.0).to_dtype(precision).unwrap(),
                    b: random(&mut seed, (output, *rank), 1.0).to_dtype(precision).unwrap(),
                    scale: 0.25,
                })
                .collect();
            let tasks: Vec<_> = groups
                .iter()
                .zip(&pairs)
                .map(|((rows, _), pair)| LoraRows { rows: rows.clone(), output: 0, pair })
                .collect();
            let ours = [y.copy().unwrap()];
            cpu::lora::add(&ours, &x, &tasks).unwrap();
            let (before, after) = (y.to_vec2::<f32>().unwrap(), ours[0].to_vec2::<f32>().unwrap());
            let x = x.to_vec2::<f32>().unwrap();
            for row in 0..rows {
                let Some(place) = groups.iter().position(|(rows, _)| rows.contains(&row)) else {
                    assert_eq!(before[row], after[row], "row {row} has no adapter");
                    continue;
                };
                for (value, exact) in after[row].iter().zip(naive(&before[row], &x[row], &pairs[place])) {
                    let difference = (f64::from(*value) - exact).abs();
                    assert!(difference < 1e-5 * exact.abs().max(10.0), "row {row}, {}: {difference:e}", RANKS[place]);
                }
            }
        }
    }
}

/// Creates an adapter whose layers have the ranks returned by `rank`; `None` leaves a layer out.
fn adapter(config: &ModelConfig, id: &str, rank: impl Fn(usize, Site) -> Option<usize>) -> Adapter {
    let mut seed = ChaCha8Rng::seed_from_u64(id.bytes().map(u64::from).sum());
    let mut layers = vec![LoraLayer::default(); config.num_hidden_layers];
    for (index, layer) in layers.iter_mut().enumerate() {
        for site in config.sites_of(index) {
            let Some(rank) = rank(index, site) else { continue };
            let (output, input) = site.shape(config);
            let (a, b) = (random(&mut seed, (rank, input), 0.3), random(&mut seed, (output, rank), 0.3));
            layer.set(site, LoraPair { a, b, scale: 0.5 });
        }
    }
    Adapter::new(id.into(), layers)
}

/// A sequence with its number of rows in each step: 0, 1 as for an answer, or more for a piece of a prompt.
struct Request<'a> {
    adapter: Option<&'a Adapter>,
    rows: &'static [usize],
}

/// Returns the bits of the logits of each request's rows, all requests in the same steps.
fn logits(decoder: &Decoder, config: &ModelConfig, ids: &[u32], requests: &[&Request<'_>]) -> Vec<Vec<u32>> {
    const BLOCKS: usize = 4;
    let cache = KvCache::new(config, BLOCKS * requests.len(), DType::F32, &CPU).unwrap();
    // Out of order, and no two neighbours of one sequence.
    let blocks: Vec<Vec<u32>> = (0..requests.len())
        .map(|request| (0..BLOCKS).rev().map(|block| (block * requests.len() + request) as u32).collect())
        .collect();
    let mut starts = vec![0; requests.len()];
    let mut seen = vec![Vec::new(); requests.len()];
    for step in 0..requests[0].rows.len() {
        let (mut tokens, mut sequences, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for (index, request) in requests.iter().enumerate() {
            let (start, count) = (starts[index], request.rows[step]);
            if count == 0 {
                continue;
            }
            let rows = tokens.len()..tokens.len() + count;
            tokens.extend_from_slice(&ids[start..start + count]);
            sequences.push(SequenceRows {
                rows,
                start,
                blocks: &blocks[index],
                adapter: request.adapter,
                rope: RopeTable::Short,
            });
            owners.push(index);
            starts[index] += count;
            assert!(starts[index] <= BLOCKS * BLOCK_TOKENS);
        }
        if sequences.is_empty() {
            continue;
        }
        let hidden = decoder.step(&tokens, &sequences, &cache).unwrap();
        let logits = decoder.logits(&hidden).unwrap();
        for (sequence, owner) in sequences.iter().zip(owners) {
            let own = logits.narrow(0, sequence.rows.start, sequence.rows.len()).unwrap();
            seen[owner].extend(bits(&own));
        }
    }
    seen
}

#[test]
fn a_row_has_the_bits_that_it_has_alone_whatever_is_in_the_batch() {
    let held = |quantize: Option<&str>, dtype| Storage { dtype: Some(dtype), quantize: quantize.map(Into::into) };
    let storages = [held(None, Dtype::F32), held(None, Dtype::Bf16), held(Some("q8_0"), Dtype::F32)];
    for family in FAMILIES {
        let ids: Vec<u32> = Reference::read(family, "reference.safetensors").ids("input_ids");
        let ids: Vec<u32> = ids.into_iter().cycle().take(64).collect();
        for storage in &storages {
            let (config, decoder) = load_as(family, &CPU, storage);
            let one = adapter(&config, "one", |_, _| Some(1));
            let odd = adapter(&config, "odd", |layer, site| Some(3 + 2 * layer + site as usize));
            let half = adapter(&config, "half", |_, _| Some(12)).for_serving(DType::BF16).unwrap();
            let gaps =
                adapter(&config, "gaps", |layer, site| (layer != 1 && (site as usize).is_multiple_of(2)).then_some(20));
            let nothing = adapter(&config, "nothing", |_, _| None);
            let requests = [
                Request { adapter: None, rows: &[13, 1, 1, 1] },
                Request { adapter: Some(&one), rows: &[1, 1, 1, 1] },
                Request { adapter: Some(&odd), rows: &[7, 0, 30, 1] },
                Request { adapter: None, rows: &[0, 40, 1, 5] },
                Request { adapter: Some(&half), rows: &[20, 1, 17, 2] },
                Request { adapter: Some(&odd), rows: &[1, 33, 0, 1] },
                Request { adapter: Some(&gaps), rows: &[3, 1, 1, 9] },
                Request { adapter: Some(&nothing), rows: &[13, 1, 1, 1] },
                Request { adapter: None, rows: &[1, 1, 0, 60] },
            ];
            let all: Vec<_> = requests.iter().collect();
            let together = logits(&decoder, &config, &ids, &all);
            for (index, request) in requests.iter().enumerate() {
                let alone = logits(&decoder, &config, &ids, &[request]);
                assert!(together[index] == alone[0], "{family}, {storage:?}: request {index} differs");
            }
            // The base's rows without any adapter in the batch, and an adapter that changes nothing.
            let of_base: Vec<usize> = (0..requests.len()).filter(|index| requests[*index].adapter.is_none()).collect();
            let base_only: Vec<_> = of_base.iter().map(|index| &requests[*index]).collect();
            for (index, base) in of_base.iter().zip(logits(&decoder, &config, &ids, &base_only)) {
                assert!(together[*index] == base, "{family}, {storage:?}: base request {index} is changed by adapters");
            }
            assert!(together[0] == together[7], "{family}: an adapter without layers changes the base");
            assert!(together[0][..config.vocab_size] != together[6][..config.vocab_size], "{family}: no effect");
            // The order of the rows does not matter either.
            let backwards: Vec<_> = requests.iter().rev().collect();
            let reordered = logits(&decoder, &config, &ids, &backwards);
            assert!(together.iter().eq(reordered.iter().rev()), "{family}, {storage:?}: the order of the rows counts");
        }
    }
}

/// Replaces each W that the adapter changes by W + scale · B A.
fn merge(weights: &mut std::collections::HashMap<String, Tensor>, config: &ModelConfig, adapter: &Adapter) {
    for (index, layer) in adapter.layers.iter().enumerate() {
        for site in Site::ALL {
            let Some(LoraPair { a, b, scale }) = layer.get(site) else { continue };
            let added = (b.matmul(a).unwrap() * f64::from(*scale)).unwrap();
            assert_eq!(added.dtype(), DType::F32);
            add_to_weight(weights, config, (index, site), &added);
        }
    }
}

#[test]
fn an_adapter_beside_its_base_is_the_base_with_the_adapter_merged_into_it() {
    // In f32, for logits of size 1 to 10; PEFT's own logits are matched as closely.
    const TOLERANCE: f32 = 1e-4;
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family, &CPU);
        let peft = Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &CPU);
        let peft = Adapter::new("peft".into(), peft.layers);
        let reference = Reference::read(family, "peft/reference.safetensors");
        let tokens = reference.ids("input_ids");
        let odd = adapter(&config, "odd", |layer, site| (site as usize != layer).then_some(5 + site as usize));
        for (adapter, expected) in [(peft, Some(reference.floats("logits"))), (odd, None)] {
            let merged = crate::fixtures::whole_model_of(family, |weights, config| merge(weights, config, &adapter));
            let logits = |decoder: &Decoder, adapter| {
                let hidden = hidden_states(decoder, adapter, &one_sequence(&tokens)).unwrap();
                floats(&decoder.logits(&hidden).unwrap())
            };
            let (beside, inside) = (logits(&decoder, Some(&adapter)), logits(&merged.decoder, None));
            let difference = max_difference(&beside, &inside);
            assert!(difference <= TOLERANCE, "{family}: logits differ by {difference:e}");
            assert!(max_difference(&inside, &logits(&decoder, None)) > 100.0 * TOLERANCE, "{family}: no effect");
            if let Some(expected) = expected {
                let difference = max_difference(&inside, &expected);
                assert!(difference <= TOLERANCE, "{family}: merged and PEFT differ by {difference:e}");
            }
            let start = |model| NativeEngine::start(model, &EngineLimits::default(), Arc::default()).unwrap();
            let (base, merged) = (start(crate::fixtures::whole_model(family)), start(merged));
            let lease: AdapterLease = Arc::new(adapter);
            let inputs = vec![tokens.clone(), tokens[..3].to_vec(), tokens[5..6].to_vec()];
            let embed = |engine: &NativeEngine, adapter: Option<&AdapterLease>| {
                let (inputs, adapter) = (inputs.clone(), adapter.cloned());
                block_on(engine.embed(EmbedRequest::of_texts("org".into(), inputs, adapter))).unwrap()
            };
            for (beside, inside) in embed(&base, Some(&lease)).iter().zip(embed(&merged, None)) {
                let cosine: f64 = beside.iter().zip(&inside).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!(cosine >= 0.99999, "{family}: the cosine of the two embeddings is {cosine}");
            }
        }
    }
}
