//! Cross entropy over the vocabulary, on a GPU.

use bytemuck::{Pod, Zeroable};
use candle_core::{DType, Tensor};

use super::launch::{Kernel, Launcher, Shape, launch, output};
use crate::Result;
use crate::address::address;
use crate::kernels::{CrossEntropy, LogitForm};

const CROSS_ENTROPY: &str = include_str!("sources/cross_entropy.cu");

/// Arguments of kernels in `cross_entropy.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CrossEntropyArguments {
    products: u64,
    targets: u64,
    weights: u64,
    losses: u64,
    correct: u64,
    classes: u32,
    scale: f32,
    cap: f32,
    padding: u32,
}

/// Computes [`cross_entropy`](crate::kernels::Kernels::cross_entropy): the gradient takes the place of `products`,
/// which nothing else may hold.
pub fn cross_entropy(
    launcher: &dyn Launcher,
    products: &Tensor,
    form: LogitForm,
    targets: &[u32],
    weights: &[f32],
) -> Result<CrossEntropy> {
    let (rows, classes) = products.dims2()?;
    let (products, device) = (products.contiguous()?, products.device().clone());
    let (targets, weights) = (Tensor::new(targets, &device)?, Tensor::new(weights, &device)?);
    let (losses, correct) = (output(rows, DType::F32, &products)?, output(rows, DType::U8, &products)?);
    let arguments = CrossEntropyArguments {
        products: address(&products)?,
        targets: address(&targets)?,
        weights: address(&weights)?,
        losses: address(&losses)?,
        correct: address(&correct)?,
        classes: classes as u32,
        scale: form.scale,
        cap: form.cap.unwrap_or(0.0),
        padding: 0,
    };
    let kernel = Kernel::new("cross_entropy", CROSS_ENTROPY, products.dtype())?;
    launch(launcher, kernel, &arguments, Shape::rows(rows, classes))?;
    let correct = correct.to_vec1::<u8>()?.into_iter().map(|value| value != 0).collect();
    Ok(CrossEntropy { losses: losses.to_vec1()?, correct, gradient: products })
}
