//! Compiles the grammars of requests: each once for all equal requests of an organisation, within limits of time and
//! memory, in turns that organisations share. A compile ends when its clients have gone. Used by `chat`.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode};
use moka::future::Cache;
use sha2::{Digest as _, Sha256};

use crate::api::http::error::{Problem, RateLimit, Result};
use crate::api::http::turns::Turns;
use crate::config::limits::Limits;
use crate::engine::grammar::{CompileBudget, Grammar, GrammarMemory, GrammarSource};
use crate::off_thread::off_thread;

/// Time that a client is told to wait if too many of its organisation wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Largest number of requests of one organisation that wait for their grammars.
const MAX_WAITING: usize = 64;
/// Bytes that a refusal takes in the cache.
const REFUSAL_BYTES: usize = 1 << 10;

/// A grammar, and the header that names the keywords that it does not follow.
pub(crate) type Compiled = (Grammar, Option<HeaderValue>);

/// What compiling gave: the same for all equal sources.
type Outcome = Result<Compiled>;

/// The grammars of all requests. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct Grammars {
    turns: Turns,
    limit: Duration,
    known: Cache<Key, Outcome>,
    memory: GrammarMemory,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Grammars").field("memory", &self.memory).finish_non_exhaustive()
    }
}

/// Names a grammar: organisation, model and source. Organisations share none, or the time of an answer would tell one
/// what another asks for.
pub(crate) type Key = [u8; 32];

/// Returns the name of a grammar of `model` for requests of `organization`, whose errors name the field `param`.
pub(crate) fn key(organization: &str, model: &str, param: &str, source: &GrammarSource) -> Key {
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    };
    [organization, model, param, &source.rules].into_iter().for_each(&mut add);
    for schema in &source.schemas {
        add(&schema.name);
        // In the order that the client gave: properties come in that order.
        add(&schema.schema.to_string());
        add(if schema.loosen { "loosen" } else { "strict" });
    }
    add(&format!("{:?} {:?}", source.shown_tokens, source.texts));
    hash.finalize().into()
}

impl Grammars {
    /// Creates the compilers of a server with `limits`.
    pub fn new(limits: &Limits) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let size = |_: &Key, outcome: &Outcome| {
            let bytes = outcome.as_ref().map_or(REFUSAL_BYTES, |(grammar, _)| grammar.bytes());
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        Self {
            turns: Turns::new(cores, MAX_WAITING),
            limit: Duration::from_secs(limits.grammar_seconds),
            known: Cache::builder().max_capacity(limits.grammar_cache_mib << 20).weigher(size).build(),
            memory: GrammarMemory::new((limits.grammar_mib << 20) as usize),
        }
    }

    /// Returns the grammar that `key` names, for a request of `organization` with `answers` answers. If it is not
    /// known, `work` compiles it when it is the organisation's turn.
    pub(crate) async fn get(
        &self,
        key: Key,
        organization: &Arc<str>,
        answers: usize,
        work: impl FnOnce(&CompileBudget) -> Outcome + Send + 'static,
    ) -> Result<Compiled> {
        // If this client leaves, another one that waits for the same begins anew.
        let outcome = self.known.try_get_with(key, self.compile(organization, work)).await;
        // Not more than it may hold, not even for a moment: some grammars take many MB.
        self.known.run_pending_tasks().await;
        let (grammar, loosened) = outcome.map_err(|problem| (*problem).clone())??;
        let (memory, organization) = (self.memory.clone(), Arc::clone(organization));
        let open = move || Ok(grammar.for_request(answers, &memory, organization)?);
        Ok((off_thread::<_, Problem>("open a grammar", open).await?, loosened))
    }

    /// Compiles a grammar; `Err` is what another try might change.
    async fn compile(
        &self,
        organization: &Arc<str>,
        work: impl FnOnce(&CompileBudget) -> Outcome + Send + 'static,
    ) -> Result<Outcome> {
        let turn = self.turns.wait(organization).await.map_err(|_| {
            let message = "The server is busy: too many requests of this organization wait for the grammars of their \
                           schemas. Please try again in 1 s.";
            Problem::rate_limited(RateLimit::Requests, message, Some(RETRY_AFTER))
        })?;
        let budget = CompileBudget::new(self.limit);
        let _abandon = budget.abandon_on_drop();
        let counted = budget.clone();
        let work = move || {
            // Held to the end of the work, which is soon after the client has gone.
            let _turn = turn;
            Ok::<_, Problem>(work(&counted))
        };
        match off_thread("compile a grammar", work).await? {
            Err(problem) if budget.early_end().is_some() || problem.status != StatusCode::BAD_REQUEST => Err(problem),
            outcome => Ok(outcome),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use serde_json::json;

    use super::*;

    fn refusal() -> Outcome {
        Err(Problem::invalid("response_format", "no"))
    }

    #[tokio::test]
    async fn equal_requests_compile_once_and_refusals_are_remembered() {
        let grammars = Grammars::new(&Limits::default());
        let organization: Arc<str> = "a".into();
        let compiles = Arc::new(AtomicUsize::new(0));
        let get = |key: Key| {
            let compiles = Arc::clone(&compiles);
            grammars.get(key, &organization, 1, move |_| {
                compiles.fetch_add(1, Ordering::SeqCst);
                refusal()
            })
        };
        let results = futures::future::join_all((0..20).map(|_| get([1; 32]))).await;
        assert!(results.iter().all(Result::is_err));
        assert_eq!(compiles.load(Ordering::SeqCst), 1);
        assert!(get([2; 32]).await.is_err());
        assert_eq!(compiles.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_compile_whose_client_leaves_is_abandoned_and_gives_its_turn_back() {
        let grammars = Grammars::new(&Limits::default());
        let organization: Arc<str> = "a".into();
        let (started, begun) = mpsc::channel();
        let (ended, end) = mpsc::channel();
        let compile = grammars.clone();
        let name = Arc::clone(&organization);
        let client = tokio::spawn(async move {
            let work = move |budget: &CompileBudget| {
                started.send(()).expect("the test waits");
                // What the compiler does between its steps.
                let mut reason = Ok(());
                while reason.is_ok() {
                    std::thread::yield_now();
                    reason = budget.check();
                }
                ended.send(reason).expect("the test waits");
                refusal()
            };
            compile.get([1; 32], &name, 1, work).await
        });
        tokio::task::spawn_blocking(move || begun.recv()).await.expect("a thread").expect("the compile begins");
        client.abort();
        let reason = tokio::task::spawn_blocking(move || end.recv()).await.expect("a thread").expect("it ends");
        assert!(reason.is_err_and(|reason| reason.contains("client")));
        // Its turn is free, and what it left is not remembered.
        let again = grammars.get([1; 32], &organization, 1, |_| Err(Problem::invalid("b", "other")));
        assert_eq!(again.await.expect_err("refused").error.param.as_deref(), Some("b"));
    }

    #[test]
    fn organizations_models_fields_and_orders_of_properties_have_grammars_of_their_own() {
        let source = |schema| GrammarSource::json(schema);
        let (one, other) = (source(json!({"a": 1, "b": 2})), source(json!({"b": 2, "a": 1})));
        let keys = [
            key("o", "m", "p", &one),
            key("x", "m", "p", &one),
            key("o", "x", "p", &one),
            key("o", "m", "x", &one),
            key("o", "m", "p", &other),
        ];
        let different: std::collections::HashSet<_> = keys.into_iter().collect();
        assert_eq!(different.len(), keys.len());
        assert_eq!(keys[0], key("o", "m", "p", &one));
    }
}
