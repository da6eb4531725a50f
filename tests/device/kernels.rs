//! Checks the GPU's kernels, run on the CPU thread by thread, against the same formulas in plain candle operations.

mod adapters;
mod attention;
mod both_ways;
mod convolutions;
mod draws;

use attune::model::kernels::{Activation, Dense, LogitForm, Norm, cuda, reference};
use attune::model::rope::Angles;
use candle_core::{DType, Device, Tensor};

use crate::emulator::{Emulator, SANITIZER};

const CPU: Device = Device::Cpu;

fn is_sanitized() -> bool {
    std::env::var_os(SANITIZER).is_some()
}

/// Runs `test` for each type of element, with the relative error of rounding to it, and each order of threads; one
/// order is enough for a sanitizer, which detects missing synchronisation itself.
fn each(test: impl Fn(&Emulator, DType, f32)) {
    let orders: &[bool] = if is_sanitized() { &[false] } else { &[false, true] };
    for &reversed in orders {
        for (dtype, rounding) in [(DType::F32, 1e-5), (DType::BF16, 8e-3), (DType::F16, 1e-3)] {
            // The code is the same as bf16's.
            if dtype != DType::F16 || orders.len() > 1 {
                test(&Emulator { reversed }, dtype, rounding);
            }
        }
    }
}

/// Does the same for tests that take minutes with a sanitizer, which run with bf16 alone: the code is the same for all
/// types.
fn each_but_few_sanitized(test: impl Fn(&Emulator, DType, f32)) {
    each(|emulator, dtype, rounding| {
        if !is_sanitized() || dtype == DType::BF16 {
            test(emulator, dtype, rounding);
        }
    });
}

/// Returns values of about normal size as `dtype` holds them, the same in every run.
fn random(shape: impl Into<candle_core::Shape>, seed: u64, dtype: DType) -> Tensor {
    use rand::{Rng, SeedableRng};
    let shape = shape.into();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| random.random_range(-1.5..1.5)).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap().to_dtype(dtype).unwrap()
}

/// Returns the same values in f32.
fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F32).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    wide(tensor).flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares `ours` with the exact values: off by at most `rounding`, relative to the largest of them.
#[track_caller]
fn assert_close(ours: &Tensor, exact: &Tensor, rounding: f32) {
    assert_eq!(ours.shape(), exact.shape());
    let exact = floats(exact);
    let largest = exact.iter().fold(1.0_f32, |largest, value| largest.max(value.abs()));
    let difference = floats(ours)
        .iter()
        .zip(&exact)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most: f32, difference| if difference.is_nan() { f32::INFINITY } else { most.max(difference) });
    assert!(difference <= rounding * largest, "differ by {difference:e}, the largest is {largest}");
}

#[test]
fn norms_and_their_gradients() {
    each(|emulator, dtype, rounding| {
        for (rows, width) in [(3, 576), (5, 40), (1, 1030), (4, 77)] {
            let (x, dy) = (random((rows, width), 1, dtype), random((rows, width), 2, dtype));
            let weight = random(width, 3, DType::F32);
            let y = cuda::elementwise::rms_norm(emulator, &x, &weight, 1e-5).unwrap();
            assert_close(&y, &reference::rms_norm(&wide(&x), &weight, 1e-5).unwrap(), rounding);
            let dx = cuda::elementwise::rms_norm_backward(emulator, &x, &weight, 1e-5, &dy, None).unwrap();
            let exact = reference::rms_norm_backward(&wide(&x), &weight, 1e-5, &wide(&dy)).unwrap();
            assert_close(&dx, &exact, rounding);
            let sum = cuda::elementwise::rms_norm_backward(emulator, &x, &weight, 1e-5, &dy, Some(&y)).unwrap();
            assert_close(&sum, &(wide(&y) + exact).unwrap(), rounding);
        }
    });
}

/// Rows whose mean is far from zero lose no digits, and a width that is no whole number of vectors counts no zeros.
#[test]
fn layer_norms_and_their_gradients() {
    each(|emulator, dtype, rounding| {
        for (rows, width) in [(3, 576), (5, 40), (1, 1030), (4, 77), (2, 8192)] {
            let (x, dy) = ((random((rows, width), 1, dtype) + 8.0).unwrap(), random((rows, width), 2, dtype));
            let (weight, bias) = (random(width, 3, DType::F32), random(width, 4, DType::F32));
            let [wide_x, wide_dy, wide_weight] = [&x, &dy, &weight].map(|values| values.to_dtype(DType::F64).unwrap());
            for bias in [None, Some(&bias)] {
                let y = cuda::elementwise::layer_norm(emulator, &x, &weight, bias, 1e-5).unwrap();
                let wide_bias = bias.map(|bias| bias.to_dtype(DType::F64).unwrap());
                let exact = reference::layer_norm(&wide_x, &wide_weight, wide_bias.as_ref(), 1e-5).unwrap();
                assert_close(&y, &exact, rounding);
            }
            let residual = random((rows, width), 5, dtype);
            let exact = wide(&reference::layer_norm_backward(&wide_x, &wide_weight, 1e-5, &wide_dy).unwrap());
            let dx = cuda::elementwise::layer_norm_backward(emulator, &x, &weight, 1e-5, &dy, None).unwrap();
            assert_close(&dx, &exact, rounding);
            let sum =
                cuda::elementwise::layer_norm_backward(emulator, &x, &weight, 1e-5, &dy, Some(&residual)).unwrap();
            assert_close(&sum, &(wide(&residual) + exact).unwrap(), rounding);
        }
    });
}

#[test]
fn rotations_forwards_and_backwards() {
    each(|emulator, dtype, rounding| {
        let (q, k) = (random((7, 3, 10), 1, dtype), random((7, 1, 10), 4, dtype));
        // All of a head, and its first elements alone.
        for (half, direction) in [(5, 1.0_f32), (5, -1.0), (3, 1.0), (3, -1.0)] {
            let [cos, sin] = [2, 3].map(|seed| random((7, half), seed, DType::F32));
            let angles = Angles { cos, sin, query_scale: None };
            let (rotated_q, rotated_k) = cuda::elementwise::rope(emulator, &q, &k, &angles, direction).unwrap();
            assert_close(&rotated_q, &reference::rope(&wide(&q), &angles, direction.into()).unwrap(), rounding);
            assert_close(&rotated_k, &reference::rope(&wide(&k), &angles, direction.into()).unwrap(), rounding);
        }
    });
}

/// Few rows, for which we have a kernel of our own, and more; also inputs that are no whole number of vectors.
const INPUTS: [(usize, usize); 5] = [(1, 328), (3, 64), (4, 16), (2, 9), (7, 64)];

fn exact_product(x: &Tensor, matrix: &Dense<'_>) -> Tensor {
    let mut exact = reference::linear(x, &wide(matrix.weight)).unwrap();
    for added in matrix.bias.into_iter().chain(matrix.residual) {
        exact = exact.broadcast_add(&wide(added)).unwrap();
    }
    exact
}

#[test]
fn products_of_layers_that_share_an_input() {
    each(|emulator, dtype, rounding| {
        for (rows, input) in INPUTS {
            let x = random((rows, input), 1, dtype);
            let weights = [40, 6, 19].map(|width| random((width, input), width as u64, dtype));
            let (bias, residual) = (random(6, 2, dtype), random((rows, 19), 3, dtype));
            let matrices = [(None, None), (Some(&bias), None), (None, Some(&residual))];
            let matrices: Vec<Dense<'_>> = (weights.iter().zip(matrices))
                .map(|(weight, (bias, residual))| Dense { weight, bias, residual })
                .collect();
            let weight = random(input, 4, DType::F32);
            for norm in [None, Some(Norm { weight: &weight, eps: 1e-5 })] {
                let normed =
                    norm.map_or(wide(&x), |norm| reference::rms_norm(&wide(&x), norm.weight, norm.eps).unwrap());
                let ours = cuda::product::project(emulator, &x, norm, &matrices).unwrap();
                for (matrix, ours) in matrices.iter().zip(&ours) {
                    assert_close(ours, &exact_product(&normed, matrix), rounding);
                }
            }
        }
    });
}

#[test]
fn products_that_are_added_to_a_residual() {
    each(|emulator, dtype, rounding| {
        for (rows, input) in INPUTS {
            let (x, weight) = (random((rows, input), 1, dtype), random((19, input), 2, dtype));
            let (bias, residual) = (random(19, 3, dtype), random((rows, 19), 4, dtype));
            for bias in [None, Some(&bias)] {
                let matrix = Dense { weight: &weight, bias, residual: None };
                let exact = exact_product(&wide(&x), &Dense { residual: Some(&residual), ..matrix });
                let fresh = residual.copy().unwrap();
                let ours = cuda::product::project_into(emulator, fresh, &x, matrix).unwrap();
                assert_close(&ours, &exact, rounding);
            }
            // As for gradients: the right matrix is not transposed.
            let (right, y) = (random((input, 23), 5, dtype), random((rows, 23), 6, dtype));
            let exact = (wide(&y) + wide(&x).matmul(&wide(&right)).unwrap()).unwrap();
            let ours = cuda::product::add_product(emulator, y.copy().unwrap(), &x, &right).unwrap();
            assert_close(&ours, &exact, rounding);
        }
    });
}

#[test]
fn a_gated_product_of_a_normed_input() {
    each(|emulator, dtype, rounding| {
        for (rows, input) in INPUTS {
            let x = random((rows, input), 1, dtype);
            let weights = [2, 3].map(|seed| (random((41, input), seed, dtype) * 0.2).unwrap());
            let bias = random(41, 4, dtype);
            let [gate, up] = [(0, Some(&bias)), (1, None)].map(|(index, bias)| Dense {
                weight: &weights[index],
                bias,
                residual: None,
            });
            let weight = random(input, 5, DType::F32);
            let norm = Norm { weight: &weight, eps: 1e-5 };
            let normed = reference::rms_norm(&wide(&x), norm.weight, norm.eps).unwrap();
            // With many rows four values are rounded one after the other: the normed input, both products, the result.
            let rounding = 2.0 * rounding;
            for (norm, x_of_products) in [(Some(norm), &normed), (None, &wide(&x))] {
                let exact = [gate, up].map(|matrix| exact_product(x_of_products, &matrix));
                for form in ACTIVATIONS {
                    let ours = cuda::product::project_gated(emulator, &x, norm, [gate, up], form).unwrap();
                    assert_close(&ours, &reference::gated(form, &exact[0], &exact[1]).unwrap(), rounding);
                }
            }
        }
    });
}

const ACTIVATIONS: [Activation; 4] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu];

#[test]
fn activations_without_a_gate_and_their_gradients() {
    each(|emulator, dtype, rounding| {
        for width in [77, 320] {
            // Also far from zero, where little or all of a value is left.
            let (x, dy) = ((random((5, width), 1, dtype) * 5.0).unwrap(), random((5, width), 2, dtype));
            let [wide_x, wide_dy] = [&x, &dy].map(|values| values.to_dtype(DType::F64).unwrap());
            for form in ACTIVATIONS {
                let y = cuda::elementwise::activated(emulator, form, &x).unwrap();
                assert_close(&y, &reference::activated(form, &wide_x).unwrap(), rounding);
                let dx = cuda::elementwise::activated_backward(emulator, form, &x, &dy).unwrap();
                assert_close(&dx, &reference::activated_backward(form, &wide_x, &wide_dy).unwrap(), rounding);
            }
        }
    });
}

#[test]
fn gated_activations_and_their_gradients() {
    each(|emulator, dtype, rounding| {
        for width in [77, 320] {
            let [gate, up, dy] = [1, 2, 3].map(|seed| random((5, width), seed, dtype));
            for form in ACTIVATIONS {
                let y = cuda::elementwise::gated(emulator, form, &gate, &up).unwrap();
                assert_close(&y, &reference::gated(form, &wide(&gate), &wide(&up)).unwrap(), rounding);
                let (dgate, dup) = cuda::elementwise::gated_backward(emulator, form, &gate, &up, &dy).unwrap();
                let exact = reference::gated_backward(form, &wide(&gate), &wide(&up), &wide(&dy)).unwrap();
                assert_close(&dgate, &exact.0, rounding);
                assert_close(&dup, &exact.1, rounding);
            }
        }
    });
}

#[test]
fn losses_and_their_gradients() {
    each(|emulator, dtype, rounding| {
        let logits = (random((5, 1500), 1, dtype) * 4.0).unwrap();
        let (targets, weights) = ([3, 1499, 0, 700, 9], [1.0, 0.5, 0.0, 2.0, 0.25]);
        for form in [LogitForm::PLAIN, LogitForm { scale: 0.3, cap: None }, LogitForm { scale: 1.5, cap: Some(3.0) }] {
            let exact = reference::cross_entropy(&wide(&logits), form, &targets, &weights).unwrap();
            let ours = cuda::loss::cross_entropy(emulator, &logits.copy().unwrap(), form, &targets, &weights).unwrap();
            let vector = |values: &[f32]| Tensor::new(values, &CPU).unwrap();
            assert_close(&vector(&ours.losses), &vector(&exact.losses), 1e-5);
            assert_eq!(ours.correct, exact.correct);
            assert_close(&ours.gradient, &exact.gradient, rounding);
            let ours = cuda::elementwise::to_logits(emulator, &logits, form).unwrap();
            assert_close(&ours, &reference::to_logits(&wide(&logits), form).unwrap(), rounding);
        }
    });
}

/// Covers more gradients than a launch takes, of sizes around the number of a block's threads.
#[test]
fn steps_of_the_optimizer_are_those_of_the_host() {
    use attune::train::optimizer::{AdamSettings, AdamW, global_norm};
    let settings = AdamSettings { weight_decay: 0.01, ..AdamSettings::default() };
    let (count, orders) = if is_sanitized() { (6, &[false][..]) } else { (150, &[false, true][..]) };
    let sizes: Vec<usize> = (0..count).map(|index| [1, 255, 256, 257, 40, 5000][index % 6]).collect();
    let of = |seed: u64| -> Vec<Vec<f32>> {
        sizes.iter().enumerate().map(|(index, size)| floats(&random(*size, seed + index as u64, DType::F32))).collect()
    };
    let tensor = |values: &[Vec<f32>]| Tensor::new(values.concat(), &CPU).unwrap();
    for &reversed in orders {
        let emulator = Emulator { reversed };
        let mut values = of(1);
        let mut optimizer = AdamW::new(settings, &values);
        let zeros = || Tensor::zeros(values.iter().map(Vec::len).sum::<usize>(), DType::F32, &CPU).unwrap();
        let (ours, first, second) = (tensor(&values), zeros(), zeros());
        for step in 0..3 {
            let gradients = of(1000 * (step + 1));
            let tensors: Vec<Tensor> =
                gradients.iter().map(|gradient| Tensor::new(gradient.as_slice(), &CPU).unwrap()).collect();
            let norm = cuda::optimizer::sum_of_squares(&emulator, &tensors).unwrap().sqrt();
            assert!((norm / global_norm(&gradients) - 1.0).abs() < 1e-12);
            let by = optimizer.advance(1e-2, 0.7);
            optimizer.update(by, &mut values, &gradients);
            cuda::optimizer::adam_w(&emulator, [&ours, &first, &second], &tensors, by).unwrap();
            assert_close(&ours, &tensor(&values), 1e-6);
        }
        let moments = |which: fn(&attune::train::optimizer::Moments) -> &Vec<f32>| -> Vec<Vec<f32>> {
            optimizer.moments.iter().map(|moments| which(moments).clone()).collect()
        };
        assert_close(&first, &tensor(&moments(|moments| &moments.first)), 1e-6);
        assert_close(&second, &tensor(&moments(|moments| &moments.second)), 1e-6);
    }
}
