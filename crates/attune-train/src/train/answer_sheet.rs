//! Lists the held-out answers that are counted as right or wrong ([`super::right_answers`]), with their classes, and
//! judges the beginning of a greedy answer.

use std::ops::Range;

use crate::Result;
use crate::datasets::{ExampleStore, TokenizedExample};
use crate::train::records::RightAnswers;
use attune_model::BaseModel;

/// Fewest sequences that are counted, if the file has as many.
const MIN_SEQUENCES: usize = 100;
/// Counting before the first step reads at most one token per this many trained ones, beyond [`MIN_SEQUENCES`]: about a
/// tenth of a job's time.
const TRAINED_PER_COUNTED: usize = 5;
/// Most different answers that are counted each for itself, and most tokens of one.
const MAX_CLASSES: usize = 20;
const MAX_CLASS_TOKENS: usize = 16;
/// Held-out answers that are counted, the same ones each time.
#[derive(Debug)]
pub struct AnswerSheet {
    pub(super) answers: Vec<SheetAnswer>,
    classes: Vec<String>,
    /// Number of sequences, from the first on, whose answers are counted.
    pub(super) sequences: usize,
    /// Tokens of these sequences.
    tokens: usize,
    cut: usize,
}

/// Place of one answer.
#[derive(Debug)]
pub(super) struct SheetAnswer {
    pub(super) sequence: usize,
    /// Its tokens within the sequence, the last of which ends it.
    pub(super) tokens: Range<usize>,
    class: Option<usize>,
}

impl AnswerSheet {
    /// Notes the answers of the first sequences of `examples`: of all, or of as many as take a bounded part of a run
    /// that trains on `trained_tokens`.
    pub(super) fn new(examples: &ExampleStore, trained_tokens: usize, model: &BaseModel) -> Result<Self> {
        let (mut sequences, mut tokens) = (0, 0);
        while sequences < examples.len() {
            let needed = examples.tokens(sequences);
            if sequences >= MIN_SEQUENCES && tokens + needed > trained_tokens / TRAINED_PER_COUNTED {
                break;
            }
            sequences += 1;
            tokens += needed;
        }
        let (mut answers, mut cut, mut classes) = (Vec::new(), 0, Some(Vec::new()));
        for sequence in 0..sequences {
            let example = examples.get(sequence)?;
            for tokens in answers_of(&example) {
                let target = &example.tokens[tokens.clone()];
                if !target.last().is_some_and(|last| model.end_tokens.contains(last)) {
                    cut += 1;
                    continue;
                }
                let class = class_of(&mut classes, target, model)?;
                answers.push(SheetAnswer { sequence, tokens, class });
            }
        }
        // A class is something that repeats.
        let classes = classes.filter(|classes| classes.len() > 1 && 2 * classes.len() <= answers.len());
        let classes = classes.unwrap_or_default();
        Ok(Self { answers, classes, sequences, tokens, cut })
    }

    /// Counts the answers.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Returns true if no answer can be counted.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Counts the examples whose answers are counted.
    pub fn examples(&self) -> usize {
        self.sequences
    }

    /// Returns the different answers, if they are few and short and repeat; else none.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Counts the answers of each class.
    pub fn class_sizes(&self) -> Vec<usize> {
        self.by_class(self.answers.iter())
    }

    /// Counts the answers that are left out because they are cut: what they should be is not known.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Counts the tokens that are read before the first step.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    fn by_class<'a>(&self, answers: impl Iterator<Item = &'a SheetAnswer>) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for class in answers.filter_map(|answer| answer.class) {
            if let Some(count) = counts.get_mut(class) {
                *count += 1;
            }
        }
        counts
    }

    /// Sums up which of the answers are right.
    pub(super) fn sum(&self, right: &[bool]) -> RightAnswers {
        let marked = self.answers.iter().zip(right).filter(|(_, right)| **right).map(|(answer, _)| answer);
        let by_class = self.by_class(marked.clone());
        RightAnswers { right: marked.count(), of: self.len(), by_class }
    }
}

/// Yields the places of the answers of a sequence: runs of targets of full weight.
fn answers_of(example: &TokenizedExample) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    let runs = example.weights.chunk_by(|a, b| (*a >= 1.0) == (*b >= 1.0)).map(move |run| {
        at += run.len();
        (run[0] >= 1.0).then(|| at - run.len()..at)
    });
    // The first token of a sequence cannot be predicted.
    runs.flatten().filter(|answer| answer.start > 0)
}

/// Returns the class of an answer, a new one if need be; `classes` becomes `None` if there are too many.
fn class_of(classes: &mut Option<Vec<String>>, target: &[u32], model: &BaseModel) -> Result<Option<usize>> {
    let Some(known) = classes else { return Ok(None) };
    let text = Expected::of(target, model)?.text;
    if let Some(class) = known.iter().position(|other| *other == text) {
        return Ok(Some(class));
    }
    if known.len() == MAX_CLASSES || target.len() > MAX_CLASS_TOKENS {
        *classes = None;
        return Ok(None);
    }
    known.push(text);
    Ok(Some(known.len() - 1))
}

/// Text of an expected answer.
pub(super) struct Expected {
    /// Text without blanks at its ends.
    text: String,
    /// Whether special tokens are part of the text: of calls of tools, for example.
    special: bool,
}

impl Expected {
    pub(super) fn of(target: &[u32], model: &BaseModel) -> Result<Self> {
        let said = &target[..target.len().saturating_sub(1)];
        let special = said.iter().any(|token| model.tokenizer.is_special(*token));
        let text = model.tokenizer.decode(said, !special)?.trim().to_owned();
        Ok(Self { text, special })
    }

    /// Judges a greedy answer that has written `written`, and then writes the tokens `drawn` where `target` are the
    /// expected ones; those behind the first that differs say nothing.
    pub(super) fn judge(
        &self,
        mut written: Vec<u32>,
        target: &[u32],
        drawn: &[u32],
        model: &BaseModel,
    ) -> Result<Verdict> {
        for (expected, token) in target.iter().zip(drawn) {
            if model.end_tokens.contains(token) {
                let text = model.tokenizer.decode(&written, !self.special)?;
                return Ok(if text.trim() == self.text { Verdict::Right } else { Verdict::Wrong });
            }
            written.push(*token);
            if token != expected {
                let rest = self.rest(&written, model)?;
                return Ok(rest.map_or(Verdict::Wrong, |rest| Verdict::Open { written, rest }));
            }
        }
        Ok(Verdict::Wrong)
    }

    /// Returns the text that is missing; `None` if the answer can no longer become the expected one.
    fn rest(&self, written: &[u32], model: &BaseModel) -> Result<Option<String>> {
        let text = model.tokenizer.decode(written, !self.special)?;
        // Characters that are not complete yet.
        let text = text.trim_start().trim_end_matches('\u{fffd}');
        let rest = self.text.strip_prefix(text);
        Ok(rest.or((text.trim_end() == self.text).then_some("")).map(str::to_owned))
    }
}

/// What is known of a greedy answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// It has written `written`, and may still become the expected one by writing `rest`.
    Open {
        written: Vec<u32>,
        rest: String,
    },
}

#[cfg(test)]
#[path = "answer_sheet_tests.rs"]
mod tests;
