//! Runs inputs through the engine, which makes one row of numbers of each: a vector, or a number for each label. Charges
//! their tokens. Called by `embeddings` and `ranking`.

use serde::Serialize;
use utoipa::ToSchema;

use crate::api::generation::target::{Target, count_tokens};
use crate::api::http::error::{Problem, Result};
use crate::engine::{EmbedInput, EmbedOutput, EmbedRequest};

/// Tokens of the inputs.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct EmbeddingUsage {
    /// Tokens of all inputs.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}

/// Returns the row of each of `inputs`, in order, and what they used. Errors about them name the field `param`.
pub(crate) async fn compute(
    target: &Target,
    param: &'static str,
    inputs: Vec<EmbedInput>,
    output: EmbedOutput,
) -> Result<(Vec<Vec<f32>>, EmbeddingUsage)> {
    let tokens = inputs.iter().map(|input| input.tokens.len()).sum();
    let mut charge = target.account.charge(tokens)?;
    charge.owe();
    let organization = target.account.organization().clone();
    let background = target.account.is_background();
    let request = EmbedRequest { organization, inputs, adapter: target.adapter.clone(), output, background };
    // A client that leaves drops this future, and with it what has not been computed yet.
    let rows = match target.base.backend.embed(request).await {
        Ok(rows) => rows,
        Err(error) => {
            charge.waive();
            return Err(Problem::from(error).blamed_on(param));
        }
    };
    count_tokens(&target.model().id, "embedding", tokens);
    Ok((rows, EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens }))
}
