//! Limits of patterns, checked before llguidance sees them. Its only step that cannot be ended and may explode is the
//! derivative of an intersection: it meets each class of bytes that one pattern may read next with those of all
//! others, so that patterns which read the same byte in two ways multiply. [`check`] counts these meetings.

use std::collections::{HashMap, HashSet};

use llguidance::regex_to_lark;
use regex_syntax::hir::{Class, Hir, HirKind};

/// Largest size of a pattern, in bytes.
pub(super) const PATTERN_BYTES: usize = 8 << 10;
/// Largest number of patterns that one text must match or miss.
pub(super) const MAX_PATTERNS: usize = 32;
/// Largest size of a parsed pattern: its parts, and the ranges of its classes.
const MAX_PARTS: usize = 20_000;
/// Largest number of different classes of bytes in one pattern.
const MAX_CLASSES: usize = 256;
/// Largest number of ways in which all patterns of a text can read a byte together.
const MAX_MEETINGS: f64 = 20_000.0;

/// A set of bytes.
type Bytes = [u64; 4];

/// The classes of bytes that a pattern reads.
#[derive(Debug, Clone, Default)]
struct Classes {
    known: HashSet<Bytes>,
    parts: usize,
}

impl Classes {
    fn of(pattern: &str) -> Result<Self, String> {
        if pattern.len() > PATTERN_BYTES {
            let bytes = pattern.len();
            return Err(format!("a pattern has {bytes} bytes; at most {PATTERN_BYTES} are allowed"));
        }
        let mut classes = Self::default();
        // A pattern that cannot be parsed is refused by name elsewhere.
        if let Ok(hir) = regex_syntax::parse(&regex_to_lark(pattern, "dw")) {
            classes.add(&hir);
        }
        if classes.parts > MAX_PARTS {
            let parts = classes.parts;
            return Err(format!("a pattern unfolds to {parts} parts; at most {MAX_PARTS} are allowed"));
        }
        if classes.known.len() > MAX_CLASSES {
            let count = classes.known.len();
            return Err(format!("a pattern has {count} different classes of bytes; at most {MAX_CLASSES} are allowed"));
        }
        Ok(classes)
    }

    fn add(&mut self, hir: &Hir) {
        self.parts += 1;
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => {}
            HirKind::Literal(literal) => {
                self.parts += literal.0.len();
                for byte in &literal.0 {
                    self.known.insert(range(*byte, *byte));
                }
            }
            HirKind::Class(Class::Unicode(class)) => {
                self.parts += class.ranges().len();
                // Bytes of ASCII are read as one class, those of longer characters as one class each of first and
                // later bytes.
                let mut bytes = Bytes::default();
                for part in class.ranges() {
                    let (start, end) = (u32::from(part.start()), u32::from(part.end()));
                    if start < 0x80 {
                        join(&mut bytes, &range(start as u8, end.min(0x7F) as u8));
                    }
                    if end >= 0x80 {
                        join(&mut bytes, &range(0x80, 0xF4));
                    }
                }
                self.known.insert(bytes);
            }
            HirKind::Class(Class::Bytes(class)) => {
                self.parts += class.ranges().len();
                let mut bytes = Bytes::default();
                class.ranges().iter().for_each(|part| join(&mut bytes, &range(part.start(), part.end())));
                self.known.insert(bytes);
            }
            HirKind::Repetition(repetition) => self.add(&repetition.sub),
            HirKind::Capture(capture) => self.add(&capture.sub),
            HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().for_each(|part| self.add(part)),
        }
    }

    /// Returns the numbers of the classes that hold `byte`.
    fn reading(&self, byte: u8) -> Vec<usize> {
        let holds = |class: &Bytes| class[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1;
        self.known.iter().enumerate().filter(|(_, class)| holds(class)).map(|(number, _)| number).collect()
    }
}

fn range(first: u8, last: u8) -> Bytes {
    let mut bytes = Bytes::default();
    (first..=last).for_each(|byte| bytes[usize::from(byte >> 6)] |= 1 << (byte & 63));
    bytes
}

fn join(bytes: &mut Bytes, more: &Bytes) {
    bytes.iter_mut().zip(more).for_each(|(bytes, more)| *bytes |= more);
}

/// Returns an error if `pattern` alone is too large.
pub(super) fn check_one(pattern: &str) -> Result<(), String> {
    Classes::of(pattern).map(|_| ())
}

/// Returns an error, which names the limit, if texts that match all of `with` and none of `without` would be too much
/// work to tell.
pub(super) fn check(with: &[String], without: &[String]) -> Result<(), String> {
    let count = with.len() + without.len();
    if count > MAX_PATTERNS {
        return Err(format!("one text has {count} patterns to follow; at most {MAX_PATTERNS} are allowed"));
    }
    let with: Vec<Classes> = with.iter().map(|pattern| Classes::of(pattern)).collect::<Result<_, _>>()?;
    let without: Vec<Classes> = without.iter().map(|pattern| Classes::of(pattern)).collect::<Result<_, _>>()?;
    if with.len() < 2 {
        return Ok(());
    }
    // Bytes that all patterns read alike meet once.
    let mut meetings: HashMap<Vec<Vec<usize>>, f64> = HashMap::new();
    for byte in 0..=u8::MAX {
        let read: Vec<Vec<usize>> = with.iter().map(|classes| classes.reading(byte)).collect();
        let ways = read.iter().map(|classes| classes.len() as f64).product();
        // What is excluded tells bytes apart, but reads each in one way.
        let apart = without.iter().map(|classes| classes.reading(byte));
        meetings.insert(read.into_iter().chain(apart).collect(), ways);
    }
    let total: f64 = meetings.values().sum();
    if total > MAX_MEETINGS {
        return Err(format!(
            "the patterns of one text can be met together in {total:.0} ways; at most {MAX_MEETINGS:.0} are allowed: make \
             the patterns of one text fewer"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|pattern| (*pattern).to_owned()).collect()
    }

    #[test]
    fn rules_for_passwords_and_bounded_words_are_small() {
        let rules = owned(&["[a-z]", "[A-Z]", "[0-9]", "[^a-zA-Z0-9]", "^\\S+$", "^(?s:.{8,64})$"]);
        assert_eq!(check(&rules, &[]), Ok(()));
        assert_eq!(check(&owned(&["^\\w+([.-]?\\w+)*@\\w+$", "^.{0,254}$"]), &owned(&["^x-"])), Ok(()));
    }

    #[test]
    fn patterns_that_read_one_letter_in_many_ways_multiply() {
        let words: Vec<String> = (0..30).map(|index| format!("^.*a{index}.*$")).collect();
        let reason = check(&words, &[]).expect_err("2 to the 30th ways");
        assert!(reason.contains("ways"), "{reason}");
        assert!(check(&words[..8], &[]).is_ok());
        let many: Vec<String> = (0..33).map(|index| format!("^{index}$")).collect();
        assert!(check(&many, &[]).is_err() && check(&[], &many).is_err());
    }

    #[test]
    fn a_pattern_is_bounded_in_bytes_parts_and_classes() {
        assert!(check_one(&"a".repeat(PATTERN_BYTES + 1)).is_err());
        assert!(check_one(&"\\p{L}".repeat(1000)).is_err());
        assert!(check_one("^[\\p{L}\\p{N}_.-]+$").is_ok());
        let pairs = ('!'..='~').flat_map(|a| ('!'..='~').map(move |b| (a, b))).take(600);
        let classes: Vec<String> = pairs.map(|(a, b)| format!("[\\x{:02x}\\x{:02x}]", a as u32, b as u32)).collect();
        assert!(check_one(&classes.concat()).is_err());
    }
}
