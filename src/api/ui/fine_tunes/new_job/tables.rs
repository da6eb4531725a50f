//! Files that are no JSON Lines but can be made into them: tables (CSV and what spreadsheets save as such) and JSON
//! arrays of objects. Told apart by their beginning, read row by row with a bound on the memory of each. Used by
//! [`super::columns`] and [`super::conversion`].

use std::cell::Cell as Shared;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _};
use std::path::Path;
use std::rc::Rc;

use csv::{ByteRecord, ReaderBuilder};
use serde_json::Value;

use super::arrays::Elements;
use crate::datasets::json;
use crate::datasets::lines::MAX_LINE_BYTES;

/// Bytes at the beginning of a file by which it is told apart.
const SAMPLE: usize = 64 << 10;
/// Rows of the sample by which the separator is found.
const SAMPLE_ROWS: usize = 50;
/// Elements of an array whose keys are its columns, and the most columns that are offered.
const SAMPLE_ELEMENTS: usize = 200;
pub(super) const MAX_COLUMNS: usize = 200;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// What follows the last row: it is a row of its own unless a quotation mark is still open.
const END: &[u8] = b"\0";

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
fn announced(sample: &[u8]) -> Option<u8> {
    let line = sample.split(|byte| *byte == b'\n').next()?.trim_ascii_end();
    // A tab at the end is trimmed off.
    match line.get(..4)?.eq_ignore_ascii_case(b"sep=").then(|| &line[4..])? {
        [] => Some(b'\t'),
        [separator] => SEPARATORS.iter().any(|(.., known)| known == separator).then_some(*separator),
        _ => None,
    }
}

/// A row with its number: the line that it begins on, or the number of the element.
pub(super) type NumberedRow = (usize, Result<Vec<Cell>, String>);

/// One cell of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    /// Its text; numbers and booleans as they are written, nothing as no text.
    Text(String),
    /// An array or an object.
    Nested,
}

/// Reads a file row by row.
pub(super) struct Rows {
    /// Names of the columns; those without a name are numbered.
    pub columns: Vec<String>,
    reader: RowReader,
}

enum RowReader {
    Table(Box<TableReader>),
    Array(Elements<File>, Vec<String>),
}

impl Rows {
    /// Opens a file at its beginning.
    pub(super) fn open(mut file: File, source: Source) -> io::Result<Self> {
        file.rewind()?;
        match source {
            Source::Table { separator, header } => {
                let mut reader = TableReader::new(file, separator)?;
                let columns = reader.columns(header)?;
                Ok(Self { columns, reader: RowReader::Table(Box::new(reader)) })
            }
            Source::Array => {
                let mut columns: Vec<String> = Vec::new();
                let mut elements = Elements::new(file.try_clone()?);
                for _ in 0..SAMPLE_ELEMENTS {
                    let Some((_, element)) = elements.next_element()? else { break };
                    let Ok(object) = element.and_then(object) else { continue };
                    for key in object.keys() {
                        if columns.len() < MAX_COLUMNS && !columns.contains(key) {
                            columns.push(key.clone());
                        }
                    }
                }
                // The clone shares its place in the file.
                file.rewind()?;
                Ok(Self { columns: columns.clone(), reader: RowReader::Array(Elements::new(file), columns) })
            }
        }
    }

    /// Returns the next row with its number, or its fault; `None` at the end, which a fault that nothing can be read
    /// behind is, too.
    pub(super) fn next_row(&mut self) -> io::Result<Option<NumberedRow>> {
        match &mut self.reader {
            RowReader::Table(table) => table.next_row(),
            RowReader::Array(elements, columns) => {
                let Some((number, element)) = elements.next_element()? else { return Ok(None) };
                Ok(Some((number, element.and_then(object).map(|object| cells(&object, columns)))))
            }
        }
    }
}

/// Parses an element of an array as an object.
fn object(element: &str) -> Result<serde_json::Map<String, Value>, String> {
    if element.starts_with('{') {
        return json::object(element);
    }
    Err("is no object: each element must be an object with the columns as keys".into())
}

fn cells(object: &serde_json::Map<String, Value>, columns: &[String]) -> Vec<Cell> {
    let cell = |column: &String| match object.get(column) {
        None | Some(Value::Null) => Cell::Text(String::new()),
        Some(Value::String(text)) => Cell::Text(text.clone()),
        Some(Value::Array(_) | Value::Object(_)) => Cell::Nested,
        Some(other) => Cell::Text(other.to_string()),
    };
    columns.iter().map(cell).collect()
}

/// Reads the rows of a table.
struct TableReader {
    rows: csv::Reader<Bounded<io::Chain<BufReader<File>, &'static [u8]>>>,
    left: Rc<Shared<u64>>,
    /// Lines before the first row that are no row.
    lines_before: u64,
    /// Whether lines end in a carriage return and a line feed.
    ends_in_two: bool,
    /// The first row, if it names no columns.
    first: Option<(u64, ByteRecord)>,
    width: usize,
    ended: bool,
}

impl TableReader {
    fn new(file: File, separator: u8) -> io::Result<Self> {
        let mut file = BufReader::with_capacity(SAMPLE, file);
        if file.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
            file.consume(BYTE_ORDER_MARK.len());
        }
        let mut lines_before = 0;
        let beginning = file.fill_buf()?;
        if announced(beginning).is_some() {
            let line = memchr::memchr(b'\n', beginning).map_or(beginning.len(), |end| end + 1);
            file.consume(line);
            lines_before = 1;
        }
        let beginning = file.fill_buf()?;
        let break_at = memchr::memchr(b'\n', beginning);
        let ends_in_two = break_at.is_some_and(|at| at > 0 && beginning[at - 1] == b'\r');
        let end: &[u8] = if ends_in_two { b"\r\n\0\r\n" } else { b"\n\0\n" };
        let left = Rc::new(Shared::new(0));
        let bounded = Bounded { inner: file.chain(end), left: Rc::clone(&left) };
        let rows = ReaderBuilder::new().delimiter(separator).has_headers(false).flexible(true).from_reader(bounded);
        Ok(Self { rows, left, lines_before, ends_in_two, first: None, width: 0, ended: false })
    }

    /// Reads the first row: the names of the columns, or, without a `header`, their number.
    fn columns(&mut self, header: bool) -> io::Result<Vec<String>> {
        let Some((line, Ok(row))) = self.read()? else { return Ok(Vec::new()) };
        self.width = row.len();
        let name = |(index, cell): (usize, &[u8])| {
            let name = String::from_utf8_lossy(cell).trim().to_owned();
            if header && !name.is_empty() { name } else { format!("Column {}", index + 1) }
        };
        let columns = row.iter().enumerate().map(name).collect();
        self.first = (!header).then_some((line, row));
        Ok(columns)
    }

    fn next_row(&mut self) -> io::Result<Option<NumberedRow>> {
        let (line, row) = match self.first.take() {
            Some((line, row)) => (line, Ok(row)),
            None => match self.read()? {
                Some(read) => read,
                None => return Ok(None),
            },
        };
        Ok(Some((line as usize, row.and_then(|row| self.cells(&row)))))
    }

    fn cells(&self, row: &ByteRecord) -> Result<Vec<Cell>, String> {
        if row.iter().skip(self.width).any(|cell| !cell.is_empty()) {
            return Err(format!(
                "has {} cells, but there are {} columns: a cell that holds the separator or a quotation mark must stand in \
                 quotation marks",
                row.len(),
                self.width
            ));
        }
        // Spreadsheets leave out empty cells at the end of a row.
        let cell = |index| match std::str::from_utf8(row.get(index).unwrap_or_default()) {
            Ok(text) => Ok(Cell::Text(text.to_owned())),
            Err(_) => Err("is not UTF-8: save the table as UTF-8".to_owned()),
        };
        (0..self.width).map(cell).collect()
    }

    /// Reads a row with the line that it begins on; `None` at the end.
    fn read(&mut self) -> io::Result<Option<(u64, Result<ByteRecord, String>)>> {
        if self.ended {
            return Ok(None);
        }
        let mut row = ByteRecord::new();
        self.left.set(MAX_LINE_BYTES);
        let before = self.rows.position();
        let begin = before.line() + u64::from(self.ends_in_two && before.record() > 0) + self.lines_before;
        match self.rows.read_byte_record(&mut row) {
            Ok(true) => {}
            // The row that ends every table is inside a cell.
            Ok(false) => {
                self.ended = true;
                return Ok(None);
            }
            Err(error) => {
                self.ended = true;
                let limit = MAX_LINE_BYTES >> 20;
                let fault = format!(
                    "begins a row of more than {limit} MiB: a quotation mark that is opened there is not closed, or the \
                     separator is another one"
                );
                return match error.into_kind() {
                    csv::ErrorKind::Io(error) if error.kind() != io::ErrorKind::FileTooLarge => Err(error),
                    _ => Ok(Some((begin, Err(fault)))),
                };
            }
        }
        let line = self.line_of(&row);
        if row.len() == 1 && row.get(0) == Some(END) && !self.rows.read_byte_record(&mut ByteRecord::new())? {
            self.ended = true;
            return Ok(None);
        }
        if row.iter().any(|cell| cell.contains(&0)) {
            // Nobody writes the byte 0 into a text: it is that of the end, in an open cell.
            self.ended = true;
            let fault = "begins a row with a quotation mark that is opened and not closed to the end of the file: close it, or \
                         write two of them for one that is a part of the text";
            // No end of a line stands behind it.
            return Ok(Some((line + u64::from(!self.ends_in_two), Err(fault.into()))));
        }
        Ok(Some((line, Ok(row))))
    }
}

impl TableReader {
    /// Returns the line that the row that was read last begins on. The reader tells where it stands: behind the row, but
    /// before the second byte of a line's end.
    fn line_of(&self, row: &ByteRecord) -> u64 {
        let breaks: usize = row.iter().map(|cell| memchr::memchr_iter(b'\n', cell).count()).sum();
        let behind = self.rows.position().line() + self.lines_before;
        behind.saturating_sub(breaks as u64 + u64::from(!self.ends_in_two))
    }
}

/// Fails once `left` bytes were read.
struct Bounded<R> {
    inner: R,
    left: Rc<Shared<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = self.inner.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(read as u64));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content).expect("written");
        file
    }

    fn read(content: &[u8], source: Source) -> (Vec<String>, Vec<NumberedRow>) {
        let mut rows = Rows::open(file(content), source).expect("opened");
        let mut read = Vec::new();
        while let Some(row) = rows.next_row().expect("read") {
            read.push(row);
        }
        (rows.columns, read)
    }

    fn texts(row: &NumberedRow) -> (usize, Vec<&str>) {
        let text = |cell: &'static Cell| match cell {
            Cell::Text(text) => text.as_str(),
            Cell::Nested => "…",
        };
        let cells: &'static [Cell] = Vec::leak(row.1.clone().expect("cells"));
        (row.0, cells.iter().map(text).collect())
    }

    const COMMA: Source = Source::Table { separator: b',', header: true };

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

    #[test]
    fn cells_keep_their_separators_quotes_and_line_breaks() {
        let content = "\u{feff}q, a ,\r\n\"a, \"\"b\"\"\",\"line\r\nbreak\",x\r\n\r\n<script>,\u{202e}é\r\n";
        let (columns, rows) = read(content.as_bytes(), COMMA);
        assert_eq!(columns, ["q", "a", "Column 3"]);
        assert_eq!(texts(&rows[0]), (2, vec!["a, \"b\"", "line\r\nbreak", "x"]));
        assert_eq!(texts(&rows[1]), (5, vec!["<script>", "\u{202e}é", ""]));
        assert_eq!(rows.len(), 2);
        let bare = Source::Table { separator: b'\t', header: false };
        let (columns, rows) = read(b"a\tb\nc\td", bare);
        assert_eq!(columns, ["Column 1", "Column 2"]);
        assert_eq!(rows.iter().map(texts).collect::<Vec<_>>(), [(1, vec!["a", "b"]), (2, vec!["c", "d"])]);
        let announced = Source::Table { separator: b';', header: true };
        assert_eq!(texts(&read(b"sep=;\na;b\nc;d\n", announced).1[0]), (3, vec!["c", "d"]));
    }

    #[test]
    fn rows_that_cannot_be_read_are_named_and_nothing_is_swallowed() {
        let fault = |content: &[u8], index: usize| {
            let (number, row) = read(content, COMMA).1.remove(index);
            (number, row.expect_err("a fault"))
        };
        let (number, why) = fault(b"a,b\nc,d\ne,f,g\nh,i\n", 1);
        assert!(number == 3 && why.contains("3 cells"), "{number} {why}");
        let (number, why) = fault(b"a,b\nc,d\ne,\"f\ng,h\ni,j\n", 1);
        assert!(number == 3 && why.contains("not closed"), "{number} {why}");
        let (number, why) = fault(b"a,b\nc,caf\xe9\n", 0);
        assert!(number == 2 && why.contains("UTF-8"), "{number} {why}");
        let mut long = b"a,b\n\"".to_vec();
        long.resize(MAX_LINE_BYTES as usize + (1 << 20), b'x');
        let (number, why) = fault(&long, 0);
        assert!(number == 2 && why.contains("8 MiB"), "{number} {why}");
    }

    #[test]
    fn elements_of_an_array_have_their_keys_as_columns() {
        let (columns, rows) = read(b"[{\"q\":\"a\",\"n\":1.50},\n{\"a\":null,\"q\":[1]}, 7]", Source::Array);
        assert_eq!(columns, ["q", "n", "a"]);
        assert_eq!(texts(&rows[0]), (1, vec!["a", "1.5", ""]));
        assert_eq!(texts(&rows[1]), (2, vec!["…", "", ""]));
        assert!(rows[2].1.as_ref().is_err_and(|fault| fault.contains("is no object")));
    }
}
