//! Metrics of how alike two texts are, each between 0 and 1. They give the numbers of the packages that people know them
//! from, which `tests/parity/make_graders.py` writes down and the test below compares.
//!
//! | metric | package |
//! |---|---|
//! | [`fuzzy`] | rapidfuzz, `fuzz.WRatio` with `utils.default_process` |
//! | [`bleu`] | sacrebleu, `sentence_bleu`; nltk, `sentence_gleu` over the same tokens |
//! | [`meteor`] | nltk, `single_meteor_score` without synonyms |
//! | [`rouge`] | rouge-score, the F-measure without stemming |

mod bleu;
mod fuzzy;
mod longest_common;
mod meteor;
mod porter;
mod rouge;
#[cfg(test)]
mod tests;
mod words;

use serde::Deserialize;

/// Longest text that is compared, in characters. The work grows with the product of both lengths.
pub const MAX_CHARACTERS: usize = 100_000;
/// The same for [`Metric::FuzzyMatch`], which compares one text with every part of the other.
pub const MAX_FUZZY_CHARACTERS: usize = 10_000;

/// A way to compare two texts. The likeness of embeddings, which needs a model, is `None` in [`Metric::compare`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Characters in common, of the texts, of their words in order, and of parts of the longer one.
    FuzzyMatch,
    /// Precision of runs of up to four tokens, with a penalty for short texts.
    Bleu,
    /// The smaller of precision and recall of runs of up to four tokens.
    Gleu,
    /// Words in common, also as stems, with a penalty for another order.
    Meteor,
    /// Words in common.
    #[serde(rename = "rouge_1")]
    Rouge1,
    /// Pairs of words in common.
    #[serde(rename = "rouge_2")]
    Rouge2,
    /// Runs of three words in common.
    #[serde(rename = "rouge_3")]
    Rouge3,
    /// Runs of four words in common.
    #[serde(rename = "rouge_4")]
    Rouge4,
    /// Runs of five words in common.
    #[serde(rename = "rouge_5")]
    Rouge5,
    /// The longest row of words that both have in the same order.
    RougeL,
    /// The cosine of the texts' embeddings.
    Cosine,
}

/// A text that is too long to be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("A text of {characters} characters is too long to be compared: the limit is {limit}.")]
pub struct TooLong {
    characters: usize,
    limit: usize,
}

impl Metric {
    /// Returns how alike `text` and `reference` are; `None` for the metric that needs a model.
    pub fn compare(self, text: &str, reference: &str) -> Result<Option<f64>, TooLong> {
        let limit = if self == Self::FuzzyMatch { MAX_FUZZY_CHARACTERS } else { MAX_CHARACTERS };
        for text in [text, reference] {
            let characters = text.chars().count();
            if characters > limit {
                return Err(TooLong { characters, limit });
            }
        }
        Ok(Some(match self {
            Self::FuzzyMatch => fuzzy::weighted_ratio(text, reference),
            Self::Bleu => bleu::bleu(text, reference),
            Self::Gleu => bleu::gleu(text, reference),
            Self::Meteor => meteor::meteor(text, reference),
            Self::Rouge1 => rouge::rouge_n(text, reference, 1),
            Self::Rouge2 => rouge::rouge_n(text, reference, 2),
            Self::Rouge3 => rouge::rouge_n(text, reference, 3),
            Self::Rouge4 => rouge::rouge_n(text, reference, 4),
            Self::Rouge5 => rouge::rouge_n(text, reference, 5),
            Self::RougeL => rouge::rouge_l(text, reference),
            Self::Cosine => return Ok(None),
        }))
    }
}
