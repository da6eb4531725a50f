//! Rotary position embedding: the frequencies of a model, and the cosines and sines of a step's positions.
//!
//! Su et al., "RoFormer" (2021); scaling as in transformers' `modeling_rope_utils`: linear, Llama 3.1, YaRN (Peng et
//! al., 2023).

use std::f64::consts::PI;

use candle_core::{Device, Tensor};

use crate::Result;
use crate::config::RopeParameters;
use crate::rope_scaling::RopeScaling;

/// Rotary frequencies of one kind of a model.
#[derive(Debug, Clone)]
pub struct Rope {
    /// Radians per position, `[head_dim / 2]`.
    frequencies: Vec<f32>,
    /// Factor on cosines and sines.
    scale: f32,
}

/// Cosines and sines of a step's positions, `[rows, head_dim / 2]` each.
#[derive(Debug, Clone)]
pub struct Angles {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl Rope {
    /// Computes the frequencies that `parameters` ask for, for heads of `head_dim` values.
    pub fn new(head_dim: usize, parameters: &RopeParameters) -> Self {
        let RopeParameters { theta, scaling } = parameters;
        let theta = *theta;
        let dim = head_dim as f64;
        let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim));
        let frequencies: Vec<f32> = match *scaling {
            RopeScaling::None => plain.map(|frequency| frequency as f32).collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| (frequency / factor) as f32).collect(),
            // Those beyond the list, of which a file has none, are not divided.
            RopeScaling::Divided { ref divisors } => plain
                .zip(divisors.iter().chain(std::iter::repeat(&1.0)))
                .map(|(frequency, divisor)| (frequency / divisor) as f32)
                .collect(),
            RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context,
            } => plain
                .map(|frequency| {
                    let wavelength = 2.0 * PI / frequency;
                    let smooth = ((original_context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
                    ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
                })
                .collect(),
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate, .. } => {
                // The dimension whose frequency makes `rotations` turns over the original context.
                let dimension =
                    |rotations: f64| dim * (original_context / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let width = if (high - low).abs() < f64::EPSILON { 0.001 } else { high - low };
                plain
                    .enumerate()
                    .map(|(i, frequency)| {
                        let stretched = ((i as f64 - low) / width).clamp(0.0, 1.0);
                        (stretched * frequency / factor + (1.0 - stretched) * frequency) as f32
                    })
                    .collect()
            }
        };
        let scale =
            if let RopeScaling::Yarn { attention_factor, .. } = *scaling { attention_factor as f32 } else { 1.0 };
        Self { frequencies, scale }
    }

    /// Computes the cosines and sines of `positions`. Angles are rounded to f32 first, as in the reference.
    pub fn angles(&self, positions: impl ExactSizeIterator<Item = usize>, device: &Device) -> Result<Angles> {
        let (rows, half) = (positions.len(), self.frequencies.len());
        let mut cos = Vec::with_capacity(rows * half);
        let mut sin = Vec::with_capacity(rows * half);
        for position in positions {
            for frequency in &self.frequencies {
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push(c as f32 * self.scale);
                sin.push(s as f32 * self.scale);
            }
        }
        Ok(Angles {
            cos: Tensor::from_vec(cos, (rows, half), device)?,
            sin: Tensor::from_vec(sin, (rows, half), device)?,
        })
    }
}
