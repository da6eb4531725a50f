//! How the model of a GGUF file makes vectors: the pooling that its keys name, and the dense layers behind it. Read by
//! [`Checkpoint`](crate::checkpoint::Checkpoint).
//!
//! Files say nothing about prompts, about a limit below the model's context, and about the length of vectors: they are
//! scaled to length 1, as llama.cpp's server scales them.

use candle_core::{Device, Tensor};

use super::architecture::Architecture;
use super::file::Gguf;
use crate::vectors::{DenseActivation, DenseLayer, Pooling, VectorForm};
use crate::{ModelConfig, Result};

/// Tensors of the dense layers, in their order (EmbeddingGemma).
pub(super) const DENSE: [&str; 2] = ["dense_2.weight", "dense_3.weight"];

/// Reads how the model of `file`, which has the shape `config`, makes vectors.
pub(crate) fn read(file: &Gguf, config: &ModelConfig) -> Result<VectorForm> {
    let form = VectorForm::of_model(config);
    let layers = layers(file, config)?;
    Ok(match pooling(file)? {
        Some(pooling) => VectorForm { poolings: vec![pooling], layers, ..form },
        None => VectorForm { layers, ..form },
    })
}

/// Returns true if the file says how the model makes vectors: that is what it is for.
pub(crate) fn has_pooling(file: &Gguf) -> bool {
    pooling(file).is_ok_and(|pooling| pooling.is_some())
}

/// Reads what is taken of the hidden states; `None` if the file does not say.
fn pooling(file: &Gguf) -> Result<Option<Pooling>> {
    let metadata = file.metadata();
    let key = format!("{}.pooling_type", Architecture::of(metadata)?.name());
    let advice = "give the folder of the original model";
    match metadata.size(&key)? {
        None => Ok(None),
        Some(1) => Ok(Some(Pooling::Mean)),
        Some(2) => Ok(Some(Pooling::First)),
        Some(3) => Ok(Some(Pooling::Last)),
        Some(0) => {
            Err(metadata.fault(&format!("the key `{key}` is 0: a vector for each token is not supported; {advice}")))
        }
        Some(4) => Err(metadata.fault(&format!(
            "the key `{key}` is 4: this is a reranker, whose head is not read from GGUF files; {advice}"
        ))),
        Some(other) => Err(metadata.fault(&format!("the key `{key}` has the unknown value {other}"))),
    }
}

/// Reads the dense layers behind the pooling.
fn layers(file: &Gguf, config: &ModelConfig) -> Result<Vec<DenseLayer>> {
    let mut layers: Vec<DenseLayer> = Vec::new();
    if Architecture::of(file.metadata())? != Architecture::GemmaEmbedding {
        return Ok(layers);
    }
    for name in DENSE {
        let Some(tensor) = file.tensor(name) else { continue };
        let input = layers.last().map_or(config.hidden_size, DenseLayer::output);
        let &[output, width] = tensor.shape.as_slice() else {
            return Err(file.fault(&format!("the tensor `{name}` has the shape {:?}, expected a matrix", tensor.shape)));
        };
        if width != input {
            return Err(file.fault(&format!("the tensor `{name}` takes {width} values where there are {input}")));
        }
        let weight = Tensor::from_vec(tensor.matrix()?.dequantize()?, (output, width), &Device::Cpu)?;
        layers.push(DenseLayer::new(&weight, None, DenseActivation::Identity)?);
    }
    if layers.is_empty() {
        let message = "the file has no dense layers, which the original EmbeddingGemma has: its vectors are those of \
                       the mean alone";
        tracing::warn!(file = %file.path().display(), "{message}");
    }
    Ok(layers)
}
