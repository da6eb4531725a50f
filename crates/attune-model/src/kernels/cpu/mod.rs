//! Our own f32 kernels for the CPU, spread over the one rayon pool, compiled for several instruction sets and chosen at
//! run time. Called through [`Kernels`](super::Kernels).

mod activations;
pub mod cached_attention;
pub mod convolution;
pub mod cross_entropy;
mod dots;
pub mod elementwise;
pub mod experts;
mod lanes;
pub mod layer_norm;
pub mod logits;
pub mod lora;
pub mod packed_attention;
pub mod panels;
pub mod product;
mod rows;
pub mod sinks;
mod vector;
mod view;

use std::sync::Arc;

use std::ops::{Deref, Range};
use std::sync::RwLockReadGuard;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Storage, Tensor};

use crate::{Error, Result};

/// The values of a contiguous f32 tensor on the CPU, read in place.
struct Values<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    range: Range<usize>,
}

impl<'a> Values<'a> {
    fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::Internal("a kernel was given a tensor that is not contiguous".into()));
        };
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_)) => Ok(Self { storage, range: start..end }),
            _ => Err(Error::Internal("a CPU kernel was given a tensor that is not f32 on the CPU".into())),
        }
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            // `of` accepts nothing else.
            _ => &[],
        }
    }
}

/// Prefetches the cache line at `from`, which will be read soon; any address is allowed.
#[allow(clippy::inline_always, reason = "part of the kernels")]
#[inline(always)]
fn fetch(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every 64-bit x86 CPU has the instruction, and it reads nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape.into(), &Device::Cpu)?)
}

/// A slice that several threads write at the same time, each in places of its own. It has no lock: the code that splits
/// the work must hand out places that do not overlap.
#[derive(Clone, Copy)]
struct SharedSlice<'a> {
    start: *mut f32,
    len: usize,
    _owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: access goes through `slice`, whose callers promise that concurrent places do not overlap.
unsafe impl Send for SharedSlice<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedSlice<'_> {}

impl<'a> SharedSlice<'a> {
    fn new(values: &'a mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), _owner: std::marker::PhantomData }
    }

    /// Returns the places `range`, to be written.
    ///
    /// # Safety
    /// No other thread may hold an overlapping range at the same time.
    unsafe fn slice(&self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "kernel writes inside its output");
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise, alive as long as `'a`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Runs `work` on the values of `tensors`, which it changes in place: contiguous f32 tensors on the CPU, each with a
/// storage of its own.
fn with_values_mut(tensors: &[Tensor], work: &dyn Fn(&[SharedSlice<'_>]) -> Result<()>) -> Result<()> {
    Open { rest: tensors, slices: Vec::new(), work }.go_on()
}

/// Borrows all tensors mutably at once by nesting calls: candle lends a storage's values only for the time of one call.
struct Open<'a> {
    rest: &'a [Tensor],
    slices: Vec<SharedSlice<'a>>,
    work: &'a dyn Fn(&[SharedSlice<'_>]) -> Result<()>,
}

impl Open<'_> {
    fn go_on(&self) -> Result<()> {
        match self.rest.first() {
            Some(next) => Ok(next.inplace_op1(self)?),
            None => (self.work)(&self.slices),
        }
    }
}

impl InplaceOp1 for Open<'_> {
    fn name(&self) -> &'static str {
        "open"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a kernel was given an output that is not contiguous");
        };
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("a kernel was given an output that is not f32")
        };
        let mut slices = self.slices.clone();
        slices.push(SharedSlice::new(&mut values[start..end]));
        let opened = Open { rest: &self.rest[1..], slices, work: self.work };
        opened.go_on().map_err(|error| match error {
            Error::Tensor(error) => {
                Arc::try_unwrap(error).unwrap_or_else(|shared| candle_core::Error::Msg(shared.to_string()))
            }
            other => candle_core::Error::Msg(other.to_string()),
        })
    }
}
