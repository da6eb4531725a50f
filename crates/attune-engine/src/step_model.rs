//! What the engine thread asks of a model: one batched step. [`BaseStepModel`] answers with a base model's decoder and its
//! cache; tests answer with arithmetic, so that the engine is tested without weights.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::limits::EngineLimits;
use crate::{Error, Result};
use attune_model::BaseModel;
use attune_model::decoder::SequenceRows;
use attune_model::kernels::Draw;
use attune_model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune_model::tokenizer::Tokenizer;

/// A model with its cache, owned by one engine thread.
pub trait StepModel: Send + 'static {
    /// The id that clients use, for metrics and logs.
    fn id(&self) -> &str;

    /// Token ids to text.
    fn tokenizer(&self) -> &Tokenizer;

    /// Ids that a prompt may have.
    fn vocabulary_size(&self) -> usize;

    /// Tokens that the model can attend to.
    fn context(&self) -> usize;

    /// Blocks of its cache.
    fn blocks(&self) -> usize;

    /// True where steps are computed by the threads of the pool, false where by a GPU.
    fn uses_pool(&self) -> bool {
        true
    }

    /// True where the model draws tokens where it computes, so that their logits need not be read.
    fn draws(&self) -> bool {
        false
    }

    /// Computes the rows of all sequences, and returns what is wanted of them.
    fn step(&mut self, tokens: &[u32], sequences: &[SequenceRows<'_>], wanted: &WantedRows) -> Result<StepOutput>;

    /// True where the cache can still be used after a step that failed: what it held before the step is all there.
    fn is_intact(&self) -> bool {
        true
    }

    /// False where the device is lost, so that no step will ever succeed; asked after one that failed.
    fn has_device(&self) -> bool {
        true
    }

    /// Replaces a cache that a failed step left unusable; what it held is lost.
    fn reset(&mut self) -> Result<()>;
}

/// Rows of a step whose results the engine reads, in rising order.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct WantedRows {
    /// Rows after which a token is drawn, and all rows of prompts whose log probabilities are wanted.
    pub logits: Vec<u32>,
    /// Rows after which the model itself draws a token, and how; of models that draw.
    pub draws: Vec<(u32, Draw)>,
    /// Rows of inputs to embed.
    pub hidden: Vec<u32>,
}

/// What a step yields, on the host.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// `[wanted.logits, vocabulary]`
    pub logits: RowMatrix,
    /// The tokens of `wanted.draws`.
    pub tokens: Vec<u32>,
    /// `[wanted.hidden, hidden]`, after the final norm.
    pub hidden: RowMatrix,
}

/// A matrix by rows.
#[derive(Debug, Default)]
pub struct RowMatrix {
    /// All values, row after row.
    pub values: Vec<f32>,
    /// Values in a row.
    pub width: usize,
}

impl RowMatrix {
    /// The row at `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let (_rows, width) = tensor.dims2()?;
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Self { values, width })
    }
}

/// The memory for keys and values of one model where nothing else is said, in MiB.
const USUAL_CACHE_MIB: usize = 1024;

/// A base model's decoder over one cache.
#[derive(Debug)]
pub struct BaseStepModel {
    model: Arc<BaseModel>,
    cache: KvCache,
}

impl BaseStepModel {
    /// Allocates the cache: `limits.kv_cache_mib`, by default [`USUAL_CACHE_MIB`], but no more than all sequences can use.
    pub fn new(model: Arc<BaseModel>, limits: &EngineLimits) -> Result<Self> {
        let block_bytes = KvCache::block_bytes(&model.config, model.decoder.activation_dtype());
        let context = model.config.max_position_embeddings;
        let cache_mib = limits.kv_cache_mib.unwrap_or(USUAL_CACHE_MIB);
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

    fn vocabulary_size(&self) -> usize {
        self.model.config.vocab_size
    }

    fn context(&self) -> usize {
        self.model.config.max_position_embeddings
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
        // A panic while a tensor was written poisons its lock; whoever takes it then panics. A step writes its own rows
        // alone, which are written again when it is repeated.
        let take_locks =
            || (self.cache.keys.iter().chain(&self.cache.values)).for_each(|t| drop(t.storage_and_layout()));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(take_locks)).is_ok()
    }

    fn has_device(&self) -> bool {
        self.model.health.check()
    }

    fn reset(&mut self) -> Result<()> {
        let decoder = &self.model.decoder;
        self.cache =
            KvCache::new(&self.model.config, self.cache.blocks(), decoder.activation_dtype(), decoder.device())?;
        Ok(())
    }
}

/// The wanted rows of `hidden`, without a copy where that is all of them (a step of answers only).
fn select(hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
    if rows.len() == hidden.dim(0)? {
        return Ok(hidden.clone());
    }
    Ok(hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?)
}
