//! Training files: JSONL read line by line ([`lines`], [`json`]) and checked ([`parse`]), then rendered to tokens with
//! a weight for each one as a target ([`render`], each answer of a chat in [`turn`]) and kept in a file ([`store`]);
//! [`preference`] checks pairs of answers, [`pairs`] texts that are compared, [`classes`] reads a file as a task of
//! sorting.
//!
//! `jobs/worker/training.rs` calls [`read`] or [`read_preferences`] for the training and the validation file. A file
//! with faults gives one error that names the lines and says what to change ([`faults`]); `file_kinds` and
//! `foreign_keys` recognise what other programs write, [`spelling`] what was misspelt. The page of a new fine-tune calls
//! [`examine`], and shows the [`first_examples`] as they are learned.

mod builder;
pub mod classes;
mod codec;
pub mod faults;
mod file_kinds;
mod foreign_keys;
pub mod json;
pub mod lines;
pub mod pairs;
pub mod parse;
pub mod preference;
pub mod render;
mod report;
mod shown;
pub mod spelling;
pub mod store;
mod turn;
mod turn_text;
mod words;

use std::io::BufRead;

use attune_model::tokenizer::PairTokens;

pub use crate::purpose::Purpose;
use crate::{Error, FileFault, Result};
use builder::Builder;
pub use builder::Digests;
pub use codec::{TextCodec, TextPrompts, TextTokens};
use faults::Faults;
use lines::Lines;
use pairs::{Goal, TextLine, is_of_texts};
use parse::Format;
pub use render::RenderSettings;
use render::RenderedExample;
pub use report::{DatasetReport, NotedLines};
pub use shown::{ShownExample, ShownPiece, first_examples};
pub use store::ExampleStore;

/// Examples that a training file must have at least; the number and the message are `OpenAI`'s.
pub const MIN_EXAMPLES: usize = 10;
/// Pairs of texts that a validation file must have at least: a single pair has nothing to be compared with.
const MIN_VALIDATION_PAIRS: usize = 2;

/// Tokens of one sequence, with the weight of each as a target.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizedExample {
    /// Token ids, prompt and answers.
    pub tokens: Vec<u32>,
    /// Weight of token `i` as a target, predicted from the tokens before it; that of the first token is 0.
    pub weights: Vec<f32>,
}

impl TokenizedExample {
    /// Counts the tokens that are targets.
    pub fn targets(&self) -> usize {
        self.weights.iter().skip(1).filter(|weight| **weight > 0.0).count()
    }

    /// Cuts the sequence to `max_tokens`; returns true if that removed tokens.
    fn truncate(&mut self, max_tokens: usize) -> bool {
        let longer = self.tokens.len() > max_tokens;
        self.tokens.truncate(max_tokens);
        self.weights.truncate(max_tokens);
        longer
    }
}

/// A whole file as tokens. A chat that cannot be one sequence (see [`render`]) is several examples.
#[derive(Debug)]
pub struct Dataset {
    /// Sequences in the order of the file; the two of a preference are next to each other.
    pub examples: ExampleStore,
    /// Counts for the job's events.
    pub report: DatasetReport,
    /// Hashes of the examples, to find those that another file has, too.
    pub digests: Digests,
}

/// Returns the number of examples that a file must have at least; `pairs` is true for texts that are compared with each
/// other.
const fn minimum(purpose: Purpose, pairs: bool) -> usize {
    match purpose {
        Purpose::Training => MIN_EXAMPLES,
        Purpose::Validation if pairs => MIN_VALIDATION_PAIRS,
        Purpose::Validation => 1,
    }
}

/// Reads a JSONL file and renders it, one line in memory at a time. An error names every line with a fault, also those
/// that cannot be rendered.
pub fn read(
    reader: impl BufRead,
    purpose: Purpose,
    codec: &impl TextCodec,
    settings: &RenderSettings,
) -> Result<Dataset> {
    read_lines(reader, purpose, codec, settings, render_line)?.into_dataset(purpose)
}

fn render_line(
    line: &str,
    format: NoteFormat<'_>,
    codec: &impl TextCodec,
    settings: &RenderSettings,
) -> Result<Rendered, Fault> {
    let object = json::object(line)?;
    if is_of_texts(&object) {
        let line = TextLine::read(object)?;
        format(line.goal.format())?;
        return render_texts(&line, codec, settings);
    }
    let example = parse::example_of(object)?;
    format(example.format())?;
    Ok(Rendered::Example(render::render(&example, codec, settings)?))
}

fn render_texts(line: &TextLine, codec: &impl TextCodec, settings: &RenderSettings) -> Result<Rendered, Fault> {
    let RenderSettings { max_tokens, prompts, .. } = settings;
    if let (Goal::Label(label), [first, second, ..]) = (line.goal, line.texts.as_slice()) {
        let PairTokens { ids, second, length } = codec.encode_pair(first, second, *max_tokens)?;
        let cut = length > ids.len();
        return Ok(Rendered::Joined { ids, second, label, cut });
    }
    let (mut texts, mut cut) = (Vec::with_capacity(line.texts.len()), false);
    for (index, text) in line.texts.iter().enumerate() {
        let prompt = if index == 0 { &prompts.anchor } else { &prompts.others };
        let TextTokens { ids, length } = codec.encode_text(prompt, text, *max_tokens)?;
        cut |= length > ids.len();
        texts.push(ids);
    }
    if texts.iter().any(Vec::is_empty) {
        return Err(Fault::Line("has a text without any token: give another one".into()));
    }
    Ok(Rendered::Texts { texts, score: line.goal.number(), cut })
}

/// Reads a JSONL file of preferences: each line becomes two sequences next to each other, the preferred answer and the
/// other one, with the same prompt. Counts and faults are as those of [`read`].
pub fn read_preferences(
    reader: impl BufRead,
    purpose: Purpose,
    codec: &impl TextCodec,
    settings: &RenderSettings,
) -> Result<Dataset> {
    read_lines(reader, purpose, codec, settings, render_preference)?.into_dataset(purpose)
}

fn render_preference(
    line: &str,
    format: NoteFormat<'_>,
    codec: &impl TextCodec,
    settings: &RenderSettings,
) -> Result<Rendered, Fault> {
    let pair = preference::preference(line)?;
    format(pair.format())?;
    let (chosen, rejected) =
        (render::render(&pair.chosen, codec, settings)?, render::render(&pair.rejected, codec, settings)?);
    Ok(Rendered::Pair([chosen, rejected]))
}

/// Reads a file as [`read`] does, or, if it is `of_preferences`, as [`read_preferences`] does, for people who look at it:
/// faults come with their lines.
pub fn examine(
    reader: impl BufRead,
    purpose: Purpose,
    of_preferences: bool,
    codec: &impl TextCodec,
    settings: &RenderSettings,
) -> Result<Examined> {
    if of_preferences {
        read_lines(reader, purpose, codec, settings, render_preference)
    } else {
        read_lines(reader, purpose, codec, settings, render_line)
    }
}

/// What was found in a file.
#[derive(Debug)]
pub enum Examined {
    /// Examples, and no fault.
    Fine(Box<Dataset>),
    /// Lines with faults.
    Faulty(Faults),
}

impl Examined {
    fn into_dataset(self, purpose: Purpose) -> Result<Dataset> {
        match self {
            Self::Fine(dataset) => Ok(*dataset),
            Self::Faulty(faults) => {
                let message = faults.describe(purpose.title());
                Err(Error::File { purpose, fault: FileFault::Content, message })
            }
        }
    }
}

/// Units of training on one line.
enum Rendered {
    /// Independent sequences.
    Example(RenderedExample),
    /// The preferred answer and the other one, one sequence each.
    Pair([RenderedExample; 2]),
    /// Texts that are compared, with the cosine that the two shall have, if the line has one.
    Texts { texts: Vec<Vec<u32>>, score: Option<f32>, cut: bool },
    /// Two texts as one sequence, the second of which begins at `second`.
    Joined { ids: Vec<u32>, second: Option<usize>, label: f32, cut: bool },
}

impl Rendered {
    fn add_to(self, builder: &mut Builder) -> Result<()> {
        match self {
            Self::Example(example) => {
                builder.note_answers(&example);
                example.sequences.into_iter().try_for_each(|sequence| builder.add([sequence]))
            }
            Self::Pair(pair) => {
                for answer in &pair {
                    builder.note_answers(answer);
                }
                let one = || Error::Internal("an answer that is trained on is one sequence".into());
                let [chosen, rejected] = pair.map(|mut answer| answer.sequences.pop().ok_or_else(one));
                builder.add([chosen?, rejected?])
            }
            Self::Texts { texts, score: None, cut } => builder.add_texts(texts, cut),
            Self::Texts { texts, score: Some(score), cut } => builder.add_scored(&texts, score, cut),
            Self::Joined { ids, second, label, cut } => builder.add_joined(&ids, second, label, cut),
        }
    }
}

/// Reasons why a line is not rendered.
enum Fault {
    /// Fault of the line itself.
    Line(String),
    /// Any other error, which ends the reading.
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
            Error::Model(error @ (attune_model::Error::Template(_) | attune_model::Error::NotEncodable(_))) => {
                Self::Line(error.to_string())
            }
            error => Self::Other(error),
        }
    }
}

impl From<attune_model::Error> for Fault {
    fn from(error: attune_model::Error) -> Self {
        Error::Model(error).into()
    }
}

/// Callback that notes the format of a line and fails if other lines have another one.
type NoteFormat<'a> = &'a mut dyn FnMut(Format) -> Result<(), String>;

fn read_lines<C: TextCodec>(
    reader: impl BufRead,
    purpose: Purpose,
    codec: &C,
    settings: &RenderSettings,
    render: impl Fn(&str, NoteFormat<'_>, &C, &RenderSettings) -> Result<Rendered, Fault>,
) -> Result<Examined> {
    let mut lines = Lines::new(reader);
    let mut faults = Faults::default();
    let mut first_format = None;
    let mut unlearnable = None;
    let mut builder = Builder::new(settings)?;
    builder.leave_unpooled([codec.unpooled(&settings.prompts.anchor)?, codec.unpooled(&settings.prompts.others)?]);
    while let Some((number, line)) = lines.next_line()? {
        builder.begin_line(number);
        let mut note_format = |format: Format| {
            let Some((first_line, first)) = first_format else {
                unlearnable = codec.check_learnable(format).err();
                first_format = Some((number, format));
                return Ok(());
            };
            if format == first {
                return Ok(());
            }
            Err(format!("is {format}, but line {first_line} is {first}: use one format"))
        };
        match line.map_err(Fault::from).and_then(|line| render(line, &mut note_format, codec, settings)) {
            // A file with a fault is refused: of the other lines only the faults matter.
            Ok(_) if !faults.is_empty() => {}
            Ok(rendered) => rendered.add_to(&mut builder)?,
            Err(Fault::Line(fault)) => faults.push_shown(number, &fault, Some(lines.shown())),
            Err(Fault::Other(error)) => return Err(error),
        }
        builder.end_line();
        if let Some(why) = unlearnable {
            let message = format!("{}: each of its lines {why}", purpose.title());
            return Err(Error::File { purpose, fault: FileFault::Content, message });
        }
    }
    if !faults.is_empty() {
        return Ok(Examined::Faulty(faults));
    }
    builder.report.format = first_format.map(|(_, format)| format);
    let dataset = builder.finish()?;
    check_size(&dataset, purpose, settings.max_tokens)?;
    Ok(Examined::Fine(Box::new(dataset)))
}

/// Refuses a file with too few examples, or with nothing that can be learned in `max_tokens`.
fn check_size(dataset: &Dataset, purpose: Purpose, max_tokens: usize) -> Result<()> {
    let pairs = dataset.report.format.is_some_and(Format::is_of_vectors);
    let compared = dataset.report.format == Some(Format::Pair);
    let (found, minimum) = (dataset.report.examples, minimum(purpose, compared));
    if found < minimum {
        let message = format!("{} has {found} example(s), but must have at least {minimum} examples", purpose.title());
        return Err(Error::File { purpose, fault: FileFault::TooFewExamples, message });
    }
    if dataset.examples.is_empty() {
        let (title, limit) = (purpose.title(), max_tokens);
        let message = if pairs {
            format!(
                "{title}: the two texts of every pair are the same in their first {limit} tokens; shorten their beginnings"
            )
        } else {
            format!("{title}: in every example the prompt alone fills the model's {limit} tokens; shorten the prompts")
        };
        return Err(Error::File { purpose, fault: FileFault::Content, message });
    }
    Ok(())
}
