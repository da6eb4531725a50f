//! Activations of gated MLPs and soft caps over slices, with their slopes, compiled for several instruction sets and
//! chosen at run time.

use multiversion::multiversion;

use super::vector::exp;
use crate::kernels::Activation;

/// 2 √(2/π): gelu-tanh(x) = x · σ(2 √(2/π) (x + 0.044715 x³)), since ½(1 + tanh u) = σ(2u).
const GELU: f32 = 1.595_769_2;
const GELU_CUBE: f32 = 0.044_715;

#[allow(clippy::inline_always, reason = "must be compiled into each version of the loops below")]
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[allow(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn gelu_sigmoid(x: f32) -> f32 {
    sigmoid(GELU * (x + GELU_CUBE * x * x * x))
}

/// Computes the hyperbolic tangent (Cephes' tanhf).
#[allow(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let far = (1.0 - 2.0 / (1.0 + exp(2.0 * size))).copysign(x);
    let square = x * x;
    let mut p = -5.704_988_7e-3_f32;
    p = p * square + 2.063_908_8e-2;
    p = p * square - 5.373_971_5e-2;
    p = p * square + 1.333_144_2e-1;
    p = p * square - 3.333_328e-1;
    let near = p * square * x + x;
    if size < 0.625 { near } else { far }
}

/// Computes erf(x), within 4e-7, by the quotient of two polynomials that Eigen and XLA take.
#[allow(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn erf(x: f32) -> f32 {
    let near = x.clamp(-4.0, 4.0);
    let square = near * near;
    let mut p = -2.726_142_3e-10_f32;
    p = p * square + 2.770_681_4e-8;
    p = p * square - 2.101_024e-6;
    p = p * square - 5.692_506_4e-5;
    p = p * square - 7.349_906_4e-4;
    p = p * square - 2.954_6e-3;
    p = p * square - 1.609_603_3e-2;
    let mut q = -1.456_607_2e-5_f32;
    q = q * square - 2.133_740_6e-4;
    q = q * square - 1.682_827e-3;
    q = q * square - 7.373_329_2e-3;
    q = q * square - 1.426_473_9e-2;
    // Beyond, the result is 1 in f32.
    if x.abs() < 4.0 || x.is_nan() { near * p / q } else { 1.0_f32.copysign(x) }
}

/// Returns the share of a normal distribution below `x`.
#[allow(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn normal_share(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}

/// Replaces each value x by activation(x).
pub(super) fn activate(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Silu => silu(values),
        Activation::GeluTanh => gelu_tanh(values),
        Activation::Gelu => gelu(values),
        Activation::Relu => values.iter_mut().for_each(|value| *value = value.max(0.0)),
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn silu(values: &mut [f32]) {
    for value in values {
        *value *= sigmoid(*value);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu_tanh(values: &mut [f32]) {
    for value in values {
        *value *= gelu_sigmoid(*value);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu(values: &mut [f32]) {
    for value in values {
        *value *= normal_share(*value);
    }
}

/// Multiplies each of `gradients` by the activation's slope at its x.
pub(super) fn multiply_slopes(activation: Activation, gradients: &mut [f32], x: &[f32]) {
    match activation {
        Activation::Silu => silu_slopes(gradients, x),
        Activation::GeluTanh => gelu_tanh_slopes(gradients, x),
        Activation::Gelu => gelu_slopes(gradients, x),
        Activation::Relu => {
            for (gradient, x) in gradients.iter_mut().zip(x) {
                *gradient = if *x > 0.0 { *gradient } else { 0.0 };
            }
        }
    }
}

/// The slope of silu is σ(x)(1 + x(1 − σ(x))).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn silu_slopes(gradients: &mut [f32], x: &[f32]) {
    for (gradient, &x) in gradients.iter_mut().zip(x) {
        let sigma = sigmoid(x);
        *gradient *= sigma * (1.0 + x * (1.0 - sigma));
    }
}

/// The slope of x · σ(z(x)) is σ(1 + x z'(1 − σ)), with z' = 2 √(2/π) (1 + 3 · 0.044715 x²).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu_tanh_slopes(gradients: &mut [f32], x: &[f32]) {
    for (gradient, &x) in gradients.iter_mut().zip(x) {
        let sigma = gelu_sigmoid(x);
        *gradient *= sigma * (1.0 + x * GELU * (1.0 + 3.0 * GELU_CUBE * x * x) * (1.0 - sigma));
    }
}

/// The slope of x · Φ(x) is Φ(x) + x · φ(x).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu_slopes(gradients: &mut [f32], x: &[f32]) {
    /// 1 / √(2π)
    const DENSITY: f32 = 0.398_942_3;
    for (gradient, &x) in gradients.iter_mut().zip(x) {
        *gradient *= normal_share(x) + x * DENSITY * exp(-0.5 * x * x);
    }
}

/// Computes `out = activation(gate) · up`.
pub(super) fn gated(activation: Activation, out: &mut [f32], gate: &[f32], up: &[f32]) {
    match activation {
        Activation::Silu => silu_gated(out, gate, up),
        Activation::GeluTanh => gelu_gated(out, gate, up),
        Activation::Gelu | Activation::Relu => {
            out.copy_from_slice(gate);
            activate(activation, out);
            multiply_each(out, up);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn silu_gated(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate * sigmoid(gate) * up;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu_gated(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate * gelu_sigmoid(gate) * up;
    }
}

/// Inputs of [`gated`], and the gradient of its output.
#[derive(Clone, Copy)]
pub(super) struct Gated<'a> {
    pub(super) gate: &'a [f32],
    pub(super) up: &'a [f32],
    pub(super) dy: &'a [f32],
}

/// Computes d gate = dy · up · activation'(gate) and d up = dy · activation(gate).
pub(super) fn gated_backward(activation: Activation, dgate: &mut [f32], dup: &mut [f32], saved: Gated<'_>) {
    let Gated { gate, up, dy } = saved;
    match activation {
        Activation::Silu => silu_backward(dgate, dup, gate, up, dy),
        Activation::GeluTanh => gelu_backward(dgate, dup, gate, up, dy),
        Activation::Gelu | Activation::Relu => {
            dup.copy_from_slice(gate);
            activate(activation, dup);
            multiply_each(dup, dy);
            dgate.copy_from_slice(dy);
            multiply_each(dgate, up);
            multiply_slopes(activation, dgate, gate);
        }
    }
}

/// The slope of silu is σ(g)(1 + g(1 − σ(g))).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn silu_backward(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
    for ((((dgate, dup), &gate), &up), &dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
        let sigma = sigmoid(gate);
        *dup = dy * gate * sigma;
        *dgate = dy * up * sigma * (1.0 + gate * (1.0 - sigma));
    }
}

/// The slope of g · σ(z(g)) is σ(1 + g z'(1 − σ)), with z' = 2 √(2/π) (1 + 3 · 0.044715 g²).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu_backward(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
    for ((((dgate, dup), &gate), &up), &dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
        let sigma = gelu_sigmoid(gate);
        let slope = GELU * (1.0 + 3.0 * GELU_CUBE * gate * gate);
        *dup = dy * gate * sigma;
        *dgate = dy * up * sigma * (1.0 + gate * slope * (1.0 - sigma));
    }
}

/// Replaces each value x by cap · tanh(scale · x / cap).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn soft_cap(values: &mut [f32], scale: f32, cap: f32) {
    let inner = scale / cap;
    for value in values {
        *value = cap * tanh(*value * inner);
    }
}

/// Writes the slope of cap · tanh(x / cap) at each x, from its values y: 1 − (y / cap)².
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn soft_cap_slopes(slopes: &mut [f32], values: &[f32], cap: f32) {
    for (slope, value) in slopes.iter_mut().zip(values) {
        let share = value / cap;
        *slope = 1.0 - share * share;
    }
}

/// Multiplies each value by its factor.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn multiply_each(values: &mut [f32], factors: &[f32]) {
    for (value, factor) in values.iter_mut().zip(factors) {
        *value *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_gelu_and_its_slope_are_those_of_the_error_function() {
        use candle_core::cpu::erf::erf_f64;
        for i in -6000..6000 {
            let x = i as f32 / 700.0;
            let wide = f64::from(x);
            let share = 0.5 * (1.0 + erf_f64(wide / std::f64::consts::SQRT_2));
            let density = (-0.5 * wide * wide).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let (mut value, mut slope) = ([x], [1.0]);
            activate(Activation::Gelu, &mut value);
            multiply_slopes(Activation::Gelu, &mut slope, &[x]);
            assert!((f64::from(value[0]) - wide * share).abs() <= 4e-7 * (1.0 + wide.abs()), "{x}: {}", value[0]);
            assert!((f64::from(slope[0]) - share - wide * density).abs() <= 1e-6, "{x}: {}", slope[0]);
        }
        for (x, expected) in [(40.0, 40.0), (-40.0, 0.0), (0.0, 0.0)] {
            let mut value = [x];
            activate(Activation::Gelu, &mut value);
            assert_eq!(value[0].abs().to_bits(), f32::to_bits(expected), "{x}");
        }
        let mut broken = [f32::NAN];
        activate(Activation::Gelu, &mut broken);
        assert!(broken[0].is_nan());
    }

    #[test]
    fn a_soft_cap_is_exact_near_zero_and_flat_far_away() {
        for i in -4000..4000 {
            let x = i as f32 / 37.0;
            let mut capped = [x];
            soft_cap(&mut capped, 1.0, 30.0);
            let exact = 30.0 * (f64::from(x) / 30.0).tanh();
            assert!((f64::from(capped[0]) - exact).abs() <= 8e-7 * exact.abs().max(1e-3), "{x}: {} {exact}", capped[0]);
        }
        for (x, expected) in [(f32::INFINITY, 30.0), (f32::NEG_INFINITY, -30.0), (1e30, 30.0), (0.0, 0.0)] {
            let mut capped = [x];
            soft_cap(&mut capped, 1.0, 30.0);
            assert_eq!(capped[0].to_bits(), f32::to_bits(expected), "{x}");
        }
        let mut broken = [f32::NAN];
        soft_cap(&mut broken, 1.0, 30.0);
        assert!(broken[0].is_nan());
    }
}
