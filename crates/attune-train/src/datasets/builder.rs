//! Collects the sequences or texts of a file's examples, cut to the model's context, and counts them. Called by
//! [`super::read`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::render::RenderedExample;
use super::store::ExampleWriter;
use super::{Dataset, DatasetReport, NotedLines, RenderSettings, TokenizedExample};
use crate::Result;

/// Prompts whose answers are compared; of a larger file those that come first. They take about 40 MiB.
const MAX_PROMPTS: usize = 1 << 20;

/// Hashes of a file's examples with the line that has each first. A collision would only miscount a warning.
#[derive(Debug, Default)]
pub struct Digests(HashMap<u64, u32>);

impl Digests {
    /// Returns the lines whose examples `other` has, too; a line that repeats an earlier one does not count.
    pub fn shared_with(&self, other: &Self) -> NotedLines {
        let shared = self.0.iter().filter(|(digest, _)| other.0.contains_key(digest));
        let mut lines: Vec<u32> = shared.map(|(_, line)| *line).collect();
        lines.sort_unstable();
        lines.dedup();
        let mut noted = NotedLines::default();
        for line in lines {
            noted.note(line as usize);
        }
        noted
    }

    /// Notes an example of `line`; returns false if an earlier one is the same.
    fn insert(&mut self, digest: u64, line: usize) -> bool {
        match self.0.entry(digest) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(line as u32);
                true
            }
        }
    }
}

/// Remarks on the line that is being read.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent remarks, each counted for itself")]
struct Line {
    number: usize,
    /// Whether a part of it is trained on.
    kept: bool,
    /// Whether something of it is missing.
    cut: bool,
    repeated: bool,
    /// Whether the text of an answer does not stand in its target.
    altered: bool,
    /// Whether an answer names an end token.
    names_end: bool,
    /// Earlier line with the same prompt and another answer, or with the opposite preference.
    contradicts: Option<usize>,
}

/// Collects sequences and counts them.
pub(super) struct Builder {
    examples: ExampleWriter,
    pub report: DatasetReport,
    max_tokens: usize,
    line: Line,
    seen: Digests,
    /// Hash of the first answer to each prompt, by the prompt's hash, with its line.
    answers: HashMap<u64, (u64, u32)>,
}

impl Builder {
    pub(crate) fn new(settings: &RenderSettings) -> Result<Self> {
        let examples = ExampleWriter::new(&settings.scratch)?;
        Ok(Self {
            examples,
            report: DatasetReport::default(),
            max_tokens: settings.max_tokens,
            line: Line::default(),
            seen: Digests::default(),
            answers: HashMap::new(),
        })
    }

    /// Begins line `number`, an example.
    pub(crate) fn begin_line(&mut self, number: usize) {
        self.report.examples += 1;
        self.line = Line { number, ..Line::default() };
    }

    /// Notes what the owner of the file should know about the answers of an example.
    pub(crate) fn note_answers(&mut self, example: &RenderedExample) {
        self.line.altered |= example.altered;
        self.line.names_end |= example.names_end;
    }

    /// Notes the remarks on the line. A line of which nothing is left counts as left out alone.
    pub(crate) fn end_line(&mut self) {
        let (Line { number, kept, cut, repeated, altered, names_end, contradicts }, report) =
            (&self.line, &mut self.report);
        if *cut && !kept {
            report.dropped.note(*number);
        } else if *cut {
            report.truncated.note(*number);
        }
        if *repeated {
            report.duplicates.note(*number);
        }
        if let Some(earlier) = *contradicts {
            report.contradictions.note(*number);
            report.first_contradiction.get_or_insert((*number, earlier));
        }
        if *altered {
            report.altered.note(*number);
        }
        if *names_end {
            report.ends_named.note(*number);
        }
    }

    /// Adds sequences that are trained on together, or leaves all of them out. Two answers that are equal once cut
    /// teach nothing.
    pub(crate) fn add<const N: usize>(&mut self, mut sequences: [TokenizedExample; N]) -> Result<()> {
        self.line.cut |= sequences.each_mut().map(|sequence| sequence.truncate(self.max_tokens)).contains(&true);
        let same = sequences.windows(2).any(|pair| pair[0] == pair[1]);
        if same || sequences.iter().any(|sequence| sequence.targets() == 0) {
            self.line.cut = true;
            return Ok(());
        }
        self.line.kept = true;
        self.line.repeated |= !self.seen.insert(digest(sequences.iter()), self.line.number);
        if let [one] = sequences.as_slice() {
            self.compare_answers(one);
        } else if let Some(earlier) = self.seen.0.get(&digest(sequences.iter().rev())) {
            self.line.contradicts = Some(*earlier as usize);
        }
        let report = &mut self.report;
        report.sequences += 1;
        report.longest = report.longest.max(sequences.iter().map(|sequence| sequence.tokens.len()).sum());
        for sequence in sequences {
            report.tokens += sequence.tokens.len();
            report.target_tokens += sequence.targets();
            self.examples.push(&sequence)?;
        }
        Ok(())
    }

    /// Compares each answer of a sequence with the first one to the same prompt. An empty prompt (one token, which
    /// separates texts) may be followed by anything.
    fn compare_answers(&mut self, sequence: &TokenizedExample) {
        let TokenizedExample { tokens, weights } = sequence;
        let mut context = DefaultHasher::new();
        let mut at = 0;
        for run in weights.chunk_by(|a, b| (*a < 1.0) == (*b < 1.0)) {
            let part = &tokens[at..at + run.len()];
            if run[0] >= 1.0 && at > 1 {
                let mut answer = DefaultHasher::new();
                part.hash(&mut answer);
                self.note_answer(context.finish(), answer.finish());
            }
            for token in part {
                context.write_u32(*token);
            }
            at += run.len();
        }
    }

    fn note_answer(&mut self, prompt: u64, answer: u64) {
        let full = self.answers.len() >= MAX_PROMPTS;
        match self.answers.entry(prompt) {
            Entry::Occupied(first) => {
                let (other, line) = *first.get();
                // A chat may ask the same twice.
                if other != answer && line as usize != self.line.number {
                    self.line.contradicts.get_or_insert(line as usize);
                }
            }
            Entry::Vacant(place) if !full => {
                place.insert((answer, self.line.number as u32));
            }
            Entry::Vacant(_) => {}
        }
    }

    /// Sets how many tokens at the begin of anchors, and of the other texts, their vectors leave out.
    pub(crate) fn leave_unpooled(&mut self, unpooled: [usize; 2]) {
        self.examples.unpooled = unpooled;
    }

    /// Adds the texts of a pair, of which something was `cut` or not. Texts may be equal once cut: a negative that
    /// repeats an earlier text is left out; if the positive equals the anchor, the whole pair is.
    pub(crate) fn add_texts(&mut self, texts: Vec<Vec<u32>>, cut: bool) -> Result<()> {
        self.line.cut |= cut;
        let mut distinct: Vec<Vec<u32>> = Vec::with_capacity(texts.len());
        for (index, text) in texts.into_iter().enumerate() {
            if !distinct.contains(&text) {
                distinct.push(text);
            } else if index == 1 {
                self.line.cut = true;
                return Ok(());
            }
        }
        self.note_texts(&distinct);
        self.examples.push_texts(&distinct)
    }

    /// Adds two texts with the cosine that they shall have. Two equal ones always have 1, so that they are left out.
    pub(crate) fn add_scored(&mut self, texts: &[Vec<u32>], score: f32, cut: bool) -> Result<()> {
        self.line.cut |= cut;
        if texts.windows(2).any(|pair| pair[0] == pair[1]) {
            self.line.cut = true;
            return Ok(());
        }
        self.note_number(texts, score);
        self.note_texts(texts);
        self.examples.push_scored(texts, score)
    }

    /// Adds two texts that are one sequence, the second of which begins at `second`, with their label.
    pub(crate) fn add_joined(&mut self, ids: &[u32], second: Option<usize>, label: f32, cut: bool) -> Result<()> {
        self.line.cut |= cut;
        let parts = match second.filter(|second| *second > 0 && *second < ids.len()) {
            Some(second) => vec![ids[..second].to_vec(), ids[second..].to_vec()],
            None => vec![ids.to_vec()],
        };
        self.note_number(&parts, label);
        self.note_texts(&[ids.to_vec()]);
        self.examples.push_scored(&parts, label)
    }

    /// Compares the number of texts with that of an earlier line with the same texts.
    fn note_number(&mut self, texts: &[Vec<u32>], number: f32) {
        let mut hasher = DefaultHasher::new();
        texts.hash(&mut hasher);
        self.note_answer(hasher.finish(), u64::from(number.to_bits()));
    }

    /// Counts the texts of a line, all of which are learned.
    fn note_texts(&mut self, texts: &[Vec<u32>]) {
        self.line.kept = true;
        let mut hasher = DefaultHasher::new();
        texts.hash(&mut hasher);
        self.line.repeated |= !self.seen.insert(hasher.finish(), self.line.number);
        let (report, tokens) = (&mut self.report, texts.iter().map(Vec::len));
        report.sequences += 1;
        report.texts += texts.len();
        report.longest = tokens.clone().fold(report.longest, usize::max);
        report.tokens += tokens.clone().sum::<usize>();
        report.target_tokens += tokens.sum::<usize>();
    }

    pub(crate) fn finish(self) -> Result<Dataset> {
        Ok(Dataset { examples: self.examples.finish()?, report: self.report, digests: self.seen })
    }
}

/// Hashes sequences with their weights.
fn digest<'a>(sequences: impl Iterator<Item = &'a TokenizedExample>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for sequence in sequences {
        sequence.tokens.hash(&mut hasher);
        for weight in &sequence.weights {
            hasher.write_u32(weight.to_bits());
        }
    }
    hasher.finish()
}
