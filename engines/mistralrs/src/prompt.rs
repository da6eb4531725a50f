//! Log probabilities of the tokens of a prompt. mistralrs gives the logits of all rows of a prompt in a request of its own,
//! which draws nothing. Called by [`answers`](crate::answers) before the answer.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use attune_engine::child::protocol::{FromChild, Scored};
use attune_engine::logprobs::TokenLogprobs;
use candle_core::{DType, Tensor};
use mistralrs::{NormalRequest, Request, RequestMessage, Response, SamplingParams};
use tokio::sync::{RwLock, mpsc};

use crate::answers::engine_died;

/// Tokens of a frame.
const FRAME: usize = 1024;

/// A prompt whose tokens' log probabilities are told.
pub(crate) struct Scores {
    pub(crate) prompt: Vec<u32>,
    /// Number of most probable tokens to tell in each place.
    pub(crate) count: usize,
    /// The answer.
    pub(crate) request: u64,
    pub(crate) say: Sender<FromChild>,
}

impl Scores {
    /// Computes and tells them. Nothing else runs meanwhile.
    pub(crate) async fn tell(self, engine: mpsc::Sender<Request>, turns: Arc<RwLock<()>>) -> Result<(), String> {
        if self.prompt.len() < 2 {
            return Ok(());
        }
        let _turn = turns.write().await;
        let (response, mut said) = mpsc::channel(1);
        if engine.send(self.asked(response)).await.is_err() {
            engine_died();
        }
        match said.recv().await {
            Some(Response::Raw { logits_chunks, .. }) => {
                self.tell_rows(&logits_chunks).map_err(|error| error.to_string())
            }
            Some(Response::InternalError(error) | Response::ValidationError(error)) => Err(error.to_string()),
            Some(Response::CompletionModelError(error, _) | Response::ModelError(error, _)) => Err(error),
            Some(_) => Err("the engine does not give the logits of the prompt".into()),
            None => engine_died(),
        }
    }

    fn asked(&self, response: mpsc::Sender<Response>) -> Request {
        let prompt = RequestMessage::CompletionTokens(self.prompt.clone());
        let sampling = SamplingParams { temperature: Some(0.0), max_len: Some(1), ..SamplingParams::neutral() };
        let mut request = NormalRequest::new_simple(prompt, sampling, response, self.request as usize, None, None);
        request.return_raw_logits = true;
        Request::Normal(Box::new(request))
    }

    /// Row i of the logits predicts the token at position i + 1.
    fn tell_rows(&self, chunks: &[Tensor]) -> candle_core::Result<()> {
        let logits = Tensor::cat(chunks, 0)?.to_dtype(DType::F32)?;
        let (rows, _) = logits.dims2()?;
        if rows != self.prompt.len() {
            candle_core::bail!("{rows} rows of logits for a prompt of {} tokens", self.prompt.len());
        }
        let mut tokens = Vec::with_capacity(FRAME);
        for (row, id) in self.prompt[1..].iter().enumerate() {
            let row = logits.get(row)?.to_vec1::<f32>()?;
            let scored = TokenLogprobs::of(&row, *id, self.count).map_err(candle_core::Error::wrap)?;
            tokens.push(Scored::from(scored));
            if tokens.len() == FRAME {
                self.tell_some(std::mem::take(&mut tokens));
            }
        }
        self.tell_some(tokens);
        Ok(())
    }

    fn tell_some(&self, tokens: Vec<Scored>) {
        // Only when the program ends is nobody there.
        let _ = self.say.send(FromChild::Prompt { request: self.request, tokens });
    }
}
