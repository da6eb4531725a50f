//! Recognises by its first line a file that is no JSON Lines, and says how to make it one. Called by [`super::lines`].

use serde_json::Value;

use super::words::shorten;

const ZIP: &str = "is the beginning of a Word or Excel file (.docx, .xlsx) or of another zip archive: save a table as CSV \
                   and make an object of each row, or unpack the archive";
const ARCHIVE: &str = "is the beginning of a packed file: unpack it first";
const IMAGE: &str = "is the beginning of an image: training files are text, with one JSON object on each line";
const TABLE_FILE: &str = "is the beginning of a file with a table: write it as JSON Lines, in Python with \
                          `pandas.read_parquet(FILE).to_json(\"train.jsonl\", orient=\"records\", lines=True)`";
const PAGE: &str = "is the beginning of a web page or of XML: training files have one JSON object on each line";

/// First bytes of other files, with what to do about them.
const KINDS: [(&[u8], &str); 21] = [
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (
        b"\xd0\xcf\x11\xe0",
        "is the beginning of a Word or Excel file (.doc, .xls): save a table as CSV and make an object of each row",
    ),
    (b"\x1f\x8b", "is the beginning of a file packed by gzip: unpack it first, with gunzip"),
    (b"BZh", ARCHIVE),
    (b"\xfd7zXZ", ARCHIVE),
    (b"\x28\xb5\x2f\xfd", ARCHIVE),
    (b"7z\xbc\xaf", ARCHIVE),
    (b"Rar!", ARCHIVE),
    (b"%PDF", "is the beginning of a PDF: write its text into objects, one on each line"),
    (b"{\\rtf", "is the beginning of a formatted text (RTF): save it as plain text"),
    (b"PAR1", TABLE_FILE),
    (b"ARROW1", TABLE_FILE),
    (b"SQLite format 3", "is the beginning of a database: write its rows as objects, one on each line"),
    (b"\x89PNG", IMAGE),
    (b"\xff\xd8\xff", IMAGE),
    (b"GIF8", IMAGE),
    (b"<", PAGE),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
    (b"\0", UTF_16),
];
const UTF_16: &str = "is UTF-16 or UTF-32, not UTF-8: save the file as UTF-8";

/// Returns the fault of a file that begins with this line; `None` if it may be JSON Lines.
pub(super) fn other_kind(line: &[u8]) -> Option<String> {
    if let Some((_, fault)) = KINDS.iter().find(|(beginning, _)| line.starts_with(beginning)) {
        return Some((*fault).to_owned());
    }
    // ASCII in UTF-16 without a byte order mark.
    if line.get(1) == Some(&0) {
        return Some(UTF_16.to_owned());
    }
    if line.contains(&0) {
        return Some("has bytes that no text has: training files are text, with one JSON object on each line".into());
    }
    let text = std::str::from_utf8(line).ok()?;
    if text.starts_with('[') { array(text) } else { table(text) }
}

/// Returns the fault of a file that is one array; `None` if the line is an array by itself, which may be one of many.
fn array(text: &str) -> Option<String> {
    let is_example = |value: &Value| value.as_object().is_some_and(|object| !object.contains_key("role"));
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(values)) if values.is_empty() || !values.iter().all(is_example) => None,
        _ => Some(
            "is the beginning of one JSON array: write each of its elements on a line of its own, without the brackets \
             and the commas between them (`jq -c '.[]' FILE > train.jsonl` does)"
                .into(),
        ),
    }
}

/// Returns the fault of a table, whose first line names its columns.
fn table(text: &str) -> Option<String> {
    const LONGEST_NAME: usize = 40;
    if text.starts_with(['{', '}']) || serde_json::from_str::<Value>(text).is_ok() {
        return None;
    }
    let delimiter = ['\t', ';', ',', '|'].into_iter().find(|delimiter| text.contains(*delimiter))?;
    let fields: Vec<&str> = text.split(delimiter).map(|field| field.trim().trim_matches('"')).collect();
    let is_name = |field: &&str| field.chars().count() <= LONGEST_NAME && field.split_whitespace().count() <= 3;
    let quoted = text.starts_with('"') && (text.contains("\",") || text.contains("\";"));
    if delimiter != '\t' && !quoted && !fields.iter().all(is_name) {
        return None;
    }
    let shown = fields.iter().take(6).map(|field| format!("`{}`", shorten(field))).collect::<Vec<_>>().join(", ");
    Some(format!(
        "looks like the beginning of a table (CSV) with the columns {shown}: make an object of each row, \
         {{\"prompt\": \"…\", \"completion\": \"…\"}}, one on each line; docs/fine-tuning.md has a command for it"
    ))
}

#[cfg(test)]
mod tests {
    use super::other_kind;

    #[test]
    fn other_files_are_called_by_their_names() {
        let cases: [(&[u8], &str); 17] = [
            (b"PK\x03\x04\x14\0\x06", "Word or Excel"),
            (b"\xd0\xcf\x11\xe0\xa1", "Word or Excel"),
            (b"\x1f\x8b\x08\0", "gunzip"),
            (b"%PDF-1.7", "PDF"),
            (b"{\\rtf1\\ansi", "RTF"),
            (b"PAR1\x15", "pandas"),
            (b"<!DOCTYPE html>", "web page"),
            (b"\xff\xfe{\0", "UTF-8"),
            (b"{\0\"\0p\0", "UTF-8"),
            (b"text\0more", "no text has"),
            (b"[", "one JSON array"),
            (b"[{\"prompt\":\"a\",\"completion\":\"b\"},", "one JSON array"),
            (b"[{\"prompt\":\"a\"},{\"prompt\":\"b\"}]", "one JSON array"),
            (b"prompt,completion", "`prompt`, `completion`"),
            (b"question;answer", "table (CSV)"),
            (b"\"The lamp, broken, from order 12 of last week\",\"lamp\"", "table (CSV)"),
            (b"text\tlabel", "table (CSV)"),
        ];
        for (line, expected) in cases {
            let fault = other_kind(line).unwrap_or_else(|| panic!("{} passes", line.escape_ascii()));
            assert!(fault.contains(expected), "{fault}");
        }
    }

    #[test]
    fn lines_of_json_and_lines_with_faults_of_their_own_are_left_to_others() {
        for line in [
            &b"{\"prompt\":\"a, b\"}"[..],
            b"{'prompt': 'a', 'completion': 'b'}",
            b"[]",
            b"[1, 2]",
            b"[{\"role\":\"user\",\"content\":\"a\"}]",
            b"\"a,b\"",
            b"This is a sentence of a letter, which says that the lamp is broken and so on.",
            b"",
            b"{\"a\":\"\xff\"}",
        ] {
            assert_eq!(other_kind(line), None, "{}", line.escape_ascii());
        }
    }
}
