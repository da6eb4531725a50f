//! Products with an adapter's matrices in training. Called through [`Kernels`](crate::kernels::Kernels).

use candle_core::Tensor;

use super::panels::unpacked::{Output, Right, multiply};
use super::view::View;
use super::{Values, tensor, vector, with_values_mut};
use crate::Result;
use crate::lora::LoraPair;

/// Computes `x · Wᵀ`: `[rows, in]`, `[out, in]` to `[rows, out]`.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ((rows, input), (output, _)) = (x.dims2()?, weight.dims2()?);
    let (x, weight) = (Values::of(x)?, Values::of(weight)?);
    let mut y = vec![0.0; rows * output];
    add_to(&mut y, false, View::dense(&x, rows, input), View::dense(&weight, output, input).transposed());
    tensor(y, (rows, output))
}

/// Computes `a · b`, or `aᵀ · b` if `transpose`.
pub fn matmul(a: &Tensor, b: &Tensor, transpose: bool) -> Result<Tensor> {
    let ((a_rows, a_columns), (b_rows, b_columns)) = (a.dims2()?, b.dims2()?);
    let (a, b) = (Values::of(a)?, Values::of(b)?);
    let a = View::dense(&a, a_rows, a_columns);
    let a = if transpose { a.transposed() } else { a };
    let mut y = vec![0.0; a.rows * b_columns];
    add_to(&mut y, false, a, View::dense(&b, b_rows, b_columns));
    tensor(y, (a.rows, b_columns))
}

/// Adds `a · b` to `y`, in place.
pub fn add_product(y: Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((rows, inner), (b_rows, columns)) = (a.dims2()?, b.dims2()?);
    let (a, b) = (Values::of(a)?, Values::of(b)?);
    with_values_mut(std::slice::from_ref(&y), &|outputs| {
        // SAFETY: the only slice of the only output.
        let y = unsafe { outputs[0].slice(0..rows * columns) };
        add_to(y, true, View::dense(&a, rows, inner), View::dense(&b, b_rows, columns));
        Ok(())
    })?;
    Ok(y)
}

/// Adds `scale · B(A x)` to all rows of `y`, in place.
pub fn add_lora(y: Tensor, x: &Tensor, pair: &LoraPair) -> Result<Tensor> {
    let ((rows, input), (output, rank)) = (x.dims2()?, pair.b.dims2()?);
    let (x, a, b) = (Values::of(x)?, Values::of(&pair.a)?, Values::of(&pair.b)?);
    let mut shrunk = vec![0.0; rows * rank]; // x · Aᵀ, [rows, rank]
    add_to(&mut shrunk, false, View::dense(&x, rows, input), View::dense(&a, rank, input).transposed());
    vector::scale(&mut shrunk, pair.scale);
    with_values_mut(std::slice::from_ref(&y), &|outputs| {
        // SAFETY: the only slice of the only output.
        let y = unsafe { outputs[0].slice(0..rows * output) };
        let expand = View::dense(&b, output, rank).transposed(); // [rank, out]
        add_to(y, true, View::dense(&shrunk, rows, rank), expand);
        Ok(())
    })?;
    Ok(y)
}

/// Computes `a · b`, `[m, k]` times `[k, n]`, plus what `y` holds if `adds`. One of the two is packed on the way: `b`, or
/// `a` if that has the fewest rows of all.
fn add_to(y: &mut [f32], adds: bool, a: View<'_>, b: View<'_>) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    if adds || m >= n || m > k {
        return multiply(Output { values: y, stride: n, adds }, a, Right::plain(b.transposed()));
    }
    let mut transposed = vec![0.0; m * n]; // bᵀ · aᵀ, [n, m]
    multiply(Output { values: &mut transposed, stride: m, adds: false }, b.transposed(), Right::plain(a));
    for (row, y) in y.chunks_exact_mut(n).enumerate() {
        for (y, value) in y.iter_mut().zip(transposed[row..].iter().step_by(m)) {
            *y = *value;
        }
    }
}
