//! Texts of calls that follow Lark grammars. The grammar of an answer takes any JSON string in their places; a parser of
//! its own reads what the string means, byte by byte as llguidance reads a plain text, and bans further tokens. So the
//! escapes of JSON, which share their first byte, never decide where a terminal ends.

use std::sync::Mutex;

use anyhow::anyhow;
use llguidance::earley::{BiasComputer, Parser, ParserRecognizer};
use llguidance::toktrie::{Recognizer, SimpleVob, TokTrie};

use super::lark;
use super::place::{Escape, Finder, Meaning, Place, Texts};

/// Id of the token that ends a text for its parser. No answer holds it there: the parser only sees its mark.
const END: u32 = 1;
/// Id that its parser takes a piece of a text for: any other.
const PIECE: u32 = 0;

/// The grammars of the texts of an answer, compiled.
pub(super) struct CompiledTexts {
    finder: Finder,
    /// Tokens with a quotation mark, behind which alone a text can begin.
    quoting: Vec<u32>,
}

impl CompiledTexts {
    /// Compiles the grammars of `texts`, and returns them with a parser before the first byte of each text; `parser` makes
    /// the parser of Lark rules.
    pub(super) fn new(
        texts: &Texts,
        trie: &TokTrie,
        parser: impl Fn(String) -> Result<Parser, String>,
    ) -> Result<(Self, Vec<Parser>), String> {
        let compile = |rules: &String| {
            lark::check(rules)?;
            // First as it is: its faults have the places of the client's text.
            parser(rules.clone())?;
            parser(lark::with_end(rules, END)?)
        };
        let parsers = texts.grammars.iter().map(|text| compile(&text.lark)).collect::<Result<Vec<Parser>, _>>()?;
        let quoting = |id: &u32| !parsers.is_empty() && trie.token(*id).contains(&b'"');
        let quoting = (0..trie.vocab_size() as u32).filter(quoting).collect();
        Ok((Self { finder: Finder::new(texts), quoting }, parsers))
    }

    /// Returns the state before the first token of an answer.
    pub(super) fn begin() -> TextState {
        TextState { place: Finder::start(), parser: None }
    }
}

/// State of one answer in its texts.
pub(super) struct TextState {
    place: Place,
    /// The parser of the text that it is in.
    parser: Option<Parser>,
}

impl TextState {
    /// Bans the tokens of `allowed` that the grammar of a text does not take. `parsers` are those of the request.
    pub(super) fn restrict(
        &mut self,
        texts: &CompiledTexts,
        parsers: &[Parser],
        trie: &TokTrie,
        allowed: &mut SimpleVob,
    ) -> anyhow::Result<()> {
        if parsers.is_empty() || self.place == Place::Elsewhere {
            return Ok(());
        }
        if let Some(parser) = &mut self.parser {
            let fitting = fitting(parser, trie, &texts.finder, self.place, None)?;
            allowed.and(&fitting);
            return Ok(());
        }
        if matches!(self.place, Place::Before(_)) && trie.max_token_len() < texts.finder.shortest() {
            return Ok(());
        }
        let mut rests: Vec<Vec<(u32, &[u8])>> = vec![Vec::new(); parsers.len()];
        for id in texts.quoting.iter().copied().filter(|id| allowed.is_allowed(*id)) {
            let (bytes, mut place) = (spelled(trie, id), self.place);
            for (at, byte) in bytes.iter().enumerate() {
                place = texts.finder.after(place, *byte);
                if let Place::Text(number, _) = place {
                    rests[number].extend((at + 1 < bytes.len()).then_some((id, &bytes[at + 1..])));
                    break;
                }
            }
        }
        for (number, rests) in rests.iter().enumerate().filter(|(_, rests)| !rests.is_empty()) {
            let mut parser = parsers[number].clone();
            let place = Place::Text(number, Escape::default());
            let fitting = fitting(&mut parser, trie, &texts.finder, place, Some(rests))?;
            for (id, _) in rests.iter().filter(|(id, _)| !fitting.is_allowed(*id)) {
                allowed.disallow_token(*id);
            }
        }
        Ok(())
    }

    /// Advances by a token that was allowed; returns the items that the parsers' tables grew by.
    pub(super) fn accept(
        &mut self,
        texts: &CompiledTexts,
        parsers: &[Parser],
        trie: &TokTrie,
        token: u32,
    ) -> anyhow::Result<usize> {
        if parsers.is_empty() {
            return Ok(0);
        }
        let mut piece = Vec::new();
        for byte in spelled(trie, token) {
            let Place::Text(number, escape) = self.place else {
                self.place = texts.finder.after(self.place, *byte);
                if let Place::Text(number, _) = self.place {
                    self.parser = Some(parsers[number].clone());
                }
                continue;
            };
            match escape.read(*byte) {
                Meaning::Byte(byte) => {
                    piece.push(byte);
                    self.place = Place::Text(number, Escape::default());
                }
                Meaning::Part(escape, _) => self.place = Place::Text(number, escape),
                Meaning::End => {
                    self.place = Finder::behind_text();
                    self.parser = None;
                    piece.clear();
                }
                Meaning::Nothing => anyhow::bail!("a byte that no text may have"),
            }
        }
        let Some(parser) = self.parser.as_mut().filter(|_| !piece.is_empty()) else { return Ok(0) };
        let before = parser.stats().all_items;
        anyhow::ensure!(parser.apply_token(&piece, PIECE)? == 0, "unexpected backtracking");
        Ok(parser.stats().all_items.saturating_sub(before))
    }
}

/// Returns the bytes of a token, for a special token those of its name.
fn spelled(trie: &TokTrie, id: u32) -> &[u8] {
    let bytes = trie.token(id);
    bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes)
}

/// Returns the tokens, or those of `rests` by the bytes that follow the text's beginning, that may come at `place`.
fn fitting(
    parser: &mut Parser,
    trie: &TokTrie,
    finder: &Finder,
    place: Place,
    rests: Option<&[(u32, &[u8])]>,
) -> anyhow::Result<SimpleVob> {
    let search = Search { trie, finder, place, rests, found: Mutex::new(trie.alloc_token_set()) };
    // The parser remembers what it found at its place; within an escape, its place is the same.
    parser.invalidate_bias_cache();
    parser.compute_bias(&search, &[]);
    parser.invalidate_bias_cache();
    if let Some(error) = parser.get_error() {
        return Err(anyhow!("{}", error.message()));
    }
    search.found.into_inner().map_err(|_| anyhow!("panic: a search of tokens failed"))
}

/// Finds the tokens that a text takes, within the parser's limits.
struct Search<'a> {
    trie: &'a TokTrie,
    finder: &'a Finder,
    place: Place,
    rests: Option<&'a [(u32, &'a [u8])]>,
    found: Mutex<SimpleVob>,
}

impl BiasComputer for Search<'_> {
    fn compute_bias(&self, parser: &mut ParserRecognizer<'_>, _start: &[u8]) -> SimpleVob {
        let mut found = self.trie.alloc_token_set();
        let mut walk = Walk { parser, finder: self.finder, place: self.place, trail: Vec::new() };
        match self.rests {
            None => self.trie.add_bias(&mut walk, &mut found, &[]),
            Some(rests) => {
                walk.trie_started("texts");
                for (id, bytes) in rests {
                    let taken = bytes.iter().take_while(|byte| walk.try_push_byte(**byte)).count();
                    if taken == bytes.len() {
                        found.allow_token(*id);
                    }
                    walk.pop_bytes(taken);
                }
                walk.trie_finished();
            }
        }
        // llguidance adds the ends of the parser's own grammar to what is returned.
        if let Ok(mut place) = self.found.lock() {
            *place = found;
        }
        self.trie.alloc_token_set()
    }

    fn trie(&self) -> &TokTrie {
        self.trie
    }
}

/// A walk along the bytes of tokens.
struct Walk<'a, 'p> {
    parser: &'a mut ParserRecognizer<'p>,
    finder: &'a Finder,
    place: Place,
    /// The places before each byte, and whether the parser took one for it.
    trail: Vec<(Place, bool)>,
}

impl Walk<'_, '_> {
    /// Returns the place behind `byte`, and whether the parser took one for it; `None` if it may not come.
    fn step(&mut self, byte: u8) -> Option<(Place, bool)> {
        let Place::Text(number, escape) = self.place else {
            let place = self.finder.after(self.place, byte);
            // No token holds the end of one text and the beginning of another.
            return (!matches!(place, Place::Text(..))).then_some((place, false));
        };
        match escape.read(byte) {
            Meaning::Byte(byte) => {
                self.parser.try_push_byte(byte).then_some((Place::Text(number, Escape::default()), true))
            }
            Meaning::Part(escape, possible) => {
                let can = possible.into_iter().any(|byte| {
                    let can = self.parser.try_push_byte(byte);
                    if can {
                        self.parser.pop_bytes(1);
                    }
                    can
                });
                can.then_some((Place::Text(number, escape), false))
            }
            Meaning::End => {
                self.parser.try_push_byte(TokTrie::SPECIAL_TOKEN_MARKER).then_some((Finder::behind_text(), true))
            }
            Meaning::Nothing => None,
        }
    }
}

impl Recognizer for Walk<'_, '_> {
    fn pop_bytes(&mut self, count: usize) {
        let kept = self.trail.len() - count;
        let taken = self.trail[kept..].iter().filter(|(_, taken)| *taken).count();
        if let Some((place, _)) = self.trail.get(kept) {
            self.place = *place;
        }
        self.trail.truncate(kept);
        self.parser.pop_bytes(taken);
    }

    fn collapse(&mut self) {}

    fn trie_started(&mut self, label: &str) {
        self.parser.trie_started(label);
    }

    fn trie_finished(&mut self) {
        self.parser.trie_finished();
    }

    fn try_push_byte(&mut self, byte: u8) -> bool {
        let Some((place, taken)) = self.step(byte) else { return false };
        self.trail.push((self.place, taken));
        self.place = place;
        true
    }
}
