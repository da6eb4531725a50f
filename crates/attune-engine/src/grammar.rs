//! Constrains decoding: decides which tokens may come next. The API compiles a [`Grammar`] from a JSON schema or from
//! rules around several, off the engine thread; the sampler keeps one [`GrammarState`] per answer, which bans all other
//! tokens.
//!
//! llguidance does the work: an Earley parser over a lexer of regular expressions, walked along the trie of the
//! vocabulary. Everything is bounded: the size of a grammar, the work for one token, and what the parsers of a
//! request and of an organisation keep.
//!
//! [`document`] writes the rules of a JSON schema: [`keywords`] reads one schema, [`references`], [`flat`] and
//! [`merge`] make one of all that it combines, [`exclusion`] compares schemas, [`objects`], [`number`] and [`text`]
//! write the parts. [`weight`] refuses patterns that would be too much work, [`budget`] ends a compile that is late or
//! that nobody waits for. [`state`] is the grammar while answers are written, within the [`memory`] of all. [`texts`] has
//! the strings of calls that follow Lark grammars, which [`lark`] checks, and finds them by their [`place`].

mod budget;
mod decimal;
mod document;
mod exclusion;
mod flat;
mod keywords;
mod lark;
mod memory;
mod merge;
mod number;
mod objects;
mod place;
mod references;
mod state;
mod text;
mod texts;
mod weight;

use std::sync::Arc;

use llguidance::api::{GrammarInit, GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::Parser;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{JsonCompileOptions, Logger, ParserFactory, TokenParser};
use serde_json::Value;

pub use self::budget::{AbandonOnDrop, CompileBudget, EarlyEnd};
pub use self::lark::check as check_lark;
pub use self::memory::GrammarMemory;
pub use self::place::{TextGrammar, Texts};
pub use self::state::GrammarState;
pub(crate) use self::state::ban;
use self::state::{Session, caught};
use self::texts::CompiledTexts;
use crate::Result;
use attune_model::vocabulary::Vocabulary;

/// Stack of the compiler's thread, in bytes. Schemas may nest and refer to each other; the compiler recurses into them.
const COMPILER_STACK: usize = 64 << 20;
/// Most characters of the compiler's reason that a client is shown.
const REASON_CHARACTERS: usize = 500;
/// Reason of a grammar that takes nothing.
const NO_DOCUMENT: &str = "no document satisfies it";
/// Bytes of a compiled grammar for each byte of its source, beside its lexer.
const RULES_FACTOR: usize = 20;

/// Source of a grammar: rules in llguidance's Lark syntax, which start at `start`, and the schemas that they refer to.
#[derive(Debug, Clone)]
pub struct GrammarSource {
    /// Rules; `@name` stands for a JSON document that follows the schema `name`.
    pub rules: String,
    /// The schemas that they refer to.
    pub schemas: Vec<DocumentSchema>,
    /// Special tokens to show by name in the answer's text, which leaves special tokens out otherwise.
    pub shown_tokens: Vec<u32>,
    /// Texts of calls that follow grammars of their own.
    pub texts: Texts,
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
        Self {
            rules: "start: @document".into(),
            schemas: vec![schema],
            shown_tokens: Vec::new(),
            texts: Texts::default(),
        }
    }
}

/// A compiled grammar, cheap to clone.
#[derive(Clone)]
pub struct Grammar {
    compiled: Arc<Compiled>,
    /// The parser that the answers of one request share.
    session: Arc<Session>,
}

struct Compiled {
    shown_tokens: Vec<u32>,
    dropped: Vec<(String, Vec<String>)>,
    param: String,
    /// Bytes that it takes, about.
    bytes: usize,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Grammar").field("param", &self.compiled.param).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Compiles `source` for the tokens of `vocabulary` within `budget`; `param` is the field of the request that
    /// errors name if the grammar later turns out to be too complex. An error is the compiler's reason. Takes
    /// milliseconds to seconds: call it off the async threads.
    pub fn compile(
        vocabulary: &Vocabulary,
        param: &str,
        mut source: GrammarSource,
        budget: &CompileBudget,
    ) -> Result<Self, String> {
        let shown_tokens = std::mem::take(&mut source.shown_tokens);
        // A schema of many references recurses deeper than the stacks of the runtime's threads allow.
        let FirstParser { parser, texts, dropped, rules } = std::thread::scope(|scope| {
            let compile = || budget::within(budget, || first_parser(vocabulary, source));
            let thread = std::thread::Builder::new().name("grammar".into()).stack_size(COMPILER_STACK);
            let thread = thread.spawn_scoped(scope, compile).map_err(|error| error.to_string())?;
            thread.join().unwrap_or_else(|_| Err("the compiler failed".into()))
        })?;
        let session = Arc::new(Session::new(parser, texts));
        let bytes = rules * RULES_FACTOR + session.lexer_bytes();
        let compiled = Arc::new(Compiled { shown_tokens, dropped, param: param.to_owned(), bytes });
        Ok(Self { compiled, session })
    }

    /// Returns the grammar of one request with `answers` answers, which share what fills as they are written. Asks
    /// `memory` for what they hold: an error if the request, or its organisation, would hold too much. Takes
    /// milliseconds: call it off the async threads.
    pub fn for_request(&self, answers: usize, memory: &GrammarMemory, organization: Arc<str>) -> Result<Self> {
        let session = self.session.copied(answers, memory.share(organization));
        let session = Arc::new(session.map_err(|full| full.into_error(self.param()))?);
        Ok(Self { compiled: Arc::clone(&self.compiled), session })
    }

    /// Returns the names of the schemas of which keywords were dropped, each with these keywords.
    pub fn dropped(&self) -> &[(String, Vec<String>)] {
        &self.compiled.dropped
    }

    /// Returns the bytes of memory that it takes, about.
    pub fn bytes(&self) -> usize {
        self.compiled.bytes
    }

    /// Returns `true` if `token` is a special token whose name is part of the answer's text.
    pub fn shows(&self, token: u32) -> bool {
        self.compiled.shown_tokens.contains(&token)
    }

    /// Returns the state of one answer before its first token.
    pub fn begin(&self) -> GrammarState {
        GrammarState::new(&self.session, self.clone())
    }

    fn param(&self) -> &str {
        &self.compiled.param
    }
}

/// A parser before the first token.
struct FirstParser {
    parser: TokenParser,
    texts: (CompiledTexts, Vec<Parser>),
    /// The keywords that were dropped, by the names of their schemas.
    dropped: Vec<(String, Vec<String>)>,
    /// Bytes of the rules that it was made of.
    rules: usize,
}

fn first_parser(vocabulary: &Vocabulary, source: GrammarSource) -> Result<FirstParser, String> {
    let factory = vocabulary.parsers().ok_or("the vocabulary cannot be used with grammars")?;
    let mut rules = source.rules.len();
    let mut grammars = vec![GrammarWithLexer::from_lark(source.rules)];
    let mut dropped = Vec::new();
    for DocumentSchema { name, schema, loosen } in source.schemas {
        if !schema.is_object() {
            return Err("a schema must be an object".into());
        }
        let written = document::rules(&name, &schema, loosen).map_err(|error| shortened(&error))?;
        for (name, mut schema) in written.leaves {
            json_options().apply_to(&mut schema);
            grammars.push(GrammarWithLexer { name: Some(name), json_schema: Some(schema), lark_grammar: None });
        }
        if !written.dropped.is_empty() {
            dropped.push((name.clone(), written.dropped));
        }
        rules += written.lark.len();
        grammars.push(GrammarWithLexer { name: Some(name), json_schema: None, lark_grammar: Some(written.lark) });
    }
    rules += source.texts.grammars.iter().map(|text| text.lark.len()).sum::<usize>();
    let (parser, _) = started(factory, grammars)?;
    let of_text = |rules| match started(factory, vec![GrammarWithLexer::from_lark(rules)]) {
        Ok((_, fresh)) => Ok(fresh),
        Err(reason) if reason == NO_DOCUMENT => Err("no text satisfies it".into()),
        Err(reason) => Err(reason),
    };
    let texts = CompiledTexts::new(&source.texts, parser.token_env.tok_trie(), of_text)?;
    Ok(FirstParser { parser, texts, dropped, rules })
}

/// Makes the parser of `grammars`, which has looked for the first token, and its copy from before that.
fn started(factory: &ParserFactory, grammars: Vec<GrammarWithLexer>) -> Result<(TokenParser, Parser), String> {
    budget::check()?;
    let grammar = TopLevelGrammar { grammars, max_tokens: None };
    let created = caught(|| {
        factory.create_parser_from_init_ext(
            GrammarInit::Serialized(grammar),
            Logger::new(0, 0),
            InferenceCapabilities::default(),
            limits(),
        )
    });
    let mut parser = created.map_err(|error| reason(&error))?;
    budget::check()?;
    let fresh = parser.parser.clone();
    // The first mask fails if no document can satisfy the schema, and fills the lexer's cache, which all answers share
    // at their start.
    caught(|| {
        parser.start_without_prompt();
        parser.compute_mask()
    })
    .map_err(|error| reason(&error))?;
    budget::check()?;
    Ok((parser, fresh))
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
    if let Some(placed) = lark::placed(&text) {
        return shortened(&placed);
    }
    if text.starts_with("panic:") {
        tracing::warn!(reason = text, "the grammar compiler failed");
        return "the compiler cannot handle it".into();
    }
    if text.starts_with("NoExtension") {
        return NO_DOCUMENT.into();
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

#[cfg(test)]
mod tests;
