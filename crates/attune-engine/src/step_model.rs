//! Interface between the engine thread and a model: [`StepModel`] computes one batched step. [`BaseStepModel`] does so
//! with a base model's decoder and cache; tests implement it with arithmetic, so that the engine is tested without
//! weights.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::limits::EngineLimits;
use crate::{Error, Result};
use attune_model::BaseModel;
use attune_model::decoder::SequenceRows;
use attune_model::kernels::Draw;
use attune_model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune_model::tokenizer::Tokenizer;
use attune_model::vectors::VectorForm;

/// A model with its cache, owned by one engine thread.
pub trait StepModel: Send + 'static {
    /// Returns the id that clients use, for metrics and logs.
    fn id(&self) -> &str;

    /// Returns the tokenizer, which turns token ids into text.
    fn tokenizer(&self) -> &Tokenizer;

    /// Returns how vectors are made of hidden states.
    fn vectors(&self) -> &VectorForm;

    /// Returns the size of the vocabulary: a prompt's token ids must be below it.
    fn vocabulary_size(&self) -> usize;

    /// Returns the number of tokens that the model can attend to.
    fn context(&self) -> usize;

    /// Returns the tokens up to which a sequence is rotated by the table of short ones; `None` if there is one table.
    fn short_context(&self) -> Option<usize> {
        None
    }

    /// Returns the number of blocks in the cache.
    fn blocks(&self) -> usize;

    /// Returns true if the threads of the pool compute the steps, false if a GPU does.
    fn uses_pool(&self) -> bool {
        true
    }

    /// Returns true if the model draws tokens on its own device, so that their logits need not be read back.
    fn draws(&self) -> bool {
        false
    }

    /// Computes the rows of all sequences and returns the results of the `wanted` rows.
    fn step(&mut self, tokens: &[u32], sequences: &[SequenceRows<'_>], wanted: &WantedRows) -> Result<StepOutput>;

    /// Returns true if the cache is still usable after a failed step: all that it held before the step is there.
    fn is_intact(&self) -> bool {
        true
    }

    /// Returns false if the device is lost, so that no step will ever succeed; called after a failed step.
    fn has_device(&self) -> bool {
        true
    }

    /// Gives the memory of blocks that no sequence uses back, until they are written again; `blocks` are in rising order.
    fn give_back(&mut self, _blocks: &[u32]) -> Result<()> {
        Ok(())
    }

    /// Replaces a cache that a failed step left unusable; what it held is lost.
    fn reset(&mut self) -> Result<()>;
}

/// Rows of a step whose results the engine reads, in rising order.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct WantedRows {
    /// Rows whose logits are read: those after which a token is drawn, and all rows of prompts whose log probabilities
    /// were asked for.
    pub logits: Vec<u32>,
    /// Rows after which the model itself draws a token, and how; only for models that draw ([`StepModel::draws`]).
    pub draws: Vec<(u32, Draw)>,
    /// Rows whose hidden states are read: those of inputs to embed.
    pub hidden: Vec<u32>,
}

/// Results of a step, in host memory.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// Logits, `[wanted.logits, vocabulary]`.
    pub logits: RowMatrix,
    /// Tokens drawn for `wanted.draws`.
    pub tokens: Vec<u32>,
    /// Hidden states after the final norm, `[wanted.hidden, hidden]`.
    pub hidden: RowMatrix,
}

/// A row-major matrix.
#[derive(Debug, Default)]
pub struct RowMatrix {
    /// All values, row after row.
    pub values: Vec<f32>,
    /// Number of values in a row.
    pub width: usize,
}

impl RowMatrix {
    /// Returns the row at `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let (_rows, width) = tensor.dims2()?;
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Self { values, width })
    }
}

/// A base model's decoder with its cache.
#[derive(Debug)]
pub struct BaseStepModel {
    model: Arc<BaseModel>,
    cache: KvCache,
}

impl BaseStepModel {
    /// Allocates the cache: `limits.cache_mib()`, but no more than all sequences can use.
    pub fn new(model: Arc<BaseModel>, limits: &EngineLimits) -> Result<Self> {
        let block_bytes = KvCache::block_bytes(&model.config, model.decoder.activation_dtype());
        let context = model.config.max_position_embeddings;
        let cache_mib = limits.cache_mib();
        let affordable = (cache_mib << 20) / block_bytes.max(1);
        let usable = limits.sequences().saturating_mul(context.div_ceil(BLOCK_TOKENS));
        let blocks = affordable.min(usable);
        if blocks == 0 {
            return Err(Error::Setup(format!(
                "kv_cache_mib is {cache_mib}, but one block of {BLOCK_TOKENS} tokens of model `{}` takes {block_bytes} bytes",
                model.id
            )));
        }
        if blocks * BLOCK_TOKENS < context {
            tracing::warn!(
                model = model.id,
                cache_tokens = blocks * BLOCK_TOKENS,
                context,
                "the cache is smaller than the model's context: longer requests end early; raise kv_cache_mib"
            );
        }
        let cache = KvCache::new(&model.config, blocks, model.decoder.activation_dtype(), model.decoder.device())?;
        let model = Self { model, cache };
        model.model.decoder.warm_up(&model.model.config, &model.cache, limits.sequences())?;
        Ok(model)
    }
}

impl StepModel for BaseStepModel {
    fn id(&self) -> &str {
        &self.model.id
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.model.tokenizer
    }

    fn vectors(&self) -> &VectorForm {
        &self.model.vectors
    }

    fn vocabulary_size(&self) -> usize {
        self.model.config.vocab_size
    }

    fn context(&self) -> usize {
        self.model.config.max_position_embeddings
    }

    fn short_context(&self) -> Option<usize> {
        self.model.decoder.short_context()
    }

    fn blocks(&self) -> usize {
        self.cache.blocks()
    }

    fn uses_pool(&self) -> bool {
        matches!(self.model.decoder.device(), Device::Cpu)
    }

    fn draws(&self) -> bool {
        self.model.decoder.kernels().gpu().is_some()
    }

    fn step(&mut self, tokens: &[u32], sequences: &[SequenceRows<'_>], wanted: &WantedRows) -> Result<StepOutput> {
        let decoder = &self.model.decoder;
        let hidden = decoder.step(tokens, sequences, &self.cache)?;
        let mut output = StepOutput::default();
        if !wanted.logits.is_empty() {
            output.logits = RowMatrix::from_tensor(&decoder.logits(&select(&hidden, &wanted.logits)?)?)?;
        }
        if !wanted.draws.is_empty() {
            let (rows, draws): (Vec<u32>, Vec<Draw>) = wanted.draws.iter().copied().unzip();
            let logits = decoder.logits(&select(&hidden, &rows)?)?;
            let gpu = decoder.kernels().gpu().ok_or_else(|| Error::Internal("only a GPU draws tokens".into()))?;
            output.tokens = gpu.draw(&logits, &draws)?;
        }
        if !wanted.hidden.is_empty() {
            output.hidden = RowMatrix::from_tensor(&select(&hidden, &wanted.hidden)?)?;
        }
        Ok(output)
    }

    fn is_intact(&self) -> bool {
        // A panic while a tensor was written poisons its lock, and taking the lock then panics. A step writes only its
        // own rows, which are written again when it is repeated.
        let take_locks =
            || (self.cache.keys.iter().chain(&self.cache.values)).for_each(|t| drop(t.storage_and_layout()));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(take_locks)).is_ok()
    }

    fn has_device(&self) -> bool {
        self.model.health.check()
    }

    fn give_back(&mut self, blocks: &[u32]) -> Result<()> {
        Ok(self.cache.give_back(blocks)?)
    }

    fn reset(&mut self) -> Result<()> {
        let decoder = &self.model.decoder;
        self.cache =
            KvCache::new(&self.model.config, self.cache.blocks(), decoder.activation_dtype(), decoder.device())?;
        Ok(())
    }
}

/// Returns the wanted `rows` of `hidden`, without a copy if that is all of them (a step of answers only).
fn select(hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
    if rows.len() == hidden.dim(0)? {
        return Ok(hidden.clone());
    }
    Ok(hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?)
}
