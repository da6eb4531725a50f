//! The low-rank part of linear layers in a serving step: many adapters, each on its own rows, for all layers that share an
//! input, in one parallel section.

use std::cell::Cell;
use std::sync::RwLockReadGuard;

use candle_core::{CpuStorage, Storage, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::dots::{Dots, Write};
use super::lanes::{Element, dispatch};
use super::{Values, with_values_mut};
use crate::model::kernels::LoraRows;
use crate::{Error, Result};

/// Multiplications below which another thread is not worth its call.
const SERIAL_WORK: usize = 1 << 16;

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
        let run = |task: &LoraRows<'_>| {
            let output = widths[task.output];
            // SAFETY: no two tasks have the same rows of the same output.
            let y = unsafe { outputs[task.output].slice(task.rows.start * output..task.rows.end * output) };
            let x = &values[task.rows.start * input..task.rows.end * input];
            add_pair(y, x, task)
        };
        if work < SERIAL_WORK { tasks.iter().try_for_each(run) } else { tasks.par_iter().try_for_each(run) }
    })
}

fn add_pair(y: &mut [f32], x: &[f32], task: &LoraRows<'_>) -> Result<()> {
    let (pair, rows) = (task.pair, task.rows.len());
    let ((rank, input), (output, _)) = (pair.a.dims2()?, pair.b.dims2()?);
    let size = Size { rows, input, rank, output };
    let (a, b) = (Stored::of(&pair.a)?, Stored::of(&pair.b)?);
    match (a.elements()?, b.elements()?) {
        (Elements::F32(a), Elements::F32(b)) => product(y, x, a, b, pair.scale, size),
        (Elements::Bf16(a), Elements::Bf16(b)) => product(y, x, a, b, pair.scale, size),
        _ => return Err(Error::Internal("A and B of an adapter differ in their precision".into())),
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    input: usize,
    rank: usize,
    output: usize,
}

fn product<E: Element>(y: &mut [f32], x: &[f32], a: &[E], b: &[E], scale: f32, size: Size) {
    let Size { rows, input, rank, output } = size;
    let mut shrunk = SHRUNK.take();
    shrunk.clear();
    shrunk.resize(rows * rank, 0.0); // x · Aᵀ, [rows, rank]
    let shrink = Dots { x, matrix: a, y: &mut shrunk, rows, columns: rank, depth: input, write: Write::Set };
    dispatch(shrink);
    let expand = Dots { x: &shrunk, matrix: b, y, rows, columns: output, depth: rank, write: Write::Add(scale) };
    dispatch(expand);
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
