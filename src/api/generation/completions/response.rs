//! The bodies of answers of `completions::create`: one for all choices, or chunks of them.

use serde::Serialize;
use utoipa::ToSchema;

use crate::api::generation::generate::Answer;
use crate::api::generation::generate::body::{Chunks, SYSTEM_FINGERPRINT, Usage, UsageKey, new_id, now, reason_name};
use crate::api::generation::generate::logprobs::{CompletionLogprobs, TokenTexts};
use crate::engine::FinishReason;
use crate::engine::logprobs::TokenLogprobs;

/// Completions, or one event of a stream of them.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Completion {
    /// `cmpl-…`
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// The model as asked for.
    pub model: String,
    /// Changes when the same seed may give another text.
    pub system_fingerprint: &'static str,
    /// One entry for each prompt and each of its choices.
    pub choices: Vec<CompletionChoice>,
    /// Tokens used; in a stream only where asked for.
    #[serde(skip_serializing_if = "UsageKey::is_absent")]
    #[schema(value_type = Option<Usage>)]
    pub usage: UsageKey,
}

/// One choice, or the next piece of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct CompletionChoice {
    /// The text.
    pub text: String,
    /// Prompt number times `n`, plus the number of the choice.
    pub index: usize,
    /// Of the tokens in `text`, where asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null while the choice goes on.
    pub finish_reason: Option<&'static str>,
}

/// The prompts as the choices show them.
#[derive(Debug, Default)]
pub(super) struct Prompts {
    /// Prompts in the order of the request; empty if neither prompts nor log probabilities are wanted.
    pub shown: Vec<ShownPrompt>,
    /// Choices for each prompt.
    pub n: usize,
    /// True if each choice begins with its prompt.
    pub echo: bool,
}

/// A prompt as its choices show it.
#[derive(Debug, Default)]
pub(super) struct ShownPrompt {
    /// The text as the client wrote it, or decoded from token ids.
    pub text: String,
    /// Id of its first token.
    pub first_token: u32,
    /// Characters of `text` before each token; empty if the prompt's log probabilities are not wanted.
    pub offsets: Vec<usize>,
}

/// Writes completions of one request.
pub(super) struct Writer {
    id: String,
    created: i64,
    model: String,
    stream_usage: bool,
    prompts: Prompts,
    /// Shows tokens; `None` if no log probabilities are wanted.
    tokens: Option<TokenTexts>,
    /// Characters of each choice's prompt and text so far, counted by tokens.
    characters: Vec<usize>,
}

impl Writer {
    /// Creates a writer at the beginning of every choice.
    pub(super) fn new(model: String, prompts: Prompts, tokens: Option<TokenTexts>, stream_usage: bool) -> Self {
        let lengths = prompts.shown.iter().map(|prompt| prompt.text.chars().count());
        let characters = lengths.flat_map(|length| std::iter::repeat_n(length, prompts.n)).collect();
        Self { id: new_id("cmpl"), created: now(), model, stream_usage, prompts, tokens, characters }
    }

    /// Writes all choices into one body.
    pub(super) fn whole(mut self, answers: Vec<Answer>, usage: Usage) -> Completion {
        let choices = answers.into_iter().enumerate().map(|(index, answer)| self.choice(index, &answer)).collect();
        self.completion(choices, UsageKey::Now(usage))
    }

    fn choice(&mut self, index: usize, answer: &Answer) -> CompletionChoice {
        let text = self.echo_of(index).unwrap_or_default().to_owned() + &answer.text;
        let mut logprobs = self.no_logprobs();
        self.push_prompt(&mut logprobs, index, &answer.prompt);
        for token in &answer.tokens {
            self.push_drawn(&mut logprobs, index, token);
        }
        CompletionChoice { text, index, logprobs, finish_reason: Some(reason_name(answer.reason)) }
    }

    fn echo_of(&self, index: usize) -> Option<&str> {
        let prompt = self.prompts.shown.get(index / self.prompts.n)?;
        self.prompts.echo.then_some(prompt.text.as_str())
    }

    /// Returns empty arrays of log probabilities; `None` if they are not wanted.
    fn no_logprobs(&self) -> Option<CompletionLogprobs> {
        self.tokens.as_ref().map(|_| CompletionLogprobs::default())
    }

    /// Appends the prompt of choice `index`, if it is wanted; `scored` are its tokens after the first.
    fn push_prompt(&self, logprobs: &mut Option<CompletionLogprobs>, index: usize, scored: &[TokenLogprobs]) {
        let (Some(logprobs), Some(tokens)) = (logprobs, &self.tokens) else { return };
        let Some(prompt) = self.prompts.shown.get(index / self.prompts.n).filter(|_| self.prompts.echo) else { return };
        let offset = |place: usize| prompt.offsets.get(place).copied().unwrap_or(prompt.text.chars().count());
        tokens.push_first(logprobs, prompt.first_token, offset(0));
        for (place, token) in scored.iter().enumerate() {
            tokens.push(logprobs, token, offset(place + 1));
        }
    }

    fn push_drawn(&mut self, logprobs: &mut Option<CompletionLogprobs>, index: usize, token: &TokenLogprobs) {
        let (Some(logprobs), Some(tokens)) = (logprobs, &self.tokens) else { return };
        if let Some(characters) = self.characters.get_mut(index) {
            let (offset, after) = tokens.place(token.id, *characters, false);
            tokens.push(logprobs, token, offset);
            *characters = after;
        }
    }

    fn completion(&self, choices: Vec<CompletionChoice>, usage: UsageKey) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage,
        }
    }

    fn chunk(
        &self,
        index: usize,
        text: String,
        logprobs: Option<CompletionLogprobs>,
        finish_reason: Option<&'static str>,
    ) -> Completion {
        let choice = CompletionChoice { text, index, logprobs, finish_reason };
        self.completion(vec![choice], UsageKey::before_the_last(self.stream_usage))
    }
}

impl Chunks for Writer {
    type Chunk = Completion;

    fn begin(&self, index: usize) -> Option<Completion> {
        // With log probabilities the echo waits for them.
        let echo = self.echo_of(index).filter(|text| !text.is_empty() && self.tokens.is_none())?;
        Some(self.chunk(index, echo.to_owned(), None, None))
    }

    fn prompt(&mut self, index: usize, tokens: &[TokenLogprobs]) -> Option<Completion> {
        let mut logprobs = self.no_logprobs();
        self.push_prompt(&mut logprobs, index, tokens);
        let echo = self.echo_of(index)?.to_owned();
        Some(self.chunk(index, echo, logprobs, None))
    }

    fn text(&mut self, index: usize, text: String, token: Option<&TokenLogprobs>) -> Vec<Completion> {
        let mut logprobs = self.no_logprobs();
        if let Some(token) = token {
            self.push_drawn(&mut logprobs, index, token);
        }
        vec![self.chunk(index, text, logprobs, None)]
    }

    fn end(&mut self, index: usize, reason: FinishReason) -> Vec<Completion> {
        vec![self.chunk(index, String::new(), self.no_logprobs(), Some(reason_name(reason)))]
    }

    fn usage(&self, usage: Usage) -> Option<Completion> {
        self.stream_usage.then(|| self.completion(Vec::new(), UsageKey::Now(usage)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(stream_usage: bool, echo: &[&str]) -> Writer {
        let shown = echo.iter().map(|text| ShownPrompt { text: (*text).to_owned(), ..ShownPrompt::default() });
        Writer::new("m".into(), Prompts { shown: shown.collect(), n: 2, echo: true }, None, stream_usage)
    }

    #[test]
    fn chunks_carry_a_usage_key_only_where_asked_for() {
        let usage = Usage::new(1, 0, 2);
        let mut plain = writer(false, &[]);
        let chunk = serde_json::to_value(&plain.end(0, FinishReason::Stop)[0]).expect("JSON");
        assert!(chunk.get("usage").is_none() && chunk["choices"][0]["logprobs"].is_null(), "{chunk}");
        assert!(plain.usage(usage).is_none(), "never an event without choices");

        let mut asked = writer(true, &[]);
        let chunk = serde_json::to_value(&asked.text(1, "a".into(), None)[0]).expect("JSON");
        assert!(chunk["usage"].is_null() && chunk.get("usage").is_some() && chunk.get("error").is_none(), "{chunk}");
        let last = serde_json::to_value(asked.usage(usage)).expect("JSON");
        assert_eq!((last["choices"].as_array().map(Vec::len), &last["usage"]["total_tokens"]), (Some(0), &3.into()));
    }

    #[test]
    fn an_echo_comes_first_and_belongs_to_its_prompt() {
        let writer = writer(false, &["one", "two"]);
        let first: Vec<_> = (0..4).filter_map(|index| writer.begin(index)).map(|c| c.choices[0].text.clone()).collect();
        assert_eq!(first, ["one", "one", "two", "two"]);
    }
}
