//! Loops over the rows of a matrix, spread over the pool where that pays. Called by what works on rows.

use candle_core::Tensor;
use rayon::prelude::*;

use super::with_values_mut;
use crate::Result;

/// Runs `work` for each row of `dst` (`width` values), in parallel if that pays.
pub(super) fn for_rows(dst: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    const VALUES_PER_TASK: usize = 1 << 14;
    if dst.len() <= VALUES_PER_TASK {
        dst.chunks_exact_mut(width).enumerate().for_each(|(row, values)| work(row, values));
        return;
    }
    let rows_per_task = (VALUES_PER_TASK / width).max(1);
    dst.par_chunks_mut(rows_per_task * width).enumerate().for_each(|(task, chunk)| {
        for (offset, values) in chunk.chunks_exact_mut(width).enumerate() {
            work(task * rows_per_task + offset, values);
        }
    });
}

/// Runs `work` for each row of `x` (`width` values), which it changes in place; nothing else holds `x`.
pub(super) fn for_rows_in_place(x: &Tensor, width: usize, work: impl Fn(&mut [f32]) + Sync) -> Result<()> {
    with_values_mut(std::slice::from_ref(x), &|slices| {
        let [all] = slices else { return Ok(()) };
        let length = x.elem_count();
        // SAFETY: the only slice is this one, and each of its rows is handled once.
        for_rows(unsafe { all.slice(0..length) }, width, |_, row| work(row));
        Ok(())
    })
}
