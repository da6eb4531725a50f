//! LoRA adapters: the weights, their PEFT files, and the registry from names to immutable generations.
//!
//! The trainer makes adapters, the engine applies them, the API resolves names to them. An [`Adapter`] never changes once
//! made; publishing a new one under a name re-points the name, and whoever holds the old `Arc` (the *lease*) keeps it.
//! [`registry`] hands the leases out; [`tiers`] says what is in memory; [`host`] and [`peft`] read the files.

pub mod host;
pub mod import;
pub mod peft;
pub mod registry;
pub mod routes;
pub mod status;
pub mod tiers;

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::model::ModelConfig;
use crate::model::kernels::cpu::lora::lay_out;
use crate::model::kernels::cuda::lora::Places;

/// The seven linear layers of a decoder block that an adapter can change. Written as in PEFT's `target_modules`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Site {
    /// `self_attn.q_proj`
    #[serde(rename = "q_proj")]
    Query,
    /// `self_attn.k_proj`
    #[serde(rename = "k_proj")]
    Key,
    /// `self_attn.v_proj`
    #[serde(rename = "v_proj")]
    Value,
    /// `self_attn.o_proj`
    #[serde(rename = "o_proj")]
    Output,
    /// `mlp.gate_proj`
    #[serde(rename = "gate_proj")]
    Gate,
    /// `mlp.up_proj`
    #[serde(rename = "up_proj")]
    Up,
    /// `mlp.down_proj`
    #[serde(rename = "down_proj")]
    Down,
}

impl Site {
    /// All sites in the order of the forward pass.
    pub const ALL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The checkpoint's name of the layer inside its block, such as `self_attn.q_proj`.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The name in PEFT's `target_modules`, such as `q_proj`.
    pub fn module(self) -> &'static str {
        self.path().rsplit('.').next().unwrap_or_default()
    }
}

/// The low-rank update of one linear layer: `y += scale · B(A x)`.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// A, `[rank, in]`, f32; bf16 where [`Adapter::for_serving`] made it so.
    pub a: Tensor,
    /// B, `[out, rank]`, as A; `[⌈out / 16⌉, rank, 16]` where [`Adapter::for_serving`] made it so.
    pub b: Tensor,
    /// alpha / rank (alpha / √rank under rsLoRA).
    pub scale: f32,
}

/// The updates of one decoder block, indexed by [`Site`].
#[derive(Debug, Clone, Default)]
pub struct LoraLayer([Option<LoraPair>; 7]);

impl LoraLayer {
    /// The update at `site`, if the adapter has one there.
    pub fn get(&self, site: Site) -> Option<&LoraPair> {
        self.0[site as usize].as_ref()
    }

    /// Sets the update at `site`.
    pub fn set(&mut self, site: Site, pair: LoraPair) {
        self.0[site as usize] = Some(pair);
    }

    /// A and B of each update times `factor`, as their gradients may need.
    pub(crate) fn times(&self, factor: f64) -> Result<Self> {
        let mut times = Self::default();
        for site in Site::ALL {
            if let Some(pair) = self.get(site) {
                times.set(site, LoraPair { a: (&pair.a * factor)?, b: (&pair.b * factor)?, scale: pair.scale });
            }
        }
        Ok(times)
    }
}

/// One immutable generation of an adapter, on the device of its base model.
#[derive(Debug)]
pub struct Adapter {
    /// SHA-256 over the PEFT weights and configuration, in hex: the generation's name, the key of every cache.
    pub id: String,
    /// One entry per decoder block.
    pub layers: Vec<LoraLayer>,
    /// Where a GPU's kernels find the updates, once they were asked for.
    places: OnceLock<Places>,
}

/// True for names of the forms that jobs give their models: `ft:{base}:…` and `{base}:ft-…`.
pub fn is_job_name(name: &str) -> bool {
    name.starts_with("ft:") || name.contains(":ft-")
}

/// A held adapter: the generation stays in memory until the last lease drops.
pub type AdapterLease = Arc<Adapter>;

impl Adapter {
    /// The generation `id` of these updates, one entry per decoder block.
    pub fn new(id: String, layers: Vec<LoraLayer>) -> Self {
        Self { id, layers, places: OnceLock::new() }
    }

    /// An adapter of all layers of a model of the shape `model` that changes nothing, in main memory.
    pub fn zero(model: &ModelConfig) -> Result<Self> {
        // Matrix units take no odd ranks.
        const RANK: usize = 2;
        let mut layer = LoraLayer::default();
        for site in Site::ALL {
            let (output, input) = site.shape(model);
            let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
            layer.set(site, LoraPair { a: zeros((RANK, input))?, b: zeros((output, RANK))?, scale: 1.0 });
        }
        Ok(Self::new("zero".into(), vec![layer; model.num_hidden_layers]))
    }

    /// The same adapter on `device`.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.map(|matrix| matrix.to_device(device))
    }

    /// The same adapter on `device`, held as `dtype`.
    pub fn on(&self, device: &Device, dtype: DType) -> Result<Self> {
        self.map(|matrix| matrix.to_device(device)?.to_dtype(dtype)?.contiguous())
    }

    /// The same adapter as a serving step on the CPU wants it ([`lay_out`]). In `precision` bf16 a step reads half as much of
    /// it as in f32. It can be served then, but neither trained further nor written to files.
    pub fn for_serving(&self, precision: DType) -> Result<Self> {
        let laid_out = lay_out(&self.pairs().collect::<Vec<_>>(), precision)?;
        let mut layers = self.layers.clone();
        let pairs = layers.iter_mut().flat_map(|layer| layer.0.iter_mut().flatten());
        pairs.zip(laid_out).for_each(|(pair, laid_out)| *pair = laid_out);
        Ok(Self::new(self.id.clone(), layers))
    }

    fn map(&self, change: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let mut changed = LoraLayer::default();
            for site in Site::ALL {
                if let Some(pair) = layer.get(site) {
                    changed.set(site, LoraPair { a: change(&pair.a)?, b: change(&pair.b)?, scale: pair.scale });
                }
            }
            layers.push(changed);
        }
        Ok(Self::new(self.id.clone(), layers))
    }

    /// All updates, in the order of the forward pass.
    fn pairs(&self) -> impl Iterator<Item = &LoraPair> {
        self.layers.iter().flat_map(|layer| layer.0.iter().flatten())
    }

    /// Where a GPU's kernels find its updates.
    pub fn places(&self) -> Result<&Places> {
        if let Some(places) = self.places.get() {
            return Ok(places);
        }
        let places = Places::of(self)?;
        Ok(self.places.get_or_init(|| places))
    }

    /// The largest rank of its updates; 0 where it has none.
    pub fn rank(&self) -> usize {
        self.pairs().map(|pair| pair.a.dims()[0]).max().unwrap_or(0)
    }

    /// Bytes of A and B together.
    pub fn bytes(&self) -> usize {
        let matrices = self.pairs().flat_map(|pair| [&pair.a, &pair.b]);
        matrices.map(|matrix| matrix.elem_count() * matrix.dtype().size_in_bytes()).sum()
    }
}
