//! Reads a training and a validation file of prompts and completions as a classification task. The classes are the
//! distinct completions of the training file; the prompts of the validation file are to be classified. Called by the
//! worker for jobs with classification metrics, after both files have been read for training.

use std::collections::HashMap;
use std::io::BufRead;

use super::codec::TextCodec;
use super::faults::on_line;
use super::lines::Lines;
use super::parse::{self, Example};
use super::render::{completion_tokens, ended, prompt_tokens};
use super::words::shorten;
use crate::datasets::Purpose;
use crate::{ClassFault, Error, FileFault, Result};

/// Most classes in a task.
pub const MAX_CLASSES: usize = 100;
/// Most validation examples that are measured.
const MAX_EXAMPLES: usize = 1_000;
/// Most completions that one measurement computes: examples times classes.
const MAX_COMPLETIONS: usize = 20_000;

/// Requirements on the classes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Number of classes; `None` accepts any.
    pub n_classes: Option<usize>,
    /// Completion that is the positive class of two.
    pub positive_class: Option<&'a str>,
}

/// Prompts and the classes to sort them into.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClassificationData {
    /// Completions that are the classes, in the order of their first occurrence in the training file.
    pub classes: Vec<String>,
    /// Index of the positive class; `None` if the job has none.
    pub positive: Option<usize>,
    /// Examples to measure.
    pub examples: Vec<ClassifiedExample>,
    /// Number of validation lines that are not measured: beyond the limit, or too long for the model.
    pub left_out: usize,
}

/// A line of the validation file.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifiedExample {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens of each class as the completion of this prompt, with the end token, as in training.
    pub completions: Vec<Vec<u32>>,
    /// Index of the true class.
    pub class: usize,
}

/// Reads both files. Prompts that exceed `max_tokens` together with the longest class are left out.
pub fn read(
    training: impl BufRead,
    validation: impl BufRead,
    codec: &impl TextCodec,
    wanted: Wanted<'_>,
    max_tokens: usize,
) -> Result<ClassificationData> {
    let classes = Classes::read(training, codec)?;
    let positive = classes.check(codec, wanted)?;
    let Classes { list, index } = classes;
    let limit = MAX_EXAMPLES.min(MAX_COMPLETIONS / list.len().max(1));
    let mut data = ClassificationData { classes: list, positive, ..ClassificationData::default() };
    let mut lines = Lines::new(validation);
    while let Some((number, line)) = lines.next_line()? {
        if data.examples.len() == limit {
            data.left_out += 1;
            continue;
        }
        let (prompt, completion) = pair(Purpose::Validation, number, line)?;
        let Some(class) = index.get(&tokens_alone(&completion, codec)?).copied() else {
            let message = format!(
                "Line {number} of the validation file has the completion {:?}, which the training file does \
                 not have: every class needs training examples.",
                shorten(&completion)
            );
            return Err(invalid_classes(ClassFault::File(Purpose::Validation), message));
        };
        let example = classified(&prompt, class, &data.classes, codec)?;
        let longest = example.completions.iter().map(Vec::len).max().unwrap_or_default();
        if example.prompt.is_empty() || example.prompt.len() + longest > max_tokens {
            data.left_out += 1;
        } else {
            data.examples.push(example);
        }
    }
    if data.examples.is_empty() {
        let message = "No prompt of the validation file fits the model with every class: shorten them.".into();
        return Err(invalid_classes(ClassFault::File(Purpose::Validation), message));
    }
    Ok(data)
}

/// Tokenizes a prompt, and each class as its completion.
fn classified(prompt: &str, class: usize, classes: &[String], codec: &impl TextCodec) -> Result<ClassifiedExample> {
    let tokens = prompt_tokens(prompt, codec)?;
    let completion = |text: &String| completion_tokens(prompt, &tokens, text, codec);
    let completions = classes.iter().map(completion).collect::<Result<_>>()?;
    Ok(ClassifiedExample { prompt: tokens, completions, class })
}

/// Tokenizes a completion without its prompt, to compare it with others.
fn tokens_alone(completion: &str, codec: &impl TextCodec) -> Result<Vec<u32>> {
    Ok(ended(codec.encode(completion, false)?, codec))
}

/// Distinct completions; completions with equal tokens are one class.
#[derive(Default)]
struct Classes {
    list: Vec<String>,
    /// Indices into `list`, by tokens.
    index: HashMap<Vec<u32>, usize>,
}

impl Classes {
    fn read(training: impl BufRead, codec: &impl TextCodec) -> Result<Self> {
        let mut classes = Self::default();
        let mut lines = Lines::new(training);
        while let Some((number, line)) = lines.next_line()? {
            let (_, text) = pair(Purpose::Training, number, line)?;
            let tokens = tokens_alone(&text, codec)?;
            if classes.index.contains_key(&tokens) {
                continue;
            }
            if classes.list.len() == MAX_CLASSES {
                let message = format!(
                    "The training file has more than {MAX_CLASSES} different completions, too many for classification \
                     metrics: leave compute_classification_metrics out."
                );
                return Err(invalid_classes(ClassFault::File(Purpose::Training), message));
            }
            classes.index.insert(tokens, classes.list.len());
            classes.list.push(text);
        }
        Ok(classes)
    }

    /// Checks the classes against `wanted`; returns the positive class's index.
    fn check(&self, codec: &impl TextCodec, wanted: Wanted<'_>) -> Result<Option<usize>> {
        let fault = match wanted.positive_class {
            Some(_) => ClassFault::PositiveClass,
            None => ClassFault::Number,
        };
        let found = self.list.len();
        let number = wanted.positive_class.map(|_| 2).or(wanted.n_classes).unwrap_or(found).max(2);
        if found != number {
            let message = format!(
                "The training file has {found} different completion(s) ({}), but there must be {number} classes.",
                self.some()
            );
            return Err(invalid_classes(fault, message));
        }
        let Some(text) = wanted.positive_class else { return Ok(None) };
        let Some(positive) = self.index.get(&tokens_alone(text, codec)?) else {
            let message = format!(
                "No completion of the training file is {text:?}; they are {}. Give the positive class exactly, with the \
                 space that it begins with.",
                self.some()
            );
            return Err(invalid_classes(fault, message));
        };
        Ok(Some(*positive))
    }

    /// Lists the first classes for a message.
    fn some(&self) -> String {
        const SHOWN: usize = 5;
        let shown = self.list.iter().take(SHOWN).map(|class| format!("{:?}", shorten(class)));
        let more = (self.list.len() > SHOWN).then(|| "…".to_owned());
        shown.chain(more).collect::<Vec<_>>().join(", ")
    }
}

/// Returns the prompt and the completion on a line of the file `purpose`.
fn pair(purpose: Purpose, number: usize, line: Result<&str, String>) -> Result<(String, String)> {
    match line.and_then(parse::example) {
        Ok(Example::Completion { prompt, completion }) => Ok((prompt, completion)),
        Ok(Example::Chat { .. }) => {
            let message =
                format!("Line {number} is a chat: classification metrics need lines of prompt and completion.");
            Err(invalid_classes(ClassFault::File(purpose), message))
        }
        Err(fault) => {
            let message = on_line(number, &fault);
            Err(Error::File { purpose, fault: FileFault::Content, message })
        }
    }
}

fn invalid_classes(fault: ClassFault, message: String) -> Error {
    Error::Classes { fault, message }
}
