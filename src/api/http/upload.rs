//! Receives an upload: the parts of a form in any order, the file to disk as it arrives, and the check that a training
//! file holds one JSON object on each line. Called by `files::create`.

use std::fs::Permissions;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::http::header::CONTENT_DISPOSITION;
use tempfile::{NamedTempFile, TempPath};
use tokio::io::AsyncWriteExt as _;

use crate::api::http::disposition::Disposition;
use crate::api::http::error::{Problem, Result};
use crate::api::http::extract::{BODY_TIMEOUT, in_time};
use crate::datasets::faults::Faults;
use crate::datasets::json;
use crate::datasets::lines::Lines;

/// Bytes of a form field that is not the file.
const MAX_FIELD_BYTES: usize = 4096;
/// Parts of a form; more are not read.
const MAX_PARTS: usize = 32;

/// An upload on disk; the file is removed when this drops, unless it was moved away.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Where the content lies.
    pub path: TempPath,
    /// The name that the uploader gave.
    pub filename: String,
    /// What it is for, as sent.
    pub purpose: String,
}

/// Reads the whole form; the file lies in `folder` and has at most `limit` bytes.
pub(crate) async fn receive(mut form: Multipart, folder: &Path, limit: usize) -> Result<Upload, Problem> {
    let (mut file, mut purpose, mut parts) = (None, None, 0);
    while let Some(mut field) = timed(form.next_field()).await? {
        parts += 1;
        if parts > MAX_PARTS {
            return Err(Problem::bad_request(format!("The form has more than {MAX_PARTS} parts.")));
        }
        let header = field.headers().get(CONTENT_DISPOSITION);
        let Disposition { name, filename } = header.map(|it| Disposition::parse(it.as_bytes())).unwrap_or_default();
        let name = name.unwrap_or_default();
        match name.as_str() {
            "file" => {
                let filename = filename.as_deref().unwrap_or("upload").chars().take(255).collect::<String>();
                file = Some((spool(&mut field, folder, limit).await?, filename));
            }
            "purpose" => purpose = Some(small_text(&mut field, &name).await?),
            _ => drop(small_text(&mut field, &name).await?),
        }
    }
    let (path, filename) = file.ok_or_else(|| Problem::missing("file"))?;
    let purpose = purpose.ok_or_else(|| Problem::missing("purpose"))?;
    Ok(Upload { path, filename, purpose })
}

/// Waits for the client, within limits.
async fn timed<T>(work: impl Future<Output = Result<T, MultipartError>>) -> Result<T, Problem> {
    in_time(BODY_TIMEOUT, work)
        .await?
        .map_err(|error| Problem::bad_request(format!("The form could not be read: {}", error.body_text())))
}

async fn spool(field: &mut Field<'_>, folder: &Path, limit: usize) -> Result<TempPath, Problem> {
    let context = || format!("write an upload to {}", folder.display());
    tokio::fs::create_dir_all(folder).await.map_err(Problem::io(context()))?;
    let (file, path) = upload_file(folder).map_err(Problem::io(context()))?.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let mut bytes = 0;
    while let Some(chunk) = timed(field.chunk()).await? {
        bytes += chunk.len();
        if bytes > limit {
            return Err(Problem::too_large("The file", limit).param("file"));
        }
        file.write_all(&chunk).await.map_err(Problem::io(context()))?;
    }
    file.flush().await.map_err(Problem::io(context()))?;
    Ok(path)
}

/// A temporary file with the permissions of any new file: it becomes the blob itself.
fn upload_file(folder: &Path) -> std::io::Result<NamedTempFile> {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)
}

async fn small_text(field: &mut Field<'_>, name: &str) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    while let Some(chunk) = timed(field.chunk()).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_FIELD_BYTES {
            return Err(Problem::bad_request(format!(
                "The form field '{name}' is longer than {MAX_FIELD_BYTES} bytes."
            )));
        }
    }
    String::from_utf8(bytes).map_err(|_| Problem::bad_request("A form field is not UTF-8 text."))
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
