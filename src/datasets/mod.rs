//! Training files: JSONL read line by line and checked ([`parse`]), then rendered to tokens with a weight for each one as a
//! target ([`render`]) and kept in a file ([`store`]); [`preference`] checks pairs of answers, [`classes`] reads a file as a task of sorting.
//!
//! `jobs/worker/training.rs` calls [`read`] or [`read_preferences`] for the training and the validation file. A file with
//! faults gives one error that names the lines and says what to change.

pub mod classes;
pub mod parse;
pub mod preference;
pub mod render;
pub mod store;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::BufRead;

use crate::{Error, Result};
use parse::{Faults, Format, Lines};
pub use render::{RenderSettings, TextCodec};
pub use store::ExampleStore;
use store::ExampleWriter;

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

    /// Cuts it to `max_tokens`; true where that takes something away.
    fn truncate(&mut self, max_tokens: usize) -> bool {
        let longer = self.tokens.len() > max_tokens;
        self.tokens.truncate(max_tokens);
        self.weights.truncate(max_tokens);
        longer
    }
}

/// Lines that something is to be said about: all of them counted, the first ones by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotedLines {
    /// How many there are.
    pub count: usize,
    /// The first of them, counted from 1.
    pub first: Vec<usize>,
}

impl NotedLines {
    /// Line numbers that are kept.
    const LISTED: usize = 20;

    /// Notes line `number`; lines come in their order, and one that is noted again is still one.
    fn note(&mut self, number: usize, latest: &mut usize) {
        if *latest != number {
            *latest = number;
            self.count += 1;
            if self.first.len() < Self::LISTED {
                self.first.push(number);
            }
        }
    }
}

impl std::fmt::Display for NotedLines {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<_> = self.first.iter().map(ToString::to_string).collect();
        let more = self.count - self.first.len().min(self.count);
        match numbers.as_slice() {
            [] => Ok(()),
            [one] => write!(formatter, "line {one}"),
            all if more > 0 => write!(formatter, "lines {} and {more} more", all.join(", ")),
            [all @ .., last] => write!(formatter, "lines {} and {last}", all.join(", ")),
        }
    }
}

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatasetReport {
    /// Examples in the file.
    pub examples: usize,
    /// What they are trained on as: a chat may be several sequences, or none; two answers to a prompt count as one.
    pub sequences: usize,
    /// Tokens that one epoch reads.
    pub tokens: usize,
    /// Tokens that one epoch trains on.
    pub target_tokens: usize,
    /// Tokens of the longest example, or pair of answers, after it was cut.
    pub longest: usize,
    /// Examples cut at the end to fit the model's context.
    pub truncated: NotedLines,
    /// Examples left out, all or in part, since no target fits the context.
    pub dropped: NotedLines,
    /// Examples that repeat an earlier one.
    pub duplicates: NotedLines,
}

/// A whole file as tokens. A chat that cannot be one sequence (see [`render`]) is several examples.
#[derive(Debug)]
pub struct Dataset {
    /// The sequences, in the order of the file; those of a preference next to each other.
    pub examples: ExampleStore,
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
    read_lines(reader, purpose, settings, |line, check_only, format| {
        let example = parse::example(line)?;
        format(example.format())?;
        if check_only {
            return Ok(Rendered::Nothing);
        }
        Ok(Rendered::Sequences(render::render(&example, codec, settings).map_err(Fault::from)?))
    })
}

/// Reads a JSONL file of preferences: each line becomes two sequences next to each other, the preferred answer and the
/// other one, with the same prompt. Counts and faults are as those of [`read`].
pub fn read_preferences(
    reader: impl BufRead,
    purpose: Purpose,
    codec: &impl TextCodec,
    settings: &RenderSettings,
) -> Result<Dataset> {
    read_lines(reader, purpose, settings, |line, check_only, format| {
        let pair = preference::preference(line)?;
        format(pair.format())?;
        if check_only {
            return Ok(Rendered::Nothing);
        }
        let alone = |example| {
            let mut sequences = render::render(example, codec, settings).map_err(Fault::from)?;
            let one = || Error::Internal("an answer that is trained on is one sequence".into());
            Ok::<_, Fault>(sequences.pop().ok_or_else(one)?)
        };
        Ok(Rendered::Pair([alone(&pair.chosen)?, alone(&pair.rejected)?]))
    })
}

/// What a line is trained on as.
enum Rendered {
    /// It was only checked.
    Nothing,
    /// Each by itself.
    Sequences(Vec<TokenizedExample>),
    /// The preferred answer and the other one.
    Pair([TokenizedExample; 2]),
}

/// Why a line is not rendered.
enum Fault {
    /// The line's own fault.
    Line(String),
    /// Something else, which ends the reading.
    Other(Error),
}

impl From<String> for Fault {
    fn from(fault: String) -> Self {
        Self::Line(fault)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid { message, .. } => Self::Line(message),
            error => Self::Other(error),
        }
    }
}

/// Notes the format of a line, which must be that of all others.
type NoteFormat<'a> = &'a mut dyn FnMut(Format) -> Result<(), String>;

fn read_lines(
    reader: impl BufRead,
    purpose: Purpose,
    settings: &RenderSettings,
    render: impl Fn(&str, bool, NoteFormat<'_>) -> Result<Rendered, Fault>,
) -> Result<Dataset> {
    let mut lines = Lines::new(reader);
    let mut faults = Faults::default();
    let mut first_format = None;
    let mut builder = Builder::new(settings)?;
    while let Some((number, line)) = lines.next_line()? {
        builder.report.examples += 1;
        builder.line = number;
        let mut note_format = |format: Format| {
            let (first_line, first) = *first_format.get_or_insert((number, format));
            if format == first {
                return Ok(());
            }
            Err(format!("is {format}, but line {first_line} is {first}: use one format"))
        };
        let check_only = !faults.is_empty();
        match line.map_err(Fault::from).and_then(|line| render(line, check_only, &mut note_format)) {
            Ok(Rendered::Nothing) => {}
            Ok(Rendered::Sequences(sequences)) => {
                sequences.into_iter().try_for_each(|sequence| builder.add([sequence]))?;
            }
            Ok(Rendered::Pair(pair)) => builder.add(pair)?,
            Err(Fault::Line(fault)) => faults.push(number, fault),
            Err(Fault::Other(error)) => return Err(error),
        }
    }
    if !faults.is_empty() {
        return Err(Error::invalid_code(purpose.param(), "invalid_training_file", faults.describe(purpose.title())));
    }
    let dataset = builder.finish()?;
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
struct Builder {
    examples: ExampleWriter,
    report: DatasetReport,
    max_tokens: usize,
    /// Number of the line that sequences come from.
    line: usize,
    /// The lines that were noted last: truncated, dropped, repeated.
    noted: [usize; 3],
    /// Hashes of the sequences so far. A collision would only miscount a duplicate.
    seen: HashSet<u64>,
}

impl Builder {
    fn new(settings: &RenderSettings) -> Result<Self> {
        let max_tokens = settings.max_tokens;
        let examples = ExampleWriter::new(&settings.scratch)?;
        let (report, noted, seen) = (DatasetReport::default(), [0; 3], HashSet::new());
        Ok(Self { examples, report, max_tokens, line: 0, noted, seen })
    }

    /// Adds what is trained on together, or leaves it out together. Two answers that are the same as far as they fit teach
    /// nothing.
    fn add<const N: usize>(&mut self, mut sequences: [TokenizedExample; N]) -> Result<()> {
        let Self { report, line, noted: [truncated, dropped, repeated], .. } = self;
        if sequences.each_mut().map(|sequence| sequence.truncate(self.max_tokens)).contains(&true) {
            report.truncated.note(*line, truncated);
        }
        let same = sequences.windows(2).any(|pair| pair[0] == pair[1]);
        if same || sequences.iter().any(|sequence| sequence.targets() == 0) {
            report.dropped.note(*line, dropped);
            return Ok(());
        }
        let mut hasher = DefaultHasher::new();
        for sequence in &sequences {
            sequence.tokens.hash(&mut hasher);
            for weight in &sequence.weights {
                hasher.write_u32(weight.to_bits());
            }
        }
        if !self.seen.insert(hasher.finish()) {
            report.duplicates.note(*line, repeated);
        }
        report.sequences += 1;
        report.longest = report.longest.max(sequences.iter().map(|sequence| sequence.tokens.len()).sum());
        for sequence in sequences {
            report.tokens += sequence.tokens.len();
            report.target_tokens += sequence.targets();
            self.examples.push(&sequence)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Dataset> {
        Ok(Dataset { examples: self.examples.finish()?, report: self.report })
    }
}

#[cfg(test)]
mod tests {
    use super::NotedLines;

    #[test]
    fn lines_are_listed_up_to_a_limit_and_counted_beyond_it() {
        let noted = |lines: &[usize]| {
            let (mut noted, mut latest) = (NotedLines::default(), 0);
            for line in lines {
                noted.note(*line, &mut latest);
            }
            noted
        };
        assert_eq!(noted(&[4]).to_string(), "line 4");
        assert_eq!(noted(&[4, 4, 9]).to_string(), "lines 4 and 9");
        assert_eq!(noted(&[4, 9, 12]).to_string(), "lines 4, 9 and 12");
        let many = noted(&(1..=37).collect::<Vec<_>>());
        assert_eq!((many.count, many.first.len()), (37, 20));
        assert!(many.to_string().ends_with(", 19, 20 and 17 more"), "{many}");
    }
}
