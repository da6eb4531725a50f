//! Whole numbers of 1 to 8 bits, packed from the lowest bit of the first byte on. Used by the formats.

/// How numbers follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packing {
    /// Bits of a number, 1 to 8.
    pub bits: usize,
    /// True if no number crosses the border of a word of 32 bits: the bits that are left over are unused.
    pub padded: bool,
}

impl Packing {
    /// Returns the packing of numbers without gaps.
    pub(super) fn dense(bits: usize) -> Self {
        Self { bits, padded: false }
    }

    /// Returns the words of 32 bits that `count` numbers take.
    pub(super) fn words(self, count: usize) -> usize {
        if self.padded { count.div_ceil(32 / self.bits) } else { (count * self.bits).div_ceil(32) }
    }

    /// Returns the number at `index` of `bytes`.
    pub(super) fn at(self, bytes: &[u8], index: usize) -> u8 {
        let bit = if self.padded {
            let per_word = 32 / self.bits;
            index / per_word * 32 + index % per_word * self.bits
        } else {
            index * self.bits
        };
        let low = u16::from(bytes[bit / 8]);
        let high = bytes.get(bit / 8 + 1).map_or(0, |byte| u16::from(*byte));
        let mask = (1_u16 << self.bits) - 1;
        (((high << 8 | low) >> (bit % 8)) & mask) as u8
    }
}
