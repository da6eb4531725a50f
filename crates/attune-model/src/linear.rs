//! Frozen linear layers: `y = W x + b` and the gradient with respect to `x`. No gradient of W is ever formed.
//!
//! On the CPU, all weights are packed for our own products (`kernels::cpu::panels`), and those of a quantized checkpoint
//! keep its very values there unless `dtype` or `quantize` say otherwise. On a GPU f32, bf16 and f16 weights are
//! multiplied by cuBLAS; for weights quantized at load the product is `mistralrs_quant`'s [`QuantMethod`].

mod quantize;

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Tensor};
use mistralrs_quant::{GgufMatMul, QuantMethod, QuantMethodConfig};
use serde::{Deserialize, Serialize};

use crate::kernels::cpu::panels::{self, Panels, Precision};
use crate::kernels::{Activation, Dense, GpuKernels, Kernels, Norm};
use crate::matrix::Matrix;
use crate::{Error, Result};

/// Type in which a weight is held. Arithmetic is f32 with all types on the CPU; on a GPU, sums are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 4 bytes: exact.
    #[default]
    F32,
    /// 2 bytes: half the memory, and faster answers. Exact if the checkpoint is bf16 itself. On a GPU, activations
    /// between the layers are bf16 too.
    Bf16,
    /// 2 bytes with three more bits of precision, and a range up to 65,504: for checkpoints in f16, on a GPU only.
    F16,
}

/// Storage of a model's weight matrices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Storage {
    /// Type of the weights that are not quantized; `None` is f32, but on the CPU weights of a quantized checkpoint keep
    /// its numbers, and with them its size.
    pub dtype: Option<Dtype>,
    /// Block format, such as `q4_0`, of all weight matrices on the CPU and of the linear layers on a GPU; `None` if they
    /// are not quantized at load.
    pub quantize: Option<String>,
}

impl Storage {
    /// Refuses a storage that the device of `kernels` cannot hold.
    pub(super) fn check_on(&self, kernels: &Kernels) -> Result<()> {
        if self.dtype == Some(Dtype::F16) && kernels.is_cpu() {
            return Err(Error::Setup("dtype = \"f16\" is for GPUs: take f32 or bf16 on the CPU".into()));
        }
        match &self.quantize {
            Some(format) if kernels.is_cpu() && self.halves() => Err(nothing_left(format)),
            _ => self.check(),
        }
    }

    /// Refuses formats that do not exist, and combinations that do not go together.
    pub fn check(&self) -> Result<()> {
        let Some(format) = &self.quantize else { return Ok(()) };
        quantize::block_format(format)?;
        if format == "q8_0" && self.halves() { Err(nothing_left(format)) } else { Ok(()) }
    }

    /// Returns true if weights that are not quantized are to be held in 2 bytes.
    fn halves(&self) -> bool {
        matches!(self.dtype, Some(Dtype::Bf16 | Dtype::F16))
    }

    /// Returns the type of activations: f32 on the CPU; on a GPU the type of the weights, since its products take both
    /// in one type.
    pub(super) fn activation_dtype(&self, kernels: &Kernels) -> DType {
        match self.dtype {
            _ if kernels.is_cpu() => DType::F32,
            None | Some(Dtype::F32) => DType::F32,
            Some(Dtype::Bf16) => DType::BF16,
            Some(Dtype::F16) => DType::F16,
        }
    }

    /// Returns the type of adapters: f32 beside weights in f32, bf16 beside weights that are rounded more; on a GPU the
    /// type of activations.
    pub(super) fn adapter_precision(&self, kernels: &Kernels) -> DType {
        if kernels.is_cpu() && (self.quantize.is_some() || self.halves()) {
            return DType::BF16;
        }
        self.activation_dtype(kernels)
    }

    /// Returns true if weights of a quantized checkpoint keep its numbers.
    fn keeps_numbers(&self, kernels: &Kernels) -> bool {
        kernels.is_cpu() && self.dtype.is_none() && self.quantize.is_none()
    }

    /// Packs a weight `[out, in]` for products on the CPU.
    fn pack(&self, weight: &Tensor) -> Result<Panels> {
        match self.quantize.as_deref() {
            Some("q8_0") => Panels::of(weight, Precision::Q8),
            Some(format) => quantize::panels(weight, format),
            None if self.halves() => Panels::of(weight, Precision::Bf16),
            None => Panels::of(weight, Precision::F32),
        }
    }
}

fn nothing_left(format: &str) -> Error {
    Error::Setup(format!(
        "quantize = \"{format}\" holds every weight matrix in its blocks, so `dtype` has nothing to apply to: remove one of the \
         two"
    ))
}

/// A frozen linear layer.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    /// `[out]`
    bias: Option<Tensor>,
    kernels: Kernels,
}

#[derive(Debug)]
enum Weight {
    /// Packed for our own product.
    Packed(Panels),
    /// Tensor `[out, in]`, multiplied by a GPU's kernels.
    Dense(Tensor, GpuKernels),
    /// Quantized blocks, multiplied by mistral.rs.
    Quantized { method: Arc<dyn QuantMethod>, blocks: Arc<QTensor> },
}

impl Linear {
    /// Makes a layer of `weight` `[out, in]` and `bias` `[out]`, held as `storage` says.
    pub fn new(weight: &Tensor, bias: Option<Tensor>, storage: &Storage, kernels: &Kernels) -> Result<Self> {
        let bias = bias.map(|bias| bias.to_dtype(storage.activation_dtype(kernels))).transpose()?;
        match storage.quantize.as_deref() {
            Some(format) if !kernels.is_cpu() => Self::blocks(weight, bias, format, kernels),
            _ => Self::own(weight, bias, storage, kernels),
        }
    }

    /// Makes a layer of a checkpoint's `matrix` and `bias` `[out]`, held as `storage` says.
    pub fn of(matrix: &Matrix, bias: Option<Tensor>, storage: &Storage, kernels: &Kernels) -> Result<Self> {
        if storage.keeps_numbers(kernels) {
            return Ok(Self { weight: Weight::Packed(kept(matrix)?), bias, kernels: kernels.clone() });
        }
        Self::new(&matrix.dense(kernels.device())?, bias, storage, kernels)
    }

    /// Makes an embedding or output head of a checkpoint's `matrix`, `[vocabulary, hidden]`.
    pub fn table_of(matrix: &Matrix, storage: &Storage, kernels: &Kernels) -> Result<Self> {
        if storage.keeps_numbers(kernels) {
            return Self::of(matrix, None, storage, kernels);
        }
        Self::table(&matrix.dense(kernels.device())?, storage, kernels)
    }

    /// Makes an embedding or output head, `[vocabulary, hidden]`: never in the blocks of mistral.rs, which have no rows
    /// to look up.
    pub fn table(weight: &Tensor, storage: &Storage, kernels: &Kernels) -> Result<Self> {
        Self::own(weight, None, storage, kernels)
    }

    /// Makes a layer whose product is our own or cuBLAS's.
    fn own(weight: &Tensor, bias: Option<Tensor>, storage: &Storage, kernels: &Kernels) -> Result<Self> {
        let weight = match kernels {
            Kernels::Cpu => Weight::Packed(storage.pack(weight)?),
            Kernels::Gpu(gpu) => Weight::Dense(weight.to_dtype(storage.activation_dtype(kernels))?, gpu.clone()),
        };
        Ok(Self { weight, bias, kernels: kernels.clone() })
    }

    fn blocks(weight: &Tensor, bias: Option<Tensor>, format: &str, kernels: &Kernels) -> Result<Self> {
        let dtype = quantize::block_format(format)?;
        let (_, columns) = weight.dims2()?;
        if !columns.is_multiple_of(dtype.block_size()) {
            return Err(Error::Setup(format!(
                "quantize = \"{format}\" needs layer widths that are multiples of {}, but one is {columns}",
                dtype.block_size()
            )));
        }
        let blocks = Arc::new(QTensor::quantize(weight, dtype)?);
        let method = GgufMatMul::new(QuantMethodConfig::Gguf { q_weight: blocks.clone(), b: None })?;
        Ok(Self { weight: Weight::Quantized { method: Arc::new(method), blocks }, bias, kernels: kernels.clone() })
    }

    /// Maps the layer's tensors for `kernels`; `None` for packed or quantized weights.
    pub(super) fn with(
        &self,
        kernels: &GpuKernels,
        change: &impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Option<Self>> {
        let Weight::Dense(weight, _) = &self.weight else { return Ok(None) };
        let bias = self.bias.as_ref().map(change).transpose()?;
        let weight = Weight::Dense(change(weight)?, kernels.clone());
        Ok(Some(Self { weight, bias, kernels: Kernels::Gpu(kernels.clone()) }))
    }

    /// Lets the layer round its input to 8 bits, not 16, if its weights were rounded to 8 bits at load (`q8_0`).
    #[must_use]
    pub(super) fn with_byte_activations(self) -> Self {
        match self.weight {
            Weight::Packed(panels) => Self { weight: Weight::Packed(panels.with_byte_activations()), ..self },
            _ => self,
        }
    }

    /// Returns the bias, `[out]`; `None` if there is none.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Returns the bytes of the weight in memory.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Packed(weight) => weight.bytes(),
            Weight::Dense(weight, _) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Weight::Quantized { blocks, .. } => blocks.storage_size_in_bytes(),
        }
    }

    /// Computes `W x + b`: `x` `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Packed(weight) => return Ok(panels::project(x, &[(weight, self.bias.as_ref())])?.remove(0)),
            Weight::Dense(weight, gpu) => return Ok(gpu.project(x, None, &[self.dense(weight, None)])?.remove(0)),
            // mistral.rs's products on a GPU take f32.
            Weight::Quantized { method, .. } => method.forward(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())?,
        };
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// Computes [`Linear::forward`] of each of `layers` for the same `x`, or for `norm(x)` if there is a norm; all at
    /// once if they are held alike.
    pub fn forward_each<const N: usize>(layers: [&Self; N], x: &Tensor, norm: Option<Norm<'_>>) -> Result<[Tensor; N]> {
        let outputs = if let Some((gpu, dense)) = Self::all_dense(layers) {
            gpu.project(x, norm, &dense)?
        } else {
            let x = &match (norm, layers.first()) {
                (Some(norm), Some(layer)) => norm.of(&layer.kernels, x)?,
                _ => x.clone(),
            };
            let packed: Vec<_> = layers.iter().filter_map(|layer| layer.packed()).collect();
            if packed.len() == N {
                panels::project(x, &packed)?
            } else {
                layers.iter().map(|layer| layer.forward(x)).collect::<Result<_>>()?
            }
        };
        outputs.try_into().map_err(|_| Error::Internal("one output for each layer".into()))
    }

    /// Computes `activation(gate(norm(x))) · up(norm(x))`, in one pass if possible.
    pub fn forward_gated(
        gate_and_up: [&Self; 2],
        x: &Tensor,
        norm: Option<Norm<'_>>,
        activation: Activation,
    ) -> Result<Tensor> {
        if let Some((gpu, dense)) = Self::all_dense(gate_and_up) {
            return gpu.project_gated(x, norm, dense, activation);
        }
        let kernels = &gate_and_up[0].kernels;
        let [gate, up] = Self::forward_each(gate_and_up, x, norm)?;
        kernels.gated(activation, &gate, &up)
    }

    /// Computes `residual + forward(x)`, in one pass if possible.
    pub fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(weight) => panels::project_onto(residual, x, weight, self.bias.as_ref()),
            Weight::Dense(weight, gpu) => Ok(gpu.project(x, None, &[self.dense(weight, Some(residual))])?.remove(0)),
            Weight::Quantized { .. } => Ok((residual + self.forward(x)?)?),
        }
    }

    /// Computes [`Linear::forward_onto`] for a residual that nothing else holds.
    pub fn forward_into(&self, residual: Tensor, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(weight) => panels::project_into(residual, x, weight, self.bias.as_ref()),
            Weight::Dense(weight, gpu) => gpu.project_into(residual, x, self.dense(weight, None)),
            Weight::Quantized { .. } => self.forward_onto(&residual, x),
        }
    }

    fn packed(&self) -> Option<(&Panels, Option<&Tensor>)> {
        if let Weight::Packed(weight) = &self.weight { Some((weight, self.bias.as_ref())) } else { None }
    }

    /// Returns the layers as a GPU's kernels take them; `None` if one of them is packed or quantized.
    fn all_dense<const N: usize>(layers: [&Self; N]) -> Option<(&GpuKernels, [Dense<'_>; N])> {
        let Weight::Dense(_, gpu) = &layers.first()?.weight else { return None };
        let dense = layers.iter().filter_map(|layer| match &layer.weight {
            Weight::Dense(weight, _) => Some(layer.dense(weight, None)),
            _ => None,
        });
        Some((gpu, dense.collect::<Vec<_>>().try_into().ok()?))
    }

    fn dense<'a>(&'a self, weight: &'a Tensor, residual: Option<&'a Tensor>) -> Dense<'a> {
        Dense { weight, bias: self.bias.as_ref(), residual }
    }

    /// Computes the gradient with respect to `x`: `dy` `[rows, out]` to `dy · W`, `[rows, in]`.
    pub fn input_gradient(&self, dy: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(weight) => weight.input_gradient(dy),
            Weight::Dense(weight, _) => self.kernels.matmul(dy, weight),
            Weight::Quantized { blocks, .. } => self.kernels.matmul(dy, &blocks.dequantize(dy.device())?),
        }
    }

    /// Computes `dx` plus the gradient with respect to `x`; `dx` `[rows, in]` must not be held by anything else.
    pub fn add_input_gradient(&self, dx: Tensor, dy: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(weight) => weight.add_input_gradient(dx, dy),
            Weight::Dense(weight, _) => self.kernels.add_product(dx, dy, weight),
            Weight::Quantized { blocks, .. } => self.kernels.add_product(dx, dy, &blocks.dequantize(dy.device())?),
        }
    }

    /// Returns the weight's rows `indices`, `[rows, in]`, as an embedding is read.
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(weight) => weight.rows(indices),
            Weight::Dense(weight, _) => Ok(weight.index_select(&Tensor::new(indices, weight.device())?, 0)?),
            Weight::Quantized { .. } => Err(Error::Internal("an embedding is never held in quantized blocks".into())),
        }
    }
}

/// Packs the matrix with its very values.
fn kept(matrix: &Matrix) -> Result<Panels> {
    match matrix {
        Matrix::Dense(weight) => Panels::of(weight, Precision::F32),
        Matrix::Blocks(blocks) => Panels::of_blocks(blocks),
        Matrix::Grouped(grouped) => Panels::of_groups(grouped),
    }
}
