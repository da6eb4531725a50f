//! The types that weights are written in, and the rounding to them: once, from the sum in f64.

use half::{bf16, f16};
use safetensors::Dtype;

use super::addition::to_odd;
use crate::blocks::BlockType;
use crate::{Error, Result};

/// Type of matrices that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Half the bits of single precision.
    Bf16,
    /// Eight bits in blocks of 32, for GGUF files alone.
    Q8_0,
}

impl WeightType {
    /// Returns the type of a tensor of a safetensors file; `None` for one that no numbers of weights are in.
    pub(super) fn of_dtype(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            _ => return None,
        })
    }

    /// Returns the type of a tensor of a GGUF file; `None` for blocks.
    pub(super) fn of_blocks(kind: BlockType) -> Option<Self> {
        Some(match kind {
            BlockType::F32 => Self::F32,
            BlockType::F16 => Self::F16,
            BlockType::Bf16 => Self::Bf16,
            _ => return None,
        })
    }

    /// Returns the type by its name in `config.json`; `None` for any other text.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Some(match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" => Self::F32,
            "float16" => Self::F16,
            "bfloat16" => Self::Bf16,
            _ => return None,
        })
    }

    /// Returns the type's name in `config.json`; `None` for what safetensors files do not have.
    pub(super) fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::Q8_0 => return None,
        })
    }

    /// Returns the type in a safetensors file; an error for what these do not have.
    pub(super) fn dtype(self) -> Result<Dtype> {
        match self {
            Self::F32 => Ok(Dtype::F32),
            Self::F16 => Ok(Dtype::F16),
            Self::Bf16 => Ok(Dtype::BF16),
            Self::Q8_0 => Err(Error::Setup(
                "safetensors files have no blocks of 8 bits: take --type f16, bf16 or f32, or --merged gguf".into(),
            )),
        }
    }

    /// Returns the type in a GGUF file.
    pub(super) fn block_type(self) -> BlockType {
        match self {
            Self::F32 => BlockType::F32,
            Self::F16 => BlockType::F16,
            Self::Bf16 => BlockType::Bf16,
            Self::Q8_0 => BlockType::Q8_0,
        }
    }

    /// Returns the number in `general.file_type` of a GGUF file.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    /// Returns the values of the tensor `name` in this type, little-endian; refuses numbers beyond the type's range.
    pub(super) fn encode(self, name: &str, values: &[f64]) -> Result<Vec<u8>> {
        let largest = match self {
            Self::F32 => f64::from(f32::MAX),
            Self::Bf16 => f64::from(bf16::MAX.to_f32()),
            Self::F16 => f64::from(f16::MAX.to_f32()),
            Self::Q8_0 => f64::from(f16::MAX.to_f32()) * 127.0,
        };
        if values.iter().any(|value| value.is_finite() && value.abs() > largest) {
            return Err(Error::Setup(format!(
                "the tensor `{name}` has numbers beyond the range of {self:?}: choose another with --type"
            )));
        }
        Ok(match self {
            Self::F32 => values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|value| f16::from_f32(to_odd(*value)).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|value| bf16::from_f32(to_odd(*value)).to_le_bytes()).collect(),
            Self::Q8_0 => values.chunks(32).flat_map(q8_0).collect(),
        })
    }
}

/// Returns a block: the scale, which is the largest value's part of 127, and each value in units of it.
fn q8_0(values: &[f64]) -> Vec<u8> {
    let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(to_odd(largest / 127.0));
    let unit = f64::from(scale.to_f32());
    let in_units = |value: &f64| if unit == 0.0 { 0 } else { (value / unit).round().clamp(-127.0, 127.0) as i8 };
    let numbers = values.iter().map(|value| in_units(value).to_le_bytes()[0]);
    scale.to_le_bytes().into_iter().chain(numbers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_eight_bits_is_within_half_a_step() {
        let values: Vec<f64> = (0..32).map(|number| f64::from(number * number) / 100.0 - 3.0).collect();
        let block = q8_0(&values);
        let scale = f64::from(f16::from_le_bytes([block[0], block[1]]).to_f32());
        for (value, stored) in values.iter().zip(&block[2..]) {
            let read = scale * f64::from(i8::from_le_bytes([*stored]));
            assert!((read - value).abs() <= scale * 0.51, "{value} became {read}");
        }
        assert_eq!(q8_0(&[0.0; 32]), [0; 34]);
    }

    #[test]
    fn numbers_beyond_a_type_are_refused_by_name() {
        let said = WeightType::F16.encode("x.weight", &[70_000.0]).expect_err("no such number").to_string();
        assert!(said.contains("`x.weight`") && said.contains("F16") && said.contains("--type"), "{said}");
        assert_eq!(WeightType::Bf16.encode("x", &[70_000.0]).map(|bytes| bytes.len()).ok(), Some(2));
        assert!(WeightType::Q8_0.dtype().is_err());
    }
}
