//! Counts of a training or validation file, for the events of a job and for choosing its settings. Made by
//! [`super::read`].

use super::parse::Format;

/// Lines with a remark or a fault, such as truncated ones: the number of all and the numbers of the first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotedLines {
    /// Number of lines.
    pub count: usize,
    /// Numbers of the first lines, counted from 1.
    pub first: Vec<usize>,
}

impl NotedLines {
    /// Most line numbers that are kept.
    const LISTED: usize = 20;

    /// Notes line `number`; lines come in order, each once.
    pub(super) fn note(&mut self, number: usize) {
        self.count += 1;
        if self.first.len() < Self::LISTED {
            self.first.push(number);
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

/// Counts of a file's contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatasetReport {
    /// Format of all lines; `None` if there are none.
    pub format: Option<Format>,
    /// Examples in the file.
    pub examples: usize,
    /// Units of training: a chat may be several sequences or none; two answers to a prompt count as one.
    pub sequences: usize,
    /// Tokens that one epoch reads.
    pub tokens: usize,
    /// Tokens that one epoch trains on.
    pub target_tokens: usize,
    /// Tokens of the longest example, pair of answers, or text of a pair, after it was cut.
    pub longest: usize,
    /// Texts of all examples, two that are one sequence counted as one; 0 unless the file has texts.
    pub texts: usize,
    /// Examples cut at the end to fit the model's context, of which something is left to learn.
    pub truncated: NotedLines,
    /// Examples left out, because no target fits the context.
    pub dropped: NotedLines,
    /// Examples with an answer whose text does not stand in its target.
    pub altered: NotedLines,
    /// Examples with an answer that names an end token.
    pub ends_named: NotedLines,
    /// Examples that repeat an earlier one.
    pub duplicates: NotedLines,
    /// Examples with the prompt of an earlier one and another answer, or with the opposite preference.
    pub contradictions: NotedLines,
    /// The first of these examples and the one that it contradicts, as numbers of lines.
    pub first_contradiction: Option<(usize, usize)>,
}

impl DatasetReport {
    /// Returns true if the file has texts in place of answers.
    pub const fn is_of_texts(&self) -> bool {
        self.texts > 0
    }

    /// Returns true if the file has pairs of texts that are compared with the others of their batch.
    pub fn is_of_pairs(&self) -> bool {
        self.format == Some(Format::Pair)
    }
}

#[cfg(test)]
mod tests {
    use super::NotedLines;

    #[test]
    fn lines_are_listed_up_to_a_limit_and_counted_beyond_it() {
        let noted = |lines: &[usize]| {
            let mut noted = NotedLines::default();
            for line in lines {
                noted.note(*line);
            }
            noted
        };
        assert_eq!(noted(&[4]).to_string(), "line 4");
        assert_eq!(noted(&[4, 9]).to_string(), "lines 4 and 9");
        assert_eq!(noted(&[4, 9, 12]).to_string(), "lines 4, 9 and 12");
        let many = noted(&(1..=37).collect::<Vec<_>>());
        assert_eq!((many.count, many.first.len()), (37, 20));
        assert!(many.to_string().ends_with(", 19, 20 and 17 more"), "{many}");
    }
}
