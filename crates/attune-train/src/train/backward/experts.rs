//! Backward pass of a mixture of experts, which mirrors [`Experts::activations`] and [`Experts::output`]: through the
//! experts of each row, and through the router's weights. The weights of experts and router are frozen, so that only
//! their input gets a gradient, and the updates of experts. Called by [`super::block`].

use candle_core::{DType, Tensor};

use super::TrainContext;
use super::low_rank::low_rank;
use attune_model::Result;
use attune_model::decoder::{Expert, ExpertActivations, Experts, Group, Routing};
use attune_model::kernels::Kernels;
use attune_model::lora::{LoraLayer, LoraPair, Site};

/// Turns `dy`, the gradient of the experts' output, into that of their input `x`, `[rows, hidden]` both. Stores those of
/// the A and B of each expert that has rows; the others have none, which counts as zero.
pub(super) fn backward(
    experts: &Experts,
    saved: &ExpertActivations,
    x: &Tensor,
    dy: &Tensor,
    context: &TrainContext<'_>,
    gradients: &mut LoraLayer,
) -> crate::Result<Tensor> {
    let routing = &saved.routing;
    let updates = context.adapter.map(|adapter| &adapter.layers[experts.block()]);
    // y = Σ w · E(x), E(x) = W_down · gated + b
    let parts = experts.each(routing, |index, expert, group| {
        let pairs = ExpertPairs { kernels: context.kernels, updates, expert: group.expert };
        backward_of_group(experts, expert, group, [&saved.gate[index], &saved.up[index]], [x, dy], routing, &pairs)
    })?;
    let (mut dx, mut slopes) = (Vec::with_capacity(parts.len()), Vec::with_capacity(parts.len()));
    for (part, group) in parts.into_iter().zip(&routing.groups) {
        dx.push(part.dx);
        slopes.push(part.slopes);
        for (site, gradient) in part.gradients {
            gradients.set_expert(group.expert, site, gradient)?;
        }
    }
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

/// Gradients of one group.
struct GroupGradients {
    /// Of the rows' input, `[rows of the group, hidden]`.
    dx: Tensor,
    /// Of the rows' weights.
    slopes: Vec<f32>,
    /// Of A and B.
    gradients: Vec<(Site, LoraPair)>,
}

/// The updates of one expert.
struct ExpertPairs<'a> {
    kernels: &'a Kernels,
    /// Those of the block.
    updates: Option<&'a LoraLayer>,
    expert: usize,
}

impl ExpertPairs<'_> {
    /// Adds to `dx`, the gradient of a layer's input `x` through its frozen weights, the part through its update, if it
    /// has one, and stores the update's own gradient. `weights` as in [`low_rank`].
    fn add(
        &self,
        dx: Tensor,
        site: Site,
        [x, dy]: [&Tensor; 2],
        weights: Option<&Tensor>,
        gradients: &mut Vec<(Site, LoraPair)>,
    ) -> Result<Tensor> {
        let Some(pair) = self.updates.and_then(|updates| updates.expert(self.expert, site)) else { return Ok(dx) };
        let (gradient, dshrunk) = low_rank(self.kernels, pair, x, dy, weights)?;
        gradients.push((site, gradient));
        self.kernels.add_product(dx, &dshrunk, &pair.a)
    }
}

/// Computes the gradients of the rows of one expert, of its gate and up, and of `x` and `dy` of all rows, `[rows, hidden]`.
fn backward_of_group(
    experts: &Experts,
    expert: &Expert,
    group: &Group,
    [gate, up]: [&Tensor; 2],
    [x, dy]: [&Tensor; 2],
    routing: &Routing,
    pairs: &ExpertPairs<'_>,
) -> Result<GroupGradients> {
    let mut gradients = Vec::new();
    let weights: Vec<f32> = group.choices.iter().map(|choice| routing.weights[*choice as usize]).collect();
    let weights = Tensor::from_vec(weights, (group.rows.len(), 1), dy.device())?.to_dtype(dy.dtype())?;
    let (x, dy) = (group.take(x)?, group.take(dy)?); // [rows of the group, hidden] each
    let gated = experts.gated(gate, up)?; // [rows of the group, intermediate]
    let unweighted = expert.down.input_gradient(&dy)?; // dy · W_down, [rows of the group, intermediate]
    let unweighted = pairs.add(unweighted, Site::Down, [&gated, &dy], Some(&weights), &mut gradients)?;
    // dw = dy · E(x) = (dy · W_down) · gated + dy · b
    let mut slopes = row_dots(&unweighted, &gated)?; // [rows of the group]
    if let Some(bias) = expert.down.bias() {
        let through_bias = dy.to_dtype(DType::F32)?.broadcast_mul(&bias.to_dtype(DType::F32)?)?.sum(1)?;
        slopes = (slopes + through_bias)?;
    }
    let dgated = unweighted.broadcast_mul(&weights)?;
    let (dgate, dup) = experts.gated_backward(gate, up, &dgated)?;
    let dx = expert.gate.input_gradient(&dgate)?; // [rows of the group, hidden]
    let dx = pairs.add(dx, Site::Gate, [&x, &dgate], None, &mut gradients)?;
    let dx = expert.up.add_input_gradient(dx, &dup)?;
    let dx = pairs.add(dx, Site::Up, [&x, &dup], None, &mut gradients)?;
    Ok(GroupGradients { dx, slopes: slopes.to_vec1::<f32>()?, gradients })
}

/// Computes the sums of the products of two matrices' rows, in f32.
fn row_dots(a: &Tensor, b: &Tensor) -> Result<Tensor> {
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
