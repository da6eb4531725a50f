//! Linear layers as checkpoints and PEFT name them. Most families have one for each [`Site`]; some hold several sites
//! in one *fused* layer, one's rows after the other's (Phi-3: `qkv_proj`, `gate_up_proj`; Granite 4: `input_linear`).
//!
//! An update of a fused layer has one A, and a B whose rows are those of its sites in turn. The decoder applies it site
//! by site, as pairs that share their A; files and training have it whole.

use std::ops::Range;

use candle_core::Tensor;

use super::{LoraLayer, LoraPair, Site};
pub use crate::sites::{ATTENTION, BlockNames, EXPERTS, FUSED, KNOWN, Module, PLAIN, first_site, names};
use crate::{Error, ModelConfig, Result};

impl Module {
    /// Returns `(out, in)` of the layer in a model of this shape.
    pub fn shape(&self, model: &ModelConfig) -> (usize, usize) {
        let input = self.sites.first().map_or(0, |site| site.shape(model).1);
        (self.sites.iter().map(|site| site.shape(model).0).sum(), input)
    }

    /// Returns each of its sites with the rows that are the site's.
    pub fn rows(&self, model: &ModelConfig) -> impl Iterator<Item = (Site, Range<usize>)> {
        let mut end = 0;
        self.sites.iter().map(move |site| {
            let start = end;
            end += site.shape(model).0;
            (*site, start..end)
        })
    }
}

impl LoraLayer {
    /// Returns the update of `module` as a whole: the A that its sites share, and their B one after the other; `None`
    /// if there is none. An error if some of the sites have none, or another A.
    pub fn whole(&self, module: &Module) -> Result<Option<LoraPair>> {
        let Some(parts) = self.parts(module)? else { return Ok(None) };
        let [first, others @ ..] = parts.as_slice() else { return Ok(None) };
        for other in others {
            let is_shared = first.a.id() == other.a.id() || values(&first.a)? == values(&other.a)?;
            if !is_shared || first.scale.to_bits() != other.scale.to_bits() {
                return Err(Error::Internal(format!("the parts of `{}` have different A", module.path)));
            }
        }
        Ok(Some(LoraPair { a: first.a.clone(), b: stacked(&parts)?, scale: first.scale }))
    }

    /// Returns the gradient of [`LoraLayer::whole`] where these are the gradients of its parts: that of a shared A is
    /// their sum. `None` if there is none.
    pub fn whole_gradient(&self, module: &Module) -> Result<Option<LoraPair>> {
        let Some(parts) = self.parts(module)? else { return Ok(None) };
        let [first, others @ ..] = parts.as_slice() else { return Ok(None) };
        let mut a = first.a.clone();
        for other in others {
            a = (a + &other.a)?;
        }
        Ok(Some(LoraPair { a, b: stacked(&parts)?, scale: first.scale }))
    }

    /// Sets the update of all sites of a layer to `pair`, whose B has the rows of each of `sites` in turn.
    pub fn set_whole(&mut self, sites: impl IntoIterator<Item = (Site, Range<usize>)>, pair: &LoraPair) -> Result<()> {
        for (site, rows) in sites {
            let b = pair.b.narrow(0, rows.start, rows.len())?;
            self.set(site, LoraPair { a: pair.a.clone(), b, scale: pair.scale });
        }
        Ok(())
    }

    /// Makes one update of those at the sites of `module`, each of which may have an A of its own or none at all.
    pub(super) fn join(&mut self, module: &Module, model: &ModelConfig) -> Result<()> {
        let parts: Vec<(Range<usize>, LoraPair)> =
            module.rows(model).filter_map(|(site, rows)| Some((rows, self.get(site)?.clone()))).collect();
        let Some((_, first)) = parts.first() else { return Ok(()) };
        let device = first.a.device().clone();
        let rank = parts.iter().map(|(_, pair)| pair.a.dim(0)).sum::<candle_core::Result<usize>>()?;
        let (output, _) = module.shape(model);
        let mut b = vec![0.0; output * rank];
        let mut column = 0;
        for (rows, pair) in &parts {
            let own = pair.a.dim(0)?;
            for (row, factors) in rows.clone().zip(values(&pair.b)?.chunks_exact(own)) {
                let start = row * rank + column;
                let scaled = factors.iter().map(|factor| factor * pair.scale);
                b[start..start + own].iter_mut().zip(scaled).for_each(|(b, factor)| *b = factor);
            }
            column += own;
        }
        let a = Tensor::cat(&parts.iter().map(|(_, pair)| &pair.a).collect::<Vec<_>>(), 0)?;
        let b = Tensor::from_vec(b, (output, rank), &device)?;
        self.set_whole(module.rows(model), &LoraPair { a, b, scale: 1.0 })
    }

    /// Returns the updates at the sites of `module`; `None` if none has one.
    fn parts(&self, module: &Module) -> Result<Option<Vec<&LoraPair>>> {
        let parts: Vec<&LoraPair> = module.sites.iter().filter_map(|site| self.get(*site)).collect();
        if parts.is_empty() {
            return Ok(None);
        }
        if parts.len() != module.sites.len() {
            return Err(Error::Internal(format!("an adapter changes `{}` in part", module.path)));
        }
        Ok(Some(parts))
    }
}

/// Returns the B of `parts` one after the other, `[out, rank]`.
fn stacked(parts: &[&LoraPair]) -> Result<Tensor> {
    match parts {
        [one] => Ok(one.b.clone()),
        _ => Ok(Tensor::cat(&parts.iter().map(|part| &part.b).collect::<Vec<_>>(), 0)?),
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: &[f32], columns: usize) -> Tensor {
        Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu).unwrap()
    }

    fn layer_of(whole: &LoraPair) -> LoraLayer {
        let mut layer = LoraLayer::default();
        layer.set_whole([(Site::Gate, 0..2), (Site::Up, 2..3)], whole).unwrap();
        layer
    }

    #[test]
    fn a_fused_update_is_split_by_rows_of_b_and_put_together_again() {
        let whole = LoraPair { a: tensor(&[1.0, 2.0], 2), b: tensor(&[3.0, 4.0, 5.0], 1), scale: 0.5 };
        let layer = layer_of(&whole);
        assert_eq!(values(&layer.get(Site::Up).unwrap().b).unwrap(), [5.0]);
        let again = layer.whole(&FUSED[2]).unwrap().unwrap();
        assert_eq!((values(&again.a).unwrap(), values(&again.b).unwrap()), (vec![1.0, 2.0], vec![3.0, 4.0, 5.0]));
        assert!(layer.whole(&FUSED[0]).unwrap().is_none());
        // As gradients, each part has its share of that of A.
        let gradient = layer.whole_gradient(&FUSED[2]).unwrap().unwrap();
        assert_eq!((values(&gradient.a).unwrap(), values(&gradient.b).unwrap()), (vec![2.0, 4.0], vec![3.0, 4.0, 5.0]));
    }

    #[test]
    fn parts_without_a_common_a_are_no_fused_update() {
        let whole = LoraPair { a: tensor(&[1.0, 2.0], 2), b: tensor(&[3.0, 4.0, 5.0], 1), scale: 0.5 };
        let mut layer = layer_of(&whole);
        layer.set(Site::Up, LoraPair { a: tensor(&[1.0, 3.0], 2), ..layer.get(Site::Up).unwrap().clone() });
        assert!(layer.whole(&FUSED[2]).is_err());
        let mut partial = LoraLayer::default();
        partial.set(Site::Gate, layer.get(Site::Gate).unwrap().clone());
        assert!(partial.whole(&FUSED[2]).is_err() && partial.whole_gradient(&FUSED[2]).is_err());
    }

    #[test]
    fn a_site_stands_for_those_that_share_its_layer() {
        assert_eq!(Site::ALL.map(|site| first_site(&PLAIN, site)), Site::ALL);
        let fused = Site::USUAL.map(|site| first_site(&FUSED, site));
        let [query, output, gate, down] = [Site::Query, Site::Output, Site::Gate, Site::Down];
        assert_eq!(fused, [query, query, query, output, gate, gate, down]);
    }
}
