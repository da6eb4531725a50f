//! Mixtures of experts in f64, for `exact.rs`.

use attune::model::config::{ExpertsConfig, Glu};
use attune::model::kernels::Activation;

use super::{gated, linear};

/// The tensors of a block by name; `None` for a name that the checkpoint does not have.
type Tensors<'a> = &'a dyn Fn(&str) -> Option<&'a Vec<f64>>;

/// Computes the sum of each row's experts, `[rows, hidden]`, of `x` `[rows, hidden]`.
pub(crate) fn experts(x: &[f64], hidden: usize, config: &ExpertsConfig, tensors: Tensors<'_>) -> Vec<f64> {
    x.chunks_exact(hidden).flat_map(|row| of_row(row, config, tensors)).collect()
}

fn of_row(x: &[f64], config: &ExpertsConfig, tensors: Tensors<'_>) -> Vec<f64> {
    let names = ["mlp.gate", "block_sparse_moe.gate", "mlp.router"];
    let router = names.iter().find_map(|name| tensors(&format!("{name}.weight"))).unwrap();
    let mut logits = linear(x, router, x.len());
    if let Some(bias) = tensors("mlp.router.bias") {
        logits.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
    }
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    let probabilities: Vec<f64> = logits.iter().map(|logit| logit.exp() / sum).collect();
    let mut order: Vec<usize> = (0..config.count).collect();
    order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
    order.truncate(config.chosen);
    let total: f64 = order.iter().map(|expert| probabilities[*expert]).sum();
    let mut y = vec![0.0; x.len()];
    for expert in order {
        let weight = probabilities[expert] / if config.normalized { total } else { 1.0 };
        let output = of_expert(x, expert, config, tensors);
        y.iter_mut().zip(output).for_each(|(y, output)| *y += weight * output);
    }
    y
}

fn of_expert(x: &[f64], expert: usize, config: &ExpertsConfig, tensors: Tensors<'_>) -> Vec<f64> {
    let Glu::Clamped(limits) = config.glu else {
        let matrix = |names: [&str; 2]| {
            let names = [
                format!("mlp.experts.{expert}.{}.weight", names[0]),
                format!("block_sparse_moe.experts.{expert}.{}.weight", names[1]),
            ];
            names.iter().find_map(|name| tensors(name)).unwrap()
        };
        let [gate, up] = [["gate_proj", "w1"], ["up_proj", "w3"]].map(|names| linear(x, matrix(names), x.len()));
        return linear(&gated(Activation::Silu, &gate, &up), matrix(["down_proj", "w2"]), config.intermediate_size);
    };
    // gpt-oss: matrices [inputs, outputs], gate and up in turns.
    let product = |x: &[f64], name: &str, outputs: usize| {
        let matrix = &tensors(&format!("mlp.experts.{name}")).unwrap()[expert * x.len() * outputs..];
        let bias = &tensors(&format!("mlp.experts.{name}_bias")).unwrap()[expert * outputs..][..outputs];
        let output = |output: usize| {
            bias[output] + x.iter().enumerate().map(|(input, x)| x * matrix[input * outputs + output]).sum::<f64>()
        };
        (0..outputs).map(output).collect::<Vec<f64>>()
    };
    let both = product(x, "gate_up_proj", 2 * config.intermediate_size);
    let gated: Vec<f64> = both
        .chunks_exact(2)
        .map(|both| clamped_glu(both[0], both[1], f64::from(limits.alpha), f64::from(limits.limit)))
        .collect();
    product(&gated, "down_proj", x.len())
}

/// Computes gpt-oss's activation.
pub(crate) fn clamped_glu(gate: f64, up: f64, alpha: f64, limit: f64) -> f64 {
    let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
    (up + 1.0) * gate / (1.0 + (-alpha * gate).exp())
}
