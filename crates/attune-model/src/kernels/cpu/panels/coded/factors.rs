//! Factors of a group in its header, and how a kernel reads them: each output's scale of a block or half, and sometimes
//! its offset. Products of factors are those that a block's values are made with, in f32.

use super::Codes;

/// Factors of one kind. A **part** is a block, or half a block if there are two scales to it; parts count from the
/// group's start.
pub(in super::super) trait Factors {
    /// Blocks of 32 inputs of a group.
    const BLOCKS: usize;
    /// Lines of the header.
    const LINES: usize;
    /// Scales of a block and output: 1, or 2 for halves.
    const HALVES: usize = 1;
    /// True if there are offsets.
    const OFFSETS: bool = false;
    /// Reads what the parts of a group share: a scale of scales, and one of offsets.
    unsafe fn shared<S: Codes>(header: *const u8) -> (S, S);
    /// Reads the scales of a part.
    unsafe fn scale<S: Codes>(header: *const u8, shared: (S, S), part: usize) -> S;
    /// Reads the offsets of a part.
    unsafe fn offset<S: Codes>(header: *const u8, shared: (S, S), part: usize) -> S;
}

/// Bytes of 16 numbers in f16: one of each output.
const WORDS: usize = 32;

/// Bytes of 16 numbers of a byte.
const BYTES: usize = 16;

/// Nothing is shared.
#[allow(clippy::inline_always, reason = "part of the kernels")]
#[inline(always)]
unsafe fn nothing<S: Codes>() -> (S, S) {
    // SAFETY: the caller's promises.
    unsafe { (S::zero(), S::zero()) }
}

/// Reads the first numbers of the header, in f16.
#[allow(clippy::inline_always, reason = "part of the kernels")]
#[inline(always)]
unsafe fn one_scale<S: Codes>(header: *const u8) -> (S, S) {
    // SAFETY: the caller's promises.
    unsafe { (S::from_halves(header), S::zero()) }
}

/// Reads the first two rows of numbers of the header, in f16; the second become negative, as minimums are subtracted.
#[allow(clippy::inline_always, reason = "part of the kernels")]
#[inline(always)]
unsafe fn scale_and_minimum<S: Codes>(header: *const u8) -> (S, S) {
    // SAFETY: the caller's promises.
    unsafe { (S::from_halves(header), S::from_halves(header.add(WORDS)).negative()) }
}

/// A scale in f16 for each block.
pub(in super::super) struct Halves;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Factors for Halves {
    const BLOCKS: usize = 2;
    const LINES: usize = 1;

    #[inline(always)]
    unsafe fn shared<S: Codes>(_header: *const u8) -> (S, S) {
        // SAFETY: the caller's promises.
        unsafe { nothing() }
    }

    #[inline(always)]
    unsafe fn scale<S: Codes>(header: *const u8, _shared: (S, S), part: usize) -> S {
        // SAFETY: the caller's promises.
        unsafe { S::from_halves(header.add(part * WORDS)) }
    }

    #[inline(always)]
    unsafe fn offset<S: Codes>(_header: *const u8, shared: (S, S), _part: usize) -> S {
        shared.1
    }
}

/// A scale and an offset in f16 for each block.
pub(in super::super) struct HalvesAndOffsets;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Factors for HalvesAndOffsets {
    const BLOCKS: usize = 1;
    const LINES: usize = 1;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn shared<S: Codes>(_header: *const u8) -> (S, S) {
        // SAFETY: the caller's promises.
        unsafe { nothing() }
    }

    #[inline(always)]
    unsafe fn scale<S: Codes>(header: *const u8, _shared: (S, S), _part: usize) -> S {
        // SAFETY: the caller's promises.
        unsafe { S::from_halves(header) }
    }

    #[inline(always)]
    unsafe fn offset<S: Codes>(header: *const u8, _shared: (S, S), _part: usize) -> S {
        // SAFETY: the caller's promises.
        unsafe { S::from_halves(header.add(WORDS)) }
    }
}

/// A power of two for each block.
pub(in super::super) struct Exponents;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Factors for Exponents {
    const BLOCKS: usize = 4;
    const LINES: usize = 1;

    #[inline(always)]
    unsafe fn shared<S: Codes>(_header: *const u8) -> (S, S) {
        // SAFETY: the caller's promises.
        unsafe { nothing() }
    }

    #[inline(always)]
    unsafe fn scale<S: Codes>(header: *const u8, _shared: (S, S), part: usize) -> S {
        // SAFETY: the caller's promises.
        unsafe { S::from_exponents(header.add(part * BYTES)) }
    }

    #[inline(always)]
    unsafe fn offset<S: Codes>(_header: *const u8, shared: (S, S), _part: usize) -> S {
        shared.1
    }
}

/// A scale in f16 for 256 inputs, and one in a signed byte for each `PARTS`-th of 8 blocks.
pub(in super::super) struct SignedScales<const HALVES: usize>;

/// A signed byte for each 32 inputs.
pub(in super::super) type Scales32 = SignedScales<1>;

/// A signed byte for each 16 inputs.
pub(in super::super) type Scales16 = SignedScales<2>;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<const HALVES: usize> Factors for SignedScales<HALVES> {
    const BLOCKS: usize = 8;
    const LINES: usize = (WORDS + 8 * HALVES * BYTES).div_ceil(64);
    const HALVES: usize = HALVES;

    #[inline(always)]
    unsafe fn shared<S: Codes>(header: *const u8) -> (S, S) {
        // SAFETY: the caller's promises.
        unsafe { one_scale(header) }
    }

    #[inline(always)]
    unsafe fn scale<S: Codes>(header: *const u8, shared: (S, S), part: usize) -> S {
        // SAFETY: the caller's promises.
        unsafe { shared.0.times(S::from_signed(header.add(WORDS + part * BYTES))) }
    }

    #[inline(always)]
    unsafe fn offset<S: Codes>(_header: *const u8, shared: (S, S), _part: usize) -> S {
        shared.1
    }
}

/// Two scales in f16 for 256 inputs, and a byte to multiply with each for every block or half of 8 blocks: the scale
/// and the minimum.
pub(in super::super) struct Minimums<const HALVES: usize>;

/// A scale and a minimum for each 32 inputs.
pub(in super::super) type Minimums32 = Minimums<1>;

/// A scale and a minimum for each 16 inputs.
pub(in super::super) type Minimums16 = Minimums<2>;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<const HALVES: usize> Factors for Minimums<HALVES> {
    const BLOCKS: usize = 8;
    const LINES: usize = (2 * WORDS + 8 * HALVES * 2 * BYTES) / 64;
    const HALVES: usize = HALVES;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn shared<S: Codes>(header: *const u8) -> (S, S) {
        // SAFETY: the caller's promises.
        unsafe { scale_and_minimum(header) }
    }

    #[inline(always)]
    unsafe fn scale<S: Codes>(header: *const u8, shared: (S, S), part: usize) -> S {
        // SAFETY: the caller's promises.
        unsafe { shared.0.times(S::from_bytes(header.add(2 * WORDS + part * 2 * BYTES))) }
    }

    #[inline(always)]
    unsafe fn offset<S: Codes>(header: *const u8, shared: (S, S), part: usize) -> S {
        // SAFETY: the caller's promises.
        unsafe { shared.1.times(S::from_bytes(header.add(2 * WORDS + part * 2 * BYTES + BYTES))) }
    }
}

/// Scales in f32, then offsets in f32: for a block's halves, or one for all of `BLOCKS` blocks.
pub(in super::super) struct Floats<const BLOCKS: usize, const HALVES: usize>;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<const BLOCKS: usize, const HALVES: usize> Factors for Floats<BLOCKS, HALVES> {
    const BLOCKS: usize = BLOCKS;
    const LINES: usize = 2 * HALVES;
    const HALVES: usize = HALVES;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn shared<S: Codes>(_header: *const u8) -> (S, S) {
        // SAFETY: the caller's promises.
        unsafe { nothing() }
    }

    #[inline(always)]
    unsafe fn scale<S: Codes>(header: *const u8, _shared: (S, S), part: usize) -> S {
        // SAFETY: the caller's promises.
        unsafe { S::load(header.add(part % HALVES * 64).cast()) }
    }

    #[inline(always)]
    unsafe fn offset<S: Codes>(header: *const u8, _shared: (S, S), part: usize) -> S {
        // SAFETY: the caller's promises.
        unsafe { S::load(header.add((HALVES + part % HALVES) * 64).cast()) }
    }
}
