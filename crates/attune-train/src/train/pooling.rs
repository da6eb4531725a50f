//! Pools hidden states to the vectors of `/embeddings`, each the sum of a text's rows scaled to length 1, and takes
//! gradients the way back. Called by [`super::contrastive`]; serving does the same in `engine/request.rs`, row by row.
//!
//! With s the sum of a text's rows and v = s / |s|, the gradient of each of the rows is (dv − (dv · v) v) / |s|.

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::train::batch::PackedBatch;

/// Vectors of a batch's sequences.
#[derive(Debug)]
pub struct Pooled {
    /// Vector of each sequence, of length 1; all zeros if the sum is.
    pub vectors: Vec<Vec<f64>>,
    /// Lengths of the sums.
    lengths: Vec<f64>,
}

impl Pooled {
    /// Pools the hidden states after the final norm, `[rows, hidden]`.
    pub fn of(hidden: &Tensor, batch: &PackedBatch) -> Result<Self> {
        let width = hidden.dim(1)?;
        let rows = hidden.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let (mut vectors, mut lengths) = (Vec::new(), Vec::new());
        for sequence in &batch.sequences {
            let mut sum = vec![0.0; width];
            for row in rows[sequence.start * width..sequence.end * width].chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
            let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
            let scale = if length == 0.0 { 0.0 } else { length.recip() };
            for value in &mut sum {
                *value *= scale;
            }
            vectors.push(sum);
            lengths.push(length);
        }
        Ok(Self { vectors, lengths })
    }

    /// Computes the gradient of the hidden states, `[rows, hidden]`, from `slopes`, the gradient of each vector.
    pub fn backward(&self, slopes: &[Vec<f64>], hidden: &Tensor, batch: &PackedBatch) -> Result<Tensor> {
        let mut gradient = Vec::with_capacity(hidden.elem_count());
        for (index, rows) in batch.sequences.iter().enumerate() {
            let (vector, slope) = (&self.vectors[index], &slopes[index]);
            let along: f64 = vector.iter().zip(slope).map(|(vector, slope)| vector * slope).sum();
            let scale = if self.lengths[index] == 0.0 { 0.0 } else { self.lengths[index].recip() };
            let of_row = vector.iter().zip(slope).map(|(vector, slope)| ((slope - along * vector) * scale) as f32);
            let of_row: Vec<f32> = of_row.collect();
            for _ in rows.clone() {
                gradient.extend_from_slice(&of_row);
            }
        }
        Ok(Tensor::from_vec(gradient, hidden.shape(), hidden.device())?.to_dtype(hidden.dtype())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lengths: &[usize]) -> PackedBatch {
        let mut batch = PackedBatch::default();
        for length in lengths {
            let start = batch.tokens.len();
            batch.tokens.resize(start + length, 0);
            batch.sequences.push(start..start + length);
        }
        batch
    }

    fn hidden(rows: usize) -> Tensor {
        let values = (0..rows * 5).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
        Tensor::from_vec(values, (rows, 5), &Device::Cpu).unwrap()
    }

    #[test]
    fn vectors_are_means_at_length_one() {
        let (hidden, batch) = (hidden(7), batch(&[3, 4]));
        let pooled = Pooled::of(&hidden, &batch).unwrap();
        let mean = hidden.narrow(0, 3, 4).unwrap().mean(0).unwrap().to_vec1::<f32>().unwrap();
        let length = mean.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        for (value, mean) in pooled.vectors[1].iter().zip(&mean) {
            assert!((value - f64::from(*mean) / length).abs() < 1e-6);
        }
        let zeros = Pooled::of(&hidden.zeros_like().unwrap(), &batch).unwrap();
        assert_eq!(zeros.vectors, [vec![0.0; 5], vec![0.0; 5]]);
        let none = zeros.backward(&pooled.vectors, &hidden, &batch).unwrap();
        assert_eq!(none.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.0; 35]);
    }

    #[test]
    fn the_gradient_of_a_row_is_the_difference_of_what_follows() {
        let (rows, batch) = (hidden(7), batch(&[3, 4]));
        let slopes: Vec<Vec<f64>> =
            (0..2).map(|text| (0..5).map(|i| f64::from(i * 3 + text * 7).cos()).collect()).collect();
        let pooled = Pooled::of(&rows, &batch).unwrap();
        let gradient =
            pooled.backward(&slopes, &rows, &batch).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = rows.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (index, expected) in gradient.iter().enumerate() {
            let moved = |step: f32| {
                let mut values = values.clone();
                values[index] += step;
                let pooled = Pooled::of(&Tensor::from_vec(values, (7, 5), &Device::Cpu).unwrap(), &batch).unwrap();
                let pairs = pooled.vectors.iter().flatten().zip(slopes.iter().flatten());
                pairs.map(|(vector, slope)| vector * slope).sum::<f64>()
            };
            let step = 1.0 / 512.0;
            let measured = (moved(step) - moved(-step)) / f64::from(2.0 * step);
            assert!((measured - f64::from(*expected)).abs() < 1e-4, "{index}: {measured} is not {expected}");
        }
    }
}
