//! Attention of encoders, both ways and with terms by distance, on the GPU's code and on the CPU against a formula in f64.

use std::ops::Range;

use attune::model::kernels::cuda::RowTables;
use attune::model::kernels::{AttentionForm, AttentionState, DistanceBias, Kernels, PackedRows, cuda};
use candle_core::{DType, Tensor};

use super::{CPU, assert_close, each_but_few_sanitized, floats, is_sanitized, random};

/// Lengths: one token alone, more keys than a tile, fewer rows than matrix units take, and more than a warp.
const SEQUENCES: [Range<usize>; 4] = [0..1, 1..80, 80..83, 83..120];
const ROWS: usize = 120;
/// Distances that have terms of their own: fewer than sequences have, and than tiles are long.
const MOST: usize = 20;

/// Results of attention and its gradients.
#[derive(Default)]
struct Exact {
    out: Vec<f64>,
    log_sums: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

/// Sizes of a case, and how queries score keys.
#[derive(Clone, Copy)]
struct Case {
    heads: usize,
    kv_heads: usize,
    width: usize,
    form: AttentionForm,
}

impl Case {
    /// Computes attention and its gradients, pair by pair of query and key.
    fn exact(self, [q, k, v, dout]: [&Tensor; 4], bias: Option<&DistanceBias>) -> Exact {
        let Self { heads, kv_heads, width, form } = self;
        let [q, k, v, dout] = [q, k, v, dout].map(|x| floats(x).into_iter().map(f64::from).collect::<Vec<_>>());
        let terms: Option<Vec<f32>> = bias.map(|bias| floats(&bias.terms));
        let (scale, cap) = (f64::from(form.scale), form.cap.map(f64::from));
        let zeros = |like: &[f64]| vec![0.0; like.len()];
        let mut exact = Exact { out: zeros(&q), log_sums: Vec::new(), dq: zeros(&q), dk: zeros(&k), dv: zeros(&v) };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let sequence_of = |row: usize| SEQUENCES.iter().find(|rows| rows.contains(&row)).unwrap();
        for (row, head) in (0..ROWS).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let sees = |key: &usize| {
                (form.looks_ahead || *key <= row) && form.window.is_none_or(|window| row.abs_diff(*key) < window)
            };
            let keys: Vec<usize> = sequence_of(row).clone().filter(sees).collect();
            let own = (row * heads + head) * width..(row * heads + head + 1) * width;
            let of = |key: usize| (key * kv_heads + head * kv_heads / heads) * width;
            let of = |key: usize| of(key)..of(key) + width;
            let capped = |key: usize| {
                let score = dot(&q[own.clone()], &k[of(key)]) * scale;
                cap.map_or(score, |cap| cap * (score / cap).tanh())
            };
            let term = |key: usize| {
                let distance = (key as i64 - row as i64).clamp(-(MOST as i64), MOST as i64) + MOST as i64;
                terms.as_ref().map_or(0.0, |terms| f64::from(terms[head * (2 * MOST + 1) + distance as usize]))
            };
            let weights: Vec<f64> = keys.iter().map(|key| (capped(*key) + term(*key)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            exact.log_sums.push(sum.ln());
            let shares: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
            let slopes: Vec<f64> = keys.iter().map(|key| dot(&dout[own.clone()], &v[of(*key)])).collect();
            let delta = dot(&shares, &slopes);
            for ((key, share), slope) in keys.into_iter().zip(shares).zip(slopes) {
                let bend = cap.map_or(1.0, |cap| 1.0 - (capped(key) / cap).powi(2));
                let dscore = share * (slope - delta) * bend * scale;
                for (own, key) in own.clone().zip(of(key)) {
                    exact.out[own] += share * v[key];
                    exact.dq[own] += dscore * k[key];
                    exact.dk[key] += dscore * q[own];
                    exact.dv[key] += share * dout[own];
                }
            }
        }
        exact
    }
}

/// Compares what a kind of kernels computes with the exact values.
#[track_caller]
fn compare(ours: [&Tensor; 5], exact: &Exact, rounding: f32) {
    let Exact { out, log_sums, dq, dk, dv } = exact;
    let rounded = [(out, rounding), (log_sums, 1e-5), (dq, 2.0 * rounding), (dk, 2.0 * rounding), (dv, 2.0 * rounding)];
    for (ours, (exact, rounding)) in ours.into_iter().zip(rounded) {
        let exact: Vec<f32> = exact.iter().map(|value| *value as f32).collect();
        assert_close(ours, &Tensor::from_vec(exact, ours.shape(), &CPU).unwrap(), rounding);
    }
}

/// Returns the four forms of encoders, true for those with terms by distance, and others that no model has yet.
fn forms(width: usize) -> Vec<(AttentionForm, bool)> {
    let usual = |window| AttentionForm { looks_ahead: true, ..AttentionForm::of_heads(width, window) };
    vec![
        (usual(None), false),
        (usual(None), true),
        (usual(Some(9)), false),
        (usual(Some(50)), true),
        (AttentionForm { scale: 0.2, cap: Some(0.8), ..usual(Some(50)) }, true),
        (AttentionForm { looks_ahead: false, ..usual(Some(30)) }, true),
    ]
}

#[test]
fn attention_both_ways_and_its_gradients() {
    // With a sanitizer a case takes many seconds; matrix units and the other kernels are each in one of the first two.
    let shapes = [(4, 2, 64), (3, 3, 20), (2, 1, 128), (2, 2, 16)];
    let (shapes, most) = if is_sanitized() { (&shapes[..2], 4) } else { (&shapes[..], 6) };
    for &(heads, kv_heads, width) in shapes {
        for (form, has_terms) in forms(width).into_iter().take(most) {
            let case = Case { heads, kv_heads, width, form };
            let bias = has_terms.then(|| DistanceBias { terms: random((heads, 2 * MOST + 1), 5, DType::F32) });
            let bias = bias.as_ref();
            each_but_few_sanitized(|emulator, dtype, rounding| {
                let [q, dout] = [1, 4].map(|seed| random((ROWS, heads, width), seed, dtype));
                let [k, v] = [2, 3].map(|seed| random((ROWS, kv_heads, width), seed, dtype));
                let exact = case.exact([&q, &k, &v, &dout], bias);
                let tables = RowTables::packed(&SEQUENCES, &CPU).unwrap();
                let (out, sums) = cuda::attention::packed(emulator, &q, &k, &v, &tables, form, bias).unwrap();
                let state = AttentionState { q: &q, k: &k, v: &v, out: &out, log_sum_exp: &sums };
                let (dq, dk, dv) =
                    cuda::attention::packed_backward(emulator, state, &dout, &tables, form, bias).unwrap();
                compare([&out, &sums, &dq, &dk, &dv], &exact, rounding);
                if dtype == DType::F32 {
                    let rows = PackedRows::new(&SEQUENCES, &Kernels::Cpu).unwrap();
                    let (out, sums) = Kernels::Cpu.packed_attention(&q, &k, &v, &rows, form, bias).unwrap();
                    let state = AttentionState { q: &q, k: &k, v: &v, out: &out, log_sum_exp: &sums };
                    let (dq, dk, dv) = Kernels::Cpu.packed_attention_backward(state, &dout, &rows, form, bias).unwrap();
                    compare([&out, &sums, &dq, &dk, &dv], &exact, rounding);
                }
            });
        }
    }
}

#[test]
fn terms_of_other_heads_or_types_are_refused() {
    each_but_few_sanitized(|emulator, dtype, _| {
        let q = random((ROWS, 2, 16), 1, dtype);
        let tables = RowTables::packed(&SEQUENCES, &CPU).unwrap();
        let form = AttentionForm { looks_ahead: true, ..AttentionForm::of_heads(16, None) };
        for (heads, distances, of_terms) in [(3, 9, DType::F32), (2, 8, DType::F32), (2, 9, DType::BF16)] {
            let bias = DistanceBias { terms: random((heads, distances), 2, of_terms) };
            assert!(cuda::attention::packed(emulator, &q, &q, &q, &tables, form, Some(&bias)).is_err());
        }
    });
}
