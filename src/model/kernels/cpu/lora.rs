//! The low-rank part of linear layers in a serving step: many adapters, each on its own rows, for all layers that share an
//! input, in one parallel section.

use std::cell::Cell;
use std::sync::{OnceLock, RwLockReadGuard};

use candle_core::{CpuStorage, Storage, Tensor};
use half::bf16;

use super::dots::{Expand, Shrink};
use super::lanes::{Element, dispatch};
use super::panels::share;
use super::{Values, with_values_mut};
use crate::model::kernels::LoraRows;
use crate::{Error, Result};

thread_local! {
    /// A x of the rows at hand. Taken out while it is used, so that it cannot be met twice.
    static SHRUNK: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// See [`crate::model::kernels::add_lora_rows`].
pub fn add(outputs: &[Tensor], x: &Tensor, tasks: &[LoraRows<'_>]) -> Result<()> {
    let (_, input) = x.dims2()?;
    let widths = outputs.iter().map(|output| Ok(output.dims2()?.1)).collect::<Result<Vec<_>>>()?;
    let values = Values::of(x)?;
    let work: usize = tasks.iter().map(|task| task.rows.len() * task.pair.a.dims()[0] * (input + widths[0])).sum();
    with_values_mut(outputs, &|outputs| {
        let run = |index: usize| {
            let task = &tasks[index];
            let output = widths[task.output];
            // SAFETY: no two tasks have the same rows of the same output.
            let y = unsafe { outputs[task.output].slice(task.rows.start * output..task.rows.end * output) };
            let x = &values[task.rows.start * input..task.rows.end * input];
            // The next task's matrix is fetched while this one's are used.
            add_pair(y, x, task, tasks.get(index + 1))
        };
        let failure = OnceLock::new();
        share(tasks.len(), work, |index| {
            if let Err(error) = run(index) {
                let _ = failure.set(error);
            }
        });
        failure.into_inner().map_or(Ok(()), Err)
    })
}

fn add_pair(y: &mut [f32], x: &[f32], task: &LoraRows<'_>, next: Option<&LoraRows<'_>>) -> Result<()> {
    let (pair, rows, rank) = (task.pair, task.rows.len(), task.pair.a.dims()[0]);
    // No copies where the adapter was made to be served, which holds Aᵀ.
    let (a, next) = (pair.a.t()?.contiguous()?, next.unwrap_or(task).pair.a.t()?.contiguous()?);
    let (a, b, next) = (Stored::of(&a)?, Stored::of(&pair.b)?, Stored::of(&next)?);
    match (a.elements()?, b.elements()?, next.elements()?) {
        (Elements::F32(a), Elements::F32(b), next) => product(y, x, [a, b, next.f32()], pair.scale, [rows, rank]),
        (Elements::Bf16(a), Elements::Bf16(b), next) => product(y, x, [a, b, next.bf16()], pair.scale, [rows, rank]),
        _ => return Err(Error::Internal("A and B of an adapter differ in their precision".into())),
    }
    Ok(())
}

/// `matrices` are Aᵀ `[in, rank]`, B `[out, rank]`, and the Aᵀ of the next task.
fn product<E: Element>(y: &mut [f32], x: &[f32], matrices: [&[E]; 3], scale: f32, [rows, rank]: [usize; 2]) {
    if rows == 0 || rank == 0 {
        return;
    }
    let [a, b, next] = matrices;
    let mut shrunk = SHRUNK.take();
    shrunk.clear();
    shrunk.resize(rows * rank, 0.0); // x · Aᵀ, [rows, rank]
    dispatch(Shrink { x, a, next: b, shrunk: &mut shrunk, rows, rank });
    dispatch(Expand { shrunk: &shrunk, b, next, y, rows, rank, scale });
    SHRUNK.set(shrunk);
}

/// A contiguous tensor on the CPU, in the precision that it is kept in.
struct Stored<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    range: std::ops::Range<usize>,
}

enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Elements<'a> {
    /// Nothing where they are of another precision.
    fn f32(self) -> &'a [f32] {
        if let Self::F32(values) = self { values } else { &[] }
    }

    /// As above.
    fn bf16(self) -> &'a [bf16] {
        if let Self::Bf16(values) = self { values } else { &[] }
    }
}

impl<'a> Stored<'a> {
    fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::Internal("an adapter's matrix is not contiguous".into()));
        };
        Ok(Self { storage, range: start..end })
    }

    fn elements(&self) -> Result<Elements<'_>> {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => Ok(Elements::F32(&values[self.range.clone()])),
            Storage::Cpu(CpuStorage::BF16(values)) => Ok(Elements::Bf16(&values[self.range.clone()])),
            _ => Err(Error::Internal("an adapter's matrix is neither f32 nor bf16 on the CPU".into())),
        }
    }
}
