//! Updates parameters by `AdamW` with decoupled weight decay, in host memory: adapters are small, and moments in plain
//! vectors can be saved and restored to the bit. Called by [`AdapterState`](super::state) once per step; if a GPU holds
//! the adapter, it computes the same update there.
//!
//! With gradient `g`, step `t` counted from 1 and learning rate `lr`, per element (Loshchilov and Hutter, algorithm 2,
//! in `PyTorch`'s order):
//!
//! ```text
//! p ← p · (1 − lr · weight_decay)
//! m ← β₁ m + (1 − β₁) g
//! v ← β₂ v + (1 − β₂) g²
//! p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```

use serde::{Deserialize, Serialize};

use attune_model::kernels::AdamCoefficients;

/// Constants of the update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamSettings {
    /// Decay β₁ of the first moment.
    pub beta1: f64,
    /// Decay β₂ of the second moment.
    pub beta2: f64,
    /// Term ε that keeps the divisor above zero.
    pub epsilon: f64,
    /// Weight decay per unit of learning rate.
    pub weight_decay: f64,
}

impl Default for AdamSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// First and second moments of one parameter tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Running mean of gradients.
    pub first: Vec<f32>,
    /// Running mean of squared gradients.
    pub second: Vec<f32>,
}

/// State of the optimizer.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    settings: AdamSettings,
    /// Number of updates so far.
    pub updates: u64,
    /// Moments, one entry per parameter tensor.
    pub moments: Vec<Moments>,
}

impl AdamW {
    /// Creates a fresh state for `parameters`.
    pub fn new(settings: AdamSettings, parameters: &[Vec<f32>]) -> Self {
        let zeros = |values: &Vec<f32>| Moments { first: vec![0.0; values.len()], second: vec![0.0; values.len()] };
        Self { settings, updates: 0, moments: parameters.iter().map(zeros).collect() }
    }

    /// Returns the same state with other moments.
    #[must_use]
    pub fn with(&self, moments: Vec<Moments>) -> Self {
        Self { moments, ..*self }
    }

    /// Counts an update and returns its coefficients, computed in f64; `clip` is the factor on the gradients.
    pub fn advance(&mut self, learning_rate: f64, clip: f64) -> AdamCoefficients {
        let AdamSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        self.updates += 1;
        AdamCoefficients {
            clip: clip as f32,
            keep: (1.0 - learning_rate * weight_decay) as f32,
            step_size: (learning_rate / (1.0 - beta1.powf(self.updates as f64))) as f32,
            root_correction: (1.0 - beta2.powf(self.updates as f64)).sqrt() as f32,
            decay1: beta1 as f32,
            gain1: (1.0 - beta1) as f32,
            decay2: beta2 as f32,
            gain2: (1.0 - beta2) as f32,
            epsilon: epsilon as f32,
        }
    }

    /// Updates every tensor once, elements in f32.
    pub fn update(&mut self, by: AdamCoefficients, parameters: &mut [Vec<f32>], gradients: &[Vec<f32>]) {
        let AdamCoefficients { clip, keep, step_size, root_correction, decay1, gain1, decay2, gain2, epsilon } = by;
        for ((values, gradient), moments) in parameters.iter_mut().zip(gradients).zip(&mut self.moments) {
            let moments = moments.first.iter_mut().zip(&mut moments.second);
            for ((p, g), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
                let g = g * clip;
                *p *= keep;
                *m = decay1 * *m + gain1 * g;
                *v = decay2 * *v + gain2 * g * g;
                *p -= step_size * *m / (v.sqrt() / root_correction + epsilon);
            }
        }
    }
}

/// Computes the Euclidean norm over all tensors, summed in f64.
pub fn global_norm(gradients: &[Vec<f32>]) -> f64 {
    gradients.iter().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt()
}

/// Returns the factor on gradients of this `norm`: `min(1, limit / (norm + 1e-6))`, as in `PyTorch`'s
/// `clip_grad_norm_`; 1 if `limit` is 0.
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a gradient that depends on step and element, of changing sign and size.
    fn gradient(step: usize, element: usize) -> f32 {
        let x = (step * 7 + element * 13) as f32;
        (x * 0.37).sin() * 10f32.powi(element as i32 % 4 - 2)
    }

    #[test]
    fn a_hundred_steps_follow_a_direct_f64_transcription() {
        let settings = AdamSettings { weight_decay: 0.01, ..AdamSettings::default() };
        let mut parameters = vec![(0..8).map(|i| i as f32 * 0.1 - 0.4).collect::<Vec<f32>>()];
        let mut expected: Vec<f64> = parameters[0].iter().map(|p| f64::from(*p)).collect();
        let (mut m, mut v) = ([0f64; 8], [0f64; 8]);
        let mut optimizer = AdamW::new(settings, &parameters);
        for step in 1..=100 {
            let rate = 1e-2 * (1.0 - step as f64 / 200.0);
            let g: Vec<f32> = (0..8).map(|element| gradient(step, element)).collect();
            let by = optimizer.advance(rate, 1.0);
            optimizer.update(by, &mut parameters, std::slice::from_ref(&g));
            for i in 0..8 {
                let g = f64::from(g[i]);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let m_hat = m[i] / (1.0 - 0.9f64.powi(step as i32));
                let v_hat = v[i] / (1.0 - 0.999f64.powi(step as i32));
                expected[i] -= rate * 0.01 * expected[i];
                expected[i] -= rate * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
        for (value, expected) in parameters[0].iter().zip(expected) {
            assert!((f64::from(*value) - expected).abs() < 1e-5, "{value} is not {expected}");
        }
    }

    #[test]
    fn clipping_keeps_small_gradients_and_brings_large_ones_to_the_limit() {
        let norm = global_norm(&[vec![3.0, 0.0], vec![4.0]]);
        assert!((norm - 5.0).abs() < 1e-12);
        assert_eq!((clip_factor(norm, 10.0), clip_factor(norm, 0.0)), (1.0, 1.0));
        assert!((clip_factor(norm, 1.0) - 0.2).abs() < 1e-6);
    }
}
