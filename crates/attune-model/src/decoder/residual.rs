//! The residual stream around attention and around the MLP: y = x + m · after(branch(before(x))), where a family has
//! one of the norms or both, and mostly m = 1.

use candle_core::Tensor;

use super::{LowRank, Projection};
use crate::Result;
use crate::kernels::{Kernels, Norm};

/// Norms and factor around one branch of a block: attention or MLP.
#[derive(Debug)]
pub struct Residual {
    /// Norm of the branch's input, `[hidden]`; `None` if the family has none there.
    pub before: Option<Tensor>,
    /// Norm of the branch's result, `[hidden]`; `None` if the family has none there.
    pub after: Option<Tensor>,
    /// Factor on what is added to the stream.
    pub multiplier: f32,
    /// Added to the mean of the squares in the norms.
    pub norm_eps: f32,
    pub(super) kernels: Kernels,
}

impl Residual {
    /// Computes the branch's input `[rows, hidden]` of the stream `x` `[rows, hidden]`.
    pub fn input(&self, x: &Tensor) -> Result<Tensor> {
        match &self.before {
            Some(weight) => self.kernels.rms_norm(x, weight, self.norm_eps),
            None => Ok(x.clone()),
        }
    }

    /// Computes the stream after the branch with the result `branch`, `[rows, hidden]` all.
    pub fn add(&self, x: &Tensor, branch: &Tensor) -> Result<Tensor> {
        let mut branch = branch.clone();
        if let Some(weight) = &self.after {
            branch = self.kernels.rms_norm(&branch, weight, self.norm_eps)?;
        }
        if !self.is_unscaled() {
            branch = (branch * f64::from(self.multiplier))?;
        }
        Ok((x + branch)?)
    }

    /// Computes the stream after a branch whose last layer is `last`, with the input `inner` `[rows, in]`. Also returns
    /// the branch's result if the backward pass needs it.
    pub fn add_projection(
        &self,
        x: &Tensor,
        last: &Projection,
        inner: &Tensor,
        context: &impl LowRank,
    ) -> Result<(Tensor, Option<Tensor>)> {
        if self.is_plain() {
            return Ok((last.onto(x, inner, context)?, None));
        }
        let branch = last.of(inner, context)?; // [rows, hidden]
        let y = self.add(x, &branch)?;
        Ok((y, self.after.is_some().then_some(branch)))
    }

    /// Computes the same stream in place: nothing else holds `x`.
    pub(super) fn add_projection_into(
        &self,
        x: Tensor,
        last: &Projection,
        inner: &Tensor,
        context: &impl LowRank,
    ) -> Result<Tensor> {
        if self.is_plain() {
            return last.project_into(x, inner, context);
        }
        self.add(&x, &last.of(inner, context)?)
    }

    /// Returns the norm of the branch's input.
    pub(super) fn norm(&self) -> Option<Norm<'_>> {
        self.before.as_ref().map(|weight| Norm { weight, eps: self.norm_eps })
    }

    /// Returns true if the multiplier is 1.
    pub fn is_unscaled(&self) -> bool {
        self.multiplier.to_bits() == 1.0_f32.to_bits()
    }

    /// Returns true if the branch's result is added as it is.
    fn is_plain(&self) -> bool {
        self.after.is_none() && self.is_unscaled()
    }

    /// Maps the norms' tensors for `kernels`.
    pub(super) fn with(&self, kernels: Kernels, change: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            before: self.before.as_ref().map(change).transpose()?,
            after: self.after.as_ref().map(change).transpose()?,
            kernels,
            ..*self
        })
    }
}
