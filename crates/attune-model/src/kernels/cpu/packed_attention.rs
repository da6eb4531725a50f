//! Attention inside each packed sequence, causal or both ways: that of training, and of encoders. It goes in tiles of
//! queries, so that no T×T matrix is kept. The backward pass recomputes the probabilities from the saved logarithms of
//! their sums (FlashAttention, section 3).

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::panels::unpacked::{Output, Right, multiply_here};
use super::view::View;
use super::{SharedSlice, Values, activations, tensor, vector};
use crate::Result;
use crate::kernels::{AttentionForm, AttentionState, DistanceBias};

/// Queries per tile.
const TILE: usize = 64;

/// Sizes of an attention problem.
#[derive(Clone, Copy)]
struct HeadShape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    form: AttentionForm,
}

impl HeadShape {
    fn of(q: &Tensor, k: &Tensor, form: AttentionForm) -> Result<Self> {
        let (_, heads, head_dim) = q.dims3()?;
        let (_, kv_heads, _) = k.dims3()?;
        Ok(Self { heads, kv_heads, head_dim, form })
    }

    /// Returns the number of values between the rows of a tensor of queries.
    fn query_stride(self) -> usize {
        self.heads * self.head_dim
    }

    /// Returns the number of values between the rows of a tensor of keys.
    fn key_stride(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Returns one head's rows of an interleaved tensor with `heads` heads, as a matrix `[rows, head_dim]`.
    fn head<'a>(self, values: &'a [f32], heads: usize, head: usize, rows: &Range<usize>) -> View<'a> {
        let stride = heads * self.head_dim;
        View::strided(&values[rows.start * stride + head * self.head_dim..], rows.len(), self.head_dim, stride)
    }

    /// Returns the keys that the rows of `tile` see together: from the first row's window to the last row's.
    fn keys_of(self, sequence: &Range<usize>, tile: &Range<usize>) -> Range<usize> {
        self.seen(tile.start, sequence).start..self.seen(tile.end - 1, sequence).end
    }

    /// Returns the keys of `among` that `row` sees.
    fn seen(self, row: usize, among: &Range<usize>) -> Range<usize> {
        let first = self.form.window.map_or(among.start, |window| (row + 1).saturating_sub(window).max(among.start));
        let end = match (self.form.looks_ahead, self.form.window) {
            (false, _) => row + 1,
            (true, None) => among.end,
            (true, Some(window)) => (row + window).min(among.end),
        };
        first..end
    }

    /// Returns the keys that `row` sees, as a range within `keys`.
    fn seen_by(self, row: usize, keys: &Range<usize>) -> Range<usize> {
        let seen = self.seen(row, keys);
        seen.start - keys.start..seen.end - keys.start
    }

    /// Computes the scores of `keys` by the tile's queries, `[tile, keys]`, before terms by distance.
    fn scores(
        self,
        scores: &mut Vec<f32>,
        (q, k): (&[f32], &[f32]),
        head: usize,
        tile: &Range<usize>,
        keys: &Range<usize>,
    ) {
        scores.resize(tile.len() * keys.len(), 0.0);
        let kv_head = head / (self.heads / self.kv_heads);
        let q = self.head(q, self.heads, head, tile);
        let k = self.head(k, self.kv_heads, kv_head, keys);
        let right = Right { matrix: k, factor: self.form.scale };
        multiply_here(Output { values: scores, stride: keys.len(), adds: false }, q, right);
        if let Some(cap) = self.form.cap {
            activations::soft_cap(scores, 1.0, cap);
        }
    }
}

/// Terms of scores by head and by the distance of key and query; see [`DistanceBias`].
#[derive(Clone, Copy)]
struct BiasValues<'a> {
    values: &'a [f32],
    /// Largest distance that has terms of its own.
    most: usize,
}

impl<'a> BiasValues<'a> {
    fn of(values: &'a Values<'_>, heads: usize) -> Self {
        Self { values, most: (values.len() / heads - 1) / 2 }
    }

    /// Adds the terms of `head` to the scores of `keys` by the tile's queries, `[tile, keys]`.
    fn add(self, scores: &mut [f32], head: usize, tile: &Range<usize>, keys: &Range<usize>) {
        let width = 2 * self.most + 1;
        let terms = &self.values[head * width..(head + 1) * width];
        for (row, scores) in tile.clone().zip(scores.chunks_exact_mut(keys.len())) {
            for (key, score) in keys.clone().zip(scores) {
                *score += terms[(key + self.most).saturating_sub(row).min(2 * self.most)];
            }
        }
    }
}

fn tiles(sequence: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = sequence.end;
    sequence.clone().step_by(TILE).map(move |start| start..(start + TILE).min(end))
}

/// See [`crate::kernels::Kernels::packed_attention`].
pub fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sequences: &[Range<usize>],
    form: AttentionForm,
    bias: Option<&DistanceBias>,
) -> Result<(Tensor, Tensor)> {
    let shape = HeadShape::of(q, k, form)?;
    let rows = q.dim(0)?;
    let bias = bias.map(|bias| Values::of(&bias.terms)).transpose()?;
    let bias = bias.as_ref().map(|bias| BiasValues::of(bias, shape.heads));
    let (q, k, v) = (Values::of(q)?, Values::of(k)?, Values::of(v)?);
    let mut out = vec![0.0; rows * shape.query_stride()];
    let mut log_sum_exp = vec![0.0; rows * shape.heads];
    let (shared_out, shared_sums) = (SharedSlice::new(&mut out), SharedSlice::new(&mut log_sum_exp));

    let tasks: Vec<_> = sequences
        .iter()
        .flat_map(|sequence| tiles(sequence).map(move |tile| (sequence, tile)))
        .flat_map(|(sequence, tile)| (0..shape.heads).map(move |head| (sequence, tile.clone(), head)))
        .collect();
    tasks.into_par_iter().for_each_init(
        || (Vec::new(), vec![0.0; TILE * shape.head_dim]),
        |(scores, attended), (sequence, tile, head)| {
            let keys = shape.keys_of(sequence, &tile);
            shape.scores(scores, (&q, &k), head, &tile, &keys);
            if let Some(bias) = bias {
                bias.add(scores, head, &tile, &keys);
            }
            for (row, scores) in tile.clone().zip(scores.chunks_exact_mut(keys.len())) {
                let seen = shape.seen_by(row, &keys);
                scores[..seen.start].fill(0.0);
                scores[seen.end..].fill(0.0);
                let scores = &mut scores[seen];
                let max = vector::max(scores);
                let sum = vector::exp_and_sum(scores, max);
                vector::scale(scores, 1.0 / sum);
                // SAFETY: each row and head is handled once.
                let place = unsafe { shared_sums.slice(row * shape.heads + head..row * shape.heads + head + 1) };
                place[0] = sum.ln() + max;
            }
            let probabilities = View::dense(scores, tile.len(), keys.len());
            let kv_head = head / (shape.heads / shape.kv_heads);
            let v = shape.head(&v, shape.kv_heads, kv_head, &keys);
            let output = Output { values: attended, stride: shape.head_dim, adds: false };
            multiply_here(output, probabilities, Right::plain(v.transposed()));
            for (row, attended) in tile.zip(attended.chunks_exact(shape.head_dim)) {
                let start = row * shape.query_stride() + head * shape.head_dim;
                // SAFETY: each row and head is handled once.
                unsafe { shared_out.slice(start..start + shape.head_dim) }.copy_from_slice(attended);
            }
        },
    );
    Ok((tensor(out, (rows, shape.heads, shape.head_dim))?, tensor(log_sum_exp, (rows, shape.heads))?))
}

/// Computes the gradients, tile by tile. With P the probabilities and dO the gradient of the output:
/// dV += Pᵀ dO, dP = dO Vᵀ, dS = P · (dP − rowsum(dO · O)), dQ = scale · dS K, dK += scale · dSᵀ Q.
pub fn backward(
    state: AttentionState<'_>,
    dout: &Tensor,
    sequences: &[Range<usize>],
    form: AttentionForm,
    bias: Option<&DistanceBias>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let shape = HeadShape::of(state.q, state.k, form)?;
    let bias = bias.map(|bias| Values::of(&bias.terms)).transpose()?;
    let rows = state.q.dim(0)?;
    let (q, k, v) = (Values::of(state.q)?, Values::of(state.k)?, Values::of(state.v)?);
    let (out, sums, dout) = (Values::of(state.out)?, Values::of(state.log_sum_exp)?, Values::of(dout)?);
    let bias = bias.as_ref().map(|bias| BiasValues::of(bias, shape.heads));
    let inputs = BackwardInputs { shape, q, k, v, out, sums, dout, bias };
    let shape = &inputs.shape;
    let mut dq = vec![0.0; rows * shape.query_stride()];
    let mut dk = vec![0.0; rows * shape.key_stride()];
    let mut dv = vec![0.0; rows * shape.key_stride()];
    let (shared_dq, shared_dk, shared_dv) =
        (SharedSlice::new(&mut dq), SharedSlice::new(&mut dk), SharedSlice::new(&mut dv));

    // One task per sequence and key-value head: it alone adds to that head's dK and dV.
    let tasks: Vec<_> =
        sequences.iter().flat_map(|sequence| (0..shape.kv_heads).map(move |head| (sequence, head))).collect();
    tasks.into_par_iter().for_each_init(Buffers::default, |buffers, (sequence, kv_head)| {
        let group = shape.heads / shape.kv_heads;
        buffers.dk.clear();
        buffers.dk.resize(sequence.len() * shape.head_dim, 0.0);
        buffers.dv.clear();
        buffers.dv.resize(sequence.len() * shape.head_dim, 0.0);
        for head in kv_head * group..(kv_head + 1) * group {
            for tile in tiles(sequence) {
                inputs.tile(buffers, sequence, (head, kv_head), tile.clone());
                for (row, dq) in tile.zip(buffers.dq.chunks_exact(shape.head_dim)) {
                    let start = row * shape.query_stride() + head * shape.head_dim;
                    // SAFETY: each row and head is handled once.
                    unsafe { shared_dq.slice(start..start + shape.head_dim) }.copy_from_slice(dq);
                }
            }
        }
        let per_row = buffers.dk.chunks_exact(shape.head_dim).zip(buffers.dv.chunks_exact(shape.head_dim));
        for (row, (dk, dv)) in sequence.clone().zip(per_row) {
            let start = row * shape.key_stride() + kv_head * shape.head_dim;
            // SAFETY: each row and key-value head is handled once.
            unsafe {
                shared_dk.slice(start..start + shape.head_dim).copy_from_slice(dk);
                shared_dv.slice(start..start + shape.head_dim).copy_from_slice(dv);
            }
        }
    });
    Ok((
        tensor(dq, (rows, shape.heads, shape.head_dim))?,
        tensor(dk, (rows, shape.kv_heads, shape.head_dim))?,
        tensor(dv, (rows, shape.kv_heads, shape.head_dim))?,
    ))
}

/// Inputs of one backward pass.
struct BackwardInputs<'a> {
    shape: HeadShape,
    q: Values<'a>,
    k: Values<'a>,
    v: Values<'a>,
    out: Values<'a>,
    sums: Values<'a>,
    dout: Values<'a>,
    bias: Option<BiasValues<'a>>,
}

impl BackwardInputs<'_> {
    /// Adds a tile of rows to dK and dV of its key-value head, and writes its dQ, in `buffers`.
    fn tile(
        &self,
        buffers: &mut Buffers,
        sequence: &Range<usize>,
        (head, kv_head): (usize, usize),
        tile: Range<usize>,
    ) {
        let Self { shape, q, k, v, out, sums, dout, bias } = self;
        let keys = shape.keys_of(sequence, &tile);
        let dout_view = shape.head(dout, shape.heads, head, &tile);
        // P, recomputed from the saved sums
        shape.scores(&mut buffers.scores, (q, k), head, &tile, &keys);
        if let Some(cap) = shape.form.cap {
            buffers.slopes.resize(buffers.scores.len(), 0.0);
            activations::soft_cap_slopes(&mut buffers.slopes, &buffers.scores, cap);
        }
        if let Some(bias) = bias {
            bias.add(&mut buffers.scores, head, &tile, &keys);
        }
        for (row, scores) in tile.clone().zip(buffers.scores.chunks_exact_mut(keys.len())) {
            let seen = shape.seen_by(row, &keys);
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            vector::exp_and_sum(&mut scores[seen], sums[row * shape.heads + head]);
        }
        let probabilities = View::dense(&buffers.scores, tile.len(), keys.len());
        // dV += Pᵀ dO
        let offset = (keys.start - sequence.start) * shape.head_dim;
        let dv = Output { values: &mut buffers.dv[offset..], stride: shape.head_dim, adds: true };
        multiply_here(dv, probabilities.transposed(), Right::plain(dout_view.transposed()));
        // dP = dO Vᵀ
        buffers.dscores.resize(tile.len() * keys.len(), 0.0);
        let v = shape.head(v, shape.kv_heads, kv_head, &keys);
        let dscores = Output { values: &mut buffers.dscores, stride: keys.len(), adds: false };
        multiply_here(dscores, dout_view, Right::plain(v));
        // dS = P · (dP − rowsum(dO · O))
        for (index, row) in tile.clone().enumerate() {
            let start = row * shape.query_stride() + head * shape.head_dim;
            let place = start..start + shape.head_dim;
            let delta = vector::dot(&dout[place.clone()], &out[place]);
            let line = index * keys.len()..(index + 1) * keys.len();
            for (ds, p) in buffers.dscores[line.clone()].iter_mut().zip(&buffers.scores[line]) {
                *ds = p * (*ds - delta);
            }
        }
        // Before the cap: dS · (1 − (s / cap)²)
        if shape.form.cap.is_some() {
            activations::multiply_each(&mut buffers.dscores, &buffers.slopes);
        }
        let dscores = View::dense(&buffers.dscores, tile.len(), keys.len());
        // dK += scale · dSᵀ Q
        let q = shape.head(q, shape.heads, head, &tile);
        let dk = Output { values: &mut buffers.dk[offset..], stride: shape.head_dim, adds: true };
        multiply_here(dk, dscores.transposed(), Right { matrix: q.transposed(), factor: shape.form.scale });
        // dQ = scale · dS K
        buffers.dq.resize(TILE * shape.head_dim, 0.0);
        let k = shape.head(k, shape.kv_heads, kv_head, &keys);
        let dq = Output { values: &mut buffers.dq, stride: shape.head_dim, adds: false };
        multiply_here(dq, dscores, Right { matrix: k.transposed(), factor: shape.form.scale });
    }
}

/// Scratch memory of one thread.
#[derive(Default)]
struct Buffers {
    scores: Vec<f32>,
    slopes: Vec<f32>,
    dscores: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}
