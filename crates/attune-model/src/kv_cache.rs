//! Keys and values of running sequences, in blocks of [`BLOCK_TOKENS`] tokens: the storage that attention reads.
//! `engine/kv.rs` decides which block belongs to which sequence. On the CPU a block takes memory once it is written.
//!
//! A convolution has the inputs of its last tokens there, in the place of keys: each block keeps those of its own last
//! tokens, one less than the filters have taps. Rows of a sequence come in order, so that the ones which the next row
//! needs are always among them, in its block and the one before; and a full block, which others may share as the
//! beginning of their own text, keeps what the row behind it needs.

use std::ops::Range;

use attune_support::system::{give_back_numbers, untouched_zeros};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Tensor};

use crate::config::ConvolutionConfig;
use crate::{ModelConfig, Result};

/// Tokens in one block.
pub const BLOCK_TOKENS: usize = 16;

/// One pair of tensors per layer, written in place: `[blocks · BLOCK_TOKENS, kv_heads, head_dim]`, or of a convolution
/// `[blocks · (taps − 1), 1, hidden]` and nothing.
#[derive(Debug)]
pub struct KvCache {
    /// Keys per layer, rotated; inputs of a convolution.
    pub keys: Vec<Tensor>,
    /// Values per layer.
    pub values: Vec<Tensor>,
    blocks: usize,
}

impl KvCache {
    /// Allocates `blocks` blocks for every layer of the model, for keys and values of `dtype`.
    pub fn new(config: &ModelConfig, blocks: usize, dtype: DType, device: &Device) -> Result<Self> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for layer in 0..config.num_hidden_layers {
            let rows = block_rows(config, layer);
            for (tensors, rows, shape) in [(&mut keys, rows.keys, rows.shape), (&mut values, rows.values, rows.shape)] {
                let (heads, width) = shape;
                tensors.push(zeros([blocks * rows, heads, width], dtype, device)?);
            }
        }
        Ok(Self { keys, values, blocks })
    }

    /// Returns the bytes of one block over all layers.
    pub fn block_bytes(config: &ModelConfig, dtype: DType) -> usize {
        let elements = (0..config.num_hidden_layers).map(|layer| {
            let BlockRows { keys, values, shape: (heads, width) } = block_rows(config, layer);
            (keys + values) * heads * width
        });
        elements.sum::<usize>() * dtype.size_in_bytes()
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Gives the memory of blocks that no sequence uses and whose content nobody will read back to the system, until they are
    /// written again. `blocks` are their numbers, in rising order. On a GPU nothing happens: a cache is allocated as a whole.
    pub fn give_back(&mut self, blocks: &[u32]) -> Result<()> {
        for tensor in self.keys.iter().chain(&self.values) {
            if tensor.device().is_cpu() && tensor.dtype() == DType::F32 {
                tensor.inplace_op1(&GiveBack { blocks, of: tensor.elem_count() / self.blocks.max(1) })?;
            }
        }
        Ok(())
    }
}

/// Gives blocks of one tensor back.
struct GiveBack<'a> {
    /// Numbers of the blocks, in rising order.
    blocks: &'a [u32],
    /// Elements of each block.
    of: usize,
}

impl GiveBack<'_> {
    /// Returns the elements of the blocks, those of neighbours as one range.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.blocks.chunk_by(|block, next| block + 1 == *next).map(|run| {
            let first = run[0] as usize * self.of;
            first..first + run.len() * self.of
        })
    }
}

impl InplaceOp1 for GiveBack<'_> {
    fn name(&self) -> &'static str {
        "give back"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _layout: &Layout) -> candle_core::Result<()> {
        if let CpuStorage::F32(values) = storage {
            self.ranges().for_each(|range| give_back_numbers(&mut values[range]));
        }
        Ok(())
    }
}

fn zeros(shape: [usize; 3], dtype: DType, device: &Device) -> Result<Tensor> {
    match (device, dtype) {
        (Device::Cpu, DType::F32) => Ok(Tensor::from_vec(untouched_zeros(shape.iter().product()), &shape, device)?),
        // A GPU's driver can refuse to allocate nothing: in its place there is one row, which nobody reads.
        _ if shape[0] == 0 => Ok(Tensor::zeros((1, shape[1], shape[2]), dtype, device)?),
        _ => Ok(Tensor::zeros(&shape, dtype, device)?),
    }
}

const _: () =
    assert!(ConvolutionConfig::MOST_TAPS <= BLOCK_TOKENS, "a block has as many tokens as a filter looks back");

/// Rows of one block in one layer.
struct BlockRows {
    keys: usize,
    values: usize,
    /// Heads and their width.
    shape: (usize, usize),
}

fn block_rows(config: &ModelConfig, layer: usize) -> BlockRows {
    match config.convolution_of(layer) {
        Some(convolution) => BlockRows { keys: convolution.taps - 1, values: 0, shape: (1, config.hidden_size) },
        None => {
            BlockRows { keys: BLOCK_TOKENS, values: BLOCK_TOKENS, shape: (config.num_key_value_heads, config.head_dim) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_are_given_back_leave_the_others_as_they_are() {
        let of = 3000;
        let numbers: Vec<f32> = (0..10 * of).map(|index| index as f32 + 1.0).collect();
        let tensor = Tensor::from_vec(numbers.clone(), (10 * of, 1, 1), &Device::Cpu).expect("a tensor");
        let mut cache = KvCache { keys: vec![tensor.clone()], values: Vec::new(), blocks: 10 };
        cache.give_back(&[1, 2, 3, 7, 9]).expect("given back");
        let left = tensor.flatten_all().and_then(|all| all.to_vec1::<f32>()).expect("numbers");
        for (index, (before, after)) in numbers.iter().zip(&left).enumerate() {
            let is_given = [1, 2, 3, 7, 9].contains(&(index / of));
            assert!(after.to_bits() == before.to_bits() || is_given && after.to_bits() == 0, "{index}: {after}");
        }
        if cfg!(target_os = "linux") {
            assert!(left[of + 1500..3 * of + 1500].contains(&0.0), "nothing was given back");
        }
    }
}
