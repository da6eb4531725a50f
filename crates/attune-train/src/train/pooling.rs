//! Pools hidden states as the model's vectors and classifiers do, and takes gradients the way back. Called by
//! [`super::contrastive`] and [`super::cross_encoder`]; serving pools row by row with the same
//! [`Pooler`](attune_model::vectors::Pooler).
//!
//! Vectors are compared by their cosines, so that here they always have length 1, whatever the model does. With p a
//! text's pooled rows, d its dense layers and v = d(p) / |d(p)|, the gradient of d(p) is (dv − (dv · v) v) / |d(p)|.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::train::batch::PackedBatch;
use attune_model::vectors::{Pooler, Pooling, VectorForm};

/// Pooled rows of a batch's sequences.
#[derive(Debug)]
pub struct PooledRows {
    /// Pooled values of each sequence, all poolings end to end; zeros for one of which no row is pooled.
    pub values: Vec<Vec<f64>>,
    poolings: Vec<Pooling>,
    /// Rows of each sequence that are pooled, and the number of those before them that are not.
    sequences: Vec<(Range<usize>, usize)>,
    /// Hidden states, `[rows, hidden]`.
    rows: Vec<f32>,
    hidden_size: usize,
}

impl PooledRows {
    /// Pools the hidden states after the final norm, `[rows, hidden]`.
    pub fn of(hidden: &Tensor, batch: &PackedBatch, poolings: &[Pooling]) -> Result<Self> {
        let hidden_size = hidden.dim(1)?;
        let rows = hidden.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let (mut values, mut sequences) = (Vec::new(), Vec::new());
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let left_out = batch.unpooled.get(index).copied().unwrap_or(0).min(sequence.len());
            let mut pooler = Pooler::of(poolings, hidden_size).without_prompt(left_out);
            let of_text = &rows[sequence.start * hidden_size..sequence.end * hidden_size];
            of_text.chunks_exact(hidden_size).for_each(|row| pooler.add(row));
            values.push(pooler.finish());
            sequences.push((sequence.start + left_out..sequence.end, left_out));
        }
        Ok(Self { values, poolings: poolings.to_vec(), sequences, rows, hidden_size })
    }

    /// Computes the gradient of the hidden states, `[rows, hidden]`, from `slopes`, that of each sequence's values.
    pub fn backward(&self, slopes: &[Vec<f64>], hidden: &Tensor) -> Result<Tensor> {
        let mut gradient = vec![0.0; self.rows.len()];
        for ((rows, before), slope) in self.sequences.iter().zip(slopes).filter(|((rows, _), _)| !rows.is_empty()) {
            for (pooling, slope) in self.poolings.iter().zip(slope.chunks_exact(self.hidden_size)) {
                self.add_gradient(&mut gradient, *pooling, (rows, *before), slope);
            }
        }
        Ok(Tensor::from_vec(gradient, hidden.shape(), hidden.device())?.to_dtype(hidden.dtype())?)
    }

    /// Adds to `gradient` what the `slope` of one pooling gives to each of a sequence's `rows`, which stand behind `before`
    /// others.
    fn add_gradient(
        &self,
        gradient: &mut [f32],
        pooling: Pooling,
        (rows, before): (&Range<usize>, usize),
        slope: &[f64],
    ) {
        let (width, count) = (self.hidden_size, rows.len() as f64);
        let mut add = |row: usize, share: f64| {
            let of_row = &mut gradient[row * width..(row + 1) * width];
            of_row.iter_mut().zip(slope).for_each(|(value, slope)| *value += (slope * share) as f32);
        };
        match pooling {
            Pooling::First => add(rows.start, 1.0),
            Pooling::Last => add(rows.end - 1, 1.0),
            Pooling::Mean => rows.clone().for_each(|row| add(row, count.recip())),
            Pooling::MeanOfRoot => rows.clone().for_each(|row| add(row, count.sqrt().recip())),
            Pooling::WeightedMean => {
                let divisor = count * (2.0 * before as f64 + count + 1.0) / 2.0;
                rows.clone().zip(before + 1..).for_each(|(row, place)| add(row, place as f64 / divisor));
            }
            Pooling::Max => {
                for (column, slope) in slope.iter().enumerate() {
                    gradient[self.largest_row(rows, column) * width + column] += *slope as f32;
                }
            }
        }
    }

    /// Returns the first of `rows` with the largest value in `column`, which is the one that was pooled.
    fn largest_row(&self, rows: &Range<usize>, column: usize) -> usize {
        let value = |row: usize| self.rows[row * self.hidden_size + column];
        rows.clone().fold(rows.start, |largest, row| if value(row) > value(largest) { row } else { largest })
    }
}

/// Vectors of a batch's sequences.
#[derive(Debug)]
pub struct Pooled<'a> {
    /// Vector of each sequence, of length 1; all zeros if the model's vector is.
    pub vectors: Vec<Vec<f64>>,
    form: &'a VectorForm,
    rows: PooledRows,
    /// What went into each dense layer, by sequence.
    inputs: Vec<Vec<Vec<f64>>>,
    /// Lengths of the vectors before they were scaled.
    lengths: Vec<f64>,
}

impl<'a> Pooled<'a> {
    /// Makes vectors of the hidden states after the final norm, `[rows, hidden]`.
    pub fn of(hidden: &Tensor, batch: &PackedBatch, form: &'a VectorForm) -> Result<Self> {
        let rows = PooledRows::of(hidden, batch, &form.poolings)?;
        let (mut vectors, mut inputs, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for pooled in &rows.values {
            let (mut vector, mut inner) = (pooled.clone(), Vec::new());
            for layer in &form.layers {
                let next = layer.forward(&vector);
                inner.push(std::mem::replace(&mut vector, next));
            }
            let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
            let scale = inverse(length);
            for value in &mut vector {
                *value *= scale;
            }
            vectors.push(vector);
            inputs.push(inner);
            lengths.push(length);
        }
        Ok(Self { vectors, form, rows, inputs, lengths })
    }

    /// Computes the gradient of the hidden states, `[rows, hidden]`, from `slopes`, the gradient of each vector.
    pub fn backward(&self, slopes: &[Vec<f64>], hidden: &Tensor) -> Result<Tensor> {
        let of_values = slopes.iter().enumerate().map(|(index, slope)| {
            let vector = &self.vectors[index];
            let along: f64 = vector.iter().zip(slope).map(|(vector, slope)| vector * slope).sum();
            let scale = inverse(self.lengths[index]);
            let slope = vector.iter().zip(slope).map(|(vector, slope)| (slope - along * vector) * scale).collect();
            let layers = self.form.layers.iter().zip(&self.inputs[index]).rev();
            layers.fold(slope, |slope: Vec<f64>, (layer, input)| layer.input_gradient(input, &slope))
        });
        self.rows.backward(&of_values.collect::<Vec<_>>(), hidden)
    }
}

/// Returns 1 / `length`; 0 for a vector without a direction.
fn inverse(length: f64) -> f64 {
    if length == 0.0 { 0.0 } else { length.recip() }
}

#[cfg(test)]
mod tests {
    use attune_model::vectors::{DenseActivation, DenseLayer};

    use super::*;

    const WIDTH: usize = 5;

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
        let values = (0..rows * WIDTH).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
        Tensor::from_vec(values, (rows, WIDTH), &Device::Cpu).unwrap()
    }

    fn form(poolings: &[Pooling], layers: Vec<DenseLayer>) -> VectorForm {
        VectorForm {
            poolings: poolings.to_vec(),
            pools_prompt: true,
            layers,
            is_normalized: false,
            prompts: std::collections::BTreeMap::new(),
            default_prompt: None,
            is_lower_cased: false,
            max_tokens: 512,
            shorter_widths: Vec::new(),
            hidden_size: WIDTH,
        }
    }

    fn layer(output: usize, input: usize, activation: DenseActivation) -> DenseLayer {
        let values: Vec<f32> = (0..output * input).map(|i| (i as f32 * 1.3).cos()).collect();
        let weight = Tensor::from_vec(values, (output, input), &Device::Cpu).unwrap();
        let bias = Tensor::from_vec((0..output).map(|i| 0.1 * i as f32).collect::<Vec<_>>(), output, &Device::Cpu);
        DenseLayer::new(&weight, Some(&bias.unwrap()), activation).unwrap()
    }

    /// Compares the gradients of all hidden states with central differences.
    fn check(form: &VectorForm, batch: &PackedBatch) {
        let count = batch.tokens.len();
        let rows = hidden(count);
        let slope = |text: usize| (0..form.width()).map(|i| ((i * 3 + text * 7) as f64).cos()).collect();
        let slopes: Vec<Vec<f64>> = (0..batch.sequences.len()).map(slope).collect();
        let pooled = Pooled::of(&rows, batch, form).unwrap();
        let gradient = pooled.backward(&slopes, &rows).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = rows.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (index, expected) in gradient.iter().enumerate() {
            let moved = |step: f32| {
                let mut values = values.clone();
                values[index] += step;
                let moved = Tensor::from_vec(values, (count, WIDTH), &Device::Cpu).unwrap();
                let pooled = Pooled::of(&moved, batch, form).unwrap();
                let pairs = pooled.vectors.iter().flatten().zip(slopes.iter().flatten());
                pairs.map(|(vector, slope)| vector * slope).sum::<f64>()
            };
            let step = 1.0 / 512.0;
            let measured = (moved(step) - moved(-step)) / f64::from(2.0 * step);
            let what = format!("{:?}, value {index}: {measured} is not {expected}", form.poolings);
            assert!((measured - f64::from(*expected)).abs() < 2e-4, "{what}");
        }
    }

    #[test]
    fn vectors_are_means_at_length_one() {
        let (hidden, batch, form) = (hidden(7), batch(&[3, 4]), form(&[Pooling::Mean], Vec::new()));
        let pooled = Pooled::of(&hidden, &batch, &form).unwrap();
        let mean = hidden.narrow(0, 3, 4).unwrap().mean(0).unwrap().to_vec1::<f32>().unwrap();
        let length = mean.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        for (value, mean) in pooled.vectors[1].iter().zip(&mean) {
            assert!((value - f64::from(*mean) / length).abs() < 1e-6);
        }
        let zeros = Pooled::of(&hidden.zeros_like().unwrap(), &batch, &form).unwrap();
        assert_eq!(zeros.vectors, [vec![0.0; WIDTH], vec![0.0; WIDTH]]);
        let none = zeros.backward(&pooled.vectors, &hidden).unwrap();
        assert_eq!(none.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.0; 35]);
    }

    #[test]
    fn vectors_are_those_of_the_server_at_length_one() {
        let poolings = [Pooling::First, Pooling::WeightedMean, Pooling::Max];
        let form = form(&poolings, vec![layer(4, 3 * WIDTH, DenseActivation::Tanh)]);
        let (hidden, batch) = (hidden(7), batch(&[3, 4]));
        let pooled = Pooled::of(&hidden, &batch, &form).unwrap();
        let mut pooler = form.pooler();
        hidden.narrow(0, 3, 4).unwrap().to_vec2::<f32>().unwrap().iter().for_each(|row| pooler.add(row));
        let mut served = form.vector(pooler.finish()).unwrap();
        attune_model::vectors::normalize(&mut served);
        for (value, served) in pooled.vectors[1].iter().zip(&served) {
            assert!((value - f64::from(*served)).abs() < 1e-6, "{value} is not {served}");
        }
    }

    #[test]
    fn the_gradient_of_each_pooling_equals_central_differences() {
        let all =
            [Pooling::First, Pooling::Mean, Pooling::MeanOfRoot, Pooling::WeightedMean, Pooling::Max, Pooling::Last];
        for pooling in all {
            check(&form(&[pooling], Vec::new()), &batch(&[3, 4]));
        }
        check(&form(&all, Vec::new()), &batch(&[1, 5]));
    }

    #[test]
    fn the_gradient_behind_dense_layers_equals_central_differences() {
        for activation in [DenseActivation::Identity, DenseActivation::Tanh, DenseActivation::Gelu] {
            let layers = vec![layer(6, 2 * WIDTH, activation), layer(3, 6, DenseActivation::Identity)];
            check(&form(&[Pooling::Mean, Pooling::Last], layers), &batch(&[3, 4]));
        }
    }

    #[test]
    fn rows_of_a_prompt_are_neither_pooled_nor_changed() {
        let form = form(&[Pooling::Mean, Pooling::First], Vec::new());
        let batch = PackedBatch { unpooled: vec![1, 9], ..batch(&[3, 4]) };
        check(&form, &batch);
        let rows = hidden(7);
        let pooled = Pooled::of(&rows, &batch, &form).unwrap();
        assert_eq!(pooled.vectors[1], vec![0.0; 2 * WIDTH], "nothing is left of the second text");
        let second = rows.narrow(0, 1, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let first_of_the_rest = &pooled.rows.values[0][WIDTH..];
        assert!(first_of_the_rest.iter().zip(&second).all(|(value, row)| (value - f64::from(*row)).abs() < 1e-9));
    }
}
