//! The low-rank part of linear layers in a serving step: many adapters, each on its own rows, for all layers that share
//! an input, in one parallel section.

use std::cell::Cell;
use std::sync::{OnceLock, RwLockReadGuard};

use candle_core::{CpuStorage, Layout, Storage, Tensor};
use half::bf16;

use super::panels::narrow::{Element, Narrow, add_product};
use super::panels::share;
use super::{Values, with_values_mut};
use crate::kernels::LoraRows;
use crate::lora::LoraPair;
use crate::lora::layout::lay_out;
use crate::{Error, Result};

thread_local! {
    /// The product A x of the rows at hand. Taken out while in use, so that it is never used twice at a time.
    static SHRUNK: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Adds the low-rank part of many adapters, each to its own rows of one of `outputs`: the products `[rows, out]` of `x`
/// `[rows, in]` with the layers that share it as their input, fresh tensors that nothing else holds.
///
/// A row's result does not depend on the other rows; rows without an adapter, and rows of one whose B is 0, keep every
/// bit.
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
    if task.pair.a.dtype() != task.pair.b.dtype() {
        return Err(Error::Internal("A and B of an adapter differ in their precision".into()));
    }
    let made;
    let pair = if is_laid_out(task.pair) {
        task.pair
    } else {
        made = lay_out(&[task.pair], task.pair.a.dtype())?;
        &made[0]
    };
    let (a, b, next) = (Stored::of(&pair.a), Stored::of(&pair.b), Stored::of(&next.unwrap_or(task).pair.a));
    match (a.transposed()?, b.elements()?) {
        (Elements::F32(a), Elements::F32(b)) => product(y, x, task, [a, b], next.address()),
        (Elements::Bf16(a), Elements::Bf16(b)) => product(y, x, task, [a, b], next.address()),
        _ => return Err(Error::Internal("A and B of an adapter are of one precision".into())),
    }
    Ok(())
}

/// Adds the update of `task` to `y`. `matrices` are Aᵀ `[in, rank]` and B `[⌈out / 16⌉, rank, 16]`; `next` is the
/// address of the next task's matrices, which are fetched ahead.
fn product<E: Element>(y: &mut [f32], x: &[f32], task: &LoraRows<'_>, matrices: [&[E]; 2], next: *const u8) {
    let (rows, rank) = (task.rows.len(), task.pair.a.dims()[0]);
    if rows == 0 || rank == 0 {
        return;
    }
    let (input, output) = (x.len() / rows, y.len() / rows);
    let [a, b] = [Narrow::lines(matrices[0], input, rank), Narrow::panels(matrices[1], rank, output)];
    let mut shrunk = SHRUNK.take();
    shrunk.clear();
    shrunk.resize(rows * rank, 0.0);
    add_product(&mut shrunk, x, rows, a, b.address()); // x · Aᵀ, [rows, rank]
    for value in &mut shrunk {
        *value *= task.pair.scale;
    }
    add_product(y, &shrunk, rows, b, next);
    SHRUNK.set(shrunk);
}

fn is_laid_out(pair: &LoraPair) -> bool {
    pair.b.dims().len() == 3
}

/// A tensor on the CPU, in the precision that it is kept in.
struct Stored<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    layout: &'a Layout,
}

enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Stored<'a> {
    fn of(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    /// Returns the tensor's values, and those after them in memory.
    fn elements(&self) -> Result<Elements<'_>> {
        self.elements_if(self.layout.is_contiguous())
    }

    /// Returns the values of the tensor's transpose, and those after them in memory.
    fn transposed(&self) -> Result<Elements<'_>> {
        self.elements_if(self.layout.is_fortran_contiguous())
    }

    fn elements_if(&self, in_order: bool) -> Result<Elements<'_>> {
        let start = self.layout.start_offset();
        if !in_order {
            return Err(Error::Internal("an adapter's matrix is not in the order of its layout".into()));
        }
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => Ok(Elements::F32(&values[start..])),
            Storage::Cpu(CpuStorage::BF16(values)) => Ok(Elements::Bf16(&values[start..])),
            _ => Err(Error::Internal("an adapter's matrix is neither f32 nor bf16 on the CPU".into())),
        }
    }

    /// Returns the address of the first value.
    fn address(&self) -> *const u8 {
        let start = self.layout.start_offset();
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => values.as_ptr().wrapping_add(start).cast(),
            Storage::Cpu(CpuStorage::BF16(values)) => values.as_ptr().wrapping_add(start).cast(),
            _ => std::ptr::null(),
        }
    }
}
