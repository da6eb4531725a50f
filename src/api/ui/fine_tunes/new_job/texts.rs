//! Makes lines of prompts of a plain text. Used by [`super::receive`] for what a teacher is to answer.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use serde_json::json;
use tempfile::{NamedTempFile, TempPath};

use crate::api::http::error::{Problem, Result};
use crate::datasets::lines::MAX_LINE_BYTES;

/// What a text is.
#[derive(Debug)]
pub(super) enum Text {
    /// A prompt on each line; the file has them as JSON Lines.
    Prompts(TempPath),
    /// JSON Lines already.
    Lines,
    /// No prompts, for this reason.
    Refused(String),
}

/// Makes a line with a prompt of each line of the text at `source` that is not empty, in a file of `folder`.
pub(super) fn prompts(source: &Path, folder: &Path) -> Result<Text> {
    let read = || read(File::open(source)?, folder);
    read().map_err(Problem::io(format!("read the upload {}", source.display())))
}

fn read(source: File, folder: &Path) -> io::Result<Text> {
    let mut text = BufReader::new(source);
    let mut made = NamedTempFile::new_in(folder)?;
    let mut writer = BufWriter::new(made.as_file_mut());
    let mut count = 0;
    for number in 1_usize.. {
        let mut line = Vec::new();
        if (&mut text).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.len() as u64 == MAX_LINE_BYTES && !line.ends_with(b"\n") {
            return Ok(Text::Refused(format!("Line {number} has {} MiB or more.", MAX_LINE_BYTES >> 20)));
        }
        let Ok(prompt) = std::str::from_utf8(&line) else {
            return Ok(Text::Refused(format!("Line {number} is not UTF-8: save the text again as UTF-8.")));
        };
        let prompt = prompt.trim_start_matches('\u{feff}').trim();
        if count == 0 && prompt.starts_with('{') {
            return Ok(Text::Lines);
        }
        if !prompt.is_empty() {
            count += 1;
            writeln!(writer, "{}", json!({"prompt": prompt}))?;
        }
    }
    writer.flush()?;
    drop(writer);
    if count == 0 {
        return Ok(Text::Refused("The file has no line with a prompt.".into()));
    }
    Ok(Text::Prompts(made.into_temp_path()))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom};

    use super::*;

    fn made(content: &[u8]) -> Result<String, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content).expect("written");
        file.seek(SeekFrom::Start(0)).expect("rewound");
        match read(file, folder.path()).expect("read") {
            Text::Prompts(path) => Ok(std::fs::read_to_string(path).expect("lines")),
            Text::Lines => Ok("lines".into()),
            Text::Refused(why) => Err(why),
        }
    }

    #[test]
    fn each_line_of_a_text_is_a_prompt() {
        let text = "\u{feff}Who?\r\n\n  \"Why\", he said.  \nlast".as_bytes();
        let lines = "{\"prompt\":\"Who?\"}\n{\"prompt\":\"\\\"Why\\\", he said.\"}\n{\"prompt\":\"last\"}\n";
        assert_eq!(made(text).as_deref(), Ok(lines));
        assert_eq!(made(b"\n {\"prompt\": \"a\"}\n").as_deref(), Ok("lines"));
        assert!(made(b" \n\n").is_err_and(|why| why.contains("no line")));
        assert!(made(b"a\ncaf\xe9\n").is_err_and(|why| why.contains("Line 2")));
    }
}
