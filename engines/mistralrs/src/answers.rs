//! The answers in flight: hands requests to mistralrs, and watches each to its end. Driven by `main` with what Attune says.
//! [`prompt`] computes the log probabilities of prompts, before their answers begin.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::Result;
use attune_engine::child::protocol::{FromChild, Generate};
use mistralrs::{NormalRequest, Request, RequestMessage, Response, SamplingParams, StopTokens};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{RwLock, mpsc};
use tokio::task::AbortHandle;

use crate::draw::Draws;
use crate::load::Loaded;
use crate::prompt;

/// Room for what mistralrs says of an answer. It is always read, so that the engine never waits for it.
const CHUNKS: usize = 1024;

/// All answers of the model.
pub(crate) struct Answers {
    engine: mpsc::Sender<Request>,
    loaded: Arc<Loaded>,
    runtime: Handle,
    say: Sender<FromChild>,
    /// Read by each answer, and written to by each prompt whose log probabilities are computed: the library's engine does
    /// not survive a step that has both.
    turns: Arc<RwLock<()>>,
    running: Arc<Mutex<HashMap<u64, Running>>>,
}

struct Running {
    /// Ends the task that reads what the engine says, which cancels the answer there at its next token.
    task: AbortHandle,
    /// Where the tokens go that a grammar allows next.
    allow: Option<Sender<Vec<u32>>>,
}

impl Answers {
    /// Makes the answers of a model, which tell through `say` what becomes of them.
    pub(crate) fn new(loaded: Loaded, runtime: Handle, say: Sender<FromChild>) -> Result<Self> {
        let engine = loaded.model.inner().get_sender(None).map_err(|error| anyhow::anyhow!("{error}"))?;
        let (turns, running) = (Arc::default(), Arc::default());
        Ok(Self { engine, loaded: Arc::new(loaded), runtime, say, turns, running })
    }

    /// Begins an answer.
    pub(crate) fn begin(&self, generate: Generate) {
        let number = generate.request;
        let (allow, allowed) = match &generate.allowed {
            None => (None, None),
            Some(first) => {
                let (allow, allowed) = channel();
                let _ = allow.send(first.clone());
                (Some(allow), Some(allowed))
            }
        };
        let (engine, loaded, turns) = (self.engine.clone(), self.loaded.clone(), self.turns.clone());
        let (say, running) = (self.say.clone(), self.running.clone());
        // Held until the answer is known, so that it does not end before that.
        let mut known = self.running.lock();
        let task = self.runtime.spawn(async move {
            let end = run(generate, allowed, &engine, &loaded, turns, &say).await;
            running.lock().remove(&number);
            if let Some(end) = end {
                let _ = say.send(end);
            }
        });
        known.insert(number, Running { task: task.abort_handle(), allow });
    }

    /// Passes on which tokens a grammar allows next.
    pub(crate) fn allow(&self, number: u64, tokens: Vec<u32>) {
        if let Some(Running { allow: Some(allow), .. }) = self.running.lock().get(&number) {
            let _ = allow.send(tokens);
        }
    }

    /// Gives an answer up.
    pub(crate) fn cancel(&self, number: u64) {
        if let Some(running) = self.running.lock().remove(&number) {
            running.task.abort();
        }
    }
}

/// Runs an answer and returns how it ended; `None` if Attune knows that it has failed.
async fn run(
    generate: Generate,
    allowed: Option<Receiver<Vec<u32>>>,
    engine: &mpsc::Sender<Request>,
    loaded: &Loaded,
    turns: Arc<RwLock<()>>,
    say: &Sender<FromChild>,
) -> Option<FromChild> {
    let (number, max_tokens) = (generate.request, generate.max_tokens);
    if let Some(count) = generate.prompt_logprobs {
        // A task of its own, which goes on if the answer is given up: the engine does not survive a client that goes away.
        let scores = prompt::Scores { prompt: generate.prompt.clone(), count, request: number, say: say.clone() };
        let scored = tokio::spawn(scores.tell(engine.clone(), turns.clone())).await;
        if let Err(message) = scored.unwrap_or_else(|error| Err(error.to_string())) {
            return Some(FromChild::Failed { request: number, message });
        }
        if max_tokens == 0 {
            return Some(FromChild::Ended { request: number, at_length: true });
        }
    }
    let draws = Arc::new(Draws::new(&generate, allowed, turns.read_owned().await, say.clone()));
    let (response, chunks) = mpsc::channel(CHUNKS);
    if engine.send(request(generate, loaded, draws.clone(), response)).await.is_err() {
        engine_died();
    }
    let end = watch(chunks, engine, &draws, max_tokens, number).await;
    (!draws.has_failed()).then_some(end)
}

/// Makes the library's request. It is always streamed: the engine survives a client of a stream that goes away, and no
/// other.
fn request(generate: Generate, loaded: &Loaded, draws: Arc<Draws>, response: mpsc::Sender<Response>) -> Request {
    let ends = generate.ends.into_iter().filter(|token| loaded.can_end(*token)).collect();
    let sampling = SamplingParams {
        // Not `None`, which is 1 there.
        temperature: Some(0.0),
        max_len: Some(generate.max_tokens),
        stop_toks: Some(StopTokens::Ids(ends)),
        ..SamplingParams::neutral()
    };
    let prompt = RequestMessage::CompletionTokens(generate.prompt);
    let mut request = NormalRequest::new_simple(prompt, sampling, response, generate.request as usize, None, None);
    request.is_streaming = true;
    request.logits_processors = Some(vec![draws]);
    Request::Normal(Box::new(request))
}

/// Reads what the engine says of an answer until it has ended, and returns how.
async fn watch(
    mut chunks: mpsc::Receiver<Response>,
    engine: &mpsc::Sender<Request>,
    draws: &Draws,
    max_tokens: usize,
    number: u64,
) -> FromChild {
    let failed = |message: String| FromChild::Failed { request: number, message };
    while let Some(response) = chunks.recv().await {
        match response {
            Response::CompletionChunk(chunk) => {
                let reason = chunk.choices.into_iter().find_map(|choice| choice.finish_reason);
                if let Some(reason) = reason {
                    return FromChild::Ended { request: number, at_length: reason == "length" };
                }
            }
            Response::InternalError(error) | Response::ValidationError(error) => return failed(error.to_string()),
            Response::CompletionModelError(error, _) | Response::ModelError(error, _) => return failed(error),
            _ => {}
        }
    }
    if engine.is_closed() {
        engine_died();
    }
    // The last chunk is left out where it holds no whole character.
    FromChild::Ended { request: number, at_length: draws.drawn() >= max_tokens }
}

/// Ends the program: Attune starts a new one. The library's engine does not say why it died, its thread just ends.
pub(crate) fn engine_died() -> ! {
    eprintln!("attune-mistralrs: the engine's thread has ended");
    std::process::exit(3)
}
