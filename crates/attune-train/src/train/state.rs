//! State of an adapter in training: its parameters and the optimizer's moments. On the CPU they are vectors. On a GPU
//! they stay on it from step to step, since copying them there and back would take as long as a step. Called by the
//! trainer.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::train::backward::Gradients;
use crate::train::optimizer::{AdamSettings, AdamW, Moments, clip_factor, global_norm};
use crate::train::parameters::Parameters;
use attune_model::kernels::{GpuKernels, Kernels};
use attune_model::lora::Adapter;

/// Parameters A and B with the optimizer's state.
pub(crate) struct AdapterState {
    /// Places of the parameters; their values too, if the CPU computes.
    parameters: Parameters,
    /// Optimizer; with its moments, if the CPU computes.
    optimizer: AdamW,
    on_device: Option<OnDevice>,
}

/// Tensors on a GPU, `[parameters]` each, f32: A and B of each place in turn.
struct OnDevice {
    kernels: GpuKernels,
    values: Tensor,
    first: Tensor,
    second: Tensor,
    /// Data type of the model's products.
    dtype: DType,
}

/// Scales of one update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UpdateScales {
    /// Learning rate.
    pub learning_rate: f64,
    /// Largest norm of the gradients, which are scaled down to it; 0 does not clip.
    pub clip: f64,
}

impl AdapterState {
    /// Creates the state at the beginning of a run from `parameters`. `kernels` compute the losses, with products of
    /// `dtype` on a GPU.
    pub(crate) fn new(parameters: Parameters, settings: AdamSettings, kernels: &Kernels, dtype: DType) -> Result<Self> {
        let optimizer = AdamW::new(settings, &parameters.values);
        let on_device =
            kernels.gpu().map(|gpu| OnDevice::new(&parameters.values, &optimizer.moments, gpu, dtype)).transpose()?;
        Ok(Self { parameters, optimizer, on_device })
    }

    /// Counts the numbers that training changes.
    pub(crate) fn parameter_count(&self) -> usize {
        self.parameters.values.iter().map(Vec::len).sum()
    }

    /// Returns the current adapter for losses on `device`. On a GPU it is rounded once to the data type of products,
    /// not in each of them. A later step may change its tensors.
    pub(crate) fn adapter(&self, device: &Device) -> Result<Adapter> {
        let Some(OnDevice { values, dtype, .. }) = &self.on_device else { return self.parameters.adapter(device) };
        let values = values.to_dtype(*dtype)?;
        let mut start = 0;
        self.parameters.adapter_of(|index, shape| {
            let (begin, count) = (start, self.parameters.values[index].len());
            start += count;
            Ok(values.narrow(0, begin, count)?.reshape(shape)?)
        })
    }

    /// Returns the adapter with `values` from another step.
    pub(crate) fn adapter_of(&self, values: &[Vec<f32>], device: &Device) -> Result<Adapter> {
        self.parameters.adapter_of(|index, shape| Ok(Tensor::from_slice(&values[index], shape, device)?))
    }

    /// Does one update and returns the gradients' norm. Calls `check` with the norm first; if that fails, nothing
    /// changes.
    pub(crate) fn step(
        &mut self,
        gradients: &Gradients,
        step: UpdateScales,
        check: impl FnOnce(f64) -> Result<()>,
    ) -> Result<f64> {
        let Some(state) = &self.on_device else {
            let gradients = self.parameters.gradients(gradients)?;
            let norm = global_norm(&gradients);
            check(norm)?;
            let by = self.optimizer.advance(step.learning_rate, clip_factor(norm, step.clip));
            self.optimizer.update(by, &mut self.parameters.values, &gradients);
            return Ok(norm);
        };
        let gradients = self.in_order(gradients)?;
        let norm = state.kernels.sum_of_squares(&gradients)?.sqrt();
        check(norm)?;
        let by = self.optimizer.advance(step.learning_rate, clip_factor(norm, step.clip));
        state.kernels.adam_w([&state.values, &state.first, &state.second], &gradients, by)?;
        Ok(norm)
    }

    /// Returns the gradients of A and B of each place in turn.
    fn in_order(&self, gradients: &Gradients) -> Result<Vec<Tensor>> {
        let mut ordered = Vec::with_capacity(self.parameters.values.len());
        for place in &self.parameters.places {
            let pair = place.gradient(gradients)?;
            for gradient in [&pair.a, &pair.b] {
                ordered.push(gradient.to_dtype(DType::F32)?.contiguous()?);
            }
        }
        Ok(ordered)
    }

    /// Returns A and B of each place in turn.
    pub(crate) fn values(&self) -> Result<Cow<'_, [Vec<f32>]>> {
        match &self.on_device {
            None => Ok(Cow::Borrowed(&self.parameters.values)),
            Some(state) => Ok(Cow::Owned(self.parts(&state.values)?)),
        }
    }

    /// Returns the optimizer with its current moments.
    pub(crate) fn optimizer(&self) -> Result<Cow<'_, AdamW>> {
        let Some(state) = &self.on_device else { return Ok(Cow::Borrowed(&self.optimizer)) };
        let moments = self.parts(&state.first)?.into_iter().zip(self.parts(&state.second)?);
        let moments = moments.map(|(first, second)| Moments { first, second }).collect();
        Ok(Cow::Owned(self.optimizer.with(moments)))
    }

    /// Continues from the results of [`AdapterState::values`] and [`AdapterState::optimizer`] after `updates` updates.
    pub(crate) fn restore(&mut self, values: Vec<Vec<f32>>, moments: Vec<Moments>, updates: u64) -> Result<()> {
        if let Some(state) = &mut self.on_device {
            *state = OnDevice::new(&values, &moments, &state.kernels.clone(), state.dtype)?;
        } else {
            self.parameters.values = values;
            self.optimizer.moments = moments;
        }
        self.optimizer.updates = updates;
        Ok(())
    }

    fn parts(&self, all: &Tensor) -> Result<Vec<Vec<f32>>> {
        let all: Vec<f32> = all.to_vec1()?;
        let mut rest = all.as_slice();
        let part = |like: &Vec<f32>| {
            let (part, after) = rest.split_at(like.len());
            rest = after;
            part.to_vec()
        };
        Ok(self.parameters.values.iter().map(part).collect())
    }
}

impl OnDevice {
    fn new(values: &[Vec<f32>], moments: &[Moments], kernels: &GpuKernels, dtype: DType) -> Result<Self> {
        let whole = |parts: Vec<&Vec<f32>>| -> Result<Tensor> {
            let all: Vec<f32> = parts.into_iter().flatten().copied().collect();
            Ok(Tensor::new(all, kernels.device())?)
        };
        Ok(Self {
            kernels: kernels.clone(),
            values: whole(values.iter().collect())?,
            first: whole(moments.iter().map(|moments| &moments.first).collect())?,
            second: whole(moments.iter().map(|moments| &moments.second).collect())?,
            dtype,
        })
    }
}
