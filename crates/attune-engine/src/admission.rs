//! Checks a request before it may queue: it must fit the model and the cache, and the queue must have room. Runs on the
//! caller's thread, so that a refusal is immediate.
//!
//! Whoever comes first may take all `max_waiting` places. As many again are kept for organisations that have few
//! sequences waiting: of the kept places that are left, one organisation may bring what it has waiting up to an eighth,
//! and at least to one. So one that fills the queue shuts nobody else out, the kept places last for dozens of others,
//! and no more than twice `max_waiting` ever wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::{Error, Result};
use attune_model::kv_cache::BLOCK_TOKENS;

/// Time that a client is told to wait if the queue is full: a few answers end in that time.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Divisor of the kept places that are left, for the most that one organisation may have waiting if it uses them: the
/// first one gets the 128 answers of the largest `n`.
const KEPT_PART: usize = 8;

/// Limits of one engine. Cheap to clone; clones share the queue's count.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    context: usize,
    cache_tokens: usize,
    max_waiting: usize,
    waiting: Arc<Mutex<Waiting>>,
    /// Places of requests in the background, which take none of the others.
    background: Arc<Mutex<Waiting>>,
}

/// Places that are taken.
#[derive(Debug, Default)]
struct Waiting {
    total: usize,
    by_organization: HashMap<Arc<str>, usize>,
}

/// A place in the queue, given back when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    organization: Arc<str>,
    waiting: Arc<Mutex<Waiting>>,
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

impl Waiting {
    /// Takes `count` places for `organization`; returns `false`, and takes none, if there are too few.
    fn enter(&mut self, organization: &Arc<str>, count: usize, max_waiting: usize) -> bool {
        let own = self.by_organization.get(organization).copied().unwrap_or(0);
        // All that wait after it, and all of its own.
        let (total, own) = (self.total.saturating_add(count), own.saturating_add(count));
        let most = max_waiting.saturating_mul(2);
        let kept = most.saturating_sub(self.total) / KEPT_PART;
        if total > max_waiting && (total > most || own > kept.max(1)) {
            return false;
        }
        if count > 0 {
            self.total = total;
            self.by_organization.insert(organization.clone(), own);
        }
        true
    }

    fn leave(&mut self, organization: &Arc<str>) {
        self.total -= 1;
        if let Some(own) = self.by_organization.get_mut(organization) {
            *own -= 1;
            if *own == 0 {
                self.by_organization.remove(organization);
            }
        }
    }
}

impl Admission {
    /// Creates the admission of a model with `context` positions, a cache of `blocks` blocks and a queue of
    /// `max_waiting` sequences.
    pub(crate) fn new(context: usize, blocks: usize, max_waiting: usize) -> Self {
        Self {
            context,
            cache_tokens: blocks * BLOCK_TOKENS,
            max_waiting,
            waiting: Arc::default(),
            background: Arc::default(),
        }
    }

    /// Returns the same with the places of requests in the background, if it is such a one.
    pub(crate) fn of(&self, background: bool) -> Self {
        let waiting = if background { &self.background } else { &self.waiting };
        Self { waiting: waiting.clone(), ..self.clone() }
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

    /// Takes a place in the queue for a sequence of `organization`; an error if there is none.
    pub(crate) fn enter(&self, organization: &Arc<str>) -> Result<Arc<Ticket>> {
        self.enter_many(organization, 1).map(|mut tickets| tickets.remove(0))
    }

    /// Takes a place for each of the `count` sequences of one request; an error, without taking any, if there are too
    /// few.
    pub(crate) fn enter_many(&self, organization: &Arc<str>, count: usize) -> Result<Vec<Arc<Ticket>>> {
        if !self.waiting.lock().enter(organization, count, self.max_waiting) {
            return Err(Error::Overloaded { what: "too many requests are waiting", retry_after: RETRY_AFTER });
        }
        let begun = Arc::<AtomicBool>::default();
        let ticket = |_| {
            let (organization, waiting, begun) = (organization.clone(), self.waiting.clone(), begun.clone());
            Arc::new(Ticket { organization, waiting, begun })
        };
        Ok((0..count).map(ticket).collect())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.lock().leave(&self.organization);
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn organization(name: &(impl ToString + ?Sized)) -> Arc<str> {
        name.to_string().into()
    }

    fn waiting(admission: &Admission) -> usize {
        admission.waiting.lock().total
    }

    #[test]
    fn a_full_queue_refuses_until_a_place_is_given_back() {
        let (admission, one) = (Admission::new(64, 8, 2), organization("one"));
        let first = admission.enter(&one).unwrap();
        let _second = admission.enter(&one).unwrap();
        for _ in 0..3 {
            assert!(matches!(admission.enter(&one), Err(Error::Overloaded { .. })));
        }
        drop(first);
        assert!(admission.enter(&one).is_ok());
    }

    #[test]
    fn a_request_of_many_sequences_gets_all_its_places_or_none_and_begins_once() {
        let (admission, one) = (Admission::new(64, 8, 3), organization("one"));
        let two = admission.enter_many(&one, 2).unwrap();
        assert!(admission.enter_many(&one, 2).is_err());
        let other = admission.enter(&one).expect("what was refused has left no place taken");
        two[1].begin();
        assert!(two[0].has_begun() && !other.has_begun());
        drop((two, other));
        assert_eq!(admission.enter_many(&one, 3).unwrap().len(), 3);
        assert!(admission.enter_many(&one, 4).is_err());
        assert!(admission.enter_many(&one, usize::MAX).is_err());
        assert!(admission.waiting.lock().by_organization.is_empty(), "nothing is left of who has gone");
    }

    #[test]
    fn one_organization_that_fills_the_queue_shuts_no_other_out() {
        let admission = Admission::new(64, 8, 1024);
        let flood = organization("flood");
        let _all = admission.enter_many(&flood, 1024).unwrap();
        assert!(admission.enter(&flood).is_err());
        let _largest = admission.enter_many(&organization("other"), 128).expect("the largest `n`");
        assert!(admission.enter(&organization("other")).is_err());
        // Thirty that take all they can get still leave a place for each of twenty more.
        let mut held = Vec::new();
        for number in 0..30 {
            let before = held.len();
            while let Ok(ticket) = admission.enter(&organization(&number)) {
                held.push(ticket);
            }
            assert!(held.len() > before, "organisation {number}");
        }
        for number in 30..50 {
            held.push(admission.enter(&organization(&number)).expect("a place"));
        }
        assert!(waiting(&admission) <= 2048);
        assert!(admission.enter(&flood).is_err());
    }

    #[test]
    fn under_random_arrivals_no_more_than_twice_the_limit_wait_and_who_has_nothing_waiting_is_let_in() {
        const MAX_WAITING: usize = 64;
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let admission = Admission::new(64, 8, MAX_WAITING);
        let mut held: Vec<(usize, Vec<Arc<Ticket>>)> = Vec::new();
        let (mut let_in, mut refused) = (0, 0);
        for _ in 0..20_000 {
            if random.random_bool(0.45) && !held.is_empty() {
                held.swap_remove(random.random_range(0..held.len()));
            } else {
                // Organisation 0 asks for most.
                let name = if random.random_bool(0.5) { 0 } else { random.random_range(1..12) };
                let count = if name == 0 { random.random_range(1..=MAX_WAITING) } else { random.random_range(1..4) };
                let own: usize = held.iter().filter(|(other, _)| *other == name).map(|(_, places)| places.len()).sum();
                let before = waiting(&admission);
                if let Ok(places) = admission.enter_many(&organization(&name), count) {
                    held.push((name, places));
                    let_in += 1;
                } else {
                    assert_eq!(waiting(&admission), before);
                    assert!(own > 0 || count > 1, "who has nothing waiting is refused at {before}");
                    assert!(before + count > MAX_WAITING, "refused with room for all");
                    refused += 1;
                }
            }
            let total: usize = held.iter().map(|(_, places)| places.len()).sum();
            assert_eq!(waiting(&admission), total);
            assert!(total <= 2 * MAX_WAITING);
        }
        assert!(let_in > 1000 && refused > 1000, "{let_in} let in, {refused} refused");
        drop(held);
        assert_eq!(waiting(&admission), 0);
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
