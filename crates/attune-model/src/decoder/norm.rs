//! Norms of rows, with their weights: RMS norms of decoders, layer norms of encoders. Called by the decoder's passes.

use candle_core::Tensor;

use crate::kernels::{Kernels, Norm};
use crate::weights::Weights;
use crate::{ModelConfig, Result};

/// A norm of rows of one width.
#[derive(Debug, Clone)]
pub struct NormLayer {
    /// Weight, `[width]`, f32.
    pub weight: Tensor,
    /// What is computed.
    pub form: NormForm,
    /// Added to the mean of the squares, or to the variance.
    pub eps: f32,
    pub(super) kernels: Kernels,
}

/// Kind of a norm.
#[derive(Debug, Clone)]
pub enum NormForm {
    /// x / rms(x) · weight (Zhang and Sennrich, 2019).
    Rms,
    /// (x − mean) / deviation · weight + bias, `[width]` if there is one (Ba et al., 2016).
    Layer(Option<Tensor>),
}

impl NormLayer {
    /// Norms `x` `[rows, width]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.form {
            NormForm::Rms => self.kernels.rms_norm(x, &self.weight, self.eps),
            NormForm::Layer(bias) => self.kernels.layer_norm(x, &self.weight, bias.as_ref(), self.eps),
        }
    }

    /// Norms `x` `[rows, width]` in place: nothing else holds it.
    pub(super) fn forward_into(&self, x: Tensor) -> Result<Tensor> {
        match &self.form {
            NormForm::Rms => self.forward(&x),
            NormForm::Layer(bias) => self.kernels.layer_norm_into(x, &self.weight, bias.as_ref(), self.eps),
        }
    }

    /// Computes the gradient of [`NormLayer::forward`] with respect to `x` from `dy`, `[rows, width]` all.
    pub fn backward(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        match &self.form {
            NormForm::Rms => self.kernels.rms_norm_backward(x, &self.weight, self.eps, dy),
            NormForm::Layer(_) => self.kernels.layer_norm_backward(x, &self.weight, self.eps, dy),
        }
    }

    /// Computes `residual` plus [`NormLayer::backward`].
    pub fn add_backward(&self, residual: &Tensor, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        match &self.form {
            NormForm::Rms => self.kernels.add_rms_norm_backward(residual, x, &self.weight, self.eps, dy),
            NormForm::Layer(_) => self.kernels.add_layer_norm_backward(residual, x, &self.weight, self.eps, dy),
        }
    }

    /// Returns the norm as products take it that compute it on their way; `None` for layer norms, which none does.
    pub(super) fn on_the_way(&self) -> Option<Norm<'_>> {
        match &self.form {
            NormForm::Rms => Some(Norm { weight: &self.weight, eps: self.eps }),
            NormForm::Layer(_) => None,
        }
    }

    /// Maps the norm's tensors for `kernels`.
    pub(super) fn with(&self, kernels: Kernels, change: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let form = match &self.form {
            NormForm::Rms => NormForm::Rms,
            NormForm::Layer(bias) => NormForm::Layer(bias.as_ref().map(change).transpose()?),
        };
        Ok(Self { weight: change(&self.weight)?, form, eps: self.eps, kernels })
    }
}

/// Loads the norm `name`, `[width]`, in the form of the model's family.
pub(super) fn load(
    config: &ModelConfig,
    weights: &Weights,
    name: &str,
    width: usize,
    kernels: &Kernels,
) -> Result<NormLayer> {
    let weight = weights.norm(&format!("{name}.weight"), width, config.norms_plus_one)?;
    let form = match &config.encoder {
        None => NormForm::Rms,
        Some(encoder) if encoder.norm_bias => NormForm::Layer(Some(weights.get(&format!("{name}.bias"), &[width])?)),
        Some(_) => NormForm::Layer(None),
    };
    Ok(NormLayer { weight, form, eps: config.rms_norm_eps, kernels: kernels.clone() })
}

/// Loads the norm behind the last block; `None` if the family has none.
pub(super) fn final_norm(config: &ModelConfig, weights: &Weights, kernels: &Kernels) -> Result<Option<NormLayer>> {
    if config.encoder.as_ref().is_some_and(|encoder| !encoder.final_norm) {
        return Ok(None);
    }
    load(config, weights, config.norm_name("model.norm"), config.hidden_size, kernels).map(Some)
}
