//! Draws tokens on the GPU, so that only they are read back and not their logits.

use bytemuck::{Pod, Zeroable};
use candle_core::{DType, Tensor};

use super::launch::{Kernel, Launcher, Shape, launch, output};
use crate::address::address;
use crate::kernels::Draw;
use crate::{Error, Result};

const DRAW: &str = include_str!("sources/draw.cu");

/// Arguments of kernels in `draw.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DrawArguments {
    logits: u64,
    requests: u64,
    tokens: u64,
    classes: u32,
    padding: u32,
}

/// See [`draw`](crate::kernels::GpuKernels::draw).
pub fn draw(launcher: &dyn Launcher, logits: &Tensor, draws: &[Draw]) -> Result<Vec<u32>> {
    let ((rows, classes), logits) = (logits.dims2()?, logits.contiguous()?);
    if draws.len() != rows {
        return Err(Error::Internal(format!("{} draws from {rows} rows", draws.len())));
    }
    let requests = draws
        .iter()
        .map(|draw| [draw.temperature.into(), draw.point, draw.top_k as f64, draw.top_p.into(), draw.min_p.into()]);
    let requests = Tensor::from_iter(requests.flatten(), logits.device())?;
    let tokens = output(rows, DType::U32, &logits)?;
    let arguments = DrawArguments {
        logits: address(&logits)?,
        requests: address(&requests)?,
        tokens: address(&tokens)?,
        classes: classes as u32,
        padding: 0,
    };
    launch(launcher, Kernel::new("draw", DRAW, logits.dtype())?, &arguments, Shape::rows(rows, classes))?;
    Ok(tokens.to_vec1()?)
}
