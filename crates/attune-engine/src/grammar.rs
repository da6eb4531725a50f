//! Constrains decoding: decides which tokens may come next. The API compiles a [`Grammar`] from a JSON schema or from
//! rules around several, off the engine thread; the sampler keeps one [`GrammarState`] per answer, which bans all other
//! tokens.
//!
//! llguidance does the work: an Earley parser over a lexer of regular expressions, walked along the trie of the
//! vocabulary. Everything is bounded: the size of a grammar, the work for one token, and the states that a parser
//! keeps.
//!
//! [`document`] writes the rules of a JSON schema: [`keywords`] reads one schema, [`references`], [`flat`] and
//! [`merge`] make one of all that it combines, [`exclusion`] compares schemas, [`objects`], [`number`] and [`text`]
//! write the parts.

mod decimal;
mod document;
mod exclusion;
mod flat;
mod keywords;
mod merge;
mod number;
mod objects;
mod references;
mod text;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use llguidance::api::{GrammarInit, GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{InferenceCapabilities, SimpleVob};
use llguidance::{JsonCompileOptions, Logger, Matcher};
use serde_json::Value;

use crate::{Error, Result};
use attune_model::vocabulary::Vocabulary;

/// Stack of the compiler's thread, in bytes. Schemas may nest and refer to each other; the compiler recurses into them.
const COMPILER_STACK: usize = 64 << 20;
/// Most characters of the compiler's reason that a client is shown.
const REASON_CHARACTERS: usize = 500;
const TOO_COMPLEX: &str = "The schema is too complex to follow: make its patterns and alternatives smaller.";

/// Source of a grammar: rules in llguidance's Lark syntax, which start at `start`, and the schemas that they refer to.
#[derive(Debug, Clone)]
pub struct GrammarSource {
    /// Rules; `@name` stands for a JSON document that follows the schema `name`.
    pub rules: String,
    /// The schemas that they refer to.
    pub schemas: Vec<DocumentSchema>,
    /// Special tokens to show by name in the answer's text, which leaves special tokens out otherwise.
    pub shown_tokens: Vec<u32>,
}

/// The JSON schema of documents in a grammar.
#[derive(Debug, Clone)]
pub struct DocumentSchema {
    /// Its name in the rules.
    pub name: String,
    /// The schema, an object.
    pub schema: Value,
    /// True if keywords that cannot be followed are dropped; else they are an error.
    pub loosen: bool,
}

impl GrammarSource {
    /// Creates the source of one JSON document that follows `schema`.
    pub fn json(schema: Value) -> Self {
        let schema = DocumentSchema { name: "document".into(), schema, loosen: false };
        Self { rules: "start: @document".into(), schemas: vec![schema], shown_tokens: Vec::new() }
    }
}

/// A compiled grammar, cheap to clone.
#[derive(Clone)]
pub struct Grammar {
    compiled: Arc<Compiled>,
}

struct Compiled {
    matcher: Matcher,
    shown_tokens: Vec<u32>,
    dropped: Vec<(String, Vec<String>)>,
    param: String,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Grammar").field("param", &self.compiled.param).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Compiles `source` for the tokens of `vocabulary`; `param` is the field of the request that errors name if the
    /// grammar later turns out to be too complex. An error is the compiler's reason. Takes milliseconds to seconds:
    /// call it off the async threads.
    pub fn compile(vocabulary: &Vocabulary, param: &str, mut source: GrammarSource) -> Result<Self, String> {
        let shown_tokens = std::mem::take(&mut source.shown_tokens);
        // A schema of many references recurses deeper than the stacks of the runtime's threads allow.
        let (matcher, dropped) = std::thread::scope(|scope| {
            let compile = || first_matcher(vocabulary, source);
            let thread = std::thread::Builder::new().name("grammar".into()).stack_size(COMPILER_STACK);
            let thread = thread.spawn_scoped(scope, compile).map_err(|error| error.to_string())?;
            thread.join().unwrap_or_else(|_| Err("the compiler failed".into()))
        })?;
        Ok(Self { compiled: Arc::new(Compiled { matcher, shown_tokens, dropped, param: param.to_owned() }) })
    }

    /// Returns the names of the schemas of which keywords were dropped, each with these keywords.
    pub fn dropped(&self) -> &[(String, Vec<String>)] {
        &self.compiled.dropped
    }

    /// Returns `true` if `token` is a special token whose name is part of the answer's text.
    pub fn shows(&self, token: u32) -> bool {
        self.compiled.shown_tokens.contains(&token)
    }

    /// Returns the state of one answer before its first token.
    pub fn begin(&self) -> GrammarState {
        // A deep copy: the state and budget of one answer's parser must not affect another's.
        let place = Matching { matcher: self.compiled.matcher.deep_clone(), allowed: None };
        GrammarState { place: Arc::new(Mutex::new(place)), complete: false, grammar: self.clone() }
    }
}

/// A matcher before the first token, and the keywords that were dropped, by the names of their schemas.
type FirstMatcher = (Matcher, Vec<(String, Vec<String>)>);

fn first_matcher(vocabulary: &Vocabulary, source: GrammarSource) -> Result<FirstMatcher, String> {
    let factory = vocabulary.parsers().ok_or("the vocabulary cannot be used with grammars")?;
    let mut grammars = vec![GrammarWithLexer::from_lark(source.rules)];
    let mut dropped = Vec::new();
    for DocumentSchema { name, schema, loosen } in source.schemas {
        if !schema.is_object() {
            return Err("a schema must be an object".into());
        }
        let rules = document::rules(&name, &schema, loosen).map_err(|error| shortened(&error))?;
        for (name, mut schema) in rules.leaves {
            json_options().apply_to(&mut schema);
            grammars.push(GrammarWithLexer { name: Some(name), json_schema: Some(schema), lark_grammar: None });
        }
        if !rules.dropped.is_empty() {
            dropped.push((name.clone(), rules.dropped));
        }
        grammars.push(GrammarWithLexer { name: Some(name), json_schema: None, lark_grammar: Some(rules.lark) });
    }
    let grammar = TopLevelGrammar { grammars, max_tokens: None };
    let parser = factory
        .create_parser_from_init_ext(
            GrammarInit::Serialized(grammar),
            Logger::new(0, 0),
            InferenceCapabilities::default(),
            limits(),
        )
        .map_err(|error| reason(&error))?;
    let mut matcher = Matcher::new(Ok(parser));
    // The first mask fails if no document can satisfy the schema, and fills the lexer's cache, which all answers share
    // at their start.
    matcher.compute_mask().map_err(|error| reason(&error))?;
    Ok((matcher, dropped))
}

/// Allows no blanks around a text or number.
fn json_options() -> JsonCompileOptions {
    JsonCompileOptions { whitespace_flexible: false, ..JsonCompileOptions::default() }
}

/// Returns limits that keep the work for one token in the tens of milliseconds and the memory of one answer in the tens
/// of MB.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 20_000,
        max_grammar_size: 100_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Shortens the compiler's reason to one line, without the parts for its developers.
fn reason(error: &anyhow::Error) -> String {
    let text = error.to_string();
    if text.starts_with("panic:") {
        tracing::warn!(reason = text, "the grammar compiler failed");
        return "the compiler cannot handle it".into();
    }
    if text.starts_with("NoExtension") {
        return "no document satisfies it".into();
    }
    shortened(&text)
}

fn shortened(text: &str) -> String {
    let line = text.replace("<non-verbose/>", "").split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.trim_end_matches('.');
    match line.char_indices().nth(REASON_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// State of one answer in its grammar.
pub struct GrammarState {
    /// Shared with the thread that computes the allowed tokens in advance and holds the lock meanwhile. A lock of the
    /// standard library, since a panic of that thread must poison it.
    place: Arc<Mutex<Matching>>,
    complete: bool,
    grammar: Grammar,
}

struct Matching {
    matcher: Matcher,
    /// The tokens that may come next; `None` until they are computed.
    allowed: Option<anyhow::Result<SimpleVob>>,
}

impl Matching {
    fn allowed(&mut self) -> &anyhow::Result<SimpleVob> {
        let Self { matcher, allowed } = self;
        allowed.get_or_insert_with(|| matcher.compute_mask())
    }
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("GrammarState").field("grammar", &self.grammar).finish_non_exhaustive()
    }
}

impl GrammarState {
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
            Ok(allowed) => ban(allowed, logits),
            Err(error) => return Err(self.failed(error)),
        };
        if any { Ok(()) } else { Err(self.dead_end()) }
    }

    /// Advances the grammar by the drawn token.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        let mut place = self.place.lock().map_err(|_| broken())?;
        place.allowed = None;
        let accepted = place.matcher.consume_token(token);
        self.complete = place.matcher.is_stopped();
        accepted.map_err(|error| self.failed(&error))
    }

    /// Returns `true` once no token may follow.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Explains why the matcher stopped. It gets only tokens that it has allowed, so it met one of its limits or has a
    /// defect.
    fn failed(&self, error: &anyhow::Error) -> Error {
        let text = error.to_string();
        if text.starts_with("panic:") {
            return Error::Internal(format!("grammar: {}", reason(error)));
        }
        if text.contains("NoExtension") {
            return self.dead_end();
        }
        tracing::info!(reason = reason(error), "a grammar is too complex to follow");
        Error::Grammar { message: TOO_COMPLEX.into(), field: self.grammar.compiled.param.clone() }
    }

    fn dead_end(&self) -> Error {
        let message = "No token of this model can continue an answer that follows the schema.".into();
        Error::Grammar { message, field: self.grammar.compiled.param.clone() }
    }
}

fn broken() -> Error {
    Error::Internal("grammar: the parser panicked".into())
}

/// Bans all tokens but the allowed ones; returns `false` if no token is left.
fn ban(allowed: &SimpleVob, logits: &mut [f32]) -> bool {
    let mut any = false;
    let words = allowed.as_slice();
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

#[cfg(test)]
mod tests;
