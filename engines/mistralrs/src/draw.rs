//! Draws each token of an answer with Attune's own sampler. mistralrs hands out the logits of every token before it draws
//! ([`CustomLogitsProcessor`]); what it gets back leaves it no choice. So seeds, `logit_bias`, penalties and grammars work
//! as with Attune's own engine, and token ids, which the library does not give, are known.

use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use attune_engine::child::protocol::{FromChild, Generate};
use attune_engine::logprobs::TokenLogprobs;
use attune_engine::sampler::Sampler;
use candle_core::{DType, Tensor};
use mistralrs::CustomLogitsProcessor;
use parking_lot::Mutex;
use tokio::sync::OwnedRwLockReadGuard;

/// Time that Attune may take to say which tokens a grammar allows next.
const ALLOW_TIMEOUT: Duration = Duration::from_secs(30);
/// Logit of every token but the drawn one.
const BANNED: f32 = -1e30;

/// The drawing of one answer.
pub(crate) struct Draws {
    request: u64,
    logprobs: Option<usize>,
    say: Sender<FromChild>,
    state: Mutex<State>,
    /// Its place beside other answers: the library gives its copy of this back when the answer has left the engine.
    _turn: OwnedRwLockReadGuard<()>,
}

struct State {
    sampler: Sampler,
    /// Where the tokens that are allowed next come from; `None` without a grammar.
    allowed: Option<Receiver<Vec<u32>>>,
    drawn: usize,
    failed: bool,
}

impl Draws {
    /// Begins the answer to `generate`.
    pub(crate) fn new(
        generate: &Generate,
        allowed: Option<Receiver<Vec<u32>>>,
        turn: OwnedRwLockReadGuard<()>,
        say: Sender<FromChild>,
    ) -> Self {
        let prompt = generate.prompt.clone().into();
        let sampler = Sampler::new(generate.draw.clone().sampling()).with_prompt(&prompt);
        let state = Mutex::new(State { sampler, allowed, drawn: 0, failed: false });
        Self { request: generate.request, logprobs: generate.logprobs, say, state, _turn: turn }
    }

    /// Returns how many tokens were drawn.
    pub(crate) fn drawn(&self) -> usize {
        self.state.lock().drawn
    }

    /// Returns true if the answer has failed, and Attune knows.
    pub(crate) fn has_failed(&self) -> bool {
        self.state.lock().failed
    }

    /// Draws a token of these logits and tells Attune.
    fn draw(&self, logits: &[f32]) -> Result<u32, String> {
        let mut state = self.state.lock();
        let allowed = match &state.allowed {
            None => None,
            Some(allowed) => Some(allowed.recv_timeout(ALLOW_TIMEOUT).map_err(|error| error.to_string())?),
        };
        let token = state.sampler.draw_among(logits, allowed.as_deref()).map_err(|error| error.to_string())?;
        state.drawn += 1;
        let known = self.logprobs.map(|count| TokenLogprobs::of(logits, token, count)).transpose();
        let known = known.map_err(|error| error.to_string())?;
        let (logprob, top) = known.map_or((None, Vec::new()), |known| (Some(known.logprob), known.top));
        // Only when the program ends is nobody there.
        let _ = self.say.send(FromChild::Token { request: self.request, token, logprob, top });
        Ok(token)
    }
}

impl CustomLogitsProcessor for Draws {
    fn apply(&self, logits: &Tensor, _: &[u32]) -> candle_core::Result<Tensor> {
        let row = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let token = if self.has_failed() {
            0
        } else {
            self.draw(&row).unwrap_or_else(|message| {
                // An error here would fail all answers of the step.
                self.state.lock().failed = true;
                let _ = self.say.send(FromChild::Failed { request: self.request, message });
                0
            })
        };
        let mut only = vec![BANNED; row.len()];
        if let Some(logit) = only.get_mut(token as usize) {
            *logit = 0.0;
        }
        Tensor::from_vec(only, logits.shape(), logits.device())?.to_dtype(logits.dtype())
    }
}
