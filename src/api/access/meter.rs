//! What a request's tokens cost its caller: they count against the key's limit and go into its usage. The target of a
//! request has an [`Account`]; completions, chat and embeddings charge it.

use std::sync::Arc;
use std::time::Instant;

use crate::Result;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::access::limits::Limiter;
use crate::store::usage::{Counts, UsageEntry};
use crate::store::usage_recorder::UsageRecorder;

/// Who pays for a request, and for which model.
#[derive(Clone)]
pub(crate) struct Account {
    limiter: Arc<Limiter>,
    usage: UsageRecorder,
    entry: UsageEntry,
}

impl Account {
    /// The caller's account for `model` on `base`.
    pub(crate) fn new(state: &ApiState, caller: &Caller, model: &str, base: &str) -> Self {
        let entry = UsageEntry {
            organization: Arc::clone(&caller.organization),
            key: Arc::clone(&caller.key),
            model: model.into(),
            base: base.into(),
        };
        Self { limiter: Arc::clone(&caller.limiter), usage: state.usage.clone(), entry }
    }

    /// Whose account it is.
    pub(crate) fn organization(&self) -> &Arc<str> {
        &self.entry.organization
    }

    /// Takes the tokens of the prompts, or refuses with [`crate::Error::RateLimited`].
    pub fn charge(&self, prompt_tokens: usize) -> Result<Charge> {
        self.limiter.take_tokens(&self.entry.organization, prompt_tokens as u64, Instant::now())?;
        Ok(Charge { account: self.clone(), prompt_tokens, cached_tokens: 0, completion_tokens: 0, owed: false })
    }
}

/// What one request costs. It is settled when it drops, so that a client who hangs up pays for what was computed; one that
/// never came to run gets its tokens back.
#[must_use = "dropping it settles it"]
pub(crate) struct Charge {
    account: Account,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
    owed: bool,
}

impl Charge {
    /// The engine has taken the request: from now on it is paid for.
    pub(crate) fn owe(&mut self) {
        self.owed = true;
    }

    /// Neither paid nor counted: the engine could not run the request.
    pub(crate) fn waive(mut self) {
        self.owed = false;
    }

    /// What the answer came to: prompt tokens that need not be computed, and tokens drawn.
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
