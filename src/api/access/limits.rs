//! Limits of one key: requests and tokens per minute, and requests at a time. `auth::authenticate` calls [`enforce`]
//! before every route that needs a key; `meter` takes the tokens once they are known.
//!
//! Limits are kept per process: two servers on one database each grant them.

pub(crate) mod bucket;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use parking_lot::{Mutex, MutexGuard};

use self::bucket::{Bucket, Level};
use crate::api::http::error::{Problem, RateLimit, Result};
use crate::api::http::headers;
use crate::api::http::holding_body::holding;

/// Wait that clients are told while too many requests run: nobody knows when the next one ends.
const BUSY: Duration = Duration::from_secs(1);
/// Number of limiters from which on idle ones are dropped.
const KEPT: usize = 1024;

/// The limits of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Requests per minute.
    pub requests_per_minute: u64,
    /// Tokens per minute.
    pub tokens_per_minute: u64,
    /// Requests at a time.
    pub concurrent_requests: usize,
}

/// Counts what one key has used against its limits.
#[derive(Debug)]
pub(crate) struct Limiter {
    allowance: Allowance,
    buckets: Mutex<Buckets>,
    running: AtomicUsize,
}

#[derive(Debug)]
struct Buckets {
    requests: Bucket,
    tokens: Bucket,
}

/// A slot of a running request; dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Limiter>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Limiter {
    fn new(allowance: Allowance, now: Instant) -> Self {
        let requests = Bucket::new(allowance.requests_per_minute, now);
        let tokens = Bucket::new(allowance.tokens_per_minute, now);
        Self { allowance, buckets: Mutex::new(Buckets { requests, tokens }), running: AtomicUsize::new(0) }
    }

    /// Returns the limits.
    pub(crate) fn allowance(&self) -> Allowance {
        self.allowance
    }

    /// Admits a request, or refuses it with 429. A refused request costs nothing.
    pub(crate) fn admit(self: &Arc<Self>, organization: &str, now: Instant) -> Result<Permit> {
        let limit = self.allowance.concurrent_requests;
        // The permit comes first, so that it is given back on every way out.
        let running = self.running.fetch_add(1, Ordering::Relaxed);
        let permit = Permit(Arc::clone(self));
        if running >= limit {
            let on = format!("concurrent requests: Limit {limit}, Used {running}, Requested 1");
            return Err(refusal(RateLimit::Requests, organization, &on, BUSY));
        }
        let requests = &mut self.buckets().requests;
        match requests.take(1, now) {
            Ok(()) => Ok(permit),
            Err(wait) => {
                Err(refusal(RateLimit::Requests, organization, &standing("requests", "RPM", requests, 1, now), wait))
            }
        }
    }

    /// Takes the `amount` tokens of a prompt, or refuses it with 429 if fewer are left.
    pub(crate) fn take_tokens(&self, organization: &str, amount: u64, now: Instant) -> Result<()> {
        let tokens = &mut self.buckets().tokens;
        let limit = tokens.limit();
        if amount > limit {
            let message = format!(
                "Request too large for this key in organization {organization} on tokens per min (TPM): Limit {limit}, \
                 Requested {amount}. Send a shorter prompt, or use a key with a higher limit."
            );
            return Err(Problem::rate_limited(RateLimit::Tokens, message, None));
        }
        tokens.take(amount, now).map_err(|wait| {
            refusal(RateLimit::Tokens, organization, &standing("tokens", "TPM", tokens, amount, now), wait)
        })
    }

    /// Takes `amount` tokens that were used already, into debt if fewer are left.
    pub(crate) fn debit_tokens(&self, amount: u64, now: Instant) {
        self.buckets().tokens.debit(amount, now);
    }

    /// Gives back `amount` tokens that were taken and not used.
    pub(crate) fn give_back_tokens(&self, amount: u64, now: Instant) {
        self.buckets().tokens.give_back(amount, now);
    }

    fn levels(&self, now: Instant) -> (Level, Level) {
        let mut buckets = self.buckets();
        (buckets.requests.level(now), buckets.tokens.level(now))
    }

    /// Returns true if a new limiter would not differ: nothing runs and both buckets are full.
    fn is_idle(&self, now: Instant) -> bool {
        let (requests, tokens) = self.levels(now);
        self.running.load(Ordering::Relaxed) == 0 && requests.reset.is_zero() && tokens.reset.is_zero()
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock()
    }
}

/// Describes a bucket for an error message: `tokens per min (TPM): Limit 10, Used 8, Requested 3`.
fn standing(what: &str, short: &str, bucket: &mut Bucket, requested: u64, now: Instant) -> String {
    let Level { limit, remaining, .. } = bucket.level(now);
    format!("{what} per min ({short}): Limit {limit}, Used {}, Requested {requested}", limit - remaining)
}

fn refusal(what: RateLimit, organization: &str, on: &str, wait: Duration) -> Problem {
    let message = format!(
        "Rate limit reached for this key in organization {organization} on {on}. Please try again in {}.",
        duration_text(wait)
    );
    Problem::rate_limited(what, message, Some(wait))
}

/// The limiters of recently used keys. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limiters {
    by_key: Arc<Mutex<HashMap<Arc<str>, Arc<Limiter>>>>,
}

impl Limiters {
    /// Returns the limiter of `key`; creates one if the key is new or its allowance has changed.
    pub(crate) fn of(&self, key: &Arc<str>, allowance: Allowance) -> Arc<Limiter> {
        let mut by_key = self.by_key.lock();
        if let Some(limiter) = by_key.get(key).filter(|limiter| limiter.allowance == allowance) {
            return Arc::clone(limiter);
        }
        let now = Instant::now();
        // Only keys that exist get here, so the operator bounds their number; idle ones are dropped nevertheless.
        if by_key.len() >= KEPT && by_key.len().is_power_of_two() {
            by_key.retain(|_, limiter| Arc::strong_count(limiter) > 1 || !limiter.is_idle(now));
        }
        let limiter = Arc::new(Limiter::new(allowance, now));
        by_key.insert(Arc::clone(key), Arc::clone(&limiter));
        limiter
    }
}

/// Runs the request within the limits of its key, or answers 429; writes into the answer's headers what is left of the
/// limits.
pub(crate) async fn enforce(limiter: &Arc<Limiter>, organization: &str, request: Request, next: Next) -> Response {
    let mut response = match limiter.admit(organization, Instant::now()) {
        // Held until the last byte has gone: a stream is a running request.
        Ok(permit) => next.run(request).await.map(|body| holding(body, permit)),
        Err(error) => error.into_response(),
    };
    let (requests, tokens) = limiter.levels(Instant::now());
    write_headers(response.headers_mut(), requests, tokens);
    if let Ok(organization) = HeaderValue::from_str(organization) {
        response.headers_mut().insert(headers::ORGANIZATION, organization);
    }
    response
}

fn write_headers(headers: &mut HeaderMap, requests: Level, tokens: Level) {
    let values = [requests, tokens].into_iter().flat_map(|level| {
        let reset = HeaderValue::from_str(&duration_text(level.reset));
        let reset = reset.unwrap_or_else(|_| HeaderValue::from_static("0s"));
        [HeaderValue::from(level.limit), HeaderValue::from(level.remaining), reset]
    });
    headers.extend(headers::RATE_LIMITS.into_iter().zip(values));
}

/// Writes a duration as Go does, rounded up to whole milliseconds: `17ms`, `1s`, `1.5s`, `6m0s`, `1h0m0s`.
pub(crate) fn duration_text(duration: Duration) -> String {
    let milliseconds = duration.as_nanos().div_ceil(1_000_000);
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    if milliseconds == 0 {
        return "0s".into();
    }
    if milliseconds < 1_000 {
        return format!("{milliseconds}ms");
    }
    let fraction = format!(".{:03}", rest % 1_000);
    let seconds = format!("{}{}s", rest / 1_000, fraction.trim_end_matches('0').trim_end_matches('.'));
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance { requests_per_minute: 3, tokens_per_minute: 10, concurrent_requests: 2 };

    fn limiter(now: Instant) -> Arc<Limiter> {
        Arc::new(Limiter::new(ALLOWANCE, now))
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (milliseconds, text) in [
            (0, "0s"),
            (17, "17ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (8_640, "8.64s"),
            (60_000, "1m0s"),
            (90_250, "1m30.25s"),
            (360_000, "6m0s"),
            (3_600_000, "1h0m0s"),
            (3_661_001, "1h1m1.001s"),
        ] {
            assert_eq!(duration_text(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!(duration_text(Duration::from_nanos(1)), "1ms", "a client must not come back too early");
    }

    #[test]
    fn requests_over_the_limit_are_refused_with_the_contracts_message() {
        let now = Instant::now();
        let limiter = limiter(now);
        for _ in 0..3 {
            drop(limiter.admit("acme", now).expect("within the limit"));
        }
        let error = limiter.admit("acme", now).expect_err("over the limit");
        assert_eq!(
            error.to_string(),
            "Rate limit reached for this key in organization acme on requests per min (RPM): Limit 3, Used 3, \
             Requested 1. Please try again in 20s."
        );
        assert_eq!(limiter.levels(now).0, Level { limit: 3, remaining: 0, reset: Duration::from_mins(1) });
    }

    #[test]
    fn running_requests_are_bounded_and_an_ended_one_makes_room() {
        let now = Instant::now();
        let limiter = limiter(now);
        let first = limiter.admit("acme", now).expect("room");
        let _second = limiter.admit("acme", now).expect("room");
        let error = limiter.admit("acme", now).expect_err("no room").to_string();
        assert!(error.contains("concurrent requests: Limit 2, Used 2"), "{error}");
        drop(first);
        assert!(limiter.admit("acme", now).is_ok(), "and the refused one took no request of the minute");
    }

    #[test]
    fn a_prompt_takes_tokens_and_an_answer_takes_them_into_debt() {
        let now = Instant::now();
        let limiter = limiter(now);
        limiter.take_tokens("acme", 8, now).expect("enough");
        let error = limiter.take_tokens("acme", 3, now).expect_err("too few").to_string();
        assert!(
            error.contains("tokens per min (TPM): Limit 10, Used 8, Requested 3. Please try again in 6s."),
            "{error}"
        );
        limiter.debit_tokens(12, now);
        assert_eq!(limiter.levels(now).1, Level { limit: 10, remaining: 0, reset: Duration::from_mins(2) });
        limiter.give_back_tokens(20, now);
        assert_eq!(limiter.levels(now).1.remaining, 10);
    }

    #[test]
    fn a_prompt_beyond_the_limit_is_told_that_waiting_is_no_use() {
        let now = Instant::now();
        let error = limiter(now).take_tokens("acme", 11, now).expect_err("never fits");
        let response = error.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert!(!response.headers().contains_key("retry-after"));
    }

    #[test]
    fn a_key_keeps_its_limiter_until_its_allowance_changes() {
        let limiters = Limiters::default();
        let key: Arc<str> = "key_1".into();
        let first = limiters.of(&key, ALLOWANCE);
        assert!(Arc::ptr_eq(&first, &limiters.of(&key, ALLOWANCE)));
        assert!(!Arc::ptr_eq(&first, &limiters.of(&"key_2".into(), ALLOWANCE)));
        assert!(!Arc::ptr_eq(&first, &limiters.of(&key, Allowance { requests_per_minute: 4, ..ALLOWANCE })));
    }
}
