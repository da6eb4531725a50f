//! Keys and values of running sequences, in blocks of [`BLOCK_TOKENS`] tokens: the storage that attention reads.
//! `engine/kv.rs` decides which block belongs to which sequence.

use candle_core::{DType, Device, Tensor};

use crate::ModelConfig;
use crate::Result;

/// Tokens in one block.
pub const BLOCK_TOKENS: usize = 16;

/// One pair of tensors per layer, `[blocks · BLOCK_TOKENS, kv_heads, head_dim]`, written in place.
#[derive(Debug)]
pub struct KvCache {
    /// Keys per layer, rotated.
    pub keys: Vec<Tensor>,
    /// Values per layer.
    pub values: Vec<Tensor>,
    blocks: usize,
}

impl KvCache {
    /// Allocates `blocks` blocks for every layer of the model, for keys and values of `dtype`.
    pub fn new(config: &ModelConfig, blocks: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (blocks * BLOCK_TOKENS, config.num_key_value_heads, config.head_dim);
        let make = || Tensor::zeros(shape, dtype, device);
        let keys = (0..config.num_hidden_layers).map(|_| make()).collect::<candle_core::Result<_>>()?;
        let values = (0..config.num_hidden_layers).map(|_| make()).collect::<candle_core::Result<_>>()?;
        Ok(Self { keys, values, blocks })
    }

    /// Returns the bytes of one block over all layers.
    pub fn block_bytes(config: &ModelConfig, dtype: DType) -> usize {
        2 * dtype.size_in_bytes()
            * BLOCK_TOKENS
            * config.num_hidden_layers
            * config.num_key_value_heads
            * config.head_dim
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }
}
