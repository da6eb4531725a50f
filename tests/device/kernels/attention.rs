//! Attention over packed sequences and over the cache.

use std::ops::Range;

use attune::model::kernels::cuda::RowTables;
use attune::model::kernels::{AttentionForm, AttentionState, NewHeads, Norm, SequenceRows, cuda, reference};
use attune::model::kv_cache::BLOCK_TOKENS;
use attune::model::rope::{Angles, RopeTable};
use candle_core::DType;

use super::{CPU, assert_close, each, each_but_few_sanitized, random, wide};

/// Lengths of two sequences with more keys than one warp takes, and of short ones.
const SEQUENCES: [Range<usize>; 4] = [0..1, 1..80, 80..83, 83..120];

/// Returns the usual form with each window, and one with another scale and a cap.
fn forms(head_dim: usize, windows: &[Option<usize>]) -> Vec<AttentionForm> {
    let usual = |window: &Option<usize>| AttentionForm::of_heads(head_dim, *window);
    let capped = AttentionForm { scale: 0.2, cap: Some(0.8), ..usual(&windows[1]) };
    windows.iter().map(usual).chain([capped]).collect()
}

#[test]
fn attention_over_packed_sequences_and_its_gradients() {
    for (heads, kv_heads, head_dim) in [(4, 2, 64), (3, 3, 20), (2, 1, 128), (2, 2, 16)] {
        for form in forms(head_dim, &[None, Some(9), Some(50)]) {
            each_but_few_sanitized(|emulator, dtype, rounding| {
                let q = random((120, heads, head_dim), 1, dtype);
                let [k, v] = [2, 3].map(|seed| random((120, kv_heads, head_dim), seed, dtype));
                let dout = random(q.shape(), 4, dtype);
                let tables = RowTables::packed(&SEQUENCES, &CPU).unwrap();
                let (out, sums) = cuda::attention::packed(emulator, &q, &k, &v, &tables, form, None).unwrap();
                let [wide_q, wide_k, wide_v, wide_dout] = [&q, &k, &v, &dout].map(wide);
                let exact = reference::packed_attention(&wide_q, &wide_k, &wide_v, &SEQUENCES, form).unwrap();
                assert_close(&out, &exact.0, rounding);
                assert_close(&sums, &exact.1, 1e-5);
                let state = AttentionState { q: &q, k: &k, v: &v, out: &out, log_sum_exp: &sums };
                let (dq, dk, dv) =
                    cuda::attention::packed_backward(emulator, state, &dout, &tables, form, None).unwrap();
                let (out, log_sum_exp) = (&exact.0, &exact.1);
                let state = AttentionState { q: &wide_q, k: &wide_k, v: &wide_v, out, log_sum_exp };
                let exact = reference::packed_attention_backward(state, &wide_dout, &SEQUENCES, form).unwrap();
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
        SequenceRows { rows: 0..1, start: 40, blocks: &[7, 2, 9], adapter: None, rope: RopeTable::Short },
        SequenceRows { rows: 1..20, start: 0, blocks: &[4, 0], adapter: None, rope: RopeTable::Short },
        SequenceRows { rows: 20..22, start: 15, blocks: &[11, 5], adapter: None, rope: RopeTable::Short },
    ];
    for (heads, kv_heads, head_dim) in [(4, 2, 64), (3, 1, 36)] {
        for form in forms(head_dim, &[None, Some(5)]) {
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
                let out = cuda::attention::cached(emulator, &q, &keys, &values, &tables, form).unwrap();
                let exact = reference::cached_attention(&wide(&q), &plain[0], &plain[1], &sequences, form).unwrap();
                assert_close(&out, &exact, rounding);
            });
        }
    }
}

/// Covers steps in which every sequence has one row: short sequences, and one with so many keys that several blocks
/// share them.
#[test]
fn attention_of_single_rows_with_all_that_comes_before_it() {
    let many: Vec<u32> = (0..1100_u32.div_ceil(BLOCK_TOKENS as u32)).map(|block| 3 + block * 7 % 69).collect();
    let short = [
        SequenceRows { rows: 0..1, start: 40, blocks: &[7, 2, 9], adapter: None, rope: RopeTable::Short },
        SequenceRows { rows: 1..2, start: 0, blocks: &[4], adapter: None, rope: RopeTable::Short },
        SequenceRows { rows: 2..3, start: 15, blocks: &[11], adapter: None, rope: RopeTable::Short },
        SequenceRows { rows: 3..4, start: 31, blocks: &[5, 0], adapter: None, rope: RopeTable::Short },
    ];
    let long = [
        SequenceRows { rows: 0..1, start: 1090, blocks: &many, adapter: None, rope: RopeTable::Short },
        SequenceRows { rows: 1..2, start: 3, blocks: &[1], adapter: None, rope: RopeTable::Short },
    ];
    let heads = [(4, 2, 64), (3, 1, 36), (5, 1, 16), (2, 2, 256)];
    for (sequences, heads) in [(&short[..], &heads[..]), (&long[..], &heads[..1])] {
        for &(heads, kv_heads, head_dim) in heads {
            let plain = AttentionForm::of_heads(head_dim, None);
            let windowed = AttentionForm { window: Some(17), ..plain };
            let capped = AttentionForm { scale: 0.2, cap: Some(0.8), ..windowed };
            for (form, is_plain) in [(plain, true), (plain, false), (windowed, false), (capped, false)] {
                each(|emulator, dtype, rounding| {
                    let rows = sequences.len();
                    let q = random((rows, heads, head_dim), 1, dtype);
                    let [k, v] = [2, 3].map(|seed| random((rows, kv_heads, head_dim), seed, dtype));
                    let slots = (72 * BLOCK_TOKENS, kv_heads, head_dim);
                    let [keys, values] = [4, 5].map(|seed| random(slots, seed, dtype));
                    let plain = [&keys, &values].map(|cache| wide(cache).copy().unwrap());
                    let [q_norm, k_norm] = [6, 7].map(|seed| random(head_dim, seed, DType::F32));
                    // With a window, the first elements of a head alone are rotated.
                    let half = head_dim / if form.window.is_some() { 4 } else { 2 };
                    let [cos, sin] = [8, 9].map(|seed| random((rows, half), seed, DType::F32));
                    let angles = Angles { cos, sin, query_scale: None };
                    let norms = [&q_norm, &k_norm].map(|weight| Norm { weight, eps: 1e-5 });
                    let (norms, angles) = if is_plain { (None, None) } else { (Some(norms), Some(&angles)) };
                    let new = NewHeads { q: &q, k: &k, v: &v, norms, angles, sinks: None };
                    let tables = RowTables::cached(sequences, &CPU).unwrap();
                    let out = cuda::decode::attention(emulator, new, &keys, &values, &tables, form).unwrap().unwrap();

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
                    let exact = reference::cached_attention(&q, &plain[0], &plain[1], sequences, form).unwrap();
                    assert_close(&out, &exact, rounding * 2.0);
                });
            }
        }
    }
}
