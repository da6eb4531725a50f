//! Products of one row with lines of memory, from which [`super::cached_attention`] is built.
//!
//! Every value is summed in the same order whatever else is computed beside it: a row's result depends neither on the
//! number of rows nor on how they are split among threads.

use super::lanes::{LANES, Lanes};

/// Returns the dot products of `x` with eight lines of `depth` values.
///
/// # Safety
/// The pointers must be valid for `depth` values, and the CPU must have the instructions of `L`.
#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
#[allow(clippy::needless_range_loop, reason = "unrolled by lane")]
#[inline(always)]
pub(super) unsafe fn dot_8<L: Lanes>(x: *const f32, lines: [*const f32; LANES], depth: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [L::zero(); LANES];
        let whole = depth - depth % LANES;
        let mut k = 0;
        while k < whole {
            let values = L::load(x.add(k));
            for lane in 0..LANES {
                sums[lane] = sums[lane].plus_product(values, L::load(lines[lane].add(k)));
            }
            k += LANES;
        }
        if k < depth {
            let values = L::load_first(x.add(k), depth - k);
            for lane in 0..LANES {
                sums[lane] = sums[lane].plus_product(values, L::load_first(lines[lane].add(k), depth - k));
            }
        }
        L::sums(sums)
    }
}

/// Computes `sum += weights[line] · lines[line]` over all lines, in their order; lines begin `stride` values apart.
///
/// # Safety
/// The CPU must have the instructions of `L`.
#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
#[inline(always)]
pub(super) unsafe fn weighted_sum<L: Lanes>(sum: &mut [f32], weights: &[f32], lines: &[f32], stride: usize) {
    let depth = sum.len();
    assert!(weights.is_empty() || lines.len() >= (weights.len() - 1) * stride + depth, "lines lie inside their slice");
    let mut k = 0;
    // SAFETY: all places lie inside the slices, as asserted; the caller promises the instructions.
    unsafe {
        while k + 8 * LANES <= depth {
            weighted_sum_at::<L, 8>(sum.as_mut_ptr().add(k), weights, lines.as_ptr().add(k), stride);
            k += 8 * LANES;
        }
        while k + LANES <= depth {
            weighted_sum_at::<L, 1>(sum.as_mut_ptr().add(k), weights, lines.as_ptr().add(k), stride);
            k += LANES;
        }
        if k < depth {
            let mut total = L::load_first(sum.as_ptr().add(k), depth - k);
            for (line, weight) in weights.iter().enumerate() {
                let values = L::load_first(lines.as_ptr().add(line * stride + k), depth - k);
                total = total.plus_product(L::splat(*weight), values);
            }
            let mut values = [0.0; LANES];
            total.store(values.as_mut_ptr());
            sum[k..].copy_from_slice(&values[..depth - k]);
        }
    }
}

/// Computes [`weighted_sum`] for `8 · N` neighbouring values.
///
/// # Safety
/// The pointers must be valid for these values on every line, and the CPU must have the instructions of `L`.
#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
#[allow(clippy::needless_range_loop, reason = "unrolled by lane")]
#[inline(always)]
unsafe fn weighted_sum_at<L: Lanes, const N: usize>(sum: *mut f32, weights: &[f32], lines: *const f32, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [L::zero(); N];
        for i in 0..N {
            totals[i] = L::load(sum.add(i * LANES));
        }
        for (line, weight) in weights.iter().enumerate() {
            let weight = L::splat(*weight);
            for i in 0..N {
                totals[i] = totals[i].plus_product(weight, L::load(lines.add(line * stride + i * LANES)));
            }
        }
        for i in 0..N {
            totals[i].store(sum.add(i * LANES));
        }
    }
}
