//! Matrix products, and the low-rank part of one adapter for all rows, as training needs it.

use candle_core::{DType, Tensor};

use super::launch::{Arguments, Kernel, Launcher, Shape, VECTOR_BYTES, WARP, address, launch, output};
use super::lora;
use crate::Result;
use crate::adapters::LoraPair;
use crate::model::kernels::{Dense, LoraRows};

const GEMV: &str = include_str!("sources/gemv.cu");
/// Matrices of a launch, as in `gemv.cu`.
const MATRICES: usize = 3;
/// Rows up to which a product is bound by reading its weights alone, and our kernel reads them once.
const FEW_ROWS: usize = 4;
const WARPS: usize = 8;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Matrix {
    weight: u64,
    bias: u64,
    residual: u64,
    y: u64,
    width: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Gemv {
    x: u64,
    matrices: [Matrix; MATRICES],
    count: u32,
    input: u32,
}

// SAFETY: as in `gemv.cu`.
unsafe impl Arguments for Gemv {}

/// See [`project`](crate::model::kernels::project): a few rows in one launch, more by a product for each matrix.
pub fn project(launcher: &dyn Launcher, x: &Tensor, matrices: &[Dense<'_>]) -> Result<Vec<Tensor>> {
    let (rows, input) = x.dims2()?;
    let aligned = (input * x.dtype().size_in_bytes()).is_multiple_of(VECTOR_BYTES);
    if rows > FEW_ROWS || !aligned || matrices.len() > MATRICES {
        return matrices.iter().map(|matrix| one_by_one(launcher, x, matrix)).collect();
    }
    let x = x.contiguous()?;
    let mut arguments = Gemv {
        x: address(&x)?,
        matrices: [Matrix::default(); MATRICES],
        count: matrices.len() as u32,
        input: input as u32,
    };
    let optional = |tensor: Option<&Tensor>| tensor.map_or(Ok(0), address);
    let (mut outputs, mut widths) = (Vec::with_capacity(matrices.len()), 0);
    for (place, matrix) in arguments.matrices.iter_mut().zip(matrices) {
        let width = matrix.weight.dim(0)?;
        let y = output((rows, width), x.dtype(), &x)?;
        *place = Matrix {
            weight: address(matrix.weight)?,
            bias: optional(matrix.bias)?,
            residual: optional(matrix.residual)?,
            y: address(&y)?,
            width: width as u64,
        };
        widths += width;
        outputs.push(y);
    }
    let kernel = Kernel::new("gemv", GEMV, x.dtype())?.of_rows(rows);
    launch(launcher, kernel, &arguments, Shape::new((widths.div_ceil(WARPS), 1), WARPS * WARP))?;
    Ok(outputs)
}

fn one_by_one(launcher: &dyn Launcher, x: &Tensor, matrix: &Dense<'_>) -> Result<Tensor> {
    let mut y = linear(launcher, x, matrix.weight)?;
    if let Some(bias) = matrix.bias {
        y = y.broadcast_add(bias)?;
    }
    matrix.residual.map_or(Ok(y.clone()), |residual| Ok((residual + y)?))
}

/// `x · Wᵀ` in the type of `x`.
pub fn linear(launcher: &dyn Launcher, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    launcher.product(x, &like(x, weight)?.t()?, x.dtype())
}

/// `a · b` in the type of `a`.
pub fn matmul(launcher: &dyn Launcher, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    launcher.product(a, &like(a, b)?, a.dtype())
}

/// `aᵀ · b` in f32: gradients of adapters, which add up over micro-batches.
pub fn matmul_transposed(launcher: &dyn Launcher, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    launcher.product(&a.t()?, &like(a, b)?, DType::F32)
}

/// See [`add_lora`](crate::model::kernels::add_lora): A and B in any type.
pub fn add_lora(launcher: &dyn Launcher, y: Tensor, x: &Tensor, pair: &LoraPair) -> Result<Tensor> {
    if lora::takes_tiles(launcher, x, pair) {
        lora::add(launcher, std::slice::from_ref(&y), x, &[LoraRows { rows: 0..x.dim(0)?, output: 0, pair }])?;
        return Ok(y);
    }
    let shrunk = (linear(launcher, x, &pair.a)? * f64::from(pair.scale))?; // [rows, rank]
    Ok((y + linear(launcher, &shrunk, &pair.b)?)?)
}

/// `matrix` in the type of `x`.
fn like(x: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    Ok(matrix.to_dtype(x.dtype())?)
}
