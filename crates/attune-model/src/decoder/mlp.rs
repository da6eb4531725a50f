//! The MLP of a block, after attention.

use candle_core::Tensor;

use super::loading::BlockWeights;
use super::projection::{Projection, project};
use super::{ExpertActivations, Experts, LowRank, Residual};
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

/// A gated MLP: `W_down · (activation(W_gate · m) · (W_up · m))`.
#[derive(Debug)]
pub struct DenseMlp {
    /// `mlp.gate_proj`
    pub gate: Projection,
    /// `mlp.up_proj`
    pub up: Projection,
    /// `mlp.down_proj`
    pub down: Projection,
    /// Activation of the gate.
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
    /// `[rows, intermediate]`
    pub up: Tensor,
    /// activation(gate) · up, `[rows, intermediate]`.
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

    /// Computes the stream after the MLP, from the stream `middle` before it, `[rows, hidden]` both. Also returns the
    /// MLP's result if the backward pass needs it.
    pub fn output(
        &self,
        residual: &Residual,
        middle: &Tensor,
        activations: &MlpActivations,
        context: &impl LowRank,
    ) -> Result<(Tensor, Option<Tensor>)> {
        match (self, activations) {
            (Self::Dense(mlp), MlpActivations::Dense(DenseActivations { gated, .. })) => {
                residual.add_projection(middle, &mlp.down, gated, context)
            }
            (Self::Experts(experts), MlpActivations::Experts(activations)) => {
                let branch = experts.output(activations, context)?; // [rows, hidden]
                Ok((residual.add(middle, &branch)?, residual.after.is_some().then_some(branch)))
            }
            _ => Err(Error::Internal("activations of another kind of MLP".into())),
        }
    }

    /// Returns the layers that adapters may change.
    pub(super) fn projections(&self) -> Vec<&Projection> {
        match self {
            Self::Dense(mlp) => vec![&mlp.gate, &mlp.up, &mlp.down],
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
        let [gate, up] = from.projections([Site::Gate, Site::Up])?;
        Ok(Self {
            gate,
            up,
            down: from.projection(Site::Down)?,
            activation: from.config.activation,
            kernels: from.kernels.clone(),
        })
    }

    fn activations(&self, x: &Tensor, context: &impl LowRank) -> Result<DenseActivations> {
        let [gate, up] = project([&self.gate, &self.up], x, context)?; // [rows, intermediate] each
        let gated = self.gated(&gate, &up)?; // [rows, intermediate]
        Ok(DenseActivations { gate, up, gated })
    }

    /// Computes activation(gate) · up, `[rows, intermediate]` all.
    pub fn gated(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        self.kernels.gated(self.activation, gate, up)
    }

    fn with(&self, kernels: &GpuKernels, change: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Option<Self>> {
        let layer = |layer: &Projection| layer.with(kernels, change);
        let (Some(gate), Some(up), Some(down)) = (layer(&self.gate)?, layer(&self.up)?, layer(&self.down)?) else {
            return Ok(None);
        };
        Ok(Some(Self { gate, up, down, activation: self.activation, kernels: Kernels::Gpu(kernels.clone()) }))
    }
}
