//! Turns drawn tokens into text: never half a character, never a stop text, at a cost per token that does not grow.
//! Called by `request.rs`, on the engine thread, for every drawn token.
//!
//! `tokenizers::DecodeStream` is not used: it shows nothing while the text ends in a replacement character, so broken
//! bytes at the end of an answer are lost and its window of tokens grows with them; and it fails if a decoder rewrites
//! a character that was shown.

use super::stops::{StopFilter, StopTexts, TextPiece};
use crate::Result;
use attune_model::tokenizer::Tokenizer;

/// Prompt tokens that are decoded before the first piece, so that it keeps its leading blank.
const CONTEXT_TOKENS: usize = 8;
/// Tokens that remain when the window is cut without a clean boundary: those of all unsettled characters (a replacement
/// character stands for at most 3 bytes, a token has at least one) and of the whole character before them.
const KEPT_TOKENS: usize = 3 * UNSETTLED_CHARACTERS + 4;
/// Tokens in the window after which it is cut in any case (for a model that writes only broken bytes).
const WINDOW_TOKENS: usize = 64;
/// Replacement characters at the end that may still change. Decoders with byte fallback write one per byte, and rewrite
/// the finished character before (4 bytes) together with the unfinished one (3 bytes).
const UNSETTLED_CHARACTERS: usize = 7;

/// Text of one answer.
#[derive(Debug)]
pub struct TextStream {
    detokenizer: Detokenizer,
    stops: StopFilter,
}

impl TextStream {
    /// Begins the answer to `prompt`, which the first complete stop text of `stops` ends.
    pub fn new(tokenizer: &Tokenizer, prompt: &[u32], stops: &StopTexts) -> Result<Self> {
        Ok(Self { detokenizer: Detokenizer::after(tokenizer, prompt)?, stops: StopFilter::new(stops) })
    }

    /// Adds a token and returns the text that may now be shown.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<TextPiece> {
        let text = self.detokenizer.push(tokenizer, id)?;
        Ok(self.stops.push(&text))
    }

    /// Adds a special token whose name is part of the text. No text continues across it, so held-back text comes first.
    pub fn push_special(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<TextPiece> {
        let mut piece = self.finish(tokenizer)?;
        if !piece.stopped {
            piece.text.push_str(&tokenizer.decode(&[id], false)?);
        }
        Ok(piece)
    }

    /// Ends the answer and returns the held-back text, including an unfinished character.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<TextPiece> {
        let text = self.detokenizer.finish(tokenizer)?;
        let mut piece = self.stops.push(&text);
        if !piece.stopped {
            piece.text.push_str(&self.stops.take());
        }
        Ok(piece)
    }
}

/// Decodes a window over the last tokens: those since the last clean boundary, and those before it as context, because
/// decoders treat the first token of a text differently. Text beyond the shown bytes is new.
#[derive(Debug)]
struct Detokenizer {
    window: Vec<u32>,
    /// Number of tokens at the front of `window` that are context: all their text is shown.
    context: usize,
    /// Number of bytes of the window's text that are shown.
    shown: usize,
}

impl Detokenizer {
    fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Result<Self> {
        let mut window: Vec<u32> =
            prompt.iter().rev().copied().filter(|id| tokenizer.is_visible(*id)).take(CONTEXT_TOKENS).collect();
        window.reverse();
        // A prompt of token ids may end inside a character: the answer that completes it then shows it.
        let shown = settled_bytes(&tokenizer.decode(&window, true)?);
        Ok(Self { context: window.len(), window, shown })
    }

    fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        if !tokenizer.is_visible(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = tokenizer.decode(&self.window, true)?;
        let settled = settled_bytes(&text);
        let delta = text_between(&text, self.shown, settled);
        if settled > self.shown {
            self.shown = settled;
        }
        if settled == text.len() && !delta.is_empty() {
            self.window.drain(..self.context);
            self.context = self.window.len();
            self.shown = tokenizer.decode(&self.window, true)?.len();
        } else if self.window.len() > WINDOW_TOKENS {
            self.window.drain(..self.window.len() - KEPT_TOKENS);
            self.context = 0;
            self.shown = settled_bytes(&tokenizer.decode(&self.window, true)?);
        }
        Ok(delta)
    }

    fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.window, true)?;
        let delta = text_between(&text, self.shown, text.len());
        self.shown = text.len();
        Ok(delta)
    }
}

/// Returns the number of bytes before the replacement characters at the end, which later tokens may still complete.
fn settled_bytes(text: &str) -> usize {
    let open = text.chars().rev().take(UNSETTLED_CHARACTERS).take_while(|c| *c == char::REPLACEMENT_CHARACTER).count();
    text.len() - open * char::REPLACEMENT_CHARACTER.len_utf8()
}

/// Returns `text[from..to]`; if a decoder rewrote the shown text, begins at the next character.
fn text_between(text: &str, from: usize, to: usize) -> String {
    let from = (from..=text.len()).find(|index| text.is_char_boundary(*index)).unwrap_or(text.len());
    text.get(from..to).unwrap_or_default().to_owned()
}
