//! Tensors of one block in the checkpoint. Called by the parts of the block when the decoder is loaded.

use std::ops::Range;

use candle_core::Tensor;

use super::{Projection, Residual, norm};
use crate::kernels::Kernels;
use crate::linear::{Linear, Storage};
use crate::lora::Site;
use crate::lora::modules::Module;
use crate::weights::Weights;
use crate::{Error, ModelConfig, Result};

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
        format!("{}.{}.{inside}", self.config.blocks_name, self.index)
    }

    /// Loads the norm of the block that Llama calls `usual`, `[width]`.
    pub(super) fn norm(&self, usual: &'static str, width: usize) -> Result<Tensor> {
        let name = self.config.norm_name(usual);
        self.weights.norm(&self.name(&format!("{name}.weight")), width, self.config.norms_plus_one)
    }

    /// Loads the filters `name` of the block, which stand in the file as `[channels, 1, taps]`, `[channels, taps]`.
    pub(super) fn filters(&self, name: &str, shape: [usize; 2]) -> Result<Tensor> {
        let [channels, taps] = shape;
        Ok(self.weights.get(&self.name(name), &[channels, 1, taps])?.reshape(shape.as_slice())?)
    }

    /// Loads the tensor `name` of the block, `[width]`.
    pub(super) fn tensor(&self, name: &str, width: usize) -> Result<Tensor> {
        self.weights.get(&self.name(name), &[width])
    }

    /// Loads the norms around attention (`true`) or the MLP.
    pub(super) fn residual(&self, of_attention: bool) -> Result<Residual> {
        let names = self.config.norm_places.names(of_attention);
        let norm = |name: Option<&'static str>| {
            let load = |name| {
                let name = self.name(self.config.norm_name(name));
                norm::load(self.config, self.weights, &name, self.config.hidden_size, self.kernels)
            };
            name.map(load).transpose()
        };
        let skips_first = self.config.encoder.as_ref().is_some_and(|encoder| encoder.skips_first_norm);
        let before = names.before.filter(|_| !(skips_first && of_attention && self.index == 0));
        Ok(Residual {
            before: norm(before)?,
            after: norm(names.after)?,
            behind: norm(names.behind)?,
            multiplier: self.config.residual_multiplier,
        })
    }

    /// Loads the linear layer at `site`.
    pub(super) fn projection(&self, site: Site) -> Result<Projection> {
        self.projections([site]).map(|[projection]| projection)
    }

    /// Loads the linear layers at `sites`, all at once if the checkpoint holds them in one layer.
    pub(super) fn projections<const N: usize>(&self, sites: [Site; N]) -> Result<[Projection; N]> {
        let mut loaded: Vec<Projection> = Vec::with_capacity(N);
        for site in sites {
            if loaded.iter().any(|projection| projection.site == site) {
                continue;
            }
            let module = self.config.modules.iter().find(|module| module.sites.contains(&site));
            let module = module.ok_or_else(|| Error::Internal(format!("no layer holds {site:?}")))?;
            loaded.extend(self.module(module)?.into_iter().filter(|projection| sites.contains(&projection.site)));
        }
        loaded.sort_by_key(|projection| sites.iter().position(|site| *site == projection.site));
        loaded.try_into().map_err(|_| Error::Internal("one layer for each site".into()))
    }

    /// Loads the layer `module` as the linear layers of its sites, whose rows it holds one after the other. Some files
    /// hold these one by one, under the names that they have in most families (GGUF files of Granite 4).
    fn module(&self, module: &Module) -> Result<Vec<Projection>> {
        let weight = |path: &str| self.name(&format!("{path}.weight"));
        let is_whole = self.weights.has(&weight(module.path));
        if !is_whole && module.sites.iter().all(|site| self.weights.has(&weight(site.path()))) {
            let single = |site: &'static Site| self.rows_of(&Module::new(site.path(), std::slice::from_ref(site)));
            return Ok(module.sites.iter().map(single).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect());
        }
        self.rows_of(module)
    }

    /// Loads the layer `module`, which is one tensor.
    fn rows_of(&self, module: &Module) -> Result<Vec<Projection>> {
        let (output, input) = module.shape(self.config);
        let name = self.name(module.path);
        let weight = self.weights.matrix(&format!("{name}.weight"), [output, input])?;
        let bias_name = format!("{name}.bias");
        let bias = if module.sites.iter().any(|site| self.config.has_bias(*site)) {
            self.weights.get_optional(&bias_name, &[output])?
        } else {
            if self.weights.has(&bias_name) {
                tracing::warn!(tensor = bias_name, "config.json has no such bias: it is not read");
            }
            None
        };
        let projection = |(site, rows): (Site, Range<usize>)| -> Result<Projection> {
            let bias = bias.as_ref().map(|bias| bias.narrow(0, rows.start, rows.len())?.contiguous()).transpose()?;
            let mut linear = Linear::of(&weight.rows(rows)?, bias, self.storage, self.kernels)?;
            if self.config.is_encoder {
                // A vector is made of all rows of a text, so that errors of rounding average out: no token hangs on one.
                linear = linear.with_byte_activations();
            }
            Ok(Projection { block: self.index, site, linear })
        };
        module.rows(self.config).map(projection).collect()
    }
}
