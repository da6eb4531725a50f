//! Measures how near each kernel comes to the limits of a GPU, at the shapes of Llama-3.1-8B: if a whole step is too
//! slow, this shows which kernel causes it. `tools/gpu-check` prints it; in the emulator tiny shapes show that it runs.

use std::time::Instant;

use attune::model::kernels::{
    Activation, AttentionForm, AttentionState, CachedStep, Dense, LogitForm, LoraRun, NewHeads, Norm, PackedRows,
    SequenceRows,
};
use attune::model::kv_cache::BLOCK_TOKENS;
use attune::model::lora::{Adapter, LoraLayer, LoraPair, Site};
use attune::model::rope::RopeTable;
use candle_core::{DType, Shape, Tensor};

use crate::fixtures::device;
use crate::kernels;

const ON_GPU: bool = cfg!(feature = "cuda");
const HIDDEN: usize = if ON_GPU { 4096 } else { 32 };
const INTERMEDIATE: usize = if ON_GPU { 14_336 } else { 48 };
const HEADS: usize = if ON_GPU { 32 } else { 2 };
const KV_HEADS: usize = if ON_GPU { 8 } else { 1 };
const HEAD_DIM: usize = if ON_GPU { 128 } else { 16 };
const VOCABULARY: usize = if ON_GPU { 128_256 } else { 40 };
const ROWS: usize = if ON_GPU { 4096 } else { 20 };
const SEQUENCES: usize = if ON_GPU { 32 } else { 3 };
const RANK: usize = 16;
const BYTES: usize = 2;

fn random(shape: impl Into<Shape>) -> Tensor {
    Tensor::randn(0.0_f32, 1.0, shape, &device()).unwrap().to_dtype(DType::BF16).unwrap()
}

/// Measures the seconds per call of `run`, which gets the number of the call; all calls are queued one behind the
/// other.
fn seconds(mut run: impl FnMut(usize)) -> f64 {
    let (warm, times) = if ON_GPU { (3, 30) } else { (0, 1) };
    (0..warm).for_each(&mut run);
    device().synchronize().unwrap();
    let began = Instant::now();
    (0..times).for_each(&mut run);
    device().synchronize().unwrap();
    began.elapsed().as_secs_f64() / times as f64
}

fn say(what: &str, seconds: f64, amount: f64, unit: &str) {
    println!("measured: {what} {:.1} µs, {:.2} {unit}", seconds * 1e6, amount / seconds / 1e12);
}

fn say_bytes(what: &str, seconds: f64, bytes: usize) {
    say(what, seconds, bytes as f64, "TB/s");
}

fn say_operations(what: &str, seconds: f64, operations: f64) {
    say(what, seconds, operations, "TFLOP/s");
}

/// Measures the baseline for everything else.
#[test]
fn copies_and_products() {
    let kernels = kernels();
    let size = if ON_GPU { 1 << 30 } else { 100 };
    let from = Tensor::zeros(size, DType::U8, &device()).unwrap();
    let took = seconds(|_| drop(from.copy().unwrap()));
    say_bytes("a copy in the GPU's memory", took, 2 * size);
    let side = if ON_GPU { 8192 } else { 8 };
    let (a, b) = (random((side, side)), random((side, side)));
    let took = seconds(|_| drop(kernels.linear(&a, &b).unwrap()));
    say_operations("a square product", took, 2.0 * (side as f64).powi(3));
    for rows in [SEQUENCES, ROWS] {
        let (x, w) = (random((rows, HIDDEN)), (0..4).map(|_| random((INTERMEDIATE, HIDDEN))).collect::<Vec<_>>());
        let took = seconds(|time| drop(kernels.linear(&x, &w[time % w.len()]).unwrap()));
        say_operations(&format!("{rows} rows with a layer"), took, 2.0 * (rows * HIDDEN * INTERMEDIATE) as f64);
        say_bytes("its weights alone", took, BYTES * HIDDEN * INTERMEDIATE);
    }
}

/// Measures products of few rows, with weights that no cache holds.
#[test]
fn few_rows() {
    let kernels = kernels();
    let gpu = kernels.gpu().unwrap();
    let weights: Vec<Tensor> = (0..8).map(|_| random((INTERMEDIATE, HIDDEN))).collect();
    let norm = Tensor::ones(HIDDEN, DType::F32, &device()).unwrap();
    let dense = |index: usize| Dense { weight: &weights[index % weights.len()], bias: None, residual: None };
    for rows in [1, 4] {
        let x = random((rows, HIDDEN));
        let norm = Norm { weight: &norm, eps: 1e-5 };
        let took = seconds(|time| drop(gpu.project(&x, None, &[dense(time)]).unwrap()));
        say_bytes(&format!("{rows} rows with a layer"), took, BYTES * HIDDEN * INTERMEDIATE);
        let took = seconds(|time| {
            drop(gpu.project_gated(&x, Some(norm), [dense(2 * time), dense(2 * time + 1)], Activation::Silu).unwrap());
        });
        say_bytes("with norm, gate and activation", took, 2 * BYTES * HIDDEN * INTERMEDIATE);
    }
}

/// Measures attention of one sequence, counting only the operations on visible keys.
#[test]
fn attention_forwards_and_backwards() {
    let kernels = kernels();
    let q = random((ROWS, HEADS, HEAD_DIM));
    let (k, v) = (random((ROWS, KV_HEADS, HEAD_DIM)), random((ROWS, KV_HEADS, HEAD_DIM)));
    #[allow(clippy::single_range_in_vec_init, reason = "one sequence")]
    let sequences = [0..ROWS];
    let rows = PackedRows::new(&sequences, &kernels).unwrap();
    let operations = 2.0 * (ROWS * ROWS * HEADS * HEAD_DIM) as f64;
    let took = seconds(|_| {
        drop(kernels.packed_attention(&q, &k, &v, &rows, AttentionForm::of_heads(HEAD_DIM, None), None).unwrap());
    });
    say_operations(&format!("attention of {ROWS} rows"), took, operations);
    let (out, log_sum_exp) =
        kernels.packed_attention(&q, &k, &v, &rows, AttentionForm::of_heads(HEAD_DIM, None), None).unwrap();
    let state = AttentionState { q: &q, k: &k, v: &v, out: &out, log_sum_exp: &log_sum_exp };
    let took = seconds(|_| {
        drop(
            kernels
                .packed_attention_backward(state, &out, &rows, AttentionForm::of_heads(HEAD_DIM, None), None)
                .unwrap(),
        );
    });
    say_operations("backwards", took, 2.5 * operations);
}

/// Measures attention of sequences with one new row each, one of them alone and many.
#[test]
fn attention_over_the_cache() {
    let kernels = kernels();
    for count in [1, SEQUENCES] {
        let each = ROWS / BLOCK_TOKENS + 1;
        let slots = (each * count * BLOCK_TOKENS, KV_HEADS, HEAD_DIM);
        let caches: Vec<(Tensor, Tensor)> = (0..2).map(|_| (random(slots), random(slots))).collect();
        let q = random((count, HEADS, HEAD_DIM));
        let (k, v) = (random((count, KV_HEADS, HEAD_DIM)), random((count, KV_HEADS, HEAD_DIM)));
        let blocks: Vec<Vec<u32>> =
            (0..count).map(|one| (0..each).map(|block| (block * count + one) as u32).collect()).collect();
        let rows = |one: usize| SequenceRows {
            rows: one..one + 1,
            start: ROWS,
            blocks: &blocks[one],
            adapter: None,
            rope: RopeTable::Short,
        };
        let sequences: Vec<_> = (0..count).map(rows).collect();
        let step = CachedStep::new(&sequences, &kernels).unwrap();
        let new = NewHeads { q: &q, k: &k, v: &v, norms: None, angles: None, sinks: None };
        let took = seconds(|time| {
            let (keys, values) = &caches[time % caches.len()];
            drop(kernels.attend_new(new, keys, values, &step, AttentionForm::of_heads(HEAD_DIM, None)).unwrap());
        });
        let bytes = 2 * BYTES * count * ROWS * KV_HEADS * HEAD_DIM;
        say_bytes(&format!("attention of {count} rows over {ROWS} tokens each"), took, bytes);
    }
}

/// Measures an adapter for each of many rows, and one for the rows of a prompt, at query, key and value.
#[test]
fn adapters_of_rows_and_of_a_prompt() {
    let kernels = kernels();
    let gpu = kernels.gpu().unwrap();
    let widths = [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM];
    let adapter = || {
        let layer = |_| {
            let mut layer = LoraLayer::default();
            for (site, width) in [Site::Query, Site::Key, Site::Value].into_iter().zip(widths) {
                layer.set(site, LoraPair { a: random((RANK, HIDDEN)), b: random((width, RANK)), scale: 2.0 });
            }
            layer
        };
        Adapter::new(String::new(), (0..8).map(layer).collect())
    };
    let adapters: Vec<Adapter> = (0..SEQUENCES).map(|_| adapter()).collect();
    let matrices = BYTES * RANK * widths.map(|width| HIDDEN + width).iter().sum::<usize>();
    for (count, rows) in [(SEQUENCES, 1), (1, ROWS)] {
        let x = random((count * rows, HIDDEN));
        let outputs = widths.map(|width| random((count * rows, width)));
        let runs: Vec<LoraRun<'_>> = (0..count)
            .map(|one| LoraRun { rows: one * rows..(one + 1) * rows, pointers: adapters[one].pointers().unwrap() })
            .collect();
        let took = seconds(|time| gpu.add_lora_runs(&outputs, &x, &runs, time % 8, Site::Query).unwrap());
        let of_rows = BYTES * count * rows * widths.map(|width| HIDDEN + 2 * width).iter().sum::<usize>();
        say_bytes(&format!("{count} adapters of {rows} rows each"), took, count * matrices + of_rows);
    }
}

/// Measures the work between the products of training.
#[test]
fn norms_activations_and_the_loss() {
    let kernels = kernels();
    let (x, norm) = (random((ROWS, HIDDEN)), Tensor::ones(HIDDEN, DType::F32, &device()).unwrap());
    let bytes = BYTES * ROWS * HIDDEN;
    say_bytes("norms", seconds(|_| drop(kernels.rms_norm(&x, &norm, 1e-5).unwrap())), 2 * bytes);
    let took = seconds(|_| drop(kernels.rms_norm_backward(&x, &norm, 1e-5, &x).unwrap()));
    say_bytes("backwards", took, 3 * bytes);
    let (gate, up) = (random((ROWS, INTERMEDIATE)), random((ROWS, INTERMEDIATE)));
    let bytes = BYTES * ROWS * INTERMEDIATE;
    say_bytes("activations", seconds(|_| drop(kernels.gated(Activation::Silu, &gate, &up).unwrap())), 3 * bytes);
    let took = seconds(|_| drop(kernels.gated_backward(Activation::Silu, &gate, &up, &up).unwrap()));
    say_bytes("backwards", took, 5 * bytes);
    let rows = ROWS / 4;
    let logits = random((rows, VOCABULARY));
    let (targets, weights) = (vec![1; rows], vec![1.0; rows]);
    let took = seconds(|_| drop(kernels.cross_entropy(logits.clone(), LogitForm::PLAIN, &targets, &weights).unwrap()));
    say_bytes(&format!("the loss of {rows} rows"), took, 2 * BYTES * rows * VOCABULARY);
}
