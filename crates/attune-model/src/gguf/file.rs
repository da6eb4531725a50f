//! A GGUF file, mapped: its keys, and its tensors in their blocks. Opened by `Checkpoint`, read by `Weights` and by the
//! translations beside this file.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::header::Header;
use super::metadata::Metadata;
use super::shards;
use crate::blocks::{BlockMatrix, BlockType};
use crate::{Error, Result};

/// Kinds of files that hold no model, by the value of `general.type`.
const OTHER_KINDS: [(&str, &str); 3] = [
    ("adapter", "it is a LoRA adapter, not a model: serve the model that it was trained on"),
    ("mmproj", "it is the image or audio part of a model: give the file of its language model"),
    ("imatrix", "it holds statistics for quantizing, not a model"),
];

/// A model's GGUF file, or all of its shards.
#[derive(Debug, Clone)]
pub struct Gguf {
    path: PathBuf,
    /// All files, the first one first.
    files: Vec<PathBuf>,
    metadata: Metadata,
    tensors: BTreeMap<String, GgufTensor>,
}

/// A tensor of a file.
#[derive(Debug, Clone)]
pub struct GgufTensor {
    /// Dimensions, the slowest first: `[outputs, inputs]` for a matrix.
    pub shape: Vec<usize>,
    /// Type of the blocks that run along the last dimension.
    pub kind: BlockType,
    /// The blocks, a part of the mapped file.
    pub bytes: Bytes,
}

impl Gguf {
    /// Maps the file at `path`, and its other shards if it is the first of several. Refuses what is not a model.
    pub fn open(path: &Path) -> Result<Self> {
        let (metadata, mut tensors) = read_file(path)?;
        if let Some(kind) = metadata.text("general.type")?.filter(|kind| *kind != "model") {
            let what = OTHER_KINDS.iter().find(|(name, _)| *name == kind);
            let what = what.map_or("only the type `model` is read", |(_, what)| what);
            return Err(metadata.fault(&format!("the file's `general.type` is `{kind}`: {what}")));
        }
        let mut files = vec![path.to_path_buf()];
        for (number, shard) in shards::others(path, &metadata)?.into_iter().enumerate() {
            let (keys, more) = read_file(&shard)?;
            shards::check(&keys, &metadata, number + 1)?;
            for (name, tensor) in more {
                if tensors.contains_key(&name) {
                    return Err(keys.fault(&format!("the tensor `{name}` is in another shard already")));
                }
                tensors.insert(name, tensor);
            }
            files.push(shard);
        }
        shards::check_total(&metadata, tensors.len())?;
        Ok(Self { path: path.to_path_buf(), files, metadata, tensors })
    }

    /// Makes a file that is yet to be written, of its keys and its tensors.
    pub(crate) fn planned(path: &Path, metadata: Metadata, tensors: BTreeMap<String, GgufTensor>) -> Self {
        Self { path: path.to_path_buf(), files: Vec::new(), metadata, tensors }
    }

    /// Returns the path that the model was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the paths of all files of the model.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Returns the keys.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Returns the tensor `name`; `None` if there is none.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name)
    }

    /// Returns all tensors by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &GgufTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Returns an error about the file, which it names.
    pub fn fault(&self, message: &str) -> Error {
        self.metadata.fault(message)
    }
}

impl GgufTensor {
    /// Returns the tensor as a matrix `[outputs, inputs]`, all dimensions but the last one taken together.
    pub fn matrix(&self) -> Result<BlockMatrix> {
        let columns = self.shape.last().copied().unwrap_or(1);
        let rows = self.shape.iter().rev().skip(1).product();
        BlockMatrix::new(self.kind, rows, columns, self.bytes.clone())
    }
}

fn read_file(path: &Path) -> Result<(Metadata, BTreeMap<String, GgufTensor>)> {
    let bytes = map(path)?;
    let header = Header::read(&bytes).map_err(|message| Error::Setup(format!("{}: {message}", path.display())))?;
    let tensors = header.tensors.into_iter().map(|row| {
        let bytes = bytes.slice(row.start..row.start + row.length);
        (row.name, GgufTensor { shape: row.shape, kind: row.kind, bytes })
    });
    let tensors = tensors.collect();
    Ok((Metadata::new(path.display().to_string(), header.values), tensors))
}

fn map(path: &Path) -> Result<Bytes> {
    let context = || format!("read {}", path.display());
    let file = File::open(path).map_err(Error::io(context()))?;
    if file.metadata().map_err(Error::io(context()))?.len() == 0 {
        return Err(Error::Setup(format!("{}: the file is empty: the download is not complete", path.display())));
    }
    // SAFETY: the file is mapped read-only; as for every server of such files, changing it while it is mapped is the
    // operator's fault, and can at worst change weights, since the header is checked once here.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(context()))?;
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
