//! The likeness of two texts: the cosine similarity of their vectors, which is the score of models that make vectors.
//! Called by `rerank` and `score`.

use crate::api::generation::embeddings::inputs;
use crate::api::generation::embeddings::prompts::Prompt;
use crate::api::generation::input::Item;
use crate::api::generation::length::Length;
use crate::api::generation::rows::{self, EmbeddingUsage};
use crate::api::generation::target::Target;
use crate::api::http::error::Result;
use crate::engine::{EmbedInput, EmbedOutput};

/// The texts on one side of the pairs.
pub(super) struct Side {
    /// The field of the request that they stand in.
    pub param: &'static str,
    /// The texts.
    pub texts: Vec<String>,
    /// What stands before each of them.
    pub prompt: Prompt,
    /// Tokens that each of them may have.
    pub length: Length,
}

/// Returns the likeness of each of the `second` texts to the one at its place in the `first`, or to the only one there,
/// and the tokens used. Vectors are made as `/embeddings` makes them.
pub(super) async fn of(target: &Target, first: Side, second: Side) -> Result<(Vec<f32>, EmbeddingUsage)> {
    let (count, param) = (first.texts.len(), second.param);
    let mut inputs = first.inputs(target).await?;
    inputs.extend(second.inputs(target).await?);
    let (vectors, usage) = rows::compute(target, param, inputs, EmbedOutput::Vector).await?;
    let (first, second) = vectors.split_at(count);
    Ok((second.iter().zip(first.iter().cycle()).map(|(second, first)| cosine(first, second)).collect(), usage))
}

impl Side {
    async fn inputs(self, target: &Target) -> Result<Vec<EmbedInput>> {
        let items = self.texts.into_iter().map(Item::Text).collect();
        inputs::read(target, self.param, items, self.prompt, self.length).await
    }
}

/// Returns the cosine of the angle between two vectors; 0 if one of them has no direction.
fn cosine(left: &[f32], right: &[f32]) -> f32 {
    let product = |left: &[f32], right: &[f32]| -> f64 {
        left.iter().zip(right).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
    };
    let lengths = (product(left, left) * product(right, right)).sqrt();
    if lengths > 0.0 { (product(left, right) / lengths) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosine_does_not_depend_on_lengths() {
        assert!((cosine(&[3.0, 0.0], &[0.5, 0.5]) - 0.5_f32.sqrt()).abs() < 1e-7);
        assert!((cosine(&[1.0, 2.0], &[-2.0, -4.0]) + 1.0).abs() < 1e-7);
        assert!(cosine(&[0.0, 0.0], &[1.0, 0.0]).abs() < f32::EPSILON);
    }
}
