//! What kind of file somebody gave: JSON Lines, or something that can be made into them (a table, as CSV or as spreadsheets save
//! it, or a JSON array of objects), told apart by its beginning. Used by [`super::columns`]; [`super::tables`] reads the rows.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;

use csv::ReaderBuilder;
use serde_json::Value;

/// Bytes at the beginning of a file by which it is told apart.
pub(super) const SAMPLE: usize = 64 << 10;
/// Rows of the sample by which the separator is found.
const SAMPLE_ROWS: usize = 50;

pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The separators of tables, by the words of forms.
pub(super) const SEPARATORS: [(&str, &str, u8); 4] = [
    ("comma", "Comma ( , )", b','),
    ("semicolon", "Semicolon ( ; )", b';'),
    ("tab", "Tab", b'\t'),
    ("bar", "Bar ( | )", b'|'),
];

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A table; the first row may name the columns.
    Table { separator: u8, header: bool },
    /// One array of objects.
    Array,
}

impl Source {
    /// The word for a row of it, with which faults begin.
    pub(super) const fn row_word(self) -> &'static str {
        match self {
            Self::Table { .. } => "Line",
            Self::Array => "Element",
        }
    }
}

/// What kind of file it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// JSON Lines, or none of the others.
    Lines,
    /// It can be made into JSON Lines.
    Convertible(Source),
    /// It could be, but not as it stands.
    Refused(String),
}

/// Tells the kind of the file from its name and its beginning.
pub(super) fn kind(file: &mut File, name: &str) -> io::Result<Kind> {
    file.rewind()?;
    let mut sample = Vec::new();
    let is_cut = file.take(SAMPLE as u64).read_to_end(&mut sample)? == SAMPLE;
    Ok(kind_of(sample.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&sample), is_cut, name))
}

fn kind_of(sample: &[u8], is_cut: bool, name: &str) -> Kind {
    if sample.contains(&0) {
        return Kind::Lines;
    }
    match sample.trim_ascii_start().first() {
        None | Some(b'{' | b'<' | b'%') => return Kind::Lines,
        Some(b'[') => return if is_array(sample) { Kind::Convertible(Source::Array) } else { Kind::Lines },
        Some(_) => {}
    }
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let is_named = ["csv", "tsv", "tab"].iter().any(|known| extension.eq_ignore_ascii_case(known));
    let (separator, is_regular) = separator_of(sample, is_cut);
    // A table by its name is one, though it has a single column.
    let separator = separator.filter(|_| is_named || is_regular).or(is_named.then_some(b','));
    let Some(separator) = separator else { return Kind::Lines };
    match std::str::from_utf8(sample) {
        Err(error) if !(is_cut && error.error_len().is_none()) => {
            let at = &sample[..error.valid_up_to()];
            let line = at.split(|byte| *byte == b'\n').count();
            let byte = at.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
            Kind::Refused(format!(
                "The table is not UTF-8 (line {line}, byte {byte}): save it again, in Excel as \"CSV UTF-8\", in LibreOffice \
                 with the character set \"Unicode (UTF-8)\"."
            ))
        }
        _ => Kind::Convertible(Source::Table { separator, header: true }),
    }
}

/// Returns true unless the first line is a list of messages, which the API has its own words for.
fn is_array(sample: &[u8]) -> bool {
    let line = sample.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
    match serde_json::from_slice::<Value>(line) {
        Ok(Value::Array(values)) => {
            values.first().is_some_and(|value| value.is_object() && value.get("role").is_none())
        }
        _ => true,
    }
}

/// Returns the separator that gives the rows of the sample the most even widths above 1, and whether all have the same.
fn separator_of(sample: &[u8], is_cut: bool) -> (Option<u8>, bool) {
    if let Some(separator) = announced(sample) {
        return (Some(separator), true);
    }
    let mut best: Option<(f64, usize, u8)> = None;
    for (_, _, separator) in SEPARATORS {
        let mut reader =
            ReaderBuilder::new().delimiter(separator).has_headers(false).flexible(true).from_reader(sample);
        let mut widths: Vec<usize> =
            reader.byte_records().take(SAMPLE_ROWS + 1).map_while(Result::ok).map(|row| row.len()).collect();
        if is_cut || widths.len() > SAMPLE_ROWS {
            widths.pop();
        }
        let Some(first) = widths.first().copied().filter(|first| *first > 1) else { continue };
        let even = widths.iter().filter(|width| **width == first).count() as f64 / widths.len() as f64;
        let is_better = best.is_none_or(|(most, width, _)| (even, first) > (most, width));
        if is_better {
            best = Some((even, first, separator));
        }
    }
    let is_regular = best.is_some_and(|(even, ..)| even >= 1.0) && memchr::memchr(b'\n', sample).is_some();
    (best.map(|(.., separator)| separator), is_regular)
}

/// Returns the separator that the first line announces (`sep=;`), as Excel reads and writes it.
pub(super) fn announced(sample: &[u8]) -> Option<u8> {
    let line = sample.split(|byte| *byte == b'\n').next()?.trim_ascii_end();
    // A tab at the end is trimmed off.
    match line.get(..4)?.eq_ignore_ascii_case(b"sep=").then(|| &line[4..])? {
        [] => Some(b'\t'),
        [separator] => SEPARATORS.iter().any(|(.., known)| known == separator).then_some(*separator),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_told_apart_by_their_beginning() {
        let table = |separator| Kind::Convertible(Source::Table { separator, header: true });
        for (content, name, kind) in [
            (&b"question,answer\na,b\n"[..], "x.csv", table(b',')),
            (b"question;answer\n\"a;b\";c,d\n", "x.txt", table(b';')),
            (b"question\tanswer\na, or b\tc, d\n", "x", table(b'\t')),
            ("\u{feff}question,answer\r\na,b\r\n".as_bytes(), "x", table(b',')),
            (b"sep=;\nquestion;answer\na;b\n", "x.csv", table(b';')),
            (b"one,two\n\"a\nb\",c\nd\n", "x.CSV", table(b',')),
            (b"question\n\"Who, and when?\"\nWhy?\n", "x.csv", table(b',')),
            (b"{\"prompt\":\"a, b\"}\n{\"prompt\":\"a, b\"}\n", "x.csv", Kind::Lines),
            (b"[{\"a\":1},{\"a\":2}]", "x.json", Kind::Convertible(Source::Array)),
            (b" [\n  {\"a\":1}\n]", "x.json", Kind::Convertible(Source::Array)),
            (b"[{\"role\":\"user\",\"content\":\"a\"}]\n", "x.jsonl", Kind::Lines),
            (b"[1, 2]\n", "x.jsonl", Kind::Lines),
            (b"A sentence, which goes on.\nAnother one.\nAnd, well, a third.\n", "x.txt", Kind::Lines),
            (b"PK\x03\x04\0\0,\n,\n", "x.xlsx", Kind::Lines),
            (b"<html>,\n,</html>", "x.csv", Kind::Lines),
            (b"", "x.csv", Kind::Lines),
        ] {
            let content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
            assert_eq!(kind_of(content, false, name), kind, "{}", content.escape_ascii());
        }
        let Kind::Refused(why) = kind_of(b"question,answer\na,b\ncaf\xe9,c\n", false, "x.csv") else { panic!("taken") };
        assert!(why.contains("line 3, byte 4") && why.contains("CSV UTF-8"), "{why}");
        // A character that the sample cuts is none that is not UTF-8.
        assert!(matches!(kind_of(b"a,b\nc,d\ne,\xc3", true, "x.csv"), Kind::Convertible(_)));
    }
}
