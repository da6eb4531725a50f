//! Receives an upload: the parts of a form in any order, the file to disk as it arrives, and the check that a training
//! file holds one JSON object on each line. Called by `files` and `uploads`.

use std::fs::Permissions;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Map, Value};
use tempfile::{NamedTempFile, TempPath};
use tokio::io::AsyncWriteExt as _;

use crate::api::http::disposition::Disposition;
use crate::api::http::error::{Problem, Result};
use crate::api::http::form::Form;
use crate::datasets::faults::Faults;
use crate::datasets::json;
use crate::datasets::lines::Lines;
use crate::datasets::parse::shorten;

/// Bytes of a form field that is not the file.
const MAX_FIELD_BYTES: usize = 4096;
/// Notes that a file may have; whoever calls refuses more.
const MAX_NOTES: usize = 16;

/// An upload on disk; the file is removed when this drops, unless it was moved away.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Where the content lies.
    pub path: TempPath,
    /// The name that the uploader gave.
    pub filename: String,
    /// What it is for, as sent.
    pub purpose: String,
    /// `expires_after[anchor]` and `expires_after[seconds]`, as sent.
    pub expires_after: [Option<String>; 2],
    /// The fields `metadata[name]`.
    pub metadata: Map<String, Value>,
}

/// Reads the whole form; the file lies in `folder` and has at most `limit` bytes. A field that comes twice is refused
/// before its content is read: one of the two would be lost.
pub(crate) async fn receive(mut form: Form, folder: &Path, limit: usize) -> Result<Upload, Problem> {
    let (mut file, mut purpose, mut expires_after) = (None, None, [None, None]);
    let mut metadata = Map::new();
    while let Some(Disposition { name, filename }) = form.next_part().await? {
        let name = name.unwrap_or_default();
        let is_twice = match name.as_str() {
            "file" => file.is_some(),
            "purpose" => purpose.is_some(),
            "expires_after[anchor]" => expires_after[0].is_some(),
            "expires_after[seconds]" => expires_after[1].is_some(),
            name => note_name(name).is_some_and(|note| metadata.contains_key(note)),
        };
        if is_twice {
            let message = format!("The form has the field '{name}' more than once: send one file in each request.");
            return Err(Problem::invalid_code(name, "duplicate_field", message));
        }
        match name.as_str() {
            "file" => {
                let filename = filename.as_deref().unwrap_or("upload").chars().take(255).collect::<String>();
                file = Some((spool(&mut form, folder, (limit, "file")).await?.0, filename));
            }
            "purpose" => purpose = Some(small_text(&mut form, &name).await?),
            "expires_after[anchor]" => expires_after[0] = Some(small_text(&mut form, &name).await?),
            "expires_after[seconds]" => expires_after[1] = Some(small_text(&mut form, &name).await?),
            _ => {
                let text = small_text(&mut form, &name).await?;
                // One more than may be is enough to be refused.
                if let Some(note) = note_name(&name).filter(|_| metadata.len() <= MAX_NOTES) {
                    metadata.insert(note.to_owned(), text.into());
                }
            }
        }
    }
    let (path, filename) = file.ok_or_else(|| Problem::missing("file"))?;
    let purpose = purpose.ok_or_else(|| Problem::missing("purpose"))?;
    Ok(Upload { path, filename, purpose, expires_after, metadata })
}

/// Returns `name` of the field `metadata[name]`.
fn note_name(field: &str) -> Option<&str> {
    field.strip_prefix("metadata[")?.strip_suffix(']')
}

/// Reads the form of a part, whose field `data` has at most `limit` bytes; returns where they lie, and how many.
pub(crate) async fn receive_part(mut form: Form, folder: &Path, limit: usize) -> Result<(TempPath, usize), Problem> {
    let mut data = None;
    while let Some(Disposition { name, .. }) = form.next_part().await? {
        match name.unwrap_or_default().as_str() {
            "data" if data.is_some() => {
                let message = "The form has the field 'data' more than once: send one part in each request.";
                return Err(Problem::invalid_code("data", "duplicate_field", message));
            }
            "data" => data = Some(spool(&mut form, folder, (limit, "data")).await?),
            name => drop(small_text(&mut form, name).await?),
        }
    }
    data.ok_or_else(|| Problem::missing("data"))
}

/// Writes what the present field of the form holds into a file, and returns how many bytes it has: at most the `limit` of
/// the field.
async fn spool(form: &mut Form, folder: &Path, (limit, field): (usize, &'static str)) -> Result<(TempPath, usize)> {
    let context = || format!("write an upload to {}", folder.display());
    tokio::fs::create_dir_all(folder).await.map_err(Problem::io(context()))?;
    let (file, path) = upload_file(folder).map_err(Problem::io(context()))?.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let mut bytes = 0;
    while let Some(piece) = form.piece().await? {
        bytes += piece.len();
        if bytes > limit {
            let what = if field == "data" { "The part" } else { "The file" };
            return Err(Problem::too_large(what, limit).param(field));
        }
        file.write_all(&piece).await.map_err(Problem::io(context()))?;
    }
    file.flush().await.map_err(Problem::io(context()))?;
    Ok((path, bytes))
}

/// A temporary file with the permissions of any new file: it becomes the blob itself.
pub(crate) fn upload_file(folder: &Path) -> std::io::Result<NamedTempFile> {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)
}

async fn small_text(form: &mut Form, name: &str) -> Result<String, Problem> {
    let fault = |what: String| Problem::invalid_code(shorten(name), "invalid_value", what);
    let mut bytes = Vec::new();
    while let Some(piece) = form.piece().await? {
        if bytes.len() + piece.len() > MAX_FIELD_BYTES {
            let name = shorten(name);
            return Err(fault(format!("The form field '{name}' is longer than {MAX_FIELD_BYTES} bytes.")));
        }
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes).map_err(|_| fault(format!("The form field '{}' is not UTF-8 text.", shorten(name))))
}

/// Checks that every line of the file is a JSON object. Reads the whole file: call it off the async threads.
pub(crate) fn check_lines(path: &Path) -> Result<()> {
    const EXPECTED: &str = "Expected file to have JSONL format, where every line is a JSON dictionary.";
    let file = std::fs::File::open(path).map_err(Problem::io(format!("read the upload {}", path.display())))?;
    let mut lines = Lines::new(BufReader::with_capacity(1 << 20, file));
    let (mut faults, mut objects) = (Faults::default(), 0_usize);
    while let Some((number, line)) = lines.next_line()? {
        match line.and_then(json::check) {
            Ok(()) => objects += 1,
            Err(fault) => faults.push(number, &fault),
        }
    }
    if !faults.is_empty() {
        return Err(Problem::bad_request(format!("{EXPECTED}{}", faults.sentences())));
    }
    if objects == 0 {
        return Err(Problem::bad_request(format!("The file is empty. {EXPECTED}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &[u8]) -> Option<String> {
        let file = NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), content).expect("written");
        check_lines(file.path()).err().map(|problem| problem.error.message)
    }

    #[test]
    fn one_object_on_each_line_is_fine() {
        assert_eq!(check(b"{\"prompt\":\"a\"}\n{\"b\":{}}"), None);
        assert_eq!(check("\u{feff}{}\r\n{}\r\n\n\n".as_bytes()), None);
    }

    #[test]
    fn a_fault_names_its_line_and_what_to_change() {
        for (content, line) in [
            (&b"{}\n[1]\n"[..], "Line 2 is an array, not a JSON object: write one JSON object on each line."),
            (b"{}\n{}\n{\"a\":\n", "Line 3 (column 5) ends before its object does"),
            (b"{}\n\n{}\n", "Line 2 is empty: remove it"),
            (b"{\"a\":\"\xff\"}\n", "Line 1 (byte 7) is not UTF-8: save the file as UTF-8."),
            (b"prompt,completion\na,b\n", "Line 1 looks like the beginning of a table (CSV)"),
            (b"{\"a\":1},\n{\"a\":2},\n{}\n", "Lines 1 and 2 end with a comma: remove the comma at the end."),
            (b"[\n{\"a\":1}\n]\n", "Line 1 is the beginning of one JSON array"),
            (b"{}\n{\"a\":\"\\ud83d\"}\n", "Line 2 (column 13) has half of a character"),
            (b"{}\n{\"a\":1,\"a\":2}\n", "Line 2 has the key `a` twice"),
        ] {
            let message = check(content).expect("a fault");
            assert!(message.contains(line), "{message}");
        }
    }

    #[test]
    fn an_empty_file_is_refused() {
        for content in [&b""[..], b"\n\n", "\u{feff}".as_bytes()] {
            assert!(check(content).is_some_and(|message| message.contains("empty")));
        }
    }
}
