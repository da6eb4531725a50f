//! Loops over slices, compiled for several instruction sets and chosen at run time. Sums run in 16 lanes, so that their
//! order does not depend on the instruction set.

use multiversion::multiversion;

/// Computes e^x, within 2 units in the last place; 0 below −87, as softmax and silu want.
#[allow(clippy::inline_always, reason = "must be compiled into each version of the loops below")]
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // x = n·ln 2 + r with |r| ≤ ln 2 / 2, then a polynomial for e^r (Cephes' expf).
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    // Adding and subtracting 1.5·2^23 rounds to the nearest whole number in every instruction set.
    let magic = 12_582_912.0_f32;
    let shifted = clamped * LOG2_E + magic;
    let n = shifted - magic;
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_2e-4_f32;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_66;
    p = p * r + 0.5;
    let e_r = p * r * r + r + 1.0;
    // 2^n: n stands in the lowest bits of `shifted`. A cast to an integer would check its range, value by value.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { e_r * power }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let chunks = values.chunks_exact(16);
    let tail: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] += chunk[lane];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Adds `term` to each value.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn add_constant(values: &mut [f32], term: f32) {
    for value in values {
        *value += term;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Adds its term to each value.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn add_each(values: &mut [f32], terms: &[f32]) {
    for (value, term) in values.iter_mut().zip(terms) {
        *value += term;
    }
}

/// Computes `y += scale · x`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn add_scaled(y: &mut [f32], scale: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += scale * x;
    }
}

/// Replaces each value by e^(value − shift); returns their sum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn exp_and_sum(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let mut chunks = values.chunks_exact_mut(16);
    for chunk in &mut chunks {
        for lane in 0..16 {
            chunk[lane] = exp(chunk[lane] - shift);
            lanes[lane] += chunk[lane];
        }
    }
    let mut sum = lanes.iter().sum::<f32>();
    for value in chunks.into_remainder() {
        *value = exp(*value - shift);
        sum += *value;
    }
    sum
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn max(values: &[f32]) -> f32 {
    max_in_lanes(values)
}

/// Returns the largest value: the body of [`max`], for loops that are compiled for several instruction sets themselves.
#[allow(clippy::inline_always, reason = "must be compiled into each version of the loops that call it")]
#[inline(always)]
pub(super) fn max_in_lanes(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = values.chunks_exact(16);
    let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] = lanes[lane].max(chunk[lane]);
        }
    }
    lanes.iter().copied().fold(tail, f32::max)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn scale(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units_in_the_last_place() {
        for i in -8_600..8_700 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "exp({x}): relative error {error:e}");
        }
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
    }

    #[test]
    fn exp_passes_not_a_number_on() {
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn dot_adds_whole_chunks_and_the_tail() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        let exact: f32 = a.iter().map(|a| a * a).sum();
        assert!((dot(&a, &a) - exact).abs() < 1e-3);
    }
}
