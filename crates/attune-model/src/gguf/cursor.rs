//! Reads numbers and texts of a header one after the other. Nothing is believed that the file has no bytes for, so that
//! what is allocated stays a small multiple of the file's size.

use bytes::Bytes;

use super::types::NumberType;

/// A place in a file's bytes.
pub(super) struct Cursor<'a> {
    bytes: &'a Bytes,
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a Bytes) -> Self {
        Self { bytes, position: 0 }
    }

    /// Returns the number of bytes read.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Returns the number of bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// Reads the next `count` bytes.
    pub(super) fn take(&mut self, count: usize) -> Result<Bytes, String> {
        if count > self.left() {
            return Err(format!("the file ends at byte {}, within its header", self.bytes.len()));
        }
        let start = self.position;
        self.position += count;
        Ok(self.bytes.slice(start..self.position))
    }

    /// Reads a whole number of 4 bytes.
    pub(super) fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    /// Reads a whole number of 8 bytes.
    pub(super) fn u64(&mut self) -> Result<u64, String> {
        let bytes = self.take(8)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Reads how many things of at least `size` bytes follow.
    pub(super) fn count(&mut self, size: usize, what: &str) -> Result<usize, String> {
        let count = self.u64()?;
        let room = self.left() / size.max(1);
        match usize::try_from(count) {
            Ok(count) if count <= room => Ok(count),
            _ => Err(format!("{what} is {count}, for which the file is too short")),
        }
    }

    /// Reads a text.
    pub(super) fn text(&mut self, what: &str) -> Result<String, String> {
        let length = self.count(1, &format!("the length of {what}"))?;
        let bytes = self.take(length)?;
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| format!("{what} is not UTF-8"))
    }

    /// Reads `count` numbers of the type `kind`.
    pub(super) fn numbers(&mut self, kind: NumberType, count: usize) -> Result<Bytes, String> {
        self.take(count.checked_mul(kind.size()).ok_or("a list is longer than any file")?)
    }
}
