//! Whole numbers of a few bits in the lines of a block, and how a kernel reads them. The number of an input and output
//! has the place that it has among bytes, four inputs of 16 outputs to a line; lines of fewer bits hold several.

use super::Codes;

/// Numbers of one width.
pub(in super::super) trait Numbers {
    /// Lines of a block.
    const LINES: usize;
    /// Bits of a number.
    const BITS: u32;
    /// Number that what [`Numbers::quad`] returns exceeds the values by where products take unsigned weights.
    const ZERO: i32;
    /// Reads the `quad`-th four inputs: unsigned, or the values themselves, as the instruction set takes them.
    unsafe fn quad<S: Codes>(lines: *const u8, table: *const u8, quad: usize) -> S::Quad;
}

/// Reads the numbers of 4 bits at `quad`: two to a line, in the lower halves of its bytes and in the upper ones.
#[allow(clippy::inline_always, reason = "part of the kernels")]
#[inline(always)]
unsafe fn nibbles<S: Codes>(lines: *const u8, quad: usize) -> S::Quad {
    // SAFETY: the caller's promises.
    unsafe {
        let line = S::load_quad(lines.add(quad / 2 * 64));
        S::and(if quad.is_multiple_of(2) { line } else { S::right(line, 4) }, 15)
    }
}

/// Returns unsigned numbers as the instruction set takes them.
#[allow(clippy::inline_always, reason = "part of the kernels")]
#[inline(always)]
unsafe fn centred<S: Codes>(quad: S::Quad, zero: i32) -> S::Quad {
    // SAFETY: the caller's promises.
    if S::UNSIGNED || zero == 0 { quad } else { unsafe { S::subtract(quad, zero) } }
}

/// Four bits; the value is the number less `ZERO`.
pub(in super::super) struct Nibbles<const ZERO: i32>;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<const ZERO: i32> Numbers for Nibbles<ZERO> {
    const LINES: usize = 4;
    const BITS: u32 = 4;
    const ZERO: i32 = ZERO;

    #[inline(always)]
    unsafe fn quad<S: Codes>(lines: *const u8, _table: *const u8, quad: usize) -> S::Quad {
        // SAFETY: the caller's promises.
        unsafe { centred::<S>(nibbles::<S>(lines, quad), ZERO) }
    }
}

/// Four bits that stand for the entries of a table.
pub(in super::super) struct Table;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Numbers for Table {
    const LINES: usize = 4;
    const BITS: u32 = 4;
    const ZERO: i32 = 128;

    #[inline(always)]
    unsafe fn quad<S: Codes>(lines: *const u8, table: *const u8, quad: usize) -> S::Quad {
        // SAFETY: the caller's promises.
        unsafe { S::lookup(nibbles::<S>(lines, quad), if S::UNSIGNED { table.add(16) } else { table }) }
    }
}

/// Five bits: four, and a line with the fifth of every number; the value is the number less `ZERO`.
pub(in super::super) struct Fives<const ZERO: i32>;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<const ZERO: i32> Numbers for Fives<ZERO> {
    const LINES: usize = 5;
    const BITS: u32 = 5;
    const ZERO: i32 = ZERO;

    #[inline(always)]
    unsafe fn quad<S: Codes>(lines: *const u8, _table: *const u8, quad: usize) -> S::Quad {
        // SAFETY: the caller's promises.
        unsafe {
            let (bits, places) = (S::load_quad(lines.add(4 * 64)), fifth_bit(quad) as i32 - 4);
            let bits = if places >= 0 { S::right(bits, places) } else { S::left(bits, -places) };
            centred::<S>(S::or(nibbles::<S>(lines, quad), S::and(bits, 16)), ZERO)
        }
    }
}

/// Returns the place of the fifth bits of a quad in their bytes: so that a shift within the byte brings it to bit 4.
pub(super) const fn fifth_bit(quad: usize) -> usize {
    if quad < 4 { 4 + quad } else { 7 - quad }
}

/// Six bits: four, and two lines with the upper two of every number; the value is the number less 32.
pub(in super::super) struct Sixes;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Numbers for Sixes {
    const LINES: usize = 6;
    const BITS: u32 = 6;
    const ZERO: i32 = 32;

    #[inline(always)]
    unsafe fn quad<S: Codes>(lines: *const u8, _table: *const u8, quad: usize) -> S::Quad {
        // SAFETY: the caller's promises.
        unsafe {
            let (bits, places) = (S::load_quad(lines.add((4 + quad / 4) * 64)), 2 * (quad % 4) as i32 - 4);
            let bits = if places >= 0 { S::right(bits, places) } else { S::left(bits, -places) };
            centred::<S>(S::or(nibbles::<S>(lines, quad), S::and(bits, 0x30)), Self::ZERO)
        }
    }
}

/// Eight bits with a sign.
pub(in super::super) struct Full;

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl Numbers for Full {
    const LINES: usize = 8;
    const BITS: u32 = 8;
    const ZERO: i32 = 128;

    #[inline(always)]
    unsafe fn quad<S: Codes>(lines: *const u8, _table: *const u8, quad: usize) -> S::Quad {
        // SAFETY: the caller's promises.
        unsafe {
            let line = S::load_quad(lines.add(quad * 64));
            if S::UNSIGNED { S::flip(line) } else { line }
        }
    }
}
