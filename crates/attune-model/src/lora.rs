//! LoRA adapters as the decoder applies them: the layers that an adapter may change, its matrices, and which rows of a
//! step go through which of them. Made by `adapters` (files) and by training; applied by the decoder.
//!
//! "LoRA: Low-Rank Adaptation of Large Language Models", Hu et al., 2021.

pub mod adapter;
pub mod experts;
pub mod layout;
pub mod modules;
pub mod pointers;

pub use adapter::{Adapter, AdapterLease};
use candle_core::Tensor;

pub use crate::sites::Site;
use crate::{Error, ModelConfig, Result};

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

/// The updates of one decoder block: of its linear layers, by [`Site`], and of those of its experts.
#[derive(Debug, Clone, Default)]
pub struct LoraLayer {
    sites: [Option<LoraPair>; Site::ALL.len()],
    /// Gate, up and down of each expert; empty if no expert has an update.
    experts: Vec<[Option<LoraPair>; 3]>,
}

impl LoraLayer {
    /// Returns the update at `site`; `None` if the adapter has none there.
    pub fn get(&self, site: Site) -> Option<&LoraPair> {
        self.sites[site as usize].as_ref()
    }

    /// Sets the update at `site`.
    pub fn set(&mut self, site: Site, pair: LoraPair) {
        self.sites[site as usize] = Some(pair);
    }

    /// Returns the update of an expert's layer at `site`, one of gate, up and down; `None` if the adapter has none there.
    pub fn expert(&self, expert: usize, site: Site) -> Option<&LoraPair> {
        self.experts.get(expert)?[part_of_expert(site)?].as_ref()
    }

    /// Sets the update of an expert's layer at `site`, one of gate, up and down.
    pub fn set_expert(&mut self, expert: usize, site: Site, pair: LoraPair) -> Result<()> {
        let part = part_of_expert(site).ok_or_else(|| Error::Internal(format!("an expert has no layer {site:?}")))?;
        if self.experts.len() <= expert {
            self.experts.resize(expert + 1, [None, None, None]);
        }
        self.experts[expert][part] = Some(pair);
        Ok(())
    }

    /// Returns the number of the last expert with an update, counted from 1; 0 if none has one.
    pub fn expert_count(&self) -> usize {
        self.experts.len()
    }

    /// Returns true if an expert has an update.
    pub fn changes_experts(&self) -> bool {
        self.experts.iter().flatten().any(Option::is_some)
    }

    /// Returns all updates, in the order of the forward pass.
    pub fn pairs(&self) -> impl Iterator<Item = &LoraPair> {
        self.sites.iter().chain(self.experts.iter().flatten()).flatten()
    }

    /// Returns the same, to be replaced.
    pub(crate) fn pairs_mut(&mut self) -> impl Iterator<Item = &mut LoraPair> {
        self.sites.iter_mut().chain(self.experts.iter_mut().flatten()).flatten()
    }

    /// Maps A and B of each update.
    pub(crate) fn map(&self, change: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        let mut mapped = self.clone();
        for pair in mapped.pairs_mut() {
            (pair.a, pair.b) = (change(&pair.a)?, change(&pair.b)?);
        }
        Ok(mapped)
    }

    /// Returns A and B of each update times `factor`, for gradients that are held in this form.
    pub fn times(&self, factor: f64) -> Result<Self> {
        self.map(|matrix| matrix * factor)
    }
}

/// Returns the place of `site` among the layers of an expert; `None` for all others.
fn part_of_expert(site: Site) -> Option<usize> {
    match site {
        Site::Gate => Some(0),
        Site::Up => Some(1),
        Site::Down => Some(2),
        _ => None,
    }
}
