//! The MLP of a block, after attention.

use candle_core::Tensor;

use super::loading::BlockWeights;
use super::projection::{Projection, project};
use super::{Added, ExpertActivations, Experts, LowRank, Residual};
use crate::kernels::{Activation, GpuKernels, Kernels};
use crate::lora::Site;
use crate::{Error, Result};

/// The MLP of one block.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one for each block")]
pub enum Mlp {
    /// One gated MLP for all rows.
    Dense(DenseMlp),
    /// A few of many MLPs for each row.
    Experts(Experts),
}

/// An MLP with a gate, `W_down · (activation(W_gate · m) · (W_up · m))`, or without one: `W_down · activation(W_gate · m)`.
#[derive(Debug)]
pub struct DenseMlp {
    /// `mlp.gate_proj`
    pub gate: Projection,
    /// `mlp.up_proj`; `None` without a gate.
    pub up: Option<Projection>,
    /// `mlp.down_proj`
    pub down: Projection,
    /// Activation of the first layer.
    pub activation: Activation,
    pub(super) kernels: Kernels,
}

/// Intermediate results of an MLP, as the backward pass needs them.
#[derive(Debug)]
pub enum MlpActivations {
    /// Those of [`Mlp::Dense`].
    Dense(DenseActivations),
    /// Those of [`Mlp::Experts`].
    Experts(ExpertActivations),
}

/// Intermediate results of a [`DenseMlp`].
#[derive(Debug)]
pub struct DenseActivations {
    /// `[rows, intermediate]`
    pub gate: Tensor,
    /// `[rows, intermediate]`; `None` without a gate.
    pub up: Option<Tensor>,
    /// activation(gate) · up, or activation(gate), `[rows, intermediate]`.
    pub gated: Tensor,
}

impl Mlp {
    pub(super) fn load(from: &BlockWeights<'_>) -> Result<Self> {
        match &from.config.experts {
            Some(config) => Experts::load(from, config).map(Self::Experts),
            None => DenseMlp::load(from).map(Self::Dense),
        }
    }

    /// Computes the intermediate results for the normed rows `x` `[rows, hidden]`: all but the last product.
    pub fn activations(&self, x: &Tensor, context: &impl LowRank) -> Result<MlpActivations> {
        match self {
            Self::Dense(mlp) => mlp.activations(x, context).map(MlpActivations::Dense),
            Self::Experts(experts) => experts.activations(x, context).map(MlpActivations::Experts),
        }
    }

    /// Computes the stream after the MLP, from the stream `middle` before it, `[rows, hidden]` both.
    pub fn output(
        &self,
        residual: &Residual,
        middle: &Tensor,
        activations: &MlpActivations,
        context: &impl LowRank,
    ) -> Result<Added> {
        match (self, activations) {
            (Self::Dense(mlp), MlpActivations::Dense(DenseActivations { gated, .. })) => {
                residual.add_projection(middle, &mlp.down, gated, context)
            }
            (Self::Experts(experts), MlpActivations::Experts(activations)) => {
                let branch = experts.output(activations, context)?; // [rows, hidden]
                residual.add(middle, &branch)
            }
            _ => Err(Error::Internal("activations of another kind of MLP".into())),
        }
    }

    /// Returns the layers that adapters may change.
    pub(super) fn projections(&self) -> Vec<&Projection> {
        match self {
            Self::Dense(mlp) => [Some(&mlp.gate), mlp.up.as_ref(), Some(&mlp.down)].into_iter().flatten().collect(),
            Self::Experts(_) => Vec::new(),
        }
    }

    /// Maps the tensors for `kernels`; `None` if the layers are packed or quantized.
    pub(super) fn with(
        &self,
        kernels: &GpuKernels,
        change: &impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Option<Self>> {
        match self {
            Self::Dense(mlp) => Ok(mlp.with(kernels, change)?.map(Self::Dense)),
            Self::Experts(experts) => Ok(experts.with(kernels, change)?.map(Self::Experts)),
        }
    }
}

impl DenseMlp {
    fn load(from: &BlockWeights<'_>) -> Result<Self> {
        let (gate, up) = if from.config.encoder.as_ref().is_none_or(|encoder| encoder.is_gated) {
            let [gate, up] = from.projections([Site::Gate, Site::Up])?;
            (gate, Some(up))
        } else {
            (from.projection(Site::Gate)?, None)
        };
        Ok(Self {
            gate,
            up,
            down: from.projection(Site::Down)?,
            activation: from.config.activation,
            kernels: from.kernels.clone(),
        })
    }

    fn activations(&self, x: &Tensor, context: &impl LowRank) -> Result<DenseActivations> {
        let (gate, up) = match &self.up {
            Some(up) => {
                let [gate, up] = project([&self.gate, up], x, context)?; // [rows, intermediate] each
                (gate, Some(up))
            }
            None => (self.gate.of(x, context)?, None), // [rows, intermediate]
        };
        let gated = self.gated(&gate, up.as_ref())?; // [rows, intermediate]
        Ok(DenseActivations { gate, up, gated })
    }

    /// Computes activation(gate) · up, or activation(gate), `[rows, intermediate]` all.
    pub fn gated(&self, gate: &Tensor, up: Option<&Tensor>) -> Result<Tensor> {
        match up {
            Some(up) => self.kernels.gated(self.activation, gate, up),
            None => self.kernels.activated(self.activation, gate),
        }
    }

    fn with(&self, kernels: &GpuKernels, change: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Option<Self>> {
        let layer = |layer: &Projection| layer.with(kernels, change);
        let (Some(gate), Some(down)) = (layer(&self.gate)?, layer(&self.down)?) else { return Ok(None) };
        let up = self.up.as_ref().map(layer).transpose()?.flatten();
        if up.is_none() && self.up.is_some() {
            return Ok(None);
        }
        Ok(Some(Self { gate, up, down, activation: self.activation, kernels: Kernels::Gpu(kernels.clone()) }))
    }
}
