//! Keys and values of running sequences, in blocks of [`BLOCK_TOKENS`] tokens: the storage that attention reads.
//! `engine/kv.rs` decides which block belongs to which sequence. On the CPU a block takes memory once it is written.
//!
//! A convolution has the inputs of its last tokens there, in the place of keys: each block keeps those of its own last
//! tokens, one less than the filters have taps. Rows of a sequence come in order, so that the ones which the next row
//! needs are always among them, in its block and the one before; and a full block, which others may share as the
//! beginning of their own text, keeps what the row behind it needs.

use attune_support::system::untouched_zeros;
use candle_core::{DType, Device, Tensor};

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
}

fn zeros(shape: [usize; 3], dtype: DType, device: &Device) -> Result<Tensor> {
    match (device, dtype) {
        (Device::Cpu, DType::F32) => Ok(Tensor::from_vec(untouched_zeros(shape.iter().product()), &shape, device)?),
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
