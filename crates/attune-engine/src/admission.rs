//! Checks a request before it may queue: it must fit the model and the cache, and the queue must have room. Runs on the
//! caller's thread, so that a refusal is immediate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::{Error, Result};
use attune_model::kv_cache::BLOCK_TOKENS;

/// Time that a client is told to wait if the queue is full: a few answers end in that time.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Limits of one engine. Cheap to clone; clones share the queue's count.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    context: usize,
    cache_tokens: usize,
    max_waiting: usize,
    waiting: Arc<AtomicUsize>,
}

/// A place in the queue, given back when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    waiting: Arc<AtomicUsize>,
    /// Whether a sequence of the request has run; shared by the tickets of one request.
    begun: Arc<AtomicBool>,
}

impl Ticket {
    /// Notes that a sequence of the request runs.
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// Returns `true` once a sequence of the request has run.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }
}

impl Admission {
    /// Creates the admission of a model with `context` positions, a cache of `blocks` blocks and a queue of
    /// `max_waiting` requests.
    pub(crate) fn new(context: usize, blocks: usize, max_waiting: usize) -> Self {
        Self { context, cache_tokens: blocks * BLOCK_TOKENS, max_waiting, waiting: Arc::default() }
    }

    /// Returns how many new tokens an answer may have. Refuses more than the context holds; if the cache is smaller
    /// than the context, the answer ends where the cache does. `api` checks the context too, before it charges for the
    /// prompt.
    pub(crate) fn answer_tokens(&self, prompt: usize, completion: usize) -> Result<usize> {
        self.check_prompt(prompt)?;
        if prompt.saturating_add(completion) > self.context {
            return Err(Error::ContextLength { limit: self.context, prompt, completion });
        }
        // The last token drawn needs no place in the cache.
        Ok(completion.min(self.cache_tokens - prompt + 1))
    }

    /// Refuses a prompt that is empty or can never run.
    pub(crate) fn check_prompt(&self, prompt: usize) -> Result<()> {
        if prompt == 0 {
            return Err(Error::EmptyPrompt);
        }
        if prompt > self.context.min(self.cache_tokens) {
            return Err(Error::ContextLength { limit: self.context.min(self.cache_tokens), prompt, completion: 0 });
        }
        Ok(())
    }

    /// Takes a place in the queue; an error if it is full.
    pub(crate) fn enter(&self) -> Result<Arc<Ticket>> {
        self.enter_many(1).map(|mut tickets| tickets.remove(0))
    }

    /// Takes a place for each of the `count` sequences of one request; an error, without taking any, if there are too
    /// few.
    pub(crate) fn enter_many(&self, count: usize) -> Result<Vec<Arc<Ticket>>> {
        let begun = Arc::<AtomicBool>::default();
        let ticket = |_| Arc::new(Ticket { waiting: self.waiting.clone(), begun: begun.clone() });
        // Counted first, then checked: if two requests come at once to the last place, only one gets it.
        let before = self.waiting.fetch_add(count, Ordering::AcqRel);
        let tickets = (0..count).map(ticket).collect();
        if count == 0 || before + count <= self.max_waiting {
            return Ok(tickets);
        }
        Err(Error::Overloaded { what: "too many requests are waiting", retry_after: RETRY_AFTER })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_until_a_place_is_given_back() {
        let admission = Admission::new(64, 8, 2);
        let first = admission.enter().unwrap();
        let _second = admission.enter().unwrap();
        for _ in 0..3 {
            assert!(matches!(admission.enter(), Err(Error::Overloaded { .. })));
        }
        drop(first);
        assert!(admission.enter().is_ok());
    }

    #[test]
    fn a_request_of_many_sequences_gets_all_its_places_or_none_and_begins_once() {
        let admission = Admission::new(64, 8, 3);
        let two = admission.enter_many(2).unwrap();
        assert!(admission.enter_many(2).is_err());
        let other = admission.enter().expect("what was refused has left no place taken");
        two[1].begin();
        assert!(two[0].has_begun() && !other.has_begun());
        drop((two, other));
        assert_eq!(admission.enter_many(3).unwrap().len(), 3);
        assert!(admission.enter_many(4).is_err());
    }

    #[test]
    fn what_cannot_fit_is_refused_and_what_the_cache_ends_is_shortened() {
        let admission = Admission::new(64, 100, 1);
        assert_eq!(admission.answer_tokens(60, 4).unwrap(), 4);
        let refused = admission.answer_tokens(60, 5).unwrap_err();
        assert!(matches!(refused, Error::ContextLength { limit: 64, prompt: 60, completion: 5 }));
        assert!(matches!(admission.answer_tokens(1, usize::MAX), Err(Error::ContextLength { .. })));
        assert!(matches!(admission.check_prompt(0), Err(Error::EmptyPrompt)));
        assert!(matches!(admission.check_prompt(65), Err(Error::ContextLength { .. })));

        let small_cache = Admission::new(64, 2, 1);
        assert_eq!(small_cache.answer_tokens(10, 54).unwrap(), 23);
        assert!(matches!(small_cache.check_prompt(33), Err(Error::ContextLength { limit: 32, .. })));
    }
}
