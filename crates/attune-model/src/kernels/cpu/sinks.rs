//! Attention sinks on the CPU, after attention over packed sequences. The cached attention has its own, in its sums.

use candle_core::Tensor;

use super::rows::for_rows;
use super::{SharedSlice, Values, tensor, vector};
use crate::Result;

/// See [`crate::kernels::Kernels::add_sinks`].
pub fn add(out: &Tensor, log_sum_exp: &Tensor, sinks: &Tensor) -> Result<(Tensor, Tensor)> {
    let (rows, heads, head_dim) = out.dims3()?;
    let (values, sums, sinks) = (Values::of(out)?, Values::of(log_sum_exp)?, Values::of(sinks)?);
    let mut with_sinks = values.to_vec();
    let mut new_sums = vec![0.0; rows * heads];
    let shared_sums = SharedSlice::new(&mut new_sums);
    for_rows(&mut with_sinks, heads * head_dim, |row, out| {
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let place = row * heads + head;
            let max = sums[place].max(sinks[head]);
            let sum = ((sums[place] - max).exp() + (sinks[head] - max).exp()).ln() + max;
            // SAFETY: each row and head is handled once.
            let place_of_sum = unsafe { shared_sums.slice(place..place + 1) };
            place_of_sum[0] = sum;
            vector::scale(out, (sums[place] - sum).exp());
        }
    });
    Ok((tensor(with_sinks, (rows, heads, head_dim))?, tensor(new_sums, (rows, heads))?))
}
