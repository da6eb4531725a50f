//! Writes tensors into safetensors files of a limited size, and the index over them, one tensor in memory at a time.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::addition::Change;
use crate::{Error, Result};

/// A tensor that is to be written.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Bytes of its data.
    pub(super) bytes: usize,
    /// What is added to it; `None` if it is copied.
    pub(super) change: Option<Change>,
}

/// Writes `tensors` to `folder`, with the data that `data` returns for each: one file if it has `file_bytes` at the
/// most, else several and their index.
pub(super) fn write<'a>(
    folder: &Path,
    mut tensors: Vec<Tensor>,
    file_bytes: usize,
    data: impl Fn(&Tensor) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    // Types with more bytes first, so that every tensor is aligned to its own.
    tensors.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
    let total: usize = tensors.iter().map(|tensor| tensor.bytes).sum();
    let files = cut(&tensors, file_bytes);
    let name = |number: usize| match files.len() {
        1 => "model.safetensors".to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    for (number, file) in files.iter().enumerate() {
        write_file(&folder.join(name(number)), file, &data)?;
    }
    if files.len() > 1 {
        let places = files.iter().enumerate().flat_map(|(number, file)| {
            let name = name(number);
            file.iter().map(move |tensor| (tensor.name.clone(), Value::from(name.clone())))
        });
        let index = json!({"metadata": {"total_size": total}, "weight_map": places.collect::<Map<_, _>>()});
        let text = serde_json::to_vec_pretty(&index).map_err(|error| Error::Internal(error.to_string()))?;
        let file = folder.join("model.safetensors.index.json");
        std::fs::write(&file, text).map_err(Error::io(format!("write {}", file.display())))?;
    }
    Ok(())
}

/// Cuts the list where a file would become too large.
fn cut(tensors: &[Tensor], file_bytes: usize) -> Vec<&[Tensor]> {
    let (mut files, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, tensor) in tensors.iter().enumerate() {
        if index > start && bytes + tensor.bytes > file_bytes {
            files.push(&tensors[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += tensor.bytes;
    }
    files.push(&tensors[start..]);
    files
}

fn write_file<'a>(path: &Path, tensors: &[Tensor], data: &impl Fn(&Tensor) -> Result<Cow<'a, [u8]>>) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes;
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).map_err(|error| Error::Internal(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let context = || Error::io(format!("write {}", path.display()));
    let mut file = BufWriter::new(File::create_new(path).map_err(context())?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(context())?;
    file.write_all(&header).map_err(context())?;
    for tensor in tensors {
        let bytes = data(tensor)?;
        if bytes.len() != tensor.bytes {
            return Err(Error::Internal(format!("{} bytes for the tensor `{}`", bytes.len(), tensor.name)));
        }
        file.write_all(&bytes).map_err(context())?;
    }
    file.into_inner().map_err(|error| context()(error.into_error()))?.sync_all().map_err(context())
}
