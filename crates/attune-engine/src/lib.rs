//! Turns token ids into tokens and vectors. The API hands in requests, already tokenized, with the adapter lease that
//! they run under; the engine batches rows of many requests and adapters into one step and sends events back.

mod admission;
pub mod catalog;
pub mod child;
pub mod encoder;
pub mod error;
pub mod grammar;
mod idle;
mod inbox;
pub mod kv;
pub mod limits;
pub mod logprobs;
mod metrics;
pub mod native;
mod pool;
mod prefix_cache;
pub mod priority;
mod queue;
mod request;
mod rows;
mod runner;
pub mod sampler;
mod scheduler;
mod sequence;
pub mod static_engine;
pub mod step_model;
pub mod stops;
pub mod text;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use self::child::standing::Standing;
pub use self::error::{Error, Result};
use self::grammar::Grammar;
pub use self::limits::EngineLimits;
use self::logprobs::TokenLogprobs;
use self::stops::StopTexts;
use attune_model::lora::AdapterLease;

/// Serves one base model. The native engine implements it in this process, and [`child`] over another library in a process
/// of its own (`docs/adr/0009-second-engine.md`).
pub trait Backend: Send + Sync {
    /// Queues a request; its events arrive on the channel. Dropping the receiver cancels it within one step.
    ///
    /// Fails with [`Error::Overloaded`] when the queue is full and with [`Error::ContextLength`] when it cannot fit.
    fn generate(&self, request: GenerateRequest) -> Result<UnboundedReceiver<Event>>;

    /// Queues all sequences of one client's request, or none. The request has begun when the first one runs; the others
    /// may then wait for as long as the request may take.
    fn generate_all(&self, requests: Vec<GenerateRequest>) -> Result<Vec<UnboundedReceiver<Event>>> {
        requests.into_iter().map(|request| self.generate(request)).collect()
    }

    /// Makes of each input one vector, as [`attune_model::BaseModel::vectors`] says, or the numbers of the labels of
    /// [`attune_model::BaseModel::classifier`]. Fails with [`Error::NoClassifier`] if the model has none, and with
    /// [`Error::NoVectors`] if vectors are wanted of an encoder that has one.
    fn embed(&self, request: EmbedRequest) -> Vectors<'_>;

    /// Returns how the process stands that runs the model; `None` if it is this one.
    fn standing(&self) -> Option<Standing> {
        None
    }

    /// Ends all requests with [`Error::Unavailable`] after the step that runs, and refuses new ones.
    fn stop(&self);
}

/// Vectors of an [`EmbedRequest`], in the order of its inputs. Dropping the future cancels the rest within one step.
pub type Vectors<'a> = Pin<Box<dyn Future<Output = Result<Vec<Vec<f32>>>> + Send + 'a>>;

/// One sequence to continue.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// Organisation of the client: requests share the engine by organisation, and never find another one's tokens in
    /// the cache.
    pub organization: Arc<str>,
    /// The prompt's token ids; at least one.
    pub prompt: Arc<[u32]>,
    /// The adapter's generation, leased before queueing; `None` runs the base.
    pub adapter: Option<AdapterLease>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Most new tokens.
    pub max_tokens: usize,
    /// Texts that end the answer; they are not part of it.
    pub stop: StopTexts,
    /// Token ids that end the answer (the model's end-of-sequence tokens).
    pub stop_tokens: Vec<u32>,
    /// Send each drawn token's log probability and those of this many most probable tokens; `None` sends no log
    /// probabilities, 0 the drawn token's alone.
    pub logprobs: Option<usize>,
    /// Send the same for every token of the prompt after the first.
    pub prompt_logprobs: Option<usize>,
    /// The grammar that the answer must follow; the answer ends with [`FinishReason::Stop`] once the grammar is
    /// complete.
    pub grammar: Option<Grammar>,
    /// Nobody waits for the answer: other requests go first, and what it holds is theirs when they need it.
    pub background: bool,
}

/// How the next token is drawn from the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token; logits are divided by it otherwise.
    pub temperature: f32,
    /// Keep the most probable tokens whose probabilities sum to this.
    pub top_p: f32,
    /// Keep this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this probable, relative to the most probable one.
    pub min_p: f32,
    /// The same seed gives the same text, whatever else is in the batch; `None` draws a random seed.
    pub seed: Option<u64>,
    /// Subtracted once from the logit of every token already generated.
    pub presence_penalty: f32,
    /// Subtracted from a generated token's logit for each time it occurred.
    pub frequency_penalty: f32,
    /// Divides the positive logits of the tokens of prompt and answer, and multiplies the negative ones; 1 changes
    /// nothing.
    pub repetition_penalty: f32,
    /// Added to logits, by token id.
    pub logit_bias: Arc<[(u32, f32)]>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Arc::default(),
        }
    }
}

/// An event on a request's channel. In order: `Prompt` if it was asked for, any number of `Token`, then one `Finished`
/// or `Failed`.
#[derive(Debug)]
pub enum Event {
    /// The prompt was computed; sent only if [`GenerateRequest::prompt_logprobs`] is set.
    Prompt {
        /// Log probabilities of each token after the first.
        tokens: Vec<TokenLogprobs>,
    },
    /// A token was drawn. `text` is the text that may be shown now: whole characters, and nothing that could still
    /// become part of a stop text; it may be empty. A token that ends the answer has no text and is sent only if log
    /// probabilities were requested.
    Token {
        /// Token id.
        id: u32,
        /// Text that became safe to show.
        text: String,
        /// Log probabilities of the token, if the request asked for them.
        logprobs: Option<TokenLogprobs>,
    },
    /// The answer is complete.
    Finished {
        /// Text held back until now.
        text: String,
        /// Reason for the end.
        reason: FinishReason,
        /// Tokens drawn, including an end token.
        completion_tokens: usize,
        /// Tokens of the prompt that the cache held from an earlier request, so that they were not computed.
        cached_tokens: usize,
    },
    /// The request failed; nothing follows.
    Failed(Error),
}

/// Reason for the end of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop text or an end-of-sequence token.
    Stop,
    /// The requested number of tokens, or the end of the context.
    Length,
}

/// Inputs, each of which becomes one row of numbers.
#[derive(Debug, Clone)]
pub struct EmbedRequest {
    /// Organisation of the client: requests share the engine by organisation.
    pub organization: Arc<str>,
    /// The inputs.
    pub inputs: Vec<EmbedInput>,
    /// The adapter's generation; `None` runs the base.
    pub adapter: Option<AdapterLease>,
    /// What is made of each input.
    pub output: EmbedOutput,
    /// Nobody waits for the result: other requests go first.
    pub background: bool,
}

impl EmbedRequest {
    /// Makes a request for the vectors of texts, given as token ids.
    pub fn of_texts(organization: Arc<str>, texts: Vec<Vec<u32>>, adapter: Option<AdapterLease>) -> Self {
        let inputs = texts.into_iter().map(EmbedInput::from).collect();
        Self { organization, inputs, adapter, output: EmbedOutput::Vector, background: false }
    }
}

/// One text, or a pair of texts, to be read as a whole.
#[derive(Debug, Clone, Default)]
pub struct EmbedInput {
    /// Token ids, the ones around the text included; at least one.
    pub tokens: Vec<u32>,
    /// Index of the second text's first token; `None` if there is one text.
    pub second: Option<usize>,
    /// Number of tokens at the begin, those of a prompt, that are read but not pooled.
    pub unpooled: usize,
}

impl From<Vec<u32>> for EmbedInput {
    /// Makes the input of one text.
    fn from(tokens: Vec<u32>) -> Self {
        Self { tokens, ..Self::default() }
    }
}

/// What is made of an input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EmbedOutput {
    /// Its vector.
    #[default]
    Vector,
    /// Its vector as it is before the model scales it to length 1; the same as `Vector` if the model does not.
    Unscaled,
    /// The number of each label.
    Labels,
}
