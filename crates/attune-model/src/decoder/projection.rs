//! Linear layers at their places, where adapters may change them. Called by the parts of a block.

use candle_core::Tensor;

use super::LowRank;
use crate::Result;
use crate::kernels::GpuKernels;
use crate::linear::Linear;
use crate::lora::Site;

/// A frozen linear layer of a block, at the place where an adapter may change it.
#[derive(Debug)]
pub struct Projection {
    /// Number of the block, from 0.
    pub block: usize,
    /// Place in the block.
    pub site: Site,
    /// The frozen layer.
    pub linear: Linear,
}

impl Projection {
    /// Computes the product of `x` `[rows, in]`, adapters included, `[rows, out]`.
    pub fn of(&self, x: &Tensor, context: &impl LowRank) -> Result<Tensor> {
        let [output] = project([self], x, context)?;
        Ok(output)
    }

    /// Computes `residual` plus the product of `x` `[rows, in]`, adapters included, `[rows, out]`.
    pub fn onto(&self, residual: &Tensor, x: &Tensor, context: &impl LowRank) -> Result<Tensor> {
        self.add_lora(self.linear.forward_onto(residual, x)?, x, context)
    }

    /// Computes [`Projection::onto`] in place: nothing else holds `residual`.
    pub(super) fn project_into(&self, residual: Tensor, x: &Tensor, context: &impl LowRank) -> Result<Tensor> {
        self.add_lora(self.linear.forward_into(residual, x)?, x, context)
    }

    fn add_lora(&self, output: Tensor, x: &Tensor, context: &impl LowRank) -> Result<Tensor> {
        let mut output = [output];
        context.add_lora(self.block, &[self.site], x, &mut output)?;
        let [output] = output;
        Ok(output)
    }

    /// Maps the layer's tensors for `kernels`; `None` if it is packed or quantized.
    pub(super) fn with(
        &self,
        kernels: &GpuKernels,
        change: &impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Option<Self>> {
        let linear = self.linear.with(kernels, change)?;
        Ok(linear.map(|linear| Self { block: self.block, site: self.site, linear }))
    }
}

/// Computes the products of `x` `[rows, in]` with `layers` (one of [`GROUPS`](crate::routes::GROUPS)), adapters
/// included, `[rows, out]` each.
pub(super) fn project<const N: usize>(
    layers: [&Projection; N],
    x: &Tensor,
    context: &impl LowRank,
) -> Result<[Tensor; N]> {
    let mut outputs = Linear::forward_each(layers.map(|layer| &layer.linear), x, None)?;
    if let Some(first) = layers.first() {
        context.add_lora(first.block, &layers.map(|layer| layer.site), x, &mut outputs)?;
    }
    Ok(outputs)
}
