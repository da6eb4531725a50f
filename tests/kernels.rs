//! Our CPU kernels against the same formulas in plain candle operations, and both backward passes against central
//! differences: what runs on a GPU is the latter code.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Range;

use attune::adapters::LoraPair;
use attune::model::kernels::{self, AttentionState, CachedRows, reference};
use attune::model::kv_cache::BLOCK_TOKENS;
use attune::model::rope::Angles;
use candle_core::{Device, Tensor};

const CPU: Device = Device::Cpu;

/// Values of about normal size, the same in every run.
fn random(shape: impl Into<candle_core::Shape>, seed: u64) -> Tensor {
    use rand::{Rng, SeedableRng};
    let shape = shape.into();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| random.random_range(-1.5..1.5)).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32) {
    assert_eq!(a.shape(), b.shape());
    let difference = floats(a).iter().zip(floats(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference <= tolerance, "differ by {difference:e}");
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    floats(a).iter().zip(floats(b)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
}

/// Compares `gradient` with the slope of `(f(x) · dy)` along a random direction.
#[track_caller]
fn assert_is_gradient(f: impl Fn(&Tensor) -> Tensor, x: &Tensor, dy: &Tensor, gradient: &Tensor) {
    let direction = random(x.shape(), 99);
    let step = 1e-2;
    let at = |sign: f64| dot(&f(&(x + (&direction * (sign * step)).unwrap()).unwrap()), dy);
    let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
    let expected = dot(gradient, &direction);
    let scale = slope.abs().max(1.0);
    assert!((slope - expected).abs() / scale < 5e-3, "slope {slope}, gradient along it {expected}");
}

#[test]
fn products_of_every_number_of_rows_agree() {
    let weight = random((96, 80), 1);
    for rows in [1, 2, 3, 16, 47, 48, 49, 64, 200] {
        let x = random((rows, 80), rows as u64);
        assert_close(&kernels::linear(&x, &weight).unwrap(), &reference::linear(&x, &weight).unwrap(), 1e-4);
    }
    let (a, b) = (random((33, 96), 2), random((33, 80), 3));
    assert_close(&kernels::matmul(&a, &weight).unwrap(), &a.matmul(&weight).unwrap(), 1e-4);
    assert_close(&kernels::matmul_transposed(&a, &b).unwrap(), &a.t().unwrap().matmul(&b).unwrap(), 1e-4);
}

#[test]
fn an_adapter_changes_only_its_own_rows() {
    let pair = LoraPair { a: random((4, 80), 1), b: random((96, 4), 2), scale: 0.5 };
    let (x, y) = (random((20, 80), 3), random((20, 96), 4));
    for rows in [0..20, 3..9, 19..20] {
        let ours = kernels::add_lora(y.copy().unwrap(), &x, rows.clone(), &pair).unwrap();
        let plain = reference::add_lora(y.copy().unwrap(), &x, rows.clone(), &pair).unwrap();
        assert_close(&ours, &plain, 1e-4);
        let (before, after) = (floats(&y), floats(&ours));
        for row in (0..20).filter(|row| !rows.contains(row)) {
            assert_eq!(before[row * 96..(row + 1) * 96], after[row * 96..(row + 1) * 96], "row {row}");
        }
    }
}

#[test]
fn norms_agree_and_their_backward_is_the_gradient() {
    let (x, weight, dy) = (random((300, 64), 1), random(64, 2), random((300, 64), 3));
    let forward = |x: &Tensor| kernels::rms_norm(x, &weight, 1e-5).unwrap();
    assert_close(&forward(&x), &reference::rms_norm(&x, &weight, 1e-5).unwrap(), 1e-5);
    let gradient = kernels::rms_norm_backward(&x, &weight, 1e-5, &dy).unwrap();
    assert_close(&gradient, &reference::rms_norm_backward(&x, &weight, 1e-5, &dy).unwrap(), 1e-5);
    assert_is_gradient(forward, &x, &dy, &gradient);
}

#[test]
fn rotations_agree_and_turn_back() {
    let x = random((50, 3, 16), 1);
    let angle: Vec<f32> = (0..50 * 8).map(|i| i as f32 * 0.1).collect();
    let table =
        |f: fn(f32) -> f32| Tensor::from_vec(angle.iter().map(|x| f(*x)).collect::<Vec<_>>(), (50, 8), &CPU).unwrap();
    let angles = Angles { cos: table(f32::cos), sin: table(f32::sin) };
    let rotated = kernels::rope(&x, &angles).unwrap();
    assert_close(&rotated, &reference::rope(&x, &angles, 1.0).unwrap(), 1e-6);
    assert_close(&kernels::rope_backward(&rotated, &angles).unwrap(), &x, 1e-5);
    assert_close(&reference::rope(&rotated, &angles, -1.0).unwrap(), &x, 1e-5);
}

#[test]
fn swiglu_agrees_and_its_backward_is_the_gradient() {
    let (gate, up, dy) = (random((90, 70), 1), random((90, 70), 2), random((90, 70), 3));
    assert_close(&kernels::swiglu(&gate, &up).unwrap(), &reference::swiglu(&gate, &up).unwrap(), 1e-5);
    let (dgate, dup) = kernels::swiglu_backward(&gate, &up, &dy).unwrap();
    let (plain_dgate, plain_dup) = reference::swiglu_backward(&gate, &up, &dy).unwrap();
    assert_close(&dgate, &plain_dgate, 1e-5);
    assert_close(&dup, &plain_dup, 1e-5);
    assert_is_gradient(|gate| kernels::swiglu(gate, &up).unwrap(), &gate, &dy, &dgate);
    assert_is_gradient(|up| kernels::swiglu(&gate, up).unwrap(), &up, &dy, &dup);
}

/// Lengths around the tile size, one token alone, and more than one tile.
const SEQUENCES: [Range<usize>; 5] = [0..1, 1..64, 64..129, 129..132, 132..282];

#[test]
fn packed_attention_agrees_and_its_backward_is_the_gradient() {
    for window in [None, Some(1), Some(10), Some(70)] {
        let (q, k, v) = (random((282, 4, 16), 1), random((282, 2, 16), 2), random((282, 2, 16), 3));
        let dout = random((282, 4, 16), 4);
        let forward =
            |q: &Tensor, k: &Tensor, v: &Tensor| kernels::packed_attention(q, k, v, &SEQUENCES, window).unwrap();
        let (out, sums) = forward(&q, &k, &v);
        let (plain_out, plain_sums) = reference::packed_attention(&q, &k, &v, &SEQUENCES, window).unwrap();
        assert_close(&out, &plain_out, 1e-5);
        assert_close(&sums, &plain_sums, 1e-4);
        let state = AttentionState { q: &q, k: &k, v: &v, out: &out, log_sum_exp: &sums };
        let (dq, dk, dv) = kernels::packed_attention_backward(state, &dout, &SEQUENCES, window).unwrap();
        let plain = reference::packed_attention_backward(state, &dout, &SEQUENCES, window).unwrap();
        assert_close(&dq, &plain.0, 1e-4);
        assert_close(&dk, &plain.1, 1e-4);
        assert_close(&dv, &plain.2, 1e-4);
        assert_is_gradient(|q| forward(q, &k, &v).0, &q, &dout, &dq);
        assert_is_gradient(|k| forward(&q, k, &v).0, &k, &dout, &dk);
        assert_is_gradient(|v| forward(&q, &k, v).0, &v, &dout, &dv);
    }
}

#[test]
fn attention_over_the_cache_agrees_for_decode_and_prefill_rows_together() {
    let slots = 12 * BLOCK_TOKENS;
    let (keys, values) = (random((slots, 2, 16), 1), random((slots, 2, 16), 2));
    let q = random((22, 4, 16), 3);
    let sequences = [
        CachedRows { rows: 0..1, start: 40, blocks: &[7, 2, 9] },
        CachedRows { rows: 1..20, start: 0, blocks: &[4, 0] },
        CachedRows { rows: 20..22, start: 15, blocks: &[11, 5] },
    ];
    for window in [None, Some(5), Some(33)] {
        let ours = kernels::cached_attention(&q, &keys, &values, &sequences, window).unwrap();
        let plain = reference::cached_attention(&q, &keys, &values, &sequences, window).unwrap();
        assert_close(&ours, &plain, 1e-5);
    }
}

#[test]
fn cross_entropy_agrees_and_its_gradient_is_the_slope() {
    let logits = (random((40, 150), 1) * 4.0).unwrap();
    let targets: Vec<u32> = (0..40).map(|row| (row * 37) % 150).collect();
    let weights: Vec<f32> = (0..40).map(|row| if row % 5 == 0 { 0.0 } else { 0.25 }).collect();
    let ours = kernels::cross_entropy(logits.copy().unwrap(), &targets, &weights).unwrap();
    let plain = reference::cross_entropy(&logits, &targets, &weights).unwrap();
    assert_close(&ours.gradient, &plain.gradient, 1e-6);
    assert_eq!(ours.correct, plain.correct);
    for (a, b) in ours.losses.iter().zip(&plain.losses) {
        assert!((a - b).abs() < 1e-4);
    }
    let weighted = Tensor::new(weights.clone(), &CPU).unwrap();
    let losses = |x: &Tensor| {
        Tensor::new(kernels::cross_entropy(x.copy().unwrap(), &targets, &weights).unwrap().losses, &CPU).unwrap()
    };
    assert_is_gradient(losses, &logits, &weighted, &ours.gradient);
}

#[test]
fn not_a_number_in_the_logits_makes_the_loss_not_a_number() {
    let mut values = vec![0.5_f32; 30];
    values[7] = f32::NAN;
    let logits = Tensor::from_vec(values, (1, 30), &CPU).unwrap();
    assert!(kernels::cross_entropy(logits, &[3], &[1.0]).unwrap().losses[0].is_nan());
}
