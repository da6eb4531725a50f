//! Parts that the bodies of completions and chat share: ids, usage, and the chunks of a streamed answer, which each of
//! the two writes in its own form.

use std::collections::VecDeque;

use futures::stream::{self, Stream};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Piece, Running};
use crate::api::http::error::{Problem, Result};
use crate::api::http::sse::json;
use crate::engine::FinishReason;
use crate::engine::logprobs::TokenLogprobs;

/// The field `system_fingerprint`: changes when the same seed may give another text.
pub(crate) const SYSTEM_FINGERPRINT: &str = concat!("fp_attune_", env!("CARGO_PKG_VERSION"));

/// The field `service_tier` of chats: there is one way of being served, whatever a request asks for.
pub(crate) const SERVICE_TIER: &str = "default";

/// Tokens of a request, prompts counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Tokens drawn.
    pub completion_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
    /// Where the prompts' tokens came from.
    pub prompt_tokens_details: PromptTokensDetails,
    /// What the tokens drawn were for.
    pub completion_tokens_details: CompletionTokensDetails,
}

/// A part of [`Usage`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Tokens that needed no computing.
    pub cached_tokens: usize,
    /// Always 0: prompts are texts.
    pub audio_tokens: usize,
}

/// A part of [`Usage`].
#[expect(clippy::struct_field_names, reason = "OpenAI's names")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct CompletionTokensDetails {
    /// Always 0: what a model writes while it thinks is part of its answer here.
    pub reasoning_tokens: usize,
    /// Always 0: answers are texts.
    pub audio_tokens: usize,
    /// Always 0: a request's `prediction` is not used.
    pub accepted_prediction_tokens: usize,
    /// Always 0, too.
    pub rejected_prediction_tokens: usize,
}

impl Usage {
    /// Sums up the tokens of a request; `cached_tokens` of its prompts needed no computing.
    pub(crate) fn new(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens, audio_tokens: 0 },
            completion_tokens_details: CompletionTokensDetails::default(),
        }
    }

    /// Returns the sum of both.
    pub(crate) fn and(self, other: Self) -> Self {
        let cached = self.prompt_tokens_details.cached_tokens + other.prompt_tokens_details.cached_tokens;
        let completion_tokens = self.completion_tokens + other.completion_tokens;
        Self::new(self.prompt_tokens + other.prompt_tokens, cached, completion_tokens)
    }
}

/// The field `usage` of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum UsageKey {
    /// Left out: the stream has no usage.
    Absent,
    /// Null: the stream has usage, in its last event.
    Later,
    /// The numbers.
    Now(Usage),
}

impl UsageKey {
    /// Returns true if the field is left out.
    pub(crate) fn is_absent(&self) -> bool {
        *self == Self::Absent
    }

    /// Returns the field of an event before the last; `wanted` if the stream has usage.
    pub(crate) fn before_the_last(wanted: bool) -> Self {
        if wanted { Self::Later } else { Self::Absent }
    }
}

/// Returns the reason as clients read it.
pub(crate) const fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// Returns the time in Unix seconds.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Returns the time in Unix microseconds, which tells the order of what begins in one second.
pub(crate) fn now_micros() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// Returns the whole seconds of a time in microseconds, as clients are shown it.
pub(crate) const fn seconds_of(micros: i64) -> i64 {
    micros.div_euclid(1_000_000)
}

/// Makes a new id such as `cmpl-…`.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

/// Writes the chunks of a streamed answer in the form of one resource.
pub(crate) trait Chunks: Send + 'static {
    /// A chunk.
    type Chunk: Serialize + Send;

    /// Returns the chunk that comes before any text of choice `index`, if there is one.
    fn begin(&self, index: usize) -> Option<Self::Chunk>;
    /// Writes the log probabilities of the prompt of choice `index`, from its second token on; called if the request
    /// asked for them.
    fn prompt(&mut self, _index: usize, _tokens: &[TokenLogprobs]) -> Option<Self::Chunk> {
        None
    }
    /// Writes more text of choice `index`, which may be held back or come to several chunks; `token` brought it, `None`
    /// if no log probabilities are wanted.
    fn text(&mut self, index: usize, text: String, token: Option<&TokenLogprobs>) -> Vec<Self::Chunk>;
    /// Writes the end of choice `index`.
    fn end(&mut self, index: usize, reason: FinishReason) -> Vec<Self::Chunk>;
    /// Writes the last chunk, with the usage; `None` if the client did not ask for it.
    fn usage(&self, usage: Usage) -> Option<Self::Chunk>;
}

/// Streams the answers as JSON documents, with choices interleaved as their tokens arrive.
pub(crate) fn stream_chunks<C: Chunks>(
    running: Running,
    chunks: C,
) -> impl Stream<Item = Result<String, Problem>> + Send {
    let begin: VecDeque<_> = (0..running.choices()).filter_map(|index| chunks.begin(index)).collect();
    stream::unfold(Some((running, chunks, begin)), |state| async move {
        let (mut running, mut chunks, mut pending) = state?;
        loop {
            if let Some(chunk) = pending.pop_front() {
                return Some((json(&chunk), Some((running, chunks, pending))));
            }
            match running.next().await {
                Some(Ok((index, Piece::Prompt(tokens)))) => pending.extend(chunks.prompt(index, &tokens)),
                Some(Ok((index, Piece::Text { text, token }))) => {
                    pending.extend(chunks.text(index, text, token.as_ref()));
                }
                Some(Ok((index, Piece::End(reason)))) => pending.extend(chunks.end(index, reason)),
                Some(Err(error)) => return Some((Err(error), None)),
                None => return chunks.usage(running.usage()).map(|chunk| (json(&chunk), None)),
            }
        }
    })
}
