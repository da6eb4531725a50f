//! Source of the trainer's losses and gradients: the model, or a formula in tests of the loop.

use std::sync::Arc;

use candle_core::{DType, Device};

use crate::train::backward::{self, Gradients, Objective, PassOptions};
use crate::train::batch::{LossReport, PackedBatch};
use crate::train::yielding::YieldPolicy;
use crate::{Error, Result};
use attune_model::BaseModel;
use attune_model::classifier::Classifier;
use attune_model::decoder::Decoder;
use attune_model::kernels::Kernels;
use attune_model::lora::Adapter;
use attune_model::vectors::VectorForm;

/// Parts of a model that make vectors or scores of hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// How vectors are made.
    pub vectors: &'a VectorForm,
    /// Head that classifies texts; `None` if there is none.
    pub classifier: Option<&'a Classifier>,
}

impl<'a> Heads<'a> {
    /// Returns those of `model`.
    pub fn of(model: &'a BaseModel) -> Self {
        Self { vectors: &model.vectors, classifier: model.classifier.as_ref() }
    }
}

/// Computes losses and gradients. A formula in place of a model overrides the functions on sequences.
pub(crate) trait LossSource: Send + Sync {
    /// Returns the decoder that computes.
    fn decoder(&self) -> &Decoder;

    /// Returns the parts that make vectors and scores; an error if the source has none.
    fn heads(&self) -> Result<Heads<'_>> {
        Err(Error::Internal("this source of losses makes no vectors".into()))
    }

    fn device(&self) -> &Device {
        self.decoder().device()
    }

    /// Returns the kernels that compute losses.
    fn kernels(&self) -> &Kernels {
        self.decoder().kernels()
    }

    /// Returns the data type of the model's products on a GPU.
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

    /// Computes the sums of a loss and the most probable token at each target.
    fn predictions(
        &self,
        adapter: Option<&Adapter>,
        batch: &PackedBatch,
        pace: YieldPolicy<'_>,
    ) -> Result<(LossReport, Vec<u32>)> {
        backward::predictions(self.decoder(), adapter, batch, pace)
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

/// Decoder of a model that serves at the same time, on training's own stream.
pub(crate) struct SharedDecoder(pub Arc<BaseModel>);

impl LossSource for SharedDecoder {
    fn decoder(&self) -> &Decoder {
        self.0.training_decoder()
    }

    fn heads(&self) -> Result<Heads<'_>> {
        Ok(Heads::of(&self.0))
    }
}

#[cfg(test)]
impl LossSource for Decoder {
    fn decoder(&self) -> &Decoder {
        self
    }
}
