//! Frozen weights packed for products on the CPU, and the products: `x · Wᵀ` for the forward pass, `dy · W` for the
//! backward pass. Called by `model::linear`.
//!
//! A **panel** holds 16 output rows of the weight, the input (the *depth*) outermost, so that a micro-kernel reads one
//! stream and each load yields one input's weights for 16 outputs. Weights are f32, bf16 or 8 bit. Arithmetic is f32;
//! with 8-bit weights, activations become 8 bit too. The last panel is filled up with zeros.
//!
//! | file | what it does |
//! |---|---|
//! | `level` | the instruction sets, and the best one of the CPU |
//! | `pack` | packs weights into panels, and unpacks rows and tiles of them |
//! | `product`, `dispatch` | the loops around the micro-kernels, compiled for each instruction set |
//! | `lanes`, `portable`, `x86` | 16 values at a time, in each instruction set |
//! | `float`, `bytes` | the kernels for f32 and bf16, and for 8 bit |
//! | `narrow` | products with the small matrices of adapters |
//! | `gradient` | `dy · W`, from panels of the transposed weight that are made on the way |
//! | `share` | spreads units of work over the threads |
//! | `tensors` | the same products on tensors |
//!
//! A row's result does not depend on the rows beside it: every sum runs in the same order for every number of rows.
//! This is why the same seed gives the same text whatever else is in the batch.

mod bytes;
mod dispatch;
mod float;
mod gradient;
mod lanes;
mod level;
pub(super) mod narrow;
mod pack;
mod portable;
mod product;
mod share;
mod tensors;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use level::Level;
pub(super) use share::share;
pub use tensors::{project, project_onto};

use bytemuck::{Pod, Zeroable};
use bytes::{Activations, Q8};
use float::{Bf16, F32, FloatRows};
use product::{Input, Job, UNIT_PANELS, chunks};

/// Output rows of a panel.
pub(super) const LANES: usize = 16;

/// Storage format of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight.
    Bf16,
    /// 9 bits a weight: 8 and a scale for each 32 inputs; activations are rounded likewise.
    Q8,
}

/// A cache line of packed weights.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A frozen weight `[outputs, inputs]` in panels.
#[derive(Debug)]
pub struct Panels {
    lines: Vec<Line>,
    lines_per_panel: usize,
    outputs: usize,
    inputs: usize,
    /// `inputs`, rounded up to whole blocks if the format has blocks.
    padded_inputs: usize,
    precision: Precision,
    level: Level,
}

impl Panels {
    /// Returns the number of rows of the weight.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Returns the number of columns of the weight.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the memory of the weights, in bytes.
    pub fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    fn count(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    fn panel_bytes(&self) -> usize {
        self.lines_per_panel * size_of::<Line>()
    }

    /// Returns the address of a panel's start; beyond the last one, an address that may only be prefetched.
    fn panel(&self, index: usize) -> *const u8 {
        self.lines.as_ptr().wrapping_add(index * self.lines_per_panel).cast()
    }
}

/// Start values of a product's sums.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// Zeros.
    Zero,
    /// One value per output, the same for each row, `[out]`.
    Bias(&'a [f32]),
    /// One value per output and row, `[rows, out]`.
    Rows(&'a [f32]),
}

/// One product of [`products`].
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// The weight, `[out, in]`.
    pub panels: &'a Panels,
    /// Values that are added to the product.
    pub start: Start<'a>,
}

/// Computes `start + x · Wᵀ` for each weight, `[rows, out]`; `x` is `[rows, in]`. Weights of one call have the same
/// width and precision; they share one fork, so that small ones do not pay for their own.
pub fn products(x: &[f32], rows: usize, products: &[Product<'_>]) -> Vec<Vec<f32>> {
    let Some(Product { panels: first, .. }) = products.first() else { return Vec::new() };
    assert_eq!(x.len(), rows * first.inputs, "activations have the weight's width");
    let mut outputs = Vec::with_capacity(products.len());
    let mut jobs = Vec::with_capacity(products.len());
    for Product { panels, start } in products {
        assert!(
            panels.inputs == first.inputs && panels.precision == first.precision && panels.level == first.level,
            "weights of one call are of one kind"
        );
        let (start, length, start_stride) = match start {
            Start::Zero => (&[][..], 0, 0),
            Start::Bias(bias) => (*bias, panels.outputs, 0),
            Start::Rows(values) => (*values, rows * panels.outputs, panels.outputs),
        };
        assert_eq!(start.len(), length, "what a product starts from has the output's size");
        let start = if start.is_empty() { std::ptr::null() } else { start.as_ptr() };
        let mut y: Vec<f32> = Vec::with_capacity(rows * panels.outputs);
        jobs.push(Job { panels, start, start_stride, y: y.as_mut_ptr(), y_stride: panels.outputs });
        outputs.push(y);
    }
    let floats = FloatRows { values: x.as_ptr(), stride: first.inputs };
    match first.precision {
        Precision::F32 => run::<_, F32>(floats, rows, &jobs),
        Precision::Bf16 => run::<_, Bf16>(floats, rows, &jobs),
        Precision::Q8 => {
            let x = Activations::quantize(x, rows, first.inputs, first.padded_inputs, first.level);
            run::<_, Q8>(x.rows(), rows, &jobs);
        }
    }
    for (y, product) in outputs.iter_mut().zip(products) {
        // SAFETY: the units covered every row and column.
        unsafe { y.set_len(rows * product.panels.outputs) };
    }
    outputs
}

fn run<X: Input, F: dispatch::Everywhere<X>>(x: X, rows: usize, jobs: &[Job<'_>]) {
    let chunks = chunks(rows);
    let units: Vec<(&Job<'_>, usize)> = jobs
        .iter()
        .flat_map(|job| (0..job.panels.count()).step_by(UNIT_PANELS).map(move |panel| (job, panel)))
        .collect();
    let weights: usize = jobs.iter().map(|job| job.panels.outputs * job.panels.inputs).sum();
    share(chunks.len() * units.len(), rows * weights, |index| {
        let (job, panel) = units[index % units.len()];
        // SAFETY: sizes were checked, each unit is done once, and panels are packed for a level that the CPU has.
        unsafe { dispatch::run::<X, F>(job, x, chunks[index / units.len()].clone(), panel) };
    });
}
