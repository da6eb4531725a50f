//! LoRA adapters as the decoder applies them: the layers that an adapter may change, its matrices, and which rows of a
//! step go through which of them. Made by `adapters` (files) and by training; applied by the decoder.
//!
//! "LoRA: Low-Rank Adaptation of Large Language Models", Hu et al., 2021.

pub mod adapter;
pub mod layout;
pub mod modules;
pub mod pointers;

pub use adapter::{Adapter, AdapterLease};
use candle_core::Tensor;

pub use crate::sites::Site;
use crate::{ModelConfig, Result};

/// Largest rank that is accepted; no published adapter comes near it.
pub const MAX_RANK: usize = 512;

impl Site {
    /// Returns `(out, in)` of the layer in a model of this shape.
    pub const fn shape(self, model: &ModelConfig) -> (usize, usize) {
        let queries = model.num_attention_heads * model.head_dim;
        let keys = model.num_key_value_heads * model.head_dim;
        match self {
            Self::Query => (queries, model.hidden_size),
            Self::Key | Self::Value => (keys, model.hidden_size),
            Self::Output => (model.hidden_size, queries),
            Self::Gate | Self::Up => (model.intermediate_size, model.hidden_size),
            Self::Down => (model.hidden_size, model.intermediate_size),
            // Two gates and the value.
            Self::ConvolutionInput => (3 * model.hidden_size, model.hidden_size),
            Self::ConvolutionOutput => (model.hidden_size, model.hidden_size),
        }
    }
}

/// The low-rank update of one linear layer: `y += scale · B(A x)`.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// A, `[rank, in]`, in f32; in bf16 if [`Adapter::for_serving`] made it so.
    pub a: Tensor,
    /// B, `[out, rank]`, in the type of A; `[⌈out / 16⌉, rank, 16]` if [`Adapter::for_serving`] made it so.
    pub b: Tensor,
    /// alpha / rank (alpha / √rank under rsLoRA).
    pub scale: f32,
}

/// The updates of one decoder block, indexed by [`Site`].
#[derive(Debug, Clone, Default)]
pub struct LoraLayer([Option<LoraPair>; Site::ALL.len()]);

impl LoraLayer {
    /// Returns the update at `site`; `None` if the adapter has none there.
    pub fn get(&self, site: Site) -> Option<&LoraPair> {
        self.0[site as usize].as_ref()
    }

    /// Sets the update at `site`.
    pub fn set(&mut self, site: Site, pair: LoraPair) {
        self.0[site as usize] = Some(pair);
    }

    /// Returns A and B of each update times `factor`, for gradients that are held in this form.
    pub fn times(&self, factor: f64) -> Result<Self> {
        let mut times = Self::default();
        for site in Site::ALL {
            if let Some(pair) = self.get(site) {
                times.set(site, LoraPair { a: (&pair.a * factor)?, b: (&pair.b * factor)?, scale: pair.scale });
            }
        }
        Ok(times)
    }
}
