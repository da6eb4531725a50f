//! Computes the candidates of a draw by sorting, to check the model's draws against.

use attune::model::kernels::Draw;

/// Returns the candidates of a draw in its order: tokens with their weights.
pub(crate) fn candidates(logits: &[f32], draw: &Draw) -> Vec<(usize, f64)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| f64::from((logit - largest) / draw.temperature).exp();
    let mut tokens: Vec<(usize, f64)> = logits.iter().map(weight).enumerate().collect();
    let sum = |tokens: &[(usize, f64)]| tokens.iter().map(|(_, weight)| weight).sum::<f64>();
    if draw.top_k > 0 || draw.top_p < 1.0 {
        tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        tokens.truncate(if draw.top_k > 0 { draw.top_k } else { tokens.len() });
        let (wanted, mut share) = (f64::from(draw.top_p) * sum(&tokens), 0.0);
        let enough = tokens.iter().position(|(_, weight)| {
            share += weight;
            share >= wanted
        });
        tokens.truncate(enough.map_or(tokens.len(), |last| last + 1));
    }
    tokens.retain(|(_, weight)| *weight >= f64::from(draw.min_p));
    tokens
}
