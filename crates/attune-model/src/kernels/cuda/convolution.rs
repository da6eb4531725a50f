//! Gated short convolutions over packed sequences and over the paged cache, and their gradient, on a GPU.

use bytemuck::{Pod, Zeroable};
use candle_core::{DType, Tensor};

use super::launch::{Kernel, Launcher, Shape, launch, output};
use super::rows::{RowArguments, RowTables};
use crate::address::{VECTOR_BYTES, address};
use crate::kernels::Filters;
use crate::{Error, Result};

const CONVOLUTION: &str = include_str!("sources/convolution.cu");

/// The structure `Filters` of `convolution.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct FilterArguments {
    weight: u64,
    bias: u64,
    taps: u32,
    channels: u32,
}

impl FilterArguments {
    /// Returns the filters as the kernels take them. Tensors that are not held so are refused.
    fn of(filters: &Filters) -> Result<Self> {
        let (channels, taps) = filters.weight.dims2()?;
        let bias = filters.bias.as_ref();
        if filters.weight.dtype() != DType::F32
            || bias.is_some_and(|bias| bias.dtype() != DType::F32 || bias.dims() != [channels])
        {
            let shape = filters.weight.shape();
            return Err(Error::Internal(format!("filters {shape:?} and their biases must fit together, in f32")));
        }
        let bias = bias.map_or(Ok(0), address)?;
        Ok(Self { weight: address(&filters.weight)?, bias, taps: taps as u32, channels: channels as u32 })
    }

    /// Returns the shape of one thread for each of `rows` rows and each vector of channels.
    fn shape(&self, rows: usize, like: &Tensor) -> Shape {
        Shape::over(rows * (self.channels as usize * like.dtype().size_in_bytes()).div_ceil(VECTOR_BYTES))
    }
}

/// Arguments of kernels in `convolution.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Convolution {
    projected: u64,
    y: u64,
    inputs: u64,
    filters: FilterArguments,
    rows: RowArguments,
    count: u32,
    keeps: u32,
}

/// See [`packed_convolution`](crate::kernels::Kernels::packed_convolution); filters and biases are f32.
pub fn packed(launcher: &dyn Launcher, projected: &Tensor, filters: &Filters, tables: &RowTables) -> Result<Tensor> {
    convolution(launcher, projected, filters, None, tables)
}

/// See [`cached_convolution`](crate::kernels::Kernels::cached_convolution); filters and biases are f32.
///
/// Where sequences have several rows, the cache is written by a launch of its own: a slot that one row takes may be what
/// another still reads.
pub fn cached(
    launcher: &dyn Launcher,
    projected: &Tensor,
    filters: &Filters,
    inputs: &Tensor,
    tables: &RowTables,
) -> Result<Tensor> {
    convolution(launcher, projected, filters, Some(inputs), tables)
}

fn convolution(
    launcher: &dyn Launcher,
    projected: &Tensor,
    filters: &Filters,
    inputs: Option<&Tensor>,
    tables: &RowTables,
) -> Result<Tensor> {
    let filters = FilterArguments::of(filters)?;
    let (projected, rows) = (projected.contiguous()?, check(projected, &filters)?);
    // A filter of one tap looks back at nothing.
    let inputs = inputs.filter(|_| filters.taps > 1);
    if inputs.is_some_and(|inputs| inputs.dtype() != projected.dtype() || tables.slots().is_none()) {
        return Err(Error::Internal("a convolution's cache is of the type of its rows, which have slots there".into()));
    }
    let y = output((rows, filters.channels as usize), projected.dtype(), &projected)?;
    let arguments = Convolution {
        projected: address(&projected)?,
        y: address(&y)?,
        inputs: inputs.map_or(Ok(0), address)?,
        filters,
        rows: tables.arguments(None)?,
        count: rows as u32,
        keeps: u32::from(inputs.is_some() && tables.has_single_rows()),
    };
    let start = |name| {
        let kernel = Kernel::new(name, CONVOLUTION, projected.dtype())?;
        launch(launcher, kernel, &arguments, filters.shape(rows, &projected))
    };
    start("convolution")?;
    if inputs.is_some() && !tables.has_single_rows() {
        start("keep_inputs")?;
    }
    Ok(y)
}

/// Arguments of a kernel in `convolution.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ConvolutionBackward {
    projected: u64,
    dy: u64,
    gradient: u64,
    filters: FilterArguments,
    rows: RowArguments,
    count: u32,
    padding: u32,
}

/// See [`packed_convolution_backward`](crate::kernels::Kernels::packed_convolution_backward); filters and biases are f32.
pub fn packed_backward(
    launcher: &dyn Launcher,
    projected: &Tensor,
    filters: &Filters,
    dy: &Tensor,
    tables: &RowTables,
) -> Result<Tensor> {
    let filters = FilterArguments::of(filters)?;
    let (projected, dy, rows) = (projected.contiguous()?, dy.contiguous()?, check(projected, &filters)?);
    let gradient = output(projected.shape(), projected.dtype(), &projected)?;
    let arguments = ConvolutionBackward {
        projected: address(&projected)?,
        dy: address(&dy)?,
        gradient: address(&gradient)?,
        filters,
        rows: tables.arguments(None)?,
        count: rows as u32,
        padding: 0,
    };
    let kernel = Kernel::new("convolution_backward", CONVOLUTION, projected.dtype())?;
    launch(launcher, kernel, &arguments, filters.shape(rows, &projected))?;
    Ok(gradient)
}

/// Returns the number of rows of `projected`, which must be B, C and x of as many channels as the filters have.
fn check(projected: &Tensor, filters: &FilterArguments) -> Result<usize> {
    match projected.dims2()? {
        (rows, width) if width == 3 * filters.channels as usize => Ok(rows),
        (_, width) => {
            let channels = filters.channels;
            Err(Error::Internal(format!("{width} columns are not B, C and x of {channels} channels")))
        }
    }
}
