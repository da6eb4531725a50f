//! Makes training lines of the rows of a table or an array, by the columns that a person chose. Used by
//! [`super::columns`].

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::{NamedTempFile, TempPath};

use super::arrays::Elements;
use super::tables::{Cell, Rows, Source};
use crate::api::http::error::{Problem, Result};
use crate::datasets::faults::Faults;
use crate::datasets::json as lines_of_json;
use crate::datasets::parse::shorten;

/// Bytes of a row that are kept to be shown beside its fault.
const SHOWN_ROW: usize = 2000;

/// A form that training lines can have.
pub(super) struct Target {
    /// Its word in forms.
    pub id: &'static str,
    pub title: &'static str,
    pub hint: &'static str,
    pub roles: &'static [Role],
    make: fn(&[Option<&str>], &str) -> Result<Value, String>,
}

/// What a column can be of a training line.
pub(super) struct Role {
    /// Its word in forms.
    pub id: &'static str,
    pub label: &'static str,
    /// False if a row may have nothing there.
    pub required: bool,
    /// Names that such columns often have, in lower case.
    names: &'static [&'static str],
}

const QUESTIONS: &[&str] =
    &["user", "question", "prompt", "input", "instruction", "query", "text", "message", "ticket", "frage", "body"];
const ANSWERS: &[&str] = &[
    "assistant",
    "answer",
    "completion",
    "output",
    "response",
    "reply",
    "target",
    "label",
    "category",
    "class",
    "antwort",
];

/// The forms, the most usual one first.
pub(super) const TARGETS: &[Target] = &[
    Target {
        id: "chat",
        title: "Questions and answers of a chat",
        hint: "The model learns to give the answer to the question, in the form of a chat. The usual choice.",
        roles: &[
            Role { id: "system", label: "System message", required: false, names: &["system", "context", "persona"] },
            Role { id: "user", label: "Question (user)", required: true, names: QUESTIONS },
            Role { id: "assistant", label: "Answer (assistant)", required: true, names: ANSWERS },
        ],
        make: |cells, system| Ok(chat(cells, system)),
    },
    Target {
        id: "completion",
        title: "Prompts and their continuations",
        hint: "The model learns to go on after the prompt, without the form of a chat: for models without a chat template.",
        roles: &[
            Role { id: "prompt", label: "Prompt", required: true, names: QUESTIONS },
            Role { id: "completion", label: "Completion", required: true, names: ANSWERS },
        ],
        make: |cells, _| Ok(json!({"prompt": cells[0], "completion": cells[1]})),
    },
    Target {
        id: "preference",
        title: "A better and a worse answer",
        hint: "The model learns to prefer the one to the other (the method dpo).",
        roles: &[
            Role { id: "prompt", label: "Prompt", required: true, names: QUESTIONS },
            Role {
                id: "chosen",
                label: "Better answer",
                required: true,
                names: &["chosen", "preferred", "better", "good", "accepted"],
            },
            Role {
                id: "rejected",
                label: "Worse answer",
                required: true,
                names: &["rejected", "worse", "bad", "non_preferred"],
            },
        ],
        make: |cells, _| Ok(json!({"prompt": cells[0], "chosen": cells[1], "rejected": cells[2]})),
    },
    Target {
        id: "pair",
        title: "Texts that belong together",
        hint: "For models of embeddings: the vectors of both texts come close, that of the third text moves away.",
        roles: &[
            Role { id: "anchor", label: "Text", required: true, names: &["anchor", "query", "question", "text"] },
            Role {
                id: "positive",
                label: "Text that belongs to it",
                required: true,
                names: &["positive", "document", "passage", "answer"],
            },
            Role {
                id: "negative",
                label: "Text that does not",
                required: false,
                names: &["negative", "hard_negative"],
            },
        ],
        make: |cells, _| {
            let mut line = Map::new();
            line.insert("anchor".into(), cells[0].into());
            line.insert("positive".into(), cells[1].into());
            if let Some(negative) = cells[2] {
                line.insert("negative".into(), negative.into());
            }
            Ok(line.into())
        },
    },
    Target {
        id: "score",
        title: "Two texts and how alike they are",
        hint: "For models of embeddings: the score is a number from -1 to 1.",
        roles: &[
            Role { id: "first", label: "First text", required: true, names: &["sentence1", "text1", "first", "a"] },
            Role { id: "second", label: "Second text", required: true, names: &["sentence2", "text2", "second", "b"] },
            Role { id: "score", label: "Score", required: true, names: &["score", "similarity"] },
        ],
        make: |cells, _| Ok(json!({"sentence1": cells[0], "sentence2": cells[1], "score": number(cells[2])?})),
    },
    Target {
        id: "label",
        title: "A query, a document, and whether it answers the query",
        hint: "For cross-encoders: the label is a number from 0 to 1.",
        roles: &[
            Role { id: "query", label: "Query", required: true, names: &["query", "question"] },
            Role { id: "document", label: "Document", required: true, names: &["document", "passage", "text"] },
            Role { id: "label", label: "Label", required: true, names: &["label", "relevance", "relevant"] },
        ],
        make: |cells, _| Ok(json!({"query": cells[0], "document": cells[1], "label": number(cells[2])?})),
    },
];

impl Target {
    /// Finds the form with this word.
    pub(super) fn of(id: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.id == id)
    }

    /// Guesses which column is which, by their names: by the whole name, then by a part of it. No column twice.
    pub(super) fn guess(&self, columns: &[String]) -> Vec<Option<usize>> {
        let mut taken = vec![false; columns.len()];
        let lower: Vec<String> = columns.iter().map(|column| column.to_lowercase()).collect();
        let mut guesses = vec![None; self.roles.len()];
        for is_whole in [true, false] {
            for (role, guess) in self.roles.iter().zip(&mut guesses).filter(|(_, guess)| guess.is_none()) {
                let fits = |name: &&str, column: &str| if is_whole { column == *name } else { column.contains(*name) };
                let found = role.names.iter().filter(|name| is_whole || name.len() > 1).find_map(|name| {
                    lower.iter().enumerate().position(|(index, column)| !taken[index] && fits(name, column))
                });
                if let Some(found) = found {
                    taken[found] = true;
                    *guess = Some(found);
                }
            }
        }
        guesses
    }
}

fn chat(cells: &[Option<&str>], system: &str) -> Value {
    let system = cells[0].or_else(|| (!system.trim().is_empty()).then_some(system));
    let mut messages: Vec<Value> = system.map(|text| json!({"role": "system", "content": text})).into_iter().collect();
    messages.push(json!({"role": "user", "content": cells[1]}));
    messages.push(json!({"role": "assistant", "content": cells[2]}));
    json!({"messages": messages})
}

/// Reads a number of a cell.
fn number(cell: Option<&str>) -> Result<Value, String> {
    let text = cell.unwrap_or_default().trim();
    let value = match text.to_ascii_lowercase().as_str() {
        "true" => Some(1.0),
        "false" => Some(0.0),
        text => text.parse::<f64>().ok().filter(|number| number.is_finite()),
    };
    value.map(Value::from).ok_or_else(|| format!("has `{}` where a number must stand, such as 0.5", shorten(text)))
}

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
