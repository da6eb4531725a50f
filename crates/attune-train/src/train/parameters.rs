//! Parameters that training changes: A and B of every adapted layer, in host memory. The trainer makes an [`Adapter`]
//! of them for each step and brings the step's gradients back.

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use crate::train::backward::Gradients;
use crate::train::settings::TrainSettings;
use crate::{Error, Result};
use attune_model::ModelConfig;
use attune_model::lora::{Adapter, LoraLayer, LoraPair, Site};

/// Position and shape of one adapted layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParameterSpan {
    /// Index of the decoder block.
    pub layer: usize,
    /// Linear layer in the block.
    pub site: Site,
    /// Rank of the pair.
    pub rank: usize,
    /// Rows of B.
    pub output: usize,
    /// Columns of A.
    pub input: usize,
    /// Factor on B(Ax).
    pub scale: f32,
}

/// All A and B of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    layers: usize,
    /// Adapted layers, in the order of the forward pass.
    pub places: Vec<ParameterSpan>,
    /// A and B of each place in turn, row by row.
    pub values: Vec<Vec<f32>>,
}

impl Parameters {
    /// Creates a new adapter on the layers at `sites`: A uniform within ±1/√in (PEFT's Kaiming initialisation with a =
    /// √5), B zero, so that the model begins as its base.
    pub fn fresh(config: &ModelConfig, settings: &TrainSettings) -> Self {
        let TrainSettings { rank, alpha, .. } = *settings;
        let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
        let (mut places, mut values) = (Vec::new(), Vec::new());
        for layer in 0..config.num_hidden_layers {
            for site in Site::of(config).iter().copied().filter(|site| settings.sites.contains(site)) {
                let (output, input) = site.shape(config);
                places.push(ParameterSpan { layer, site, rank, output, input, scale: (alpha / rank as f64) as f32 });
                let bound = 1.0 / (input as f32).sqrt();
                values.push((0..rank * input).map(|_| bound * symmetric_unit(&mut random)).collect());
                values.push(vec![0.0; output * rank]);
            }
        }
        Self { layers: config.num_hidden_layers, places, values }
    }

    /// Copies `adapter`, to continue its training.
    pub fn of(adapter: &Adapter) -> Result<Self> {
        let (mut places, mut values) = (Vec::new(), Vec::new());
        for (layer, pairs) in adapter.layers.iter().enumerate() {
            for site in Site::ALL {
                let Some(pair) = pairs.get(site) else { continue };
                let ((rank, input), output) = (pair.a.dims2()?, pair.b.dim(0)?);
                places.push(ParameterSpan { layer, site, rank, output, input, scale: pair.scale });
                values.push(host(&pair.a)?);
                values.push(host(&pair.b)?);
            }
        }
        Ok(Self { layers: adapter.layers.len(), places, values })
    }

    /// Makes an adapter on `device`, without a name: it is not a published generation.
    pub fn adapter(&self, device: &Device) -> Result<Adapter> {
        self.adapter_of(|index, shape| Ok(Tensor::from_slice(&self.values[index], shape, device)?))
    }

    /// Makes an adapter of other matrices: `matrix` gets each index of `values` and the matrix's shape.
    pub fn adapter_of(&self, mut matrix: impl FnMut(usize, (usize, usize)) -> Result<Tensor>) -> Result<Adapter> {
        let mut layers = vec![LoraLayer::default(); self.layers];
        for (index, place) in self.places.iter().enumerate() {
            let a = matrix(2 * index, (place.rank, place.input))?;
            let b = matrix(2 * index + 1, (place.output, place.rank))?;
            layers[place.layer].set(place.site, LoraPair { a, b, scale: place.scale });
        }
        Ok(Adapter::new(String::new(), layers))
    }

    /// Brings gradients into the order of `values`.
    pub fn gradients(&self, gradients: &Gradients) -> Result<Vec<Vec<f32>>> {
        let mut values = Vec::with_capacity(self.values.len());
        for place in &self.places {
            let pair = gradients
                .get(place.layer)
                .and_then(|layer| layer.get(place.site))
                .ok_or_else(|| Error::Internal(format!("no gradient for {:?}", (place.layer, place.site))))?;
            values.push(host(&pair.a)?);
            values.push(host(&pair.b)?);
        }
        if !values.iter().zip(&self.values).all(|(gradient, value)| gradient.len() == value.len()) {
            return Err(Error::Internal("a gradient has another shape than its parameter".into()));
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
    }
    Ok(())
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
