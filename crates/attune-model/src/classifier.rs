//! The head of a sequence classifier: from the hidden states of a text, or of a pair of texts, to one number for each
//! label. A model with one label scores how well a document answers a query (a cross-encoder; Nogueira and Cho, "Passage
//! re-ranking with BERT", 2019). Called by `engine` and by `train`.

pub(crate) mod loading;

use crate::vectors::{DenseLayer, Pooler, Pooling};
use crate::{Error, Result};

/// What turns a label's number into a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreForm {
    /// The number itself.
    Identity,
    /// 1 / (1 + e⁻ˣ), of each label for itself.
    Sigmoid,
}

/// The head of a sequence classifier.
#[derive(Debug, Clone)]
pub struct Classifier {
    /// Names of the labels, in the order of their numbers.
    pub labels: Vec<String>,
    /// What is taken of the hidden states.
    pub pooling: Pooling,
    /// Layers between the pooled row and the numbers, the last one of which makes the numbers.
    pub layers: Vec<HeadLayer>,
    /// What turns the number of the only label into a score.
    pub score: ScoreForm,
    /// Width of the hidden states.
    pub hidden_size: usize,
}

/// A layer of the head.
#[derive(Debug, Clone)]
pub enum HeadLayer {
    /// A dense layer with its activation.
    Dense(DenseLayer),
    /// A layer norm of the row (ModernBERT).
    Norm {
        /// Weight, `[width]`.
        weight: Vec<f64>,
        /// Bias, `[width]`; `None` if there is none.
        bias: Option<Vec<f64>>,
        /// Added to the variance.
        eps: f64,
    },
}

impl Classifier {
    /// Begins to pool a text.
    pub fn pooler(&self) -> Pooler {
        Pooler::of(&[self.pooling], self.hidden_size)
    }

    /// Computes the number of each label of what was pooled; an error if one is not finite.
    pub fn logits(&self, pooled: Vec<f64>) -> Result<Vec<f32>> {
        let logits = self.layers.iter().fold(pooled, |row, layer| layer.forward(&row));
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::Internal("the classifier's results are not finite".into()));
        }
        Ok(logits.into_iter().map(|logit| logit as f32).collect())
    }

    /// Computes the gradient with respect to the pooled row `[hidden]` from that of the labels' numbers, `[labels]`.
    pub fn pooled_gradient(&self, pooled: Vec<f64>, dlogits: &[f64]) -> Vec<f64> {
        let mut inputs = vec![pooled];
        for layer in &self.layers {
            let next = layer.forward(inputs.last().map_or(&[], Vec::as_slice));
            inputs.push(next);
        }
        let layers = self.layers.iter().zip(&inputs).rev();
        layers.fold(dlogits.to_vec(), |dy, (layer, x)| layer.input_gradient(x, &dy))
    }
}

impl ScoreForm {
    /// Returns the score of a label's number.
    pub fn of(self, logit: f32) -> f32 {
        match self {
            Self::Identity => logit,
            Self::Sigmoid => (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32,
        }
    }
}

impl HeadLayer {
    fn forward(&self, x: &[f64]) -> Vec<f64> {
        match self {
            Self::Dense(layer) => layer.forward(x),
            Self::Norm { weight, bias, eps } => {
                let (normed, _) = normed(x, *eps);
                let bias = |index: usize| bias.as_ref().map_or(0.0, |bias| bias[index]);
                normed.iter().zip(weight).enumerate().map(|(index, (x, weight))| x * weight + bias(index)).collect()
            }
        }
    }

    fn input_gradient(&self, x: &[f64], dy: &[f64]) -> Vec<f64> {
        match self {
            Self::Dense(layer) => layer.input_gradient(x, dy),
            Self::Norm { weight, eps, .. } => {
                let (normed, deviation) = normed(x, *eps);
                let dnormed: Vec<f64> = dy.iter().zip(weight).map(|(dy, weight)| dy * weight).collect();
                let width = x.len() as f64;
                let mean = dnormed.iter().sum::<f64>() / width;
                let along = dnormed.iter().zip(&normed).map(|(d, x)| d * x).sum::<f64>() / width;
                dnormed.iter().zip(&normed).map(|(d, x)| (d - mean - x * along) / deviation).collect()
            }
        }
    }
}

/// Returns (x − mean) / deviation, and the deviation.
fn normed(x: &[f64], eps: f64) -> (Vec<f64>, f64) {
    let width = x.len() as f64;
    let mean = x.iter().sum::<f64>() / width;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
    let deviation = (variance + eps).sqrt();
    (x.iter().map(|x| (x - mean) / deviation).collect(), deviation)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::vectors::DenseActivation;

    #[test]
    fn the_gradient_through_all_layers_equals_central_differences() {
        let dense = |rows: &[[f32; 3]], activation| {
            let weight = Tensor::from_vec(rows.concat(), (rows.len(), 3), &Device::Cpu).expect("a tensor");
            HeadLayer::Dense(DenseLayer::new(&weight, None, activation).expect("a layer"))
        };
        let classifier = Classifier {
            labels: vec!["yes".into(), "no".into()],
            pooling: Pooling::First,
            layers: vec![
                dense(&[[0.4, -0.3, 0.8], [0.1, 0.9, -0.2], [0.5, 0.5, -0.6]], DenseActivation::Gelu),
                HeadLayer::Norm { weight: vec![1.1, 0.9, -0.7], bias: Some(vec![0.1, 0.2, 0.3]), eps: 1e-5 },
                dense(&[[0.2, -0.5, 0.3], [0.7, 0.1, 0.4]], DenseActivation::Identity),
            ],
            score: ScoreForm::Identity,
            hidden_size: 3,
        };
        let (x, dlogits) = (vec![0.3, -0.9, 1.2], [0.8, -1.3]);
        let value = |x: &[f64]| {
            let logits = classifier.layers.iter().fold(x.to_vec(), |row, layer| layer.forward(&row));
            logits.iter().zip(dlogits).map(|(logit, d)| logit * d).sum::<f64>()
        };
        let gradient = classifier.pooled_gradient(x.clone(), &dlogits);
        for index in 0..3 {
            let moved = |step: f64| {
                let mut x = x.clone();
                x[index] += step;
                value(&x)
            };
            let measured = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((measured - gradient[index]).abs() < 1e-7, "{measured} is not {}", gradient[index]);
        }
    }
}
