//! The decoder's formulas once more in f64, one number after the other: slow, plain, and independent of the kernels.
//! Matrices are stored row by row. Use as `#[path = "common/exact.rs"] mod exact;`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use attune::model::ModelConfig;
use attune::model::lora::Site;
use attune::train::backward::PackedBatch;
use candle_core::{DType, Device};

/// Multiplies `x` `[rows, inputs]` by the transposed `weight` `[outputs, inputs]`.
pub(crate) fn linear(x: &[f64], weight: &[f64], inputs: usize) -> Vec<f64> {
    let products = x.chunks_exact(inputs).flat_map(|row| {
        weight.chunks_exact(inputs).map(move |column| row.iter().zip(column).map(|(a, b)| a * b).sum::<f64>())
    });
    products.collect()
}

pub(crate) fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let rows = x.chunks_exact(weight.len()).flat_map(|row| {
        let square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        row.iter().zip(weight).map(move |(x, weight)| x / (square + eps).sqrt() * weight)
    });
    rows.collect()
}

/// Rotates each head's halves: `x` `[rows, heads, width]`; `angles` `[rows, width / 2]`.
pub(crate) fn rope(x: &[f64], heads: usize, width: usize, angles: &[f64]) -> Vec<f64> {
    let half = width / 2;
    let mut y = x.to_vec();
    for (row, y) in y.chunks_exact_mut(heads * width).enumerate() {
        for head in y.chunks_exact_mut(width) {
            for i in 0..half {
                let (sin, cos) = angles[row * half + i].sin_cos();
                let (a, b) = (head[i], head[half + i]);
                head[i] = a * cos - b * sin;
                head[half + i] = b * cos + a * sin;
            }
        }
    }
    y
}

pub(crate) fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

/// Shape of attention: query heads, key heads, head width, and number of tokens that it looks back.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
    pub window: Option<usize>,
}

/// Computes causal attention inside each of `sequences`.
pub(crate) fn attention(q: &[f64], k: &[f64], v: &[f64], sequences: &[Range<usize>], heads: Heads) -> Vec<f64> {
    let Heads { queries, keys, width, window } = heads;
    let mut out = vec![0.0; q.len()];
    for rows in sequences {
        for row in rows.clone() {
            let first = window.map_or(rows.start, |window| rows.start.max((row + 1).saturating_sub(window)));
            for head in 0..queries {
                let query = &q[(row * queries + head) * width..][..width];
                let of = |row: usize| (row * keys + head * keys / queries) * width;
                let score = |other: usize| {
                    query.iter().zip(&k[of(other)..]).map(|(a, b)| a * b).sum::<f64>() / (width as f64).sqrt()
                };
                let scores: Vec<f64> = (first..=row).map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                for (other, score) in (first..=row).zip(scores) {
                    let share = (score - largest).exp() / sum;
                    for i in 0..width {
                        out[(row * queries + head) * width + i] += share * v[of(other) + i];
                    }
                }
            }
        }
    }
    out
}

/// Computes the cross entropy of `target` under `logits`.
pub(crate) fn cross_entropy(logits: &[f64], target: u32) -> f64 {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    largest + logits.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln() - logits[target as usize]
}

/// Matrices A and B of one layer.
#[derive(Clone)]
pub(crate) struct Pair {
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    pub scale: f64,
}

/// A decoder without stretched frequencies.
pub(crate) struct Model {
    config: ModelConfig,
    weights: HashMap<String, Vec<f64>>,
}

impl Model {
    pub(crate) fn read(folder: &Path) -> Self {
        let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
        let numbers = |tensor: candle_core::Tensor| {
            tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let weights = tensors.into_iter().map(|(name, tensor)| (name, numbers(tensor))).collect();
        Self { config: ModelConfig::read(folder).unwrap(), weights }
    }

    /// Computes Σ weight · cross entropy over the batch's targets.
    pub(crate) fn loss(&self, adapter: &HashMap<(usize, Site), Pair>, batch: &PackedBatch) -> f64 {
        let config = &self.config;
        let (hidden, width, eps) = (config.hidden_size, config.head_dim, f64::from(config.rms_norm_eps));
        let embedding = &self.weights["model.embed_tokens.weight"];
        let mut x: Vec<f64> =
            batch.tokens.iter().flat_map(|token| embedding[*token as usize * hidden..][..hidden].to_vec()).collect();
        let positions = batch.sequences.iter().flat_map(|rows| 0..rows.len());
        let angles: Vec<f64> = positions
            .flat_map(|position| {
                let angle = move |i: usize| position as f64 / config.rope_theta.powf(2.0 * i as f64 / width as f64);
                (0..width / 2).map(angle)
            })
            .collect();
        for layer in 0..config.num_hidden_layers {
            let weight = |name: &str| self.weights.get(&format!("model.layers.{layer}.{name}"));
            let norm = |x: &[f64], name: &str| rms_norm(x, weight(&format!("{name}.weight")).unwrap(), eps);
            let project = |x: &[f64], site: Site| {
                let (outputs, inputs) = site.shape(config);
                let mut y = linear(x, weight(&format!("{}.weight", site.path())).unwrap(), inputs);
                if let Some(bias) = weight(&format!("{}.bias", site.path())) {
                    y.chunks_exact_mut(outputs).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
                }
                if let Some(Pair { a, b, scale }) = adapter.get(&(layer, site)) {
                    let shrunk = linear(x, a, inputs);
                    let added = linear(&shrunk, b, a.len() / inputs);
                    y.iter_mut().zip(added).for_each(|(y, added)| *y += scale * added);
                }
                y
            };
            let heads = Heads {
                queries: config.num_attention_heads,
                keys: config.num_key_value_heads,
                width,
                window: config.sliding_windows[layer],
            };
            let input = norm(&x, "input_layernorm");
            let [mut q, mut k, v] = [Site::Query, Site::Key, Site::Value].map(|site| project(&input, site));
            if config.query_key_norm {
                (q, k) = (norm(&q, "self_attn.q_norm"), norm(&k, "self_attn.k_norm"));
            }
            if config.rotary[layer] {
                (q, k) = (rope(&q, heads.queries, width, &angles), rope(&k, heads.keys, width, &angles));
            }
            let attended = project(&attention(&q, &k, &v, &batch.sequences, heads), Site::Output);
            x.iter_mut().zip(attended).for_each(|(x, y)| *x += y);
            let input = norm(&x, "post_attention_layernorm");
            let gated = swiglu(&project(&input, Site::Gate), &project(&input, Site::Up));
            x.iter_mut().zip(project(&gated, Site::Down)).for_each(|(x, y)| *x += y);
        }
        let x = rms_norm(&x, &self.weights["model.norm.weight"], eps);
        let head = self.weights.get("lm_head.weight").filter(|_| !config.tie_word_embeddings).unwrap_or(embedding);
        let loss = |target: &attune::train::backward::Target| {
            let logits = linear(&x[target.row * hidden..][..hidden], head, hidden);
            f64::from(target.weight) * cross_entropy(&logits, target.token)
        };
        batch.targets.iter().map(loss).sum()
    }
}
