//! Reads a file until the job must stop. Called by [`super::inputs`] for training and validation files.

use std::io::{BufReader, Read, Seek as _};

use super::lease::Control;
use attune_train::{Error, Result};

/// Opens the file at its beginning for reading that fails once the job must stop: a large file takes minutes to
/// tokenize.
pub(super) fn cancellable<'a>(
    mut file: &'a std::fs::File,
    control: &'a Control,
) -> Result<BufReader<CancellableReader<'a>>> {
    file.rewind().map_err(Error::io("read a temporary file"))?;
    Ok(BufReader::with_capacity(1 << 16, CancellableReader { file, control }))
}

/// Reader that [`cancellable`] makes.
pub(super) struct CancellableReader<'a> {
    file: &'a std::fs::File,
    control: &'a Control,
}

impl Read for CancellableReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.control.check().map_err(std::io::Error::other)?;
        self.file.read(buffer)
    }
}
