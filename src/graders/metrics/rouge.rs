//! ROUGE: the F-measure of words, runs of words, or the longest row of words, that a text has in common with its reference.
//! As in rouge-score, words are runs of the letters a to z and digits in lower case: other scripts have none.

use std::collections::HashMap;

use super::longest_common::Pattern;
use super::words::{common_runs, runs_in};

fn tokens(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|character: char| !matches!(character, 'a'..='z' | '0'..='9'));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Returns the F-measure of runs of `length` words.
pub(super) fn rouge_n(text: &str, reference: &str, length: usize) -> f64 {
    let (text, reference) = (tokens(text), tokens(reference));
    let common = common_runs(&text, &reference, length);
    f_measure(common, runs_in(text.len(), length), runs_in(reference.len(), length))
}

/// Returns the F-measure of the longest common subsequence of words.
pub(super) fn rouge_l(text: &str, reference: &str) -> f64 {
    let (text, reference) = (tokens(text), tokens(reference));
    // Numbers are compared faster than words.
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut number = |word| {
        let next = numbers.len();
        *numbers.entry(word).or_insert(next)
    };
    let text: Vec<usize> = text.iter().map(|word| number(word.as_str())).collect();
    let reference: Vec<usize> = reference.iter().map(|word| number(word.as_str())).collect();
    let common = Pattern::new(reference.iter().copied()).length(&text);
    f_measure(common, text.len(), reference.len())
}

/// Returns the harmonic mean of precision and recall.
fn f_measure(common: usize, text: usize, reference: usize) -> f64 {
    if common == 0 { 0.0 } else { 2.0 * common as f64 / (text + reference) as f64 }
}
