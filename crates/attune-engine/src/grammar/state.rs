//! The grammar of one request's answers: [`Session`] is the request's own copy of a compiled parser, and
//! [`GrammarState`] the state of one answer in it. The answers of a request share the lexer, which is the largest part
//! by far, and fills as they are written; what all of them hold is asked of [`super::memory`] first.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::anyhow;
use llguidance::TokenParser;
use llguidance::api::StopReason;
use llguidance::earley::Parser;
use llguidance::toktrie::SimpleVob;
use parking_lot::Mutex as PlainMutex;

use super::memory::{Full, Share};
use super::texts::{CompiledTexts, TextState};
use super::{Grammar, reason};
use crate::{Error, Result};

/// Bytes that a lexer really takes for each byte that llguidance counts: it leaves out caches and spare room.
const LEXER_FACTOR: usize = 3;
/// Bytes of an item of a parser's table, with spare room.
const ITEM_BYTES: usize = 16;
/// Bytes of an answer's parser besides its table and its masks.
const ANSWER_BYTES: usize = 32 << 10;
const TOO_COMPLEX: &str = "The schema is too complex to follow: make its patterns and alternatives smaller.";

/// A compiled grammar before the first token, for the answers of one request.
pub(super) struct Session {
    parser: TokenParser,
    texts: Arc<CompiledTexts>,
    /// The parsers of its texts, whose lexers its answers share too.
    text_parsers: Vec<Parser>,
    /// Bytes of the parsers of its answers, without the lexer.
    parsers: AtomicUsize,
    /// What the request may hold; `None` if nobody counts.
    share: Option<PlainMutex<Share>>,
}

impl Session {
    /// Creates the session of `parser` and `texts`, whose memory nobody counts.
    pub(super) fn new(parser: TokenParser, (texts, text_parsers): (CompiledTexts, Vec<Parser>)) -> Self {
        Self { parser, texts: Arc::new(texts), text_parsers, parsers: AtomicUsize::new(0), share: None }
    }

    /// Copies the session for a request with `answers` answers, which holds `share`: states and budgets of one request
    /// must not affect another's.
    pub(super) fn copied(&self, answers: usize, mut share: Share) -> Result<Self, Full> {
        let parser = &self.parser;
        let parsers = answers.saturating_mul(ANSWER_BYTES + parser.token_env.tok_trie().vocab_size() / 4);
        // Asked before the copy.
        share.grow_to(parsers.saturating_add(self.lexer_bytes()))?;
        let (share, texts) = (Some(PlainMutex::new(share)), Arc::clone(&self.texts));
        let text_parsers = self.text_parsers.iter().map(Parser::deep_clone).collect();
        let parser = parser.deep_clone();
        Ok(Self { parser, texts, text_parsers, parsers: AtomicUsize::new(parsers), share })
    }

    /// Returns the bytes that the lexers take.
    pub(super) fn lexer_bytes(&self) -> usize {
        let texts: usize = self.text_parsers.iter().map(lexer_bytes).sum();
        lexer_bytes(&self.parser.parser) + texts
    }

    /// Returns the parser of one answer. A cheap copy, which shares the lexer.
    fn begin(&self) -> TokenParser {
        self.parser.clone()
    }

    /// Asks for the memory of what the parsers and the lexers have grown to, by `items` more items of one table.
    fn grow(&self, items: usize) -> Result<(), Full> {
        let Some(share) = &self.share else { return Ok(()) };
        let parsers = self.parsers.fetch_add(items * ITEM_BYTES, Ordering::Relaxed) + items * ITEM_BYTES;
        share.lock().grow_to(parsers + self.lexer_bytes())
    }
}

/// Returns the bytes that the lexer of `parser` takes.
fn lexer_bytes(parser: &Parser) -> usize {
    parser.lexer_stats().num_bytes * LEXER_FACTOR
}

/// State of one answer in its grammar.
pub struct GrammarState {
    /// Shared with the thread that computes the allowed tokens in advance and holds the lock meanwhile. A lock of the
    /// standard library, since a panic of that thread must poison it.
    place: Arc<std::sync::Mutex<Matching>>,
    complete: bool,
    grammar: Grammar,
}

struct Matching {
    parser: TokenParser,
    texts: TextState,
    session: Arc<Session>,
    /// The tokens that may come next; `None` until they are computed.
    allowed: Option<Result<SimpleVob, Fault>>,
}

/// Why a parser cannot go on.
#[derive(Debug)]
enum Fault {
    /// llguidance's reason.
    Parser(anyhow::Error),
    /// The memory of its request.
    Full(Full),
}

impl Matching {
    fn allowed(&mut self) -> &Result<SimpleVob, Fault> {
        let Self { parser, texts, session, allowed } = self;
        allowed.get_or_insert_with(|| {
            let mask = caught(|| {
                let mut mask = parser.compute_mask()?;
                texts.restrict(&session.texts, &session.text_parsers, parser.token_env.tok_trie(), &mut mask)?;
                Ok(mask)
            });
            let mask = mask.map_err(Fault::Parser)?;
            session.grow(0).map_err(Fault::Full)?;
            Ok(mask)
        })
    }

    /// Advances by `token`; returns true if no token may follow.
    fn accept(&mut self, token: u32) -> Result<bool, Fault> {
        let Self { parser, texts, session, allowed } = self;
        *allowed = None;
        // Only items of rows that stay are counted now; those of masks are dropped again.
        let before = parser.parser_stats().all_items;
        let advanced = caught(|| {
            anyhow::ensure!(parser.consume_token(token)? == 0, "unexpected backtracking");
            texts.accept(&session.texts, &session.text_parsers, parser.token_env.tok_trie(), token)
        });
        let of_texts = advanced.map_err(Fault::Parser)?;
        let items = parser.parser_stats().all_items.saturating_sub(before) + of_texts;
        caught(|| parser.check_stop()).map_err(Fault::Parser)?;
        session.grow(items).map_err(Fault::Full)?;
        Ok(parser.stop_reason() != StopReason::NotStopped)
    }
}

/// Runs a call of llguidance, and turns a panic of it into an error.
pub(super) fn caught<T>(call: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(anyhow!("panic: {text}"))
    })
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("GrammarState").field("grammar", &self.grammar).finish_non_exhaustive()
    }
}

impl GrammarState {
    /// Creates the state of one answer of `session` before its first token.
    pub(super) fn new(session: &Arc<Session>, grammar: Grammar) -> Self {
        let (parser, texts) = (session.begin(), CompiledTexts::begin());
        let place = Matching { parser, texts, session: Arc::clone(session), allowed: None };
        Self { place: Arc::new(std::sync::Mutex::new(place)), complete: false, grammar }
    }

    /// Starts computing the allowed tokens on a thread of the pool, so that they are known when the logits are. If no
    /// thread is free until then, [`Self::mask`] computes them.
    pub fn prepare(&self) {
        let place = Arc::clone(&self.place);
        rayon::spawn(move || {
            // Whoever else holds the lock computes the same. A panic poisons it, and fails the answer at its next
            // token.
            let work = || place.try_lock().is_ok_and(|mut place| place.allowed().is_ok());
            let _ = catch_unwind(AssertUnwindSafe(work));
        });
    }

    /// Sets the logits of all banned tokens to negative infinity. Fails if no token is allowed; end tokens are allowed
    /// only if the grammar may end.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let mut place = self.place.lock().map_err(|_| broken())?;
        let any = match place.allowed() {
            Ok(allowed) => ban(allowed.as_slice(), logits),
            Err(fault) => return Err(self.failed(fault)),
        };
        if any { Ok(()) } else { Err(self.dead_end()) }
    }

    /// Returns the tokens that may come next, a bit for each.
    pub(crate) fn allowed_tokens(&mut self) -> Result<Vec<u32>> {
        let mut place = self.place.lock().map_err(|_| broken())?;
        match place.allowed() {
            Ok(allowed) => Ok(allowed.as_slice().to_vec()),
            Err(fault) => Err(self.failed(fault)),
        }
    }

    /// Advances the grammar by the drawn token.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        let mut place = self.place.lock().map_err(|_| broken())?;
        self.complete = place.accept(token).map_err(|fault| self.failed(&fault))?;
        Ok(())
    }

    /// Returns `true` once no token may follow.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Explains why the parser stopped. It gets only tokens that it has allowed, so it met one of its limits or has a
    /// defect.
    fn failed(&self, fault: &Fault) -> Error {
        let error = match fault {
            Fault::Full(full) => return full.into_error(self.grammar.param()),
            Fault::Parser(error) => error,
        };
        let text = error.to_string();
        if text.starts_with("panic:") {
            return Error::Internal(format!("grammar: {}", reason(error)));
        }
        if text.contains("NoExtension") {
            return self.dead_end();
        }
        tracing::info!(reason = reason(error), "a grammar is too complex to follow");
        Error::Grammar { message: TOO_COMPLEX.into(), field: self.grammar.param().to_owned() }
    }

    fn dead_end(&self) -> Error {
        let message = "No token of this model can continue an answer that follows the schema.".into();
        Error::Grammar { message, field: self.grammar.param().to_owned() }
    }
}

fn broken() -> Error {
    Error::Internal("grammar: the parser panicked".into())
}

/// Bans all tokens but those that `words` have a bit for; returns `false` if no token is left.
pub(crate) fn ban(words: &[u32], logits: &mut [f32]) -> bool {
    let mut any = false;
    for (word, logits) in logits.chunks_mut(32).enumerate() {
        let bits = words.get(word).copied().unwrap_or(0);
        for (bit, logit) in logits.iter_mut().enumerate() {
            if bits >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            } else {
                any = true;
            }
        }
    }
    any
}
