//! Tensors of a checkpoint folder (stub).

use std::path::Path;

use candle_core::Device;

use crate::Result;

/// The tensors of a checkpoint folder.
#[derive(Debug)]
pub struct Weights {}

impl Weights {
    /// Maps `model.safetensors` or the shards of its index.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let _ = (folder, device);
        todo!()
    }
}
