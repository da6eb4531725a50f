//! The GPU's kernels, run on the CPU thread by thread, against the same formulas in plain candle operations.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod device;
#[path = "common/draws.rs"]
mod draws;

use std::ops::Range;

use attune::adapters::{Adapter, LoraLayer, LoraPair, Site};
use attune::model::kernels::cuda::{self, RowTables};
use attune::model::kernels::{AttentionState, CachedRows, Dense, Draw, LoraRun, NO_TOKEN, NewHeads, Norm, reference};
use attune::model::kv_cache::BLOCK_TOKENS;
use attune::model::rope::Angles;
use candle_core::{DType, Device, Tensor};
use device::Emulator;

const CPU: Device = Device::Cpu;

fn is_sanitized() -> bool {
    std::env::var_os(device::SANITIZER).is_some()
}

/// Each kind of element, with the relative error of rounding to it, and each order of threads; one order is enough for a
/// sanitizer, which knows what has none.
fn each(test: impl Fn(&Emulator, DType, f32)) {
    let orders: &[bool] = if is_sanitized() { &[false] } else { &[false, true] };
    for &reversed in orders {
        for (dtype, rounding) in [(DType::F32, 1e-5), (DType::BF16, 8e-3), (DType::F16, 1e-3)] {
            // The same code as bf16's.
            if dtype != DType::F16 || orders.len() > 1 {
                test(&Emulator { reversed }, dtype, rounding);
            }
        }
    }
}

/// The same for tests that take minutes with a sanitizer, which get bf16 alone: the code is the same for all types.
fn each_but_few_sanitized(test: impl Fn(&Emulator, DType, f32)) {
    each(|emulator, dtype, rounding| {
        if !is_sanitized() || dtype == DType::BF16 {
            test(emulator, dtype, rounding);
        }
    });
}

/// Values of about normal size as `dtype` holds them, the same in every run.
fn random(shape: impl Into<candle_core::Shape>, seed: u64, dtype: DType) -> Tensor {
    use rand::{Rng, SeedableRng};
    let shape = shape.into();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| random.random_range(-1.5..1.5)).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap().to_dtype(dtype).unwrap()
}

/// The same values in f32.
fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F32).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    wide(tensor).flatten_all().unwrap().to_vec1().unwrap()
}

/// Holds `ours` against the exact values: off by no more than `rounding`, relative to the largest of them.
#[track_caller]
fn assert_close(ours: &Tensor, exact: &Tensor, rounding: f32) {
    assert_eq!(ours.shape(), exact.shape());
    let exact = floats(exact);
    let largest = exact.iter().fold(1.0_f32, |largest, value| largest.max(value.abs()));
    let difference = floats(ours)
        .iter()
        .zip(&exact)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most: f32, difference| if difference.is_nan() { f32::INFINITY } else { most.max(difference) });
    assert!(difference <= rounding * largest, "differ by {difference:e}, the largest is {largest}");
}

#[test]
fn norms_and_their_gradients() {
    each(|emulator, dtype, rounding| {
        for (rows, width) in [(3, 576), (5, 40), (1, 1030)] {
            let (x, dy) = (random((rows, width), 1, dtype), random((rows, width), 2, dtype));
            let weight = random(width, 3, DType::F32);
            let y = cuda::elementwise::rms_norm(emulator, &x, &weight, 1e-5).unwrap();
            assert_close(&y, &reference::rms_norm(&wide(&x), &weight, 1e-5).unwrap(), rounding);
            let dx = cuda::elementwise::rms_norm_backward(emulator, &x, &weight, 1e-5, &dy).unwrap();
            let exact = reference::rms_norm_backward(&wide(&x), &weight, 1e-5, &wide(&dy)).unwrap();
            assert_close(&dx, &exact, rounding);
        }
    });
}

#[test]
fn rotations_forwards_and_backwards() {
    each(|emulator, dtype, rounding| {
        let (q, k) = (random((7, 3, 10), 1, dtype), random((7, 1, 10), 4, dtype));
        let angles = Angles { cos: random((7, 5), 2, DType::F32), sin: random((7, 5), 3, DType::F32) };
        for direction in [1.0_f32, -1.0] {
            let (rotated_q, rotated_k) = cuda::elementwise::rope(emulator, &q, &k, &angles, direction).unwrap();
            assert_close(&rotated_q, &reference::rope(&wide(&q), &angles, direction.into()).unwrap(), rounding);
            assert_close(&rotated_k, &reference::rope(&wide(&k), &angles, direction.into()).unwrap(), rounding);
        }
    });
}

/// Few rows, which our kernel takes, and more; inputs that are no whole number of vectors, too.
const INPUTS: [(usize, usize); 5] = [(1, 328), (3, 64), (4, 16), (2, 9), (7, 64)];

fn exact_product(x: &Tensor, matrix: &Dense<'_>) -> Tensor {
    let mut exact = reference::linear(x, &wide(matrix.weight)).unwrap();
    for added in matrix.bias.into_iter().chain(matrix.residual) {
        exact = exact.broadcast_add(&wide(added)).unwrap();
    }
    exact
}

#[test]
fn products_of_layers_that_share_an_input() {
    each(|emulator, dtype, rounding| {
        for (rows, input) in INPUTS {
            let x = random((rows, input), 1, dtype);
            let weights = [40, 6, 19].map(|width| random((width, input), width as u64, dtype));
            let (bias, residual) = (random(6, 2, dtype), random((rows, 19), 3, dtype));
            let matrices = [(None, None), (Some(&bias), None), (None, Some(&residual))];
            let matrices: Vec<Dense<'_>> = (weights.iter().zip(matrices))
                .map(|(weight, (bias, residual))| Dense { weight, bias, residual })
                .collect();
            let weight = random(input, 4, DType::F32);
            for norm in [None, Some(Norm { weight: &weight, eps: 1e-5 })] {
                let normed =
                    norm.map_or(wide(&x), |norm| reference::rms_norm(&wide(&x), norm.weight, norm.eps).unwrap());
                let ours = cuda::product::project(emulator, &x, norm, &matrices).unwrap();
                for (matrix, ours) in matrices.iter().zip(&ours) {
                    assert_close(ours, &exact_product(&normed, matrix), rounding);
                }
            }
        }
    });
}

#[test]
fn products_that_are_added_to_a_residual() {
    each(|emulator, dtype, rounding| {
        for (rows, input) in INPUTS {
            let (x, weight) = (random((rows, input), 1, dtype), random((19, input), 2, dtype));
            let (bias, residual) = (random(19, 3, dtype), random((rows, 19), 4, dtype));
            for bias in [None, Some(&bias)] {
                let matrix = Dense { weight: &weight, bias, residual: None };
                let exact = exact_product(&wide(&x), &Dense { residual: Some(&residual), ..matrix });
                let fresh = residual.copy().unwrap();
                let ours = cuda::product::project_into(emulator, fresh, &x, matrix).unwrap();
                assert_close(&ours, &exact, rounding);
            }
            // As gradients take it: the right matrix as it is.
            let (right, y) = (random((input, 23), 5, dtype), random((rows, 23), 6, dtype));
            let exact = (wide(&y) + wide(&x).matmul(&wide(&right)).unwrap()).unwrap();
            let ours = cuda::product::add_product(emulator, y.copy().unwrap(), &x, &right).unwrap();
            assert_close(&ours, &exact, rounding);
        }
    });
}

#[test]
fn a_gated_product_of_a_normed_input() {
    each(|emulator, dtype, rounding| {
        for (rows, input) in INPUTS {
            let x = random((rows, input), 1, dtype);
            let weights = [2, 3].map(|seed| (random((41, input), seed, dtype) * 0.2).unwrap());
            let bias = random(41, 4, dtype);
            let [gate, up] = [(0, Some(&bias)), (1, None)].map(|(index, bias)| Dense {
                weight: &weights[index],
                bias,
                residual: None,
            });
            let weight = random(input, 5, DType::F32);
            let norm = Norm { weight: &weight, eps: 1e-5 };
            let ours = cuda::product::project_gated(emulator, &x, norm, [gate, up]).unwrap();
            let normed = reference::rms_norm(&wide(&x), norm.weight, norm.eps).unwrap();
            let exact = [gate, up].map(|matrix| exact_product(&normed, &matrix));
            assert_close(&ours, &reference::swiglu(&exact[0], &exact[1]).unwrap(), rounding);
        }
    });
}

#[test]
fn swiglu_and_its_gradients() {
    each(|emulator, dtype, rounding| {
        let [gate, up, dy] = [1, 2, 3].map(|seed| random((5, 77), seed, dtype));
        let y = cuda::elementwise::swiglu(emulator, &gate, &up).unwrap();
        assert_close(&y, &reference::swiglu(&wide(&gate), &wide(&up)).unwrap(), rounding);
        let (dgate, dup) = cuda::elementwise::swiglu_backward(emulator, &gate, &up, &dy).unwrap();
        let exact = reference::swiglu_backward(&wide(&gate), &wide(&up), &wide(&dy)).unwrap();
        assert_close(&dgate, &exact.0, rounding);
        assert_close(&dup, &exact.1, rounding);
    });
}

/// The first of the layers that share an input.
const FIRST: Site = Site::Query;

/// An adapter of `rank` for layers of these widths, the second block's; without the last of them where it is partial.
fn adapter(rank: usize, input: usize, widths: [usize; 3], is_partial: bool, dtype: DType) -> Adapter {
    let mut layer = LoraLayer::default();
    for (site, width) in [Site::Query, Site::Key, Site::Value].into_iter().zip(widths).take(3 - usize::from(is_partial))
    {
        let a = (random((rank, input), 3 + rank as u64, dtype) * 0.1).unwrap();
        let b = random((width, rank), 4 + rank as u64, dtype);
        layer.set(site, LoraPair { a, b, scale: 0.5 });
    }
    Adapter::new(String::new(), vec![LoraLayer::default(), layer])
}

/// Holds what the kernels add for `runs`, rows with an adapter, against the formula; all other rows keep every bit.
fn check_adapters(
    emulator: &Emulator,
    all_rows: usize,
    input: usize,
    widths: [usize; 3],
    runs: &[(Range<usize>, Adapter)],
    rounding: f32,
) {
    let dtype = runs[0].1.layers[1].get(FIRST).unwrap().a.dtype();
    let x = random((all_rows, input), 1, dtype);
    let before = widths.map(|width| random((all_rows, width), 2, dtype));
    let on_device: Vec<LoraRun<'_>> =
        runs.iter().map(|(rows, adapter)| LoraRun { rows: rows.clone(), places: adapter.places().unwrap() }).collect();
    let ours = before.each_ref().map(|y| y.copy().unwrap());
    cuda::lora::add(emulator, &ours, &x, &on_device, 1, FIRST).unwrap();
    for (index, site) in [Site::Query, Site::Key, Site::Value].into_iter().enumerate() {
        let mut exact = wide(&before[index]).copy().unwrap();
        for (rows, adapter) in runs {
            let Some(pair) = adapter.layers[1].get(site) else { continue };
            let pair = LoraPair { a: wide(&pair.a), b: wide(&pair.b), scale: pair.scale };
            exact = reference::add_lora(exact, &wide(&x), rows.clone(), &pair).unwrap();
        }
        assert_close(&ours[index], &exact, rounding * 2.0);
        for row in (0..all_rows).filter(|row| !runs.iter().any(|(rows, _)| rows.contains(row))) {
            let row = |of: &Tensor| floats(&of.get(row).unwrap());
            assert_eq!(row(&before[index]), row(&ours[index]), "a row without an adapter");
        }
    }
}

/// Of a step with few adapters, and of one with so many that the kernels need more room for them.
#[test]
fn adapters_of_mixed_ranks_change_their_own_rows_only() {
    let few: [(Range<usize>, usize); 7] =
        [(1..2, 1), (2..5, 3), (5..6, 8), (7..18, 16), (18..40, 20), (41..42, 128), (42..44, 4)];
    let many: Vec<(Range<usize>, usize)> = (1..43).map(|row| (row..row + 1, 1 + row % 5)).collect();
    each(|emulator, dtype, rounding| {
        for ranks in [&few[..], &many] {
            for (input, widths) in [(80, [96, 40, 300]), (77, [93, 5, 8])] {
                let runs: Vec<(Range<usize>, Adapter)> = (ranks.iter())
                    .map(|(rows, rank)| (rows.clone(), adapter(*rank, input, widths, *rank == 4, dtype)))
                    .collect();
                check_adapters(emulator, 45, input, widths, &runs, rounding);
            }
        }
    });
}

/// Prompts of several adapters, which matrix units take where the widths allow it, beside a row that decodes.
#[test]
fn adapters_of_prompts_change_their_own_rows_only() {
    let prompts: [(Range<usize>, usize); 4] = [(1..2, 16), (2..40, 16), (41..58, 6), (58..138, 40)];
    each_but_few_sanitized(|emulator, dtype, rounding| {
        for (input, widths) in [(328, [96, 40, 302]), (64, [64, 8, 130]), (77, [93, 5, 8])] {
            let runs = prompts.clone().map(|(rows, rank)| (rows, adapter(rank, input, widths, false, dtype)));
            check_adapters(emulator, 140, input, widths, &runs, rounding);
        }
    });
}

#[test]
fn an_adapter_whose_b_is_zero_changes_no_bit() {
    each(|emulator, dtype, _| {
        let zeros = Tensor::zeros((40, 4), dtype, &CPU).unwrap();
        let mut layer = LoraLayer::default();
        layer.set(FIRST, LoraPair { a: random((4, 32), 1, dtype), b: zeros, scale: 1.0 });
        let adapter = Adapter::new(String::new(), vec![layer]);
        for rows in [3, 20] {
            let before = random((rows, 40), 1, DType::F32).clamp(0.0, 1.0).unwrap().neg().unwrap();
            let before = before.to_dtype(dtype).unwrap();
            let after = [before.copy().unwrap()];
            let run = LoraRun { rows: 0..rows, places: adapter.places().unwrap() };
            cuda::lora::add(emulator, &after, &random((rows, 32), 2, dtype), &[run], 0, FIRST).unwrap();
            let bits = |tensor: &Tensor| floats(tensor).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert!(bits(&before).contains(&(-0.0_f32).to_bits()));
            assert_eq!(bits(&before), bits(&after[0]));
        }
    });
}

#[test]
fn losses_and_their_gradients() {
    each(|emulator, dtype, rounding| {
        let logits = (random((5, 1500), 1, dtype) * 4.0).unwrap();
        let (targets, weights) = ([3, 1499, 0, 700, 9], [1.0, 0.5, 0.0, 2.0, 0.25]);
        let exact = reference::cross_entropy(&wide(&logits), &targets, &weights).unwrap();
        let ours = cuda::loss::cross_entropy(emulator, &logits.copy().unwrap(), &targets, &weights).unwrap();
        let vector = |values: &[f32]| Tensor::new(values, &CPU).unwrap();
        assert_close(&vector(&ours.losses), &vector(&exact.losses), 1e-5);
        assert_eq!(ours.correct, exact.correct);
        assert_close(&ours.gradient, &exact.gradient, rounding);
    });
}

#[test]
fn tokens_are_drawn_by_their_weights() {
    let all = Draw { temperature: 1.0, ..Draw::GREEDY };
    let requests: Vec<Draw> = [
        Draw::GREEDY,
        all,
        Draw { temperature: 0.7, point: 0.3, ..all },
        Draw { temperature: 1.5, point: 0.5, ..all },
        Draw { point: 0.999_999, ..all },
        Draw { point: 0.1, ..all },
        Draw { point: 0.9, ..Draw::GREEDY },
        Draw { point: 0.75, ..all },
        Draw { point: 0.2, ..all },
        Draw { point: 0.6, min_p: 0.1, ..all },
        Draw { point: 0.4, top_k: 1, ..all },
        Draw { point: 0.97, top_k: 5, temperature: 2.0, ..all },
        Draw { point: 0.5, top_k: 5000, ..all },
        Draw { point: 0.8, top_p: 0.9, temperature: 1.3, ..all },
        Draw { point: 0.3, top_p: 0.5, top_k: 40, min_p: 0.05, ..all },
        Draw { point: 0.99, top_p: 0.95, top_k: 20, temperature: 0.6, ..all },
        Draw { point: 0.9, top_p: 1e-6, ..all },
    ]
    .into();
    each(|emulator, dtype, _| {
        for classes in [7, 1500] {
            let logits = (random((requests.len(), classes), 1, dtype) * 3.0).unwrap();
            let mut rows: Vec<Vec<f32>> = wide(&logits).to_vec2().unwrap();
            // Equal ones, of which the first counts, and one that is no number.
            rows[6][2] = 40.0;
            rows[6][5] = 40.0;
            rows[8][3] = f32::NAN;
            // Cuts that go through equal ones; of both zeros, too.
            for row in rows.iter_mut().skip(10) {
                for (place, value) in [(1, 2.0), (3, 2.0), (4, 2.0), (5, 0.0), (6, -0.0)] {
                    row[place] = value;
                }
            }
            let logits = Tensor::new(rows.clone(), &CPU).unwrap().to_dtype(dtype).unwrap();
            let tokens = cuda::draw::draw(emulator, &logits, &requests).unwrap();
            for (index, (logits, token)) in rows.iter().zip(tokens).enumerate() {
                if index == 8 {
                    assert_eq!(token, NO_TOKEN);
                    continue;
                }
                if requests[index].temperature == 0.0 {
                    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    assert_eq!(token as usize, logits.iter().position(|logit| *logit >= largest).unwrap());
                    continue;
                }
                let candidates = draws::candidates(logits, &requests[index]);
                let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
                let place = candidates.iter().position(|(candidate, _)| *candidate == token as usize);
                let place = place.unwrap_or_else(|| panic!("row {index}: {token} is left out of {candidates:?}"));
                let before: f64 = candidates[..place].iter().map(|(_, weight)| weight).sum();
                let after = before + candidates[place].1;
                let (point, slack) = (requests[index].point * total, 1e-5 * total);
                assert!(before <= point + slack && point <= after + slack, "row {index}: {before} {point} {after}");
            }
        }
    });
}

/// Two sequences that fill more than one warp's keys, and short ones.
const SEQUENCES: [Range<usize>; 4] = [0..1, 1..80, 80..83, 83..120];

#[test]
fn attention_over_packed_sequences_and_its_gradients() {
    for (heads, kv_heads, head_dim) in [(4, 2, 64), (3, 3, 20), (2, 1, 128), (2, 2, 16)] {
        for window in [None, Some(9), Some(50)] {
            each_but_few_sanitized(|emulator, dtype, rounding| {
                let q = random((120, heads, head_dim), 1, dtype);
                let [k, v] = [2, 3].map(|seed| random((120, kv_heads, head_dim), seed, dtype));
                let dout = random(q.shape(), 4, dtype);
                let tables = RowTables::packed(&SEQUENCES, &CPU).unwrap();
                let (out, sums) = cuda::attention::packed(emulator, &q, &k, &v, &tables, window).unwrap();
                let [wide_q, wide_k, wide_v, wide_dout] = [&q, &k, &v, &dout].map(wide);
                let exact = reference::packed_attention(&wide_q, &wide_k, &wide_v, &SEQUENCES, window).unwrap();
                assert_close(&out, &exact.0, rounding);
                assert_close(&sums, &exact.1, 1e-5);
                let state = AttentionState { q: &q, k: &k, v: &v, out: &out, log_sum_exp: &sums };
                let (dq, dk, dv) = cuda::attention::packed_backward(emulator, state, &dout, &tables, window).unwrap();
                let (out, log_sum_exp) = (&exact.0, &exact.1);
                let state = AttentionState { q: &wide_q, k: &wide_k, v: &wide_v, out, log_sum_exp };
                let exact = reference::packed_attention_backward(state, &wide_dout, &SEQUENCES, window).unwrap();
                assert_close(&dq, &exact.0, rounding * 2.0);
                assert_close(&dk, &exact.1, rounding * 2.0);
                assert_close(&dv, &exact.2, rounding * 2.0);
            });
        }
    }
}

#[test]
fn attention_over_the_cache_and_what_is_written_to_it() {
    let sequences = [
        CachedRows { rows: 0..1, start: 40, blocks: &[7, 2, 9] },
        CachedRows { rows: 1..20, start: 0, blocks: &[4, 0] },
        CachedRows { rows: 20..22, start: 15, blocks: &[11, 5] },
    ];
    for (heads, kv_heads, head_dim) in [(4, 2, 64), (3, 1, 36)] {
        for window in [None, Some(5)] {
            each(|emulator, dtype, rounding| {
                let q = random((22, heads, head_dim), 1, dtype);
                let [k, v] = [2, 3].map(|seed| random((22, kv_heads, head_dim), seed, dtype));
                let slots = (12 * BLOCK_TOKENS, kv_heads, head_dim);
                let [keys, values] = [4, 5].map(|seed| random(slots, seed, dtype));
                let plain = [&keys, &values].map(|cache| wide(cache).copy().unwrap());
                let tables = RowTables::cached(&sequences, &CPU).unwrap();
                cuda::attention::write_cache(emulator, &keys, &values, &k, &v, &tables).unwrap();
                for (cache, rows) in plain.iter().zip([&k, &v]) {
                    reference::write_cache(cache, &wide(rows), &sequences).unwrap();
                }
                assert_close(&keys, &plain[0], 0.0);
                assert_close(&values, &plain[1], 0.0);
                let out = cuda::attention::cached(emulator, &q, &keys, &values, &tables, window).unwrap();
                let exact = reference::cached_attention(&wide(&q), &plain[0], &plain[1], &sequences, window).unwrap();
                assert_close(&out, &exact, rounding);
            });
        }
    }
}

/// Steps in which every sequence has one row: short ones; and one of so many keys that several blocks share them.
#[test]
fn attention_of_single_rows_with_all_that_comes_before_it() {
    let many: Vec<u32> = (0..1100_u32.div_ceil(BLOCK_TOKENS as u32)).map(|block| 3 + block * 7 % 69).collect();
    let short = [
        CachedRows { rows: 0..1, start: 40, blocks: &[7, 2, 9] },
        CachedRows { rows: 1..2, start: 0, blocks: &[4] },
        CachedRows { rows: 2..3, start: 15, blocks: &[11] },
        CachedRows { rows: 3..4, start: 31, blocks: &[5, 0] },
    ];
    let long =
        [CachedRows { rows: 0..1, start: 1090, blocks: &many }, CachedRows { rows: 1..2, start: 3, blocks: &[1] }];
    let heads = [(4, 2, 64), (3, 1, 36), (5, 1, 16), (2, 2, 256)];
    for (sequences, heads) in [(&short[..], &heads[..]), (&long[..], &heads[..1])] {
        for &(heads, kv_heads, head_dim) in heads {
            for (window, is_plain) in [(None, true), (None, false), (Some(17), false)] {
                each(|emulator, dtype, rounding| {
                    let rows = sequences.len();
                    let q = random((rows, heads, head_dim), 1, dtype);
                    let [k, v] = [2, 3].map(|seed| random((rows, kv_heads, head_dim), seed, dtype));
                    let slots = (72 * BLOCK_TOKENS, kv_heads, head_dim);
                    let [keys, values] = [4, 5].map(|seed| random(slots, seed, dtype));
                    let plain = [&keys, &values].map(|cache| wide(cache).copy().unwrap());
                    let [q_norm, k_norm] = [6, 7].map(|seed| random(head_dim, seed, DType::F32));
                    let [cos, sin] = [8, 9].map(|seed| random((rows, head_dim / 2), seed, DType::F32));
                    let angles = Angles { cos, sin };
                    let norms = [&q_norm, &k_norm].map(|weight| Norm { weight, eps: 1e-5 });
                    let (norms, angles) = if is_plain { (None, None) } else { (Some(norms), Some(&angles)) };
                    let new = NewHeads { q: &q, k: &k, v: &v, norms, angles };
                    let tables = RowTables::cached(sequences, &CPU).unwrap();
                    let out = cuda::decode::attention(emulator, new, &keys, &values, &tables, window).unwrap().unwrap();

                    let (mut q, mut k) = (wide(&q), wide(&k));
                    if let Some([q_norm, k_norm]) = norms {
                        q = reference::rms_norm(&q, q_norm.weight, q_norm.eps).unwrap();
                        k = reference::rms_norm(&k, k_norm.weight, k_norm.eps).unwrap();
                    }
                    if let Some(angles) = angles {
                        q = reference::rope(&q, angles, 1.0).unwrap();
                        k = reference::rope(&k, angles, 1.0).unwrap();
                    }
                    for (cache, rows) in plain.iter().zip([&k, &wide(&v)]) {
                        reference::write_cache(cache, rows, sequences).unwrap();
                    }
                    assert_close(&keys, &plain[0], rounding);
                    assert_close(&values, &plain[1], 0.0);
                    let exact = reference::cached_attention(&q, &plain[0], &plain[1], sequences, window).unwrap();
                    assert_close(&out, &exact, rounding * 2.0);
                });
            }
        }
    }
}

/// More gradients than a launch takes, of sizes about those of a block's threads.
#[test]
fn steps_of_the_optimizer_are_those_of_the_host() {
    use attune::train::optimizer::{AdamSettings, AdamW, global_norm};
    let settings = AdamSettings { weight_decay: 0.01, ..AdamSettings::default() };
    let (count, orders) = if is_sanitized() { (6, &[false][..]) } else { (150, &[false, true][..]) };
    let sizes: Vec<usize> = (0..count).map(|index| [1, 255, 256, 257, 40, 5000][index % 6]).collect();
    let of = |seed: u64| -> Vec<Vec<f32>> {
        sizes.iter().enumerate().map(|(index, size)| floats(&random(*size, seed + index as u64, DType::F32))).collect()
    };
    let tensor = |values: &[Vec<f32>]| Tensor::new(values.concat(), &CPU).unwrap();
    for &reversed in orders {
        let emulator = Emulator { reversed };
        let mut values = of(1);
        let mut optimizer = AdamW::new(settings, &values);
        let zeros = || Tensor::zeros(values.iter().map(Vec::len).sum::<usize>(), DType::F32, &CPU).unwrap();
        let (ours, first, second) = (tensor(&values), zeros(), zeros());
        for step in 0..3 {
            let gradients = of(1000 * (step + 1));
            let tensors: Vec<Tensor> =
                gradients.iter().map(|gradient| Tensor::new(gradient.as_slice(), &CPU).unwrap()).collect();
            let norm = cuda::optimizer::sum_of_squares(&emulator, &tensors).unwrap().sqrt();
            assert!((norm / global_norm(&gradients) - 1.0).abs() < 1e-12);
            let by = optimizer.advance(1e-2, 0.7);
            optimizer.update(by, &mut values, &gradients);
            cuda::optimizer::adam_w(&emulator, [&ours, &first, &second], &tensors, by).unwrap();
            assert_close(&ours, &tensor(&values), 1e-6);
        }
        let moments = |which: fn(&attune::train::optimizer::Moments) -> &Vec<f32>| -> Vec<Vec<f32>> {
            optimizer.moments.iter().map(|moments| which(moments).clone()).collect()
        };
        assert_close(&first, &tensor(&moments(|moments| &moments.first)), 1e-6);
        assert_close(&second, &tensor(&moments(|moments| &moments.second)), 1e-6);
    }
}
