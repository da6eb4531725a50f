//! The values of a model's tensors as the adapter was trained on them, and with what it adds. Called by the writers of
//! outputs whose form is another than the base's.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::plan::{Item, Kind, Plan, Source};
use crate::decoder::{ExpertForm, ExpertTensors};
use crate::kernels::Kernels;
use crate::linear::{Linear, Storage};
use crate::matrix::Matrix;
use crate::sites::Site;
use crate::{Error, Result};

impl Plan {
    /// Returns the values of `item` with what the adapter adds.
    pub(super) fn merged(&self, item: &Item) -> Result<Vec<f64>> {
        if let Source::Stack(experts) = &item.source {
            return self.stack(experts);
        }
        let values = self.values(item)?;
        match &item.change {
            Some(change) => change.sum(&item.name, &item.shape, &values),
            None => Ok(values.into_iter().map(f64::from).collect()),
        }
    }

    /// Returns the layers of all experts in one tensor, `[experts, inputs, outputs]`, where the outputs of an expert's layers
    /// take turns; of biases `[experts, outputs]`.
    fn stack(&self, experts: &[Vec<Item>]) -> Result<Vec<f64>> {
        let mut stacked = Vec::new();
        for layers in experts {
            let outputs = layers.first().and_then(|layer| layer.shape.first()).copied().unwrap_or(0);
            let merged = layers.iter().map(|layer| self.merged(layer)).collect::<Result<Vec<_>>>()?;
            let inputs = merged.first().map_or(0, Vec::len) / outputs.max(1);
            for input in 0..inputs {
                for output in 0..outputs {
                    stacked.extend(merged.iter().map(|layer| layer[output * inputs + input]));
                }
            }
        }
        Ok(stacked)
    }

    /// Returns the values of `item`; those of a norm as the decoder multiplies by them, with 1 added where transformers
    /// adds it.
    fn values(&self, item: &Item) -> Result<Vec<f32>> {
        let plain = |tensor: &Tensor| Ok(tensor.flatten_all()?.to_vec1::<f32>()?);
        match (&item.source, item.kind, item.shape.as_slice()) {
            (Source::Expert { block, expert, site }, kind, _) => self.expert((*block, *expert, *site), kind),
            (Source::Rows { name, all, rows }, _, shape) => {
                let width: usize = shape.iter().skip(1).product();
                let values = self.tensor(name, &[&[*all], &shape[1..]].concat())?;
                Ok(values[rows.start * width..rows.end * width].to_vec())
            }
            (Source::Joined(parts), _, shape) => {
                let part = |(name, rows): &(String, usize)| self.tensor(name, &[&[*rows], &shape[1..]].concat());
                Ok(parts.iter().map(part).collect::<Result<Vec<_>>>()?.concat())
            }
            (_, Kind::Norm, [width]) => plain(&self.weights.norm(&item.name, *width, self.config.norms_plus_one)?),
            (_, Kind::Matrix, shape) => self.tensor(&item.name, shape),
            (_, Kind::Filters, [channels, .., taps]) => plain(&self.weights.get(&item.name, &[*channels, 1, *taps])?),
            (_, _, shape) => plain(&self.weights.get(&item.name, shape)?),
        }
    }

    /// Returns the values of the base's matrix or bias `name`.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match *shape {
            [outputs, inputs] => as_trained(&self.weights.matrix(name, [outputs, inputs])?, self.quantize.as_deref()),
            _ => Ok(self.weights.get(name, shape)?.flatten_all()?.to_vec1::<f32>()?),
        }
    }

    /// Returns the values of a layer of an expert, or of its bias.
    fn expert(&self, (block, expert, site): (usize, usize, Site), kind: Kind) -> Result<Vec<f32>> {
        let config = self.config.experts.as_ref();
        let config = config.ok_or_else(|| Error::Internal("experts of a model that has none".into()))?;
        let tensors = ExpertTensors { block, hidden: self.config.hidden_size, config, weights: &self.weights };
        let form = self.form(&tensors)?;
        let (matrix, bias) = tensors.layer(&form, expert, site)?;
        match (kind, bias) {
            (Kind::Vector, Some(bias)) => Ok(bias.to_vec1::<f32>()?),
            (Kind::Vector, None) => Err(Error::Internal("a bias of experts that have none".into())),
            _ => as_trained(&matrix, self.quantize.as_deref()),
        }
    }

    /// Returns the form of a block's experts, which may be all of their values: read once while the block is written.
    fn form(&self, tensors: &ExpertTensors<'_>) -> Result<Arc<ExpertForm>> {
        let mut last = self.experts.lock();
        if let Some((known, form)) = last.as_ref()
            && *known == tensors.block
        {
            return Ok(form.clone());
        }
        // Freed before the next one takes its place.
        *last = None;
        let form = Arc::new(tensors.form()?);
        *last = Some((tensors.block, form.clone()));
        Ok(form)
    }
}

/// Returns the values of a matrix as products on the CPU take them where it is served in blocks of the format `quantize`.
pub(super) fn as_trained(matrix: &Matrix, quantize: Option<&str>) -> Result<Vec<f32>> {
    let Some(format) = quantize else {
        return Ok(matrix.dense(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?);
    };
    let storage = Storage { dtype: None, quantize: Some(format.to_owned()) };
    let weight = matrix.dense(&Device::Cpu)?;
    let rows: Vec<u32> = (0..weight.dim(0)? as u32).collect();
    Ok(Linear::new(&weight, None, &storage, &Kernels::Cpu)?.rows(&rows)?.flatten_all()?.to_vec1::<f32>()?)
}
