//! Tensors of one linear layer in a quantized checkpoint, each checked before it is read: it has the type and shape
//! that its format gives it, so that no size of a file is believed. Called by the formats.

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::floats::e8m0;

/// One linear layer (or embedding) of a checkpoint.
pub(super) struct Module<'m, 'a> {
    /// Name without `.weight`, as the files spell it.
    pub name: &'m str,
    /// Rows of the weight.
    pub outputs: usize,
    /// Columns of the weight.
    pub inputs: usize,
    /// Looks up a tensor of the checkpoint.
    pub view: &'m dyn Fn(&str) -> Option<TensorView<'a>>,
}

/// Whole numbers of 32 bits, lowest byte first, which need not be aligned.
#[derive(Clone, Copy)]
pub(super) struct Words<'a>(&'a [u8]);

impl Words<'_> {
    /// Returns the four bytes of the word at `index`.
    pub(super) fn bytes(&self, index: usize) -> [u8; 4] {
        let start = index * 4;
        [self.0[start], self.0[start + 1], self.0[start + 2], self.0[start + 3]]
    }

    /// Returns the word at `index`.
    pub(super) fn at(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.bytes(index))
    }

    /// Returns the bytes of `count` words from `start` on.
    pub(super) fn row(&self, start: usize, count: usize) -> &[u8] {
        &self.0[start * 4..(start + count) * 4]
    }
}

/// Returns true for the types of weights that are not quantized.
pub(crate) fn is_plain(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

impl<'a> Module<'_, 'a> {
    /// Returns the tensor that ends with `suffix`; `None` if there is none.
    pub(super) fn optional(&self, suffix: &str) -> Option<TensorView<'a>> {
        (self.view)(&format!("{}.{suffix}", self.name))
    }

    /// Returns the tensor that ends with `suffix`.
    pub(super) fn tensor(&self, suffix: &str) -> Result<TensorView<'a>, String> {
        self.optional(suffix).ok_or_else(|| format!("the tensor `{}.{suffix}` is missing", self.name))
    }

    /// Returns an error about the tensor that ends with `suffix`.
    pub(super) fn fault(&self, suffix: &str, message: &str) -> String {
        format!("the tensor `{}.{suffix}` {message}", self.name)
    }

    /// Returns the bytes of the tensor that ends with `suffix`; refuses other types and another shape.
    pub(super) fn bytes(&self, suffix: &str, dtypes: &[Dtype], shape: &[usize]) -> Result<&'a [u8], String> {
        let view = self.tensor(suffix)?;
        if !dtypes.contains(&view.dtype()) {
            return Err(self.fault(suffix, &format!("is {:?}, expected {dtypes:?}", view.dtype())));
        }
        if view.shape() != shape {
            return Err(self.fault(suffix, &format!("has shape {:?}, expected {shape:?}", view.shape())));
        }
        Ok(view.data())
    }

    /// Returns the words of the tensor that ends with `suffix`.
    pub(super) fn words(&self, suffix: &str, shape: &[usize]) -> Result<Words<'a>, String> {
        self.bytes(suffix, &[Dtype::I32, Dtype::U32], shape).map(Words)
    }

    /// Returns the numbers of the tensor that ends with `suffix`, in f32; refuses another shape, and numbers that are
    /// not finite.
    pub(super) fn floats(&self, suffix: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let view = self.tensor(suffix)?;
        if view.shape() != shape {
            return Err(self.fault(suffix, &format!("has shape {:?}, expected {shape:?}", view.shape())));
        }
        self.numbers(suffix, &view)
    }

    /// Returns the only number of the tensor that ends with `suffix`, in f32.
    pub(super) fn number(&self, suffix: &str) -> Result<f32, String> {
        let numbers = self.numbers(suffix, &self.tensor(suffix)?)?;
        let [number] = numbers[..] else { return Err(self.fault(suffix, "must hold one number")) };
        Ok(number)
    }

    /// Converts scales to f32; refuses numbers that are not finite.
    pub(super) fn numbers(&self, suffix: &str, view: &TensorView<'_>) -> Result<Vec<f32>, String> {
        let data = view.data();
        let numbers: Vec<f32> = match view.dtype() {
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F8_E4M3 => data.iter().map(|byte| super::floats::E4M3[usize::from(*byte)]).collect(),
            // Scales that are powers of two; some programs save their bytes as whole numbers.
            Dtype::F8_E8M0 | Dtype::U8 => data.iter().map(|byte| e8m0(*byte)).collect(),
            other => return Err(self.fault(suffix, &format!("is {other:?}, which no scale is"))),
        };
        if numbers.iter().any(|number| !number.is_finite()) {
            return Err(self.fault(suffix, "has numbers that are not finite"));
        }
        Ok(numbers)
    }

    /// Refuses a tensor that ends with `suffix` unless all its bytes are zero: an offset that is not applied.
    pub(super) fn all_zero(&self, suffix: &str) -> Result<(), String> {
        match self.optional(suffix) {
            Some(view) if view.data().iter().any(|byte| *byte != 0) => {
                Err(self.fault(suffix, "is not zero, though config.json says that the quantization is symmetric"))
            }
            _ => Ok(()),
        }
    }
}
