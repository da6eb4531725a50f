//! Softmax, loss and gradient of a chunk of logits, one pass over each row, in place.

use candle_core::Tensor;

use super::elementwise::shape_logits;
use super::rows::for_rows;
use super::{SharedSlice, Values, activations, tensor, vector};
use crate::Result;
use crate::kernels::{CrossEntropy, LogitForm};

/// See [`crate::kernels::Kernels::cross_entropy`].
pub fn forward(products: Tensor, form: LogitForm, targets: &[u32], weights: &[f32]) -> Result<CrossEntropy> {
    let (rows, classes) = products.dims2()?;
    let mut gradient = Values::of(&products)?.to_vec();
    drop(products);
    let mut losses = vec![0.0; rows];
    let mut correct = vec![0.0; rows];
    let (shared_losses, shared_correct) = (SharedSlice::new(&mut losses), SharedSlice::new(&mut correct));
    for_rows(&mut gradient, classes, |row, values| {
        let target = targets[row] as usize;
        if form != LogitForm::PLAIN {
            shape_logits(values, form);
        }
        let slopes = form.cap.map(|cap| {
            let mut slopes = vec![0.0; values.len()];
            activations::soft_cap_slopes(&mut slopes, values, cap);
            slopes
        });
        let target_logit = values[target];
        let max = vector::max(values);
        let sum = vector::exp_and_sum(values, max);
        // SAFETY: each row is handled once.
        let (loss, correct) = unsafe { (shared_losses.slice(row..row + 1), shared_correct.slice(row..row + 1)) };
        // `max` skips NaN, the sum does not: a row with NaN has a NaN loss.
        loss[0] = sum.ln() + max - target_logit;
        correct[0] = f32::from(target_logit >= max);
        let weight = weights[row] * form.scale;
        vector::scale(values, weight / sum);
        values[target] -= weight;
        if let Some(slopes) = slopes {
            activations::multiply_each(values, &slopes);
        }
    });
    let correct = correct.into_iter().map(|value| value > 0.0).collect();
    Ok(CrossEntropy { losses, correct, gradient: tensor(gradient, (rows, classes))? })
}
