//! The rows of a file that is no JSON Lines but can be made into them: a table or a JSON array of objects, read row by row with a
//! bound on the memory of each. Used by [`super::columns`] and [`super::conversion`].

use std::fs::File;
use std::io::{self, Seek as _};

use serde_json::Value;

use super::arrays::Elements;
use super::kinds::Source;
use super::table_reader::TableReader;
pub(super) use super::table_reader::{Cell, NumberedRow};
use crate::datasets::json;

/// Elements of an array whose keys are its columns, and the most columns that are offered.
const SAMPLE_ELEMENTS: usize = 200;
pub(super) const MAX_COLUMNS: usize = 200;

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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::datasets::lines::MAX_LINE_BYTES;

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
