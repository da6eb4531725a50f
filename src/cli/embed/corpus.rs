//! The texts of a file: lines of JSON with a field for the text, or lines that are texts themselves. A large file is read
//! twice, and never held: first to count and to know its texts again, then to send them.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// A file of texts.
#[derive(Debug)]
pub(super) struct Corpus {
    file: PathBuf,
    /// The field of the text; `None` if lines are texts themselves.
    field: Option<String>,
    /// How many there are.
    pub(super) texts: usize,
    /// Checksum of all texts and ids.
    pub(super) digest: String,
}

/// A text of the file.
#[derive(Debug, PartialEq)]
pub(super) struct Text {
    /// Number of its line, from 1.
    pub(super) line: usize,
    /// Its `id`, as it stands in the file.
    pub(super) id: Option<Value>,
    pub(super) content: String,
}

impl Corpus {
    /// Reads the whole `file`, whose texts are in `field` if its first line is a JSON object; refuses a line without a
    /// text.
    pub(super) fn read(file: &Path, field: &str) -> Result<Self> {
        let mut corpus = Self { file: file.to_path_buf(), field: None, texts: 0, digest: String::new() };
        let first = corpus.open()?.next();
        let is_json = match first.transpose()? {
            Some(first) => serde_json::from_str::<Map<String, Value>>(&first.content).is_ok(),
            None => return Err(corpus.fault("the file holds no text")),
        };
        corpus.field = is_json.then(|| field.to_owned());
        let (mut digest, mut texts) = (Sha256::new(), 0);
        for text in corpus.open()? {
            let text = text?;
            let id = text.id.map_or_else(String::new, |id| id.to_string());
            for part in [id.as_str(), text.content.as_str()] {
                digest.update(part.len().to_le_bytes());
                digest.update(part);
            }
            texts += 1;
        }
        corpus.texts = texts;
        corpus.digest = format!("{:x}", digest.finalize());
        Ok(corpus)
    }

    /// Opens the file and returns its texts.
    pub(super) fn open(&self) -> Result<impl Iterator<Item = Result<Text>>> {
        let context = format!("read {}", self.file.display());
        let file = File::open(&self.file).map_err(Error::io(context.clone()))?;
        let lines = BufReader::new(file).lines().zip(1..);
        Ok(lines.map(move |(text, line)| {
            let text = text.map_err(Error::io(format!("{context}, line {line}")))?;
            self.text(text, line).map_err(|message| self.fault(&format!("line {line}: {message}")))
        }))
    }

    /// Reads one line.
    fn text(&self, text: String, line: usize) -> Result<Text, String> {
        // Some editors begin a file with a mark of the byte order.
        let text = if line == 1 { text.trim_start_matches('\u{feff}').to_owned() } else { text };
        let text = match &self.field {
            None => Text { line, id: None, content: text },
            Some(field) => {
                let object: Result<Map<String, Value>, _> = serde_json::from_str(&text);
                let mut object = object.map_err(|error| format!("not a JSON object: {error}"))?;
                match object.remove(field) {
                    Some(Value::String(content)) => Text { line, id: object.remove("id"), content },
                    Some(_) => return Err(format!("the field `{field}` is not a text")),
                    None => {
                        return Err(format!("there is no field `{field}`: name the one with the text by --text-field"));
                    }
                }
            }
        };
        if text.content.is_empty() { Err("the text is empty".into()) } else { Ok(text) }
    }

    fn fault(&self, message: &str) -> Error {
        Error::Setup(format!("{}: {message}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    fn texts(corpus: &Corpus) -> Vec<(usize, Option<Value>, String)> {
        let texts = corpus.open().expect("opened").map(|text| text.expect("a text"));
        texts.map(|text| (text.line, text.id, text.content)).collect()
    }

    #[test]
    fn lines_are_json_if_the_first_one_is_else_texts_themselves() {
        let json_lines = file("\u{feff}{\"text\": \"a\", \"id\": 7}\r\n{\"text\": \"b\\nc\", \"other\": 1}\n");
        let corpus = Corpus::read(json_lines.path(), "text").expect("read");
        assert_eq!(texts(&corpus), [(1, Some(json!(7)), "a".into()), (2, None, "b\nc".into())]);
        let plain = file("{a\n b \nc");
        let corpus = Corpus::read(plain.path(), "text").expect("read");
        assert_eq!(texts(&corpus), [(1, None, "{a".into()), (2, None, " b ".into()), (3, None, "c".into())]);
        assert_eq!(corpus.texts, 3);
    }

    #[test]
    fn other_texts_or_ids_have_another_checksum() {
        let lines = ["a\nb\n", "a\nc\n", "ab\n", "{\"text\": \"a\"}\n{\"text\": \"b\", \"id\": 1}"];
        let digest = |text: &&str| Corpus::read(file(text).path(), "text").expect("read").digest;
        let mut digests: Vec<String> = lines.iter().map(digest).collect();
        assert_eq!(digest(&lines[0]), digests[0]);
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), lines.len());
    }

    #[test]
    fn a_line_without_a_text_is_named() {
        for (text, says) in [
            ("", "holds no text"),
            ("a\n\nb\n", "line 2: the text is empty"),
            ("{\"text\": \"a\"}\nb\n", "line 2: not a JSON object"),
            ("{\"text\": \"a\"}\n{\"body\": \"b\"}\n", "line 2: there is no field `text`"),
            ("{\"text\": [1]}\n", "line 1: the field `text` is not a text"),
        ] {
            let error = Corpus::read(file(text).path(), "text").expect_err(text).to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
