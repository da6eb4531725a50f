//! Where the trainer's losses and gradients come from: the model, or a formula in tests of the loop.

use std::sync::Arc;

use candle_core::Device;

use crate::Result;
use crate::adapters::Adapter;
use crate::model::BaseModel;
use crate::train::backward::{self, Gradients, LossReport, Objective, PackedBatch};
use crate::train::dropout::Dropout;
use crate::train::recomputation::Recomputation;

/// Where losses and gradients come from: the model, or a formula in tests of the loop.
pub(crate) trait LossSource: Send + Sync {
    fn device(&self) -> &Device;
    fn loss_and_gradients(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        objective: Objective<'_>,
        normalizer: f64,
        dropout: Option<&Dropout>,
        recomputation: Recomputation,
    ) -> Result<(LossReport, Gradients)>;
    fn loss(&self, adapter: &Adapter, batch: &PackedBatch, objective: Objective<'_>) -> Result<LossReport>;
    fn log_likelihoods(&self, adapter: Option<&Adapter>, batch: &PackedBatch) -> Result<Vec<f64>>;
}

impl LossSource for Arc<BaseModel> {
    fn device(&self) -> &Device {
        self.decoder.device()
    }

    fn loss_and_gradients(
        &self,
        adapter: &Adapter,
        batch: &PackedBatch,
        objective: Objective<'_>,
        normalizer: f64,
        dropout: Option<&Dropout>,
        recomputation: Recomputation,
    ) -> Result<(LossReport, Gradients)> {
        backward::objective_and_gradients(&self.decoder, adapter, batch, objective, normalizer, dropout, recomputation)
    }

    fn loss(&self, adapter: &Adapter, batch: &PackedBatch, objective: Objective<'_>) -> Result<LossReport> {
        backward::objective(&self.decoder, Some(adapter), batch, objective)
    }

    fn log_likelihoods(&self, adapter: Option<&Adapter>, batch: &PackedBatch) -> Result<Vec<f64>> {
        backward::log_likelihoods(&self.decoder, adapter, batch)
    }
}
