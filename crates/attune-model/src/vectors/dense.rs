//! A small dense layer over one pooled vector. Called by [`VectorForm`](super::VectorForm) and by
//! [`Classifier`](crate::classifier::Classifier), with one vector a text, in f64.

use candle_core::Tensor;
use candle_core::cpu::erf::erf_f64;

use crate::{Error, Result};

/// What a dense layer's result goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseActivation {
    /// Nothing.
    Identity,
    /// tanh(x)
    Tanh,
    /// max(x, 0)
    Relu,
    /// x · ½(1 + erf(x / √2))
    Gelu,
}

/// activation(W x + b)
#[derive(Debug, Clone)]
pub struct DenseLayer {
    /// W, `[out, in]`.
    weight: Vec<f32>,
    /// b, `[out]`; `None` if there is none.
    bias: Option<Vec<f32>>,
    input: usize,
    activation: DenseActivation,
}

impl DenseLayer {
    /// Makes a layer of `weight` `[out, in]` and `bias` `[out]`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, activation: DenseActivation) -> Result<Self> {
        let (output, input) = weight.dims2()?;
        let bias = bias.map(Tensor::to_vec1::<f32>).transpose()?;
        if bias.as_ref().is_some_and(|bias| bias.len() != output) {
            return Err(Error::Internal("a dense layer's bias is not as wide as the layer".into()));
        }
        Ok(Self { weight: weight.flatten_all()?.to_vec1()?, bias, input, activation })
    }

    /// Returns the width of the result.
    pub fn output(&self) -> usize {
        self.weight.len() / self.input.max(1)
    }

    /// Returns the width of what the layer takes.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Computes activation(W x + b), `[out]`, of `x` `[in]`.
    pub fn forward(&self, x: &[f64]) -> Vec<f64> {
        self.products(x).into_iter().map(|value| self.activation.of(value)).collect()
    }

    /// Computes the gradient with respect to `x` `[in]` from `dy`, the gradient of the result, `[out]`.
    pub fn input_gradient(&self, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let mut dx = vec![0.0; self.input];
        let rows = self.weight.chunks_exact(self.input.max(1));
        for ((row, dy), product) in rows.zip(dy).zip(self.products(x)) {
            let slope = dy * self.activation.slope(product);
            dx.iter_mut().zip(row).for_each(|(dx, weight)| *dx += slope * f64::from(*weight));
        }
        dx
    }

    /// Computes W x + b.
    fn products(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.weight.chunks_exact(self.input.max(1)).enumerate();
        let product = |(index, row): (usize, &[f32])| {
            let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[index]));
            row.iter().zip(x).map(|(weight, x)| f64::from(*weight) * x).sum::<f64>() + bias
        };
        rows.map(product).collect()
    }
}

impl DenseActivation {
    fn of(self, x: f64) -> f64 {
        match self {
            Self::Identity => x,
            Self::Tanh => x.tanh(),
            Self::Relu => x.max(0.0),
            Self::Gelu => x * normal_share(x),
        }
    }

    /// Returns the derivative at `x`.
    fn slope(self, x: f64) -> f64 {
        match self {
            Self::Identity => 1.0,
            Self::Tanh => 1.0 - x.tanh().powi(2),
            Self::Relu => f64::from(u8::from(x > 0.0)),
            Self::Gelu => normal_share(x) + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt(),
        }
    }
}

/// Returns the share of a normal distribution below `x`.
fn normal_share(x: f64) -> f64 {
    0.5 * (1.0 + erf_f64(x / std::f64::consts::SQRT_2))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_gradient_of_each_activation_equals_central_differences() {
        for activation in
            [DenseActivation::Identity, DenseActivation::Tanh, DenseActivation::Relu, DenseActivation::Gelu]
        {
            let weight = Tensor::new(&[[0.3_f32, -0.7, 0.2], [0.9, 0.1, -0.4]], &Device::Cpu).expect("a tensor");
            let bias = Tensor::new(&[0.1_f32, -0.2], &Device::Cpu).expect("a tensor");
            let layer = DenseLayer::new(&weight, Some(&bias), activation).expect("a layer");
            let (x, dy) = ([0.5, -1.2, 0.8], [0.6, -1.1]);
            let value = |x: &[f64]| layer.forward(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
            let gradient = layer.input_gradient(&x, &dy);
            for index in 0..3 {
                let moved = |step: f64| {
                    let mut x = x;
                    x[index] += step;
                    value(&x)
                };
                let measured = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!((measured - gradient[index]).abs() < 1e-8, "{activation:?}: {measured}");
            }
        }
    }
}
