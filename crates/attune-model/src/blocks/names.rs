//! Types of tensors by the number that a GGUF file gives them, and by name.

use std::fmt;

use super::BlockType;
use crate::{Error, Result};

impl BlockType {
    /// Returns the type of a tensor with this number in a GGUF file; the error names a type that is not read.
    pub fn from_ggml(number: u32) -> Result<Self> {
        let refused = match number {
            0 => return Ok(Self::F32),
            1 => return Ok(Self::F16),
            2 => return Ok(Self::Q4_0),
            3 => return Ok(Self::Q4_1),
            6 => return Ok(Self::Q5_0),
            7 => return Ok(Self::Q5_1),
            8 => return Ok(Self::Q8_0),
            10 => return Ok(Self::Q2_K),
            11 => return Ok(Self::Q3_K),
            12 => return Ok(Self::Q4_K),
            13 => return Ok(Self::Q5_K),
            14 => return Ok(Self::Q6_K),
            20 => return Ok(Self::Iq4Nl),
            23 => return Ok(Self::Iq4Xs),
            30 => return Ok(Self::Bf16),
            39 => return Ok(Self::Mxfp4),
            4 | 5 => return Err(removed(["Q4_2", "Q4_3"][number as usize - 4])),
            31..=33 => return Err(removed(["Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8"][number as usize - 31])),
            36..=38 => return Err(removed(["IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8"][number as usize - 36])),
            9 => "Q8_1",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            21 => "IQ3_S",
            22 => "IQ2_S",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            40 => "NVFP4",
            41 => "Q1_0",
            42 => "Q2_0",
            _ => return Err(Error::Setup(format!("the tensor type {number} is not known"))),
        };
        Err(Error::Setup(format!(
            "the tensor type {refused} is not read: take a file in Q4_K_M, Q5_K_M, Q6_K, Q8_0, Q4_0, IQ4_XS, IQ4_NL, MXFP4, \
             BF16 or F16"
        )))
    }

    /// Returns the format's own name, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
            Self::Mxfp4 => "MXFP4",
        }
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

fn removed(name: &str) -> Error {
    Error::Setup(format!(
        "the tensor type {name} was removed from the format: quantize the model again, for example to Q4_0; weights are \
         rearranged at load"
    ))
}
