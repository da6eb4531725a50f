//! Lets the library answer once before anyone asks: it loads some models that it cannot compute, such as ones whose weights
//! have other names than it knows, and says so with the first answer. Called by [`load`](crate::load).

use anyhow::{Context as _, Result, bail};
use mistralrs::{Model, NormalRequest, Request, RequestMessage, Response, SamplingParams};
use tokio::sync::mpsc;

/// Tokens of the prompt, which every vocabulary has, and new ones: both kinds of step are tried.
const PROMPT: [u32; 4] = [0, 1, 2, 3];
const NEW: usize = 2;

/// Asks for an answer; refuses a model that gives none.
pub(crate) async fn answer(model: &Model, context: usize) -> Result<()> {
    let length = PROMPT.len().min(context.saturating_sub(NEW)).max(1);
    let (response, mut said) = mpsc::channel(16);
    let prompt = RequestMessage::CompletionTokens(PROMPT[..length].to_vec());
    let sampling = SamplingParams { temperature: Some(0.0), max_len: Some(NEW), ..SamplingParams::neutral() };
    let mut request = NormalRequest::new_simple(prompt, sampling, response, 0, None, None);
    request.is_streaming = true;
    let engine = model.inner().get_sender(None).map_err(|error| anyhow::anyhow!("{error}"))?;
    engine.send(Request::Normal(Box::new(request))).await.context("the library's engine has ended")?;
    while let Some(response) = said.recv().await {
        let error = match response {
            Response::CompletionChunk(chunk) => {
                if chunk.choices.iter().any(|choice| choice.finish_reason.is_some()) {
                    return Ok(());
                }
                continue;
            }
            Response::InternalError(error) | Response::ValidationError(error) => error.to_string(),
            Response::CompletionModelError(error, _) | Response::ModelError(error, _) => error,
            _ => continue,
        };
        bail!("mistralrs loads this model and cannot compute it: {}", error.lines().next().unwrap_or_default());
    }
    if engine.is_closed() {
        bail!("mistralrs loads this model and cannot compute it: its engine has ended, as its log says");
    }
    // The last chunk is left out where it holds no whole character.
    Ok(())
}
