//! The output head as the checkpoint has it. Called when the decoder is loaded.

use crate::matrix::Matrix;
use crate::weights::Weights;
use crate::{ModelConfig, Result};

/// Loads the output head; `None` if it is the embedding. A checkpoint that is to tie the two and has another head keeps
/// it, as in transformers.
pub(super) fn untied(config: &ModelConfig, weights: &Weights, embedding: &Matrix) -> Result<Option<Matrix>> {
    const NAME: &str = "lm_head.weight";
    if config.is_encoder {
        return Ok(None);
    }
    let shape = [config.vocab_size, config.hidden_size];
    if !config.tie_word_embeddings {
        return match weights.matrix(NAME, shape) {
            Err(_) if !weights.has(NAME) => Err(weights.fault(
                "the checkpoint has no `lm_head.weight` to generate with, and config.json does not say that the embedding \
                 takes its place; if you want it for embeddings alone, set `\"tie_word_embeddings\": true` in config.json",
            )),
            head => head.map(Some),
        };
    }
    if !weights.has(NAME) {
        return Ok(None);
    }
    let head = weights.matrix(NAME, shape)?;
    let [values, embedded] = [&head, embedding].map(|matrix| matrix.dense(weights.device()));
    if values?.ne(&embedded?)?.max_all()?.to_scalar::<u8>()? == 0 {
        return Ok(None);
    }
    tracing::warn!("the checkpoint's lm_head differs from its embedding: tie_word_embeddings is not applied");
    Ok(Some(head))
}
