//! Products of few rows with a matrix that is read straight through: what adapters need, whose matrices are read from
//! memory for a row or two each (Chen et al., "Punica", 2023, section 4, has the same two products for a GPU), and what
//! attention is made of.
//!
//! Every value is summed in the same order whatever else is computed beside it: a row's result depends neither on the number of
//! rows nor on how they are split among threads.

use super::lanes::{Element, Kernel, LANES, Lanes};

/// Bytes that are fetched into the cache before their turn. The CPU's own prefetching ends with each page of memory, and the
/// matrices of many adapters have many pages.
const AHEAD: usize = 8192;

/// `shrunk = x · Aᵀ` of at least one row.
pub(super) struct Shrink<'a, E> {
    /// `[rows, input]`
    pub(super) x: &'a [f32],
    /// Aᵀ, `[input, rank]`
    pub(super) a: &'a [E],
    /// The matrix whose turn it is afterwards.
    pub(super) next: &'a [E],
    /// `[rows, rank]`
    pub(super) shrunk: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) rank: usize,
}

#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
impl<E: Element> Kernel for Shrink<'_, E> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { x, a, next, shrunk, rows, rank } = self;
        let input = x.len() / rows;
        assert!(x.len() == rows * input && a.len() == input * rank && shrunk.len() == rows * rank);
        for row in 0..rows {
            let x = &x[row * input..][..input];
            let shrunk = &mut shrunk[row * rank..][..rank];
            let mut first = 0;
            // SAFETY: all places lie inside the slices, whose sizes were asserted; the caller promises the instructions.
            unsafe {
                while first < rank {
                    let ahead = Ahead { matrix: a, next, first: row == 0 && first == 0 };
                    let (lines, y) = (a.as_ptr().add(first), shrunk.as_mut_ptr().add(first));
                    first += match rank - first {
                        64.. => sum_lines::<E, L, 8, 1>(x, lines, rank, y, ahead),
                        32.. => sum_lines::<E, L, 4, 2>(x, lines, rank, y, ahead),
                        16.. => sum_lines::<E, L, 2, 4>(x, lines, rank, y, ahead),
                        LANES.. => sum_lines::<E, L, 1, 8>(x, lines, rank, y, ahead),
                        count => {
                            let mut total = L::zero();
                            for (line, x) in x.iter().enumerate() {
                                let values = E::load_first(lines.add(line * rank), count);
                                total = total.plus_product(L::splat(*x), values);
                            }
                            let mut values = [0.0; LANES];
                            total.store(values.as_mut_ptr());
                            std::ptr::copy_nonoverlapping(values.as_ptr(), y, count);
                            count
                        }
                    };
                }
            }
        }
    }
}

/// `y = Σ weights[line] · lines[line]` for `8 · BLOCKS` neighbouring values, which it returns the number of; `SUMS` lines are
/// added at a time, each to sums of its own, which are brought together at the end.
///
/// # Safety
/// The pointers must be valid for the values on every line, and the CPU must have the instructions of `L`.
#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
#[allow(clippy::needless_range_loop, reason = "unrolled by lane")]
#[inline(always)]
unsafe fn sum_lines<E: Element, L: Lanes, const BLOCKS: usize, const SUMS: usize>(
    weights: &[f32],
    lines: *const E,
    stride: usize,
    y: *mut f32,
    ahead: Ahead<'_, E>,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [[L::zero(); BLOCKS]; SUMS];
        let whole = weights.len() - weights.len() % SUMS;
        for line in (0..whole).step_by(SUMS) {
            ahead.fetch(line * stride, SUMS * stride);
            for sum in 0..SUMS {
                let weight = L::splat(*weights.get_unchecked(line + sum));
                for block in 0..BLOCKS {
                    let values = E::load(lines.add((line + sum) * stride + block * LANES));
                    totals[sum][block] = totals[sum][block].plus_product(weight, values);
                }
            }
        }
        for line in whole..weights.len() {
            let weight = L::splat(weights[line]);
            for block in 0..BLOCKS {
                let values = E::load(lines.add(line * stride + block * LANES));
                totals[0][block] = totals[0][block].plus_product(weight, values);
            }
        }
        for block in 0..BLOCKS {
            let mut total = totals[0][block];
            for sum in 1..SUMS {
                total = total.plus_product(L::splat(1.0), totals[sum][block]);
            }
            total.store(y.add(block * LANES));
        }
    }
    LANES * BLOCKS
}

/// `y += scale · shrunk · Bᵀ` of at least one row; a product of zero leaves every bit as it was.
pub(super) struct Expand<'a, E> {
    /// `[rows, rank]`
    pub(super) shrunk: &'a [f32],
    /// `[output, rank]`
    pub(super) b: &'a [E],
    /// The matrix whose turn it is afterwards.
    pub(super) next: &'a [E],
    /// `[rows, output]`
    pub(super) y: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) rank: usize,
    pub(super) scale: f32,
}

#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
#[allow(clippy::needless_range_loop, reason = "unrolled by lane")]
impl<E: Element> Kernel for Expand<'_, E> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { shrunk, b, next, y, rows, rank, scale } = self;
        let output = y.len() / rows;
        assert!(shrunk.len() == rows * rank && b.len() == output * rank && y.len() == rows * output);
        let ahead = Ahead { matrix: b, next, first: true };
        for first in (0..output).step_by(LANES) {
            ahead.fetch(first * rank, LANES * rank);
            let count = (output - first).min(LANES);
            // SAFETY: all places lie inside the slices, whose sizes were asserted; the caller promises the instructions.
            unsafe {
                // The last line again where there are fewer than eight.
                let mut lines = [b.as_ptr().add(first * rank); LANES];
                for lane in 0..LANES {
                    lines[lane] = lines[lane].add(lane.min(count - 1) * rank);
                }
                for row in 0..rows {
                    let x = shrunk.as_ptr().add(row * rank);
                    let products: L = match rank {
                        8 => dot_8(x, lines, 8),
                        16 => dot_8(x, lines, 16),
                        32 => dot_8(x, lines, 32),
                        _ => dot_8(x, lines, rank),
                    };
                    let delta = products.times(L::splat(scale));
                    let place = y.as_mut_ptr().add(row * output + first);
                    if count == LANES {
                        L::load(place).plus_unless_zero(delta).store(place);
                    } else {
                        let mut values = [0.0; LANES];
                        L::load_first(place, count).plus_unless_zero(delta).store(values.as_mut_ptr());
                        std::ptr::copy_nonoverlapping(values.as_ptr(), place, count);
                    }
                }
            }
        }
    }
}

/// What is fetched while a matrix is read, from its beginning to its end.
#[derive(Clone, Copy)]
struct Ahead<'a, E> {
    matrix: &'a [E],
    next: &'a [E],
    /// False where the matrix is read another time.
    first: bool,
}

#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
impl<E: Element> Ahead<'_, E> {
    /// Asks for what comes [`AHEAD`] after the `count` values from `start` on.
    #[inline(always)]
    fn fetch(&self, start: usize, count: usize) {
        if !self.first {
            return;
        }
        let start = start * size_of::<E>() + AHEAD;
        let beyond = start.checked_sub(size_of_val(self.matrix));
        let from = beyond.map_or(self.matrix.as_ptr().cast::<u8>().wrapping_add(start), |place| {
            self.next.as_ptr().cast::<u8>().wrapping_add(place)
        });
        for place in (0..count * size_of::<E>()).step_by(64) {
            super::fetch(from.wrapping_add(place));
        }
    }
}

/// The dot products of `x` with eight lines of `depth` values.
///
/// # Safety
/// The pointers must be valid for `depth` values, and the CPU must have the instructions of `L`.
#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
#[allow(clippy::needless_range_loop, reason = "unrolled by lane")]
#[inline(always)]
pub(super) unsafe fn dot_8<E: Element, L: Lanes>(x: *const f32, lines: [*const E; LANES], depth: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [L::zero(); LANES];
        let whole = depth - depth % LANES;
        let mut k = 0;
        while k < whole {
            let values = L::load(x.add(k));
            for lane in 0..LANES {
                sums[lane] = sums[lane].plus_product(values, E::load(lines[lane].add(k)));
            }
            k += LANES;
        }
        if k < depth {
            let values = L::load_first(x.add(k), depth - k);
            for lane in 0..LANES {
                sums[lane] = sums[lane].plus_product(values, E::load_first(lines[lane].add(k), depth - k));
            }
        }
        L::sums(sums)
    }
}

/// `sum += weights[line] · lines[line]` over all lines, in their order; lines begin `stride` values apart.
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

/// The same for `8 · N` neighbouring values.
///
/// # Safety
/// The pointers must be valid for them on every line, and the CPU must have the instructions of `L`.
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
