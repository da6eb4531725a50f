//! Parameters that training changes: A and B of every adapted layer, in host memory. The trainer makes an [`Adapter`]
//! of them for each step and brings the step's gradients back.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use crate::train::backward::Gradients;
use crate::train::settings::TrainSettings;
use crate::{Error, Result};
use attune_model::ModelConfig;
use attune_model::lora::experts::ExpertShape;
use attune_model::lora::modules::{BlockNames, EXPERTS, Module};
use attune_model::lora::{Adapter, LoraLayer, LoraPair, Site};

/// Position and shape of one adapted layer, or of one layer of all experts of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterSpan {
    /// Index of the decoder block.
    pub layer: usize,
    /// Layer in the block: one of the model's linear ones, or one of [`EXPERTS`].
    pub module: Module,
    /// Number of experts, whose A and B stand one after the other; `None` for a linear layer.
    pub experts: Option<usize>,
    /// Rank of the pair, or of each expert's.
    pub rank: usize,
    /// Rows of B, of each of the layer's sites in turn; those of one expert.
    pub outputs: Vec<usize>,
    /// Columns of A.
    pub input: usize,
    /// Factor on B(Ax).
    pub scale: f32,
}

impl ParameterSpan {
    /// Returns the shapes of A and B.
    pub fn shapes(&self) -> [(usize, usize); 2] {
        let output: usize = self.outputs.iter().sum();
        let copies = self.experts.unwrap_or(1);
        [(copies * self.rank, self.input), (copies * output, self.rank)]
    }

    /// Returns the layer's part of `gradients`: those of its sites put together as the parameters are.
    pub fn gradient(&self, gradients: &Gradients) -> Result<LoraPair> {
        let of_layer = |layer: &LoraLayer| match self.expert_shape() {
            Some(shape) => layer.gradient_of_experts(&self.module, shape),
            None => layer.whole_gradient(&self.module),
        };
        let pair = gradients.get(self.layer).map(of_layer).transpose()?.flatten();
        let pair =
            pair.ok_or_else(|| Error::Internal(format!("no gradient for {} {}", self.layer, self.module.path)))?;
        let [a, b] = self.shapes();
        if pair.a.dims2()? != a || pair.b.dims2()? != b {
            return Err(Error::Internal("a gradient has another shape than its parameter".into()));
        }
        Ok(pair)
    }

    /// Returns the shape of an expert's part; `None` for a linear layer.
    fn expert_shape(&self) -> Option<ExpertShape> {
        let (rank, output, input) = (self.rank, self.outputs.iter().sum(), self.input);
        self.experts.map(|count| ExpertShape { count, rank, output, input })
    }

    /// Puts `pair` to its place in the block's updates.
    fn set(&self, layer: &mut LoraLayer, pair: &LoraPair) -> Result<()> {
        match self.expert_shape() {
            Some(shape) => layer.set_experts(shape, &self.rows().collect::<Vec<_>>(), pair)?,
            None => layer.set_whole(self.rows(), pair)?,
        }
        Ok(())
    }

    /// Returns the layer's sites, each with its rows of B.
    fn rows(&self) -> impl Iterator<Item = (Site, Range<usize>)> {
        let mut end = 0;
        self.module.sites.iter().zip(&self.outputs).map(move |(site, rows)| {
            let start = end;
            end += rows;
            (*site, start..end)
        })
    }
}

/// All A and B of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    layers: usize,
    /// Layers of a block, adapted or not.
    names: BlockNames,
    /// Adapted layers, in the order of the forward pass.
    pub places: Vec<ParameterSpan>,
    /// A and B of each place in turn, row by row.
    pub values: Vec<Vec<f32>>,
}

impl Parameters {
    /// Creates a new adapter on the layers whose sites the settings name: A uniform within ±1/√in (PEFT's Kaiming
    /// initialisation with a = √5, of experts too), B zero, so that the model begins as its base.
    pub fn fresh(config: &ModelConfig, settings: &TrainSettings) -> Self {
        let TrainSettings { rank, alpha, .. } = *settings;
        let scale = (alpha / rank as f64) as f32;
        let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
        let (mut places, mut values) = (Vec::new(), Vec::new());
        for layer in 0..config.num_hidden_layers {
            let linear = config.modules_of(layer).map(|module| {
                let outputs = module.rows(config).map(|(_, rows)| rows.len()).collect();
                (module, None, outputs, module.shape(config).1)
            });
            let of_experts = config.experts.iter().filter(|_| settings.experts).flat_map(|experts| {
                config.expert_modules().iter().map(|module| {
                    let shape = |site: &Site| experts.site_shape(*site, config.hidden_size);
                    let outputs = module.sites.iter().map(|site| shape(site).0).collect();
                    (module, Some(experts.count), outputs, experts.shape(module, config.hidden_size).1)
                })
            });
            let adapted = linear.chain(of_experts).filter(|(module, ..)| is_adapted(module, &settings.sites));
            for (module, experts, outputs, input) in adapted {
                let place = ParameterSpan { layer, module: *module, experts, rank, outputs, input, scale };
                let [a, b] = place.shapes();
                let bound = 1.0 / (input as f32).sqrt();
                values.push((0..a.0 * a.1).map(|_| bound * symmetric_unit(&mut random)).collect());
                values.push(vec![0.0; b.0 * b.1]);
                places.push(place);
            }
        }
        Self { layers: config.num_hidden_layers, names: config.block_names(), places, values }
    }

    /// Copies `adapter`, to continue its training.
    pub fn of(adapter: &Adapter) -> Result<Self> {
        let (mut places, mut values) = (Vec::new(), Vec::new());
        for (layer, pairs) in adapter.layers.iter().enumerate() {
            for module in adapter.names.modules {
                let Some(pair) = pairs.whole(module)? else { continue };
                let (rank, input) = pair.a.dims2()?;
                let parts = module.sites.iter().filter_map(|site| pairs.get(*site));
                let outputs = parts.map(|part| part.b.dim(0)).collect::<candle_core::Result<_>>()?;
                let (module, scale) = (*module, pair.scale);
                places.push(ParameterSpan { layer, module, experts: None, rank, outputs, input, scale });
                values.push(host(&pair.a)?);
                values.push(host(&pair.b)?);
            }
            for module in EXPERTS {
                let Some(pair) = pairs.whole_of_experts(&module)? else { continue };
                let (count, scale) = (pairs.expert_count(), pair.scale);
                let (rows, input) = pair.a.dims2()?;
                let parts = module.sites.iter().filter_map(|site| pairs.expert(0, *site));
                let outputs = parts.map(|part| part.b.dim(0)).collect::<candle_core::Result<_>>()?;
                places.push(ParameterSpan {
                    layer,
                    module,
                    experts: Some(count),
                    rank: rows / count,
                    outputs,
                    input,
                    scale,
                });
                values.push(host(&pair.a)?);
                values.push(host(&pair.b)?);
            }
        }
        Ok(Self { layers: adapter.layers.len(), names: adapter.names, places, values })
    }

    /// Makes an adapter on `device`, without a name: it is not a published generation.
    pub fn adapter(&self, device: &Device) -> Result<Adapter> {
        self.adapter_of(|index, shape| Ok(Tensor::from_slice(&self.values[index], shape, device)?))
    }

    /// Makes an adapter of other matrices: `matrix` gets each index of `values` and the matrix's shape.
    pub fn adapter_of(&self, mut matrix: impl FnMut(usize, (usize, usize)) -> Result<Tensor>) -> Result<Adapter> {
        let mut layers = vec![LoraLayer::default(); self.layers];
        for (index, place) in self.places.iter().enumerate() {
            let [a, b] = place.shapes();
            let pair = LoraPair { a: matrix(2 * index, a)?, b: matrix(2 * index + 1, b)?, scale: place.scale };
            place.set(&mut layers[place.layer], &pair)?;
        }
        Ok(Adapter::of_blocks(String::new(), layers, self.names))
    }

    /// Brings gradients into the order of `values`.
    pub fn gradients(&self, gradients: &Gradients) -> Result<Vec<Vec<f32>>> {
        let mut values = Vec::with_capacity(self.values.len());
        for place in &self.places {
            let pair = place.gradient(gradients)?;
            values.push(host(&pair.a)?);
            values.push(host(&pair.b)?);
        }
        Ok(values)
    }
}

/// Adds the gradients of another micro-batch, on their device.
pub fn add_gradients(sum: &mut Gradients, other: &Gradients) -> Result<()> {
    for (sum, other) in sum.iter_mut().zip(other) {
        for site in Site::ALL {
            if let (Some(left), Some(right)) = (sum.get(site), other.get(site)) {
                let (a, b) = ((&left.a + &right.a)?, (&left.b + &right.b)?);
                let scale = left.scale;
                sum.set(site, LoraPair { a, b, scale });
            }
        }
        sum.add_experts(other)?;
    }
    Ok(())
}

/// Returns true if `sites` have one of the layer's; settings name a layer's sites all or none.
fn is_adapted(module: &Module, sites: &[Site]) -> bool {
    module.sites.iter().any(|site| sites.contains(site))
}

fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
}

/// Draws uniformly from -1 up to 1, from the upper 24 bits: our own formula, so that a seed means the same in every
/// version of the random library.
fn symmetric_unit(random: &mut ChaCha8Rng) -> f32 {
    (random.next_u32() >> 8) as f32 / (1u32 << 23) as f32 - 1.0
}

/// Returns the order of `count` examples in an epoch: a permutation that depends only on seed and epoch, so that a
/// resumed run needs no saved random state.
pub fn epoch_order(seed: u64, epoch: usize, count: usize) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Stream 0 initialises A.
    random.set_stream(epoch as u64 + 1);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        // The modulo's bias is below 2⁻³² for any file that fits in memory.
        order.swap(last, (random.next_u64() % (last as u64 + 1)) as usize);
    }
    order
}
