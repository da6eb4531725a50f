//! Checks every kernel of every instruction set against a naive product in f64.

use candle_core::{Device, Tensor};

use super::bytes::RADIX;
use super::narrow::{Narrow, add_product_for};
use super::*;

/// Returns values in −1 to 1, the same in every run.
pub(super) fn values(count: usize, seed: usize) -> Vec<f32> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Computes `x · Wᵀ` in f64, `[rows, outputs]`.
pub(super) fn naive(x: &[f32], weight: &[f32], outputs: usize, inputs: usize) -> Vec<f64> {
    x.chunks_exact(inputs)
        .flat_map(|x| {
            (0..outputs).map(move |output| {
                let row = &weight[output * inputs..][..inputs];
                x.iter().zip(row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            })
        })
        .collect()
}

/// Returns the weight as the panels hold it.
pub(super) fn unpacked(panels: &Panels) -> Vec<f32> {
    let mut weight = vec![0.0; panels.outputs() * panels.inputs()];
    for (index, row) in weight.chunks_exact_mut(panels.inputs()).enumerate() {
        panels.unpack_row(index, row);
    }
    weight
}

pub(super) fn one(panels: &Panels, x: &[f32], rows: usize, start: Start<'_>) -> Vec<f32> {
    products(x, rows, &[Product { panels, start }]).remove(0)
}

#[track_caller]
pub(super) fn assert_close(ours: &[f32], exact: &[f64], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), exact.len(), "{what}");
    for (place, (ours, exact)) in ours.iter().zip(exact).enumerate() {
        let difference = (f64::from(*ours) - exact).abs();
        assert!(difference <= tolerance, "{what}, at {place}: {ours} instead of {exact}");
    }
}

const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::Bf16, Precision::Q8, Precision::Q8WithBytes];

/// Returns the activations as a product sees them.
pub(super) fn seen(x: &[f32], inputs: usize, precision: Precision) -> Vec<f32> {
    if !precision.is_bytes() {
        return x.to_vec();
    }
    let blocks = inputs.div_ceil(32);
    let (mut high, mut low, mut scales) = (vec![0; blocks * 32], vec![0; blocks * 32], vec![0.0; blocks]);
    x.chunks_exact(inputs)
        .flat_map(|row| {
            let radix = if precision == Precision::Q8 {
                bytes::quantize_row(row, &mut high, &mut low, &mut scales);
                RADIX
            } else {
                bytes::quantize_row_to_bytes(row, &mut high, &mut scales);
                1
            };
            let number = |input: usize| radix * i32::from(high[input]) + i32::from(low[input]);
            (0..inputs).map(|input| number(input) as f32 * scales[input / 32]).collect::<Vec<_>>()
        })
        .collect()
}

/// Numbers of outputs and inputs, with and without a remainder in panels and blocks.
const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (17, 3),
    (16, 16),
    (5, 33),
    (31, 64),
    (32, 31),
    (33, 100),
    (64, 96),
    (100, 65),
    (48, 300),
    (20, 1100),
    (192, 577),
];

#[test]
fn products_equal_naive_ones_over_odd_shapes_and_any_number_of_rows() {
    for level in Level::available() {
        for precision in PRECISIONS {
            for (outputs, inputs) in SHAPES {
                let weight = values(outputs * inputs, outputs);
                let panels = Panels::pack_for(level, &weight, outputs, inputs, precision);
                let held = unpacked(&panels);
                for rows in [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 25, 96, 97, 100] {
                    let x = values(rows * inputs, 7 * rows + inputs);
                    let exact = naive(&seen(&x, inputs, precision), &held, outputs, inputs);
                    let what = format!("{level:?} {precision:?} {outputs}x{inputs}, {rows} rows");
                    let tolerance = 4e-6 * (inputs as f64).sqrt().max(4.0);
                    assert_close(&one(&panels, &x, rows, Start::Zero), &exact, tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn a_product_starts_from_a_bias_or_from_rows() {
    let (outputs, inputs, rows) = (41, 700, 21);
    let (weight, x) = (values(outputs * inputs, 1), values(rows * inputs, 2));
    let (bias, residual) = (values(outputs, 3), values(rows * outputs, 4));
    for level in Level::available() {
        for precision in PRECISIONS {
            let panels = Panels::pack_for(level, &weight, outputs, inputs, precision);
            let plain = one(&panels, &x, rows, Start::Zero);
            let sum = |add: &dyn Fn(usize) -> f32| -> Vec<f64> {
                plain.iter().enumerate().map(|(place, y)| f64::from(*y) + f64::from(add(place))).collect()
            };
            let what = format!("{level:?} {precision:?}");
            let expected = sum(&|place| bias[place % outputs]);
            assert_close(&one(&panels, &x, rows, Start::Bias(&bias)), &expected, 2e-5, &what);
            let expected = sum(&|place| residual[place]);
            assert_close(&one(&panels, &x, rows, Start::Rows(&residual)), &expected, 2e-5, &what);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    let (outputs, inputs) = (83, 650);
    let weight = values(outputs * inputs, 1);
    let x = values(100 * inputs, 2);
    for level in Level::available() {
        for precision in PRECISIONS {
            let panels = Panels::pack_for(level, &weight, outputs, inputs, precision);
            let alone: Vec<f32> = x.chunks_exact(inputs).flat_map(|row| one(&panels, row, 1, Start::Zero)).collect();
            for rows in 1..=100 {
                // The last rows of x, so that each row stands in many places.
                let first = 100 - rows;
                let together = one(&panels, &x[first * inputs..], rows, Start::Zero);
                let same = together.iter().zip(&alone[first * outputs..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{level:?} {precision:?}, {rows} rows");
            }
        }
    }
}

#[test]
fn products_of_one_fork_equal_those_of_their_own() {
    let (inputs, rows) = (200, 33);
    let x = values(rows * inputs, 9);
    for level in Level::available() {
        for precision in PRECISIONS {
            let weights: Vec<Panels> = [40, 7, 300]
                .iter()
                .map(|&outputs| Panels::pack_for(level, &values(outputs * inputs, outputs), outputs, inputs, precision))
                .collect();
            let all: Vec<_> = weights.iter().map(|panels| Product { panels, start: Start::Zero }).collect();
            for (panels, y) in weights.iter().zip(products(&x, rows, &all)) {
                assert_eq!(y, one(panels, &x, rows, Start::Zero), "{level:?} {precision:?}");
            }
        }
    }
}

#[test]
fn gradients_equal_naive_ones() {
    for level in Level::available() {
        for precision in PRECISIONS {
            for (outputs, inputs) in SHAPES.into_iter().chain([(1100, 40)]) {
                let panels = Panels::pack_for(level, &values(outputs * inputs, inputs), outputs, inputs, precision);
                let held = unpacked(&panels);
                let transposed: Vec<f32> =
                    (0..inputs).flat_map(|input| held.iter().skip(input).step_by(inputs).copied()).collect();
                for rows in [1, 2, 17, 100] {
                    let dy = values(rows * outputs, rows);
                    let exact = naive(&dy, &transposed, inputs, outputs);
                    let what = format!("{level:?} {precision:?} {outputs}x{inputs}, {rows} rows");
                    assert_close(&panels.gradient(&dy, rows), &exact, 4e-6 * (outputs as f64).sqrt().max(4.0), &what);
                }
            }
        }
    }
}

#[test]
fn packing_keeps_what_the_precision_can_hold() {
    let (outputs, inputs) = (37, 75);
    let weight = values(outputs * inputs, 5);
    for level in Level::available() {
        let panels = Panels::pack_for(level, &weight, outputs, inputs, Precision::F32);
        assert_eq!(unpacked(&panels), weight);
        assert_eq!(panels.bytes(), 48 * inputs * 4);
        let panels = Panels::pack_for(level, &weight, outputs, inputs, Precision::Bf16);
        let rounded: Vec<f32> = weight.iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect();
        assert_eq!(unpacked(&panels), rounded);
        assert_eq!(panels.bytes(), 48 * (inputs + 1) * 2);
        let panels = Panels::pack_for(level, &weight, outputs, inputs, Precision::Q8);
        for (held, exact) in unpacked(&panels).chunks(inputs).zip(weight.chunks(inputs)) {
            for (held, exact) in held.chunks(32).zip(exact.chunks(32)) {
                let half_a_step = exact.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 254.0;
                assert!(held.iter().zip(exact).all(|(held, exact)| (held - exact).abs() <= half_a_step * 1.0001));
            }
        }
        assert_eq!(panels.bytes(), 48 * 96 * 9 / 8);
    }
}

#[test]
fn what_is_not_a_number_stays_so_in_every_precision() {
    let (outputs, inputs) = (20, 70);
    for level in Level::available() {
        for precision in PRECISIONS {
            let panels = Panels::pack_for(level, &values(outputs * inputs, 1), outputs, inputs, precision);
            for fault in [f32::NAN, f32::INFINITY] {
                let mut x = values(2 * inputs, 2);
                x[40] = fault;
                let y = one(&panels, &x, 2, Start::Zero);
                assert!(y[..outputs].iter().all(|y| !y.is_finite()), "{level:?} {precision:?} {fault}");
                assert!(y[outputs..].iter().all(|y| y.is_finite()), "{level:?} {precision:?} {fault}");
            }
            let nothing = one(&panels, &vec![0.0; inputs], 1, Start::Zero);
            assert!(nothing.iter().all(|y| *y == 0.0), "{level:?} {precision:?}");
        }
    }
}

#[test]
fn what_bf16_holds_exactly_is_held_in_bf16_and_gives_the_same_bits() {
    let (outputs, inputs, rows) = (50, 700, 19);
    let x = values(rows * inputs, 1);
    let exact: Vec<f32> =
        values(outputs * inputs, 2).iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect();
    let tensor = |values: &[f32]| Tensor::from_slice(values, (outputs, inputs), &Device::Cpu).unwrap();
    let held = Panels::of(&tensor(&exact), Precision::F32).unwrap();
    let plain = Panels::pack(&exact, outputs, inputs, Precision::F32);
    assert_eq!((held.held, plain.held), (Held::Rounded(Precision::Bf16), Held::Rounded(Precision::F32)));
    assert_eq!(one(&held, &x, rows, Start::Zero), one(&plain, &x, rows, Start::Zero));
    let dy = values(rows * outputs, 3);
    assert_eq!(held.gradient(&dy, rows), plain.gradient(&dy, rows));

    let mut other = exact;
    other[12_345] = 0.1;
    let other = Panels::of(&tensor(&other), Precision::F32).unwrap();
    assert_eq!(other.held, Held::Rounded(Precision::F32), "one value is enough");
    // Layers of both kinds share an input.
    let shared = Tensor::from_slice(&x, (rows, inputs), &Device::Cpu).unwrap();
    let outputs = project(&shared, &[(&held, None), (&other, None), (&held, None)]).unwrap();
    for (output, panels) in outputs.iter().zip([&held, &other, &held]) {
        assert_eq!(output.flatten_all().unwrap().to_vec1::<f32>().unwrap(), one(panels, &x, rows, Start::Zero));
    }
}

#[test]
fn small_matrices_multiply_in_both_layouts_and_a_row_has_the_same_bits_in_any_company() {
    for level in Level::available() {
        for (rows, depth, width) in [(1, 40, 16), (3, 17, 8), (16, 64, 1), (29, 8, 77), (30, 33, 64)] {
            let (x, before) = (values(rows * depth, 1), values(rows * width, 2));
            let weight = values(width * depth, 3).into_iter().map(half::bf16::from_f32).collect::<Vec<_>>();
            let wide: Vec<f32> = weight.iter().map(|value| value.to_f32()).collect();
            let exact: Vec<f64> = naive(&x, &wide, width, depth)
                .into_iter()
                .zip(&before)
                .map(|(product, before)| product + f64::from(*before))
                .collect();
            // Values after a line's own must not matter.
            let mut lines = vec![half::bf16::NAN; depth * width + 15];
            let mut panels = vec![half::bf16::NAN; depth * width.next_multiple_of(16)];
            for (output, row) in weight.chunks_exact(depth).enumerate() {
                for (input, value) in row.iter().enumerate() {
                    lines[input * width + output] = *value;
                    panels[output / 16 * depth * 16 + input * 16 + output % 16] = *value;
                }
            }
            let floats = |values: &[half::bf16]| values.iter().map(|value| value.to_f32()).collect::<Vec<_>>();
            let (wide_lines, wide_panels) = (floats(&lines), floats(&panels));
            let run = |matrix: Narrow<'_, half::bf16>, x: &[f32], before: &[f32]| {
                let mut y = before.to_vec();
                // SAFETY: the CPU has the instruction set.
                unsafe { add_product_for(level, &mut y, x, x.len() / depth, matrix, std::ptr::null()) };
                y
            };
            let ours = run(Narrow::lines(&lines, depth, width), &x, &before);
            assert_close(&ours, &exact, 1e-4, &format!("{level:?}, {rows} rows of {depth}, {width} columns"));
            assert_eq!(ours, run(Narrow::panels(&panels, depth, width), &x, &before));
            for narrow in [Narrow::lines(&wide_lines, depth, width), Narrow::panels(&wide_panels, depth, width)] {
                let mut y = before.clone();
                // SAFETY: as above.
                unsafe { add_product_for(level, &mut y, &x, rows, narrow, std::ptr::null()) };
                assert_eq!(ours, y, "widened before");
            }
            for (row, x) in x.chunks_exact(depth).enumerate() {
                let place = row * width..(row + 1) * width;
                let alone = run(Narrow::panels(&panels, depth, width), x, &before[place.clone()]);
                assert_eq!(alone, ours[place], "row {row}");
            }
        }
    }
}

#[test]
fn activations_keep_sixteen_bits_or_eight() {
    let x = [values(95, 3), vec![1.0, -1.0, 0.0, 1e-40]].concat();
    for (precision, steps) in [(Precision::Q8, 32512.0), (Precision::Q8WithBytes, 127.0)] {
        for (number, (seen, x)) in seen(&x, x.len(), precision).iter().zip(&x).enumerate() {
            // Half a step of the block's largest value, which is 1 at most.
            assert!((seen - x).abs() <= 0.51 / steps, "{number}: {seen} instead of {x}");
        }
    }
}
