//! Draws tokens, so that only they come back from the device and not their logits.

use candle_core::{DType, Tensor};

use super::launch::{Arguments, Kernel, Launcher, Shape, address, launch, output};
use crate::Result;

const DRAW: &str = include_str!("sources/draw.cu");

#[derive(Clone, Copy)]
#[repr(C)]
struct Draw {
    logits: u64,
    temperatures: u64,
    points: u64,
    tokens: u64,
    classes: u32,
    padding: u32,
}

// SAFETY: as in `draw.cu`.
unsafe impl Arguments for Draw {}

/// See [`draw`](crate::model::kernels::draw).
pub fn draw(launcher: &dyn Launcher, logits: &Tensor, temperatures: &[f32], points: &[f64]) -> Result<Vec<u32>> {
    let ((rows, classes), logits) = (logits.dims2()?, logits.contiguous()?);
    let (temperatures, points) = (Tensor::new(temperatures, logits.device())?, Tensor::new(points, logits.device())?);
    let tokens = output(rows, DType::U32, &logits)?;
    let arguments = Draw {
        logits: address(&logits)?,
        temperatures: address(&temperatures)?,
        points: address(&points)?,
        tokens: address(&tokens)?,
        classes: classes as u32,
        padding: 0,
    };
    launch(launcher, Kernel::new("draw", DRAW, logits.dtype())?, &arguments, Shape::rows(rows, classes))?;
    Ok(tokens.to_vec1()?)
}
