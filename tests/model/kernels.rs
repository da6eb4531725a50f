//! Checks our CPU kernels against the same formulas in plain candle operations, and both backward passes against
//! central differences. `tests/device/kernels.rs` checks the GPU's kernels against the same formulas.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Range;

use attune::model::kernels::{
    Activation, AttentionForm, AttentionState, CachedStep, Filters, Kernels, LogitForm, LoraRows, PackedRows,
    SequenceRows, cpu, reference,
};
use attune::model::kv_cache::BLOCK_TOKENS;
use attune::model::lora::LoraPair;
use attune::model::rope::{Angles, RopeTable};
use candle_core::{DType, Device, Tensor};

const CPU: Device = Device::Cpu;
const KERNELS: Kernels = Kernels::Cpu;

/// Returns values of about normal size, the same in every run.
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
        assert_close(&KERNELS.linear(&x, &weight).unwrap(), &reference::linear(&x, &weight).unwrap(), 1e-4);
    }
    let (a, b) = (random((33, 96), 2), random((33, 80), 3));
    assert_close(&KERNELS.matmul(&a, &weight).unwrap(), &a.matmul(&weight).unwrap(), 1e-4);
    assert_close(&KERNELS.matmul_transposed(&a, &b).unwrap(), &a.t().unwrap().matmul(&b).unwrap(), 1e-4);
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    floats(tensor).into_iter().map(f32::to_bits).collect()
}

fn pair(input: usize, output: usize, rank: usize) -> LoraPair {
    let seed = (input * output + rank) as u64;
    LoraPair { a: random((rank, input), seed), b: random((output, rank), seed + 1), scale: 0.5 }
}

/// Returns ranks that fill eight lanes, leave some empty, or take many; the last adapter lacks the second layer.
fn ranks() -> Vec<(Range<usize>, usize)> {
    vec![(1..2, 1), (2..5, 3), (5..6, 8), (7..18, 16), (18..30, 20), (31..32, 256), (32..34, 4)]
}

#[test]
fn adapters_of_mixed_ranks_change_their_own_rows_only() {
    // Includes widths that are no multiples of eight.
    for (input, outputs) in [(80, [96, 40]), (77, [93, 5])] {
        let x = random((35, input), 3);
        let before = outputs.map(|output| random((35, output), 4));
        let pairs: Vec<[LoraPair; 2]> =
            ranks().iter().map(|(_, rank)| outputs.map(|output| pair(input, output, *rank))).collect();
        let mut tasks = Vec::new();
        for ((rows, rank), pairs) in ranks().into_iter().zip(&pairs) {
            for (output, pair) in pairs.iter().enumerate().take(if rank == 4 { 1 } else { 2 }) {
                tasks.push(LoraRows { rows: rows.clone(), output, pair });
            }
        }
        let ours = before.each_ref().map(|y| y.copy().unwrap());
        cpu::lora::add(&ours, &x, &tasks).unwrap();
        for (index, before) in before.iter().enumerate() {
            let mut plain = before.copy().unwrap();
            let mut touched = [false; 35];
            for task in tasks.iter().filter(|task| task.output == index) {
                plain = reference::add_lora(plain, &x, task.rows.clone(), task.pair).unwrap();
                touched[task.rows.clone()].fill(true);
            }
            // Sums of 256 products of sums of 80 products, each of size 1.
            assert_close(&ours[index], &plain, 2e-3);
            let (before, after) = (bits(before), bits(&ours[index]));
            for row in (0..35).filter(|row| !touched[*row]) {
                let place = row * outputs[index]..(row + 1) * outputs[index];
                assert_eq!(before[place.clone()], after[place], "row {row} has no adapter");
            }
            // Each row alone has the same bits.
            for task in tasks.iter().filter(|task| task.output == index) {
                for row in task.rows.clone() {
                    let place = row * outputs[index]..(row + 1) * outputs[index];
                    let alone = [Tensor::from_vec(
                        before[place.clone()].iter().copied().map(f32::from_bits).collect(),
                        (1, outputs[index]),
                        &CPU,
                    )
                    .unwrap()];
                    let task = LoraRows { rows: 0..1, output: 0, pair: task.pair };
                    cpu::lora::add(&alone, &x.narrow(0, row, 1).unwrap(), &[task]).unwrap();
                    assert_eq!(bits(&alone[0]), after[place], "row {row} alone");
                }
            }
        }
    }
}

#[test]
fn an_adapter_whose_b_is_zero_changes_no_bit() {
    let pair = LoraPair { b: Tensor::zeros((40, 4), DType::F32, &CPU).unwrap(), ..pair(32, 40, 4) };
    let before = random((3, 40), 1).clamp(0.0, 1.0).unwrap().neg().unwrap(); // with zeros below zero
    assert!(bits(&before).contains(&(-0.0_f32).to_bits()));
    let after = [before.copy().unwrap()];
    let task = LoraRows { rows: 0..3, output: 0, pair: &pair };
    cpu::lora::add(&after, &random((3, 32), 2), &[task]).unwrap();
    assert_eq!(bits(&before), bits(&after[0]));
}

#[test]
fn an_adapter_in_bf16_is_the_rounded_one() {
    let exact = pair(72, 33, 12);
    let rounded = |matrix: &Tensor| matrix.to_dtype(DType::BF16).unwrap();
    let short = LoraPair { a: rounded(&exact.a), b: rounded(&exact.b), scale: 2.0 };
    let wide = |matrix: &Tensor| rounded(matrix).to_dtype(DType::F32).unwrap();
    let long = LoraPair { a: wide(&exact.a), b: wide(&exact.b), scale: 2.0 };
    let (x, y) = (random((5, 72), 1), random((5, 33), 2));
    let add = |pair: &LoraPair| {
        let y = [y.copy().unwrap()];
        cpu::lora::add(&y, &x, &[LoraRows { rows: 1..4, output: 0, pair }]).unwrap();
        bits(&y[0])
    };
    assert_eq!(add(&short), add(&long));
    let mixed = LoraPair { a: short.a.clone(), b: long.b.clone(), scale: 2.0 };
    let failed = cpu::lora::add(&[y.copy().unwrap()], &x, &[LoraRows { rows: 1..4, output: 0, pair: &mixed }]);
    assert!(failed.is_err());
}

#[test]
fn norms_agree_and_their_backward_is_the_gradient() {
    let (x, weight, dy) = (random((300, 64), 1), random(64, 2), random((300, 64), 3));
    let forward = |x: &Tensor| KERNELS.rms_norm(x, &weight, 1e-5).unwrap();
    assert_close(&forward(&x), &reference::rms_norm(&x, &weight, 1e-5).unwrap(), 1e-5);
    let gradient = KERNELS.rms_norm_backward(&x, &weight, 1e-5, &dy).unwrap();
    assert_close(&gradient, &reference::rms_norm_backward(&x, &weight, 1e-5, &dy).unwrap(), 1e-5);
    assert_is_gradient(forward, &x, &dy, &gradient);
}

#[test]
fn rotations_agree_and_turn_back() {
    let angle: Vec<f32> = (0..50 * 8).map(|i| i as f32 * 0.1).collect();
    let table =
        |f: fn(f32) -> f32| Tensor::from_vec(angle.iter().map(|x| f(*x)).collect::<Vec<_>>(), (50, 8), &CPU).unwrap();
    let angles = Angles { cos: table(f32::cos), sin: table(f32::sin), query_scale: None };
    // All of a head, and its first 16 elements alone.
    for head_dim in [16, 22] {
        assert_turns(&random((50, 3, head_dim), 1), &random((50, 1, head_dim), 2), &angles);
    }
}

fn assert_turns(q: &Tensor, k: &Tensor, angles: &Angles) {
    let rotated = KERNELS.rope(q, k, angles).unwrap();
    let back = KERNELS.rope_backward(&rotated.0, &rotated.1, angles).unwrap();
    for (x, rotated, back) in [(q, &rotated.0, &back.0), (k, &rotated.1, &back.1)] {
        assert_close(rotated, &reference::rope(x, angles, 1.0).unwrap(), 1e-6);
        assert_close(back, x, 1e-5);
        assert_close(&reference::rope(rotated, angles, -1.0).unwrap(), x, 1e-5);
    }
}

#[test]
fn gated_activations_agree_and_their_backward_is_the_gradient() {
    let (gate, up, dy) = (random((90, 70), 1), random((90, 70), 2), random((90, 70), 3));
    for form in [Activation::Silu, Activation::GeluTanh] {
        let gated = |gate: &Tensor, up: &Tensor| KERNELS.gated(form, gate, up).unwrap();
        assert_close(&gated(&gate, &up), &reference::gated(form, &gate, &up).unwrap(), 1e-5);
        let (dgate, dup) = KERNELS.gated_backward(form, &gate, &up, &dy).unwrap();
        let (plain_dgate, plain_dup) = reference::gated_backward(form, &gate, &up, &dy).unwrap();
        assert_close(&dgate, &plain_dgate, 1e-5);
        assert_close(&dup, &plain_dup, 1e-5);
        assert_is_gradient(|gate| gated(gate, &up), &gate, &dy, &dgate);
        assert_is_gradient(|up| gated(&gate, up), &up, &dy, &dup);
    }
}

/// Lengths: one token alone, around the tile size, and more than one tile.
const SEQUENCES: [Range<usize>; 5] = [0..1, 1..64, 64..129, 129..132, 132..282];

#[test]
fn packed_attention_agrees_and_its_backward_is_the_gradient() {
    let packed = PackedRows::new(&SEQUENCES, &KERNELS).unwrap();
    for form in forms(&[None, Some(1), Some(10), Some(70)]) {
        let (q, k, v) = (random((282, 4, 16), 1), random((282, 2, 16), 2), random((282, 2, 16), 3));
        let dout = random((282, 4, 16), 4);
        let forward =
            |q: &Tensor, k: &Tensor, v: &Tensor| KERNELS.packed_attention(q, k, v, &packed, form, None).unwrap();
        let (out, sums) = forward(&q, &k, &v);
        let (plain_out, plain_sums) = reference::packed_attention(&q, &k, &v, &SEQUENCES, form).unwrap();
        assert_close(&out, &plain_out, 1e-5);
        assert_close(&sums, &plain_sums, 1e-4);
        let state = AttentionState { q: &q, k: &k, v: &v, out: &out, log_sum_exp: &sums };
        let (dq, dk, dv) = KERNELS.packed_attention_backward(state, &dout, &packed, form, None).unwrap();
        let plain = reference::packed_attention_backward(state, &dout, &SEQUENCES, form).unwrap();
        assert_close(&dq, &plain.0, 1e-4);
        assert_close(&dk, &plain.1, 1e-4);
        assert_close(&dv, &plain.2, 1e-4);
        assert_is_gradient(|q| forward(q, &k, &v).0, &q, &dout, &dq);
        assert_is_gradient(|k| forward(&q, k, &v).0, &k, &dout, &dk);
        assert_is_gradient(|v| forward(&q, &k, v).0, &v, &dout, &dv);
    }
}

#[test]
fn packed_convolutions_agree_and_their_backward_is_the_gradient() {
    let packed = PackedRows::new(&SEQUENCES, &KERNELS).unwrap();
    for (channels, taps, has_bias) in [(64, 3, false), (40, 4, true), (13, 1, true), (24, 16, false)] {
        let bias = has_bias.then(|| random(channels, 3));
        let filters = Filters { weight: random((channels, taps), 2), bias };
        let (projected, dy) = (random((282, 3 * channels), 1), random((282, channels), 4));
        let forward = |projected: &Tensor| KERNELS.packed_convolution(projected, &filters, &packed).unwrap();
        let plain = reference::packed_convolution(&projected, &filters, &SEQUENCES).unwrap();
        assert_close(&forward(&projected), &plain, 1e-5);
        let gradient = KERNELS.packed_convolution_backward(&projected, &filters, &dy, &packed).unwrap();
        let plain = reference::packed_convolution_backward(&projected, &filters, &dy, &SEQUENCES).unwrap();
        assert_close(&gradient, &plain, 1e-4);
        // In each of B, C and x the result is linear, so that differences are exact.
        let parts = |tensor: &Tensor| [0, 1, 2].map(|part| tensor.narrow(1, part * channels, channels).unwrap());
        for (part, (values, gradient)) in parts(&projected).iter().zip(parts(&gradient)).enumerate() {
            let of_part = |values: &Tensor| {
                let mut parts = parts(&projected);
                parts[part] = values.clone();
                forward(&Tensor::cat(&parts, 1).unwrap().contiguous().unwrap())
            };
            assert_is_gradient(of_part, &values.contiguous().unwrap(), &dy, &gradient);
        }
    }
}

/// Returns the usual form with each window, and one with another scale and a cap.
fn forms(windows: &[Option<usize>]) -> Vec<AttentionForm> {
    let usual = |window: &Option<usize>| AttentionForm::of_heads(16, *window);
    let capped = |window| AttentionForm { scale: 0.4, cap: Some(1.5), ..usual(window) };
    windows.iter().flat_map(|window| [usual(window), capped(window)]).collect()
}

fn step<'a>(sequences: &'a [SequenceRows<'a>]) -> CachedStep<'a> {
    CachedStep::new(sequences, &KERNELS).unwrap()
}

#[test]
fn attention_over_the_cache_agrees_for_decode_and_prefill_rows_together() {
    let slots = 12 * BLOCK_TOKENS;
    let (keys, values) = (random((slots, 2, 16), 1), random((slots, 2, 16), 2));
    let q = random((22, 4, 16), 3);
    let sequences = [
        SequenceRows { rows: 0..1, start: 40, blocks: &[7, 2, 9], adapter: None, rope: RopeTable::Short },
        SequenceRows { rows: 1..20, start: 0, blocks: &[4, 0], adapter: None, rope: RopeTable::Short },
        SequenceRows { rows: 20..22, start: 15, blocks: &[11, 5], adapter: None, rope: RopeTable::Short },
    ];
    for form in forms(&[None, Some(5), Some(33)]) {
        let ours = KERNELS.cached_attention(&q, &keys, &values, &step(&sequences), form, None).unwrap();
        let plain = reference::cached_attention(&q, &keys, &values, &sequences, form).unwrap();
        assert_close(&ours, &plain, 1e-5);
    }
}

/// Uses a long prompt, also with a head size that is no multiple of eight.
#[test]
fn attention_has_the_same_bits_however_a_prompt_is_cut_and_whatever_is_beside_it() {
    const LENGTH: usize = 1700;
    let blocks: Vec<u32> = (0..LENGTH.div_ceil(BLOCK_TOKENS) as u32).rev().collect();
    let other = [blocks.len() as u32, blocks.len() as u32 + 1];
    let slots = (blocks.len() + 2) * BLOCK_TOKENS;
    for (head_dim, window) in [(64, None), (64, Some(40)), (64, Some(300)), (12, None)] {
        let form = AttentionForm::of_heads(head_dim, window);
        let (keys, values) = (random((slots, 2, head_dim), 1), random((slots, 2, head_dim), 2));
        let q = random((LENGTH, 6, head_dim), 3);
        let part = |rows: Range<usize>, beside: bool| {
            let extra = random((2, 6, head_dim), 4);
            let rows_q = q.narrow(0, rows.start, rows.len()).unwrap();
            let q = if beside { Tensor::cat(&[&extra, &rows_q], 0).unwrap() } else { rows_q };
            let first = if beside { 2 } else { 0 };
            let mut sequences = vec![SequenceRows {
                rows: first..first + rows.len(),
                start: rows.start,
                blocks: &blocks,
                adapter: None,
                rope: RopeTable::Short,
            }];
            if beside {
                sequences.insert(
                    0,
                    SequenceRows { rows: 0..2, start: 20, blocks: &other, adapter: None, rope: RopeTable::Short },
                );
            }
            let out = KERNELS.cached_attention(&q, &keys, &values, &step(&sequences), form, None).unwrap();
            out.narrow(0, first, rows.len()).unwrap()
        };
        let whole = part(0..LENGTH, false);
        let plain = SequenceRows { rows: 0..LENGTH, start: 0, blocks: &blocks, adapter: None, rope: RopeTable::Short };
        assert_close(&whole, &reference::cached_attention(&q, &keys, &values, &[plain], form).unwrap(), 1e-5);
        let whole = bits(&whole);
        for size in [1, 7, 16, 100] {
            for start in (0..LENGTH).step_by(size).filter(|start| size > 1 || start % 53 == 0 || LENGTH - start < 3) {
                let rows = start..(start + size).min(LENGTH);
                let place = rows.start * 6 * head_dim..rows.end * 6 * head_dim;
                let beside = start % 2 == 0;
                assert!(bits(&part(rows.clone(), beside)) == whole[place], "rows {rows:?}, head size {head_dim}");
            }
        }
    }
}

#[test]
fn rows_are_written_to_their_places_of_the_cache() {
    let (k, v) = (random((30, 2, 8), 1), random((30, 2, 8), 2));
    let sequences = [
        SequenceRows { rows: 0..20, start: 14, blocks: &[3, 1, 5], adapter: None, rope: RopeTable::Short },
        SequenceRows { rows: 20..21, start: 0, blocks: &[0], adapter: None, rope: RopeTable::Short },
        SequenceRows { rows: 21..30, start: 16, blocks: &[2, 4], adapter: None, rope: RopeTable::Short },
    ];
    let empty = || random((6 * BLOCK_TOKENS, 2, 8), 3);
    let (keys, values, plain) = (empty(), empty(), empty());
    KERNELS.write_cache(&keys, &values, &k, &v, &step(&sequences)).unwrap();
    reference::write_cache(&plain, &k, &sequences).unwrap();
    assert_eq!(bits(&keys), bits(&plain));
    reference::write_cache(&plain, &v, &sequences).unwrap();
    assert_eq!(bits(&values), bits(&plain));
    assert_ne!(bits(&keys), bits(&empty()));
}

#[test]
fn cross_entropy_agrees_and_its_gradient_is_the_slope() {
    let products = (random((40, 150), 1) * 4.0).unwrap();
    let targets: Vec<u32> = (0..40).map(|row| (row * 37) % 150).collect();
    let weights: Vec<f32> = (0..40).map(|row| if row % 5 == 0 { 0.0 } else { 0.25 }).collect();
    for form in LOGIT_FORMS {
        let ours = KERNELS.cross_entropy(products.copy().unwrap(), form, &targets, &weights).unwrap();
        let plain = reference::cross_entropy(&products, form, &targets, &weights).unwrap();
        assert_close(&ours.gradient, &plain.gradient, 1e-6);
        assert_eq!(ours.correct, plain.correct);
        for (a, b) in ours.losses.iter().zip(&plain.losses) {
            assert!((a - b).abs() < 1e-4);
        }
        let logits = KERNELS.to_logits(products.copy().unwrap(), form).unwrap();
        assert_close(&logits, &reference::to_logits(&products, form).unwrap(), 1e-5);
        let weighted = Tensor::new(weights.clone(), &CPU).unwrap();
        let losses = |x: &Tensor| {
            let chunk = KERNELS.cross_entropy(x.copy().unwrap(), form, &targets, &weights).unwrap();
            Tensor::new(chunk.losses, &CPU).unwrap()
        };
        assert_is_gradient(losses, &products, &weighted, &ours.gradient);
    }
}

/// The usual form of logits, those of Granite and Gemma 2, and both together.
const LOGIT_FORMS: [LogitForm; 4] = [
    LogitForm::PLAIN,
    LogitForm { scale: 0.4, cap: None },
    LogitForm { scale: 1.0, cap: Some(3.0) },
    LogitForm { scale: 0.7, cap: Some(3.0) },
];

#[test]
fn not_a_number_in_the_logits_makes_the_loss_not_a_number() {
    let mut values = vec![0.5_f32; 30];
    values[7] = f32::NAN;
    let logits = Tensor::from_vec(values, (1, 30), &CPU).unwrap();
    for form in LOGIT_FORMS {
        let logits = logits.copy().unwrap();
        assert!(KERNELS.cross_entropy(logits, form, &[3], &[1.0]).unwrap().losses[0].is_nan());
    }
}
