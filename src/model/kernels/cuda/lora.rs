//! The low-rank parts of all adapters of a step.

use candle_core::{DType, Tensor};

use super::launch::{Arguments, Kernel, Launcher, Shape, WARP, address, is_half, launch, output};
use crate::adapters::LoraPair;
use crate::model::kernels::LoraRows;
use crate::{Error, Result};

const LORA: &str = include_str!("sources/lora.cu");
const LORA_TILES: &str = include_str!("sources/lora_tiles.cu");
/// Tasks and outputs of a launch, as in `lora.cu`.
const TASKS: usize = 96;
const OUTPUTS: usize = 3;
/// Warps of a block, and rows of A that it takes together, as in `lora.cu`.
const WARPS: usize = 8;
const RANKS: usize = 4;
/// Rows and ranks of a fragment, columns and warps of a block of `expand_tiles`, as in `lora_tiles.cu`.
const SIDE: usize = 16;
const EXPAND_COLUMNS: usize = 64;
const EXPAND_WARPS: usize = 4;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Task {
    a: u64,
    b: u64,
    start: u32,
    rows: u32,
    rank: u16,
    output: u16,
    scale: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Lora {
    x: u64,
    shrunk: u64,
    outputs: [u64; OUTPUTS],
    widths: [u32; OUTPUTS],
    input: u32,
    all_rows: u32,
    most: u32,
    tasks: [Task; TASKS],
}

// SAFETY: as in `lora.cu`.
unsafe impl Arguments for Lora {}

/// See [`add_lora_rows`](crate::model::kernels::add_lora_rows): two launches for up to 96 tasks, 32 adapters at query, key and
/// value; two more where some tasks have many rows and matrix units take them.
pub fn add(launcher: &dyn Launcher, outputs: &[Tensor], x: &Tensor, tasks: &[LoraRows<'_>]) -> Result<()> {
    if outputs.len() > OUTPUTS {
        return Err(Error::Internal(format!("{} layers share an input, kernels take {OUTPUTS}", outputs.len())));
    }
    let x = x.contiguous()?;
    let (tiled, plain): (Vec<_>, Vec<_>) =
        tasks.iter().partition(|task| task.rows.len() >= SIDE && takes_tiles(launcher, &x, task.pair));
    for (way, tasks) in [(Way::Tiles, tiled), (Way::Rows, plain)] {
        for tasks in tasks.chunks(TASKS) {
            start(launcher, outputs, &x, tasks, way)?;
        }
    }
    Ok(())
}

/// True where matrix units can add `pair`'s part for inputs like `x`.
pub fn takes_tiles(launcher: &dyn Launcher, x: &Tensor, pair: &LoraPair) -> bool {
    let (rank, input, output) = (pair.a.dims()[0], pair.a.dims()[1], pair.b.dims()[0]);
    let fits = rank.is_multiple_of(2) && output.is_multiple_of(2) && input.is_multiple_of(8);
    fits && is_half(x.dtype()) && launcher.has_matrix_units()
}

/// How tasks are computed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A block for a few ranks, a thread for each column, one row after the other.
    Rows,
    /// By matrix units.
    Tiles,
}

/// The two launches for `tasks`.
fn start(launcher: &dyn Launcher, outputs: &[Tensor], x: &Tensor, tasks: &[&LoraRows<'_>], way: Way) -> Result<()> {
    let (all_rows, input) = x.dims2()?;
    let rank = |task: &LoraRows<'_>| task.pair.a.dims()[0];
    let most = tasks.iter().map(|task| rank(task)).max().unwrap_or(0);
    let (most, between) = match way {
        Way::Rows => (most, DType::F32),
        Way::Tiles => (most.next_multiple_of(SIDE), x.dtype()),
    };
    let shrunk = output((outputs.len(), all_rows, most), between, x)?;
    let mut arguments = Lora {
        x: address(x)?,
        shrunk: address(&shrunk)?,
        outputs: [0; OUTPUTS],
        widths: [0; OUTPUTS],
        input: input as u32,
        all_rows: all_rows as u32,
        most: most as u32,
        tasks: [Task::default(); TASKS],
    };
    for (index, y) in outputs.iter().enumerate() {
        arguments.outputs[index] = address(y)?;
        arguments.widths[index] = y.dim(1)? as u32;
    }
    // What is served is held in the type of the inputs; an adapter fresh from training is not. Copies live until the launch.
    let alike = |matrix: &Tensor| matrix.to_dtype(x.dtype())?.contiguous();
    let mut held = Vec::with_capacity(tasks.len());
    for (place, task) in arguments.tasks.iter_mut().zip(tasks) {
        let (a, b) = (alike(&task.pair.a)?, alike(&task.pair.b)?);
        *place = Task {
            a: address(&a)?,
            b: address(&b)?,
            start: task.rows.start as u32,
            rows: task.rows.len() as u32,
            rank: rank(task) as u16,
            output: task.output as u16,
            scale: task.pair.scale,
        };
        held.push((a, b));
    }
    let rows = tasks.iter().map(|task| task.rows.len()).max().unwrap_or(0);
    let widest = arguments.widths.into_iter().max().unwrap_or(0) as usize;
    let start = |name, file, blocks: usize, warps: usize| {
        let kernel = Kernel::new(name, file, x.dtype())?;
        launch(launcher, kernel, &arguments, Shape::new((tasks.len(), blocks), warps * WARP))
    };
    match way {
        Way::Rows => {
            start("shrink", LORA, most.div_ceil(RANKS), WARPS)?;
            start("expand", LORA, widest.div_ceil(WARPS * WARP), WARPS)
        }
        Way::Tiles => {
            start("shrink_tiles", LORA_TILES, most / SIDE * rows.div_ceil(SIDE), WARPS)?;
            let blocks = widest.div_ceil(EXPAND_COLUMNS) * rows.div_ceil(EXPAND_WARPS * SIDE);
            start("expand_tiles", LORA_TILES, blocks, EXPAND_WARPS)
        }
    }
}
