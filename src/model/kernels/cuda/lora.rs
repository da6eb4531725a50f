//! The low-rank parts of all adapters of a step.

use candle_core::{DType, Tensor};

use super::launch::{Arguments, Kernel, Launcher, Shape, WARP, address, launch, output};
use crate::model::kernels::LoraRows;
use crate::{Error, Result};

const LORA: &str = include_str!("sources/lora.cu");
/// Tasks and outputs of a launch, as in `lora.cu`.
const TASKS: usize = 96;
const OUTPUTS: usize = 3;
const WARPS: usize = 8;

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
/// value.
pub fn add(launcher: &dyn Launcher, outputs: &[Tensor], x: &Tensor, tasks: &[LoraRows<'_>]) -> Result<()> {
    let ((rows, input), x) = (x.dims2()?, x.contiguous()?);
    let rank = |task: &LoraRows<'_>| task.pair.a.dims()[0];
    let most = tasks.iter().map(rank).max().unwrap_or(0);
    if outputs.len() > OUTPUTS {
        return Err(Error::Internal(format!("{} layers share an input, kernels take {OUTPUTS}", outputs.len())));
    }
    let shrunk = output((outputs.len(), rows, most), DType::F32, &x)?;
    let mut arguments = Lora {
        x: address(&x)?,
        shrunk: address(&shrunk)?,
        outputs: [0; OUTPUTS],
        widths: [0; OUTPUTS],
        input: input as u32,
        all_rows: rows as u32,
        most: most as u32,
        tasks: [Task::default(); TASKS],
    };
    for (index, y) in outputs.iter().enumerate() {
        arguments.outputs[index] = address(y)?;
        arguments.widths[index] = y.dim(1)? as u32;
    }
    let widest = arguments.widths.into_iter().max().unwrap_or(0) as usize;
    // What is served is held in the type of the inputs; an adapter fresh from training is not. Copies live until the launch.
    let alike = |matrix: &Tensor| matrix.to_dtype(x.dtype())?.contiguous();
    for tasks in tasks.chunks(TASKS) {
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
        let kernel = |name| Kernel::new(name, LORA, x.dtype());
        let ranks = Shape::new((tasks.len(), most.div_ceil(WARPS)), WARPS * WARP);
        launch(launcher, kernel("shrink")?, &arguments, ranks)?;
        let columns = Shape::new((tasks.len(), widest.div_ceil(WARPS * WARP)), WARPS * WARP);
        launch(launcher, kernel("expand")?, &arguments, columns)?;
        drop(held);
    }
    Ok(())
}
