//! Gradients of one update of a linear layer, `y += s · B(A x)`. Called by [`super::block`] and, for the layers of
//! experts, by [`super::experts`].

use candle_core::Tensor;

use attune_model::Result;
use attune_model::kernels::Kernels;
use attune_model::lora::LoraPair;

/// Computes dA and dB of `pair`, and `s · dy B`, `[rows, rank]`, of its input `x` `[rows, in]` and of `dy` `[rows, out]`,
/// which is the gradient of the layer's output before the rows' `weights` `[rows, 1]`; all are 1 without them. The
/// returned product is before the weights, too.
pub(super) fn low_rank(
    kernels: &Kernels,
    pair: &LoraPair,
    x: &Tensor,
    dy: &Tensor,
    weights: Option<&Tensor>,
) -> Result<(LoraPair, Tensor)> {
    let scale = f64::from(pair.scale);
    let weighted = |rows: Tensor| weights.map_or(Ok(rows.clone()), |weights| rows.broadcast_mul(weights));
    let shrunk = kernels.linear(x, &pair.a)?; // x Aᵀ, [rows, rank]
    let b = kernels.matmul_transposed(dy, &weighted((shrunk * scale)?)?)?; // [out, rank]
    let dshrunk = (kernels.matmul(dy, &pair.b)? * scale)?; // [rows, rank]
    let a = kernels.matmul_transposed(&weighted(dshrunk.clone())?, x)?; // [rank, in]
    Ok((LoraPair { a, b, scale: pair.scale }, dshrunk))
}
