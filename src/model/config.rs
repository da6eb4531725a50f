//! The shape of a decoder (stub).

use std::path::Path;

use crate::Result;

/// The shape of a decoder, read from `config.json`.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Tokens that the model can attend to.
    pub max_position_embeddings: usize,
}

impl ModelConfig {
    /// Reads and checks `config.json` of `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let _ = folder;
        todo!()
    }
}
