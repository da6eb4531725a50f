//! Frozen linear layers: `y = W x + b` and the gradient with respect to `x`. No gradient of W is ever formed.
//!
//! Dense layers on the CPU take our own product. On a GPU, and for quantized weights anywhere, the product is
//! `mistralrs_quant`'s [`QuantMethod`].

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use mistralrs_quant::{GgufMatMul, QuantMethod, QuantMethodConfig, UnquantLinear};

use crate::model::kernels;
use crate::{Error, Result};

/// A frozen linear layer.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    /// `[out]`
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Weight {
    /// `[out, in]`, for our own product.
    Dense(Tensor),
    /// `[out, in]`, with mistral.rs's product for the device.
    Method { method: Arc<dyn QuantMethod>, weight: Tensor },
    /// Quantized blocks, with mistral.rs's product.
    Quantized { method: Arc<dyn QuantMethod>, blocks: Arc<QTensor> },
}

impl Linear {
    /// A layer of `weight` `[out, in]` and `bias` `[out]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let weight = if matches!(weight.device(), Device::Cpu) {
            Weight::Dense(weight)
        } else {
            let linear = candle_nn::Linear::new(weight.clone(), None);
            let method = UnquantLinear::new(QuantMethodConfig::Unquantized(linear))?;
            Weight::Method { method: Arc::new(method), weight }
        };
        Ok(Self { weight, bias })
    }

    /// The same with the weight quantized to `format`, such as `q8_0`.
    pub fn quantized(weight: &Tensor, bias: Option<Tensor>, format: &str) -> Result<Self> {
        let dtype = block_format(format)?;
        let (_, columns) = weight.dims2()?;
        if !columns.is_multiple_of(dtype.block_size()) {
            return Err(Error::Setup(format!(
                "quantize = \"{format}\" needs layer widths that are multiples of {}, but one is {columns}",
                dtype.block_size()
            )));
        }
        let blocks = Arc::new(QTensor::quantize(weight, dtype)?);
        let method = GgufMatMul::new(QuantMethodConfig::Gguf { q_weight: blocks.clone(), b: None })?;
        Ok(Self { weight: Weight::Quantized { method: Arc::new(method), blocks }, bias })
    }

    /// `x` `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Dense(weight) => kernels::linear(x, weight)?,
            Weight::Method { method, .. } | Weight::Quantized { method, .. } => method.forward(x)?,
        };
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// The gradient with respect to `x`: `dy` `[rows, out]` to `dy · W`, `[rows, in]`.
    pub fn input_gradient(&self, dy: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) | Weight::Method { weight, .. } => kernels::matmul(dy, weight),
            Weight::Quantized { blocks, .. } => kernels::matmul(dy, &blocks.dequantize(dy.device())?),
        }
    }
}

fn block_format(name: &str) -> Result<GgmlDType> {
    match name {
        "q8_0" => Ok(GgmlDType::Q8_0),
        "q5_0" => Ok(GgmlDType::Q5_0),
        "q4_0" => Ok(GgmlDType::Q4_0),
        "q6_k" => Ok(GgmlDType::Q6K),
        "q5_k" => Ok(GgmlDType::Q5K),
        "q4_k" => Ok(GgmlDType::Q4K),
        _ => Err(Error::Setup(format!("quantize = \"{name}\": use q8_0, q6_k, q5_0, q5_k, q4_0 or q4_k"))),
    }
}
