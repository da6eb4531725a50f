//! Norms, rotary positions and SwiGLU, with their gradients.

use candle_core::Tensor;

use super::launch::{Arguments, Kernel, Launcher, Shape, address, launch, output};
use crate::Result;
use crate::model::rope::Angles;

const NORM: &str = include_str!("sources/norm.cu");
const ELEMENTWISE: &str = include_str!("sources/elementwise.cu");

#[derive(Clone, Copy)]
#[repr(C)]
struct RmsNorm {
    x: u64,
    weight: u64,
    y: u64,
    width: u32,
    eps: f32,
}

// SAFETY: as in `norm.cu`.
unsafe impl Arguments for RmsNorm {}

/// See [`rms_norm`](crate::model::kernels::rms_norm); the weight is f32.
pub fn rms_norm(launcher: &dyn Launcher, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (x, y) = (x.contiguous()?, output(x.shape(), x.dtype(), x)?);
    let width = weight.elem_count();
    let arguments = RmsNorm { x: address(&x)?, weight: address(weight)?, y: address(&y)?, width: width as u32, eps };
    let kernel = Kernel::new("rms_norm", NORM, x.dtype())?;
    launch(launcher, kernel, &arguments, Shape::rows(x.elem_count() / width, width))?;
    Ok(y)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RmsNormBackward {
    x: u64,
    weight: u64,
    dy: u64,
    dx: u64,
    width: u32,
    eps: f32,
}

// SAFETY: as in `norm.cu`.
unsafe impl Arguments for RmsNormBackward {}

/// See [`rms_norm_backward`](crate::model::kernels::rms_norm_backward).
pub fn rms_norm_backward(
    launcher: &dyn Launcher,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
) -> Result<Tensor> {
    let (x, dy, dx) = (x.contiguous()?, dy.contiguous()?, output(x.shape(), x.dtype(), x)?);
    let width = weight.elem_count();
    let arguments = RmsNormBackward {
        x: address(&x)?,
        weight: address(weight)?,
        dy: address(&dy)?,
        dx: address(&dx)?,
        width: width as u32,
        eps,
    };
    let kernel = Kernel::new("rms_norm_backward", NORM, x.dtype())?;
    launch(launcher, kernel, &arguments, Shape::rows(x.elem_count() / width, width))?;
    Ok(dx)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Rope {
    x: u64,
    cos: u64,
    sin: u64,
    y: u64,
    pairs: u64,
    heads: u32,
    half: u32,
    direction: f32,
    padding: u32,
}

// SAFETY: as in `elementwise.cu`.
unsafe impl Arguments for Rope {}

/// Rotates forwards (`direction` 1) or backwards (−1).
pub fn rope(launcher: &dyn Launcher, x: &Tensor, angles: &Angles, direction: f32) -> Result<Tensor> {
    let (_rows, heads, head_dim) = x.dims3()?;
    let (x, y) = (x.contiguous()?, output(x.shape(), x.dtype(), x)?);
    let pairs = x.elem_count() / 2;
    let arguments = Rope {
        x: address(&x)?,
        cos: address(&angles.cos)?,
        sin: address(&angles.sin)?,
        y: address(&y)?,
        pairs: pairs as u64,
        heads: heads as u32,
        half: (head_dim / 2) as u32,
        direction,
        padding: 0,
    };
    launch(launcher, Kernel::new("rope", ELEMENTWISE, x.dtype())?, &arguments, Shape::over(pairs))?;
    Ok(y)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct SwiGlu {
    gate: u64,
    up: u64,
    y: u64,
    count: u64,
}

// SAFETY: as in `elementwise.cu`.
unsafe impl Arguments for SwiGlu {}

/// See [`swiglu`](crate::model::kernels::swiglu).
pub fn swiglu(launcher: &dyn Launcher, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate, up, y) = (gate.contiguous()?, up.contiguous()?, output(gate.shape(), gate.dtype(), gate)?);
    let count = gate.elem_count();
    let arguments = SwiGlu { gate: address(&gate)?, up: address(&up)?, y: address(&y)?, count: count as u64 };
    launch(launcher, Kernel::new("swiglu", ELEMENTWISE, gate.dtype())?, &arguments, Shape::over(count))?;
    Ok(y)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct SwiGluBackward {
    gate: u64,
    up: u64,
    dy: u64,
    dgate: u64,
    dup: u64,
    count: u64,
}

// SAFETY: as in `elementwise.cu`.
unsafe impl Arguments for SwiGluBackward {}

/// See [`swiglu_backward`](crate::model::kernels::swiglu_backward).
pub fn swiglu_backward(launcher: &dyn Launcher, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (gate, up, dy) = (gate.contiguous()?, up.contiguous()?, dy.contiguous()?);
    let make = || output(gate.shape(), gate.dtype(), &gate);
    let (dgate, dup, count) = (make()?, make()?, gate.elem_count());
    let arguments = SwiGluBackward {
        gate: address(&gate)?,
        up: address(&up)?,
        dy: address(&dy)?,
        dgate: address(&dgate)?,
        dup: address(&dup)?,
        count: count as u64,
    };
    launch(launcher, Kernel::new("swiglu_backward", ELEMENTWISE, gate.dtype())?, &arguments, Shape::over(count))?;
    Ok((dgate, dup))
}
