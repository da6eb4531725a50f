//! Frozen weights packed for products on the CPU, and the products: `x · Wᵀ` for the forward pass, `dy · W` for the
//! backward pass. Called by `model::linear`.
//!
//! A **panel** holds 16 output rows of the weight, the input (the *depth*) outermost, so that a micro-kernel reads one
//! stream and each load yields one input's weights for 16 outputs. Weights are f32, bf16 or whole numbers of 4 to 8 bits.
//! Arithmetic is f32; with whole numbers, activations become whole numbers of 16 bits, or of 8 where that is asked for.
//! The last panel is filled up with zeros.
//!
//! | file | what it does |
//! |---|---|
//! | `level` | the instruction sets, and the best one of the CPU |
//! | `lines` | the memory of panels |
//! | `pack` | packs weights into panels, and unpacks rows and tiles of them |
//! | `product`, `dispatch` | the loops around the micro-kernels, compiled for each instruction set |
//! | `lanes`, `portable`, `x86` | 16 values at a time, in each instruction set |
//! | `float`, `bytes` | the kernels for f32 and bf16, and for 8 bit |
//! | `coded` | panels with the very values of quantized checkpoints, in 4 to 8 bits |
//! | `narrow` | products with the small matrices of adapters |
//! | `gradient` | `dy · W`, from panels of the transposed weight that are made on the way |
//! | `unpacked` | products of two matrices that are not packed |
//! | `share` | spreads units of work over the threads |
//! | `tensors` | the same products on tensors |
//!
//! A row's result does not depend on the rows beside it: every sum runs in the same order for every number of rows.
//! This is why the same seed gives the same text whatever else is in the batch.

mod bytes;
mod coded;
mod dispatch;
mod float;
mod gradient;
mod lanes;
mod level;
mod lines;
pub(super) mod narrow;
mod pack;
mod portable;
mod product;
mod share;
mod tensors;
#[cfg(test)]
mod tests;
pub(super) mod unpacked;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use coded::Code;
pub use level::Level;
pub(super) use share::share;
pub use tensors::{project, project_into, project_onto};

use bytemuck::{Pod, Zeroable};
use bytes::{Activations, ByteRows, Q8, Wanted};
use coded::with_code;
use float::{Bf16, F32, FloatRows};
use lines::Lines;
use product::{Job, UNIT_PANELS, chunks};

/// Output rows of a panel.
pub(super) const LANES: usize = 16;

/// Storage format of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight.
    Bf16,
    /// 9 bits a weight: 8 and a scale for each 32 inputs; activations are rounded to 16 bits.
    Q8,
    /// The same weights; activations are rounded to 8 bits, with a scale for each 32 inputs.
    Q8WithBytes,
}

impl Precision {
    /// Returns true if weights are whole numbers of 8 bits.
    fn is_bytes(self) -> bool {
        matches!(self, Self::Q8 | Self::Q8WithBytes)
    }
}

/// What panels hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Weights rounded to a precision.
    Rounded(Precision),
    /// The numbers and factors of a quantized checkpoint; activations are rounded to 16 bits.
    Coded(Code),
}

/// A cache line of packed weights.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A frozen weight `[outputs, inputs]` in panels.
#[derive(Debug)]
pub struct Panels {
    lines: Lines,
    lines_per_panel: usize,
    outputs: usize,
    inputs: usize,
    /// `inputs`, rounded up to whole blocks if the format has blocks.
    padded_inputs: usize,
    held: Held,
    level: Level,
    /// Values of coded weights whose numbers stand for a table's entries: signed bytes, then the same plus 128.
    table: [u8; 32],
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

    /// Lets activations be rounded to 8 bits if the weights are in [`Precision::Q8`].
    #[must_use]
    pub fn with_byte_activations(self) -> Self {
        match self.held {
            Held::Rounded(Precision::Q8) => Self { held: Held::Rounded(Precision::Q8WithBytes), ..self },
            _ => self,
        }
    }

    fn count(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    fn panel_bytes(&self) -> usize {
        self.lines_per_panel * size_of::<Line>()
    }

    /// Returns what a product asks of activations; `None` if it takes them in f32.
    fn wanted(&self) -> Option<Wanted> {
        match self.held {
            Held::Rounded(Precision::F32 | Precision::Bf16) => None,
            Held::Rounded(Precision::Q8) => Some(self.wanted_bytes(2)),
            Held::Rounded(Precision::Q8WithBytes) => Some(self.wanted_bytes(1)),
            Held::Coded(code) => Some(code.layout().wanted(self.padded_inputs, self.level)),
        }
    }

    /// Returns what weights in [`Q8`] ask of activations of so many bytes.
    fn wanted_bytes(&self, bytes: usize) -> Wanted {
        let zero = if self.level.offsets_bytes() { 128 } else { 0 };
        Wanted { width: self.padded_inputs, bytes, halves: 1, zero }
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
/// width; they share one fork, so that small ones do not pay for their own.
pub fn products(x: &[f32], rows: usize, products: &[Product<'_>]) -> Vec<Vec<f32>> {
    let Some(Product { panels: first, .. }) = products.first() else { return Vec::new() };
    assert_eq!(x.len(), rows * first.inputs, "activations have the weight's width");
    let mut outputs = Vec::with_capacity(products.len());
    let mut jobs = Vec::with_capacity(products.len());
    let activations = quantized(x, rows, products);
    for Product { panels, start } in products {
        assert_eq!(panels.inputs, first.inputs, "weights of one call have one width");
        let (start, length, start_stride) = match start {
            Start::Zero => (&[][..], 0, 0),
            Start::Bias(bias) => (*bias, panels.outputs, 0),
            Start::Rows(values) => (*values, rows * panels.outputs, panels.outputs),
        };
        assert_eq!(start.len(), length, "what a product starts from has the output's size");
        let start = if start.is_empty() { std::ptr::null() } else { start.as_ptr() };
        let mut y: Vec<f32> = Vec::with_capacity(rows * panels.outputs);
        let job = Job { panels, start, start_stride, y: y.as_mut_ptr(), y_stride: panels.outputs };
        let wanted = panels.wanted();
        let bytes = activations.iter().find(|activations| wanted == Some(activations.wanted()));
        jobs.push((job, bytes.map(Activations::rows)));
        outputs.push(y);
    }
    run(FloatRows { values: x.as_ptr(), stride: first.inputs }, rows, &jobs);
    for (y, product) in outputs.iter_mut().zip(products) {
        // SAFETY: the units covered every row and column.
        unsafe { y.set_len(rows * product.panels.outputs) };
    }
    outputs
}

/// Adds `x · Wᵀ` to `y`, `[rows, out]`, in place; `x` is `[rows, in]`.
pub fn add_product(y: &mut [f32], x: &[f32], rows: usize, panels: &Panels) {
    assert!(x.len() == rows * panels.inputs && y.len() == rows * panels.outputs, "rows have the weight's sizes");
    let activations = quantized(x, rows, &[Product { panels, start: Start::Zero }]);
    let y = y.as_mut_ptr();
    let job = Job { panels, start: y.cast_const(), start_stride: panels.outputs, y, y_stride: panels.outputs };
    let floats = FloatRows { values: x.as_ptr(), stride: panels.inputs };
    run(floats, rows, &[(job, activations.first().map(Activations::rows))]);
}

/// Returns the activations as whole numbers, once for each form that one of the products asks for.
fn quantized(x: &[f32], rows: usize, products: &[Product<'_>]) -> Vec<Activations> {
    let mut activations: Vec<Activations> = Vec::new();
    for panels in products.iter().map(|product| product.panels) {
        if let Some(wanted) = panels.wanted()
            && activations.iter().all(|activations| activations.wanted() != wanted)
        {
            activations.push(Activations::quantize(x, rows, panels.inputs, wanted));
        }
    }
    activations
}

fn run(floats: FloatRows, rows: usize, jobs: &[(Job<'_>, Option<ByteRows>)]) {
    let chunks = chunks(rows);
    let units: Vec<(&Job<'_>, Option<ByteRows>, usize)> = jobs
        .iter()
        .flat_map(|(job, bytes)| (0..job.panels.count()).step_by(UNIT_PANELS).map(move |panel| (job, *bytes, panel)))
        .collect();
    let weights: usize = jobs.iter().map(|(job, _)| job.panels.outputs * job.panels.inputs).sum();
    share(chunks.len() * units.len(), rows * weights, |index| {
        let (job, bytes, panel) = units[index % units.len()];
        let rows = chunks[index / units.len()].clone();
        // SAFETY: sizes were checked, each unit is done once, and panels are packed for a level that the CPU has.
        unsafe {
            match (job.panels.held, bytes) {
                (Held::Rounded(Precision::F32), _) => dispatch::run::<_, F32>(job, floats, rows, panel),
                (Held::Rounded(Precision::Bf16), _) => dispatch::run::<_, Bf16>(job, floats, rows, panel),
                (Held::Rounded(Precision::Q8), Some(x)) => dispatch::run::<_, Q8<2>>(job, x, rows, panel),
                (Held::Rounded(Precision::Q8WithBytes), Some(x)) => dispatch::run::<_, Q8<1>>(job, x, rows, panel),
                (Held::Coded(code), Some(x)) => with_code!(code, F => dispatch::run::<_, F>(job, x, rows, panel)),
                (_, None) => unreachable!("activations were quantized for each product that takes bytes"),
            }
        }
    });
}
