//! An [`Adapter`]: one immutable generation of LoRA matrices. Publishing a new generation re-points a name; holders of
//! the old `Arc` (the *lease*) keep computing with it.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};

use super::layout::lay_out;
use super::modules::{BlockNames, Module, PLAIN};
use super::pointers::AdapterPointers;
use super::{LoraLayer, LoraPair};
use crate::{Error, ModelConfig, Result};

/// One immutable generation of an adapter, on the device of its base model.
#[derive(Debug)]
pub struct Adapter {
    /// SHA-256 over the PEFT weights and configuration, in hex: the generation's name, the key of every cache.
    pub id: String,
    /// One entry per decoder block.
    pub layers: Vec<LoraLayer>,
    /// Layers of the blocks as files name them: updates of one layer that holds several sites have one A.
    pub names: BlockNames,
    /// Addresses of the updates for a GPU's kernels, once they were asked for.
    pointers: OnceLock<AdapterPointers>,
}

/// A held adapter: the generation stays in memory until the last lease drops.
pub type AdapterLease = Arc<Adapter>;

impl Adapter {
    /// Makes the generation `id` of these updates, one entry per decoder block, of a model with a layer for each site.
    pub fn new(id: String, layers: Vec<LoraLayer>) -> Self {
        Self::of_blocks(id, layers, BlockNames { blocks: "model.layers", modules: &PLAIN, experts_interleaved: false })
    }

    /// Makes the same of a model whose files name the layers of its blocks so.
    pub fn of_blocks(id: String, layers: Vec<LoraLayer>, names: BlockNames) -> Self {
        Self { id, layers, names, pointers: OnceLock::new() }
    }

    /// Makes an adapter of all layers of a model of the shape `model` that changes nothing, in main memory.
    pub fn zero(model: &ModelConfig) -> Result<Self> {
        // Matrix units take no odd ranks.
        const RANK: usize = 2;
        let mut layers = vec![LoraLayer::default(); model.num_hidden_layers];
        for (block, layer) in layers.iter_mut().enumerate() {
            for site in model.sites_of(block) {
                let (output, input) = site.shape(model);
                let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
                layer.set(site, LoraPair { a: zeros((RANK, input))?, b: zeros((output, RANK))?, scale: 1.0 });
            }
        }
        Ok(Self::of_blocks("zero".into(), layers, model.block_names()))
    }

    /// Returns the same adapter on `device`.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.map(|matrix| matrix.to_device(device))
    }

    /// Returns the same adapter on `device`, held as `dtype`.
    pub fn on(&self, device: &Device, dtype: DType) -> Result<Self> {
        self.map(|matrix| matrix.to_device(device)?.to_dtype(dtype)?.contiguous())
    }

    /// Returns the same adapter, laid out for a serving step on the CPU ([`super::layout`]). In `precision` bf16 a step
    /// reads half as much of it as in f32. It can then be served, but neither trained further nor written to files.
    pub fn for_serving(&self, precision: DType) -> Result<Self> {
        let laid_out = lay_out(&self.pairs().collect::<Vec<_>>(), precision)?;
        let mut layers = self.layers.clone();
        let pairs = layers.iter_mut().flat_map(LoraLayer::pairs_mut);
        pairs.zip(laid_out).for_each(|(pair, laid_out)| *pair = laid_out);
        Ok(Self::of_blocks(self.id.clone(), layers, self.names))
    }

    fn map(&self, change: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        let layers = self.layers.iter().map(|layer| layer.map(&change)).collect::<Result<_>>()?;
        Ok(Self::of_blocks(self.id.clone(), layers, self.names))
    }

    /// Returns all updates, in the order of the forward pass.
    fn pairs(&self) -> impl Iterator<Item = &LoraPair> {
        self.layers.iter().flat_map(LoraLayer::pairs)
    }

    /// Returns the update of each layer as a whole, with the layer's name, such as `model.layers.0.self_attn.q_proj`.
    /// `stored` returns the layers that a checkpoint has in the place of one. An error if there are updates of experts,
    /// which only PEFT's files have a place for.
    pub fn wholes(&self, stored: impl Fn(&Module) -> Vec<Module>) -> Result<Vec<(String, LoraPair)>> {
        if self.changes_experts() {
            return Err(Error::Setup(
                "this adapter changes experts, which this form has no place for: take its files in PEFT's form, or a merged \
                 model"
                    .into(),
            ));
        }
        self.linear_wholes(stored)
    }

    /// Does the same without the updates of experts.
    pub fn linear_wholes(&self, stored: impl Fn(&Module) -> Vec<Module>) -> Result<Vec<(String, LoraPair)>> {
        let modules: Vec<Module> = self.names.modules.iter().flat_map(stored).collect();
        let mut wholes = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            for module in &modules {
                wholes.extend(layer.whole(module)?.map(|pair| (self.names.path(index, module.path), pair)));
            }
        }
        Ok(wholes)
    }

    /// Returns the same adapter with the layers that checkpoints of `model` have, where it has those of code that takes a
    /// layer of several sites apart: their updates become one, with all their A and a B that is zero outside its own rows.
    pub fn in_names_of(&self, model: &ModelConfig) -> Result<Self> {
        let names = model.block_names();
        let is_renamed = self.names != names && model.adapter_names().any(|other| other == self.names);
        let mut layers = self.layers.clone();
        if is_renamed {
            for layer in &mut layers {
                for module in names.modules.iter().filter(|module| module.sites.len() > 1) {
                    layer.join(module, model)?;
                }
            }
        }
        Ok(Self::of_blocks(self.id.clone(), layers, if is_renamed { names } else { self.names }))
    }

    /// Returns true if it changes experts of a mixture.
    pub fn changes_experts(&self) -> bool {
        self.layers.iter().any(LoraLayer::changes_experts)
    }

    /// Returns the addresses of the matrices on the GPU, looked up once.
    pub fn pointers(&self) -> Result<&AdapterPointers> {
        if let Some(pointers) = self.pointers.get() {
            return Ok(pointers);
        }
        let pointers = AdapterPointers::of(&self.layers)?;
        Ok(self.pointers.get_or_init(|| pointers))
    }

    /// Returns the largest rank of the updates; 0 if there are none.
    pub fn rank(&self) -> usize {
        self.pairs().map(|pair| pair.a.dims()[0]).max().unwrap_or(0)
    }

    /// Returns the number of values of all A and B, as they are served: sites that share an A have one each.
    pub fn elements(&self) -> usize {
        self.pairs().map(|pair| pair.a.elem_count() + pair.b.elem_count()).sum()
    }

    /// Returns the bytes of A and B together.
    pub fn bytes(&self) -> usize {
        let matrices = self.pairs().flat_map(|pair| [&pair.a, &pair.b]);
        matrices.map(|matrix| matrix.elem_count() * matrix.dtype().size_in_bytes()).sum()
    }
}
