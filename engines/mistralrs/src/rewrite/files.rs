//! Writes tensors in the form of safetensors to a file that is gone with the process.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::Result;
use candle_core::safetensors::MmapedSafetensors;
use serde_json::{Map, json};

use super::tensors::Tensor;

/// Writes a file that only `path`, a link, leads to. Its room is free again when the file is closed, however the process ends.
pub(super) fn write(path: &Path, source: &MmapedSafetensors, tensors: &[Tensor]) -> Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    std::fs::remove_file(path)?;
    let mut header = Map::new();
    let mut end = 0;
    for tensor in tensors {
        let begin = end;
        end += tensor.bytes();
        let said = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(tensor.name.clone(), said);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for tensor in tensors {
        tensor.write(source, &mut out)?;
    }
    out.flush()?;
    drop(out);
    std::os::unix::fs::symlink(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()), path)?;
    Ok(file)
}
