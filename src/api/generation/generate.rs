//! Generation for completions and chat: runs many sequences at once and gathers their events into answers.
//!
//! [`fields`], [`bias`] and [`stops`] hold the fields that both have in requests, [`body`] the parts that both have in
//! answers, [`logprobs`] the forms in which each shows log probabilities.

pub(crate) mod bias;
pub(crate) mod body;
pub(crate) mod fields;
pub(crate) mod logprobs;
pub(crate) mod stops;

use std::collections::VecDeque;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::stream::{self, BoxStream, SelectAll, StreamExt as _};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::UnboundedReceiverStream;

use self::body::Usage;
use self::logprobs::mean;
use crate::api::access::meter::Charge;
use crate::api::generation::target::{Target, count_tokens};
use crate::api::http::error::{Problem, Result};
use crate::engine;
use crate::engine::logprobs::TokenLogprobs;
use crate::engine::{Event, FinishReason, GenerateRequest};

/// The sequences of a request: the prompts, and what all sequences have in common.
pub(crate) struct GenerationPlan {
    /// The model, its adapter, and the account that pays.
    pub target: Target,
    /// Token ids of each prompt.
    pub prompts: Vec<Arc<[u32]>>,
    /// Answers to each prompt.
    pub n: usize,
    /// Everything that each sequence asks of the engine, but for its prompt and the seed of its choice.
    pub request: GenerateRequest,
}

/// The finished answer to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// The text.
    pub text: String,
    /// The reason for which it ended.
    pub reason: FinishReason,
    /// Tokens with their log probabilities; empty if not asked for.
    pub tokens: Vec<TokenLogprobs>,
    /// Tokens of the prompt after the first with their log probabilities; empty if not asked for.
    pub prompt: Vec<TokenLogprobs>,
}

/// A piece of one answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    /// Log probabilities of the prompt's tokens after the first; comes before all text, if asked for.
    Prompt(Vec<TokenLogprobs>),
    /// More text, never empty without a token. If log probabilities were asked for, each token comes in a piece of its
    /// own.
    Text { text: String, token: Option<TokenLogprobs> },
    /// The end.
    End(FinishReason),
}

/// An event of the sequence with this index; `None` if its channel closed.
type Tagged = (usize, Option<Event>);

/// The running sequences of a request. Dropping it cancels them.
pub(crate) struct Running {
    /// Id of the base model, for the metrics.
    model: String,
    events: SelectAll<BoxStream<'static, Tagged>>,
    pieces: VecDeque<(usize, Piece)>,
    ended: Vec<bool>,
    prompt_tokens: usize,
    cached_tokens: usize,
    /// Tokens of each answer so far.
    drawn_tokens: Vec<usize>,
    /// Answers to each prompt.
    n: usize,
    /// The cost of the request, settled when it drops; `None` until every sequence is queued.
    charge: Option<Charge>,
}

impl GenerationPlan {
    /// Queues every sequence; choice `prompt · n + j` is answer `j` to its prompt.
    pub(crate) fn start(self) -> Result<Running> {
        let Target { base, account, .. } = &self.target;
        let max_tokens = self.request.max_tokens;
        // The engine checks this too, but only after the charge: a prompt that never fits is refused as that, whatever
        // the caller's rate, and takes nothing of it.
        self.target.check_context(self.prompts.iter().map(|prompt| prompt.len()), max_tokens)?;
        let prompt_tokens = self.prompts.iter().map(|prompt| prompt.len()).sum();
        let mut charge = account.charge(prompt_tokens)?;
        let mut running = Running::new(base.model.id.clone(), self.prompts.len(), self.n, prompt_tokens);
        let mut requests = Vec::with_capacity(running.choices());
        for prompt in &self.prompts {
            for j in 0..self.n {
                let mut request = GenerateRequest { prompt: Arc::clone(prompt), ..self.request.clone() };
                // Answers to one prompt differ, and the same seed gives the same set of them.
                request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(j as u64));
                requests.push(request);
            }
        }
        if max_tokens == 0 && self.request.prompt_logprobs.is_none() {
            (0..running.choices()).for_each(|index| running.end(index, FinishReason::Length));
        } else {
            let receivers = base.backend.generate_all(requests)?;
            receivers.into_iter().enumerate().for_each(|(index, receiver)| running.watch(index, receiver));
        }
        charge.owe();
        running.charge = Some(charge);
        Ok(running)
    }
}

impl Running {
    fn new(model: String, prompts: usize, n: usize, prompt_tokens: usize) -> Self {
        Self {
            model,
            events: SelectAll::new(),
            pieces: VecDeque::new(),
            ended: vec![false; prompts * n],
            prompt_tokens,
            cached_tokens: 0,
            drawn_tokens: vec![0; prompts * n],
            n,
            charge: None,
        }
    }

    /// Returns the number of answers there will be.
    fn choices(&self) -> usize {
        self.ended.len()
    }

    fn watch(&mut self, index: usize, events: UnboundedReceiver<Event>) {
        let closed = stream::once(std::future::ready((index, None)));
        let events = UnboundedReceiverStream::new(events).map(move |event| (index, Some(event)));
        self.events.push(events.chain(closed).boxed());
    }

    fn end(&mut self, index: usize, reason: FinishReason) {
        self.ended[index] = true;
        self.pieces.push_back((index, Piece::End(reason)));
    }

    /// Waits for the next piece of any answer; `None` if all have ended. Do not call it again after an error.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Piece)>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(Ok(piece));
            }
            match self.events.next().await? {
                (index, Some(Event::Prompt { tokens })) => self.pieces.push_back((index, Piece::Prompt(tokens))),
                (index, Some(Event::Token { text, logprobs, .. })) => {
                    self.drawn_tokens[index] += 1;
                    self.push_text(index, text, logprobs);
                }
                (index, Some(Event::Finished { text, reason, completion_tokens, cached_tokens })) => {
                    self.count_finished(index, completion_tokens, cached_tokens);
                    self.push_text(index, text, None);
                    self.end(index, reason);
                }
                (_, Some(Event::Failed(error))) => {
                    self.waive_what_never_ran(&error);
                    return Some(Err(error.into()));
                }
                (index, None) if !self.ended[index] => {
                    return Some(Err(Problem::unavailable("The engine stopped before the answer was complete.")));
                }
                (_, None) => {}
            }
        }
    }

    fn push_text(&mut self, index: usize, text: String, token: Option<TokenLogprobs>) {
        if !text.is_empty() || token.is_some() {
            self.pieces.push_back((index, Piece::Text { text, token }));
        }
    }

    /// Returns the tokens used so far.
    pub(crate) fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens, self.cached_tokens, self.drawn_tokens.iter().sum())
    }

    fn count_finished(&mut self, index: usize, completion_tokens: usize, cached_tokens: usize) {
        self.drawn_tokens[index] = completion_tokens;
        // A prompt counts once, however many answers it gets.
        if index.is_multiple_of(self.n) {
            self.cached_tokens += cached_tokens;
        }
    }

    /// Waives the charge if `error` says that the request waited in vain and no token was drawn.
    fn waive_what_never_ran(&mut self, error: &engine::Error) {
        if matches!(error, engine::Error::Overloaded { .. })
            && self.drawn_tokens.iter().all(|drawn| *drawn == 0)
            && let Some(charge) = self.charge.take()
        {
            charge.waive();
        }
    }

    /// Counts the tokens that were drawn and never read: the engine is ahead of a client that hung up.
    fn drain(&mut self) {
        while let Some(Some((index, event))) = tokio::task::unconstrained(self.events.next()).now_or_never() {
            match event {
                Some(Event::Token { .. }) => self.drawn_tokens[index] += 1,
                Some(Event::Finished { completion_tokens, cached_tokens, .. }) => {
                    self.count_finished(index, completion_tokens, cached_tokens);
                }
                _ => {}
            }
        }
    }

    /// Waits for all answers, in the order of their index.
    pub(crate) async fn collect(mut self) -> Result<(Vec<Answer>, Usage)> {
        let empty =
            Answer { text: String::new(), reason: FinishReason::Length, tokens: Vec::new(), prompt: Vec::new() };
        let mut answers = vec![empty; self.ended.len()];
        while let Some(piece) = self.next().await {
            match piece? {
                (index, Piece::Prompt(tokens)) => answers[index].prompt = tokens,
                (index, Piece::Text { text, token }) => {
                    answers[index].text.push_str(&text);
                    answers[index].tokens.extend(token);
                }
                (index, Piece::End(reason)) => answers[index].reason = reason,
            }
        }
        Ok((answers, self.usage()))
    }
}

/// Keeps, of the `candidates` answers to each prompt, the `n` whose tokens have the highest mean log probability, the
/// best first. If `n` equals `candidates`, returns all in their order.
pub(crate) fn best(answers: Vec<Answer>, candidates: usize, n: usize) -> Vec<Answer> {
    if candidates == n {
        return answers;
    }
    let mut kept = Vec::with_capacity(answers.len() / candidates * n);
    let mut answers = answers.into_iter();
    while answers.len() > 0 {
        let mut group: Vec<Answer> = answers.by_ref().take(candidates).collect();
        // Stable: of equals the one that was drawn first.
        group.sort_by(|a, b| mean(&b.tokens).total_cmp(&mean(&a.tokens)));
        kept.extend(group.into_iter().take(n));
    }
    kept
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain();
        let Usage { completion_tokens, .. } = self.usage();
        count_tokens(&self.model, "prompt", self.prompt_tokens);
        count_tokens(&self.model, "completion", completion_tokens);
        if let Some(charge) = &mut self.charge {
            charge.used(self.cached_tokens, completion_tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn token(text: &str) -> Event {
        Event::Token { id: 1, text: text.into(), logprobs: None }
    }

    fn finished(text: &str, completion_tokens: usize) -> Event {
        Event::Finished { text: text.into(), reason: FinishReason::Stop, completion_tokens, cached_tokens: 3 }
    }

    /// Makes choices whose channels already hold all their events.
    fn running(choices: Vec<Vec<Event>>) -> Running {
        let mut running = Running::new("m".into(), 1, choices.len(), 5);
        for (index, events) in choices.into_iter().enumerate() {
            let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
            for event in events {
                sender.send(event).expect("the receiver lives");
            }
            running.watch(index, receiver);
        }
        running
    }

    #[tokio::test]
    async fn answers_are_gathered_by_index_and_usage_counts_the_prompt_once() {
        let choices = vec![vec![token("a"), token(""), finished("b", 2)], vec![token("c"), finished("", 1)]];
        let (answers, usage) = running(choices).collect().await.expect("answers");
        let texts: Vec<_> = answers.iter().map(|answer| answer.text.as_str()).collect();
        assert_eq!(texts, ["ab", "c"]);
        assert_eq!(usage, Usage::new(5, 3, 3));
    }

    #[tokio::test]
    async fn a_failure_or_a_lost_engine_is_an_error_and_not_a_short_answer() {
        let failed = running(vec![vec![token("a"), Event::Failed(crate::engine::Error::EmptyPrompt)]]).collect().await;
        assert!(matches!(failed, Err(problem) if problem.status == StatusCode::BAD_REQUEST));
        let lost = running(vec![vec![token("a")]]).collect().await;
        assert!(matches!(lost, Err(problem) if problem.status == StatusCode::SERVICE_UNAVAILABLE));
    }

    #[tokio::test]
    async fn what_was_drawn_and_never_read_is_counted() {
        let finished_and_ongoing = vec![vec![token("a"), finished("", 2)], vec![token("b"), token("c"), token("d")]];
        let mut running = running(finished_and_ongoing);
        assert!(running.next().await.is_some());
        running.drain();
        assert_eq!(running.usage().completion_tokens, 2 + 3);
    }

    #[tokio::test]
    async fn dropping_the_answers_closes_every_channel() {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let mut running = Running::new("m".into(), 1, 1, 1);
        running.watch(0, receiver);
        drop(running);
        assert!(sender.is_closed());
    }
}
