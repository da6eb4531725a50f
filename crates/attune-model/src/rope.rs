//! Rotary position embedding: the frequencies of a model, and the cosines and sines of a step's positions.
//!
//! Su et al., "RoFormer" (2021); scaling as in transformers' `modeling_rope_utils`: linear, Llama 3.1, YaRN (Peng et al.,
//! 2023).

use std::f64::consts::PI;

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::ModelConfig;
use crate::Result;

/// How frequencies are stretched so that a model reaches beyond the context that it was first trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths stretched, short ones kept, a smooth passage between.
    Llama3 {
        /// The stretch of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are stretched.
        low_frequency_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_frequency_factor: f64,
        /// The context first trained on, in tokens.
        original_context: f64,
    },
    /// YaRN: a ramp between stretched and kept frequencies, and cosines and sines scaled by `attention_factor`.
    Yarn {
        /// The stretch.
        factor: f64,
        /// Rotations over the original context from which a frequency is kept.
        beta_fast: f64,
        /// Rotations up to which a frequency is stretched.
        beta_slow: f64,
        /// The context first trained on, in tokens.
        original_context: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// Round the ends of the ramp to whole dimensions.
        truncate: bool,
    },
}

impl RopeScaling {
    /// Reads `rope_parameters` or the older `rope_scaling`.
    pub fn parse(parameters: Option<&Value>, context: usize) -> Result<Self, String> {
        let Some(parameters) = parameters.filter(|value| !value.is_null()) else { return Ok(Self::None) };
        let kind = parameters["rope_type"].as_str().or(parameters["type"].as_str()).unwrap_or("default");
        let number = |name: &str| parameters[name].as_f64();
        let required = |name: &str| number(name).ok_or(format!("rope type `{kind}` needs `{name}`"));
        let original_context = number("original_max_position_embeddings").unwrap_or(context as f64);
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: required("factor")? }),
            "llama3" => Ok(Self::Llama3 {
                factor: required("factor")?,
                low_frequency_factor: required("low_freq_factor")?,
                high_frequency_factor: required("high_freq_factor")?,
                original_context,
            }),
            "yarn" => {
                let factor = required("factor")?;
                let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let default_factor = match (number("mscale"), number("mscale_all_dim")) {
                    (Some(m), Some(all)) if m != 0.0 && all != 0.0 => scale(m) / scale(all),
                    _ => scale(1.0),
                };
                Ok(Self::Yarn {
                    factor,
                    beta_fast: number("beta_fast").unwrap_or(32.0),
                    beta_slow: number("beta_slow").unwrap_or(1.0),
                    original_context,
                    attention_factor: number("attention_factor").unwrap_or(default_factor),
                    truncate: parameters["truncate"].as_bool().unwrap_or(true),
                })
            }
            other => {
                Err(format!("rope type `{other}` is not supported; supported are default, linear, llama3 and yarn"))
            }
        }
    }
}

/// The frequencies of a model.
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
    /// The frequencies that `config` asks for.
    pub fn new(config: &ModelConfig) -> Self {
        let dim = config.head_dim as f64;
        let plain = (0..config.head_dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / dim));
        let scaling = config.rope_scaling;
        let frequencies: Vec<f32> = match scaling {
            RopeScaling::None => plain.map(|frequency| frequency as f32).collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| (frequency / factor) as f32).collect(),
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
                let dimension = |rotations: f64| {
                    dim * (original_context / (rotations * 2.0 * PI)).ln() / (2.0 * config.rope_theta.ln())
                };
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
            if let RopeScaling::Yarn { attention_factor, .. } = scaling { attention_factor as f32 } else { 1.0 };
        Self { frequencies, scale }
    }

    /// Cosines and sines of `positions`. Angles are rounded to f32 before the cosine, as the reference does.
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
