//! Numbers of the format for types: those of a key's value, and those of a tensor.

use crate::blocks::BlockType;

/// Number of the type of texts.
pub(super) const TEXT: u32 = 8;
/// Number of the type of lists.
pub(super) const LIST: u32 = 9;

/// A number or a flag, in the type that the file has it in.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "the format's own names")]
pub enum Number {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Number {
    /// Returns the number; `None` for a flag.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Self::F32(number) => Some(f64::from(number)),
            Self::F64(number) => Some(number),
            _ => self.as_i128().map(|number| number as f64),
        }
    }

    /// Returns a whole number of at least 0; `None` for any other.
    pub fn as_size(self) -> Option<usize> {
        usize::try_from(self.as_i128()?).ok()
    }

    /// Returns the flag; `None` for a number.
    pub fn as_bool(self) -> Option<bool> {
        if let Self::Bool(flag) = self { Some(flag) } else { None }
    }

    fn as_i128(self) -> Option<i128> {
        match self {
            Self::U8(number) => Some(number.into()),
            Self::I8(number) => Some(number.into()),
            Self::U16(number) => Some(number.into()),
            Self::I16(number) => Some(number.into()),
            Self::U32(number) => Some(number.into()),
            Self::I32(number) => Some(number.into()),
            Self::U64(number) => Some(number.into()),
            Self::I64(number) => Some(number.into()),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) => None,
        }
    }
}

/// The type of a number or a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NumberType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl NumberType {
    /// Returns the type with `number`; `None` for texts, lists and what does not exist.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Returns the type's number.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::U8 => 0,
            Self::I8 => 1,
            Self::U16 => 2,
            Self::I16 => 3,
            Self::U32 => 4,
            Self::I32 => 5,
            Self::F32 => 6,
            Self::Bool => 7,
            Self::U64 => 10,
            Self::I64 => 11,
            Self::F64 => 12,
        }
    }

    pub(super) fn of(number: Number) -> Self {
        match number {
            Number::U8(_) => Self::U8,
            Number::I8(_) => Self::I8,
            Number::U16(_) => Self::U16,
            Number::I16(_) => Self::I16,
            Number::U32(_) => Self::U32,
            Number::I32(_) => Self::I32,
            Number::F32(_) => Self::F32,
            Number::Bool(_) => Self::Bool,
            Number::U64(_) => Self::U64,
            Number::I64(_) => Self::I64,
            Number::F64(_) => Self::F64,
        }
    }

    /// Returns the bytes of a number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Reads a number of `bytes`, of which there are [`NumberType::size`].
    pub(super) fn read(self, bytes: &[u8]) -> Number {
        let mut wide = [0; 8];
        let size = bytes.len().min(8);
        wide[..size].copy_from_slice(&bytes[..size]);
        let bits = u64::from_le_bytes(wide);
        match self {
            Self::U8 => Number::U8(bits as u8),
            Self::I8 => Number::I8(bits as i8),
            Self::U16 => Number::U16(bits as u16),
            Self::I16 => Number::I16(bits as i16),
            Self::U32 => Number::U32(bits as u32),
            Self::I32 => Number::I32(bits as i32),
            Self::F32 => Number::F32(f32::from_bits(bits as u32)),
            Self::Bool => Number::Bool(bits != 0),
            Self::U64 => Number::U64(bits),
            Self::I64 => Number::I64(bits as i64),
            Self::F64 => Number::F64(f64::from_bits(bits)),
        }
    }
}

impl Number {
    /// Returns its bytes, in its own type.
    pub(super) fn bytes(self) -> Vec<u8> {
        match self {
            Self::U8(number) => vec![number],
            Self::I8(number) => number.to_le_bytes().to_vec(),
            Self::U16(number) => number.to_le_bytes().to_vec(),
            Self::I16(number) => number.to_le_bytes().to_vec(),
            Self::U32(number) => number.to_le_bytes().to_vec(),
            Self::I32(number) => number.to_le_bytes().to_vec(),
            Self::F32(number) => number.to_le_bytes().to_vec(),
            Self::Bool(flag) => vec![u8::from(flag)],
            Self::U64(number) => number.to_le_bytes().to_vec(),
            Self::I64(number) => number.to_le_bytes().to_vec(),
            Self::F64(number) => number.to_le_bytes().to_vec(),
        }
    }
}

/// Returns the number of a type of tensors.
pub(super) fn block_type_number(kind: BlockType) -> u32 {
    (0..u32::from(u8::MAX))
        .find(|number| BlockType::from_ggml(*number).is_ok_and(|known| known == kind))
        .unwrap_or(u32::MAX)
}
