//! Tells what a model thinks from what it says, as its text arrives: models that were taught to think write it between
//! `<think>` and `</think>`, before all else. Called by `writer`.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Where a model thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thinks {
    /// Nowhere: all that it writes is its answer.
    Never,
    /// Where it begins its answer with the mark.
    IfItBegins,
    /// From the beginning: the prompt ends with the mark.
    FromTheStart,
}

/// Splits one answer.
#[derive(Debug)]
pub(super) struct ThoughtSplitter {
    state: State,
    /// Text that may still become a mark, or blanks beside one.
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first character that is no blank.
    Start,
    /// Behind the first mark, before the first character that is no blank.
    ThoughtStart,
    Thought,
    /// Behind the second mark, before the first character that is no blank.
    AnswerStart,
    Answer,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Thought(String),
    Answer(String),
}

impl ThoughtSplitter {
    /// Creates a splitter before the first character.
    pub(super) fn new(thinks: Thinks) -> Self {
        let state = match thinks {
            Thinks::Never => State::Answer,
            Thinks::IfItBegins => State::Start,
            Thinks::FromTheStart => State::ThoughtStart,
        };
        Self { state, held: String::new() }
    }

    /// Takes more text, and returns what is certain now.
    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.held.push_str(text);
        loop {
            match self.state {
                State::Answer => {
                    push(&mut pieces, Piece::Answer(std::mem::take(&mut self.held)));
                    return pieces;
                }
                State::Start => {
                    let begun = self.held.trim_start();
                    if let Some(rest) = begun.strip_prefix(OPEN) {
                        (self.held, self.state) = (rest.to_owned(), State::ThoughtStart);
                    } else if OPEN.starts_with(begun) {
                        return pieces;
                    } else {
                        self.state = State::Answer;
                    }
                }
                State::ThoughtStart | State::AnswerStart => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return pieces;
                    }
                    self.state = if self.state == State::AnswerStart { State::Answer } else { State::Thought };
                }
                State::Thought => {
                    if let Some((thought, rest)) = self.held.split_once(CLOSE) {
                        push(&mut pieces, Piece::Thought(thought.trim_end().to_owned()));
                        (self.held, self.state) = (rest.to_owned(), State::AnswerStart);
                    } else {
                        let rest = self.held.split_off(certain(&self.held));
                        push(&mut pieces, Piece::Thought(std::mem::replace(&mut self.held, rest)));
                        return pieces;
                    }
                }
            }
        }
    }

    /// Ends the answer, and returns what was held back.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Start | State::Answer => push(&mut pieces, Piece::Answer(held)),
            State::Thought => push(&mut pieces, Piece::Thought(held.trim_end().to_owned())),
            State::ThoughtStart | State::AnswerStart => {}
        }
        pieces
    }

    /// True while the model thinks.
    pub(super) fn is_thinking(&self) -> bool {
        matches!(self.state, State::ThoughtStart | State::Thought)
    }
}

/// Returns the length of the part of a thought that its end cannot take back: blanks before the mark are no part of it.
fn certain(thought: &str) -> usize {
    let open = (1..CLOSE.len()).rev().find(|length| thought.ends_with(&CLOSE[..*length])).unwrap_or(0);
    thought[..thought.len() - open].trim_end().len()
}

fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    let (Piece::Thought(text) | Piece::Answer(text)) = &piece;
    if !text.is_empty() {
        pieces.push(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits a text that comes in pieces of `size` characters; returns the thought and the answer.
    fn split(thinks: Thinks, text: &str, size: usize) -> (String, String) {
        let (mut thought, mut answer) = (String::new(), String::new());
        let mut splitter = ThoughtSplitter::new(thinks);
        let characters: Vec<char> = text.chars().collect();
        let mut pieces: Vec<Piece> =
            characters.chunks(size).flat_map(|chunk| splitter.push(&chunk.iter().collect::<String>())).collect();
        pieces.extend(splitter.finish());
        for piece in pieces {
            match piece {
                Piece::Thought(text) => {
                    assert!(answer.is_empty(), "a thought comes after the answer has begun");
                    thought.push_str(&text);
                }
                Piece::Answer(text) => answer.push_str(&text),
            }
        }
        (thought, answer)
    }

    #[test]
    fn a_thought_ends_at_its_mark_however_the_text_is_cut() {
        use Thinks::{FromTheStart, IfItBegins, Never};
        for (thinks, text, thought, answer) in [
            (Never, "<think>a</think>b", "", "<think>a</think>b"),
            (IfItBegins, "<think>\na < b\n</think>\n\nc\n", "a < b", "c\n"),
            (IfItBegins, "\n<think>a</think>b", "a", "b"),
            (IfItBegins, "<thin air", "", "<thin air"),
            (IfItBegins, "a <think>b</think>", "", "a <think>b</think>"),
            (IfItBegins, "<think>\n\n</think>\n\nb", "", "b"),
            (IfItBegins, " ", "", " "),
            (FromTheStart, "\na</thinkb", "a</thinkb", ""),
            (FromTheStart, "a\n\nb\n</think>c</think>", "a\n\nb", "c</think>"),
            (FromTheStart, "ä \n", "ä", ""),
            (FromTheStart, "", "", ""),
        ] {
            for size in [1, 2, 3, 7, 100] {
                let split = split(thinks, text, size);
                assert_eq!((split.0.as_str(), split.1.as_str()), (thought, answer), "{text:?} by {size}");
            }
        }
    }

    #[test]
    fn what_is_certain_is_told_at_once() {
        let mut splitter = ThoughtSplitter::new(Thinks::FromTheStart);
        assert_eq!(splitter.push("a b <"), [Piece::Thought("a b".into())]);
        assert_eq!(splitter.push("c"), [Piece::Thought(" <c".into())]);
        assert!(splitter.is_thinking());
        assert_eq!(splitter.push("</think>d"), [Piece::Answer("d".into())]);
        assert!(!splitter.is_thinking());
    }
}
