//! Collects the sequences or texts of a file's examples, cut to the model's context, and counts them. Called by
//! [`super::read`].

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::render::RenderedExample;
use super::store::ExampleWriter;
use super::{Dataset, DatasetReport, RenderSettings, TokenizedExample};
use crate::Result;

/// Collects sequences and counts them.
pub(super) struct Builder {
    examples: ExampleWriter,
    pub report: DatasetReport,
    max_tokens: usize,
    /// Number of the line that the sequences come from.
    pub line: usize,
    /// Numbers of the last noted lines: truncated, dropped, repeated.
    noted: [usize; 3],
    /// Numbers of the last lines with an answer that is altered or names an end token.
    noted_answers: [usize; 2],
    /// Hashes of the sequences so far. A collision would only miscount a duplicate.
    seen: HashSet<u64>,
}

impl Builder {
    pub(crate) fn new(settings: &RenderSettings) -> Result<Self> {
        let max_tokens = settings.max_tokens;
        let examples = ExampleWriter::new(&settings.scratch)?;
        let (report, noted, seen) = (DatasetReport::default(), [0; 3], HashSet::new());
        Ok(Self { examples, report, max_tokens, line: 0, noted, noted_answers: [0; 2], seen })
    }

    /// Notes what the owner of the file should know about the answers of an example.
    pub(crate) fn note_answers(&mut self, example: &RenderedExample) {
        let Self { report, line, noted_answers: [altered, ends_named], .. } = self;
        if example.altered {
            report.altered.note(*line, altered);
        }
        if example.names_end {
            report.ends_named.note(*line, ends_named);
        }
    }

    /// Adds sequences that are trained on together, or leaves all of them out. Two answers that are equal once cut
    /// teach nothing.
    pub(crate) fn add<const N: usize>(&mut self, mut sequences: [TokenizedExample; N]) -> Result<()> {
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

    /// Adds the texts of a pair. Texts may be equal once cut: a negative that repeats an earlier text is left out; if
    /// the positive equals the anchor, the whole pair is.
    pub(crate) fn add_texts(&mut self, texts: Vec<Vec<u32>>) -> Result<()> {
        let Self { report, line, noted: [truncated, dropped, repeated], .. } = self;
        if texts.iter().any(|text| text.len() > self.max_tokens) {
            report.truncated.note(*line, truncated);
        }
        let mut distinct: Vec<Vec<u32>> = Vec::with_capacity(texts.len());
        for (index, mut text) in texts.into_iter().enumerate() {
            text.truncate(self.max_tokens);
            if !distinct.contains(&text) {
                distinct.push(text);
            } else if index == 1 {
                report.dropped.note(*line, dropped);
                return Ok(());
            }
        }
        let mut hasher = DefaultHasher::new();
        distinct.hash(&mut hasher);
        if !self.seen.insert(hasher.finish()) {
            report.duplicates.note(*line, repeated);
        }
        let tokens = distinct.iter().map(Vec::len);
        report.sequences += 1;
        report.texts += distinct.len();
        report.longest = tokens.clone().fold(report.longest, usize::max);
        report.tokens += tokens.clone().sum::<usize>();
        // Every text counts as learned.
        report.target_tokens += tokens.sum::<usize>();
        self.examples.push_texts(&distinct)
    }

    pub(crate) fn finish(self) -> Result<Dataset> {
        Ok(Dataset { examples: self.examples.finish()?, report: self.report })
    }
}
