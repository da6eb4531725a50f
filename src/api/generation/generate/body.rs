//! What the bodies of completions and chat share: ids, usage, and the chunks of a streamed answer, which each of the two
//! writes in its own form.

use std::collections::VecDeque;

use futures::stream::{self, Stream};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Piece, Running};
use crate::api::http::error::{Problem, Result};
use crate::api::http::sse::json;
use crate::engine::FinishReason;
use crate::engine::logprobs::TokenLogprobs;

/// Changes when the same seed may give another text.
pub const SYSTEM_FINGERPRINT: &str = concat!("fp_attune_", env!("CARGO_PKG_VERSION"));

/// Tokens of a request, prompts counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
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
pub struct PromptTokensDetails {
    /// Tokens that needed no computing.
    pub cached_tokens: usize,
}

/// A part of [`Usage`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct CompletionTokensDetails {
    /// Always 0: what a model writes while it thinks is part of its answer here.
    pub reasoning_tokens: usize,
}

impl Usage {
    /// Tokens of a request, of whose prompts `cached` needed no computing.
    pub fn new(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens_details: CompletionTokensDetails::default(),
        }
    }
}

/// The key `usage` of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum UsageKey {
    /// A stream without usage does not have the key.
    Absent,
    /// A stream with usage has it in every event, null until the last.
    Later,
    /// The numbers.
    Now(Usage),
}

impl UsageKey {
    /// True where the key is left out.
    pub fn is_absent(&self) -> bool {
        *self == Self::Absent
    }

    /// The key in an event before the last.
    pub fn before_the_last(wanted: bool) -> Self {
        if wanted { Self::Later } else { Self::Absent }
    }
}

/// The reason as clients read it.
pub const fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// Unix seconds.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A new id such as `cmpl-…`.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

/// How one resource writes the chunks of a streamed answer.
pub trait Chunks: Send + 'static {
    /// The chunk's form.
    type Chunk: Serialize + Send;

    /// What comes before any text of choice `index`.
    fn begin(&self, index: usize) -> Option<Self::Chunk>;
    /// The log probabilities of choice `index`'s prompt, from its second token on, where the request asked for them.
    fn prompt(&mut self, _index: usize, _tokens: &[TokenLogprobs]) -> Option<Self::Chunk> {
        None
    }
    /// More text of choice `index`, which may have to be held back or come to several chunks, and the token that brought it
    /// where log probabilities are wanted.
    fn text(&mut self, index: usize, text: String, token: Option<&TokenLogprobs>) -> Vec<Self::Chunk>;
    /// The end of choice `index`.
    fn end(&mut self, index: usize, reason: FinishReason) -> Vec<Self::Chunk>;
    /// The last chunk, where the client asked for it.
    fn usage(&self, usage: Usage) -> Option<Self::Chunk>;
}

/// The answers as JSON documents, choices interleaved as their tokens arrive.
pub fn stream_chunks<C: Chunks>(running: Running, chunks: C) -> impl Stream<Item = Result<String, Problem>> + Send {
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
