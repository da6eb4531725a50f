//! Reads the names and shapes of a GGUF file's tensors: the header alone, of all parts of the model.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

/// More than any model has; a hostile header must not take the memory.
const MOST_TENSORS: u64 = 100_000;
const MOST_KEYS: u64 = 100_000;
const LONGEST_NAME: u64 = 1 << 16;
/// GGML's limit is four.
const MOST_DIMENSIONS: u32 = 8;

/// Returns the name and shape of each tensor; `None` if the file is no GGUF file of version 2 or 3.
pub(super) fn shapes(path: &Path) -> Option<Vec<(String, Vec<u64>)>> {
    let mut all = Vec::new();
    for part in parts(path) {
        all.extend(Reader(BufReader::new(File::open(part).ok()?)).shapes()?);
    }
    Some(all)
}

/// Returns the parts of the model that begins with `path`.
fn parts(path: &Path) -> Vec<PathBuf> {
    let name = path.to_string_lossy();
    let count = name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-00001-of-"));
    match count.and_then(|(stem, count)| Some((stem, count, count.parse::<u32>().ok()?))) {
        Some((stem, digits, count)) => {
            (1..=count).map(|number| format!("{stem}-{number:05}-of-{digits}.gguf").into()).collect()
        }
        None => vec![path.to_owned()],
    }
}

struct Reader(BufReader<File>);

impl Reader {
    fn shapes(mut self) -> Option<Vec<(String, Vec<u64>)>> {
        if self.bytes::<4>()? != *b"GGUF" || !matches!(self.u32()?, 2 | 3) {
            return None;
        }
        let (tensors, keys) = (self.u64()?, self.u64()?);
        if tensors > MOST_TENSORS || keys > MOST_KEYS {
            return None;
        }
        for _ in 0..keys {
            self.text()?;
            let kind = self.u32()?;
            self.skip_value(kind)?;
        }
        (0..tensors).map(|_| self.tensor()).collect()
    }

    fn tensor(&mut self) -> Option<(String, Vec<u64>)> {
        let name = self.text()?;
        let dimensions = self.u32().filter(|count| *count <= MOST_DIMENSIONS)?;
        let sizes = (0..dimensions).map(|_| self.u64()).collect::<Option<Vec<u64>>>()?;
        // Its type and its offset.
        self.bytes::<12>()?;
        Some((name, sizes))
    }

    fn skip_value(&mut self, kind: u32) -> Option<()> {
        if kind == 8 {
            let length = self.u64()?;
            return self.skip(length);
        }
        if kind != 9 {
            return self.skip(width(kind)?);
        }
        let (kind, count) = (self.u32()?, self.u64()?);
        if kind != 8 {
            return self.skip(width(kind)?.checked_mul(count)?);
        }
        for _ in 0..count {
            let length = self.u64()?;
            self.skip(length)?;
        }
        Some(())
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u64().filter(|length| *length <= LONGEST_NAME)?;
        let mut bytes = vec![0; length as usize];
        self.0.read_exact(&mut bytes).ok()?;
        String::from_utf8(bytes).ok()
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        self.0.seek_relative(i64::try_from(bytes).ok()?).ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// Returns the bytes of a value of this type; `None` for texts, lists and unknown types.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn file() -> Vec<u8> {
        let list = [&9_u32.to_le_bytes()[..], &8_u32.to_le_bytes(), &2_u64.to_le_bytes(), &text("a"), &text("bc")];
        let number = [&4_u32.to_le_bytes()[..], &7_u32.to_le_bytes()];
        let tensor = [&2_u32.to_le_bytes()[..], &64_u64.to_le_bytes(), &3_u64.to_le_bytes(), &[0; 12]];
        let head = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &1_u64.to_le_bytes(), &2_u64.to_le_bytes()];
        [
            head.concat(),
            text("k"),
            list.concat(),
            text("n"),
            number.concat(),
            text("token_embd.weight"),
            tensor.concat(),
        ]
        .concat()
    }

    #[test]
    fn shapes_are_read_past_every_kind_of_value_and_a_cut_file_gives_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.gguf");
        let bytes = file();
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(shapes(&path), Some(vec![("token_embd.weight".to_owned(), vec![64, 3])]));
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).expect("written");
            assert_eq!(shapes(&path), None, "{length}");
        }
        let mut huge = bytes;
        huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(&path, &huge).expect("written");
        assert_eq!(shapes(&path), None);
    }
}
