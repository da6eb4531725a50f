//! Mixtures of experts in f64, for `exact.rs`.

use attune::model::config::{ExpertsConfig, Glu};
use attune::model::kernels::Activation;

use attune::model::lora::Site;

use super::{gated, linear};

/// The tensors of a block by name; `None` for a name that the checkpoint does not have.
type Tensors<'a> = &'a dyn Fn(&str) -> Option<&'a Vec<f64>>;
/// Adds to an expert's output at a site what an adapter makes of the input.
type Update<'a> = &'a dyn Fn(usize, Site, &[f64], &mut [f64]);

/// Computes the sum of each row's experts, `[rows, hidden]`, of `x` `[rows, hidden]`.
pub(crate) fn experts(
    x: &[f64],
    hidden: usize,
    config: &ExpertsConfig,
    tensors: Tensors<'_>,
    update: Update<'_>,
) -> Vec<f64> {
    x.chunks_exact(hidden).flat_map(|row| of_row(row, config, tensors, update)).collect()
}

fn of_row(x: &[f64], config: &ExpertsConfig, tensors: Tensors<'_>, update: Update<'_>) -> Vec<f64> {
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
        let output = of_expert(x, expert, config, tensors, update);
        y.iter_mut().zip(output).for_each(|(y, output)| *y += weight * output);
    }
    y
}

fn of_expert(x: &[f64], expert: usize, config: &ExpertsConfig, tensors: Tensors<'_>, update: Update<'_>) -> Vec<f64> {
    let updated = |site, x: &[f64], mut y: Vec<f64>| {
        update(expert, site, x, &mut y);
        y
    };
    let Glu::Clamped(limits) = config.glu else {
        let matrix = |names: [&str; 2]| {
            let names = [
                format!("mlp.experts.{expert}.{}.weight", names[0]),
                format!("block_sparse_moe.experts.{expert}.{}.weight", names[1]),
            ];
            names.iter().find_map(|name| tensors(name)).unwrap()
        };
        let gate = updated(Site::Gate, x, linear(x, matrix(["gate_proj", "w1"]), x.len()));
        let up = updated(Site::Up, x, linear(x, matrix(["up_proj", "w3"]), x.len()));
        let gated = gated(Activation::Silu, &gate, &up);
        return updated(Site::Down, &gated, linear(&gated, matrix(["down_proj", "w2"]), config.intermediate_size));
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
    let half = |turn: usize| both.iter().skip(turn).step_by(2).copied().collect::<Vec<f64>>();
    let (gate, up) = (updated(Site::Gate, x, half(0)), updated(Site::Up, x, half(1)));
    let (alpha, limit) = (f64::from(limits.alpha), f64::from(limits.limit));
    let gated: Vec<f64> = gate.iter().zip(&up).map(|(gate, up)| clamped_glu(*gate, *up, alpha, limit)).collect();
    updated(Site::Down, &gated, product(&gated, "down_proj", x.len()))
}

/// Computes gpt-oss's activation.
pub(crate) fn clamped_glu(gate: f64, up: f64, alpha: f64, limit: f64) -> f64 {
    let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
    (up + 1.0) * gate / (1.0 + (-alpha * gate).exp())
}
