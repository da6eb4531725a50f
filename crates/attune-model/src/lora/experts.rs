//! The updates of all experts of a block together, as training and PEFT's files have them: for each parameter that holds
//! a layer of all experts one A `[experts · rank, in]` and one B `[experts · out, rank]`, with the experts in turn. The
//! decoder applies them expert by expert and site by site, as pairs that are parts of these.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::modules::Module;
use super::{LoraLayer, LoraPair, Site};
use crate::{Error, Result};

/// The shape of the update of one expert in a [`Module`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertShape {
    /// Number of experts.
    pub count: usize,
    /// Rank of each expert's update.
    pub rank: usize,
    /// Rows of an expert's B, those of all its sites.
    pub output: usize,
    /// Columns of A.
    pub input: usize,
}

impl LoraLayer {
    /// Returns the updates of `module` of all experts; `None` if no expert has one. Where gate and up of an expert have
    /// matrices A of their own, as adapters from transformers 4 do, theirs become one of twice the rank, with a B that is
    /// zero outside its own part. An error if only some experts have an update, or if their ranks or scales differ.
    pub fn whole_of_experts(&self, module: &Module) -> Result<Option<LoraPair>> {
        let mut experts: Vec<Vec<&LoraPair>> = Vec::with_capacity(self.expert_count());
        for expert in 0..self.expert_count() {
            experts.push(module.sites.iter().filter_map(|site| self.expert(expert, *site)).collect());
        }
        if experts.iter().all(Vec::is_empty) {
            return Ok(None);
        }
        let Some(first) = experts.iter().flatten().next() else { return Ok(None) };
        let rank = first.a.dim(0)?;
        for pair in experts.iter().flatten() {
            if pair.a.dim(0)? != rank || pair.scale.to_bits() != first.scale.to_bits() {
                return Err(fault(module, "with different ranks or scales"));
            }
        }
        if experts.iter().any(|parts| parts.len() != module.sites.len()) {
            return Err(fault(module, "of some experts alone"));
        }
        let mut is_shared = true;
        for parts in &experts {
            is_shared &= have_one_a(parts)?;
        }
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for parts in &experts {
            match parts.first() {
                Some(first) if is_shared => {
                    a.push(first.a.clone());
                    b.extend(parts.iter().map(|part| part.b.clone()));
                }
                _ => {
                    a.extend(parts.iter().map(|part| part.a.clone()));
                    for (index, part) in parts.iter().enumerate() {
                        // Its columns stand behind those of the parts before it.
                        b.push(part.b.pad_with_zeros(1, index * rank, (parts.len() - index - 1) * rank)?);
                    }
                }
            }
        }
        Ok(Some(LoraPair { a: Tensor::cat(&a, 0)?, b: Tensor::cat(&b, 0)?, scale: first.scale }))
    }

    /// Sets the updates of all experts in a module of `shape` to `pair`; each of `sites` has its rows of an expert's B.
    pub fn set_experts(&mut self, shape: ExpertShape, sites: &[(Site, Range<usize>)], pair: &LoraPair) -> Result<()> {
        for expert in 0..shape.count {
            let a = pair.a.narrow(0, expert * shape.rank, shape.rank)?;
            for (site, rows) in sites {
                let b = pair.b.narrow(0, expert * shape.output + rows.start, rows.len())?;
                self.set_expert(expert, *site, LoraPair { a: a.clone(), b, scale: pair.scale })?;
            }
        }
        Ok(())
    }

    /// Returns the gradient of [`LoraLayer::whole_of_experts`] where these are the gradients of its parts: that of an A
    /// that sites share is their sum, and experts without a row have none, which is zero. `None` if no expert has one.
    pub fn gradient_of_experts(&self, module: &Module, shape: ExpertShape) -> Result<Option<LoraPair>> {
        let ExpertShape { count, rank, output, input } = shape;
        let Some(known) =
            module.sites.iter().find_map(|site| (0..self.expert_count()).find_map(|expert| self.expert(expert, *site)))
        else {
            return Ok(None);
        };
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, known.a.dtype(), known.a.device());
        let (no_a, no_b) = (zeros((rank, input))?, zeros((output, rank))?);
        let (mut a, mut b) = (Vec::with_capacity(count), Vec::with_capacity(count * module.sites.len()));
        for expert in 0..count {
            let parts: Vec<&LoraPair> = module.sites.iter().filter_map(|site| self.expert(expert, *site)).collect();
            let Some((first, others)) = parts.split_first() else {
                a.push(no_a.clone());
                b.push(no_b.clone());
                continue;
            };
            if parts.len() != module.sites.len() {
                return Err(fault(module, "in part"));
            }
            let sum = others.iter().try_fold(first.a.clone(), |sum, other| sum + &other.a)?;
            a.push(sum);
            b.extend(parts.iter().map(|part| part.b.clone()));
        }
        Ok(Some(LoraPair { a: Tensor::cat(&a, 0)?, b: Tensor::cat(&b, 0)?, scale: known.scale }))
    }

    /// Adds the gradients of another pass to these: of the experts that have one in it.
    pub fn add_experts(&mut self, other: &Self) -> Result<()> {
        for expert in 0..other.expert_count() {
            for site in [Site::Gate, Site::Up, Site::Down] {
                let Some(more) = other.expert(expert, site) else { continue };
                let sum = match self.expert(expert, site) {
                    Some(own) => LoraPair { a: (&own.a + &more.a)?, b: (&own.b + &more.b)?, scale: own.scale },
                    None => more.clone(),
                };
                self.set_expert(expert, site, sum)?;
            }
        }
        Ok(())
    }
}

/// Returns true if all of `parts` have the same A.
fn have_one_a(parts: &[&LoraPair]) -> Result<bool> {
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let Some((first, others)) = parts.split_first() else { return Ok(true) };
    for other in others {
        if other.a.id() != first.a.id() && values(&other.a)? != values(&first.a)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn fault(module: &Module, how: &str) -> Error {
    Error::Internal(format!("an adapter changes `{}` {how}", module.path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::sites::EXPERTS;

    const SHAPE: ExpertShape = ExpertShape { count: 3, rank: 2, output: 4, input: 2 };

    fn tensor(first: usize, shape: (usize, usize)) -> Tensor {
        let values: Vec<f32> = (first..first + shape.0 * shape.1).map(|value| value as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn pair(first: usize) -> LoraPair {
        LoraPair { a: tensor(first, (6, 2)), b: tensor(first + 100, (12, 2)), scale: 0.5 }
    }

    fn layer(pair: &LoraPair) -> LoraLayer {
        let mut layer = LoraLayer::default();
        layer.set_experts(SHAPE, &[(Site::Gate, 0..2), (Site::Up, 2..4)], pair).unwrap();
        layer
    }

    #[test]
    fn updates_of_all_experts_are_split_and_put_together_again() {
        let whole = pair(1);
        let layer = layer(&whole);
        let up = layer.expert(1, Site::Up).unwrap();
        assert_eq!((values(&up.a), values(&up.b)), (vec![5.0, 6.0, 7.0, 8.0], vec![113.0, 114.0, 115.0, 116.0]));
        let again = layer.whole_of_experts(&EXPERTS[0]).unwrap().unwrap();
        assert_eq!((values(&again.a), values(&again.b)), (values(&whole.a), values(&whole.b)));
        assert!(layer.whole_of_experts(&EXPERTS[1]).unwrap().is_none());
    }

    #[test]
    fn gate_and_up_with_matrices_of_their_own_become_one_update_of_twice_the_rank() {
        let mut layer = layer(&pair(1));
        for expert in 0..3 {
            let other = LoraPair { a: tensor(50 + expert, (2, 2)), ..layer.expert(expert, Site::Up).unwrap().clone() };
            layer.set_expert(expert, Site::Up, other).unwrap();
        }
        let whole = layer.whole_of_experts(&EXPERTS[0]).unwrap().unwrap();
        assert_eq!((whole.a.dims(), whole.b.dims()), ([12, 2].as_slice(), [12, 4].as_slice()));
        for expert in 0..3 {
            let part = |tensor: &Tensor| tensor.narrow(0, expert * 4, 4).unwrap();
            let product = part(&whole.b).matmul(&part(&whole.a)).unwrap();
            for (site, row) in [(Site::Gate, 0), (Site::Up, 2)] {
                let own = layer.expert(expert, site).unwrap();
                let expected = own.b.matmul(&own.a).unwrap();
                assert_eq!(values(&product.narrow(0, row, 2).unwrap()), values(&expected), "{expert}, {site:?}");
            }
        }
    }

    #[test]
    fn an_expert_without_a_row_has_a_gradient_of_zero_and_a_shared_a_the_sum() {
        let mut gradients = LoraLayer::default();
        for site in [Site::Gate, Site::Up] {
            gradients.set_expert(1, site, LoraPair { a: tensor(1, (2, 2)), b: tensor(9, (2, 2)), scale: 0.5 }).unwrap();
        }
        let whole = gradients.gradient_of_experts(&EXPERTS[0], SHAPE).unwrap().unwrap();
        assert_eq!(values(&whole.a), [0.0, 0.0, 0.0, 0.0, 2.0, 4.0, 6.0, 8.0, 0.0, 0.0, 0.0, 0.0]);
        let b = [vec![0.0; 8], vec![9.0, 10.0, 11.0, 12.0, 9.0, 10.0, 11.0, 12.0], vec![0.0; 8]].concat();
        assert_eq!(values(&whole.b), b);
        assert!(gradients.gradient_of_experts(&EXPERTS[1], SHAPE).unwrap().is_none());
        let mut sum = LoraLayer::default();
        sum.add_experts(&gradients).unwrap();
        sum.add_experts(&gradients).unwrap();
        assert_eq!(values(&sum.expert(1, Site::Up).unwrap().a), [2.0, 4.0, 6.0, 8.0]);
    }

    #[test]
    fn an_update_of_some_experts_is_none_of_all() {
        let mut layer = layer(&pair(1));
        layer.set_expert(3, Site::Gate, layer.expert(0, Site::Gate).unwrap().clone()).unwrap();
        assert!(layer.whole_of_experts(&EXPERTS[0]).is_err());
    }
}
