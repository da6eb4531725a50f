//! Checks coded panels of every code and instruction set: values bit for bit, products and gradients against f64.

use bytes::Bytes;

use super::super::tests::{assert_close, naive, one, seen, unpacked, values};
use super::super::{Level, Panels, Precision, Start};
use crate::blocks::tests::{TYPES, random};
use crate::blocks::{BlockMatrix, BlockType};
use crate::matrix::GroupedMatrix;

/// Rows of activations for which kernels take different shapes.
const ROWS: [usize; 10] = [1, 2, 3, 5, 7, 12, 13, 16, 96, 100];

/// Returns a matrix of random blocks whose values are below 10 or so in magnitude.
fn matrix(index: usize, outputs: usize, inputs: usize) -> BlockMatrix {
    let (kind, halves) = TYPES[index];
    let (weights, size) = kind.size();
    let mut bytes = random(index, 7 + outputs as u64, outputs * inputs / weights);
    for block in bytes.chunks_exact_mut(size) {
        // Exponents of f16 below 8, signs as they are.
        for place in halves {
            block[place + 1] &= 0x9f;
        }
        if kind == BlockType::Mxfp4 {
            block[0] = 120 + block[0] % 8;
        }
    }
    BlockMatrix::new(kind, outputs, inputs, Bytes::from(bytes)).unwrap()
}

/// Returns a matrix of groups: of 4 bits, of 16 values that are no range, or of 8 bits.
fn grouped(bits: usize, group: usize, offsets: bool, outputs: usize, inputs: usize) -> GroupedMatrix {
    let quant = |value: &f32| match bits {
        4 => (value * 8.0).floor() as i8,
        5 => ((value * 8.0).floor() as i8) * 9 - 3,
        _ => (value * 127.9).floor() as i8,
    };
    let groups = outputs * inputs / group;
    GroupedMatrix {
        outputs,
        inputs,
        group,
        quants: values(outputs * inputs, bits).iter().map(quant).collect(),
        scales: values(groups, 3).iter().map(|scale| scale / 100.0).collect(),
        offsets: offsets.then(|| values(groups, 4)),
    }
}

/// Returns the coded panels of every code, with the values that they must hold.
fn all(level: Level, outputs: usize) -> Vec<(String, Panels, Vec<f32>)> {
    let mut all = Vec::new();
    for (index, (kind, _)) in TYPES.into_iter().enumerate() {
        let inputs = if kind.size().0 == 256 { 768 } else { 672 };
        let matrix = matrix(index, outputs, inputs);
        let panels = Panels::of_coded_for(level, &matrix).unwrap();
        all.push((format!("{level:?} {kind}"), panels, matrix.dequantize().unwrap()));
    }
    for bits in [4, 5, 8] {
        for (group, inputs) in [(16, 656), (48, 672), (32, 672), (128, 640), (64, 640), (640, 640), (672, 672)] {
            let matrix = grouped(bits, group, group % 64 != 0, outputs, inputs);
            let panels = Panels::of_grouped_for(level, &matrix).unwrap();
            all.push((format!("{level:?} {bits} bits in groups of {group}"), panels, matrix.dequantize()));
        }
    }
    all
}

#[test]
fn panels_hold_the_very_values_of_their_source() {
    for level in Level::available() {
        for (what, panels, expected) in all(level, 37) {
            let held = unpacked(&panels);
            let place = held.iter().zip(&expected).position(|(held, expected)| held.to_bits() != expected.to_bits());
            assert_eq!(place, None, "{what}: {} instead of {}", held[place.unwrap()], expected[place.unwrap()]);
        }
    }
}

#[test]
fn products_equal_naive_ones_with_the_values_for_any_number_of_rows() {
    for level in Level::available() {
        for outputs in [1, 16, 53] {
            for (what, panels, weight) in all(level, outputs) {
                let inputs = panels.inputs();
                for rows in ROWS {
                    let x = values(rows * inputs, rows);
                    let exact = naive(&seen(&x, inputs, Precision::Q8), &weight, outputs, inputs);
                    let largest = weight.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
                    let tolerance = 1e-4 * f64::from(largest.max(0.1));
                    let ours = one(&panels, &x, rows, Start::Zero);
                    assert_close(&ours, &exact, tolerance, &format!("{what}, {outputs} outputs, {rows} rows"));
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company_and_from_any_start() {
    let outputs = 83;
    for level in Level::available() {
        for (what, panels, _) in all(level, outputs) {
            let x = values(33 * panels.inputs(), 2);
            let start = values(33 * outputs, 5);
            let alone: Vec<f32> = x
                .chunks_exact(panels.inputs())
                .zip(start.chunks_exact(outputs))
                .flat_map(|(row, start)| one(&panels, row, 1, Start::Rows(start)))
                .collect();
            for rows in [2, 3, 4, 6, 7, 11, 13, 24, 33] {
                // The last rows of x, so that each row stands in many places.
                let first = 33 - rows;
                let start = Start::Rows(&start[first * outputs..]);
                let together = one(&panels, &x[first * panels.inputs()..], rows, start);
                let same = together.iter().zip(&alone[first * outputs..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{what}, {rows} rows");
            }
        }
    }
}

#[test]
fn the_gradient_is_the_product_with_the_values_in_f32() {
    let outputs = 53;
    for level in Level::available() {
        for (what, panels, weight) in all(level, outputs) {
            let inputs = panels.inputs();
            let rounded = Panels::pack_for(level, &weight, outputs, inputs, Precision::F32);
            for rows in [1, 7, 100] {
                let dy = values(rows * outputs, rows);
                assert_eq!(panels.gradient(&dy, rows), rounded.gradient(&dy, rows), "{what}, {rows} rows");
            }
        }
    }
}

#[test]
fn panels_are_about_as_large_as_their_part_of_the_file() {
    for (index, (kind, _)) in TYPES.into_iter().enumerate() {
        let matrix = matrix(index, 64, 2048);
        let panels = Panels::of_coded(&matrix).unwrap();
        let ratio = panels.bytes() as f64 / matrix.bytes().len() as f64;
        let most = match kind {
            BlockType::Q2_K => 2.0,
            BlockType::Q3_K => 1.4,
            _ => 1.03,
        };
        assert!(ratio <= most, "{kind}: {ratio} of the file");
    }
}

#[test]
fn groups_that_share_no_16_inputs_are_left_to_floats() {
    assert!(Panels::of_grouped(&grouped(4, 8, true, 3, 64)).is_none());
    let matrix = grouped(8, 8, true, 3, 64);
    let panels = Panels::of_groups(&matrix).unwrap();
    assert_eq!(unpacked(&panels), matrix.dequantize());
    let short = GroupedMatrix { scales: vec![1.0], ..matrix };
    assert!(Panels::of_groups(&short).is_err());
}

#[test]
fn eight_bits_may_hold_their_lowest_number() {
    let bytes: Vec<u8> = (0..16).flat_map(|_| [vec![0, 0x3c], vec![0x80; 32]].concat()).collect();
    let matrix = BlockMatrix::new(BlockType::Q8_0, 16, 32, bytes.into()).unwrap();
    for level in Level::available() {
        let panels = Panels::of_coded_for(level, &matrix).unwrap();
        assert_eq!(one(&panels, &[1.0; 32], 1, Start::Zero), [-4096.0; 16]);
        assert_eq!(one(&panels, &[-1.0; 64], 2, Start::Zero), [4096.0; 32]);
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    for level in Level::available() {
        for (what, panels, _) in all(level, 20) {
            for fault in [f32::NAN, f32::INFINITY] {
                let mut x = values(2 * panels.inputs(), 2);
                x[40] = fault;
                let y = one(&panels, &x, 2, Start::Zero);
                assert!(y[..20].iter().all(|y| !y.is_finite()), "{what} {fault}");
                assert!(y[20..].iter().all(|y| y.is_finite()), "{what} {fault}");
            }
        }
    }
}
