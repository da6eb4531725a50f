//! Dropout on the input of an adapter's layers, as PEFT applies it: each layer draws its own mask for `x` in `B(A
//! drop(x))`, kept elements are divided by the share that is kept, and the frozen layer sees the whole `x`. Called by
//! [`super::backward`], which draws a mask again instead of keeping it.
//!
//! The masks are a function of the seed and of step, micro-batch and layer. So the random state is the number of steps
//! that a checkpoint holds, a resumed run is bit-identical to an uninterrupted one, and an interrupted step is repeated
//! with the same masks.

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use rayon::prelude::*;

use attune_model::Result;
use attune_model::lora::Site;

/// Dropout of one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of elements that is dropped, from 0 up to 1.
    pub probability: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Number of steps done before this one.
    pub step: usize,
    /// Index of the micro-batch in the step.
    pub batch: usize,
}

impl Dropout {
    /// Drops elements of `x` `[rows, in]` and scales up the others, for the layer at `site`.
    pub fn apply(&self, layer: usize, site: Site, x: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let mask = self.mask(layer, site, rows, width, x.device())?;
        Ok((x * mask.to_dtype(x.dtype())?)?)
    }

    /// Draws the factors for the layer's input, `[rows, width]`: 0, or 1 / (1 − probability).
    fn mask(&self, layer: usize, site: Site, rows: usize, width: usize, device: &Device) -> Result<Tensor> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        // The upper half of the streams: initialisation and data order use the lower one.
        let place = (layer * Site::USUAL.len() + place(site)) as u64;
        random.set_stream(1 << 63 | (self.step as u64) << 32 | (self.batch as u64 & 0xffff) << 16 | place & 0xffff);
        let threshold = (self.probability * f64::from(u32::MAX)) as u32;
        let kept = (1.0 / (1.0 - self.probability)) as f32;
        let mut factors = vec![0.0; rows * width];
        factors.par_chunks_mut(width.max(1)).enumerate().for_each(|(row, factors)| {
            let mut random = random.clone();
            random.set_word_pos((row * width) as u128);
            for factor in factors {
                *factor = if random.next_u32() < threshold { 0.0 } else { kept };
            }
        });
        Ok(Tensor::from_vec(factors, (rows, width), device)?)
    }
}

/// Returns the place of a layer in its block. Those of a convolution stand where attention's would.
fn place(site: Site) -> usize {
    match site {
        Site::ConvolutionInput => Site::Query as usize,
        Site::ConvolutionOutput => Site::Output as usize,
        site => site as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DROPOUT: Dropout = Dropout { probability: 0.25, seed: 7, step: 3, batch: 1 };

    fn mask(dropout: Dropout, layer: usize, site: Site) -> Vec<f32> {
        let mask = dropout.mask(layer, site, 40, 60, &Device::Cpu).unwrap();
        mask.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_mask_leaves_out_its_share_and_keeps_the_mean() {
        let mask = mask(DROPOUT, 0, Site::Query);
        let dropped = mask.iter().filter(|factor| **factor == 0.0).count() as f64 / mask.len() as f64;
        assert!((dropped - 0.25).abs() < 0.03, "{dropped}");
        assert!(mask.iter().all(|factor| *factor == 0.0 || (*factor - 4.0 / 3.0).abs() < 1e-6));
    }

    #[test]
    fn every_place_has_its_own_mask_and_always_the_same_one() {
        let first = mask(DROPOUT, 0, Site::Query);
        assert_eq!(first, mask(DROPOUT, 0, Site::Query));
        for other in [
            mask(DROPOUT, 1, Site::Query),
            mask(DROPOUT, 0, Site::Key),
            mask(Dropout { step: 4, ..DROPOUT }, 0, Site::Query),
            mask(Dropout { batch: 2, ..DROPOUT }, 0, Site::Query),
            mask(Dropout { seed: 8, ..DROPOUT }, 0, Site::Query),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn rows_have_masks_of_their_own() {
        let mask = mask(DROPOUT, 0, Site::Query);
        let rows: Vec<_> = mask.chunks(60).collect();
        assert!(rows.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
