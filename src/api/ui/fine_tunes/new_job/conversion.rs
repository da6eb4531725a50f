//! Makes training lines of the rows of a table or an array, by the columns that a person chose. Used by
//! [`super::columns`].

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use serde_json::Value;
use tempfile::{NamedTempFile, TempPath};

use super::arrays::Elements;
use super::kinds::Source;
use super::tables::{Cell, Rows};
use super::targets::Target;
use crate::api::http::error::{Problem, Result};
use crate::datasets::faults::Faults;
use crate::datasets::json as lines_of_json;
use crate::datasets::parse::shorten;

/// Bytes of a row that are kept to be shown beside its fault.
const SHOWN_ROW: usize = 2000;

/// What is made of a file, and how.
pub(super) struct Conversion {
    pub source: Source,
    /// The form of the lines; `None` leaves the objects of an array as they are.
    pub target: Option<&'static Target>,
    /// The column of each role of the form; `None` for none.
    pub columns: Vec<Option<usize>>,
    /// System message of every chat without one of its own.
    pub system: String,
    /// Whether rows that lack a required text are left out, not faults.
    pub skip: bool,
}

/// What came of it.
pub(super) enum Converted {
    /// A file of training lines.
    Lines {
        path: TempPath,
        /// Rows that are left out, as they lack a required text or have none at all.
        left_out: usize,
    },
    /// Rows that no line can be made of.
    Faulty(Faults),
}

impl Conversion {
    /// Makes a file of training lines in `folder`. Slow: call it off the async threads.
    pub(super) fn run(&self, file: File, folder: &Path) -> Result<Converted> {
        let context = || format!("convert a file in {}", folder.display());
        std::fs::create_dir_all(folder).map_err(Problem::io(context()))?;
        let (out, path) = NamedTempFile::new_in(folder).map_err(Problem::io(context()))?.into_parts();
        let mut out = BufWriter::with_capacity(1 << 16, out);
        let (faults, left_out) = self.write(file, &mut out).map_err(Problem::io(context()))?;
        out.flush().map_err(Problem::io(context()))?;
        Ok(if faults.is_empty() { Converted::Lines { path, left_out } } else { Converted::Faulty(faults) })
    }

    fn write(&self, mut file: File, out: &mut impl std::io::Write) -> std::io::Result<(Faults, usize)> {
        let (mut faults, mut left_out) = (Faults::default(), 0);
        let Some(target) = self.target else {
            std::io::Seek::rewind(&mut file)?;
            let mut elements = Elements::new(file);
            while let Some((number, element)) = elements.next_element()? {
                match element.and_then(|element| lines_of_json::check(element).map(|()| element)) {
                    Ok(element) => writeln!(out, "{element}")?,
                    Err(fault) => faults.push(number, &fault),
                }
            }
            return Ok((faults, left_out));
        };
        let mut rows = Rows::open(file, self.source)?;
        while let Some((number, row)) = rows.next_row()? {
            let row = match row {
                Ok(row) => row,
                Err(fault) => {
                    faults.push(number, &fault);
                    continue;
                }
            };
            match self.line(target, &row, &rows.columns) {
                Ok(Some(_)) if !faults.is_empty() => {}
                Ok(Some(line)) => writeln!(out, "{line}")?,
                Ok(None) => left_out += 1,
                Err(fault) => faults.push_shown(number, &fault, Some(shown(&row).as_bytes())),
            }
        }
        Ok((faults, left_out))
    }

    /// Makes a line of a row; `None` leaves it out.
    fn line(&self, target: &Target, row: &[Cell], names: &[String]) -> Result<Option<Value>, String> {
        if row.iter().all(|cell| matches!(cell, Cell::Text(text) if text.trim().is_empty())) {
            return Ok(None);
        }
        let mut cells = Vec::with_capacity(target.roles.len());
        for (role, column) in target.roles.iter().zip(&self.columns) {
            let name = || column.and_then(|column| names.get(column)).map(|name| shorten(name)).unwrap_or_default();
            let text = match column.and_then(|column| row.get(column)) {
                Some(Cell::Text(text)) => Some(text.as_str()).filter(|text| !text.trim().is_empty()),
                Some(Cell::Nested) => {
                    return Err(format!(
                        "has no text but an array or an object as `{}`: choose another column",
                        name()
                    ));
                }
                None => None,
            };
            if text.is_none() && role.required {
                return if self.skip { Ok(None) } else { Err(format!("has nothing in the column `{}`", name())) };
            }
            cells.push(text);
        }
        (target.make)(&cells, &self.system).map(Some)
    }
}

/// Returns the cells of a row as one text.
fn shown(row: &[Cell]) -> String {
    let mut text = String::new();
    for (index, cell) in row.iter().enumerate() {
        if index > 0 {
            text.push_str(" | ");
        }
        match cell {
            Cell::Text(cell) => text.push_str(cell),
            Cell::Nested => text.push('…'),
        }
        if text.len() > SHOWN_ROW {
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::datasets::parse;

    const TABLE: Source = Source::Table { separator: b',', header: true };

    fn run(content: &str, conversion: &Conversion) -> Result<(Vec<String>, usize), String> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content.as_bytes()).expect("written");
        match conversion.run(file, folder.path()).expect("read") {
            Converted::Lines { path, left_out } => {
                let text = std::fs::read_to_string(&path).expect("the lines");
                Ok((text.lines().map(str::to_owned).collect(), left_out))
            }
            Converted::Faulty(faults) => Err(faults.describe("The table")),
        }
    }

    fn of(target: &str, columns: &[Option<usize>], source: Source) -> Conversion {
        Conversion { source, target: Target::of(target), columns: columns.to_vec(), system: String::new(), skip: false }
    }

    #[test]
    fn rows_become_lines_that_training_reads() {
        let mut chat = of("chat", &[None, Some(1), Some(0)], TABLE);
        let content = "answer,question\n\"<b>yes</b>, \"\"sure\"\"\",\"Is it\nso? \u{202e}\"\n,\n";
        let (lines, left_out) = run(content, &chat).expect("fine");
        assert_eq!((lines.len(), left_out), (1, 1));
        assert!(parse::example(&lines[0]).is_ok());
        let line: Value = serde_json::from_str(&lines[0]).expect("JSON");
        assert_eq!(line["messages"][0], json!({"role": "user", "content": "Is it\nso? \u{202e}"}));
        assert_eq!(line["messages"][1], json!({"role": "assistant", "content": "<b>yes</b>, \"sure\""}));
        chat.system = "Be brief.".into();
        let (lines, _) = run(content, &chat).expect("fine");
        assert!(lines[0].starts_with(r#"{"messages":[{"role":"system","content":"Be brief."}"#), "{}", lines[0]);
        let pair = of("pair", &[Some(0), Some(1), Some(2)], TABLE);
        let (lines, _) = run("a,b,c\nx,y,\nx,y,z\n", &pair).expect("fine");
        assert_eq!(lines, [r#"{"anchor":"x","positive":"y"}"#, r#"{"anchor":"x","positive":"y","negative":"z"}"#]);
    }

    #[test]
    fn rows_that_lack_something_are_faults_or_left_out() {
        let content = "q,a\nx,y\nz,\n,w\n";
        let mut pairs = of("completion", &[Some(0), Some(1)], TABLE);
        let fault = run(content, &pairs).expect_err("faults");
        assert!(fault.contains("Line 3 has nothing in the column `a`"), "{fault}");
        assert!(fault.contains("Line 4 has nothing in the column `q`"), "{fault}");
        pairs.skip = true;
        assert_eq!(run(content, &pairs).expect("fine").1, 2);
        let scores = of("score", &[Some(0), Some(1), Some(2)], TABLE);
        let fault = run("a,b,s\nx,y,\"0,5\"\n", &scores).expect_err("a fault");
        assert!(fault.contains("`0,5` where a number must stand"), "{fault}");
        assert!(run("a,b,s\nx,y, 0.5\n", &scores).expect("fine").0[0].ends_with(r#""score":0.5}"#));
    }

    #[test]
    fn objects_of_an_array_become_lines_as_they_are_or_by_their_keys() {
        let as_they_are = Conversion { target: None, ..of("", &[], Source::Array) };
        let content =
            "[\n  {\"prompt\": \"a\",\n \"completion\": 1.50e40, \"n\": 12345678901234567890123},\n  {\"b\": {}}\n]";
        let (lines, _) = run(content, &as_they_are).expect("fine");
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("1.50e40") && lines[0].contains("12345678901234567890123"), "{}", lines[0]);
        assert!(run("[{\"a\":1},[2]]", &as_they_are).expect_err("a fault").contains("Line 2 is an array"));
        let by_key = of("completion", &[Some(0), Some(1)], Source::Array);
        let (lines, _) = run("[{\"in\":\"a\",\"out\":\"b\"},{\"out\":true,\"in\":7}]", &by_key).expect("fine");
        assert_eq!(lines, [r#"{"prompt":"a","completion":"b"}"#, r#"{"prompt":"7","completion":"true"}"#]);
        let fault = run("[{\"in\":\"a\",\"out\":[1]}]", &by_key).expect_err("a fault");
        assert!(fault.contains("an array or an object as `out`"), "{fault}");
    }

    #[test]
    fn columns_are_guessed_by_their_names() {
        let guess = |target: &str, columns: &[&str]| {
            let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
            Target::of(target).expect("known").guess(&columns)
        };
        assert_eq!(guess("chat", &["id", "Answer", "Question"]), [None, Some(2), Some(1)]);
        assert_eq!(guess("chat", &["customer_question", "our_answer"]), [None, Some(0), Some(1)]);
        assert_eq!(guess("preference", &["prompt", "rejected", "chosen"]), [Some(0), Some(2), Some(1)]);
        assert_eq!(guess("chat", &["x", "y"]), [None, None, None]);
    }
}
