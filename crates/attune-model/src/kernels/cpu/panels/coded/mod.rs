//! Panels of weights that a checkpoint has in fewer bits than a float, with its very values: whole numbers of 4 to 8
//! bits, and their factors as the checkpoint stores them, so that a panel is about as large as its part of the file.
//!
//! A panel is a row of **groups**: some blocks of 32 inputs whose factors share a header. A group is the header's lines
//! ([`factors`]), then each block's lines of numbers ([`numbers`]). One row of activations is multiplied with the
//! numbers as they are read ([`kernel`]); for more rows, and to read values, blocks are widened to bytes and f32 first.
//! Either way a product has the same bits.
//!
//! | code | numbers | blocks of a group, lines of their header | bits of a weight |
//! |---|---|---|---|
//! | `Q4_0`, `Iq4Nl` | 4 bits | 2, 1 | 4.5 |
//! | `Q4_1` | 4 bits | 1, 1 | 5 |
//! | `Q5_0`, `Q5_1` | 5 bits | 2, 1 and 1, 1 | 5.5, 6 |
//! | `Q8_0` | 8 bits | 2, 1 | 8.5 |
//! | `Q2K`, `Q3K` | 4 bits | 8, 9 and 8, 5 | 5.1, 4.6 |
//! | `Q4K`, `Q5K` | 4 and 5 bits | 8, 5 | 4.6, 5.6 |
//! | `Q6K` | 6 bits | 8, 5 | 6.6 |
//! | `Iq4Xs` | 4 bits | 8, 3 | 4.4 |
//! | `Mxfp4` | 4 bits | 4, 1 | 4.25 |
//! | `Four16` … `Eight128` | 4 or 8 bits | 1, 4 for 16 inputs a factor; 1, 2 for 32; 4, 2 for 128 | |

mod factors;
mod instructions;
mod kernel;
mod numbers;
mod pack;
#[cfg(test)]
mod tests;
mod unpack;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::marker::PhantomData;

use super::bytes::{BLOCK, ByteRows, ByteTile, QUADS, Wanted};
use super::level::Level;
use super::product::{Format, Piece};
use factors::Factors;
pub(super) use instructions::Codes;
use numbers::Numbers;
pub(super) use unpack::WideBlock;

use crate::blocks::BlockType;

/// The format of each code.
pub(super) mod formats {
    use super::Coded;
    use super::factors::{Exponents, Floats, Halves, HalvesAndOffsets, Minimums16, Minimums32, Scales16, Scales32};
    use super::numbers::{Fives, Full, Nibbles, Sixes, Table};

    pub(in super::super) type Q4_0 = Coded<Nibbles<8>, Halves>;
    pub(in super::super) type Q4_1 = Coded<Nibbles<0>, HalvesAndOffsets>;
    pub(in super::super) type Q5_0 = Coded<Fives<16>, Halves>;
    pub(in super::super) type Q5_1 = Coded<Fives<0>, HalvesAndOffsets>;
    pub(in super::super) type Q8_0 = Coded<Full, Halves>;
    pub(in super::super) type Q2K = Coded<Nibbles<0>, Minimums16>;
    pub(in super::super) type Q3K = Coded<Nibbles<4>, Scales16>;
    pub(in super::super) type Q4K = Coded<Nibbles<0>, Minimums32>;
    pub(in super::super) type Q5K = Coded<Fives<0>, Minimums32>;
    pub(in super::super) type Q6K = Coded<Sixes, Scales16>;
    pub(in super::super) type Iq4Nl = Coded<Table, Halves>;
    pub(in super::super) type Iq4Xs = Coded<Table, Scales32>;
    pub(in super::super) type Mxfp4 = Coded<Table, Exponents>;
    pub(in super::super) type Four16 = Coded<Table, Floats<1, 2>>;
    pub(in super::super) type Four32 = Coded<Table, Floats<1, 1>>;
    pub(in super::super) type Four128 = Coded<Table, Floats<4, 1>>;
    pub(in super::super) type Eight16 = Coded<Full, Floats<1, 2>>;
    pub(in super::super) type Eight32 = Coded<Full, Floats<1, 1>>;
    pub(in super::super) type Eight128 = Coded<Full, Floats<4, 1>>;
}

/// Evaluates an expression in which `F` is the format of a code.
macro_rules! with_code {
    ($code:expr, $format:ident => $body:expr) => {
        with_code!(@each $code, $format, $body;
            Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K Iq4Nl Iq4Xs Mxfp4
            Four16 Four32 Four128 Eight16 Eight32 Eight128)
    };
    (@each $code:expr, $format:ident, $body:expr; $($name:ident)*) => {
        match $code {
            $($crate::kernels::cpu::panels::coded::Code::$name => {
                type $format = $crate::kernels::cpu::panels::coded::formats::$name;
                $body
            })*
        }
    };
}
pub(super) use with_code;

/// Format of numbers and factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the formats' own names; those of groups say the bits of a number and the inputs of a group"
)]
pub enum Code {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
    Four16,
    Four32,
    Four128,
    Eight16,
    Eight32,
    Eight128,
}

impl Code {
    /// Returns the code of a type of blocks; `None` for floats.
    pub(super) fn of(kind: BlockType) -> Option<Self> {
        Some(match kind {
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => return None,
            BlockType::Q4_0 => Self::Q4_0,
            BlockType::Q4_1 => Self::Q4_1,
            BlockType::Q5_0 => Self::Q5_0,
            BlockType::Q5_1 => Self::Q5_1,
            BlockType::Q8_0 => Self::Q8_0,
            BlockType::Q2_K => Self::Q2K,
            BlockType::Q3_K => Self::Q3K,
            BlockType::Q4_K => Self::Q4K,
            BlockType::Q5_K => Self::Q5K,
            BlockType::Q6_K => Self::Q6K,
            BlockType::Iq4Nl => Self::Iq4Nl,
            BlockType::Iq4Xs => Self::Iq4Xs,
            BlockType::Mxfp4 => Self::Mxfp4,
        })
    }

    /// Returns sizes of the code.
    pub(super) fn layout(self) -> Layout {
        with_code!(self, F => F::LAYOUT)
    }
}

/// Sizes of a code.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Blocks of a group.
    pub(super) blocks: usize,
    /// Lines of a group's header.
    pub(super) header: usize,
    /// Lines of a block's numbers.
    pub(super) numbers: usize,
    /// Bits of a number.
    pub(super) bits: u32,
    /// Factors of a block and output: 1, or 2 for halves.
    pub(super) halves: usize,
    /// True if values have offsets.
    pub(super) offsets: bool,
    /// Number that unsigned numbers exceed their values by.
    pub(super) zero: i32,
}

impl Layout {
    /// Returns the lines of a group.
    pub(super) fn group_lines(&self) -> usize {
        self.header + self.blocks * self.numbers
    }

    /// Returns the inputs of a group.
    pub(super) fn group_inputs(&self) -> usize {
        self.blocks * BLOCK
    }

    /// Returns what a product with `width` inputs, filled up to whole groups, asks of activations.
    pub(super) fn wanted(&self, width: usize, level: Level) -> Wanted {
        Wanted { width, bytes: 2, halves: self.halves, zero: if level.offsets_bytes() { self.zero } else { 0 } }
    }
}

/// Format of numbers `N` with factors `F`.
pub(super) struct Coded<N, F>(PhantomData<(N, F)>);

impl<N: Numbers, F: Factors> Coded<N, F> {
    pub(super) const LAYOUT: Layout = Layout {
        blocks: F::BLOCKS,
        header: F::LINES,
        numbers: N::LINES,
        bits: N::BITS,
        halves: F::HALVES,
        offsets: F::OFFSETS,
        zero: N::ZERO,
    };
    /// Bytes of a group.
    const GROUP_BYTES: usize = (F::LINES + F::BLOCKS * N::LINES) * 64;
    /// Lines of a widened block.
    const WIDE_LINES: usize = QUADS + F::HALVES * if F::OFFSETS { 2 } else { 1 };
}

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<S: Codes, N: Numbers, F: Factors> Format<S> for Coded<N, F> {
    type Input = ByteRows;
    /// A whole number of groups, which fit the first-level cache when widened.
    const DEPTH: usize = 512;

    #[inline(always)]
    fn offset(depth: usize) -> usize {
        depth / (BLOCK * F::BLOCKS) * Self::GROUP_BYTES
    }

    #[inline(always)]
    fn shape(rows: usize) -> (usize, usize) {
        S::byte_shape(rows)
    }

    #[inline(always)]
    unsafe fn tile(rows: usize, panels: usize, tile: &ByteTile) {
        // SAFETY: the caller's promises.
        unsafe {
            match (tile.widened, F::HALVES, F::OFFSETS) {
                (false, ..) => S::apart::<kernel::OneRow<N, F>>(rows, panels, tile),
                (true, 1, false) => S::apart::<kernel::Widened<1, false>>(rows, panels, tile),
                (true, 1, true) => S::apart::<kernel::Widened<1, true>>(rows, panels, tile),
                (true, _, false) => S::apart::<kernel::Widened<2, false>>(rows, panels, tile),
                (true, _, true) => S::apart::<kernel::Widened<2, true>>(rows, panels, tile),
            }
        }
    }

    #[inline(always)]
    fn widened_bytes(rows: usize, depth: usize) -> Option<usize> {
        (rows > 1).then_some(depth / BLOCK * Self::WIDE_LINES * 64)
    }

    #[inline(always)]
    unsafe fn widen(piece: &Piece, depth: usize, to: *mut u8) {
        // SAFETY: the caller's promises.
        unsafe { kernel::widen::<S, N, F>(piece, depth / BLOCK, to) }
    }
}
