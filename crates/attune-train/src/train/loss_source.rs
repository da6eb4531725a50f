//! Where the trainer's losses and gradients come from: the model, or a formula in tests of the loop.

use std::sync::Arc;

use candle_core::{DType, Device};

use crate::Result;
use crate::train::backward::{self, Gradients, Objective, PassOptions};
use crate::train::batch::{LossReport, PackedBatch};
use crate::train::yielding::YieldPolicy;
use attune_model::BaseModel;
use attune_model::decoder::Decoder;
use attune_model::kernels::Kernels;
use attune_model::lora::Adapter;

/// Where losses and gradients come from. A formula in place of a model replaces what is computed of sequences.
pub(crate) trait LossSource: Send + Sync {
    /// Returns the decoder that computes.
    fn decoder(&self) -> &Decoder;

    fn device(&self) -> &Device {
        self.decoder().device()
    }

    /// Returns the kernels that losses are computed with.
    fn kernels(&self) -> &Kernels {
        self.decoder().kernels()
    }

    /// Returns the type of its products on a GPU.
    fn dtype(&self) -> DType {
        self.decoder().activation_dtype()
    }

    fn loss_and_gradients(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        objective: Objective<'_>,
        normalizer: f64,
        manner: PassOptions<'_>,
    ) -> Result<(LossReport, Gradients)> {
        backward::objective_and_gradients(self.decoder(), adapter, batch, objective, normalizer, manner)
    }

    fn loss(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        objective: Objective<'_>,
        pace: YieldPolicy<'_>,
    ) -> Result<LossReport> {
        backward::objective(self.decoder(), Some(adapter), batch, objective, pace)
    }

    fn log_likelihoods(
        &self,
        adapter: Option<&Adapter>,
        batch: &PackedBatch,
        pace: YieldPolicy<'_>,
    ) -> Result<Vec<f64>> {
        backward::log_likelihoods(self.decoder(), adapter, batch, pace)
    }
}

/// The decoder of a model that serves at the same time, on training's own stream.
pub(crate) struct SharedDecoder(pub Arc<BaseModel>);

impl LossSource for SharedDecoder {
    fn decoder(&self) -> &Decoder {
        self.0.decoder.for_training()
    }
}

#[cfg(test)]
impl LossSource for Decoder {
    fn decoder(&self) -> &Decoder {
        self
    }
}
