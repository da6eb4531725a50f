//! Matrix products on a GPU, and the low-rank part of one adapter for all rows, for training.

use bytemuck::{Pod, Zeroable};
use candle_core::{DType, Tensor};

use super::elementwise::{self, rms_norm};
use super::launch::{Kernel, Launcher, Shape, WARP, launch, output};
use super::lora;
use crate::Result;
use crate::address::{VECTOR_BYTES, address};
use crate::kernels::{Activation, Dense, Norm};
use crate::lora::LoraPair;

const GEMV: &str = include_str!("sources/gemv.cu");
/// Matrices of a launch, as in `gemv.cu`.
const MATRICES: usize = 3;
/// Rows of weights that a warp takes, `TOGETHER` of `gemv.cu`.
const TOGETHER: usize = 4;
/// Most rows that our own kernel takes: with so few, a product is bound by reading its weights, which it reads once.
pub const FEW_ROWS: usize = 4;
const WARPS: usize = 4;

#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct Matrix {
    weight: u64,
    bias: u64,
    residual: u64,
    y: u64,
    width: u64,
}

/// Arguments of kernels in `gemv.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Gemv {
    x: u64,
    norm: u64,
    matrices: [Matrix; MATRICES],
    count: u32,
    input: u32,
    gated: u32,
    eps: f32,
    activation: u32,
    padding: u32,
}

/// Computes [`project`](crate::kernels::GpuKernels::project): a few rows in one launch, more by a product each.
pub fn project(
    launcher: &dyn Launcher,
    x: &Tensor,
    norm: Option<Norm<'_>>,
    matrices: &[Dense<'_>],
) -> Result<Vec<Tensor>> {
    if !is_few(x)? || matrices.len() > MATRICES {
        let x = normed(launcher, x, norm)?;
        return matrices.iter().map(|matrix| one_by_one(launcher, &x, matrix)).collect();
    }
    let outputs = matrices.iter().map(|matrix| output((x.dim(0)?, matrix.weight.dim(0)?), x.dtype(), x));
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    gemv(launcher, x, norm, matrices, None, &outputs)?;
    Ok(outputs)
}

/// See [`project_gated`](crate::kernels::GpuKernels::project_gated).
pub fn project_gated(
    launcher: &dyn Launcher,
    x: &Tensor,
    norm: Option<Norm<'_>>,
    matrices: [Dense<'_>; 2],
    activation: Activation,
) -> Result<Tensor> {
    if !is_few(x)? {
        let x = normed(launcher, x, norm)?;
        let [gate, up] = matrices;
        let (gate, up) = (one_by_one(launcher, &x, &gate)?, one_by_one(launcher, &x, &up)?);
        return elementwise::gated(launcher, activation, &gate, &up);
    }
    let y = output((x.dim(0)?, matrices[0].weight.dim(0)?), x.dtype(), x)?;
    gemv(launcher, x, norm, &matrices, Some(activation), std::slice::from_ref(&y))?;
    Ok(y)
}

/// See [`project_into`](crate::kernels::GpuKernels::project_into).
pub fn project_into(launcher: &dyn Launcher, residual: Tensor, x: &Tensor, matrix: Dense<'_>) -> Result<Tensor> {
    if is_few(x)? {
        let matrix = Dense { residual: Some(&residual), ..matrix };
        return Ok(project(launcher, x, None, &[matrix])?.remove(0));
    }
    launcher.add_product(&residual, x, &like(x, matrix.weight)?.t()?)?;
    match matrix.bias {
        Some(bias) => Ok(residual.broadcast_add(bias)?),
        None => Ok(residual),
    }
}

/// See [`add_product`](crate::kernels::Kernels::add_product).
pub fn add_product(launcher: &dyn Launcher, y: Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    launcher.add_product(&y, a, &like(a, b)?)?;
    Ok(y)
}

/// Returns true if our own kernel takes `x`, which it can norm on the way.
pub fn is_few(x: &Tensor) -> Result<bool> {
    let (rows, input) = x.dims2()?;
    Ok(rows <= FEW_ROWS && (input * x.dtype().size_in_bytes()).is_multiple_of(VECTOR_BYTES))
}

/// Computes the products with `matrices` into as many `outputs`; with an activation, activation(first) · second into
/// one.
fn gemv(
    launcher: &dyn Launcher,
    x: &Tensor,
    norm: Option<Norm<'_>>,
    matrices: &[Dense<'_>],
    activation: Option<Activation>,
    outputs: &[Tensor],
) -> Result<()> {
    let ((rows, input), x) = (x.dims2()?, x.contiguous()?);
    let gated = activation.is_some();
    let optional = |tensor: Option<&Tensor>| tensor.map_or(Ok(0), address);
    let mut arguments = Gemv {
        x: address(&x)?,
        norm: optional(norm.map(|norm| norm.weight))?,
        matrices: [Matrix::default(); MATRICES],
        count: matrices.len() as u32,
        input: input as u32,
        gated: u32::from(gated),
        eps: norm.map_or(0.0, |norm| norm.eps),
        activation: activation.map_or(0, elementwise::number),
        padding: 0,
    };
    for (index, (place, matrix)) in arguments.matrices.iter_mut().zip(matrices).enumerate() {
        *place = Matrix {
            weight: address(matrix.weight)?,
            bias: optional(matrix.bias)?,
            residual: optional(matrix.residual)?,
            y: optional(outputs.get(index))?,
            width: matrix.weight.dim(0)? as u64,
        };
    }
    let each = if gated { TOGETHER / 2 } else { TOGETHER };
    let warps: usize = outputs.iter().map(|y| y.dims()[1].div_ceil(each)).sum();
    let kernel = Kernel::new("gemv", GEMV, x.dtype())?.of_rows(rows);
    launch(launcher, kernel, &arguments, Shape::new((warps.div_ceil(WARPS), 1), WARPS * WARP))
}

fn normed(launcher: &dyn Launcher, x: &Tensor, norm: Option<Norm<'_>>) -> Result<Tensor> {
    norm.map_or(Ok(x.clone()), |norm| rms_norm(launcher, x, norm.weight, norm.eps))
}

fn one_by_one(launcher: &dyn Launcher, x: &Tensor, matrix: &Dense<'_>) -> Result<Tensor> {
    let mut y = linear(launcher, x, matrix.weight)?;
    if let Some(bias) = matrix.bias {
        y = y.broadcast_add(bias)?;
    }
    matrix.residual.map_or(Ok(y.clone()), |residual| Ok((residual + y)?))
}

/// Computes `x · Wᵀ` in the type of `x`.
pub fn linear(launcher: &dyn Launcher, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    launcher.product(x, &like(x, weight)?.t()?, x.dtype())
}

/// Computes `a · b` in the type of `a`.
pub fn matmul(launcher: &dyn Launcher, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    launcher.product(a, &like(a, b)?, a.dtype())
}

/// Computes `aᵀ · b` in f32: gradients of adapters, which add up over micro-batches.
pub fn matmul_transposed(launcher: &dyn Launcher, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    launcher.product(&a.t()?, &like(a, b)?, DType::F32)
}

/// Computes [`add_lora`](crate::kernels::Kernels::add_lora), with A and B in any type.
pub fn add_lora(launcher: &dyn Launcher, y: Tensor, x: &Tensor, pair: &LoraPair) -> Result<Tensor> {
    if lora::takes_tiles(launcher, x, pair) {
        lora::add_to_all(launcher, &y, x, pair)?;
        return Ok(y);
    }
    let shrunk = (linear(launcher, x, &pair.a)? * f64::from(pair.scale))?; // [rows, rank]
    Ok((y + linear(launcher, &shrunk, &pair.b)?)?)
}

/// Returns `matrix` in the type of `x`.
fn like(x: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    Ok(matrix.to_dtype(x.dtype())?)
}
