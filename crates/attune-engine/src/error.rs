//! Errors of requests to an engine. `api` maps each variant to a status.

use std::sync::Arc;
use std::time::Duration;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a request or of an engine, with a message that tells its reader what to change.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] attune_model::Error),

    /// Prompt and answer together do not fit the model's context.
    #[error(
        "This model's maximum context length is {limit} tokens. However, you requested {} tokens ({prompt} in the \
         prompt, {completion} in the completion). Please shorten the prompt or ask for fewer tokens.", prompt + completion
    )]
    ContextLength {
        /// Tokens that the model can attend to.
        limit: usize,
        /// Tokens in the prompt.
        prompt: usize,
        /// Requested tokens.
        completion: usize,
    },

    /// The prompt has no tokens.
    #[error("The prompt has no tokens.")]
    EmptyPrompt,

    /// The prompt has a token id that is not in the vocabulary.
    #[error("Token id {id} is not in this model's vocabulary of {vocabulary} tokens.")]
    UnknownToken {
        /// Token id.
        id: u32,
        /// Tokens in the vocabulary.
        vocabulary: usize,
    },

    /// The answer's grammar cannot be compiled or followed; `field` is the part of the request that holds the grammar.
    #[error("{message}")]
    Grammar {
        /// Fault of the schema or the grammar.
        message: String,
        /// Part of the request that the grammar came from, as given to
        /// [`Grammar::compile`](crate::grammar::Grammar::compile).
        field: String,
    },

    /// The model has no head that classifies texts.
    #[error("The model `{0}` has no classification head, so it scores and classifies no texts.")]
    NoClassifier(String),

    /// The model was trained to make numbers for labels: its hidden states make no vectors that could be compared.
    #[error(
        "The model `{0}` has a classification head, so it scores or classifies texts and makes no vectors of them."
    )]
    NoVectors(String),

    /// The model makes vectors and no text.
    #[error("The model `{0}` makes vectors of texts and writes none: use it with /v1/embeddings.")]
    NoText(String),

    /// The model runs on the second engine, which cannot do this.
    #[error(
        "The model `{model}` runs on the second engine, which does not give {what}. Leave it out, or use a model of Attune's \
         own engine."
    )]
    NotOnThisEngine {
        /// The model's id.
        model: String,
        /// What was asked for.
        what: &'static str,
    },

    /// The model runs on the second engine, which holds the logits of a whole prompt at once to tell log probabilities.
    #[error(
        "The model `{model}` runs on the second engine, which gives log probabilities of prompts of at most {most} tokens. Send \
         a shorter prompt, or leave out 'echo' or 'logprobs'."
    )]
    PromptTooLongToScore {
        /// The model's id.
        model: String,
        /// Most tokens.
        most: usize,
    },

    /// A prompt for the second engine has a token that stands for a picture, a film or sound.
    #[error(
        "The model `{model}` reads texts alone here, and token {token} stands for a picture, a film or sound. Leave it out."
    )]
    MediaToken {
        /// The model's id.
        model: String,
        /// The token's id.
        token: u32,
    },

    /// No base model has this id.
    #[error("The model `{0}` does not exist or you do not have access to it.")]
    UnknownModel(String),

    /// Every queue is full; try again after the given time.
    #[error("The server is busy: {what}. Please try again in {} s.", retry_after.as_secs())]
    Overloaded {
        /// Limit that was met.
        what: &'static str,
        /// Time after which to try again.
        retry_after: Duration,
    },

    /// The answer took longer than the server allows; trying the same again would take as long.
    #[error(
        "The answer was not complete after {} s, the limit of this server. Please ask for fewer tokens, or stream the \
         answer and go on from what has come.", limit.as_secs()
    )]
    TimedOut {
        /// Longest time that a request may take.
        limit: Duration,
    },

    /// The engine has stopped or was started again; the request can be sent again.
    #[error("{0}")]
    Unavailable(&'static str),

    /// The engine cannot start with these limits on this model.
    #[error("{0}")]
    Setup(String),

    /// The engine's thread cannot be started.
    #[error("{context}: {source}")]
    Io {
        /// Operation that failed.
        context: &'static str,
        /// Error of the system.
        source: Arc<std::io::Error>,
    },

    /// A defect in Attune itself; the message goes to the log, not to the client.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// Returns the error of requests that an engine no longer serves.
    pub(crate) fn stopped() -> Self {
        Self::Unavailable("The server is stopping.")
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}
