//! Products with the small matrices of adapters, which are read straight through from memory for a row or two each
//! (Chen et al., "Punica", 2023, section 4, has the same two products for a GPU). Called by `cpu::lora`.
//!
//! The micro-kernels are those of the panels, run on the calling thread. A row's result does not depend on the rows
//! beside it.

use half::bf16;

use super::LANES;
use super::float::{F32, FloatRows, Floats, Stored, Words};
use super::level::Level;
use super::portable::Portable;
use super::product::{Ahead, Format, MOST_ROWS, Tile, pieces};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};

/// Distance, in bytes, at which the matrix is prefetched into the cache. The CPU's own prefetching ends with each page
/// of memory, and the matrices of many adapters have many pages.
const AHEAD: usize = 8192;

/// A number type that adapters are kept in.
pub(in super::super) trait Element: Copy {
    /// The kernels' format of the type.
    #[expect(private_bounds, reason = "known to the kernels alone")]
    type Stored: Stored;
}

impl Element for f32 {
    type Stored = F32;
}

impl Element for bf16 {
    type Stored = Words;
}

/// A matrix of `width` columns for `depth` inputs.
#[derive(Clone, Copy)]
pub(in super::super) struct Narrow<'a, E> {
    values: &'a [E],
    depth: usize,
    width: usize,
    /// Values from one input to the next.
    line: usize,
    /// Values from 16 columns to the next 16.
    panel: usize,
}

impl<'a, E> Narrow<'a, E> {
    /// Wraps a matrix `[depth, width]`, with at least 15 arbitrary values after it.
    pub(in super::super) fn lines(values: &'a [E], depth: usize, width: usize) -> Self {
        Self::new(values, depth, width, width, LANES)
    }

    /// Wraps a matrix `[⌈width / 16⌉, depth, 16]`: one group of 16 columns after the other.
    pub(in super::super) fn panels(values: &'a [E], depth: usize, width: usize) -> Self {
        Self::new(values, depth, width, LANES, depth * LANES)
    }

    fn new(values: &'a [E], depth: usize, width: usize, line: usize, panel: usize) -> Self {
        let last = width.div_ceil(LANES).saturating_sub(1) * panel + depth.saturating_sub(1) * line;
        assert!(width == 0 || depth == 0 || last + LANES <= values.len(), "sixteen values can be read at each place");
        Self { values, depth, width, line, panel }
    }

    /// Returns the address of the first value.
    pub(in super::super) fn address(&self) -> *const u8 {
        self.values.as_ptr().cast()
    }

    /// Returns the address [`AHEAD`] bytes after the `start`-th byte: in this matrix or in the `next` one.
    fn ahead(&self, start: usize, next: *const u8) -> *const u8 {
        let (place, end) = (start + AHEAD, self.depth * self.width.next_multiple_of(LANES) * size_of::<E>());
        if place < end { self.address().wrapping_add(place) } else { next.wrapping_add(place - end) }
    }
}

/// Computes `y += x · matrix` with `x` `[rows, depth]` and `y` `[rows, width]`; a product of zero changes no bit.
pub(in super::super) fn add_product<E: Element>(
    y: &mut [f32],
    x: &[f32],
    rows: usize,
    matrix: Narrow<'_, E>,
    next: *const u8,
) {
    // SAFETY: the CPU has its best instruction set.
    unsafe { add_product_for(Level::best(), y, x, rows, matrix, next) }
}

/// Computes [`add_product`] in one instruction set.
///
/// # Safety
/// The CPU must have the instruction set.
pub(super) unsafe fn add_product_for<E: Element>(
    level: Level,
    y: &mut [f32],
    x: &[f32],
    rows: usize,
    matrix: Narrow<'_, E>,
    next: *const u8,
) {
    assert!(x.len() == rows * matrix.depth && y.len() == rows * matrix.width, "rows have the matrix's sizes");
    if y.is_empty() || x.is_empty() {
        return;
    }
    // SAFETY: sizes were checked, and the caller promises the instruction set.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2(y, x, rows, matrix, next),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512(y, x, rows, matrix, next),
            _ => add::<Portable, E>(y, x, rows, matrix, next),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<E: Element>(y: &mut [f32], x: &[f32], rows: usize, matrix: Narrow<'_, E>, next: *const u8) {
    // SAFETY: the caller's promises.
    unsafe { add::<Avx2, E>(y, x, rows, matrix, next) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn avx512<E: Element>(y: &mut [f32], x: &[f32], rows: usize, matrix: Narrow<'_, E>, next: *const u8) {
    // SAFETY: the caller's promises.
    unsafe { add::<Avx512, E>(y, x, rows, matrix, next) }
}

/// Computes [`add_product`] in the instruction set of `S`.
///
/// # Safety
/// `x` and `y` must hold the rows; the CPU must have the instruction set.
#[allow(clippy::inline_always, reason = "must be compiled for the instruction set of its caller")]
#[inline(always)]
unsafe fn add<S: Floats, E: Element>(y: &mut [f32], x: &[f32], rows: usize, matrix: Narrow<'_, E>, next: *const u8) {
    const STRIDE: usize = 2 * LANES;
    let (at_once, most_rows) = <E::Stored as Format<S>>::shape(rows);
    let panels = matrix.width.div_ceil(LANES);
    let [line_bytes, panel_bytes] = [matrix.line, matrix.panel].map(|values| values * size_of::<E>());
    let mut sums = [0.0_f32; MOST_ROWS * STRIDE];
    for panel in (0..panels).step_by(at_once) {
        let count = at_once.min(panels - panel);
        let weights = matrix.address().wrapping_add(panel * panel_bytes);
        let columns = panel * LANES..matrix.width.min((panel + count) * LANES);
        for tile_rows in pieces(rows, most_rows) {
            let first = tile_rows.start == 0;
            let ahead = if first { matrix.ahead(panel * panel_bytes, next) } else { weights };
            let tile = Tile {
                x: FloatRows { values: x[tile_rows.start * matrix.depth..].as_ptr(), stride: matrix.depth },
                weights,
                table: std::ptr::null(),
                widened: false,
                panel_bytes,
                line_bytes,
                depth: matrix.depth,
                start: std::ptr::null(),
                start_stride: 0,
                y: sums.as_mut_ptr(),
                y_stride: STRIDE,
                ahead: Ahead { weights: ahead, tiles: 1 },
            };
            // SAFETY: the matrix can be read at each place, `x` holds the rows and `sums` has room.
            unsafe { <E::Stored as Format<S>>::tile(tile_rows.len(), count, &tile) };
            for (row, sums) in tile_rows.zip(sums.chunks_exact(STRIDE)) {
                let y = &mut y[row * matrix.width..][columns.clone()];
                for (y, sum) in y.iter_mut().zip(sums) {
                    // Adding zero would lose the sign of a zero in `y`.
                    *y = if *sum == 0.0 { *y } else { *y + *sum };
                }
            }
        }
    }
}
