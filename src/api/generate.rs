//! What completions and chat share: running many sequences at once, and gathering their events into answers.
//!
//! [`fields`] holds the fields of a request that both have, [`body`] what both write of the answers.

pub mod body;
pub mod fields;

use std::collections::VecDeque;

use futures::FutureExt as _;
use futures::stream::{self, BoxStream, SelectAll, StreamExt as _};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::UnboundedReceiverStream;

use self::body::Usage;
use crate::api::meter::Charge;
use crate::api::target::{Target, count_tokens};
use crate::engine::{Event, FinishReason, GenerateRequest, Sampling};
use crate::{Error, Result};

/// What every sequence of a request has in common.
pub struct Plan {
    /// The model.
    pub target: Target,
    /// Token ids of each prompt.
    pub prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    pub n: usize,
    /// New tokens at the most.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Texts that end an answer.
    pub stop: Vec<String>,
}

/// The finished answer to one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
}

/// A piece of one answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// More text, never empty.
    Text(String),
    /// The end.
    End(FinishReason),
}

/// One event of one sequence; `None` says that its channel closed.
type Tagged = (usize, Option<Event>);

/// All sequences of a request, running. Dropping it cancels them.
pub struct Running {
    /// Id of the base model, for the metrics.
    model: String,
    events: SelectAll<BoxStream<'static, Tagged>>,
    pieces: VecDeque<(usize, Piece)>,
    ended: Vec<bool>,
    prompt_tokens: usize,
    /// Tokens of each answer so far.
    drawn_tokens: Vec<usize>,
    /// Settled when this drops; none until every sequence is queued.
    charge: Option<Charge>,
}

impl Plan {
    /// Queues every sequence; choice `prompt · n + j` is answer `j` to its prompt.
    pub fn start(self) -> Result<Running> {
        let Target { base, adapter, account } = &self.target;
        let limit = self.target.context();
        if let Some(prompt) = self.prompts.iter().map(Vec::len).find(|prompt| prompt + self.max_tokens > limit) {
            return Err(Error::ContextLength { limit, prompt, completion: self.max_tokens });
        }
        let prompt_tokens = self.prompts.iter().map(Vec::len).sum();
        let mut charge = account.charge(prompt_tokens)?;
        let mut running = Running::new(base.model.id.clone(), self.prompts.len() * self.n, prompt_tokens);
        for (place, prompt) in self.prompts.into_iter().enumerate() {
            for j in 0..self.n {
                let index = place * self.n + j;
                if self.max_tokens == 0 {
                    running.end(index, FinishReason::Length);
                    continue;
                }
                let mut sampling = self.sampling.clone();
                // Answers to one prompt differ, and the same seed gives the same set of them.
                sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(j as u64));
                let receiver = base.backend.generate(GenerateRequest {
                    prompt: prompt.clone(),
                    adapter: adapter.clone(),
                    sampling,
                    max_tokens: self.max_tokens,
                    stop: self.stop.clone(),
                    stop_tokens: base.model.end_tokens.clone(),
                })?;
                running.watch(index, receiver);
            }
        }
        charge.owe();
        running.charge = Some(charge);
        Ok(running)
    }
}

impl Running {
    fn new(model: String, choices: usize, prompt_tokens: usize) -> Self {
        Self {
            model,
            events: SelectAll::new(),
            pieces: VecDeque::new(),
            ended: vec![false; choices],
            prompt_tokens,
            drawn_tokens: vec![0; choices],
            charge: None,
        }
    }

    /// How many answers there will be.
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

    /// The next piece of any answer; `None` when all have ended. Nothing of use follows a failure.
    pub async fn next(&mut self) -> Option<Result<(usize, Piece)>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(Ok(piece));
            }
            match self.events.next().await? {
                (index, Some(Event::Token { text, .. })) => {
                    self.drawn_tokens[index] += 1;
                    self.push_text(index, text);
                }
                (index, Some(Event::Finished { text, reason, completion_tokens })) => {
                    self.drawn_tokens[index] = completion_tokens;
                    self.push_text(index, text);
                    self.end(index, reason);
                }
                (_, Some(Event::Failed(error))) => return Some(Err(error)),
                (index, None) if !self.ended[index] => {
                    return Some(Err(Error::Unavailable("The engine stopped before the answer was complete.".into())));
                }
                (_, None) => {}
            }
        }
    }

    fn push_text(&mut self, index: usize, text: String) {
        if !text.is_empty() {
            self.pieces.push_back((index, Piece::Text(text)));
        }
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        let completion_tokens = self.drawn_tokens.iter().sum();
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            total_tokens: self.prompt_tokens + completion_tokens,
        }
    }

    /// Counts what was drawn and never read: the engine is ahead of a client that hung up.
    fn drain(&mut self) {
        while let Some(Some((index, event))) = tokio::task::unconstrained(self.events.next()).now_or_never() {
            match event {
                Some(Event::Token { .. }) => self.drawn_tokens[index] += 1,
                Some(Event::Finished { completion_tokens, .. }) => self.drawn_tokens[index] = completion_tokens,
                _ => {}
            }
        }
    }

    /// Waits for all answers, in the order of their index.
    pub async fn collect(mut self) -> Result<(Vec<Answer>, Usage)> {
        let empty = Answer { text: String::new(), reason: FinishReason::Length };
        let mut answers = vec![empty; self.ended.len()];
        while let Some(piece) = self.next().await {
            match piece? {
                (index, Piece::Text(text)) => answers[index].text.push_str(&text),
                (index, Piece::End(reason)) => answers[index].reason = reason,
            }
        }
        Ok((answers, self.usage()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain();
        let Usage { completion_tokens, .. } = self.usage();
        count_tokens(&self.model, "prompt", self.prompt_tokens);
        count_tokens(&self.model, "completion", completion_tokens);
        if let Some(charge) = &mut self.charge {
            charge.used(0, completion_tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Event {
        Event::Token { id: 1, text: text.into() }
    }

    fn finished(text: &str, completion_tokens: usize) -> Event {
        Event::Finished { text: text.into(), reason: FinishReason::Stop, completion_tokens }
    }

    /// Choices whose channels already hold all their events.
    fn running(choices: Vec<Vec<Event>>) -> Running {
        let mut running = Running::new("m".into(), choices.len(), 5);
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
        assert_eq!(usage, Usage { prompt_tokens: 5, completion_tokens: 3, total_tokens: 8 });
    }

    #[tokio::test]
    async fn a_failure_or_a_lost_engine_is_an_error_and_not_a_short_answer() {
        let failed = running(vec![vec![token("a"), Event::Failed(Error::Cancelled)]]).collect().await;
        assert!(matches!(failed, Err(Error::Cancelled)));
        let lost = running(vec![vec![token("a")]]).collect().await;
        assert!(matches!(lost, Err(Error::Unavailable(_))));
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
        let mut running = Running::new("m".into(), 1, 1);
        running.watch(0, receiver);
        drop(running);
        assert!(sender.is_closed());
    }
}
