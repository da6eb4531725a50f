//! Charges the tokens of a request to its caller: against the limit of the key, and into its usage. The target of a
//! request has an [`Account`]; completions, chat and embeddings charge it.

use std::sync::Arc;
use std::time::Instant;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::access::limits::Limiter;
use crate::api::http::error::Result;
use crate::store::usage::{Counts, UsageEntry};
use crate::store::usage_recorder::UsageRecorder;

/// The key and organisation that pay for a request, and the model that they pay for.
#[derive(Clone)]
pub(crate) struct Account {
    limiter: Arc<Limiter>,
    usage: UsageRecorder,
    entry: UsageEntry,
}

impl Account {
    /// Creates the caller's account for `model` on the base model `base`.
    pub(crate) fn new(state: &ApiState, caller: &Caller, model: &str, base: &str) -> Self {
        let entry = UsageEntry {
            organization: Arc::clone(&caller.organization),
            key: Arc::clone(&caller.key),
            model: model.into(),
            base: base.into(),
            batch: caller.background,
        };
        Self { limiter: Arc::clone(&caller.limiter), usage: state.usage.clone(), entry }
    }

    /// Returns the organisation that pays.
    pub(crate) fn organization(&self) -> &Arc<str> {
        &self.entry.organization
    }

    /// Returns true if nobody waits for the answer.
    pub(crate) fn is_background(&self) -> bool {
        self.entry.batch
    }

    /// Takes the tokens of the prompts, or refuses the request with 429.
    pub(crate) fn charge(&self, prompt_tokens: usize) -> Result<Charge> {
        self.limiter.take_tokens(&self.entry.organization, prompt_tokens as u64, Instant::now())?;
        Ok(Charge { account: self.clone(), prompt_tokens, cached_tokens: 0, completion_tokens: 0, owed: false })
    }
}

/// The cost of one request. Settled when it drops, so that a client who hangs up pays for what was computed; a request
/// that never ran gets its tokens back.
#[must_use = "dropping it settles it"]
pub(crate) struct Charge {
    account: Account,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
    owed: bool,
}

impl Charge {
    /// Marks the request as taken by the engine: from now on it is paid for.
    pub(crate) fn owe(&mut self) {
        self.owed = true;
    }

    /// Settles a request that the engine could not run: it is neither paid nor counted.
    pub(crate) fn waive(mut self) {
        self.owed = false;
    }

    /// Sets what the answer used: prompt tokens that came from the cache, and tokens drawn.
    pub(crate) fn used(&mut self, cached_tokens: usize, completion_tokens: usize) {
        (self.cached_tokens, self.completion_tokens) = (cached_tokens, completion_tokens);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Account { limiter, usage, entry } = &self.account;
        if !self.owed {
            return limiter.give_back_tokens(self.prompt_tokens as u64, Instant::now());
        }
        limiter.debit_tokens(self.completion_tokens as u64, Instant::now());
        let counts = Counts {
            requests: 1,
            prompt_tokens: self.prompt_tokens as i64,
            cached_tokens: self.cached_tokens as i64,
            completion_tokens: self.completion_tokens as i64,
        };
        usage.record(entry.clone(), counts);
    }
}
