//! The low-rank parts of all adapters of a step, on a GPU.

use bytemuck::{Pod, Zeroable};
use candle_core::{DType, Tensor};

use super::launch::{Kernel, Launcher, Shape, WARP, is_half, launch, output};
use crate::address::address;
use crate::kernels::LoraRun;
use crate::lora::pointers::{PairPointers, fits_tiles};
use crate::lora::{LoraPair, Site};
use crate::{Error, Result};

const LORA: &str = include_str!("sources/lora.cu");
const LORA_TILES: &str = include_str!("sources/lora_tiles.cu");
/// Outputs of a launch, as in `lora.cuh`.
const OUTPUTS: usize = 3;
/// Tasks of a launch: few, those of 32 adapters at query, key and value; or many, as many as fit into a kernel's
/// arguments of 32,764 bytes, which is more than a step has sequences.
pub const FEW_TASKS: usize = 96;
const MANY_TASKS: usize = 1000;
/// Warps of a block, and rows of A that it takes together, as in `lora.cu`.
const WARPS: usize = 8;
const RANKS: usize = 4;
/// Rows and ranks of a fragment, columns and warps of a block of `expand_tiles`, as in `lora_tiles.cu`.
const SIDE: usize = 16;
const EXPAND_COLUMNS: usize = 64;
const EXPAND_WARPS: usize = 4;

#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct LoraTask {
    a: u64,
    b: u64,
    start: u32,
    rows: u32,
    rank: u16,
    output: u16,
    scale: f32,
}

/// Arguments of the kernels that `lora.cuh` declares.
#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
struct Lora<const TASKS: usize> {
    x: u64,
    shrunk: u64,
    outputs: [u64; OUTPUTS],
    widths: [u32; OUTPUTS],
    input: u32,
    all_rows: u32,
    most: u32,
    tasks: [LoraTask; TASKS],
}

// SAFETY: plain numbers without padding, since the fields before the tasks fill whole multiples of a task's alignment.
unsafe impl<const TASKS: usize> Pod for Lora<TASKS> {}

const _: () = assert!(size_of::<Lora<1>>() == (2 + OUTPUTS) * 8 + (OUTPUTS + 3) * 4 + size_of::<LoraTask>());

/// Returns true if matrix units can add `pair`'s part for inputs like `x`.
pub fn takes_tiles(launcher: &dyn Launcher, x: &Tensor, pair: &LoraPair) -> bool {
    fits_tiles(pair) && has_tiles(launcher, x)
}

fn has_tiles(launcher: &dyn Launcher, x: &Tensor) -> bool {
    is_half(x.dtype()) && launcher.has_matrix_units()
}

/// The way in which tasks are computed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LoraKernel {
    /// One block for a few ranks, one thread for each column, one row after the other.
    Rows,
    /// By matrix units.
    Tiles,
}

/// Adds the updates of all adapters, see [`add_lora_runs`](crate::kernels::GpuKernels::add_lora_runs): two launches,
/// whatever the number of adapters; two more if some have many rows and matrix units take them.
pub fn add(
    launcher: &dyn Launcher,
    outputs: &[Tensor],
    x: &Tensor,
    runs: &[LoraRun<'_>],
    layer: usize,
    first: Site,
) -> Result<()> {
    let has_tiles = has_tiles(launcher, x);
    let (mut plain, mut tiled) = (Vec::with_capacity(runs.len() * outputs.len()), Vec::new());
    for LoraRun { rows, pointers } in runs {
        let Some(pairs) = pointers.pairs.get(layer) else { continue };
        if pointers.dtype.is_some_and(|dtype| dtype != x.dtype()) {
            return Err(Error::Internal(format!("an adapter in {:?} meets rows in {:?}", pointers.dtype, x.dtype())));
        }
        let tasks = if has_tiles && pointers.fits_tiles && rows.len() >= SIDE { &mut tiled } else { &mut plain };
        for (output, place) in pairs[first as usize..].iter().take(outputs.len()).enumerate() {
            if let Some(PairPointers { a, b, rank, scale }) = *place {
                let (start, rows) = (rows.start as u32, rows.len() as u32);
                tasks.push(LoraTask { a, b, start, rows, rank, output: output as u16, scale });
            }
        }
    }
    start(launcher, outputs, x, &plain, LoraKernel::Rows)?;
    start(launcher, outputs, x, &tiled, LoraKernel::Tiles)
}

/// Adds `pair`'s update for all rows of `x` to `y`, by matrix units, which must take it.
pub fn add_to_all(launcher: &dyn Launcher, y: &Tensor, x: &Tensor, pair: &LoraPair) -> Result<()> {
    // An adapter that is neither served nor trained may be f32. The copies live until the launch.
    let alike = |matrix: &Tensor| matrix.to_dtype(x.dtype())?.contiguous();
    let pair = LoraPair { a: alike(&pair.a)?, b: alike(&pair.b)?, scale: pair.scale };
    let PairPointers { a, b, rank, scale } = PairPointers::of(&pair)?;
    let task = LoraTask { a, b, start: 0, rows: x.dim(0)? as u32, rank, output: 0, scale };
    start(launcher, std::slice::from_ref(y), x, &[task], LoraKernel::Tiles)
}

fn start(launcher: &dyn Launcher, outputs: &[Tensor], x: &Tensor, tasks: &[LoraTask], way: LoraKernel) -> Result<()> {
    if outputs.len() > OUTPUTS {
        return Err(Error::Internal(format!("{} layers share an input, kernels take {OUTPUTS}", outputs.len())));
    }
    let x = x.contiguous()?;
    if tasks.len() <= FEW_TASKS {
        return start_some::<FEW_TASKS>(launcher, outputs, &x, tasks, way);
    }
    tasks.chunks(MANY_TASKS).try_for_each(|tasks| start_some::<MANY_TASKS>(launcher, outputs, &x, tasks, way))
}

/// Starts the two launches for up to `TASKS` tasks.
fn start_some<const TASKS: usize>(
    launcher: &dyn Launcher,
    outputs: &[Tensor],
    x: &Tensor,
    tasks: &[LoraTask],
    way: LoraKernel,
) -> Result<()> {
    let (all_rows, input) = x.dims2()?;
    let most = tasks.iter().map(|task| task.rank as usize).max().unwrap_or(0);
    let (most, between) = match way {
        LoraKernel::Rows => (most, DType::F32),
        LoraKernel::Tiles => (most.next_multiple_of(SIDE), x.dtype()),
    };
    if most == 0 {
        return Ok(());
    }
    let shrunk = output((outputs.len(), all_rows, most), between, x)?;
    let mut arguments = Lora {
        x: address(x)?,
        shrunk: address(&shrunk)?,
        outputs: [0; OUTPUTS],
        widths: [0; OUTPUTS],
        input: input as u32,
        all_rows: all_rows as u32,
        most: most as u32,
        tasks: [LoraTask::default(); TASKS],
    };
    for (index, y) in outputs.iter().enumerate() {
        arguments.outputs[index] = address(y)?;
        arguments.widths[index] = y.dim(1)? as u32;
    }
    arguments.tasks[..tasks.len()].copy_from_slice(tasks);
    let rows = tasks.iter().map(|task| task.rows as usize).max().unwrap_or(0);
    let widest = arguments.widths.into_iter().max().unwrap_or(0) as usize;
    let start = |name, file, blocks: usize, warps: usize| {
        let kernel = Kernel::new(name, file, x.dtype())?.of_tasks(TASKS);
        launch(launcher, kernel, &arguments, Shape::new((tasks.len(), blocks), warps * WARP))
    };
    match way {
        LoraKernel::Rows => {
            start("shrink", LORA, most.div_ceil(RANKS), WARPS)?;
            start("expand", LORA, widest.div_ceil(WARPS * WARP), WARPS)
        }
        LoraKernel::Tiles => {
            start("shrink_tiles", LORA_TILES, most / SIDE * rows.div_ceil(SIDE), WARPS)?;
            let blocks = widest.div_ceil(EXPAND_COLUMNS) * rows.div_ceil(EXPAND_WARPS * SIDE);
            start("expand_tiles", LORA_TILES, blocks, EXPAND_WARPS)
        }
    }
}
