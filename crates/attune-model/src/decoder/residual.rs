//! The residual stream around attention and around the MLP: y = behind(x + m · after(branch(before(x)))), where a family has
//! some of the norms, and mostly m = 1.

use candle_core::Tensor;

use super::{LowRank, NormLayer, Projection};
use crate::Result;
use crate::kernels::{Kernels, Norm};

/// Norms and factor around one branch of a block: attention or MLP.
#[derive(Debug)]
pub struct Residual {
    /// Norm of the branch's input, `[hidden]`; `None` if the family has none there.
    pub before: Option<NormLayer>,
    /// Norm of the branch's result, `[hidden]`; `None` if the family has none there.
    pub after: Option<NormLayer>,
    /// Norm of the stream once the branch was added, `[hidden]` (BERT); `None` if the family has none there.
    pub behind: Option<NormLayer>,
    /// Factor on what is added to the stream.
    pub multiplier: f32,
}

impl Residual {
    /// Computes the branch's input `[rows, hidden]` of the stream `x` `[rows, hidden]`.
    pub fn input(&self, x: &Tensor) -> Result<Tensor> {
        self.before.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
    }

    /// Computes x + m · after(branch), the stream before the norm behind it, `[rows, hidden]` all.
    fn sum(&self, x: &Tensor, branch: &Tensor) -> Result<Tensor> {
        let mut branch = branch.clone();
        if let Some(norm) = &self.after {
            branch = norm.forward(&branch)?;
        }
        if !self.is_unscaled() {
            branch = (branch * f64::from(self.multiplier))?;
        }
        Ok((x + branch)?)
    }

    /// Computes the stream after the branch with the result `branch`, `[rows, hidden]` all.
    pub fn add(&self, x: &Tensor, branch: &Tensor) -> Result<Added> {
        self.added(self.sum(x, branch)?, self.after.as_ref().map(|_| branch.clone()))
    }

    /// Computes the stream after a branch whose last layer is `last`, with the input `inner` `[rows, in]`.
    pub fn add_projection(
        &self,
        x: &Tensor,
        last: &Projection,
        inner: &Tensor,
        context: &impl LowRank,
    ) -> Result<Added> {
        if self.is_plain() {
            return self.added(last.onto(x, inner, context)?, None);
        }
        self.add(x, &last.of(inner, context)?)
    }

    /// Computes the same stream in place: nothing else holds `x`.
    pub(super) fn add_projection_into(
        &self,
        x: Tensor,
        last: &Projection,
        inner: &Tensor,
        context: &impl LowRank,
    ) -> Result<Tensor> {
        let sum = if self.is_plain() {
            last.project_into(x, inner, context)?
        } else {
            self.sum(&x, &last.of(inner, context)?)?
        };
        match &self.behind {
            Some(norm) => norm.forward_into(sum),
            None => Ok(sum),
        }
    }

    /// Puts the norm behind the stream, and keeps what the backward pass needs.
    fn added(&self, sum: Tensor, branch: Option<Tensor>) -> Result<Added> {
        match &self.behind {
            Some(norm) => Ok(Added { y: norm.forward(&sum)?, kept: Some(sum) }),
            None => Ok(Added { y: sum, kept: branch }),
        }
    }

    /// Returns the norm of the branch's input.
    pub(super) fn norm(&self) -> Option<Norm<'_>> {
        self.before.as_ref().and_then(NormLayer::on_the_way)
    }

    /// Returns true if the multiplier is 1.
    pub fn is_unscaled(&self) -> bool {
        self.multiplier.to_bits() == 1.0_f32.to_bits()
    }

    /// Returns true if the backward pass needs more than the stream before and after the branch.
    pub fn keeps(&self) -> bool {
        self.after.is_some() || self.behind.is_some()
    }

    /// Returns true if the branch's result is added as it is.
    fn is_plain(&self) -> bool {
        self.after.is_none() && self.is_unscaled()
    }

    /// Maps the norms' tensors for `kernels`.
    pub(super) fn with(&self, kernels: &Kernels, change: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let norm = |norm: &Option<NormLayer>| norm.as_ref().map(|norm| norm.with(kernels.clone(), change)).transpose();
        Ok(Self {
            before: norm(&self.before)?,
            after: norm(&self.after)?,
            behind: norm(&self.behind)?,
            multiplier: self.multiplier,
        })
    }
}

/// The stream after a branch.
#[derive(Debug)]
pub struct Added {
    /// The stream, `[rows, hidden]`.
    pub y: Tensor,
    /// Input of the last norm behind the branch, which the backward pass needs: the branch's result, or the sum of stream
    /// and branch, `[rows, hidden]`; `None` if there is no such norm.
    pub kept: Option<Tensor>,
}
