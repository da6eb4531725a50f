//! Work on an adapter's bytes, cut into pieces between which others may go first: a step of the engine is as slow as
//! its slowest thread, so no work beside it may hold a core for long.

use std::io::Read;
use std::ops::Range;

/// Bytes of a piece at the most: a fraction of a millisecond of hashing, checking or laying out.
pub const PIECE_BYTES: usize = 512 << 10;

/// Counts the bytes that are worked on, and asks between pieces.
pub struct Pieces<'a> {
    between: &'a mut dyn FnMut(usize),
    /// Bytes of the piece under way; `None` before the first.
    piece: Option<usize>,
}

impl<'a> Pieces<'a> {
    /// Calls `between` before each piece, with the bytes of the one that has ended (0 before the first).
    pub fn new(between: &'a mut dyn FnMut(usize)) -> Self {
        Self { between, piece: None }
    }

    /// Announces work on `bytes`, at most [`PIECE_BYTES`]: it belongs to the piece under way if there is room in it,
    /// else it begins another.
    pub fn work(&mut self, bytes: usize) {
        let piece = self.piece.unwrap_or(PIECE_BYTES);
        if piece + bytes > PIECE_BYTES {
            (self.between)(self.piece.unwrap_or(0));
            self.piece = Some(bytes);
        } else {
            self.piece = Some(piece + bytes);
        }
    }

    /// Reads `bytes` of `content`, or to its end, and shows each piece to `see`.
    pub fn read(
        &mut self,
        mut content: impl Read,
        bytes: usize,
        mut see: impl FnMut(&[u8]),
    ) -> std::io::Result<Vec<u8>> {
        let mut all = Vec::with_capacity(bytes);
        while all.len() < bytes {
            let (start, next) = (all.len(), PIECE_BYTES.min(bytes - all.len()));
            self.work(next);
            if content.by_ref().take(next as u64).read_to_end(&mut all)? == 0 {
                break;
            }
            see(&all[start..]);
        }
        Ok(all)
    }
}

/// Cuts `0..count` into parts of at most [`PIECE_BYTES`], one of them at the least, if each takes `bytes`.
pub(super) fn parts(count: usize, bytes: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let length = (PIECE_BYTES / bytes.max(1)).max(1);
    (0..count).step_by(length).map(move |start| start..count.min(start + length))
}
