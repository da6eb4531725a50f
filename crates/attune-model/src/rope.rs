//! Rotary position embedding: the frequencies of a model, and the cosines and sines of a step's positions.
//!
//! Su et al., "RoFormer" (2021); scaling as in transformers' `modeling_rope_utils`: linear, Llama 3.1, YaRN (Peng et
//! al., 2023), LongRoPE (Ding et al., 2024).

use std::f64::consts::PI;

use candle_core::{Device, Tensor};

use crate::config::RopeParameters;
use crate::rope_scaling::{QueryScaling, RopeScaling};
use crate::{Error, Result};

/// Rotary frequencies of one kind of a model.
#[derive(Debug, Clone)]
pub struct Rope {
    /// Radians per position, `[rotated / 2]`, where `rotated` elements of each head are rotated.
    frequencies: Vec<f32>,
    /// Those of long sequences, and the most tokens that a sequence of the others may have; `None` if there is one
    /// table.
    long: Option<(Vec<f32>, usize)>,
    /// Factor on cosines and sines.
    scale: f32,
    query_scaling: Option<QueryScaling>,
}

/// Table of frequencies by which a sequence is rotated. It is chosen once for each sequence: keys that were rotated by
/// one table cannot be attended to by queries of the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum RopeTable {
    /// Of the context that the model was first trained on; the only one of most models.
    #[default]
    Short,
    /// Of sequences that may become longer than that (LongRoPE).
    Long,
}

/// Cosines and sines of a step's positions, `[rows, rotated / 2]` each: `rotated` elements of each head are rotated,
/// its first ones.
#[derive(Debug, Clone)]
pub struct Angles {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
    /// Factor on the rotated queries of each row, `[rows, 1, 1]`; `None` if all are 1.
    pub query_scale: Option<Tensor>,
}

impl RopeTable {
    /// Returns the table of a sequence that may come to have `tokens` rows, of a model whose short table is for
    /// `short_context` at the most; `None` for models of one table.
    pub fn of(tokens: usize, short_context: Option<usize>) -> Self {
        if short_context.is_some_and(|context| tokens > context) { Self::Long } else { Self::Short }
    }
}

impl Rope {
    /// Returns true if the numbers of both differ by `tolerance` of theirs at the most, and what they stand for does not.
    pub(crate) fn is_close_to(&self, other: &Self, tolerance: f32) -> bool {
        let close = |one: f32, other: f32| (one - other).abs() <= tolerance * one.abs().max(other.abs());
        let all_close = |one: &[f32], other: &[f32]| {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| close(*one, *other))
        };
        let long = match (&self.long, &other.long) {
            (Some((one, context)), Some((other, other_context))) => context == other_context && all_close(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        let growth = match (self.query_scaling, other.query_scaling) {
            (Some(one), Some(other)) => {
                close(one.beta as f32, other.beta as f32)
                    && close(one.original_context as f32, other.original_context as f32)
            }
            (one, other) => one.is_none() && other.is_none(),
        };
        long && growth && close(self.scale, other.scale) && all_close(&self.frequencies, &other.frequencies)
    }

    /// Computes the frequencies that `parameters` ask for, for heads of `head_dim` values.
    pub fn new(head_dim: usize, parameters: &RopeParameters) -> Self {
        let (theta, rotated) = (parameters.theta, parameters.rotated(head_dim));
        let frequencies = |divisors: &[f64]| -> Vec<f32> {
            plain(theta, rotated).zip(divisors).map(|(frequency, divisor)| (frequency / divisor) as f32).collect()
        };
        let query_scaling = parameters.query_scaling;
        let single = |frequencies, scale: f64| Self { frequencies, long: None, scale: scale as f32, query_scaling };
        match &parameters.scaling {
            RopeScaling::None => single(frequencies(&vec![1.0; rotated / 2]), 1.0),
            RopeScaling::Linear { factor } => single(frequencies(&vec![*factor; rotated / 2]), 1.0),
            // Those beyond the list, of which a file has none, are not divided.
            RopeScaling::Divided { divisors } => {
                let divisors: Vec<f64> =
                    divisors.iter().copied().chain(std::iter::repeat(1.0)).take(rotated / 2).collect();
                single(frequencies(&divisors), 1.0)
            }
            RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context,
            } => {
                let stretched = plain(theta, rotated).map(|frequency| {
                    let wavelength = 2.0 * PI / frequency;
                    let smooth = ((original_context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
                    ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
                });
                single(stretched.collect(), 1.0)
            }
            RopeScaling::Yarn { attention_factor, .. } => {
                single(yarn(theta, rotated, &parameters.scaling), *attention_factor)
            }
            RopeScaling::LongRope { short, long, original_context, attention_factor } => Self {
                long: Some((frequencies(long), *original_context)),
                ..single(frequencies(short), *attention_factor)
            },
        }
    }

    /// Returns the tokens up to which a sequence is rotated by the table of short ones; `None` if there is one table.
    pub fn short_context(&self) -> Option<usize> {
        self.long.as_ref().map(|(_, original_context)| *original_context)
    }

    /// Computes the cosines and sines of rows, each with its position and its sequence's table. Angles are rounded to
    /// f32 first, as in the reference.
    pub fn angles(&self, rows: impl ExactSizeIterator<Item = (usize, RopeTable)>, device: &Device) -> Result<Angles> {
        let (count, half) = (rows.len(), self.frequencies.len());
        let mut cos = Vec::with_capacity(count * half);
        let mut sin = Vec::with_capacity(count * half);
        let mut query_scales = Vec::with_capacity(count);
        for (position, table) in rows {
            let frequencies = match (&self.long, table) {
                (Some((long, _)), RopeTable::Long) => long,
                _ => &self.frequencies,
            };
            for frequency in frequencies {
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push(c as f32 * self.scale);
                sin.push(s as f32 * self.scale);
            }
            query_scales.push(self.query_scaling.map_or(1.0, |scaling| scaling.factor(position)));
        }
        let is_scaled = query_scales.iter().any(|scale: &f32| scale.to_bits() != 1.0_f32.to_bits());
        Ok(Angles {
            cos: Tensor::from_vec(cos, (count, half), device)?,
            sin: Tensor::from_vec(sin, (count, half), device)?,
            query_scale: is_scaled.then(|| Tensor::from_vec(query_scales, (count, 1, 1), device)).transpose()?,
        })
    }
}

impl Angles {
    /// Returns half the number of elements that are rotated in a head of `head_dim` elements.
    pub(crate) fn half(&self, head_dim: usize) -> Result<usize> {
        let half = self.cos.dim(1)?;
        if 2 * half > head_dim {
            return Err(Error::Internal(format!("{half} angles for a head of {head_dim} elements")));
        }
        Ok(half)
    }

    /// Multiplies `queries` `[rows, heads, head_dim]` by the factors of their rows, or their gradients, which is the
    /// same.
    pub(crate) fn scale_queries(&self, queries: Tensor) -> Result<Tensor> {
        match &self.query_scale {
            Some(scale) => Ok(queries.broadcast_mul(&scale.to_dtype(queries.dtype())?)?),
            None => Ok(queries),
        }
    }
}

/// Returns the frequencies of pairs of `rotated` elements, unscaled.
fn plain(theta: f64, rotated: usize) -> impl Iterator<Item = f64> {
    (0..rotated / 2).map(move |i| theta.powf(-2.0 * i as f64 / rotated as f64))
}

/// Computes the frequencies of YaRN; empty for other scalings.
fn yarn(theta: f64, rotated: usize, scaling: &RopeScaling) -> Vec<f32> {
    let &RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate, .. } = scaling else {
        return Vec::new();
    };
    let dim = rotated as f64;
    // The dimension whose frequency makes `rotations` turns over the original context.
    let dimension = |rotations: f64| dim * (original_context / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    let width = if (high - low).abs() < f64::EPSILON { 0.001 } else { high - low };
    let stretch = |(i, frequency): (usize, f64)| {
        let stretched = ((i as f64 - low) / width).clamp(0.0, 1.0);
        (stretched * frequency / factor + (1.0 - stretched) * frequency) as f32
    };
    plain(theta, rotated).enumerate().map(stretch).collect()
}
