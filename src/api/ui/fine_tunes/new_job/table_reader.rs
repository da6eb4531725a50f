//! The rows of a table (CSV, and what spreadsheets save as such), each with the line that it begins on. Used by [`super::tables`].

use std::cell::Cell as Shared;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::rc::Rc;

use csv::{ByteRecord, ReaderBuilder};

use super::kinds::{BYTE_ORDER_MARK, SAMPLE, announced};
use crate::datasets::lines::MAX_LINE_BYTES;

/// What follows the last row: it is a row of its own unless a quotation mark is still open.
const END: &[u8] = b"\0";

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

/// Reads the rows of a table.
pub(super) struct TableReader {
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
    /// Begins to read the rows of `file`, which stands at its beginning.
    pub(super) fn new(file: File, separator: u8) -> io::Result<Self> {
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
    pub(super) fn columns(&mut self, header: bool) -> io::Result<Vec<String>> {
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

    /// Returns the next row with its number, or its fault; `None` at the end.
    pub(super) fn next_row(&mut self) -> io::Result<Option<NumberedRow>> {
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
