//! The weighted ratio of rapidfuzz: the best of several comparisons of characters, each with a weight.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;

use super::longest_common::Pattern;

/// Weight of comparisons of words, whose order does not count.
const WORDS: f64 = 0.95;
/// Weight of comparisons with parts of the longer text, and where that is more than [`MUCH_LONGER`] times as long.
const PARTS: f64 = 0.9;
const SMALL_PARTS: f64 = 0.6;
const MUCH_LONGER: f64 = 8.0;
/// How much longer one text must be for parts of it to be compared.
const LONGER: f64 = 1.5;

/// What is neither letter nor number.
static OTHER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[^\p{L}\p{N}]").ok());

/// Returns how alike the texts are, after all but letters and numbers has become spaces. 0 if one has none of these.
pub(super) fn weighted_ratio(text: &str, reference: &str) -> f64 {
    let (one, other) = (processed(text), processed(reference));
    let (length, other_length) = (one.chars().count() as f64, other.chars().count() as f64);
    if one.is_empty() || other.is_empty() {
        return 0.0;
    }
    let whole = ratio(&one, &other);
    let (one_words, other_words) = (words(&one), words(&other));
    let longer = (length / other_length).max(other_length / length);
    if longer < LONGER {
        let by_words = by_set(&one_words, &other_words).max(ratio(&sorted(&one_words), &sorted(&other_words)));
        return whole.max(by_words * WORDS);
    }
    let weight = if longer <= MUCH_LONGER { PARTS } else { SMALL_PARTS };
    let parts = partial_ratio(&one, &other) * weight;
    whole.max(parts).max(partial_by_words(&one_words, &other_words) * WORDS * weight)
}

/// Returns the text in lower case with spaces for all but letters and numbers, without those at its ends.
fn processed(text: &str) -> String {
    let spaced = OTHER.as_ref().map(|other| other.replace_all(text, " "));
    // Each character becomes one: of the few that have two in lower case the first is meant.
    let lower = spaced.iter().flat_map(|text| text.chars()).filter_map(|character| character.to_lowercase().next());
    lower.collect::<String>().trim_matches(' ').to_owned()
}

fn words(text: &str) -> Vec<&str> {
    text.split(' ').filter(|word| !word.is_empty()).collect()
}

fn sorted(words: &[&str]) -> String {
    let mut words = words.to_vec();
    words.sort_unstable();
    words.join(" ")
}

/// Returns twice the characters that both have in the same order, by the characters of both.
fn ratio(one: &str, other: &str) -> f64 {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    share(Pattern::new(one.iter().copied()).length(&other), one.len() + other.len())
}

fn share(common: usize, characters: usize) -> f64 {
    if characters == 0 { 1.0 } else { 2.0 * common as f64 / characters as f64 }
}

/// The different words of two texts: those of both, of the first only and of the second only, in order.
fn sets<'a>(one: &[&'a str], other: &[&'a str]) -> [String; 3] {
    let (one, other): (BTreeSet<&str>, BTreeSet<&str>) =
        (one.iter().copied().collect(), other.iter().copied().collect());
    let join = |words: Vec<&str>| words.join(" ");
    [
        join(one.intersection(&other).copied().collect()),
        join(one.difference(&other).copied().collect()),
        join(other.difference(&one).copied().collect()),
    ]
}

/// Compares the words of both with those and the words of each, in order and each once.
fn by_set(one: &[&str], other: &[&str]) -> f64 {
    let [both, first, second] = sets(one, other);
    if !both.is_empty() && (first.is_empty() || second.is_empty()) {
        return 1.0;
    }
    let count = |text: &str| text.chars().count();
    let (common, first_length, second_length) = (count(&both), count(&first), count(&second));
    let space = usize::from(common > 0);
    let (with_first, with_second) = (common + space + first_length, common + space + second_length);
    let (first, second): (Vec<char>, Vec<char>) = (first.chars().collect(), second.chars().collect());
    let different = first_length + second_length - 2 * Pattern::new(first.iter().copied()).length(&second);
    let without = |different: usize, all: usize| if all == 0 { 1.0 } else { 1.0 - different as f64 / all as f64 };
    let best = without(different, with_first + with_second);
    if common == 0 {
        return best;
    }
    best.max(without(space + first_length, common + with_first))
        .max(without(space + second_length, common + with_second))
}

/// Compares the shorter text with the best part of the longer one, by words: in order, and each once. 1 if they have a
/// word in common.
fn partial_by_words(one: &[&str], other: &[&str]) -> f64 {
    let [both, first, second] = sets(one, other);
    if !both.is_empty() {
        return 1.0;
    }
    partial_ratio(&sorted(one), &sorted(other)).max(partial_ratio(&first, &second))
}

/// Returns the ratio of the shorter text and the part of the longer one that is most like it. Parts are as long as the
/// shorter text, or shorter at the ends of the longer one.
fn partial_ratio(one: &str, other: &str) -> f64 {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    match one.len().cmp(&other.len()) {
        std::cmp::Ordering::Less => best_part(&one, &other),
        std::cmp::Ordering::Greater => best_part(&other, &one),
        std::cmp::Ordering::Equal => best_part(&one, &other).max(best_part(&other, &one)),
    }
}

fn best_part(needle: &[char], text: &[char]) -> f64 {
    let length = needle.len();
    if length == 0 {
        return if text.is_empty() { 1.0 } else { 0.0 };
    }
    let pattern = Pattern::new(needle.iter().copied());
    let reversed = Pattern::new(needle.iter().rev().copied());
    let at_ends = at_begin(&pattern, text.iter(), length).max(at_begin(&reversed, text.iter().rev(), length));
    let (mut start, mut most) = (0, 0);
    while start + length <= text.len() {
        let common = pattern.length(&text[start..start + length]);
        // The next part differs by one character at each end, so that it has one more in common at the most.
        start += if common > most { 1 } else { most - common + 1 };
        most = most.max(common);
    }
    at_ends.max(share(most, 2 * length))
}

/// Returns the best ratio of the needle, of `length` characters, and a shorter part at the begin of `text`.
fn at_begin<'a>(pattern: &Pattern<char>, text: impl Iterator<Item = &'a char>, length: usize) -> f64 {
    let mut comparison = pattern.begin();
    let ratios = text.take(length - 1).zip(1..).map(|(character, taken)| {
        comparison.push(*character);
        share(comparison.length(), length + taken)
    });
    ratios.fold(0.0, f64::max)
}
