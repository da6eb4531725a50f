//! Device addresses of an adapter's matrices, looked up once per adapter and handed to the kernels of a GPU.

use candle_core::DType;

use super::{LoraLayer, LoraPair, Site};
use crate::address::{VECTOR_BYTES, address};
use crate::{Error, Result};

/// Device addresses of an adapter's matrices.
#[derive(Debug)]
pub struct AdapterPointers {
    /// Addresses by layer and site.
    pub(crate) pairs: Vec<[Option<PairPointers>; Site::ALL.len()]>,
    /// Type of the matrices; `None` if there are none.
    pub(crate) dtype: Option<DType>,
    /// True if matrix units take all matrices.
    pub(crate) fits_tiles: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct PairPointers {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) rank: u16,
    pub(crate) scale: f32,
}

impl PairPointers {
    pub(crate) fn of(pair: &LoraPair) -> Result<Self> {
        Ok(Self { a: address(&pair.a)?, b: address(&pair.b)?, rank: pair.a.dims()[0] as u16, scale: pair.scale })
    }
}

impl AdapterPointers {
    /// Looks up the addresses of the matrices of `layers`, all of one type. The adapter keeps them no longer than it
    /// lives.
    pub(crate) fn of(layers: &[LoraLayer]) -> Result<Self> {
        let mut pointers = Self { pairs: Vec::new(), dtype: None, fits_tiles: true };
        for layer in layers {
            let mut of_layer = [None; Site::ALL.len()];
            for site in Site::ALL {
                let Some(pair) = layer.get(site) else { continue };
                of_layer[site as usize] = Some(PairPointers::of(pair)?);
                pointers.fits_tiles &= fits_tiles(pair);
                for matrix in [&pair.a, &pair.b] {
                    if *pointers.dtype.get_or_insert(matrix.dtype()) != matrix.dtype() {
                        return Err(Error::Internal("an adapter's matrices have several types".into()));
                    }
                }
            }
            pointers.pairs.push(of_layer);
        }
        Ok(pointers)
    }
}

/// Returns true if matrix units can take the matrices of `pair`.
pub(crate) fn fits_tiles(pair: &LoraPair) -> bool {
    let (rank, input, output) = (pair.a.dims()[0], pair.a.dims()[1], pair.b.dims()[0]);
    // Rows of A are read as vectors, and A may be a part of a larger tensor.
    let is_aligned = address(&pair.a).is_ok_and(|start| start.is_multiple_of(VECTOR_BYTES as u64));
    is_aligned && rank.is_multiple_of(2) && output.is_multiple_of(2) && input.is_multiple_of(8)
}
