//! The kernels in plain candle operations, against which tests check our own code for the CPU and for GPUs.
//!
//! Written for exactness; attention here forms whole score matrices per sequence.

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use super::{Activation, AttentionForm, AttentionState, CrossEntropy, Filters, LogitForm, SequenceRows};
use crate::Result;
use crate::kv_cache::BLOCK_TOKENS;
use crate::lora::LoraPair;
use crate::rope::Angles;

/// See [`super::Kernels::linear`].
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.matmul(&weight.t()?)?)
}

/// See [`super::Kernels::add_lora`].
pub fn add_lora(y: Tensor, x: &Tensor, rows: Range<usize>, pair: &LoraPair) -> Result<Tensor> {
    let shrunk = x.narrow(0, rows.start, rows.len())?.matmul(&pair.a.t()?)?; // [rows, rank]
    let delta = shrunk.matmul(&pair.b.t()?)?.affine(f64::from(pair.scale), 0.0)?; // [rows, out]
    if rows.len() == y.dim(0)? {
        return Ok((y + delta)?);
    }
    let changed = (y.narrow(0, rows.start, rows.len())? + delta)?;
    y.slice_set(&changed, 0, rows.start)?;
    Ok(y)
}

/// Computes `1 / rms(x)` over the last dimension, which stays with size 1.
fn inverse_rms(x: &Tensor, eps: f32) -> Result<Tensor> {
    Ok((x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?.recip()?)
}

/// See [`super::Kernels::rms_norm`].
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    Ok(x.broadcast_mul(&inverse_rms(x, eps)?)?.broadcast_mul(weight)?)
}

/// Computes the gradient of [`rms_norm`]. With r = 1 / rms(x) and g = dy · weight: dx = r · g − x · r³ · mean(g · x).
pub fn rms_norm_backward(x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
    let inverse = inverse_rms(x, eps)?;
    let g = dy.broadcast_mul(weight)?;
    let shared = ((&g * x)?.mean_keepdim(D::Minus1)? * inverse.powf(3.0)?)?;
    Ok((g.broadcast_mul(&inverse)? - x.broadcast_mul(&shared)?)?)
}

/// Rotates the first elements of each head, as many as there are angles for, forwards (`direction` 1) or backwards
/// (−1).
pub fn rope(x: &Tensor, angles: &Angles, direction: f64) -> Result<Tensor> {
    let (head_dim, half) = (x.dim(D::Minus1)?, angles.cos.dim(1)?);
    let cos = angles.cos.unsqueeze(1)?; // [rows, 1, half]
    let sin = angles.sin.unsqueeze(1)?.affine(direction, 0.0)?;
    let (x1, x2) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    if 2 * half == head_dim {
        return Ok(Tensor::cat(&[y1, y2], D::Minus1)?.contiguous()?);
    }
    let kept = x.narrow(D::Minus1, 2 * half, head_dim - 2 * half)?;
    Ok(Tensor::cat(&[y1, y2, kept], D::Minus1)?.contiguous()?)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

/// Computes an activation and its slope at `x`.
fn activation_and_slope(activation: Activation, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let slope = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    match activation {
        Activation::Silu => of_sigmoid(x, x, &x.ones_like()?),
        Activation::GeluTanh => {
            let z = ((x + (x.powf(3.0)? * 0.044_715)?)? * slope)?;
            of_sigmoid(x, &z, &((x.sqr()? * (3.0 * 0.044_715))? + 1.0)?.affine(slope, 0.0)?)
        }
        Activation::Gelu => {
            let share = (((x / std::f64::consts::SQRT_2)?.erf()? + 1.0)? / 2.0)?;
            let density = ((x.sqr()? * -0.5)?.exp()? / (2.0 * std::f64::consts::PI).sqrt())?;
            Ok(((x * &share)?, (share + (x * density)?)?))
        }
        Activation::Relu => Ok((x.relu()?, x.gt(0.0)?.to_dtype(x.dtype())?)),
    }
}

/// Computes x · σ(z) and its slope σ(1 + x z'(1 − σ)), with σ = σ(z).
fn of_sigmoid(x: &Tensor, z: &Tensor, slope: &Tensor) -> Result<(Tensor, Tensor)> {
    let sigma = sigmoid(z)?;
    let inner = (((x * slope)? * (1.0 - &sigma)?)? + 1.0)?;
    Ok(((x * &sigma)?, (inner * sigma)?))
}

/// See [`super::Kernels::gated`].
pub fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok((activation_and_slope(activation, gate)?.0 * up)?)
}

/// Computes d gate = dy · up · activation'(gate) and d up = dy · activation(gate).
pub fn gated_backward(activation: Activation, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (value, slope) = activation_and_slope(activation, gate)?;
    Ok((((dy * up)? * slope)?, (dy * value)?))
}

/// See [`super::Kernels::activated`].
pub fn activated(activation: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(activation_and_slope(activation, x)?.0)
}

/// See [`super::Kernels::activated_backward`].
pub fn activated_backward(activation: Activation, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    Ok((activation_and_slope(activation, x)?.1 * dy)?)
}

/// See [`super::Kernels::layer_norm`].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let (normed, _) = standardized(x, eps)?;
    let y = normed.broadcast_mul(weight)?;
    Ok(bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))?)
}

/// See [`super::Kernels::layer_norm_backward`].
pub fn layer_norm_backward(x: &Tensor, weight: &Tensor, eps: f32, dy: &Tensor) -> Result<Tensor> {
    let (normed, deviation) = standardized(x, eps)?;
    let g = dy.broadcast_mul(weight)?;
    let along = (&g * &normed)?.mean_keepdim(D::Minus1)?;
    let dx = (g.broadcast_sub(&g.mean_keepdim(D::Minus1)?)? - normed.broadcast_mul(&along)?)?;
    Ok(dx.broadcast_div(&deviation)?)
}

/// Computes (x − mean) / deviation, and the deviation, `[…, 1]`.
fn standardized(x: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centered.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    Ok((centered.broadcast_div(&deviation)?, deviation))
}

/// Repeats each key-value head for its group of query heads: `[keys, kv_heads, d]` to `[heads, keys, d]`.
fn repeat_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (keys, kv_heads, d) = x.dims3()?;
    let x = x.transpose(0, 1)?.unsqueeze(1)?.expand((kv_heads, heads / kv_heads, keys, d))?;
    Ok(x.contiguous()?.reshape((heads, keys, d))?)
}

/// Returns the mask `[queries, keys]`: 0 if the query at `first_query + i` sees key j, else −∞.
fn mask(queries: usize, first_query: usize, keys: usize, form: AttentionForm, device: &Device) -> Result<Tensor> {
    let AttentionForm { window, looks_ahead, .. } = form;
    let is_near = |query: usize, key: usize| window.is_none_or(|window| query.abs_diff(key) < window);
    let seen = |query: usize, key: usize| (looks_ahead || key <= query) && is_near(query, key);
    let values: Vec<f32> = (first_query..first_query + queries)
        .flat_map(|query| (0..keys).map(move |key| if seen(query, key) { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    Ok(Tensor::from_vec(values, (queries, keys), device)?)
}

/// Computes the scores `[heads, queries, keys]` before the mask.
fn scores(q: &Tensor, k: &Tensor, form: AttentionForm) -> Result<Tensor> {
    let scores = (q.matmul(&k.t()?)? * f64::from(form.scale))?;
    soft_cap(&scores, form.cap)
}

/// Computes cap · tanh(x / cap).
fn soft_cap(x: &Tensor, cap: Option<f32>) -> Result<Tensor> {
    let Some(cap) = cap.map(f64::from) else { return Ok(x.clone()) };
    Ok(((x / cap)?.tanh()? * cap)?)
}

/// Computes the slope of [`soft_cap`] where it gives `y`: 1 − (y / cap)².
fn soft_cap_slope(y: &Tensor, cap: f32) -> Result<Tensor> {
    Ok((1.0 - (y / f64::from(cap))?.sqr()?)?)
}

/// Computes softmax probabilities `[heads, queries, keys]` and the logarithms of their sums `[heads, queries, 1]`.
fn softmax(scores: &Tensor, mask: &Tensor) -> Result<(Tensor, Tensor)> {
    let scores = scores.broadcast_add(mask)?; // [heads, queries, keys]
    let max = scores.max_keepdim(D::Minus1)?;
    let exp = scores.broadcast_sub(&max)?.exp()?;
    let sum = exp.sum_keepdim(D::Minus1)?;
    Ok((exp.broadcast_div(&sum)?, (sum.log()? + max)?))
}

/// Returns rows of one sequence as `[heads, rows, d]`.
fn by_head(x: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    Ok(x.narrow(0, rows.start, rows.len())?.transpose(0, 1)?.contiguous()?)
}

/// See [`super::Kernels::packed_attention`].
pub fn packed_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sequences: &[Range<usize>],
    form: AttentionForm,
) -> Result<(Tensor, Tensor)> {
    let heads = q.dim(1)?;
    let (mut outs, mut sums) = (Vec::new(), Vec::new());
    for rows in sequences {
        let keys = repeat_heads(&k.narrow(0, rows.start, rows.len())?, heads)?;
        let values = repeat_heads(&v.narrow(0, rows.start, rows.len())?, heads)?;
        let mask = mask(rows.len(), 0, rows.len(), form, q.device())?;
        let (p, log_sum_exp) = softmax(&scores(&by_head(q, rows)?, &keys, form)?, &mask)?;
        outs.push(p.matmul(&values)?.transpose(0, 1)?.contiguous()?); // [rows, heads, d]
        sums.push(log_sum_exp.squeeze(D::Minus1)?.t()?.contiguous()?); // [rows, heads]
    }
    Ok((Tensor::cat(&outs, 0)?, Tensor::cat(&sums, 0)?))
}

/// See [`super::Kernels::packed_attention_backward`].
pub fn packed_attention_backward(
    state: AttentionState<'_>,
    dout: &Tensor,
    sequences: &[Range<usize>],
    form: AttentionForm,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (_, heads, d) = state.q.dims3()?;
    let kv_heads = state.k.dim(1)?;
    let (mut dqs, mut dks, mut dvs) = (Vec::new(), Vec::new(), Vec::new());
    for rows in sequences {
        let (q, dout, out) = (by_head(state.q, rows)?, by_head(dout, rows)?, by_head(state.out, rows)?);
        let k = repeat_heads(&state.k.narrow(0, rows.start, rows.len())?, heads)?;
        let v = repeat_heads(&state.v.narrow(0, rows.start, rows.len())?, heads)?;
        let scores = scores(&q, &k, form)?; // [heads, rows, rows]
        let (p, _) = softmax(&scores, &mask(rows.len(), 0, rows.len(), form, q.device())?)?;
        let dv = p.t()?.contiguous()?.matmul(&dout)?; // [heads, rows, d]
        let dp = dout.matmul(&v.t()?)?;
        let delta = (&dout * &out)?.sum_keepdim(D::Minus1)?;
        let mut ds = ((p * dp.broadcast_sub(&delta)?)? * f64::from(form.scale))?;
        if let Some(cap) = form.cap {
            ds = (ds * soft_cap_slope(&scores, cap)?)?;
        }
        // A key-value head gets the sum over its group of query heads.
        let gather = |x: Tensor| -> Result<Tensor> {
            let x = x.reshape((kv_heads, heads / kv_heads, rows.len(), d))?.sum(1)?;
            Ok(x.transpose(0, 1)?.contiguous()?)
        };
        dqs.push(ds.matmul(&k)?.transpose(0, 1)?.contiguous()?);
        dks.push(gather(ds.t()?.contiguous()?.matmul(&q)?)?);
        dvs.push(gather(dv)?);
    }
    Ok((Tensor::cat(&dqs, 0)?, Tensor::cat(&dks, 0)?, Tensor::cat(&dvs, 0)?))
}

/// See [`super::Kernels::write_cache`]: copies the rows of `source` `[rows, kv_heads, d]` into `cache`, block by block.
pub fn write_cache(cache: &Tensor, source: &Tensor, sequences: &[SequenceRows<'_>]) -> Result<()> {
    for sequence in sequences {
        let mut position = sequence.start;
        let mut row = sequence.rows.start;
        while row < sequence.rows.end {
            let offset = position % BLOCK_TOKENS;
            let count = (BLOCK_TOKENS - offset).min(sequence.rows.end - row);
            let slot = sequence.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + offset;
            cache.slice_set(&source.narrow(0, row, count)?, 0, slot)?;
            position += count;
            row += count;
        }
    }
    Ok(())
}

/// See [`super::Kernels::cached_attention`].
pub fn cached_attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    sequences: &[SequenceRows<'_>],
    form: AttentionForm,
) -> Result<Tensor> {
    let heads = q.dim(1)?;
    let mut outs = Vec::new();
    for sequence in sequences {
        let length = sequence.start + sequence.rows.len();
        let slots: Vec<u32> = (0..length)
            .map(|position| {
                sequence.blocks[position / BLOCK_TOKENS] * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32
            })
            .collect();
        let slots = Tensor::new(slots, q.device())?;
        let k = repeat_heads(&keys.index_select(&slots, 0)?, heads)?;
        let v = repeat_heads(&values.index_select(&slots, 0)?, heads)?;
        let mask = mask(sequence.rows.len(), sequence.start, length, form, q.device())?;
        let (p, _) = softmax(&scores(&by_head(q, &sequence.rows)?, &k, form)?, &mask)?;
        outs.push(p.matmul(&v)?.transpose(0, 1)?.contiguous()?);
    }
    Ok(Tensor::cat(&outs, 0)?)
}

/// Returns B, C and x of the rows of one sequence, `[rows, channels]` each.
fn convolution_parts(projected: &Tensor, rows: &Range<usize>) -> Result<[Tensor; 3]> {
    let (rows, width) = (projected.narrow(0, rows.start, rows.len())?, projected.dim(1)? / 3);
    let part = |index: usize| rows.narrow(1, index * width, width);
    Ok([part(0)?, part(1)?, part(2)?])
}

/// Returns the weights of the tap for rows `back` before the current one, `[1, channels]`.
fn tap(filters: &Filters, back: usize) -> Result<Tensor> {
    Ok(filters.weight.narrow(1, filters.weight.dim(1)? - 1 - back, 1)?.t()?)
}

/// Computes the bias plus the sum of each tap's weights times the rows so many before, of one sequence.
fn convolved(inputs: &Tensor, filters: &Filters) -> Result<Tensor> {
    let rows = inputs.dim(0)?;
    let mut z = inputs.zeros_like()?;
    if let Some(bias) = &filters.bias {
        z = z.broadcast_add(bias)?;
    }
    for back in 0..filters.weight.dim(1)? {
        let before = inputs.pad_with_zeros(0, back, 0)?.narrow(0, 0, rows)?;
        z = (z + before.broadcast_mul(&tap(filters, back)?)?)?;
    }
    Ok(z)
}

/// See [`super::Kernels::packed_convolution`].
pub fn packed_convolution(projected: &Tensor, filters: &Filters, sequences: &[Range<usize>]) -> Result<Tensor> {
    let of = |rows: &Range<usize>| -> Result<Tensor> {
        let [b, c, x] = convolution_parts(projected, rows)?;
        Ok((c * convolved(&(b * x)?, filters)?)?)
    };
    Ok(Tensor::cat(&sequences.iter().map(of).collect::<Result<Vec<_>>>()?, 0)?)
}

/// See [`super::Kernels::packed_convolution_backward`].
pub fn packed_convolution_backward(
    projected: &Tensor,
    filters: &Filters,
    dy: &Tensor,
    sequences: &[Range<usize>],
) -> Result<Tensor> {
    let of = |rows: &Range<usize>| -> Result<Tensor> {
        let ([b, c, x], dy) = (convolution_parts(projected, rows)?, dy.narrow(0, rows.start, rows.len())?);
        let (dc, dz) = ((&dy * convolved(&(&b * &x)?, filters)?)?, (dy * c)?);
        let mut du = dz.zeros_like()?;
        for ahead in 0..filters.weight.dim(1)? {
            let behind = dz.pad_with_zeros(0, 0, ahead)?.narrow(0, ahead, rows.len())?;
            du = (du + behind.broadcast_mul(&tap(filters, ahead)?)?)?;
        }
        Ok(Tensor::cat(&[(&du * x)?, dc, (du * b)?], 1)?)
    };
    Ok(Tensor::cat(&sequences.iter().map(of).collect::<Result<Vec<_>>>()?, 0)?)
}

/// See [`super::Kernels::to_logits`].
pub fn to_logits(products: &Tensor, form: LogitForm) -> Result<Tensor> {
    soft_cap(&(products * f64::from(form.scale))?, form.cap)
}

/// See [`super::Kernels::cross_entropy`].
pub fn cross_entropy(products: &Tensor, form: LogitForm, targets: &[u32], weights: &[f32]) -> Result<CrossEntropy> {
    let logits = &to_logits(products, form)?;
    let device = logits.device();
    let (rows, classes) = logits.dims2()?;
    let targets_column = Tensor::new(targets, device)?.unsqueeze(1)?; // [rows, 1]
    let weights = Tensor::new(weights, device)?.unsqueeze(1)?; // [rows, 1]
    let max = logits.max_keepdim(1)?;
    let exp = logits.broadcast_sub(&max)?.exp()?;
    let sum = exp.sum_keepdim(1)?;
    let target_logits = logits.gather(&targets_column, 1)?;
    let losses = ((sum.log()? + &max)? - &target_logits)?.squeeze(1)?.to_vec1()?;
    let correct = target_logits.ge(&max)?.squeeze(1)?.to_vec1::<u8>()?.into_iter().map(|value| value != 0).collect();
    let one_hot = Tensor::zeros((rows, classes), DType::F32, device)?.scatter_add(
        &targets_column,
        &Tensor::ones((rows, 1), DType::F32, device)?,
        1,
    )?;
    let gradient = (exp.broadcast_div(&sum)? - one_hot)?.broadcast_mul(&weights)?;
    let mut gradient = (gradient * f64::from(form.scale))?;
    if let Some(cap) = form.cap {
        gradient = (gradient * soft_cap_slope(logits, cap)?)?;
    }
    Ok(CrossEntropy { losses, correct, gradient })
}
