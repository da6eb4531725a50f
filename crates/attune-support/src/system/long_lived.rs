//! Memory for what is written once and read for as long as the program runs: weights. Pieces lie one behind the other, where
//! an allocator would round each of them up, in chunks that the system may hold in huge pages: each step reads all of it.

use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use super::allocator::{PageSize, advise, untouch};

/// Bytes of a chunk, if no piece is larger.
const CHUNK: usize = 64 << 20;
/// Bytes of a huge page on most machines; chunks begin and end with one.
const HUGE_PAGE: usize = 2 << 20;
/// Pieces begin at multiples of this: a cache line.
const ALIGNMENT: usize = 64;

/// The chunk that has room for the next pieces.
static OPEN: Mutex<Option<Open>> = Mutex::new(None);

struct Open {
    chunk: Arc<Chunk>,
    /// Bytes that pieces have.
    taken: usize,
}

/// Zeros until they are written, at an address that is a multiple of 64.
#[derive(Debug)]
pub struct LongLived {
    start: NonNull<u8>,
    length: usize,
    /// Lives as long as one of its pieces.
    _chunk: Arc<Chunk>,
}

/// Memory from the system itself: an allocator writes something of its own before or behind it, each time into a huge page.
#[derive(Debug)]
struct Chunk {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: a chunk is memory that nothing but its pieces refers to, and each piece has its own part of it.
unsafe impl Send for Chunk {}
// SAFETY: as above; a chunk itself is never read or written.
unsafe impl Sync for Chunk {}
// SAFETY: a piece owns its bytes, as a vector does.
unsafe impl Send for LongLived {}
// SAFETY: as above.
unsafe impl Sync for LongLived {}

impl LongLived {
    /// Makes `length` zeros, which take memory as they are written.
    pub fn zeros(length: usize) -> Self {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let rounded = length.next_multiple_of(ALIGNMENT);
        let Open { chunk, taken } = match open.take() {
            Some(open) if open.chunk.size - open.taken >= rounded => open,
            _ => Open { chunk: Arc::new(Chunk::new(rounded)), taken: 0 },
        };
        // SAFETY: the piece lies within the chunk.
        let start = unsafe { chunk.start.add(taken) };
        *open = Some(Open { chunk: chunk.clone(), taken: taken + rounded });
        Self { start, length, _chunk: chunk }
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the piece's own part of the chunk, which was zeros from the beginning.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// Returns the bytes, to write them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the piece's own part of the chunk, which was zeros from the beginning.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for LongLived {
    fn drop(&mut self) {
        // Others of the chunk may live on.
        untouch(self.bytes_mut());
    }
}

impl Chunk {
    /// Makes a chunk with room for `bytes` at least.
    fn new(bytes: usize) -> Self {
        let size = bytes.max(CHUNK).next_multiple_of(HUGE_PAGE);
        // One huge page more, so that a whole number of them is within; the rest goes back.
        let mapped = map(size + HUGE_PAGE);
        let before = mapped.align_offset(HUGE_PAGE).min(HUGE_PAGE);
        // SAFETY: both are parts of the mapping, which has no other user.
        let start = unsafe {
            unmap(mapped, before);
            unmap(mapped.add(before + size), HUGE_PAGE - before);
            mapped.add(before)
        };
        // SAFETY: the chunk's bytes, which nothing else refers to yet.
        advise(unsafe { slice::from_raw_parts_mut(start.as_ptr(), size) }, PageSize::Huge);
        Self { start, size }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: mapped with this size, and the last piece is gone.
        unsafe { unmap(self.start, self.size) };
    }
}

/// Asks the system for `size` bytes of zeros.
///
/// # Panics
/// If there is no such memory, as for allocations.
fn map(size: usize) -> NonNull<u8> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at a place of the system's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), size, access, kind, -1, 0) };
    match NonNull::new(start.cast::<u8>()) {
        Some(address) if start != libc::MAP_FAILED => address,
        _ => panic!("the system has no {size} bytes of memory"),
    }
}

/// Gives whole pages back.
///
/// # Safety
/// The pages are of a mapping by [`map`], and nothing refers to them.
unsafe fn unmap(start: NonNull<u8>, size: usize) {
    if size > 0 {
        // SAFETY: the caller's promise.
        unsafe { libc::munmap(start.as_ptr().cast(), size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zeros_of_their_own_behind_each_other_also_larger_than_a_chunk() {
        let lengths = [1, 64, 0, 100_000, CHUNK + 1, 3 << 20];
        let mut pieces: Vec<_> = lengths.iter().map(|length| LongLived::zeros(*length)).collect();
        for (number, piece) in (1_u8..).zip(&mut pieces) {
            assert_eq!(piece.bytes().as_ptr() as usize % ALIGNMENT, 0);
            assert!(piece.bytes().iter().all(|byte| *byte == 0));
            piece.bytes_mut().fill(number);
        }
        drop(pieces.remove(3));
        for (number, piece) in [1_u8, 2, 3, 5, 6].into_iter().zip(&pieces) {
            assert!(piece.bytes().iter().all(|byte| *byte == number), "{number}");
        }
        assert_eq!(pieces.iter().map(|piece| piece.bytes().len()).collect::<Vec<_>>(), [1, 64, 0, CHUNK + 1, 3 << 20]);
    }

    #[test]
    fn pieces_of_many_threads_do_not_overlap() {
        std::thread::scope(|scope| {
            for number in 1..=8_u8 {
                scope.spawn(move || {
                    let mut pieces: Vec<_> = (0..50).map(|length| LongLived::zeros(length * 999)).collect();
                    for piece in &mut pieces {
                        piece.bytes_mut().fill(number);
                    }
                    assert!(pieces.iter().all(|piece| piece.bytes().iter().all(|byte| *byte == number)));
                });
            }
        });
    }
}
