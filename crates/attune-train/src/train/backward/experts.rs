//! Backward pass of a mixture of experts, which mirrors [`Experts::activations`] and [`Experts::output`]: through the
//! experts of each row, and through the router's weights. Experts and router are frozen, so that only their input gets
//! a gradient. Called by [`super`].

use candle_core::{DType, Tensor};

use crate::Result;
use attune_model::decoder::{ExpertActivations, Experts, Routing};

/// Turns `dy`, the gradient of the experts' output, into that of their input, `[rows, hidden]` both.
pub(super) fn input_gradient(experts: &Experts, saved: &ExpertActivations, dy: &Tensor) -> Result<Tensor> {
    let routing = &saved.routing;
    // y = Σ w · E(x), E(x) = W_down · gated + b
    let parts = experts.each(routing, |index, expert, group| {
        let (gate, up) = (&saved.gate[index], &saved.up[index]); // [rows of the group, intermediate] each
        let dy = group.take(dy)?; // [rows of the group, hidden]
        let unweighted = expert.down.input_gradient(&dy)?; // dy · W_down, [rows of the group, intermediate]
        // dw = dy · E(x) = (dy · W_down) · gated + dy · b
        let gated = experts.gated(gate, up)?;
        let mut slopes = row_dots(&unweighted, &gated)?; // [rows of the group]
        if let Some(bias) = expert.down.bias() {
            let through_bias = dy.to_dtype(DType::F32)?.broadcast_mul(&bias.to_dtype(DType::F32)?)?.sum(1)?;
            slopes = (slopes + through_bias)?;
        }
        let weights: Vec<f32> = group.choices.iter().map(|choice| routing.weights[*choice as usize]).collect();
        let weights = Tensor::from_vec(weights, (group.rows.len(), 1), dy.device())?.to_dtype(dy.dtype())?;
        let dgated = unweighted.broadcast_mul(&weights)?;
        let (dgate, dup) = experts.gated_backward(gate, up, &dgated)?;
        let dx = expert.gate.input_gradient(&dgate)?; // [rows of the group, hidden]
        Ok((expert.up.add_input_gradient(dx, &dup)?, slopes.to_vec1::<f32>()?))
    })?;
    let (dx, slopes): (Vec<Tensor>, Vec<Vec<f32>>) = parts.into_iter().unzip();
    let dx = experts.sum(routing, &dx, None)?; // [rows, hidden]

    // The weights come from the router: dx += dlogits · W_router
    let mut dweights = vec![0.0; routing.weights.len()]; // [rows, chosen]
    for (group, slopes) in routing.groups.iter().zip(slopes) {
        for (choice, slope) in group.choices.iter().zip(slopes) {
            dweights[*choice as usize] = slope;
        }
    }
    let dlogits = logit_gradient(routing, &dweights, experts.normalized());
    let dlogits = Tensor::from_vec(dlogits, (routing.rows(), routing.experts), dy.device())?;
    let through_router = experts.router().input_gradient(&dlogits)?;
    Ok((dx + through_router.to_dtype(dy.dtype())?)?)
}

/// Computes the sums of the products of two matrices' rows, in f32.
fn row_dots(a: &Tensor, b: &Tensor) -> attune_model::Result<Tensor> {
    Ok((a.to_dtype(DType::F32)? * b.to_dtype(DType::F32)?)?.sum(1)?)
}

/// Turns the gradient of the rows' weights w, `[rows, chosen]`, into that of the router's logits, `[rows, experts]`.
/// With p the probabilities and c the chosen experts:
/// `dlogit_c` = `w_c` (`dw_c` − Σ w dw) and 0 for the others if the weights are divided by their sum;
/// `dlogit_j` = `p_j` ([j chosen] `dw_j` − Σ `p_c` `dw_c`) for all experts if they are the probabilities themselves.
fn logit_gradient(routing: &Routing, dweights: &[f32], normalized: bool) -> Vec<f32> {
    let mut dlogits = vec![0.0; routing.probabilities.len()];
    for (row, dlogits) in dlogits.chunks_exact_mut(routing.experts).enumerate() {
        let choices = routing.choices(row);
        let (weights, dweights) = (&routing.weights[choices.clone()], &dweights[choices.clone()]);
        let mean: f32 = weights.iter().zip(dweights).map(|(weight, slope)| weight * slope).sum();
        if !normalized {
            let probabilities = &routing.probabilities[row * routing.experts..][..routing.experts];
            for (dlogit, probability) in dlogits.iter_mut().zip(probabilities) {
                *dlogit = -probability * mean;
            }
        }
        for ((expert, weight), slope) in routing.indices[choices].iter().zip(weights).zip(dweights) {
            let through_mean = if normalized { mean } else { 0.0 };
            dlogits[*expert as usize] += weight * (slope - through_mean);
        }
    }
    dlogits
}
