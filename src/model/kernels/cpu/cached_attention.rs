//! Attention of a serving step over the paged cache: every row looks back over its own sequence's blocks.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{SharedSlice, Values, tensor, vector};
use crate::Result;
use crate::model::kernels::CachedRows;
use crate::model::kv_cache::BLOCK_TOKENS;

/// See [`crate::model::kernels::cached_attention`].
pub fn forward(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    sequences: &[CachedRows<'_>],
    window: Option<usize>,
) -> Result<Tensor> {
    let (rows, heads, head_dim) = q.dims3()?;
    let (_, kv_heads, _) = keys.dims3()?;
    let group = heads / kv_heads;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let (queries, keys, values) = (Values::of(q)?, Values::of(keys)?, Values::of(values)?);
    let mut out = vec![0.0; rows * heads * head_dim];
    let shared_out = SharedSlice::new(&mut out);

    // One task per row and key-value head: all query heads of the group read the same keys and values.
    let tasks: Vec<(&CachedRows<'_>, usize, usize)> = sequences
        .iter()
        .flat_map(|sequence| sequence.rows.clone().map(move |row| (sequence, row)))
        .flat_map(|(sequence, row)| (0..kv_heads).map(move |kv_head| (sequence, row, kv_head)))
        .collect();
    let attend = |scores: &mut Vec<f32>, (sequence, row, kv_head): (&CachedRows<'_>, usize, usize)| {
        let end = sequence.start + (row - sequence.rows.start) + 1; // keys that the row may see
        let first = window.map_or(0, |window| end.saturating_sub(window));
        let slot = |position: usize| {
            sequence.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
        };
        let at = |position: usize| {
            let start = (slot(position) * kv_heads + kv_head) * head_dim;
            start..start + head_dim
        };
        for head in kv_head * group..(kv_head + 1) * group {
            let place = (row * heads + head) * head_dim..(row * heads + head + 1) * head_dim;
            let query = &queries[place.clone()];
            scores.clear();
            scores.extend((first..end).map(|position| scale * vector::dot(query, &keys[at(position)])));
            let max = vector::max(scores);
            let sum = vector::exp_and_sum(scores, max);
            // SAFETY: each row and head is handled once.
            let out = unsafe { shared_out.slice(place) };
            for (position, score) in (first..end).zip(scores.iter()) {
                vector::add_scaled(out, *score, &values[at(position)]);
            }
            vector::scale(out, 1.0 / sum);
        }
    };
    let work: usize =
        sequences.iter().map(|sequence| sequence.rows.len() * (sequence.start + sequence.rows.len())).sum();
    if work * heads * head_dim < 1 << 16 {
        let mut scores = Vec::new();
        for task in tasks {
            attend(&mut scores, task);
        }
    } else {
        tasks.into_par_iter().for_each_init(Vec::new, attend);
    }
    tensor(out, (rows, heads, head_dim))
}
