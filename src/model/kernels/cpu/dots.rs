//! Products of few rows with a matrix that is read straight through: what adapters need, whose matrices are read from
//! memory for a row or two each (Chen et al., "Punica", 2023, section 4, has the same two products for a GPU).
//!
//! Every value is one dot product, summed in the same order whatever else is computed beside it: a row's result depends
//! neither on the number of rows nor on how they are split among threads.

use super::lanes::{Element, Kernel, LANES, Lanes};

/// Where the dot products go.
#[derive(Clone, Copy)]
pub(super) enum Write {
    /// They replace what was there.
    Set,
    /// They are added, multiplied by this; a product of zero leaves every bit as it was.
    Add(f32),
}

/// `y[row][column] (+)= x[row] · matrix[column]` for all rows and columns.
pub(super) struct Dots<'a, E> {
    /// `[rows, depth]`
    pub(super) x: &'a [f32],
    /// `[columns, depth]`
    pub(super) matrix: &'a [E],
    /// `[rows, columns]`
    pub(super) y: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) depth: usize,
    pub(super) write: Write,
}

#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
#[allow(clippy::needless_range_loop, reason = "unrolled by lane")]
impl<E: Element> Kernel for Dots<'_, E> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { x, matrix, y, rows, columns, depth, write } = self;
        assert!(x.len() == rows * depth && matrix.len() == columns * depth && y.len() == rows * columns);
        for first in (0..columns).step_by(LANES) {
            let count = (columns - first).min(LANES);
            let (x, y) = (x.as_ptr(), y.as_mut_ptr());
            // SAFETY: all places lie inside the slices, whose sizes were asserted; the caller promises the instructions.
            unsafe {
                // The last column again where there are fewer than eight.
                let mut lines = [matrix.as_ptr(); LANES];
                for lane in 0..LANES {
                    lines[lane] = lines[lane].add((first + lane.min(count - 1)) * depth);
                }
                for row in 0..rows {
                    let products: L = dot_8(x.add(row * depth), lines, depth);
                    let place = y.add(row * columns + first);
                    let new = match write {
                        Write::Set => products,
                        Write::Add(scale) => {
                            let old = if count == LANES { L::load(place) } else { L::load_first(place, count) };
                            old.plus_unless_zero(products.times(L::splat(scale)))
                        }
                    };
                    if count == LANES {
                        new.store(place);
                    } else {
                        let mut values = [0.0; LANES];
                        new.store(values.as_mut_ptr());
                        std::ptr::copy_nonoverlapping(values.as_ptr(), place, count);
                    }
                }
            }
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
