//! What encoders of BERT's kind have beside the parts of a decoder. Set by their families, read by the decoder.

use crate::sites::Module;

/// Parts of an encoder's embeddings and blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "independent flags of families")]
pub struct EncoderConfig {
    /// True if layer norms have a bias.
    pub norm_bias: bool,
    /// Embeddings of positions; `None` if positions are rotated or not told.
    pub positions: Option<PositionTable>,
    /// Rows of the embedding of segments, which tells the texts of a pair apart; 0 if there is none.
    pub segments: usize,
    /// Name of the norm of the embeddings.
    pub embedding_norm: &'static str,
    /// True if a norm follows the last block.
    pub final_norm: bool,
    /// True if the first block's attention has no norm before it, since the embeddings have one (ModernBERT).
    pub skips_first_norm: bool,
    /// True if the MLP has a gate.
    pub is_gated: bool,
    /// Buckets of the relative positions that attention adds terms for (MPNet); `None` if it adds none.
    pub distance_buckets: Option<usize>,
    /// Name of the list of blocks in a checkpoint with a head, such as `bert.encoder.layer`.
    pub blocks_beside_head: &'static str,
    /// Names that transformers' own code has for the layers of the blocks, where they are not those of checkpoints
    /// (Nomic's BERT).
    pub renamed: Option<RenamedBlocks>,
}

/// Names of the layers of the blocks in code that renames them when it loads a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenamedBlocks {
    /// Name of the list of blocks, such as `layers`.
    pub blocks: &'static str,
    /// The same in a model with a head.
    pub blocks_beside_head: &'static str,
    /// Layers of a block.
    pub modules: &'static [Module],
}

/// The embedding of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionTable {
    /// Rows.
    pub rows: usize,
    /// Row of a text's first token.
    pub first: usize,
}
