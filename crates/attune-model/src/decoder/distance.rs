//! Terms that attention adds by the distance of key and query, in buckets that grow with the distance (Raffel et al.,
//! "Exploring the limits of transfer learning", 2019), as MPNet has them. Called when an encoder is loaded.

use candle_core::Tensor;

use super::loading::BlockWeights;
use crate::Result;
use crate::kernels::DistanceBias;

/// Distance from which all have the last bucket.
const FARTHEST: i64 = 128;

/// Loads the terms, which all blocks share; `None` if the family has none.
pub(super) fn load(from: &BlockWeights<'_>) -> Result<Option<DistanceBias>> {
    let Some(buckets) = from.config.encoder.as_ref().and_then(|encoder| encoder.distance_buckets) else {
        return Ok(None);
    };
    let heads = from.config.num_attention_heads;
    let table = from.weights.get("model.encoder.relative_attention_bias.weight", &[buckets, heads])?;
    let rows: Vec<u32> = (-FARTHEST..=FARTHEST).map(|distance| bucket(distance, buckets) as u32).collect();
    let terms = table.index_select(&Tensor::new(rows, table.device())?, 0)?; // [distances, heads]
    Ok(Some(DistanceBias { terms: terms.t()?.contiguous()? }))
}

/// Returns the bucket of `distance`, the key's position less the query's: half of the buckets are for each side, and half
/// of these for one distance each.
fn bucket(distance: i64, buckets: usize) -> usize {
    let side = buckets / 2;
    let single = side / 2;
    let far = distance.unsigned_abs() as usize;
    // In f32, as the reference computes it.
    let share = (far as f32 / single as f32).ln() / (FARTHEST as f32 / single as f32).ln();
    let inside = if far < single { far } else { (single + (share * (side - single) as f32) as usize).min(side - 1) };
    if distance > 0 { side + inside } else { inside }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_have_buckets_of_their_own_and_far_ones_share() {
        let of = |distances: &[i64]| distances.iter().map(|distance| bucket(*distance, 32)).collect::<Vec<_>>();
        assert_eq!(of(&[0, -1, -7, -8, -11, -12, -16, -64, -127, -128]), [0, 1, 7, 8, 8, 9, 10, 14, 15, 15]);
        assert_eq!(of(&[1, 7, 8, 16, 128]), [17, 23, 24, 26, 31]);
    }
}
