//! The answers of an engine in another process: which run there, which wait, and what becomes of them when the process
//! ends. Filled by [`ChildEngine`](super::ChildEngine), driven by the thread that reads what the process says
//! ([`super::process`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::protocol::{Draw, FromChild, Generate, Scored, ToChild};
use super::waiting::Waiting;
use crate::admission::Ticket;
use crate::limits::EngineLimits;
use crate::logprobs::TokenLogprobs;
use crate::metrics::EngineMetrics;
use crate::priority::{OwnedBusyGuard, Priority};
use crate::request::{Answer, Drawn, Next};
use crate::{Error, Result, Sampling};
use attune_model::BaseModel;
use attune_model::tokenizer::Tokenizer;

/// Time that a client is told to wait if its request was never begun: the queue is long.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Why an answer failed whose process has ended.
const PROCESS_ENDED: &str = "The model's engine has ended and is being started again. Please try again.";

/// Where frames for the process go; an error if it has gone.
pub(super) trait Link: Send + std::fmt::Debug {
    /// Sends a frame.
    fn send(&mut self, message: &ToChild) -> std::io::Result<()>;
}

/// A request with what is needed to begin it, again if need be.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) organization: Arc<str>,
    pub(super) background: bool,
    pub(super) prompt: Arc<[u32]>,
    pub(super) max_tokens: usize,
    pub(super) logprobs: Option<usize>,
    pub(super) prompt_logprobs: Option<usize>,
    pub(super) ends: Vec<u32>,
    pub(super) draw: Draw,
    pub(super) answer: Answer,
    /// Its place in the queue, given back when it begins.
    pub(super) ticket: Arc<Ticket>,
    pub(super) submitted: Instant,
}

/// An answer that the process writes.
#[derive(Debug)]
struct Running {
    answer: Answer,
    submitted: Instant,
    background: bool,
    /// Keeps training back while it runs; `None` in the background.
    _busy: Option<OwnedBusyGuard>,
}

/// All answers of one engine.
#[derive(Debug)]
pub(super) struct Answers {
    model: Arc<BaseModel>,
    sequences: usize,
    max_queue: Duration,
    max_request: Duration,
    priority: Arc<Priority>,
    metrics: MetricsOf,
    state: Mutex<State>,
}

/// The metrics, which cannot be printed.
struct MetricsOf(EngineMetrics);

impl std::fmt::Debug for MetricsOf {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("EngineMetrics")
    }
}

#[derive(Debug, Default)]
struct State {
    /// `None` while no process is ready.
    link: Option<Box<dyn Link>>,
    running: HashMap<u64, Running>,
    waiting: Waiting<Request>,
    /// Number of the next answer.
    next: u64,
    stopped: bool,
}

impl Answers {
    /// Makes the answers of `model`, of which `sequences` run at the same time.
    pub(super) fn new(
        model: Arc<BaseModel>,
        sequences: usize,
        limits: &EngineLimits,
        priority: Arc<Priority>,
        metrics: EngineMetrics,
    ) -> Self {
        Self {
            model,
            sequences,
            max_queue: Duration::from_secs(limits.max_queue_seconds),
            max_request: Duration::from_secs(limits.max_request_seconds),
            priority,
            metrics: MetricsOf(metrics),
            state: Mutex::default(),
        }
    }

    /// Returns the model's id.
    pub(super) fn model(&self) -> &str {
        &self.model.id
    }

    /// Returns the model's tokenizer.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.model.tokenizer
    }

    /// Queues `requests`; they begin as soon as there are places. While no process is ready they are refused.
    pub(super) fn submit(&self, requests: Vec<Request>) -> Result<()> {
        let mut state = self.state.lock();
        if state.stopped {
            return Err(Error::stopped());
        }
        if state.link.is_none() {
            return Err(Error::Unavailable(PROCESS_ENDED));
        }
        for request in requests {
            state.waiting.push(&request.organization.clone(), request.background, request);
        }
        self.begin_waiting(&mut state);
        Ok(())
    }

    /// Takes the process at the other end of `link`, which is ready. Returns false if the engine has been stopped.
    pub(super) fn connect(&self, link: Box<dyn Link>) -> bool {
        let mut state = self.state.lock();
        if state.stopped {
            return false;
        }
        state.link = Some(link);
        self.begin_waiting(&mut state);
        true
    }

    /// Forgets the process, which has ended: what was in flight fails, what waits goes on waiting.
    pub(super) fn disconnect(&self) {
        let mut state = self.state.lock();
        state.link = None;
        for running in state.running.drain().map(|(_, running)| running) {
            running.answer.send_failed(Error::Unavailable(PROCESS_ENDED));
        }
        self.count(&state);
    }

    /// Counts a process that is started again.
    pub(super) fn count_restart(&self) {
        self.metrics.0.restarted();
    }

    /// Fails everything, and refuses what comes.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.link = None;
        for running in state.running.drain().map(|(_, running)| running) {
            running.answer.send_failed(Error::stopped());
        }
        for request in state.waiting.take(|_| true) {
            request.answer.send_failed(Error::stopped());
        }
    }

    /// Returns true once the engine has been stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Takes what the process says of an answer. Answers that are not known have been given up; that is fine.
    pub(super) fn hear(&self, said: FromChild) {
        let mut state = self.state.lock();
        match said {
            FromChild::Token { request, token, logprob, top } => {
                self.take_token(&mut state, request, token, logprob, top);
            }
            FromChild::Prompt { request, tokens } => {
                if let Some(running) = state.running.get_mut(&request) {
                    running.answer.read_prompt_elsewhere(tokens.into_iter().map(TokenLogprobs::from));
                }
            }
            FromChild::Ended { request, at_length } => {
                if let Some(running) = state.running.remove(&request) {
                    running.answer.ended_elsewhere(self.tokenizer(), at_length);
                }
            }
            FromChild::Failed { request, message } => {
                if let Some(running) = state.running.remove(&request) {
                    let error = format!("the second engine: {message}");
                    running.answer.send_failed(Error::Internal(error));
                }
            }
            FromChild::Loading { .. } | FromChild::Ready { .. } | FromChild::Unfit { .. } => {}
        }
        self.begin_waiting(&mut state);
    }

    /// Ends what waits or runs for too long, and what nobody waits for any more.
    pub(super) fn sweep(&self, now: Instant) {
        let mut state = self.state.lock();
        let waiting =
            |request: &Request| self.overdue(now, request.submitted, request.background, request.ticket.has_begun());
        for request in state.waiting.take(|request| request.answer.is_gone() || waiting(request).is_some()) {
            if let Some(error) = waiting(&request) {
                request.answer.send_failed(error);
            }
        }
        let running = |running: &Running| self.overdue(now, running.submitted, running.background, true);
        let over = |one: &Running| one.answer.is_gone() || running(one).is_some();
        let over: Vec<u64> = state.running.iter().filter(|(_, one)| over(one)).map(|(number, _)| *number).collect();
        for number in over {
            if let Some(one) = state.running.remove(&number)
                && let Some(error) = running(&one)
            {
                one.answer.send_failed(error);
            }
            say(&mut state, &ToChild::Cancel { request: number });
        }
        self.begin_waiting(&mut state);
    }

    /// Returns why a request may not go on, as on Attune's own engine: one with many answers has begun when the first one
    /// runs, and the others may wait longer; one in the background may take any time.
    fn overdue(&self, now: Instant, submitted: Instant, background: bool, has_begun: bool) -> Option<Error> {
        let age = now.saturating_duration_since(submitted);
        if background {
            return None;
        }
        if age > self.max_request {
            return Some(Error::TimedOut { limit: self.max_request });
        }
        let what = "the request waited too long for its turn";
        (age > self.max_queue && !has_begun).then_some(Error::Overloaded { what, retry_after: RETRY_AFTER })
    }

    fn take_token(&self, state: &mut State, number: u64, token: u32, logprob: Option<f32>, top: Vec<(u32, f32)>) {
        let Some(running) = state.running.get_mut(&number) else { return };
        let logprobs = logprob.map(|logprob| TokenLogprobs { id: token, logprob, top });
        let drawn = running.answer.draw(self.tokenizer(), Next::Given { token, logprobs });
        if let Some(time) = running.answer.token_time(Instant::now()) {
            self.metrics.0.token(time);
        }
        let fault = match drawn {
            Ok(Drawn::Ended) => None,
            Ok(Drawn::Token(_) | Drawn::Continues) => match running.answer.allowed() {
                Ok(allowed) => {
                    return allowed.map_or((), |tokens| say(state, &ToChild::Allow { request: number, tokens }));
                }
                Err(error) => Some(error),
            },
            Err(error) => Some(error),
        };
        if let (Some(error), Some(running)) = (fault, state.running.get(&number)) {
            running.answer.send_failed(error);
        }
        state.running.remove(&number);
        say(state, &ToChild::Cancel { request: number });
    }

    /// Begins what waits, as far as there are places.
    fn begin_waiting(&self, state: &mut State) {
        while state.link.is_some() && state.running.len() < self.sequences {
            let Some(mut request) = state.waiting.pop() else { break };
            if request.answer.is_gone() {
                continue;
            }
            let allowed = match request.answer.allowed() {
                Ok(allowed) => allowed,
                Err(error) => {
                    request.answer.send_failed(error);
                    continue;
                }
            };
            if request.max_tokens == 0 && request.prompt_logprobs.is_none() {
                request.answer.ended_elsewhere(self.tokenizer(), true);
                continue;
            }
            request.ticket.begin();
            self.metrics.0.waited(request.submitted.elapsed());
            state.next += 1;
            let number = state.next;
            let generate = Generate {
                request: number,
                prompt: request.prompt.to_vec(),
                max_tokens: request.max_tokens,
                draw: request.draw,
                logprobs: request.logprobs,
                prompt_logprobs: request.prompt_logprobs,
                ends: request.ends,
                allowed,
            };
            let busy = (!request.background).then(|| self.priority.busy_owned());
            let (answer, submitted, background) = (request.answer, request.submitted, request.background);
            let running = Running { answer, submitted, background, _busy: busy };
            state.running.insert(number, running);
            say(state, &ToChild::Generate(generate));
        }
        self.count(state);
    }

    fn count(&self, state: &State) {
        self.metrics.0.elsewhere(state.waiting.len(), state.running.len());
    }
}

/// Sends a frame. If the process has gone, the thread that reads from it notices, too, and everything fails there.
fn say(state: &mut State, message: &ToChild) {
    if let Some(link) = &mut state.link
        && let Err(error) = link.send(message)
    {
        tracing::warn!(%error, "the second engine does not take what it is told");
    }
}

impl From<TokenLogprobs> for Scored {
    fn from(TokenLogprobs { id, logprob, top }: TokenLogprobs) -> Self {
        Self { id, logprob, top }
    }
}

impl From<Scored> for TokenLogprobs {
    fn from(Scored { id, logprob, top }: Scored) -> Self {
        Self { id, logprob, top }
    }
}

impl Draw {
    /// Copies how tokens are drawn.
    pub(super) fn of(sampling: &Sampling) -> Self {
        Self {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            seed: sampling.seed,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            repetition_penalty: sampling.repetition_penalty,
            logit_bias: sampling.logit_bias.to_vec(),
        }
    }

    /// Returns it as the sampler takes it.
    pub fn sampling(self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.into(),
        }
    }
}
