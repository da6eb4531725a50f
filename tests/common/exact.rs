//! The decoder's formulas once more in f64, one number after the other: slow, plain, and independent of the kernels.
//! Matrices are stored row by row. Use as `#[path = "common/exact.rs"] mod exact;`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "exact_experts.rs"]
pub(crate) mod experts;

use std::collections::HashMap;
use std::f64::consts::PI;
use std::ops::Range;
use std::path::Path;

use attune::model::ModelConfig;
use attune::model::config::RopeParameters;
use attune::model::kernels::{Activation, AttentionForm, LogitForm};
use attune::model::lora::Site;
use attune::model::rope_scaling::RopeScaling;
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

/// Rotates the halves of each head's first elements, as many as there are angles for: `x` `[rows, heads, width]`;
/// `angles` `[rows, half]`.
pub(crate) fn rope(x: &[f64], heads: usize, width: usize, angles: &[f64]) -> Vec<f64> {
    let half = angles.len() * heads * width / x.len();
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

pub(crate) fn gated(activation: Activation, gate: &[f64], up: &[f64]) -> Vec<f64> {
    let activate = |x: f64| match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
        Activation::Gelu => 0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x / 2.0_f64.sqrt())),
        Activation::Relu => x.max(0.0),
    };
    gate.iter().zip(up).map(|(gate, up)| activate(*gate) * up).collect()
}

fn soft_cap(x: f64, cap: Option<f32>) -> f64 {
    cap.map(f64::from).map_or(x, |cap| cap * (x / cap).tanh())
}

pub(crate) fn to_logits(products: &[f64], form: LogitForm) -> Vec<f64> {
    products.iter().map(|x| soft_cap(x * f64::from(form.scale), form.cap)).collect()
}

/// Shape of attention: query heads, key heads, head width, and how queries score keys.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
    pub form: AttentionForm,
}

/// Computes causal attention inside each of `sequences`.
pub(crate) fn attention(q: &[f64], k: &[f64], v: &[f64], sequences: &[Range<usize>], heads: Heads) -> Vec<f64> {
    attention_with_sinks(q, k, v, sequences, heads, None)
}

/// Computes the same with a further logit in each head's softmax, which has no value, if there are `sinks`.
pub(crate) fn attention_with_sinks(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    sequences: &[Range<usize>],
    heads: Heads,
    sinks: Option<&[f64]>,
) -> Vec<f64> {
    let Heads { queries, keys, width, form } = heads;
    let mut out = vec![0.0; q.len()];
    for rows in sequences {
        for row in rows.clone() {
            let first = form.window.map_or(rows.start, |window| rows.start.max((row + 1).saturating_sub(window)));
            for head in 0..queries {
                let query = &q[(row * queries + head) * width..][..width];
                let of = |row: usize| (row * keys + head * keys / queries) * width;
                let score = |other: usize| {
                    let product: f64 = query.iter().zip(&k[of(other)..]).map(|(a, b)| a * b).sum();
                    soft_cap(product * f64::from(form.scale), form.cap)
                };
                let scores: Vec<f64> = (first..=row).map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let sink = sinks.map_or(0.0, |sinks| (sinks[head] - largest).exp());
                let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum::<f64>() + sink;
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

/// Computes the frequencies of `rotated` elements in a sequence of `length` tokens.
fn frequencies(parameters: &RopeParameters, rotated: usize, length: usize) -> Vec<f64> {
    let dim = rotated as f64;
    let plain: Vec<f64> = (0..rotated / 2).map(|i| parameters.theta.powf(-2.0 * i as f64 / dim)).collect();
    let numbered = plain.iter().enumerate();
    match &parameters.scaling {
        RopeScaling::None => plain,
        RopeScaling::LongRope { short, long, original_context, .. } => {
            let factors = if length > *original_context { long } else { short };
            numbered.map(|(i, frequency)| frequency / factors[i]).collect()
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate, .. } => {
            let turns = |turns: f64| dim * (original_context / (turns * 2.0 * PI)).ln() / (2.0 * parameters.theta.ln());
            let (low, high) = (turns(*beta_fast), turns(*beta_slow));
            let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(dim - 1.0));
            let share = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            numbered.map(|(i, frequency)| frequency * (share(i) / factor + 1.0 - share(i))).collect()
        }
        other => panic!("no fixture is trained with {other:?}"),
    }
}

/// Returns the factor on rotated elements.
fn attention_factor(scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
            *attention_factor
        }
        _ => 1.0,
    }
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

impl Pair {
    /// Adds `scale · B(A x)` to `y`, for rows `x` of `inputs` numbers each.
    fn add(&self, x: &[f64], inputs: usize, y: &mut [f64]) {
        let shrunk = linear(x, &self.a, inputs);
        let added = linear(&shrunk, &self.b, self.a.len() / inputs);
        y.iter_mut().zip(added).for_each(|(y, added)| *y += self.scale * added);
    }
}

/// A decoder.
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
        self.loss_with_experts(adapter, &HashMap::new(), batch)
    }

    /// Computes the same with updates of experts, by block, expert and site.
    pub(crate) fn loss_with_experts(
        &self,
        adapter: &HashMap<(usize, Site), Pair>,
        experts: &HashMap<(usize, usize, Site), Pair>,
        batch: &PackedBatch,
    ) -> f64 {
        let config = &self.config;
        let hidden = config.hidden_size;
        let embedding = &self.weights["model.embed_tokens.weight"];
        let multiplier = f64::from(config.embedding_multiplier);
        let row = |token: &u32| embedding[*token as usize * hidden..][..hidden].iter().map(move |x| x * multiplier);
        let mut x: Vec<f64> = batch.tokens.iter().flat_map(row).collect();
        let positions: Vec<usize> = batch.sequences.iter().flat_map(|rows| 0..rows.len()).collect();
        for layer in 0..config.num_hidden_layers {
            let part = Part { model: self, layer, adapter, experts };
            let input = part.norm(&x, 0, true);
            let mixed = match config.convolution_of(layer) {
                Some(convolution) => part.convolution(&input, convolution.taps, &batch.sequences),
                None => part.attention(&input, &positions, &batch.sequences),
            };
            part.add(&mut x, &mixed, true);
            let input = part.norm(&x, 0, false);
            part.add(&mut x, &part.mlp(&input), false);
        }
        let norm = format!("{}.weight", config.norm_name("model.norm"));
        let x = self.normed(&x, &self.weights[&norm]);
        let head = self.weights.get("lm_head.weight").filter(|_| !config.tie_word_embeddings).unwrap_or(embedding);
        let loss = |target: &attune::train::backward::Target| {
            let products = linear(&x[target.row * hidden..][..hidden], head, hidden);
            f64::from(target.weight) * cross_entropy(&to_logits(&products, config.logit_form), target.token)
        };
        batch.targets.iter().map(loss).sum()
    }

    fn normed(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let offset = if self.config.norms_plus_one { 1.0 } else { 0.0 };
        let weight: Vec<f64> = weight.iter().map(|weight| weight + offset).collect();
        rms_norm(x, &weight, f64::from(self.config.rms_norm_eps))
    }
}

/// One block of a model with an adapter.
struct Part<'a> {
    model: &'a Model,
    layer: usize,
    adapter: &'a HashMap<(usize, Site), Pair>,
    experts: &'a HashMap<(usize, usize, Site), Pair>,
}

impl Part<'_> {
    fn weight(&self, name: &str) -> Option<&Vec<f64>> {
        self.model.weights.get(&format!("model.layers.{}.{name}", self.layer))
    }

    fn named_norm(&self, x: &[f64], usual: &'static str) -> Vec<f64> {
        let name = self.model.config.norm_name(usual);
        self.model.normed(x, self.weight(&format!("{name}.weight")).unwrap())
    }

    /// Computes the norm before (0) or behind (1) attention or the MLP, if the family has it.
    fn norm(&self, x: &[f64], place: usize, of_attention: bool) -> Vec<f64> {
        let names = self.model.config.norm_places.names(of_attention);
        let name = [names.before, names.after][place];
        name.map_or_else(|| x.to_vec(), |name| self.named_norm(x, name))
    }

    /// Adds a branch's result to the stream.
    fn add(&self, x: &mut [f64], branch: &[f64], of_attention: bool) {
        let multiplier = f64::from(self.model.config.residual_multiplier);
        let branch = self.norm(branch, 1, of_attention);
        x.iter_mut().zip(branch).for_each(|(x, y)| *x += multiplier * y);
    }

    fn project(&self, x: &[f64], site: Site) -> Vec<f64> {
        let (config, (outputs, inputs)) = (&self.model.config, site.shape(&self.model.config));
        // The rows of the site in the layer that holds it.
        let module = config.modules.iter().find(|module| module.sites.contains(&site)).unwrap();
        let (_, rows) = module.rows(config).find(|(other, _)| *other == site).unwrap();
        let weight = self.weight(&format!("{}.weight", module.path)).unwrap();
        let mut y = linear(x, &weight[rows.start * inputs..rows.end * inputs], inputs);
        if let Some(bias) = self.weight(&format!("{}.bias", module.path)) {
            let bias = &bias[rows];
            y.chunks_exact_mut(outputs).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        if let Some(pair) = self.adapter.get(&(self.layer, site)) {
            pair.add(x, inputs, &mut y);
        }
        y
    }

    fn mlp(&self, input: &[f64]) -> Vec<f64> {
        let config = &self.model.config;
        if let Some(mixture) = &config.experts {
            let update = |expert: usize, site: Site, x: &[f64], y: &mut [f64]| {
                if let Some(pair) = self.experts.get(&(self.layer, expert, site)) {
                    pair.add(x, x.len(), y);
                }
            };
            return experts::experts(input, config.hidden_size, mixture, &|name| self.weight(name), &update);
        }
        let [gate, up] = [Site::Gate, Site::Up].map(|site| self.project(input, site));
        self.project(&gated(config.activation, &gate, &up), Site::Down)
    }

    /// Computes `W_out` · (C ⊙ (bias + Σ filter ⊙ B ⊙ x of the last rows)).
    fn convolution(&self, input: &[f64], taps: usize, sequences: &[Range<usize>]) -> Vec<f64> {
        let width = self.model.config.hidden_size;
        let projected = self.project(input, Site::ConvolutionInput);
        let (filters, bias) = (self.weight("conv.conv.weight").unwrap(), self.weight("conv.conv.bias"));
        let mut y = vec![0.0; input.len()];
        for rows in sequences {
            for row in rows.clone() {
                for channel in 0..width {
                    let of = |row: usize, part: usize| projected[row * 3 * width + part * width + channel];
                    let seen = rows.start.max((row + 1).saturating_sub(taps))..row + 1;
                    let tap = |other: usize| filters[channel * taps + taps - 1 - (row - other)];
                    let sum: f64 = seen.map(|other| tap(other) * of(other, 0) * of(other, 2)).sum();
                    y[row * width + channel] = of(row, 1) * (sum + bias.map_or(0.0, |bias| bias[channel]));
                }
            }
        }
        self.project(&y, Site::ConvolutionOutput)
    }

    fn attention(&self, input: &[f64], positions: &[usize], sequences: &[Range<usize>]) -> Vec<f64> {
        let (config, layer) = (&self.model.config, self.layer);
        let (width, window) = (config.head_dim, config.sliding_windows[layer]);
        let form = AttentionForm {
            window,
            looks_ahead: config.is_encoder,
            scale: config.attention_scale,
            cap: config.attention_cap,
        };
        let heads = Heads { queries: config.num_attention_heads, keys: config.num_key_value_heads, width, form };
        let [mut q, mut k, v] = [Site::Query, Site::Key, Site::Value].map(|site| self.project(input, site));
        if config.query_key_norm.is_some() {
            (q, k) = (self.named_norm(&q, "self_attn.q_norm"), self.named_norm(&k, "self_attn.k_norm"));
        }
        if let Some(kind) = config.rotary[layer] {
            let parameters = &config.ropes[kind];
            let rotated = parameters.rotated(width);
            let lengths = sequences.iter().flat_map(|rows| rows.clone().map(|_| rows.len()));
            let angles: Vec<f64> = (positions.iter().zip(lengths))
                .flat_map(|(position, length)| {
                    let frequencies = frequencies(parameters, rotated, length).into_iter();
                    frequencies.map(move |frequency| *position as f64 * frequency)
                })
                .collect();
            (q, k) = (rope(&q, heads.queries, width, &angles), rope(&k, heads.keys, width, &angles));
            for head in q.chunks_exact_mut(width).chain(k.chunks_exact_mut(width)) {
                head[..rotated].iter_mut().for_each(|x| *x *= attention_factor(&parameters.scaling));
            }
            for (row, position) in q.chunks_exact_mut(heads.queries * width).zip(positions) {
                let growth = parameters.query_scaling.map_or(1.0, |scaling| {
                    1.0 + scaling.beta * (1.0 + (*position as f64 / scaling.original_context).floor()).ln()
                });
                for q in row.iter_mut() {
                    *q *= growth;
                }
            }
        }
        let sinks = self.weight("self_attn.sinks").map(Vec::as_slice);
        self.project(&attention_with_sinks(&q, &k, &v, sequences, heads, sinks), Site::Output)
    }
}
