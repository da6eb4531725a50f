//! The optimizer's arithmetic for an adapter that is trained on a GPU: all of its matrices in a few launches.

use bytemuck::{Pod, Zeroable};
use candle_core::{DType, Tensor};

use super::launch::{Kernel, Launcher, Shape, launch, output};
use crate::address::address;
use crate::kernels::AdamCoefficients;
use crate::{Error, Result};

const OPTIMIZER: &str = include_str!("sources/optimizer.cu");
/// Gradients of a launch and threads of a block, as in `optimizer.cu`.
const PIECES: usize = 128;
const THREADS: usize = 256;
/// Blocks that share a gradient.
const SHARES: usize = 16;

#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct ParameterPiece {
    gradient: u64,
    start: u64,
    count: u64,
}

/// Arguments of kernels in `optimizer.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Squares {
    sums: u64,
    pieces: [ParameterPiece; PIECES],
}

/// Arguments of kernels in `optimizer.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AdamW {
    values: u64,
    first: u64,
    second: u64,
    by: AdamCoefficients,
    /// Explicit padding before `pieces`, so that all bytes may be read.
    _padding: u32,
    pieces: [ParameterPiece; PIECES],
}

/// Returns the sum of the squares of all `gradients`, f32 each, in f64 and always in the same order.
pub fn sum_of_squares(launcher: &dyn Launcher, gradients: &[Tensor]) -> Result<f64> {
    let pieces = pieces(gradients)?;
    let mut sums = Vec::with_capacity(pieces.len().div_ceil(PIECES));
    for (pieces, gradients) in pieces.chunks(PIECES).zip(gradients.chunks(PIECES)) {
        let of_pieces = output((pieces.len(), SHARES), DType::F64, &gradients[0])?;
        let arguments = Squares { sums: address(&of_pieces)?, pieces: padded(pieces) };
        launch(launcher, kernel("squares")?, &arguments, Shape::new((pieces.len(), SHARES), THREADS))?;
        sums.push(of_pieces);
    }
    let mut sum = 0.0;
    for of_pieces in sums {
        sum += of_pieces.flatten_all()?.to_vec1::<f64>()?.into_iter().sum::<f64>();
    }
    Ok(sum)
}

/// Takes a step of all parameters: `values`, `first` and `second` are `[parameters]`, f32, changed in place;
/// `gradients` are their gradients, one after the other.
pub fn adam_w(
    launcher: &dyn Launcher,
    [values, first, second]: [&Tensor; 3],
    gradients: &[Tensor],
    by: AdamCoefficients,
) -> Result<()> {
    let pieces = pieces(gradients)?;
    let count: u64 = pieces.iter().map(|piece| piece.count).sum();
    if [values, first, second].iter().any(|all| all.elem_count() as u64 != count || all.dtype() != DType::F32) {
        return Err(Error::Internal("there is not one f32 gradient for each parameter".into()));
    }
    let [values, first, second] = [address(values)?, address(first)?, address(second)?];
    for pieces in pieces.chunks(PIECES) {
        let arguments = AdamW { values, first, second, by, _padding: 0, pieces: padded(pieces) };
        launch(launcher, kernel("adam_w")?, &arguments, Shape::new((pieces.len(), SHARES), THREADS))?;
    }
    Ok(())
}

fn kernel(name: &'static str) -> Result<Kernel> {
    Kernel::new(name, OPTIMIZER, DType::F32)
}

fn pieces(gradients: &[Tensor]) -> Result<Vec<ParameterPiece>> {
    let mut start = 0;
    let piece = |gradient: &Tensor| {
        if gradient.dtype() != DType::F32 {
            return Err(Error::Internal("gradients of adapters are f32".into()));
        }
        let piece = ParameterPiece { gradient: address(gradient)?, start, count: gradient.elem_count() as u64 };
        start += piece.count;
        Ok(piece)
    };
    gradients.iter().map(piece).collect()
}

fn padded(pieces: &[ParameterPiece]) -> [ParameterPiece; PIECES] {
    let mut padded = [ParameterPiece::default(); PIECES];
    padded[..pieces.len()].copy_from_slice(pieces);
    padded
}
