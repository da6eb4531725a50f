//! State of one request on the engine thread: an answer that grows token by token, or an input's hidden states on the
//! way to a vector. Made and driven by `runner.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::grammar::Grammar;
use super::logprobs::TokenLogprobs;
use super::sampler::Sampler;
use super::sequence::{Lane, Owner};
use super::text::TextStream;
use super::{EmbedOutput, Event, FinishReason, GenerateRequest};
use crate::{Error, Result};
use attune_model::kernels::Draw;
use attune_model::tokenizer::Tokenizer;
use attune_model::vectors::{Pooler, VectorForm};

/// Result that a sequence is computed for.
#[derive(Debug)]
pub(super) enum Work {
    /// Tokens for a client.
    Answer(Box<Answer>),
    /// A vector for a client.
    Embedding(Embedding),
}

/// An answer in progress.
#[derive(Debug)]
pub(super) struct Answer {
    events: UnboundedSender<Event>,
    sampler: Sampler,
    text: TextStream,
    stop_tokens: Vec<u32>,
    /// Grammar, which knows the special tokens that are part of the text.
    grammar: Option<Grammar>,
    max_tokens: usize,
    drawn: usize,
    submitted: Instant,
    /// Time of the last drawn token.
    last_token: Option<Instant>,
    /// Tokens of the prompt that were found in the cache.
    cached_tokens: usize,
    /// Copy of [`GenerateRequest::logprobs`].
    logprobs: Option<usize>,
    /// Log probabilities of the prompt while it is being computed; `None` if not requested.
    prompt: Option<PromptLogprobs>,
}

/// A prompt's log probabilities, gathered piece by piece as the prompt is computed.
#[derive(Debug)]
struct PromptLogprobs {
    prompt: Arc<[u32]>,
    /// Copy of [`GenerateRequest::prompt_logprobs`].
    count: usize,
    /// Log probabilities so far, from the prompt's second token on.
    tokens: Vec<TokenLogprobs>,
}

/// An embedding in progress.
#[derive(Debug)]
pub(super) struct Embedding {
    pooler: Pooler,
    output: EmbedOutput,
    reply: Option<oneshot::Sender<Result<Vec<f32>>>>,
}

/// Result of a step for the next token.
#[derive(Debug, Clone)]
pub(super) enum Next<'a> {
    /// Logits to draw it from.
    Logits(&'a [f32]),
    /// Token that the model drew as [`Answer::plain_draw`] asked.
    Token(u32),
    /// Token that an engine in another process drew.
    Given { token: u32, logprobs: Option<TokenLogprobs> },
}

/// Outcome of a step for one sequence.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Drawn {
    /// Nothing to show yet.
    Continues,
    /// This token was drawn; another follows.
    Token(u32),
    /// The client has received everything.
    Ended,
}

/// Time that a client waited for a token.
#[derive(Debug, Clone, Copy)]
pub(super) enum TokenTime {
    /// Time to the first token, since the request arrived.
    First(Duration),
    /// Time to a later token, since the one before.
    Next(Duration),
}

impl Owner for Work {
    fn lane(&self) -> Lane {
        match self {
            Self::Answer(_) => Lane::Answer,
            Self::Embedding(_) => Lane::Embed,
        }
    }

    fn is_gone(&self) -> bool {
        match self {
            Self::Answer(answer) => answer.events.is_closed(),
            Self::Embedding(embedding) => embedding.reply.as_ref().is_none_or(oneshot::Sender::is_closed),
        }
    }

    fn needs_all_rows(&self) -> bool {
        match self {
            Self::Answer(answer) => answer.reads_prompt(),
            Self::Embedding(_) => true,
        }
    }

    fn reused(&mut self, tokens: usize) {
        if let Self::Answer(answer) = self {
            answer.cached_tokens += tokens;
        }
    }

    fn restarted(&mut self) {
        match self {
            Self::Answer(answer) => {
                if let Some(prompt) = &mut answer.prompt {
                    prompt.tokens.clear();
                }
            }
            Self::Embedding(embedding) => embedding.restart(),
        }
    }
}

impl Work {
    /// Sends the client an error; nothing follows.
    pub(super) fn fail(&mut self, error: Error) {
        match self {
            Self::Answer(answer) => drop(answer.send_failed(error)),
            Self::Embedding(embedding) => embedding.send(Err(error)),
        }
    }
}

impl Answer {
    /// Begins the answer to `request`, before its first token.
    pub(super) fn new(
        tokenizer: &Tokenizer,
        request: GenerateRequest,
        events: UnboundedSender<Event>,
        submitted: Instant,
    ) -> Result<Self> {
        let text = TextStream::new(tokenizer, &request.prompt, &request.stop)?;
        let grammar = request.grammar;
        let sampler = Sampler::new(request.sampling).with_prompt(&request.prompt);
        let sampler = sampler.with_grammar(grammar.as_ref().map(Grammar::begin));
        sampler.prepare();
        let prompt = request.prompt;
        Ok(Self {
            events,
            sampler,
            text,
            stop_tokens: request.stop_tokens,
            grammar,
            max_tokens: request.max_tokens,
            drawn: 0,
            submitted,
            last_token: None,
            cached_tokens: 0,
            logprobs: request.logprobs,
            prompt: request.prompt_logprobs.map(|count| PromptLogprobs { prompt, count, tokens: Vec::new() }),
        })
    }

    /// Returns `true` while the logits of all rows of the prompt are read, not only of the last one.
    pub(super) fn reads_prompt(&self) -> bool {
        self.prompt.is_some()
    }

    /// Takes the logits of the prompt's next rows, without the last row, which [`Self::draw`] gets.
    pub(super) fn read_prompt(&mut self, rows: &[&[f32]]) -> Result<()> {
        let Some(PromptLogprobs { prompt, count, tokens }) = &mut self.prompt else { return Ok(()) };
        // Row i predicts the token at position i + 1.
        let expected = &prompt[tokens.len() + 1..];
        let piece: Result<Vec<_>> =
            rows.par_iter().zip(expected).map(|(logits, id)| TokenLogprobs::of(logits, *id, *count)).collect();
        tokens.extend(piece?);
        Ok(())
    }

    /// Takes log probabilities of the prompt's next tokens, which an engine in another process computed.
    pub(super) fn read_prompt_elsewhere(&mut self, tokens: impl Iterator<Item = TokenLogprobs>) {
        if let Some(prompt) = &mut self.prompt {
            prompt.tokens.extend(tokens);
        }
    }

    /// Sends the prompt's log probabilities if they were asked for, once. Returns false if the client has gone.
    fn send_prompt(&mut self) -> bool {
        self.prompt.take().is_none_or(|prompt| self.events.send(Event::Prompt { tokens: prompt.tokens }).is_ok())
    }

    /// Returns the next draw if the model can do it: it needs only the logits, and the client asked for no log
    /// probabilities.
    pub(super) fn plain_draw(&self) -> Option<Draw> {
        let reads_logits = self.logprobs.is_some() || self.reads_prompt() || self.max_tokens == 0;
        if reads_logits { None } else { self.sampler.plain_draw() }
    }

    /// Takes the next token and sends the text that may be shown.
    pub(super) fn draw(&mut self, tokenizer: &Tokenizer, next: Next<'_>) -> Result<Drawn> {
        if !self.send_prompt() {
            return Ok(Drawn::Ended);
        }
        if self.max_tokens == 0 {
            return self.end(tokenizer, FinishReason::Length);
        }
        let (id, logprobs) = match next {
            Next::Logits(logits) => {
                let id = self.sampler.draw(logits)?;
                (id, self.logprobs.map(|count| TokenLogprobs::of(logits, id, count)).transpose()?)
            }
            Next::Token(token) => (self.sampler.drew(token)?, None),
            Next::Given { token, logprobs } => (self.sampler.given(token)?, logprobs),
        };
        self.drawn += 1;
        if self.stop_tokens.contains(&id) {
            if logprobs.is_some() {
                let _ = self.events.send(Event::Token { id, text: String::new(), logprobs });
            }
            return self.end(tokenizer, FinishReason::Stop);
        }
        let piece = if self.grammar.as_ref().is_some_and(|grammar| grammar.shows(id)) {
            self.text.push_special(tokenizer, id)?
        } else {
            self.text.push(tokenizer, id)?
        };
        if self.events.send(Event::Token { id, text: piece.text, logprobs }).is_err() {
            return Ok(Drawn::Ended);
        }
        if piece.stopped {
            return Ok(self.send_finished(String::new(), FinishReason::Stop));
        }
        if self.sampler.is_complete() {
            return self.end(tokenizer, FinishReason::Stop);
        }
        if self.drawn >= self.max_tokens {
            return self.end(tokenizer, FinishReason::Length);
        }
        self.sampler.prepare();
        Ok(Drawn::Token(id))
    }

    /// Returns true if the client has gone.
    pub(super) fn is_gone(&self) -> bool {
        self.events.is_closed()
    }

    /// Returns the tokens that may come next, a bit for each; `None` without a grammar.
    pub(super) fn allowed(&mut self) -> Result<Option<Vec<u32>>> {
        self.sampler.allowed()
    }

    /// Ends an answer that an engine in another process has ended behind its last token.
    pub(super) fn ended_elsewhere(mut self, tokenizer: &Tokenizer, at_length: bool) {
        let reason = if at_length { FinishReason::Length } else { FinishReason::Stop };
        self.send_prompt();
        if let Err(error) = self.end(tokenizer, reason) {
            self.send_failed(error);
        }
    }

    /// Returns how long the client waited for the token just drawn; `None` if none was drawn yet.
    pub(super) fn token_time(&mut self, now: Instant) -> Option<TokenTime> {
        if self.drawn == 0 {
            return None;
        }
        Some(match self.last_token.replace(now) {
            None => TokenTime::First(now.saturating_duration_since(self.submitted)),
            Some(last) => TokenTime::Next(now.saturating_duration_since(last)),
        })
    }

    fn end(&mut self, tokenizer: &Tokenizer, reason: FinishReason) -> Result<Drawn> {
        let piece = self.text.finish(tokenizer)?;
        let reason = if piece.stopped { FinishReason::Stop } else { reason };
        Ok(self.send_finished(piece.text, reason))
    }

    fn send_finished(&self, text: String, reason: FinishReason) -> Drawn {
        let (completion_tokens, cached_tokens) = (self.drawn, self.cached_tokens);
        let _ = self.events.send(Event::Finished { text, reason, completion_tokens, cached_tokens });
        Drawn::Ended
    }

    /// Sends the client an error. Sending fails only if the client has gone; that is fine.
    pub(super) fn send_failed(&self, error: Error) -> Drawn {
        let _ = self.events.send(Event::Failed(error));
        Drawn::Ended
    }
}

impl Embedding {
    /// Begins an input whose first `prompt` rows are not pooled, before its first row.
    pub(super) fn new(
        pooler: Pooler,
        prompt: usize,
        output: EmbedOutput,
        reply: oneshot::Sender<Result<Vec<f32>>>,
    ) -> Self {
        Self { pooler: pooler.without_prompt(prompt), output, reply: Some(reply) }
    }

    /// Adds the hidden state of the next token.
    pub(super) fn add(&mut self, hidden: &[f32]) {
        self.pooler.add(hidden);
    }

    /// Forgets all rows, to begin the input again.
    fn restart(&mut self) {
        self.pooler.restart();
    }

    /// Sends the vector of all rows.
    pub(super) fn finish(&mut self, form: &VectorForm) {
        let vector = form.row(self.pooler.finish(), self.output == EmbedOutput::Unscaled);
        self.send(vector.map_err(Error::from));
    }

    fn send(&mut self, result: Result<Vec<f32>>) {
        if let Some(reply) = self.reply.take() {
            // Sending fails only if the client has gone; that is fine.
            let _ = reply.send(result);
        }
    }
}
