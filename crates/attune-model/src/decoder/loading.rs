//! Tensors of one block in the checkpoint. Called by the parts of the block when the decoder is loaded.

use candle_core::Tensor;

use super::{Projection, Residual};
use crate::kernels::Kernels;
use crate::linear::{Linear, Storage};
use crate::lora::Site;
use crate::weights::Weights;
use crate::{ModelConfig, Result};

/// The checkpoint as one block reads it, and what its layers are made for.
pub(super) struct BlockWeights<'a> {
    /// Number of the block, from 0.
    pub(super) index: usize,
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a Weights,
    pub(super) storage: &'a Storage,
    pub(super) kernels: &'a Kernels,
}

impl BlockWeights<'_> {
    fn name(&self, inside: &str) -> String {
        format!("model.layers.{}.{inside}", self.index)
    }

    /// Loads the norm `name` of the block, `[width]`.
    pub(super) fn norm(&self, name: &str, width: usize) -> Result<Tensor> {
        self.weights.norm(&self.name(&format!("{name}.weight")), width, self.config.norms_plus_one)
    }

    /// Loads the tensor `name` of the block, `[width]`.
    pub(super) fn tensor(&self, name: &str, width: usize) -> Result<Tensor> {
        self.weights.get(&self.name(name), &[width])
    }

    /// Loads the norms around attention (`true`) or the MLP.
    pub(super) fn residual(&self, of_attention: bool) -> Result<Residual> {
        let [before, after] = self.config.norm_places.names(of_attention);
        let norm = |name: Option<&str>| name.map(|name| self.norm(name, self.config.hidden_size)).transpose();
        Ok(Residual {
            before: norm(before)?,
            after: norm(after)?,
            multiplier: self.config.residual_multiplier,
            norm_eps: self.config.rms_norm_eps,
            kernels: self.kernels.clone(),
        })
    }

    /// Loads the linear layer at `site`.
    pub(super) fn projection(&self, site: Site) -> Result<Projection> {
        let (output, input) = site.shape(self.config);
        let name = self.name(site.path());
        let weight = self.weights.matrix(&format!("{name}.weight"), [output, input])?;
        let bias_name = format!("{name}.bias");
        let biases = self.config.biases;
        let has_bias = match site {
            Site::Query | Site::Key | Site::Value => biases.query_key_value,
            Site::Output => biases.output,
            Site::Gate | Site::Up | Site::Down => biases.mlp,
        };
        let bias = if has_bias {
            self.weights.get_optional(&bias_name, &[output])?
        } else {
            if self.weights.has(&bias_name) {
                tracing::warn!(tensor = bias_name, "config.json has no such bias: it is not read");
            }
            None
        };
        let linear = Linear::of(&weight, bias, self.storage, self.kernels)?;
        Ok(Projection { block: self.index, site, linear })
    }
}
