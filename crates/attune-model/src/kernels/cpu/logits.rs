//! Passes over one row of logits, as wide as the vocabulary, for drawing a token. Called by `engine/sampler.rs`.

use multiversion::multiversion;

use super::vector;

/// Values in a block of [`block_maxima`] and [`block_sums`].
pub const BLOCK: usize = 64;

/// Returns true if every value is finite.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let broken = |values: &[f32]| values.iter().fold(false, |any, x| any | (x.to_bits() & EXPONENT == EXPONENT));
    !values.chunks(1024).any(broken)
}

/// Returns the index of the largest value, the lowest among equals. Values must not be NaN.
pub fn position_of_max(values: &[f32]) -> usize {
    let max = vector::max(values);
    let mut start = 0;
    for block in values.chunks(1024) {
        if vector::max(block) >= max {
            return start + block.iter().position(|value| *value >= max).unwrap_or(0);
        }
        start += block.len();
    }
    0
}

/// Turns logits into weights, which are probabilities times a constant: the largest weight is 1. `temperature` must be
/// above 0; values may be −∞.
pub fn to_weights(logits: &mut [f32], temperature: f32) {
    let max = vector::max(logits);
    to_weights_below(logits, max, temperature);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn to_weights_below(logits: &mut [f32], max: f32, temperature: f32) {
    for logit in logits {
        // A quotient, since the inverse of a tiny temperature is infinite and would turn the largest logit into NaN.
        *logit = vector::exp((*logit - max) / temperature);
    }
}

/// Writes the largest value of each block of [`BLOCK`] values to `maxima`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn block_maxima(values: &[f32], maxima: &mut Vec<f32>) {
    maxima.clear();
    maxima.extend(values.chunks(BLOCK).map(vector::max_in_lanes));
}

/// Writes the sum of each block of [`BLOCK`] values to `sums`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn block_sums(values: &[f32], sums: &mut Vec<f64>) {
    sums.clear();
    sums.extend(values.chunks(BLOCK).map(|block| {
        let mut lanes = [0.0_f64; 8];
        let chunks = block.chunks_exact(8);
        let tail: f64 = chunks.remainder().iter().map(|value| f64::from(*value)).sum();
        for chunk in chunks {
            for lane in 0..8 {
                lanes[lane] += f64::from(chunk[lane]);
            }
        }
        lanes.iter().sum::<f64>() + tail
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_the_largest_is_found_in_every_block() {
        for place in [0, 5, 1023, 1024, 2500] {
            let mut values = vec![-3.0; 2501];
            values[place..].fill(2.0);
            assert_eq!(position_of_max(&values), place);
        }
    }

    #[test]
    fn what_is_not_finite_is_found_anywhere() {
        let mut values = vec![1.0; 3000];
        assert!(all_finite(&values));
        for (place, broken) in [(0, f32::NAN), (1500, f32::INFINITY), (2999, f32::NEG_INFINITY)] {
            let before = std::mem::replace(&mut values[place], broken);
            assert!(!all_finite(&values));
            values[place] = before;
        }
    }

    #[test]
    fn blocks_cover_all_values() {
        let values: Vec<f32> = (0..200).map(|i| ((i * 37) % 101) as f32).collect();
        let (mut maxima, mut sums) = (Vec::new(), Vec::new());
        block_maxima(&values, &mut maxima);
        block_sums(&values, &mut sums);
        let plain: Vec<f32> = values.chunks(BLOCK).map(|block| block.iter().copied().fold(0.0, f32::max)).collect();
        assert_eq!(maxima, plain);
        assert_eq!(sums.len(), 4);
        assert!((sums.iter().sum::<f64>() - f64::from(values.iter().sum::<f32>())).abs() < 1e-6);
    }
}
