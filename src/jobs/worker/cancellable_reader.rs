//! A file that is read until the job must stop. [`super::training`] reads training files through it.

use std::io::{BufReader, Read, Seek as _};

use super::lease::Control;
use attune_train::{Error, Result};

/// A file from its beginning, whose reading ends when the job must stop: a large one takes minutes to tokenize.
pub(super) fn cancellable<'a>(
    mut file: &'a std::fs::File,
    control: &'a Control,
) -> Result<BufReader<CancellableReader<'a>>> {
    file.rewind().map_err(Error::io("read a temporary file"))?;
    Ok(BufReader::with_capacity(1 << 16, CancellableReader { file, control }))
}

/// The reader of [`cancellable`].
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
