//! Where the trainer's losses and gradients come from: the model, or a formula in tests of the loop.

use std::borrow::Borrow;
use std::sync::Arc;

use candle_core::{DType, Device};

use crate::Result;
use crate::train::backward::{self, Gradients, LossReport, Objective, PackedBatch, PassOptions};
use crate::train::contrastive::Contrast;
use crate::train::trainer::BeforeMicroStep;
use crate::train::yielding::YieldPolicy;
use attune_model::BaseModel;
use attune_model::decoder::Decoder;
use attune_model::kernels::Kernels;
use attune_model::lora::Adapter;

/// Where losses and gradients come from: the model, or a formula in tests of the loop.
pub(crate) trait LossSource: Send + Sync {
    fn device(&self) -> &Device;
    /// The kernels that losses are computed with.
    fn kernels(&self) -> &Kernels;
    /// The type of its products on a GPU.
    fn dtype(&self) -> DType;
    fn loss_and_gradients(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        objective: Objective<'_>,
        normalizer: f64,
        manner: PassOptions<'_>,
    ) -> Result<(LossReport, Gradients)>;
    fn loss(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        objective: Objective<'_>,
        pace: YieldPolicy<'_>,
    ) -> Result<LossReport>;
    fn log_likelihoods(
        &self,
        adapter: Option<&Adapter>,
        batch: &PackedBatch,
        pace: YieldPolicy<'_>,
    ) -> Result<Vec<f64>>;
    /// Loss and gradients of a batch of pairs of texts.
    fn contrast_and_gradients(
        &self,
        adapter: &Adapter,
        batch: Contrast<'_>,
        before: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Gradients)>;
    fn contrast(&self, adapter: &Adapter, batch: Contrast<'_>, before: BeforeMicroStep<'_>) -> Result<LossReport>;
}

/// The decoder of a model that serves at the same time, on training's own stream.
pub(crate) struct SharedDecoder(pub Arc<BaseModel>);

impl Borrow<Decoder> for SharedDecoder {
    fn borrow(&self) -> &Decoder {
        self.0.decoder.for_training()
    }
}

impl<D: Borrow<Decoder> + Send + Sync> LossSource for D {
    fn device(&self) -> &Device {
        self.borrow().device()
    }

    fn kernels(&self) -> &Kernels {
        self.borrow().kernels()
    }

    fn dtype(&self) -> DType {
        self.borrow().activation_dtype()
    }

    fn loss_and_gradients(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        objective: Objective<'_>,
        normalizer: f64,
        manner: PassOptions<'_>,
    ) -> Result<(LossReport, Gradients)> {
        backward::objective_and_gradients(self.borrow(), adapter, batch, objective, normalizer, manner)
    }

    fn loss(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        objective: Objective<'_>,
        pace: YieldPolicy<'_>,
    ) -> Result<LossReport> {
        backward::objective(self.borrow(), Some(adapter), batch, objective, pace)
    }

    fn log_likelihoods(
        &self,
        adapter: Option<&Adapter>,
        batch: &PackedBatch,
        pace: YieldPolicy<'_>,
    ) -> Result<Vec<f64>> {
        backward::log_likelihoods(self.borrow(), adapter, batch, pace)
    }

    fn contrast_and_gradients(
        &self,
        adapter: &Adapter,
        batch: Contrast<'_>,
        before: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Gradients)> {
        batch.loss_and_gradients(self.borrow(), adapter, before)
    }

    fn contrast(&self, adapter: &Adapter, batch: Contrast<'_>, before: BeforeMicroStep<'_>) -> Result<LossReport> {
        batch.loss(self.borrow(), Some(adapter), before)
    }
}
