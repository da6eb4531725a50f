//! Norms, rotary positions, activations and logits on a GPU, with their gradients.

use bytemuck::{Pod, Zeroable};
use candle_core::Tensor;

use super::launch::{Kernel, Launcher, Shape, launch, output};
use crate::Result;
use crate::address::{VECTOR_BYTES, address};
use crate::kernels::{Activation, LogitForm};
use crate::rope::Angles;

const NORM: &str = include_str!("sources/norm.cu");
const ELEMENTWISE: &str = include_str!("sources/elementwise.cu");

/// Arguments of kernels in `norm.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RmsNorm {
    x: u64,
    weight: u64,
    y: u64,
    width: u32,
    eps: f32,
}

/// See [`rms_norm`](crate::kernels::Kernels::rms_norm); the weight is f32.
pub fn rms_norm(launcher: &dyn Launcher, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (x, y) = (x.contiguous()?, output(x.shape(), x.dtype(), x)?);
    let width = weight.elem_count();
    let arguments = RmsNorm { x: address(&x)?, weight: address(weight)?, y: address(&y)?, width: width as u32, eps };
    let kernel = Kernel::new("rms_norm", NORM, x.dtype())?;
    launch(launcher, kernel, &arguments, Shape::rows(x.elem_count() / width, vectors(width, &x)))?;
    Ok(y)
}

/// Arguments of kernels in `norm.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormBackward {
    x: u64,
    weight: u64,
    dy: u64,
    residual: u64,
    dx: u64,
    width: u32,
    eps: f32,
}

/// See [`rms_norm_backward`](crate::kernels::Kernels::rms_norm_backward).
pub fn rms_norm_backward(
    launcher: &dyn Launcher,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    norm_backward(launcher, "rms_norm_backward", x, weight, eps, dy, residual)
}

fn norm_backward(
    launcher: &dyn Launcher,
    name: &'static str,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (x, dy, dx) = (x.contiguous()?, dy.contiguous()?, output(x.shape(), x.dtype(), x)?);
    let width = weight.elem_count();
    let arguments = NormBackward {
        x: address(&x)?,
        weight: address(weight)?,
        dy: address(&dy)?,
        residual: residual.map_or(Ok(0), address)?,
        dx: address(&dx)?,
        width: width as u32,
        eps,
    };
    let kernel = Kernel::new(name, NORM, x.dtype())?;
    launch(launcher, kernel, &arguments, Shape::rows(x.elem_count() / width, vectors(width, &x)))?;
    Ok(dx)
}

/// Arguments of kernels in `norm.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LayerNorm {
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
    width: u32,
    eps: f32,
}

/// See [`layer_norm`](crate::kernels::Kernels::layer_norm); weight and bias are f32.
pub fn layer_norm(
    launcher: &dyn Launcher,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let (x, y) = (x.contiguous()?, output(x.shape(), x.dtype(), x)?);
    let width = weight.elem_count();
    let arguments = LayerNorm {
        x: address(&x)?,
        weight: address(weight)?,
        bias: bias.map_or(Ok(0), address)?,
        y: address(&y)?,
        width: width as u32,
        eps,
    };
    let kernel = Kernel::new("layer_norm", NORM, x.dtype())?;
    launch(launcher, kernel, &arguments, Shape::rows(x.elem_count() / width, vectors(width, &x)))?;
    Ok(y)
}

/// See [`layer_norm_backward`](crate::kernels::Kernels::layer_norm_backward); the weight is f32.
pub fn layer_norm_backward(
    launcher: &dyn Launcher,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    norm_backward(launcher, "layer_norm_backward", x, weight, eps, dy, residual)
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Heads {
    x: u64,
    y: u64,
    pairs: u64,
    in_row: u64,
}

/// Arguments of kernels in `elementwise.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Rope {
    both: [Heads; 2],
    cos: u64,
    sin: u64,
    half: u32,
    half_head: u32,
    direction: f32,
    padding: u32,
}

/// Rotates the first elements of queries and keys `[rows, heads, d]`, as many as there are angles for, forwards
/// (`direction` 1) or backwards (−1).
pub fn rope(
    launcher: &dyn Launcher,
    q: &Tensor,
    k: &Tensor,
    angles: &Angles,
    direction: f32,
) -> Result<(Tensor, Tensor)> {
    let (_rows, _heads, head_dim) = q.dims3()?;
    let (q, k) = (q.contiguous()?, k.contiguous()?);
    let (rotated_q, rotated_k) = (output(q.shape(), q.dtype(), &q)?, output(k.shape(), k.dtype(), &k)?);
    let heads = |x: &Tensor, y: &Tensor| -> Result<Heads> {
        let (pairs, in_row) = (x.elem_count() as u64 / 2, x.dim(1)? as u64);
        Ok(Heads { x: address(x)?, y: address(y)?, pairs, in_row })
    };
    let arguments = Rope {
        both: [heads(&q, &rotated_q)?, heads(&k, &rotated_k)?],
        cos: address(&angles.cos)?,
        sin: address(&angles.sin)?,
        half: angles.half(head_dim)? as u32,
        half_head: (head_dim / 2) as u32,
        direction,
        padding: 0,
    };
    let pairs = q.elem_count() / 2 + k.elem_count() / 2;
    launch(launcher, Kernel::new("rope", ELEMENTWISE, q.dtype())?, &arguments, Shape::over(pairs))?;
    Ok((rotated_q, rotated_k))
}

/// Arguments of kernels in `elementwise.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Gated {
    gate: u64,
    up: u64,
    y: u64,
    count: u64,
    activation: u32,
    padding: u32,
}

/// See [`gated`](crate::kernels::Kernels::gated).
pub fn gated(launcher: &dyn Launcher, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate, up, y) = (gate.contiguous()?, up.contiguous()?, output(gate.shape(), gate.dtype(), gate)?);
    let count = gate.elem_count();
    let arguments = Gated {
        gate: address(&gate)?,
        up: address(&up)?,
        y: address(&y)?,
        count: count as u64,
        activation: number(activation),
        padding: 0,
    };
    let shape = Shape::over(vectors(count, &gate));
    launch(launcher, Kernel::new("gated", ELEMENTWISE, gate.dtype())?, &arguments, shape)?;
    Ok(y)
}

/// Arguments of kernels in `elementwise.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GatedBackward {
    gate: u64,
    up: u64,
    dy: u64,
    dgate: u64,
    dup: u64,
    count: u64,
    activation: u32,
    padding: u32,
}

/// See [`gated_backward`](crate::kernels::Kernels::gated_backward).
pub fn gated_backward(
    launcher: &dyn Launcher,
    activation: Activation,
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (gate, up, dy) = (gate.contiguous()?, up.contiguous()?, dy.contiguous()?);
    let make = || output(gate.shape(), gate.dtype(), &gate);
    let (dgate, dup, count) = (make()?, make()?, gate.elem_count());
    let arguments = GatedBackward {
        gate: address(&gate)?,
        up: address(&up)?,
        dy: address(&dy)?,
        dgate: address(&dgate)?,
        dup: address(&dup)?,
        count: count as u64,
        activation: number(activation),
        padding: 0,
    };
    let shape = Shape::over(vectors(count, &gate));
    launch(launcher, Kernel::new("gated_backward", ELEMENTWISE, gate.dtype())?, &arguments, shape)?;
    Ok((dgate, dup))
}

/// Arguments of kernels in `elementwise.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Activated {
    x: u64,
    dy: u64,
    y: u64,
    count: u64,
    activation: u32,
    padding: u32,
}

/// See [`activated`](crate::kernels::Kernels::activated).
pub fn activated(launcher: &dyn Launcher, activation: Activation, x: &Tensor) -> Result<Tensor> {
    activate(launcher, activation, "activated", x, None)
}

/// See [`activated_backward`](crate::kernels::Kernels::activated_backward).
pub fn activated_backward(launcher: &dyn Launcher, activation: Activation, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    activate(launcher, activation, "activated_backward", x, Some(dy))
}

fn activate(
    launcher: &dyn Launcher,
    activation: Activation,
    name: &'static str,
    x: &Tensor,
    dy: Option<&Tensor>,
) -> Result<Tensor> {
    let (x, dy) = (x.contiguous()?, dy.map(Tensor::contiguous).transpose()?);
    let (y, count) = (output(x.shape(), x.dtype(), &x)?, x.elem_count());
    let arguments = Activated {
        x: address(&x)?,
        dy: dy.as_ref().map_or(Ok(0), address)?,
        y: address(&y)?,
        count: count as u64,
        activation: number(activation),
        padding: 0,
    };
    launch(launcher, Kernel::new(name, ELEMENTWISE, x.dtype())?, &arguments, Shape::over(vectors(count, &x)))?;
    Ok(y)
}

/// Arguments of kernels in `elementwise.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ToLogits {
    products: u64,
    logits: u64,
    count: u64,
    scale: f32,
    cap: f32,
}

/// See [`to_logits`](crate::kernels::Kernels::to_logits).
pub fn to_logits(launcher: &dyn Launcher, products: &Tensor, form: LogitForm) -> Result<Tensor> {
    let (products, logits) = (products.contiguous()?, output(products.shape(), products.dtype(), products)?);
    let count = products.elem_count();
    let arguments = ToLogits {
        products: address(&products)?,
        logits: address(&logits)?,
        count: count as u64,
        scale: form.scale,
        cap: form.cap.unwrap_or(0.0),
    };
    let shape = Shape::over(vectors(count, &products));
    launch(launcher, Kernel::new("to_logits", ELEMENTWISE, products.dtype())?, &arguments, shape)?;
    Ok(logits)
}

/// Returns the activation's number in `common.cuh`.
pub(super) fn number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
        Activation::Relu => 3,
    }
}

/// Returns the number of vectors for `count` elements of the type of `like`; the last one may not be full.
fn vectors(count: usize, like: &Tensor) -> usize {
    (count * like.dtype().size_in_bytes()).div_ceil(VECTOR_BYTES)
}
