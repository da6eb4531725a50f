//! Training files: JSONL read line by line and checked ([`parse`]), then rendered to tokens with a weight for each one as a
//! target ([`render`]); [`classes`] reads them as a task of sorting.
//!
//! `jobs/worker/training.rs` calls [`read`] for the training and the validation file. A
//! file with faults gives one error that names the lines and says what to change.

pub mod classes;
pub mod parse;
pub mod render;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::BufRead;

use crate::{Error, Result};
use parse::{Faults, Lines};
pub use render::{RenderSettings, TextCodec};

/// Examples that a training file must have at least; the number and the message are `OpenAI`'s.
pub const MIN_EXAMPLES: usize = 10;

/// Tokens of one example, and how much each counts as a target.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizedExample {
    /// Token ids, prompt and answers.
    pub tokens: Vec<u32>,
    /// Weight of token `i` as a target, predicted from the tokens before it; the first token is never one.
    pub weights: Vec<f32>,
}

impl TokenizedExample {
    /// Tokens that count as targets.
    pub fn targets(&self) -> usize {
        self.weights.iter().skip(1).filter(|weight| **weight > 0.0).count()
    }
}

/// What a file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatasetReport {
    /// Examples in the file.
    pub examples: usize,
    /// Tokens that one epoch reads.
    pub tokens: usize,
    /// Tokens that one epoch trains on.
    pub target_tokens: usize,
    /// Tokens of the longest example, after it was cut.
    pub longest: usize,
    /// Examples cut at the end to fit the model's context.
    pub truncated: usize,
    /// Sequences left out since no target fits the context.
    pub dropped: usize,
    /// Sequences that repeat an earlier one.
    pub duplicates: usize,
}

/// A whole file as tokens. A chat that cannot be one sequence (see [`render`]) is several examples.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    /// The sequences, in the order of the file.
    pub examples: Vec<TokenizedExample>,
    /// Counts for people.
    pub report: DatasetReport,
}

/// What the file is for: it decides how many examples it must have and which field of the request is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The file to train on.
    Training,
    /// The file to measure on.
    Validation,
}

impl Purpose {
    const fn param(self) -> &'static str {
        match self {
            Self::Training => "training_file",
            Self::Validation => "validation_file",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Training => "Training file",
            Self::Validation => "Validation file",
        }
    }

    const fn minimum(self) -> usize {
        match self {
            Self::Training => MIN_EXAMPLES,
            Self::Validation => 1,
        }
    }
}

/// Reads a JSONL file and renders it, one line in memory at a time.
///
/// After the first fault the remaining lines are only checked, so that the error names every line without the cost of
/// rendering a file that is refused anyway.
pub fn read(
    reader: impl BufRead,
    purpose: Purpose,
    codec: &impl TextCodec,
    settings: &RenderSettings,
) -> Result<Dataset> {
    let mut lines = Lines::new(reader);
    let mut faults = Faults::default();
    let mut format = None;
    let mut builder = Builder::default();
    while let Some((number, line)) = lines.next_line()? {
        builder.dataset.report.examples += 1;
        let example = match line.and_then(parse::example) {
            Ok(example) => example,
            Err(fault) => {
                faults.push(number, fault);
                continue;
            }
        };
        let (first_line, first_format) = *format.get_or_insert((number, example.format()));
        if example.format() != first_format {
            faults.push(
                number,
                format!("is {}, but line {first_line} is {first_format}: use one format", example.format()),
            );
        }
        if !faults.is_empty() {
            continue;
        }
        match render::render(&example, codec, settings) {
            Ok(sequences) => sequences.into_iter().for_each(|sequence| builder.add(sequence, settings.max_tokens)),
            Err(Error::Invalid { message, .. }) => faults.push(number, message),
            Err(error) => return Err(error),
        }
    }
    if !faults.is_empty() {
        return Err(Error::invalid_code(purpose.param(), "invalid_training_file", faults.describe(purpose.title())));
    }
    let dataset = builder.dataset;
    let (found, minimum) = (dataset.report.examples, purpose.minimum());
    if found < minimum {
        let message = format!("{} has {found} example(s), but must have at least {minimum} examples", purpose.title());
        return Err(Error::invalid_code(purpose.param(), "invalid_n_examples", message));
    }
    if dataset.examples.is_empty() {
        let message = format!(
            "{}: in every example the prompt alone fills the model's {} tokens; shorten the prompts",
            purpose.title(),
            settings.max_tokens
        );
        return Err(Error::invalid_code(purpose.param(), "invalid_training_file", message));
    }
    Ok(dataset)
}

/// Collects sequences and counts them.
#[derive(Default)]
struct Builder {
    dataset: Dataset,
    /// Hashes of the sequences so far. A collision would only miscount a duplicate.
    seen: HashSet<u64>,
}

impl Builder {
    fn add(&mut self, mut sequence: TokenizedExample, max_tokens: usize) {
        let report = &mut self.dataset.report;
        if sequence.tokens.len() > max_tokens {
            sequence.tokens.truncate(max_tokens);
            sequence.weights.truncate(max_tokens);
            report.truncated += 1;
        }
        let targets = sequence.targets();
        if targets == 0 {
            report.dropped += 1;
            return;
        }
        let mut hasher = DefaultHasher::new();
        sequence.tokens.hash(&mut hasher);
        for weight in &sequence.weights {
            hasher.write_u32(weight.to_bits());
        }
        report.duplicates += usize::from(!self.seen.insert(hasher.finish()));
        report.tokens += sequence.tokens.len();
        report.target_tokens += targets;
        report.longest = report.longest.max(sequence.tokens.len());
        self.dataset.examples.push(sequence);
    }
}
