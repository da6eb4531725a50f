//! Words as Python splits them, and counts of runs of tokens.

use std::collections::HashMap;
use std::hash::Hash;

/// Returns the parts of `text` between white space, as Python's `str.split()` does: separators of files, groups, records
/// and units count as white space.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// True for what Python's `str.isspace` takes for white space.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// Counts each run of `length` tokens.
pub(super) fn count_runs<T: Hash + Eq>(tokens: &[T], length: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    for run in tokens.windows(length) {
        *counts.entry(run).or_default() += 1;
    }
    counts
}

/// Returns how many runs of `length` tokens both texts have, each as often as the one that has it less often.
pub(super) fn common_runs<T: Hash + Eq>(text: &[T], reference: &[T], length: usize) -> usize {
    let counts = count_runs(reference, length);
    let runs = count_runs(text, length);
    runs.iter().map(|(run, count)| counts.get(run).map_or(0, |other| *count.min(other))).sum()
}

/// Returns how many runs of `length` tokens there are.
pub(super) fn runs_in(tokens: usize, length: usize) -> usize {
    (tokens + 1).saturating_sub(length)
}
