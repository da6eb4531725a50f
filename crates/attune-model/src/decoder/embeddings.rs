//! The rows that a pass begins with: embeddings of tokens, and what encoders add to them. Called by the decoder's passes.

use candle_core::Tensor;

use super::{NormLayer, norm};
use crate::kernels::{GpuKernels, Kernels};
use crate::linear::{Linear, Storage};
use crate::rope::RopeTable;
use crate::weights::Weights;
use crate::{Error, ModelConfig, Result};

/// Place of a row in its text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowPlace {
    /// Number of tokens before it.
    pub position: usize,
    /// Table that its text's positions are rotated by.
    pub table: RopeTable,
    /// True in the second text of a pair.
    pub is_second: bool,
}

impl RowPlace {
    /// Returns the places of the `rows` of one text, of which those from `second` on are a second text's.
    pub fn of_text(rows: usize, second: Option<usize>, table: RopeTable) -> impl Iterator<Item = Self> {
        let second = second.unwrap_or(rows);
        (0..rows).map(move |position| Self { position, table, is_second: position >= second })
    }
}

/// Embeddings of tokens, and what encoders add to them.
#[derive(Debug)]
pub struct Embeddings {
    /// `[vocabulary, hidden]`
    pub(super) words: Linear,
    /// Factor on the rows of tokens.
    multiplier: f32,
    /// Rows of positions, `[positions, hidden]`, from that of a text's first token on; `None` if the family has none.
    positions: Option<Tensor>,
    /// Rows of segments, `[segments, hidden]`; `None` if the family has none.
    segments: Option<Tensor>,
    /// Norm of the sum; `None` if the family has none.
    norm: Option<NormLayer>,
}

impl Embeddings {
    pub(super) fn load(
        config: &ModelConfig,
        weights: &Weights,
        words: Linear,
        storage: &Storage,
        kernels: &Kernels,
    ) -> Result<Self> {
        // All rows are added in the type of the words'.
        let table = |name: &str, shape: [usize; 2]| -> Result<Tensor> {
            let name = format!("model.embeddings.{name}.weight");
            Ok(weights.get(&name, &shape)?.to_dtype(storage.activation_dtype(kernels))?)
        };
        let (mut positions, mut segments, mut norm) = (None, None, None);
        if let Some(encoder) = &config.encoder {
            let width = config.hidden_size;
            if let Some(places) = encoder.positions {
                let rows = table("position_embeddings", [places.rows, width])?;
                positions = Some(rows.narrow(0, places.first, places.rows - places.first)?.contiguous()?);
            }
            if encoder.segments > 0 {
                segments = Some(table("token_type_embeddings", [encoder.segments, width])?);
            }
            norm = Some(norm::load(config, weights, encoder.embedding_norm, width, kernels)?);
        }
        Ok(Self { words, multiplier: config.embedding_multiplier, positions, segments, norm })
    }

    /// Computes the rows of `tokens` at their `places`, `[rows, hidden]`.
    pub fn rows(&self, tokens: &[u32], places: &[RowPlace]) -> Result<Tensor> {
        if places.len() != tokens.len() {
            return Err(Error::Internal("each token has a place".into()));
        }
        let mut x = self.words.rows(tokens)?; // [rows, hidden]
        if self.multiplier.to_bits() != 1.0_f32.to_bits() {
            x = (x * f64::from(self.multiplier))?;
        }
        if let Some(positions) = &self.positions {
            let indices: Vec<u32> = places.iter().map(|place| place.position as u32).collect();
            x = (x + positions.index_select(&Tensor::new(indices, positions.device())?, 0)?)?;
        }
        if let Some(segments) = &self.segments {
            let last = segments.dim(0)? as u32 - 1;
            let indices: Vec<u32> = places.iter().map(|place| u32::from(place.is_second).min(last)).collect();
            x = (x + segments.index_select(&Tensor::new(indices, segments.device())?, 0)?)?;
        }
        match &self.norm {
            Some(norm) => norm.forward_into(x),
            None => Ok(x),
        }
    }

    /// Counts the bytes of the tables in memory.
    pub(super) fn bytes(&self) -> usize {
        let others = [&self.positions, &self.segments].into_iter().flatten();
        self.words.bytes() + others.map(|table| table.elem_count() * table.dtype().size_in_bytes()).sum::<usize>()
    }

    /// Maps the tensors for `kernels`; `None` if the words' are packed.
    pub(super) fn with(
        &self,
        kernels: &GpuKernels,
        change: &impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Option<Self>> {
        let Some(words) = self.words.with(kernels, change)? else { return Ok(None) };
        let norm = self.norm.as_ref().map(|norm| norm.with(Kernels::Gpu(kernels.clone()), change));
        Ok(Some(Self {
            words,
            multiplier: self.multiplier,
            positions: self.positions.as_ref().map(change).transpose()?,
            segments: self.segments.as_ref().map(change).transpose()?,
            norm: norm.transpose()?,
        }))
    }
}
