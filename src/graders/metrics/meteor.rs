//! METEOR as nltk computes it, but without synonyms, for which nltk needs the corpus WordNet: words match if they are
//! the same in lower case, or else if they have the same stem.

use std::collections::HashMap;

use super::porter::stem;
use super::words::split;

/// Weight of recall beside precision in their mean.
const RECALL: f64 = 0.9;
/// Largest share that a wrong order takes off the score, and the power of the share of chunks.
const PENALTY: f64 = 0.5;
const POWER: f64 = 3.0;

/// A word and its place in the text.
type Word = (usize, String);

/// Returns the weighted mean of precision and recall of words, less the penalty for matches that are scattered.
pub(super) fn meteor(text: &str, reference: &str) -> f64 {
    let words = |text: &str| -> Vec<Word> { split(text).map(str::to_lowercase).enumerate().collect() };
    let (text, reference) = (words(text), words(reference));
    let (length, reference_length) = (text.len(), reference.len());
    let (mut matches, text, reference) = matched(text, reference);
    let stems = |words: Vec<Word>| words.into_iter().map(|(place, word)| (place, stem(&word))).collect();
    let (by_stem, ..) = matched(stems(text), stems(reference));
    matches.extend(by_stem);
    if matches.is_empty() {
        return 0.0;
    }
    matches.sort_unstable();
    let count = matches.len() as f64;
    let (precision, recall) = (count / length as f64, count / reference_length as f64);
    let mean = precision * recall / (RECALL * precision + (1.0 - RECALL) * recall);
    let breaks = matches.windows(2).filter(|pair| pair[1] != (pair[0].0 + 1, pair[0].1 + 1)).count();
    let scattered = (breaks + 1) as f64 / count;
    (1.0 - PENALTY * scattered.powf(POWER)) * mean
}

/// Pairs words from the last to the first, each with the last same word of the reference that is free. Returns the places
/// of the pairs, and the words that are left of both.
fn matched(text: Vec<Word>, reference: Vec<Word>) -> (Vec<(usize, usize)>, Vec<Word>, Vec<Word>) {
    let mut free: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, (_, word)) in reference.iter().enumerate() {
        free.entry(word).or_default().push(index);
    }
    let mut pairs = Vec::new();
    let (mut used, mut used_of_reference) = (vec![false; text.len()], vec![false; reference.len()]);
    for (index, (place, word)) in text.iter().enumerate().rev() {
        if let Some(other) = free.get_mut(word.as_str()).and_then(Vec::pop) {
            (used[index], used_of_reference[other]) = (true, true);
            pairs.push((*place, reference[other].0));
        }
    }
    let left = |words: Vec<Word>, used: Vec<bool>| -> Vec<Word> {
        words.into_iter().zip(used).filter(|(_, used)| !used).map(|(word, _)| word).collect()
    };
    (pairs, left(text, used), left(reference, used_of_reference))
}
