//! The file that vectors are written to, in JSON Lines or as an array of NumPy. Beside an unfinished one stands a small
//! file that says what its vectors are made of, so that the next run goes on with the same ones or not at all.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::corpus::Text;
use crate::{Error, Result};

/// Added to the name of a file of vectors that is not finished.
const UNFINISHED: &str = ".unfinished";
/// The header of an array of NumPy, version 1.0, padded to a round number.
const NUMPY: &[u8] = b"\x93NUMPY\x01\x00";
const NUMPY_HEADER: usize = 128;

/// What the vectors are made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// The fields of the requests beside their texts.
    pub(super) request: Map<String, Value>,
    /// How many texts there are.
    pub(super) texts: usize,
    /// Checksum of the texts.
    pub(super) digest: String,
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    embedding: &'a [f32],
}

/// A file of vectors on its way.
#[derive(Debug)]
pub(super) struct VectorsFile {
    path: PathBuf,
    file: File,
    is_numpy: bool,
    written: usize,
    texts: usize,
    /// Values of each vector; `None` before there is one.
    width: Option<usize>,
    /// Locked as long as this run writes.
    _origin: File,
}

impl VectorsFile {
    /// Opens or begins the file at `path`; refuses one that is finished, or is made of something else than `origin`. Of
    /// a vector that was written in part, the part is removed.
    pub(super) fn open(path: &Path, origin: &Origin) -> Result<Self> {
        let beside = unfinished(path);
        if path.exists() && !beside.exists() {
            return Err(fault(path, "the file exists already: name another one by --output"));
        }
        let context = || format!("open {}", beside.display());
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&beside);
        let lock = lock.map_err(Error::io(context()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(fault(path, "another run writes this file")),
            Err(TryLockError::Error(error)) => return Err(Error::io(context())(error)),
        }
        let said = std::fs::read(&beside).map_err(Error::io(context()))?;
        match serde_json::from_slice::<Origin>(&said) {
            Ok(before) => same(path, &before, origin)?,
            // Ended before it was written, and so before there were vectors.
            Err(_) => std::fs::write(&beside, json!(origin).to_string()).map_err(Error::io(context()))?,
        }
        let context = || format!("open {}", path.display());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Error::io(context()))?;
        let is_numpy = path.extension().is_some_and(|end| end == "npy");
        let mut vectors = Self {
            path: path.to_path_buf(),
            file,
            is_numpy,
            written: 0,
            texts: origin.texts,
            width: None,
            _origin: lock,
        };
        let whole = if is_numpy { vectors.whole_rows()? } else { vectors.whole_lines()? };
        vectors.file.set_len(whole).map_err(Error::io(context()))?;
        vectors.file.seek(SeekFrom::End(0)).map_err(Error::io(context()))?;
        Ok(vectors)
    }

    /// Returns how many vectors are written.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// Writes the vectors of the next `texts`.
    pub(super) fn write(&mut self, texts: &[Text], vectors: &[Vec<f32>]) -> Result<()> {
        let width = *self.width.get_or_insert(vectors.first().map_or(0, Vec::len));
        if let Some(other) = vectors.iter().find(|vector| vector.len() != width) {
            let message =
                format!("the server's vectors have {width} values, then {}: is it another model?", other.len());
            return Err(fault(&self.path, &message));
        }
        let mut bytes = Vec::new();
        if self.is_numpy {
            if self.written == 0 {
                bytes = numpy_header(self.texts, width);
            }
            bytes.extend(vectors.iter().flatten().flat_map(|value| value.to_le_bytes()));
        } else {
            for (index, (text, vector)) in (self.written..).zip(texts.iter().zip(vectors)) {
                let line = Line { index, id: text.id.as_ref(), embedding: vector };
                let written = serde_json::to_writer(&mut bytes, &line);
                written.map_err(|error| Error::Internal(format!("write a vector as JSON: {error}")))?;
                bytes.push(b'\n');
            }
        }
        self.file.write_all(&bytes).map_err(Error::io(format!("write {}", self.path.display())))?;
        self.written += vectors.len();
        Ok(())
    }

    /// Ends the file: it is complete.
    pub(super) fn finish(self) -> Result<()> {
        if self.written != self.texts {
            return Err(Error::Internal(format!("{} vectors were made of {} texts", self.written, self.texts)));
        }
        let beside = unfinished(&self.path);
        std::fs::remove_file(&beside).map_err(Error::io(format!("remove {}", beside.display())))
    }

    /// Counts the whole lines, and returns their length in bytes.
    fn whole_lines(&mut self) -> Result<u64> {
        let context = || format!("read {}", self.path.display());
        let mut reader = BufReader::new(&self.file);
        let (mut line, mut last, mut whole) = (Vec::new(), Vec::new(), 0);
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).map_err(Error::io(context()))?;
            if !line.ends_with(b"\n") {
                break;
            }
            std::mem::swap(&mut line, &mut last);
            whole += length as u64;
            self.written += 1;
        }
        if self.written == 0 {
            return Ok(0);
        }
        let said: Option<Value> = serde_json::from_slice(&last).ok();
        let said = said.filter(|said| said["index"] == self.written - 1 && self.written <= self.texts);
        let Some(said) = said else {
            return Err(fault(&self.path, "the vectors in it are not those of an unfinished run"));
        };
        self.width = said["embedding"].as_array().map(Vec::len);
        Ok(whole)
    }

    /// Counts the whole rows of an array of NumPy, and returns their length in bytes with the header.
    fn whole_rows(&mut self) -> Result<u64> {
        let context = || format!("read {}", self.path.display());
        let length = self.file.metadata().map_err(Error::io(context()))?.len();
        let Some(data) = length.checked_sub(NUMPY_HEADER as u64) else { return Ok(0) };
        let mut header = [0; NUMPY_HEADER];
        (&self.file).read_exact(&mut header).map_err(Error::io(context()))?;
        let text = String::from_utf8_lossy(&header);
        let shape = text.split_once(&format!("({}, ", self.texts)).and_then(|(_, rest)| rest.split_once(')'));
        let width = shape.and_then(|(width, _)| width.parse::<usize>().ok()).filter(|width| *width > 0);
        let row = width.filter(|width| header[..] == numpy_header(self.texts, *width)).map(|width| 4 * width as u64);
        let rows = row.map(|row| data / row).filter(|rows| *rows <= self.texts as u64);
        let (Some(row), Some(rows)) = (row, rows) else {
            return Err(fault(&self.path, "the vectors in it are not those of an unfinished run"));
        };
        if rows == 0 {
            return Ok(0);
        }
        (self.written, self.width) = (rows as usize, width);
        Ok(NUMPY_HEADER as u64 + rows * row)
    }
}

/// Makes the header of an array of `rows` vectors of `width` numbers in f32.
fn numpy_header(rows: usize, width: usize) -> Vec<u8> {
    let shape = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    let length = NUMPY_HEADER - NUMPY.len() - 2;
    let mut header = NUMPY.to_vec();
    header.extend((length as u16).to_le_bytes());
    header.extend(format!("{shape:<width$}\n", width = length - 1).into_bytes());
    header
}

/// Refuses to go on with vectors of something else.
fn same(path: &Path, before: &Origin, now: &Origin) -> Result<()> {
    let other = if before.request != now.request {
        format!("with other settings: {}", json!(before.request))
    } else if (before.texts, &before.digest) != (now.texts, &now.digest) {
        format!("of {} other texts", before.texts)
    } else {
        return Ok(());
    };
    let message =
        format!("the file was begun {other}; remove it with {}, or name another one", unfinished(path).display());
    Err(fault(path, &message))
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

fn fault(path: &Path, message: &str) -> Error {
    Error::Setup(format!("{}: {message}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: [[f32; 2]; 3] = [[0.5, -1.0], [0.1, 2.0], [3.0, 1e-9]];

    fn origin(texts: usize) -> Origin {
        let request = json!({"model": "demo"});
        Origin { request: request.as_object().expect("an object").clone(), texts, digest: "x".into() }
    }

    fn text(id: Option<Value>) -> Text {
        Text { line: 1, id, content: "a".into() }
    }

    /// Writes the vectors `from..to` and ends without finishing.
    fn write(path: &Path, from: usize, to: usize) -> VectorsFile {
        let mut file = VectorsFile::open(path, &origin(3)).expect("opened");
        assert_eq!(file.written(), from);
        let texts: Vec<Text> = (from..to).map(|index| text((index > 0).then(|| index.into()))).collect();
        let vectors: Vec<Vec<f32>> = VECTORS[from..to].iter().map(|vector| vector.to_vec()).collect();
        file.write(&texts, &vectors).expect("written");
        file
    }

    #[test]
    fn a_file_that_was_ended_in_the_middle_of_a_vector_becomes_the_same_as_one_in_one_go() {
        for name in ["v.jsonl", "v.npy"] {
            let folder = tempfile::tempdir().expect("a folder");
            let (whole, parts) = (folder.path().join(format!("whole-{name}")), folder.path().join(name));
            write(&whole, 0, 3).finish().expect("finished");
            let expected = std::fs::read(&whole).expect("read");
            write(&parts, 0, 2);
            let length = std::fs::metadata(&parts).expect("there").len();
            // The second vector is there in part.
            OpenOptions::new().write(true).open(&parts).expect("opened").set_len(length - 3).expect("cut");
            write(&parts, 1, 2);
            write(&parts, 2, 3).finish().expect("finished");
            assert_eq!(std::fs::read(&parts).expect("read"), expected, "{name}");
            assert!(!unfinished(&parts).exists());
            let error = VectorsFile::open(&parts, &origin(3)).expect_err("finished").to_string();
            assert!(error.contains("exists already"), "{error}");
        }
    }

    #[test]
    fn lines_hold_index_id_and_vector_and_an_array_is_what_numpy_reads() {
        let folder = tempfile::tempdir().expect("a folder");
        let (lines, array) = (folder.path().join("v.jsonl"), folder.path().join("v.npy"));
        write(&lines, 0, 3);
        let text = std::fs::read_to_string(lines).expect("read");
        let first = "{\"index\":0,\"embedding\":[0.5,-1.0]}\n{\"index\":1,\"id\":1,\"embedding\":[0.1,2.0]}\n";
        assert!(text.starts_with(first), "{text}");
        write(&array, 0, 3);
        let bytes = std::fs::read(array).expect("read");
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert!(bytes[10..].starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }"));
        assert_eq!((bytes[127], bytes.len()), (b'\n', 128 + 24));
        assert_eq!(bytes[128..132], 0.5_f32.to_le_bytes());
    }

    #[test]
    fn vectors_of_something_else_are_not_gone_on_with() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("v.jsonl");
        let open = write(&path, 0, 2);
        let refused = |origin: &Origin| VectorsFile::open(&path, origin).expect_err("refused").to_string();
        assert!(refused(&origin(3)).contains("another run"), "it is being written");
        drop(open);
        let mut other = origin(3);
        other.request.insert("dimensions".into(), 2.into());
        assert!(refused(&other).contains("other settings: {\"model\":\"demo\"}"));
        assert!(refused(&Origin { digest: "y".into(), ..origin(3) }).contains("of 3 other texts"));
        std::fs::write(&path, "{\"index\":5,\"embedding\":[1]}\n").expect("written");
        assert!(refused(&origin(3)).contains("not those of an unfinished run"));
        let array = folder.path().join("v.npy");
        std::fs::write(&array, vec![0; 500]).expect("written");
        std::fs::copy(unfinished(&path), unfinished(&array)).expect("copied");
        let error = VectorsFile::open(&array, &origin(3)).expect_err("refused").to_string();
        assert!(error.contains("not those of an unfinished run"), "{error}");
    }

    #[test]
    fn vectors_of_another_width_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("v.jsonl");
        drop(write(&path, 0, 1));
        let mut file = VectorsFile::open(&path, &origin(3)).expect("opened");
        let error = file.write(&[text(None)], &[vec![1.0, 2.0, 3.0]]).expect_err("refused").to_string();
        assert!(error.contains("have 2 values, then 3"), "{error}");
    }
}
